"""The commit protocol of a night, without Ray: crashes at every step, concurrent readers and runs, changed plans."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines.nightly.publish import BatchRun, NightlyRun, read_predictions, reconcile

from pipelines.data.input_files import InputFile
from pipelines.data.shards import Piece, Shard
from pipelines.nightly.classify_step import predictions_schema
from pipelines.nightly.run_records import ClassifyCounts, QuarantinedFile, RunManifest, RunPlan
from pipelines.service_errors import HeldError, StalledError, UnavailableError
from pipelines.storage.lease import Lease, LeaseRecord
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardCounts, ShardLog, ShardOutcome, StepResult
from pipelines.storage.stage_plan import StagePlan
from pipelines.workers.fault_isolation import MAX_CRASHES, IsolatedRows, isolate_failing_rows
from pipelines.workers.map_shards import WorkerAnswer, _within_stall_limit, map_shards
from spin.errors import SpinError, UserError
from spin.settings import RaySettings
from tests.support.repository import ROOT

METADATA = {"model": "1", "format": 1}
MUTATING_METHODS = ("write", "create", "copy", "move", "delete")


class Crash(BaseException):
    """The process ends here; what its store holds stays."""


def make_input_files(count: int, version: str = "v") -> list[InputFile]:
    return [InputFile(f"f{n}", "jsonl", n, version) for n in range(count)]


class FakeStep:
    """A step with three rows per shard, all with the same label; it records the index of every shard that it computes.

    The last row of every second shard is a dead letter. On the first row of every other shard a shadow disagrees.
    """

    def __init__(self, label: str = "x") -> None:
        self.label = label
        self.computed: list[int] = []

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        self.computed.append(shard.index)
        dead = shard.index % 2
        ids = [f"{shard.name}-{row}" for row in range(3)]
        files = {"predictions.parquet": to_parquet({"id": ids[: 3 - dead], "label": [self.label] * (3 - dead)})}
        if dead:
            files["dead.parquet"] = to_parquet({"id": ids[-1:], "reason": ["null_text"]})
        else:
            files["disagreements.parquet"] = to_parquet({"id": ids[:1], "label": [self.label]})
        counts = ClassifyCounts(
            rows=3,
            uri=shard.uri,
            predicted=3 - dead,
            dead=dead,
            reasons={"null_text": dead},
            labels={self.label: 3 - dead},
            abstained=0,
            unlabelled=0,
            depths={},
            tokens=9,
            truncated=0,
        )
        return StepResult(files, counts)


def to_parquet(columns: dict[str, list[str]] | pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def plan_two_shards_per_file(files: list[InputFile]) -> list[Shard]:
    """Return the shards of the files, three rows each."""
    return [Shard(n, (Piece(files[n // 2].uri, "jsonl", 3 * n, 3 * n + 3),)) for n in range(2 * len(files))]


def run_night(
    out: Store,
    step: FakeStep,
    *,
    date: str = "2026-01-31",
    metadata: dict[str, Any] = METADATA,
    files: list[InputFile] | None = None,
    restart: bool = False,
    ttl: float = 30,
) -> RunManifest:
    """Run and publish a night in this process, as `run_classify` does."""
    files = make_input_files(2) if files is None else files
    with Lease(out, ttl=ttl) as lease:
        night = NightlyRun(out, date, lease)
        derived = RunPlan(tuple(plan_two_shards_per_file(files)), {}, 6 * len(files))
        run, plan = night.begin(metadata, files, lambda _: derived, restart=restart)
        manifest = run.finished(plan)
        if manifest is None:
            manifest = compute_manifest(run, step, plan, date, lease)
        night.publish(run, manifest, {"report.json": run.name.encode()})
        return manifest


def compute_manifest(run: BatchRun, step: FakeStep, plan: StagePlan[RunPlan], date: str, lease: Lease) -> RunManifest:
    """Compute all shards of a plan and write the manifest of the run."""
    no_retries = RaySettings(retry_seconds=0)
    outcomes = map_shards(
        lambda: step,
        (),
        plan.derived.shards,
        run.store,
        no_retries,
        counts_type=ClassifyCounts,
        stage="night",
        documents=plan.derived.documents,
        lease=lease,
        here=True,
    )
    return run.finish(
        plan,
        outcomes,
        date=date,
        output="out",
        model="tiny",
        model_version="1",
        classes=["x"],
        seconds=1.5,
        drift=[],
        before=None,
        shadow=None,
    )


@contextmanager
def crash_at(number: int, after: bool) -> Iterator[list[str]]:
    """Raise Crash at the store's mutation of this number, before or after it is made; yields the list of mutations."""
    mutations: list[str] = []
    patch = pytest.MonkeyPatch()

    def crashing(name: str) -> Callable[..., Any]:
        method = getattr(Store, name)

        def mutate(store: Store, *args: Any) -> Any:
            mutations.append(f"{name} {args[-1] if name in ('copy', 'move') else args[0]}")
            if len(mutations) > number:
                raise Crash  # a dead process runs no `finally` block
            if len(mutations) == number and not after:
                raise Crash
            result = method(store, *args)
            if len(mutations) == number:
                raise Crash
            return result

        return mutate

    patch.setattr(Lease, "_renew", lambda _: None)  # heartbeats are not steps of the night
    patch.setattr(Lease, "__exit__", lambda *_: None)
    try:
        for name in MUTATING_METHODS:
            patch.setattr(Store, name, crashing(name))
        yield mutations
    finally:
        patch.undo()


def delete_lease(out: Store) -> None:
    """Delete the lease of a crashed run: its process is this one, so that the lease would look alive."""
    for key in out.list("_lease"):
        out.delete(key)


def check_complete(out: Store, label: str = "x", files: int = 2, date: str = "2026-01-31") -> None:
    """Check that every row is published once, through `latest` and in the hive folders, and that no work is left."""
    manifest = out.read_json(out.read_json("latest")["manifest"])
    counts = manifest["counts"]
    assert counts["rows"] == counts["predicted"] + counts["dead"] == 6 * files
    rows = read_predictions(out.uri)
    ids = [row["id"] for row in rows]
    assert {row["label"] for row in rows} == {label}
    assert len(set(ids)) == len(ids) == counts["predicted"]
    letters = read_rows(out, f"dead_letters/date={date}")
    assert len(letters) == counts["dead"]
    assert sorted(ids + [row["id"] for row in letters]) == [
        f"{n:06d}-{row}" for n in range(2 * files) for row in range(3)
    ]
    assert [row["id"] for row in read_rows(out, f"predictions/date={date}")] == ids
    disagreements = [(row["id"], row["label"]) for row in read_rows(out, f"disagreements/date={date}")]
    assert disagreements == [(f"{n:06d}-0", label) for n in range(0, 2 * files, 2)]
    work = [key for key in out.list("_runs") if "/parts/" in key or "/attempts/" in key]
    assert work == []
    latest = out.read_json("latest")
    assert {out.read(key) for key in ("report.json", f"_runs/{latest['run']}/report.json")} == {latest["run"].encode()}


def read_rows(out: Store, folder: str) -> list[dict[str, Any]]:
    """Return the rows of all Parquet files in a folder of the output."""
    rows = []
    for key in out.list(folder):
        data = out.read(key)
        assert data is not None
        rows += pq.read_table(pa.BufferReader(data)).to_pylist()
    return rows


def record_steps() -> list[str]:
    """Return the mutations of the store in an undisturbed night, in order."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, crash_at(10**6, after=True) as mutations:
        run_night(Store(folder), FakeStep())
    return mutations


STEPS = record_steps()
PUBLISHED = STEPS.index("write published.json") + 1
"""number of the step after which a night only deletes"""


def test_a_night_is_committed_in_order() -> None:
    """The order is: data, outcomes, manifest, published parts, `latest`, deletion of temporary objects."""

    def first_index(text: str) -> int:
        return next(n for n, step in enumerate(STEPS) if text in step)

    order = [
        "create _lease",
        "write plan.json",
        "create parts/000003-000001-1.dead.parquet",
        "create parts/000003.json",
        "write manifest.json",
        "move predictions/date=2026-01-31/part-001-000000-000001-1.parquet",
        "write latest",
        "write published.json",
        "delete parts",
    ]
    indices = [first_index(text) for text in order]
    assert indices == sorted(indices)
    assert first_index("write latest") > max(n for n, step in enumerate(STEPS) if step.startswith("move"))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, len(STEPS) + 1), ids=STEPS)
def test_a_crash_at_any_step_loses_nothing(number: int, after: bool, tmp_path: Path) -> None:
    """A rerun completes the night and computes at most one shard again: the one in progress."""
    out, step = Store(str(tmp_path)), FakeStep()
    with crash_at(number, after), pytest.raises(Crash):
        run_night(out, step)
    if out.read_json("latest") is not None:
        assert read_predictions(out.uri), "the night that `latest` names has its rows"
    delete_lease(out)
    run_night(out, step)
    check_complete(out)
    assert len(step.computed) <= 4 + 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, len(STEPS) + 6), st.booleans(), st.booleans()), max_size=6))
def test_many_crashes_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[tuple[int, bool, bool]]
) -> None:
    """The crashes follow each other at any steps; in between, the night may be restarted with another model."""
    out = Store(str(tmp_path_factory.mktemp("out")))
    model = "1"
    for number, after, changed in crashes:
        model = str(int(model) + changed)
        with crash_at(number, after), suppress(Crash):
            run_night(out, FakeStep(model), metadata={**METADATA, "model": model}, restart=True)
        delete_lease(out)
        if out.read_json("latest") is not None:
            assert len({row["label"] for row in read_predictions(out.uri)}) == 1
    run_night(out, FakeStep(model), metadata={**METADATA, "model": model}, restart=True)
    check_complete(out, model)


@contextmanager
def mount_small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of one megabyte on a folder, which only root can do."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    result = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if result is None or result.returncode:
        message = f"no disk can be mounted here: {result.stderr.strip() if result else 'there is no `mount` command'}"
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path) -> None:
    """Write until no further byte fits."""
    with (folder / ".ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1), ids=STEPS)
def test_a_full_disk_at_any_step_fails_clearly_and_resumes(number: int, tmp_path: Path) -> None:
    """The run ends with status 5 on a real disk, and readers see all of the night or nothing.

    No temporary file is left, and with more space a rerun completes the night.
    """
    folder, step, steps = tmp_path / "disk", FakeStep(), 0
    folder.mkdir()

    def fill_at_step() -> None:
        nonlocal steps
        steps += 1
        if steps == number:
            fill_disk(folder)

    with mount_small_disk(folder):
        out = Store(str(folder))
        with call_at_every_step(fill_at_step):
            if number > PUBLISHED:  # deleting needs no space
                run_night(out, step)
            else:
                with pytest.raises(UnavailableError, match=r"is full .*No space left.*run it again to resume") as error:
                    run_night(out, step)
                assert error.value.status == 5
        assert [path.name for path in folder.rglob(".*")] == [".ballast"]
        if out.read_json("latest") is None:
            assert number <= STEPS.index("write latest") + 1
        else:
            assert len(read_predictions(out.uri)) == 10
        subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
        delete_lease(out)
        run_night(out, step)
        check_complete(out)
        assert len(step.computed) <= 4 + 1


S3_STEPS = (
    "write manifest",
    "predictions/date=2026-01-31/part-001-000002",
    "write latest",
    "published",
    "delete parts",
)


@pytest.mark.s3
@pytest.mark.parametrize("number", [n for n, step in enumerate(STEPS, 1) if any(text in step for text in S3_STEPS)])
def test_a_crash_loses_nothing_on_s3(number: int, s3_server: str, tmp_path: Path) -> None:
    """The crashes are at steps of the manifest, the publication and the cleanup."""
    out, step = Store(f"{s3_server}/night-{tmp_path.parent.name}-{number}"), FakeStep()
    out.delete("")
    with crash_at(number, after=True), pytest.raises(Crash):
        run_night(out, step)
    delete_lease(out)
    run_night(out, step)
    check_complete(out)


def test_a_reader_sees_all_of_a_night_or_none(store_uri: str) -> None:
    """A reader that polls while runs of a night are published gets all rows of one run, or an error."""
    out = Store(store_uri)
    stop, readings = threading.Event(), []

    def poll() -> None:
        while not stop.is_set():
            try:
                rows = read_predictions(store_uri)
            except UserError:  # no night yet, or its parts were replaced while they were read
                continue
            readings.append((len(rows), {row["label"] for row in rows}))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for model in map(str, range(4)):
            run_night(out, FakeStep(model), metadata={**METADATA, "model": model}, restart=True)
    finally:
        stop.set()
        reader.join()
    assert readings
    assert {count for count, _ in readings} == {10}
    assert max(len(labels) for _, labels in readings) == 1


@contextmanager
def call_at_every_step(callback: Callable[[], None]) -> Iterator[None]:
    """Call a function before every mutation of the store and after the last one."""

    def with_callback(method: Callable[..., Any]) -> Callable[..., Any]:
        def mutate(store: Store, *args: Any) -> Any:
            callback()
            return method(store, *args)

        return mutate

    with pytest.MonkeyPatch.context() as patch:
        for name in MUTATING_METHODS:
            patch.setattr(Store, name, with_callback(getattr(Store, name)))
        yield
    callback()


def test_a_reader_at_any_step_sees_all_of_a_night_or_none(tmp_path: Path) -> None:
    """While a run and then a second run are published, a reader sees nothing, the first, nothing and the second."""
    out = Store(str(tmp_path))
    states: list[Any] = []

    def read_state() -> None:
        if out.read_json("latest") is None:
            states.append("none")
            return
        rows = read_predictions(out.uri)
        assert len(rows) == 10
        states.extend({row["label"] for row in rows})

    with call_at_every_step(read_state):
        run_night(out, FakeStep("first"))
        run_night(out, FakeStep("second"), metadata={**METADATA, "model": "2"}, restart=True)
    assert [state for state, _ in groupby(states)] == ["none", "first", "none", "second"]


def test_new_files_wait_for_the_next_night(tmp_path: Path) -> None:
    """A resumed run classifies the files of its plan; the next date classifies all."""
    out, step = Store(str(tmp_path)), FakeStep()
    with crash_at(8, after=True), pytest.raises(Crash):
        run_night(out, step)
    delete_lease(out)
    run_night(out, step, files=make_input_files(3))
    check_complete(out, files=2)
    run_night(out, step, files=make_input_files(3), date="2026-02-01")
    check_complete(out, files=3, date="2026-02-01")


CHANGES: dict[str, tuple[dict[str, Any], list[InputFile], str]] = {
    "model": ({**METADATA, "model": "2"}, make_input_files(2), 'model is "2", was "1"'),
    "format": ({**METADATA, "format": 2}, make_input_files(2), "format is 2, was 1"),
    "file changed": (METADATA, make_input_files(2, "w"), 'files.0.version is "w", was "v"'),
    "file gone": (METADATA, make_input_files(1), 'files.1.version is "gone", was "v"'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_plan_is_refused_without_restart(change: str, tmp_path: Path) -> None:
    """The error names the difference; `restart` makes a new run, and publishing it deletes the old one."""
    metadata, files, difference = CHANGES[change]
    out = Store(str(tmp_path))
    run_night(out, FakeStep("old"))
    with pytest.raises(UserError, match=r"--restart") as raised:
        run_night(out, FakeStep("new"), metadata=metadata, files=files)
    assert difference in str(raised.value)
    check_complete(out, "old")
    run_night(out, FakeStep("new"), metadata=metadata, files=files, restart=True)
    check_complete(out, "new", files=len(files))
    assert [key for key in out.list("_runs") if "-001/" in key] == []


def test_a_finished_night_is_not_computed_again(tmp_path: Path) -> None:
    """As long as nothing has changed, this holds with `restart` too."""
    out, step = Store(str(tmp_path)), FakeStep()
    first = run_night(out, step)
    assert run_night(out, step, restart=True) == run_night(out, step) == first
    assert step.computed == [0, 1, 2, 3]


def test_latest_stays_at_the_newest_date(tmp_path: Path) -> None:
    """A missed night that is run later is published in its own folder."""
    out = Store(str(tmp_path))
    run_night(out, FakeStep("new"), date="2026-02-02")
    run_night(out, FakeStep("old"), date="2026-02-01")
    assert out.read_json("latest")["date"] == "2026-02-02"
    assert {row["label"] for row in read_rows(out, "predictions/date=2026-02-01")} == {"old"}
    check_complete(out, "new", date="2026-02-02")


class RealColumnsStep(FakeStep):
    """A step whose predictions have the columns of a real night; some have no label."""

    def __init__(self, multilabel: bool) -> None:
        super().__init__()
        self.multilabel = multilabel

    def choose_label(self, shard: Shard, row: int) -> Any:
        if row == 1:
            return [] if self.multilabel and shard.index else None
        return ["good", "late"] if self.multilabel else "good"

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        result = super().__call__(shard, attempt)
        rows = [
            {
                "id": f"{shard.name}-{row}",
                "label": self.choose_label(shard, row),
                "score": 0.75,
                "scores": [0.75, 0.25],
                "depth": 3,
                "model_version": "7",
            }
            for row in range(result.counts.predicted)
        ]
        table = pa.Table.from_pylist(rows, schema=predictions_schema(self.multilabel))
        return StepResult({**result.files, "predictions.parquet": to_parquet(table)}, result.counts)


@pytest.mark.parametrize("multilabel", [False, True], ids=["label", "labels"])
def test_all_nights_are_readable_as_one_table(multilabel: bool, tmp_path: Path) -> None:
    """PyArrow and DuckDB read the hive folders as one table with a column `date`."""
    import duckdb
    import pyarrow.dataset as ds

    out, dates, step = Store(str(tmp_path)), ["2026-02-01", "2026-02-02"], RealColumnsStep(multilabel)
    for day in dates:
        run_night(out, step, date=day)
    columns = ["id", "label", "score", "scores", "depth", "model_version", "date"]
    expected = [
        (f"{n:06d}-{row}", step.choose_label(Shard(n), row), 0.75, [0.75, 0.25], 3, "7", day)
        for day in dates
        for n in range(4)
        for row in range(3 - n % 2)
    ]
    table = ds.dataset(f"{out.uri}/predictions", partitioning="hive").to_table().sort_by([("date", "ascending")])
    assert table.schema.remove_metadata() == predictions_schema(multilabel).append(pa.field("date", pa.string()))
    assert [tuple(row[name] for name in columns) for row in table.to_pylist()] == expected
    nights = duckdb.read_parquet(f"{out.uri}/predictions/*/*.parquet", hive_partitioning=True)
    assert nights.columns == columns
    label = "VARCHAR[]" if multilabel else "VARCHAR"
    assert list(map(str, nights.types)) == ["VARCHAR", label, "FLOAT", "FLOAT[]", "INTEGER", "VARCHAR", "DATE"]
    assert [(*row[:-1], str(row[-1])) for row in nights.order("date, id").fetchall()] == expected
    [count] = nights.filter("date = '2026-02-02' and label is null").aggregate("count(*)").fetchall()
    assert count == (1 if multilabel else 4,)
    letters = ds.dataset(f"{out.uri}/dead_letters", partitioning="hive").to_table()
    assert Counter(letters["date"].to_pylist()) == dict.fromkeys(dates, 2)


def test_a_run_that_lost_its_lease_publishes_nothing(tmp_path: Path) -> None:
    """The lease is taken by another run during the publication: the run stops before its next step."""
    out = Store(str(tmp_path))
    move = Store.move

    def move_and_lose_lease(store: Store, key: str, to: str) -> None:
        move(store, key, to)
        [number] = store.list("_lease")
        record = LeaseRecord(
            holder="another run",
            kernel=None,
            pid=1,
            started=None,
            token="another",
            beat="first",
            ttl=30.0,
            ended=False,
        )
        store.write(f"{number[:-1]}{int(number[-1]) + 1}", record.to_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "move", move_and_lose_lease)
        with pytest.raises(HeldError, match="another run"):
            run_night(out, FakeStep())
    assert out.read_json("latest") is None
    assert len(out.list("predictions")) == 1


WAITING_RUN = """
import sys
from tests.pipelines.nightly import test_night as night
from pipelines.service_errors import HeldError

class WaitingStep(night.FakeStep):
    def __call__(self, shard, attempt):
        if shard.index == 1:
            print("waiting", flush=True)
            sys.stdin.readline()
        return super().__call__(shard, attempt)

try:
    night.run_night(night.Store(sys.argv[1]), WaitingStep(), ttl=2)
except HeldError as error:
    print(error, flush=True)
    sys.exit(error.status)
"""


def test_a_run_that_wakes_after_its_lease_was_taken_publishes_nothing(store_uri: str) -> None:
    """A second run on the same output is refused as long as the first runs, and the error names the first.

    When the first is stopped for longer than its lease, the second publishes; the first then ends with status 3.
    """
    out = Store(store_uri)
    first = subprocess.Popen(
        [sys.executable, "-c", WAITING_RUN, store_uri],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "waiting\n"
        with pytest.raises(HeldError, match=f"process {first.pid}"):
            run_night(out, FakeStep(), ttl=2)
        first.send_signal(signal.SIGSTOP)
        run_night(out, FakeStep(), ttl=2)
        check_complete(out)
        before = read_predictions(store_uri)
        first.send_signal(signal.SIGCONT)
        output, _ = first.communicate("on\n", timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 3
    assert "is held by" in output
    assert read_predictions(store_uri) == before
    assert len(out.list("predictions")) == 4


def test_an_unreadable_file_is_quarantined_as_a_whole(tmp_path: Path) -> None:
    """Rows that were predicted before the error are left out too; the counts are those of the other files."""

    class UnreadableFileStep(FakeStep):
        def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
            result = super().__call__(shard, attempt)
            if shard.index != 3:
                return result
            return StepResult({}, replace(result.counts, rows=0, predicted=0, dead=0, bad="f1 is corrupt"))

    out = Store(str(tmp_path))
    manifest = run_night(out, UnreadableFileStep())
    assert manifest.quarantined == (QuarantinedFile("f1", "f1 is corrupt"),)
    assert [file.uri for file in manifest.inputs] == ["f0"]
    assert {name: getattr(manifest.counts, name) for name in ("rows", "predicted", "dead")} == {
        "rows": 6,
        "predicted": 5,
        "dead": 1,
    }
    assert len(read_predictions(out.uri)) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dead": 0}, "3 were planned, 3 read, 2 predicted or dead"),
        ({"rows": 4, "predicted": 3}, "3 were planned, 4 read, 4 predicted or dead"),
    ],
)
def test_counts_that_do_not_add_up_are_an_error_that_names_the_difference(change: dict[str, Any], message: str) -> None:
    """A row is missing, a row was not planned, or a shard is not committed."""
    shards = plan_two_shards_per_file(make_input_files(1))
    counts = [FakeStep()(shard, None).counts for shard in shards]  # type: ignore[arg-type]
    outcomes = [ShardOutcome(count, {}, tries=1, seconds=1.0, ended=0.0) for count in counts]
    reconcile(shards, outcomes)
    with pytest.raises(SpinError, match=message):
        reconcile(shards, [outcomes[0], replace(outcomes[1], counts=replace(counts[1], **change))])
    with pytest.raises(SpinError, match="2 shards were planned, 1 are committed"):
        reconcile(shards, outcomes[:1])


def test_a_night_whose_counts_do_not_add_up_is_not_published(tmp_path: Path) -> None:
    """A step that loses a row makes the run fail before the manifest is written."""

    class RowLosingStep(FakeStep):
        def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
            result = super().__call__(shard, attempt)
            counts = replace(result.counts, predicted=result.counts.predicted - (shard.index == 2))
            return StepResult(result.files, counts)

    out = Store(str(tmp_path))
    with pytest.raises(SpinError, match="3 were planned, 3 read, 2 predicted or dead; nothing is published"):
        run_night(out, RowLosingStep())
    assert [key for key in out.list() if not key.startswith(("_lease/", "_runs/"))] == []


def test_crashes_of_the_machine_are_not_blamed_on_a_document(tmp_path: Path) -> None:
    """A shard of one document has crashed as often as a machine may: the document is computed, not a dead letter."""
    shard_log = ShardLog(Store(str(tmp_path)))
    for _ in range(MAX_CRASHES):
        with pytest.raises(Crash), shard_log.attempt("000000"):
            raise Crash
    with shard_log.attempt("000000") as attempt:
        assert attempt.crashes == MAX_CRASHES
        assert isolate_failing_rows([0], lambda rows: rows, attempt) == IsolatedRows([([0], [0])], {})


def test_a_stalled_run_fails_and_names_the_shards_in_progress(tmp_path: Path) -> None:
    """Finished shards are returned before the stall limit passes."""
    shard_log, never = ShardLog(Store(str(tmp_path))), threading.Event()
    shard_log.commit("000000", StepResult({}, ShardCounts(rows=1)), tries=1, seconds=1.0, ended=0.0)
    for name in ("000000", "000001"):
        with shard_log.attempt(name):
            pass

    def answers() -> Iterator[WorkerAnswer]:
        yield WorkerAnswer("000000")
        never.wait()

    limited = _within_stall_limit(answers(), 0.5, "trial", shard_log)
    assert next(limited) == WorkerAnswer("000000")
    try:
        with pytest.raises(StalledError, match=r"trial: no shard .* 0\.5 s .*begun and not ended: 000001 in"):
            next(limited)
    finally:
        never.set()
