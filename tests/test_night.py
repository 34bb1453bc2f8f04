"""The commit protocol of a night, without Ray: crashes at every step, readers that poll, changed plans, two runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.documents import Shard
from pipelines.lease import Lease
from pipelines.ledger import Attempt, Ledger
from pipelines.night import Night, Run, read_predictions, reconcile
from pipelines.shards import commit_shard
from pipelines.store import Store
from spin.errors import HeldError, SpinError, UserError

FACTS = {"model": "1", "format": 1}
ROOT = Path(__file__).parents[1]
MUTATIONS = ("write", "create", "copy", "move", "delete")


class Crash(BaseException):
    """The process is gone; what its store holds stays."""


def files_of(count: int, version: str = "v") -> list[dict[str, Any]]:
    return [{"uri": f"f{n}", "size": n, "version": version} for n in range(count)]


class Step:
    """Predicts three rows a shard, the last of every second shard dead; counts how often each shard was computed."""

    def __init__(self, says: str = "x") -> None:
        self.says, self.computed = says, []

    def __call__(self, shard: Shard, attempt: Attempt) -> tuple[dict[str, bytes], dict[str, Any]]:
        self.computed.append(shard.index)
        dead = shard.index % 2
        ids = [f"{shard.name}-{row}" for row in range(3)]
        files = {"predictions.parquet": parquet({"id": ids[: 3 - dead], "label": [self.says] * (3 - dead)})}
        if dead:
            files["dead.parquet"] = parquet({"id": ids[-1:], "reason": ["odd"]})
        counts = {"rows": 3, "predicted": 3 - dead, "dead": dead, "abstained": 0, "tokens": 9, "truncated": 0}
        return files, counts | {
            "uri": shard.uri,
            "reasons": {"odd": dead},
            "labels": {self.says: 3 - dead},
            "depths": {},
        }


def parquet(columns: dict[str, list[str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def shards_of(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two shards a file."""
    return [
        {"index": n, "uri": files[n // 2]["uri"], "kind": "jsonl", "start": 3 * n, "stop": 3 * n + 3, "by_bytes": False}
        for n in range(2 * len(files))
    ]


def run_night(
    out: Store,
    step: Step,
    *,
    date: str = "2026-01-31",
    facts: dict[str, Any] = FACTS,
    files: list[dict[str, Any]] | None = None,
    restart: bool = False,
    ttl: float = 30,
) -> dict[str, Any]:
    """What `run_classify` does, the pool of actors being a loop."""
    files = files_of(2) if files is None else files
    with Lease(out, ttl=ttl) as lease:
        night = Night(out, date, lease)
        detail = {"shards": shards_of(files), "bad": {}, "documents": 6 * len(files), "skipped": []}
        run, plan = night.begin(facts, files, lambda: detail, restart=restart)
        manifest = run.finished(plan)
        if manifest is None:
            manifest = compute(run, plan.detail["shards"], step, plan, date, lease)
        night.publish(run, manifest)
        return manifest


def compute(run: Run, shards: list[dict[str, Any]], step: Step, plan: Any, date: str, lease: Lease) -> dict[str, Any]:
    ledger = Ledger(run.store)
    done = ledger.committed()
    for fields in shards:
        shard = Shard(**fields)
        if shard.name not in done:
            done[shard.name] = commit_shard(step, shard, ledger)
            lease.check()
    return run.finish(plan, [done[name] for name in sorted(done)], date, model_version="1")


@contextmanager
def crash_at(number: int, after: bool) -> Iterator[list[str]]:
    """The process ends at the store's mutation of this number, before or after it is made; gives what was made."""
    made: list[str] = []
    patch = pytest.MonkeyPatch()

    def wrapped(name: str) -> Callable[..., Any]:
        real = getattr(Store, name)

        def mutate(store: Store, *args: Any) -> Any:
            made.append(f"{name} {args[-1] if name in ('copy', 'move') else args[0]}")
            if len(made) > number:
                raise Crash  # a dead process does not go on, whatever its `finally` says
            if len(made) == number and not after:
                raise Crash
            answer = real(store, *args)
            if len(made) == number:
                raise Crash
            return answer

        return mutate

    patch.setattr(Lease, "_renew", lambda _: None)  # beats are no steps of the night
    patch.setattr(Lease, "__exit__", lambda *_: None)
    try:
        for name in MUTATIONS:
            patch.setattr(Store, name, wrapped(name))
        yield made
    finally:
        patch.undo()


def take_over(out: Store) -> None:
    """End the lease of a run that crashed in this very process, which its pid cannot tell."""
    for key in out.list("_lease"):
        out.delete(key)


def check_whole(out: Store, step_says: str = "x", files: int = 2, date: str = "2026-01-31") -> None:
    """Every row is once in predictions or dead letters, by the contract and in the hive folders, and nothing else."""
    manifest = out.read_json(out.read_json("latest")["manifest"])
    counts = manifest["counts"]
    assert counts["rows"] == counts["predicted"] + counts["dead"] == 6 * files
    rows = read_predictions(out.uri)
    ids = [row["id"] for row in rows]
    assert {row["label"] for row in rows} == {step_says}
    assert len(set(ids)) == len(ids) == counts["predicted"]
    letters = rows_in(out, f"dead_letters/date={date}")
    assert len(letters) == counts["dead"]
    assert sorted(ids + [row["id"] for row in letters]) == [
        f"{n:06d}-{row}" for n in range(2 * files) for row in range(3)
    ]
    assert [row["id"] for row in rows_in(out, f"predictions/date={date}")] == ids
    work = [key for key in out.list("_runs") if "/parts/" in key or "/attempts/" in key]
    assert work == []


def rows_in(out: Store, folder: str) -> list[dict[str, Any]]:
    found = []
    for key in out.list(folder):
        data = out.read(key)
        assert data is not None
        found += pq.read_table(pa.BufferReader(data)).to_pylist()
    return found


def steps_of_a_night() -> list[str]:
    """The mutations of an undisturbed night, in order."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, crash_at(10**6, after=True) as made:
        run_night(Store(folder), Step())
    return made


STEPS = steps_of_a_night()


def test_a_night_is_committed_in_order() -> None:
    """Data before outcomes, these before the manifest, it before the parts, `latest` after them, cleanup at the end."""

    def at(text: str) -> int:
        return next(n for n, step in enumerate(STEPS) if text in step)

    order = [
        "create _lease",
        "write plan.json",
        "write parts/000003.dead.parquet",
        "write parts/000003.json",
        "write manifest.json",
        "move predictions/date=2026-01-31/part-001-000000.parquet",
        "write latest",
        "write published.json",
        "delete parts",
    ]
    assert [at(text) for text in order] == sorted(at(text) for text in order)
    assert at("write latest") > max(n for n, step in enumerate(STEPS) if step.startswith("move"))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, len(STEPS) + 1), ids=STEPS)
def test_a_crash_at_any_step_loses_nothing(number: int, after: bool, tmp_path: Path) -> None:
    """A rerun ends the night whole; it computes again at most the shard that was under way."""
    out, step = Store(str(tmp_path)), Step()
    with crash_at(number, after), pytest.raises(Crash):
        run_night(out, step)
    seen = out.read_json("latest")
    if seen is not None:
        assert read_predictions(out.uri), "what `latest` names is whole"
    take_over(out)
    run_night(out, step)
    check_whole(out)
    assert len(step.computed) <= 4 + 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, len(STEPS) + 6), st.booleans(), st.booleans()), max_size=6))
def test_many_crashes_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[tuple[int, bool, bool]]
) -> None:
    """One after another, at any steps, also where another model takes the night over on the way."""
    out = Store(str(tmp_path_factory.mktemp("out")))
    model = "1"
    for number, after, changed in crashes:
        model = str(int(model) + changed)
        with crash_at(number, after), suppress(Crash):
            run_night(out, Step(model), facts={**FACTS, "model": model}, restart=True)
        take_over(out)
        if out.read_json("latest") is not None:
            assert len({row["label"] for row in read_predictions(out.uri)}) == 1
    run_night(out, Step(model), facts={**FACTS, "model": model}, restart=True)
    check_whole(out, model)


TURNS = ("write manifest", "predictions/date=2026-01-31/part-001-000002", "write latest", "published", "delete parts")


@pytest.mark.s3
@pytest.mark.parametrize("number", [n for n, step in enumerate(STEPS, 1) if any(turn in step for turn in TURNS)])
def test_a_crash_loses_nothing_on_s3(number: int, s3_server: str, tmp_path: Path) -> None:
    """The steps that touch the manifest, the publication and the cleanup, on the real server."""
    out, step = Store(f"{s3_server}/night-{tmp_path.parent.name}-{number}"), Step()
    out.delete("")
    with crash_at(number, after=True), pytest.raises(Crash):
        run_night(out, step)
    take_over(out)
    run_night(out, step)
    check_whole(out)


def test_a_reader_sees_all_of_a_night_or_none(store_uri: str) -> None:
    """Polled while nights and their reruns are published: whole answers of one run, or a refusal."""
    out = Store(store_uri)
    stop, seen = threading.Event(), []

    def poll() -> None:
        while not stop.is_set():
            try:
                rows = read_predictions(store_uri)
            except UserError:  # no night, or its parts went away while they were read
                continue
            seen.append((len(rows), {row["label"] for row in rows}))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for turn in range(4):
            run_night(out, Step(str(turn)), facts={**FACTS, "model": str(turn)}, restart=True)
    finally:
        stop.set()
        reader.join()
    assert seen
    assert {count for count, _ in seen} == {10}
    assert max(len(labels) for _, labels in seen) == 1


def test_files_that_appear_wait_for_the_next_night(tmp_path: Path) -> None:
    """A resumed run keeps to the files of its plan; another date takes all."""
    out, step = Store(str(tmp_path)), Step()
    with crash_at(8, after=True), pytest.raises(Crash):
        run_night(out, step)
    take_over(out)
    run_night(out, step, files=files_of(3))
    check_whole(out, files=2)
    run_night(out, step, files=files_of(3), date="2026-02-01")
    check_whole(out, files=3, date="2026-02-01")


CHANGES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "model": ({**FACTS, "model": "2"}, files_of(2), 'model is "2", was "1"'),
    "format": ({**FACTS, "format": 2}, files_of(2), "format is 2, was 1"),
    "file changed": (FACTS, files_of(2, "w"), 'files.0.version is "w", was "v"'),
    "file gone": (FACTS, files_of(1), 'files.1.version is "gone", was "v"'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_plan_is_refused_until_it_is_started_over(change: str, tmp_path: Path) -> None:
    """With what differs; `restart` makes a run of its own, and the old one goes when that is published."""
    facts, files, said = CHANGES[change]
    out = Store(str(tmp_path))
    run_night(out, Step("old"))
    with pytest.raises(UserError, match=r"--restart") as refused:
        run_night(out, Step("new"), facts=facts, files=files)
    assert said in str(refused.value)
    check_whole(out, "old")
    run_night(out, Step("new"), facts=facts, files=files, restart=True)
    check_whole(out, "new", files=len(files))
    assert [key for key in out.list("_runs") if "-001/" in key] == []


def test_a_finished_night_is_not_computed_again(tmp_path: Path) -> None:
    """Neither with nor without `restart` while nothing has changed."""
    out, step = Store(str(tmp_path)), Step()
    first = run_night(out, step)
    assert run_night(out, step, restart=True) == run_night(out, step) == first
    assert step.computed == [0, 1, 2, 3]


def test_latest_does_not_go_back(tmp_path: Path) -> None:
    """A night that is made up for later lies in its folder; readers stay with the newest date."""
    out = Store(str(tmp_path))
    run_night(out, Step("new"), date="2026-02-02")
    run_night(out, Step("old"), date="2026-02-01")
    assert out.read_json("latest")["date"] == "2026-02-02"
    assert {row["label"] for row in rows_in(out, "predictions/date=2026-02-01")} == {"old"}
    check_whole(out, "new", date="2026-02-02")


def test_nights_are_one_table(tmp_path: Path) -> None:
    """The hive folders read as one table by date, in pyarrow and in DuckDB; nothing but Parquet lies in them."""
    import duckdb
    import pyarrow.dataset as ds

    out = Store(str(tmp_path))
    for day in (1, 2):
        run_night(out, Step(f"day {day}"), date=f"2026-02-0{day}")
    table = ds.dataset(f"{out.uri}/predictions", partitioning="hive").to_table().to_pylist()
    assert Counter((row["date"], row["label"]) for row in table) == {
        ("2026-02-01", "day 1"): 10,
        ("2026-02-02", "day 2"): 10,
    }
    query = f"select date::varchar, label, count(*) from read_parquet('{out.uri}/predictions/*/*.parquet', "
    query += "hive_partitioning = true) group by all order by all"
    assert duckdb.sql(query).fetchall() == [("2026-02-01", "day 1", 10), ("2026-02-02", "day 2", 10)]
    letters = ds.dataset(f"{out.uri}/dead_letters", partitioning="hive").to_table()
    assert Counter(letters["date"].to_pylist()) == {"2026-02-01": 2, "2026-02-02": 2}


def test_an_overtaken_run_publishes_nothing(tmp_path: Path) -> None:
    """Its lease was taken while it slept in the middle of the publication: the next step is not taken."""
    out = Store(str(tmp_path))
    real = Store.move

    def overtaken(store: Store, key: str, to: str) -> None:
        real(store, key, to)
        [number] = store.list("_lease")
        store.write(f"{number[:-1]}{int(number[-1]) + 1}", b'{"token": "another", "holder": "another run"}')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "move", overtaken)
        with pytest.raises(HeldError, match="another run"):
            run_night(out, Step())
    assert out.read_json("latest") is None
    assert len(out.list("predictions")) == 1


STOPPED = """
import sys
from tests import test_night as night
from spin.errors import HeldError

class Waiting(night.Step):
    def __call__(self, shard, attempt):
        if shard.index == 1:
            print("waiting", flush=True)
            sys.stdin.readline()
        return super().__call__(shard, attempt)

try:
    night.run_night(night.Store(sys.argv[1]), Waiting(), ttl=2)
except HeldError as error:
    print(error, flush=True)
    sys.exit(error.status)
"""


def test_a_stopped_run_is_overtaken_and_stays_out(store_uri: str) -> None:
    """Two runs on one output: the second is refused by name while the first lives, takes over once that has stopped
    for longer than its lease, and the first leaves with status 3 when it wakes, having published nothing."""
    out = Store(store_uri)
    first = subprocess.Popen(
        [sys.executable, "-c", STOPPED, store_uri], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "waiting\n"
        with pytest.raises(HeldError, match=f"process {first.pid}"):
            run_night(out, Step(), ttl=2)
        first.send_signal(signal.SIGSTOP)
        run_night(out, Step(), ttl=2)
        check_whole(out)
        before = read_predictions(store_uri)
        first.send_signal(signal.SIGCONT)
        said, _ = first.communicate("on\n", timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 3
    assert "is held by" in said
    assert read_predictions(store_uri) == before
    assert len(out.list("predictions")) == 4


def test_a_file_that_cannot_be_read_is_left_out_whole(tmp_path: Path) -> None:
    """Also the rows of it that were predicted before it was found out; the counts are those of the others."""

    class Bad(Step):
        def __call__(self, shard: Shard, attempt: Attempt) -> tuple[dict[str, bytes], dict[str, Any]]:
            files, outcome = super().__call__(shard, attempt)
            if shard.index != 3:
                return files, outcome
            return {}, {**outcome, "rows": 0, "predicted": 0, "dead": 0, "bad": "f1 is corrupt"}

    out = Store(str(tmp_path))
    manifest = run_night(out, Bad())
    assert manifest["quarantined"] == [{"uri": "f1", "reason": "f1 is corrupt"}]
    assert [file["uri"] for file in manifest["inputs"]] == ["f0"]
    assert {name: manifest["counts"][name] for name in ("rows", "predicted", "dead")} == {
        "rows": 6,
        "predicted": 5,
        "dead": 1,
    }
    assert len(read_predictions(out.uri)) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dead": 0}, "3 were planned, 3 read, 2 predicted or dead"),
        ({"rows": 4, "predicted": 3}, "3 were planned, 4 read, 4 predicted or dead"),
    ],
)
def test_counts_that_do_not_add_up_are_no_night(change: dict[str, int], said: str) -> None:
    """A row that is nowhere, or twice, or was not planned ends the run with an error that names the shard."""
    shards = shards_of(files_of(1))
    outcomes = [Step()(Shard(**shard), None)[1] for shard in shards]  # type: ignore[arg-type]
    reconcile(shards, outcomes)
    with pytest.raises(SpinError, match=said):
        reconcile(shards, [outcomes[0], {**outcomes[1], **change}])
    with pytest.raises(SpinError, match="2 shards were planned, 1 are committed"):
        reconcile(shards, outcomes[:1])
