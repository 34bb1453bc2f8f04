"""Tables whose commits succeed only on top of the snapshot that they were derived from."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake.exceptions import DeltaError

from pipelines.service_errors import UnavailableError
from pipelines.storage import delta_table
from pipelines.storage.delta_table import (
    DataFile,
    StaleSnapshotError,
    TableSnapshot,
    create_table,
    open_table,
)
from pipelines.storage.object_store import Store
from pipelines.storage.retrying import retry_commits
from spin.errors import UserError
from tests.support.proxy import Proxy, run_proxy

SCHEMA = pa.schema([("id", pa.string()), ("day", pa.date32()), ("model", pa.string())])
COLUMNS = ("day", "model")
PARTITION = {"day": "2026-03-01", "model": "a"}


def create(uri: str) -> Store:
    store = Store(uri)
    create_table(store, SCHEMA, COLUMNS)
    return store


def snapshot_of(store: Store) -> TableSnapshot:
    snapshot = open_table(store)
    assert snapshot is not None
    return snapshot


def make_file(name: str, rows: int = 1) -> DataFile:
    return DataFile(f"{name}.parquet", 10, rows)


def commit_file(store: Store, name: str, partition: dict[str, str] = PARTITION) -> None:
    snapshot_of(store).replace_partition(partition, [make_file(name)])


def race(uri: str, name: str, commits: int) -> None:
    """Commit one file after another, each in a partition of its own, and count the commits in the table."""
    store = create(uri)
    for number in range(commits):

        def attempt(number: int = number) -> None:
            snapshot = snapshot_of(store)
            if snapshot.last_transaction(name) == number + 1:
                return  # by the attempt before, whose answer was lost
            snapshot.replace_partition(
                {"day": "2026-03-01", "model": f"{name}-{number}"},
                [make_file(f"{name}-{number}")],
                transactions={name: number + 1},
            )

        retry_commits(store)(attempt)


@pytest.mark.slow
def test_every_accepted_commit_of_racing_processes_is_a_version(store_uri: str) -> None:
    """Three processes create the table and commit eight files each; nothing is lost and nothing is doubled."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=race, args=(store_uri, name, 8)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    snapshot = snapshot_of(Store(store_uri))
    assert snapshot.version == 24
    assert [snapshot.last_transaction(name) for name in "abc"] == [8, 8, 8]
    assert sorted(snapshot.file_table["path"].to_pylist()) == [
        f"{name}-{n}.parquet" for name in "abc" for n in range(8)
    ]


def test_tables_that_are_created_at_once_have_one_creation(store_uri: str) -> None:
    """A second creation would be a commit that puts back the first schema."""
    start = threading.Barrier(4)

    def create_at_once(number: int) -> None:
        start.wait(30)
        create(f"{store_uri}/{number}")

    for number in range(10):
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(create_at_once, [number] * 4))
    assert [snapshot_of(Store(f"{store_uri}/{number}")).version for number in range(10)] == [0] * 10


def test_threads_with_one_snapshot_have_one_winner(store_uri: str) -> None:
    store = create(store_uri)
    snapshots = [snapshot_of(store) for _ in range(4)]
    start = threading.Barrier(4)

    def commit(number: int) -> bool:
        start.wait(30)
        try:
            snapshots[number].replace_partition(PARTITION, [make_file(f"f{number}")])
        except StaleSnapshotError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        accepted = list(threads.map(commit, range(4)))
    assert accepted.count(True) == 1
    assert snapshot_of(store).files(PARTITION) == [make_file(f"f{accepted.index(True)}")]


@pytest.mark.parametrize(
    "commit",
    [
        lambda snapshot: snapshot.replace_partition(PARTITION, [make_file("late")]),
        lambda snapshot: snapshot.replace_partition({"day": "2026-03-02", "model": "b"}, [make_file("late")]),
        lambda snapshot: snapshot.remove_partitions([PARTITION]),
        lambda snapshot: snapshot.commit_transaction("app", 9),
    ],
    ids=["same partition", "other partition", "remove", "transaction"],
)
def test_a_stale_writer_is_refused_and_changes_nothing(commit: Callable[[TableSnapshot], int], store_uri: str) -> None:
    store = create(store_uri)
    commit_file(store, "first")
    stale = snapshot_of(store)
    commit_file(store, "second")
    with pytest.raises(StaleSnapshotError):
        commit(stale)
    snapshot = snapshot_of(store)
    assert (snapshot.version, snapshot.files({})) == (2, [make_file("second")])
    assert snapshot.last_transaction("app") is None


@pytest.mark.parametrize("partition", [PARTITION, {"day": "2026-03-02", "model": "b"}], ids=["same", "other"])
def test_a_stale_writer_is_refused_where_nothing_was_removed(partition: dict[str, str], store_uri: str) -> None:
    """Two writers that only add files do not conflict by the rules of Delta, which would let both commit."""
    store = create(store_uri)
    stale = snapshot_of(store)
    commit_file(store, "first")
    with pytest.raises(StaleSnapshotError):
        stale.replace_partition(partition, [make_file("late")])
    with pytest.raises(StaleSnapshotError):
        stale.commit_transaction("app", 9)
    assert snapshot_of(store).files({}) == [make_file("first")]


def test_a_snapshot_commits_once(tmp_path: Path) -> None:
    store = create(str(tmp_path))
    snapshot = snapshot_of(store)
    snapshot.commit_transaction("app", 1)
    assert snapshot_of(store).version == 1
    with pytest.raises(StaleSnapshotError):
        snapshot.commit_transaction("app", 2)


def test_a_snapshot_has_no_table_once_another_took_it_over(store_uri: str) -> None:
    """Its handle is at the newer version: nothing of it was checked in the older one."""
    store = create(store_uri)
    spent = snapshot_of(store)
    spent.commit_transaction("app", 1)
    commit_file(store, "first")
    newer = open_table(store, spent)
    assert newer is not None
    for use in (lambda: spent.commit_transaction("app", 2), lambda: spent.files({}), lambda: spent.schema):
        with pytest.raises(StaleSnapshotError, match="version 2 was opened meanwhile"):
            use()
    assert snapshot_of(store).version == newer.version == 2
    newer.commit_transaction("app", 2)
    assert snapshot_of(store).version == 3


def test_a_snapshot_stays_what_it_was_when_others_commit(store_uri: str) -> None:
    """Also what of it nobody has asked for before a newer one is opened in its place."""
    store = create(store_uri)
    commit_file(store, "first")
    older = snapshot_of(store)
    snapshot_of(store).replace_partition(PARTITION, [make_file("second")], transactions={"app": 1})
    newer = open_table(store, older)
    assert newer is not None
    assert (newer.files({}), newer.last_transaction("app")) == ([make_file("second")], 1)
    assert (older.files({}), older.last_transaction("app")) == ([make_file("first")], None)
    with pytest.raises(StaleSnapshotError):
        older.commit_transaction("app", 2)


def test_a_snapshot_that_is_brought_up_to_date_equals_a_fresh_one(store_uri: str) -> None:
    """After each kind of commit, of this process or of others, over two checkpoints."""
    store = create(store_uri)
    last = snapshot_of(store)
    assert open_table(store, last) is last
    for number in range(25):
        day = {"day": f"2026-03-{number % 3 + 1:02d}", "model": "a"}
        own = last if number % 2 else snapshot_of(store)
        wider = own.schema.append(pa.field(f"column{number}", pa.string()))
        if number % 5 == 4:
            own.remove_partitions([day], transactions={"removed": number})
        else:
            own.replace_partition(day, [make_file(f"f{number}", number)], schema=wider, transactions={"app": number})
        updated, fresh = open_table(store, last), snapshot_of(store)
        assert updated == fresh
        assert updated is not None
        assert updated.file_table.sort_by("path") == fresh.file_table.sort_by("path")
        assert updated.schema == fresh.schema
        for app in ("app", "removed", "other"):
            assert updated.last_transaction(app) == fresh.last_transaction(app)
        last = updated


def test_a_table_is_opened_anew_once_its_credentials_are_not_the_current_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary ones expire during a night, and its commits come at the end."""
    store, token = create(str(tmp_path / "table")), ["first"]
    monkeypatch.setattr(delta_table, "_storage_options", lambda _: {"aws_session_token": token[0]})
    last = snapshot_of(store)
    assert open_table(store, last) is last
    token[0] = "second"
    assert open_table(store, last) is last, "new credentials for each session say nothing of the old ones"
    monkeypatch.setattr(delta_table, "_CREDENTIALS_SECONDS", -1)
    renewed = open_table(store, last)
    assert renewed is not None
    assert renewed == last
    assert renewed._handle is not last._handle
    assert open_table(store, renewed) is renewed


def test_nothing_is_committed_to_a_table_that_was_deleted(tmp_path: Path) -> None:
    """A log that begins with a later commit could be opened by nobody."""
    store = create(str(tmp_path / "table"))
    commit_file(store, "first")
    last = snapshot_of(store)
    shutil.rmtree(tmp_path / "table")
    with pytest.raises(UserError):
        (open_table(store, last) or last).commit_transaction("app", 1)
    assert not (tmp_path / "table").exists()


def test_replacing_a_partition_leaves_the_others(store_uri: str) -> None:
    """Values with quotes, percent signs and slashes name partitions as any other value does."""
    store = create(store_uri)
    models = ["a", "it's", 'say "ü"', "m=1&x%20", "a/b", "  ", "$m", "m,(b)"]
    for day in ("2026-03-01", "2026-03-02"):
        for number, model in enumerate(models):
            commit_file(store, f"{day}-{number}", {"day": day, "model": model})
    for number, model in enumerate(models):
        partition = {"day": "2026-03-02", "model": model}
        snapshot_of(store).replace_partition(partition, [make_file(f"new-{number}", 5), make_file(f"new-{number}b", 0)])
        assert snapshot_of(store).files(partition) == [make_file(f"new-{number}", 5), make_file(f"new-{number}b", 0)]
    snapshot = snapshot_of(store)
    assert sorted(file.path for file in snapshot.files({"day": "2026-03-01"})) == [
        f"2026-03-01-{number}.parquet" for number in range(len(models))
    ]
    snapshot.remove_partitions([{"day": "2026-03-02", "model": model} for model in models[1:]])
    assert len(snapshot_of(store).files({"day": "2026-03-02"})) == 2
    assert len(snapshot_of(store).files({})) == len(models) + 2


def test_a_partition_must_be_named_in_full(tmp_path: Path) -> None:
    """A filter on one of two columns would replace the nights of all models."""
    snapshot = snapshot_of(create(str(tmp_path)))
    with pytest.raises(ValueError, match="expected a value for each"):
        snapshot.replace_partition({"day": "2026-03-01"}, [])


@pytest.mark.parametrize("path", ["a b.parquet", "a%20b.parquet", "ü.parquet", "../a.parquet#", "a//b", "/a", ""])
def test_paths_that_readers_take_for_others_are_not_committed(path: str, tmp_path: Path) -> None:
    snapshot = snapshot_of(create(str(tmp_path)))
    with pytest.raises(ValueError, match="expected letters"):
        snapshot.replace_partition(PARTITION, [DataFile(path, 1, 1)])


def test_statistics_hold_the_number_of_rows_and_nothing_of_them(tmp_path: Path) -> None:
    store = create(str(tmp_path))
    snapshot_of(store).replace_partition(PARTITION, [make_file("a", 12)], metadata={"run": "r1"})
    log = [json.loads(line) for line in (store.read("_delta_log/00000000000000000001.json") or b"").splitlines()]
    [add] = [entry["add"] for entry in log if "add" in entry]
    assert json.loads(add["stats"]) == {"numRecords": 12}
    assert [entry["commitInfo"]["run"] for entry in log if "commitInfo" in entry] == ["r1"]


def test_transactions_survive_checkpoints(tmp_path: Path) -> None:
    """After 25 commits the state comes from a checkpoint."""
    store = create(str(tmp_path))
    for number in range(1, 26):
        snapshot_of(store).commit_transaction("app", number)
    assert any(key.endswith(".checkpoint.parquet") for key in store.list("_delta_log"))
    assert snapshot_of(store).last_transaction("app") == 25
    assert snapshot_of(store).last_transaction("other") is None


def test_ten_thousand_files_are_one_commit(store_uri: str) -> None:
    store = create(store_uri)
    files = [DataFile(f"run/{number:06d}-000001-1.parquet", 1000 + number, number) for number in range(10_000)]
    snapshot_of(store).replace_partition(PARTITION, files)
    assert snapshot_of(store).version == 1
    assert snapshot_of(store).files(PARTITION) == files


def test_the_schema_of_a_commit_replaces_that_of_the_table(tmp_path: Path) -> None:
    store = create(str(tmp_path))
    wider = SCHEMA.append(pa.field("lang", pa.string()))
    snapshot_of(store).replace_partition(PARTITION, [make_file("a")], schema=wider)
    commit_file(store, "b")
    snapshot_of(store).commit_transaction("app", 1)
    assert snapshot_of(store).schema.names == wider.names


def test_a_schema_that_tables_do_not_have_is_refused_in_one_line(tmp_path: Path) -> None:
    """deltalake raises a bare Exception."""
    store = create(str(tmp_path))
    schema = SCHEMA.append(pa.field("k", pa.struct([("x", pa.int64()), ("X", pa.int64())])))
    with pytest.raises(UserError, match=r"^[^\n]*the table does not take this[^\n]*$"):
        snapshot_of(store).replace_partition(PARTITION, [make_file("a")], schema=schema)
    assert snapshot_of(store).schema.names == SCHEMA.names


def test_another_table_is_not_taken_for_ours(tmp_path: Path) -> None:
    store = create(str(tmp_path))
    with pytest.raises(UserError, match="partition columns day, model"):
        create_table(store, SCHEMA, ["day"])


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        *((code, UserError, "no hard links") for code in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)),
        (errno.EIO, UnavailableError, "Input/output error"),
    ],
)
def test_a_file_system_without_hard_links_is_refused(
    code: int, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT answers EPERM; other file systems say that they do not support it. The probe leaves nothing behind.

    A disk that fails may answer the next time.
    """

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(kind, match=message):
        create(str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["a%20b", "a\\b"])
def test_a_path_that_tables_cannot_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot have in their paths"):
        create(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a b", "ü'x", "a#b", "a?b", "a+b", "a=b&c"])
def test_a_table_lies_where_its_store_lies(name: str, store_uri: str) -> None:
    store = create(f"{store_uri}/{name}")
    commit_file(store, "a")
    assert store.list_names("_delta_log") == [f"{version:020d}.json" for version in range(2)]


def test_opening_a_table_that_is_not_there_creates_nothing(store_uri: str) -> None:
    store = Store(store_uri)
    assert open_table(store) is None
    assert store.list() == []


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server, through which all requests go."""
    with run_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["throttle", "error"])
def test_a_commit_succeeds_after_a_temporary_fault(fault: str, proxy: Proxy, s3_server: str) -> None:
    store = create(f"{s3_server}/{uuid.uuid4().hex}")
    failed: set[str] = set()

    def fail_first_put(_: int, method: str, path: str) -> str | None:
        if method == "PUT" and path not in failed:
            failed.add(path)
            return fault
        return None

    proxy.fault = fail_first_put
    commit_file(store, "a")
    assert snapshot_of(store).version == 1
    assert failed


@pytest.mark.s3
def test_a_commit_whose_answer_is_lost_is_found_in_the_table(proxy: Proxy, s3_server: str) -> None:
    """The commit reports that the store did not answer; a caller that opens the table anew sees that it is done."""
    store = create(f"{s3_server}/{uuid.uuid4().hex}")
    proxy.fault = lambda _, method, path: "lost" if method == "PUT" else None
    with pytest.raises(UnavailableError):
        commit_file(store, "a")
    proxy.fault = lambda *_: None
    assert snapshot_of(store).files(PARTITION) == [make_file("a")]


@pytest.mark.s3
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses the credentials \\(SignatureDoesNotMatch\\)"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "refuses the credentials \\(InvalidAccessKeyId\\)"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "refuses the credentials"),
    ],
    ids=["wrong secret", "unknown key", "no credentials"],
)
def test_refused_credentials_are_one_line(
    environment: dict[str, str],
    message: str,
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    store = create(f"{s3_server}/{uuid.uuid4().hex}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in environment.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    with pytest.raises(UserError, match=message) as refused:
        open_table(store)
    assert "\n" not in str(refused.value)
    assert "wrong" not in str(refused.value)


@pytest.mark.s3
def test_a_missing_bucket_is_the_users_error(s3_server: str) -> None:
    with pytest.raises(UserError, match=r"not found \(NoSuchBucket\)"):
        open_table(Store("s3://no-such-bucket/out"))


@pytest.mark.slow
def test_a_server_that_is_down_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(delta_table, "DEADLINE", 1)
    with pytest.raises(UnavailableError, match=r"the store does not answer \(Connection refused") as failed:
        open_table(Store("s3://spin/out"))
    assert "\n" not in str(failed.value)


CHECKPOINT = "Kernel error: Arrow error: External: Generic S3 error: Error performing GET http://s3/x in 3.5s, after 2"


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        *(
            (OSError(message), UnavailableError, "the store is full")
            for message in (
                "Generic error: No space left on device (os error 28)",
                "Quota exceeded (os error 122)",
                "Kernel error -> x\n ↳ 507 Insufficient\n ↳ <Error><Code>QuotaExceeded</Code></Error>",
            )
        ),
        (OSError("Permission denied (os error 13)"), UserError, "Permission denied"),
        (OSError("Generic S3 error\n \x1b[31m↳\x1b[0m operation timed out"), UnavailableError, "operation timed out"),
        # deltalake raises an outage while it reads a checkpoint as it raises damage
        *((kind(CHECKPOINT), UnavailableError, "the store does not answer") for kind in (DeltaError, Exception)),
        (OSError(""), UnavailableError, "(OSError)"),
        (OSError("x" * 999), UnavailableError, f"({'x' * 300})"),
    ],
)
def test_errors_of_a_store_become_one_line(error: Exception, kind: type[Exception], reason: str) -> None:
    """The reason is neither empty nor long."""
    with pytest.raises(kind) as raised, delta_table._table_errors("s3://b/t"):
        raise error
    assert str(raised.value).startswith("s3://b/t: ")
    assert reason in str(raised.value)
    assert not {"\n", "\x1b", "<"} & set(str(raised.value))


def test_commits_are_tried_for_the_seconds_of_the_store(tmp_path: Path) -> None:
    """Nothing but UnavailableError is tried again, and the last error is raised."""
    attempts: list[int] = []

    def fail(error: Exception) -> Any:
        attempts.append(1)
        raise error

    with pytest.raises(StaleSnapshotError):
        retry_commits(Store(str(tmp_path), retry_seconds=0.5))(fail, StaleSnapshotError("stale"))
    assert len(attempts) > 1
    attempts.clear()
    with pytest.raises(UserError):
        retry_commits(Store(str(tmp_path), retry_seconds=5))(fail, UserError("no"))
    assert len(attempts) == 1


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    store = create(str(tmp_path))
    store.write("_delta_log/00000000000000000000.json", b"no JSON")
    with pytest.raises(UserError, match="the table is damaged or of another version") as damaged:
        snapshot_of(store)
    assert "\n" not in str(damaged.value)


@pytest.mark.parametrize(
    ("server", "endpoint", "http"),
    [("", None, None), ("http://h:9", "http://h:9", "true"), ("https://h", "https://h", "false")],
)
def test_the_options_of_a_bucket_come_from_the_environment(
    server: str, endpoint: str | None, http: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint is named unless it is that of AWS; only a server that is reached by http may do without encryption.

    Credentials of a role are refused without their session token. A log entry is created only if there is none.
    """
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
        monkeypatch.setenv(f"AWS_{name}", name.lower())
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    options = delta_table._storage_options(Store("s3://spin/out"))
    assert options is not None
    assert (options["aws_session_token"], options["aws_conditional_put"]) == ("session_token", "etag")
    assert (options.get("aws_endpoint"), options.get("allow_http")) == (endpoint, http)
