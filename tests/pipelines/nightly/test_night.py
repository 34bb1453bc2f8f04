"""The commit protocol of a night, without Ray: crashes at every step, readers that poll, changed plans, two runs."""

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

from pipelines.data.input_files import InputFile
from pipelines.data.readers import Shard
from pipelines.nightly.classify_step import predictions_schema
from pipelines.nightly.publish import BatchRun, NightlyRun, read_predictions, reconcile
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

FACTS = {"model": "1", "format": 1}
MUTATIONS = ("write", "create", "copy", "move", "delete")


class Crash(BaseException):
    """The process is gone; what its store holds stays."""


def input_files(count: int, version: str = "v") -> list[InputFile]:
    return [InputFile(f"f{n}", "jsonl", n, version) for n in range(count)]


class Step:
    """Predicts three rows a shard, the last of every second shard dead, the first of the others not as a shadow does.

    Counts how often each shard was computed.
    """

    def __init__(self, says: str = "x") -> None:
        self.says, self.computed = says, []

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        self.computed.append(shard.index)
        dead = shard.index % 2
        ids = [f"{shard.name}-{row}" for row in range(3)]
        files = {"predictions.parquet": parquet({"id": ids[: 3 - dead], "label": [self.says] * (3 - dead)})}
        if dead:
            files["dead.parquet"] = parquet({"id": ids[-1:], "reason": ["odd"]})
        else:
            files["disagreements.parquet"] = parquet({"id": ids[:1], "label": [self.says]})
        counts = ClassifyCounts(
            rows=3,
            uri=shard.uri,
            predicted=3 - dead,
            dead=dead,
            reasons={"odd": dead},
            labels={self.says: 3 - dead},
            abstained=0,
            unlabelled=0,
            depths={},
            tokens=9,
            truncated=0,
        )
        return StepResult(files, counts)


def parquet(columns: dict[str, list[str]] | pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def shards_of(files: list[InputFile]) -> list[Shard]:
    """Two shards per file."""
    return [Shard(n, files[n // 2].uri, "jsonl", 3 * n, 3 * n + 3) for n in range(2 * len(files))]


def run_night(
    out: Store,
    step: Step,
    *,
    date: str = "2026-01-31",
    facts: dict[str, Any] = FACTS,
    files: list[InputFile] | None = None,
    restart: bool = False,
    ttl: float = 30,
) -> RunManifest:
    """What `run_classify` does, in this process."""
    files = input_files(2) if files is None else files
    with Lease(out, ttl=ttl) as lease:
        night = NightlyRun(out, date, lease)
        derived = RunPlan(tuple(shards_of(files)), {}, 6 * len(files))
        run, plan = night.begin(facts, files, lambda _: derived, restart=restart)
        manifest = run.finished(plan)
        if manifest is None:
            manifest = compute(run, step, plan, date, lease)
        night.publish(run, manifest, {"report.json": run.name.encode()})
        return manifest


def compute(run: BatchRun, step: Step, plan: StagePlan[RunPlan], date: str, lease: Lease) -> RunManifest:
    once = RaySettings(retry_seconds=0)  # type: ignore[call-arg]
    outcomes = map_shards(
        lambda: step,
        (),
        plan.derived.shards,
        run.store,
        once,
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
    odd = [(row["id"], row["label"]) for row in rows_in(out, f"disagreements/date={date}")]
    assert odd == [(f"{n:06d}-0", step_says) for n in range(0, 2 * files, 2)]
    work = [key for key in out.list("_runs") if "/parts/" in key or "/attempts/" in key]
    assert work == []
    latest = out.read_json("latest")
    assert {out.read(key) for key in ("report.json", f"_runs/{latest['run']}/report.json")} == {latest["run"].encode()}


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
PUBLISHED = STEPS.index("write published.json") + 1


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


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own of one megabyte, which only root can mount."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        message = f"no disk can be mounted here: {done.stderr.strip() if done else 'there is no mount'}"
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Write until not one byte fits."""
    with (folder / ".ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1), ids=STEPS)
def test_a_full_disk_at_any_step(number: int, tmp_path: Path) -> None:
    """A real one, full from a step of the night on: status 5 in words, all of the night to be seen or nothing and no
    temporary files; with more space a rerun ends it."""
    folder, step, steps = tmp_path / "disk", Step(), 0
    folder.mkdir()

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == number:
            fill(folder)

    with small_disk(folder):
        out = Store(str(folder))
        with at_every_step(count):
            if number > PUBLISHED:  # what is left deletes and takes no space
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
        take_over(out)
        run_night(out, step)
        check_whole(out)
        assert len(step.computed) <= 4 + 1


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


@contextmanager
def at_every_step(look: Callable[[], None]) -> Iterator[None]:
    """`look` is called before the store's every mutation and after the last one."""

    def looked(real: Callable[..., Any]) -> Callable[..., Any]:
        def mutate(store: Store, *args: Any) -> Any:
            look()
            return real(store, *args)

        return mutate

    with pytest.MonkeyPatch.context() as patch:
        for name in MUTATIONS:
            patch.setattr(Store, name, looked(getattr(Store, name)))
        yield
    look()


def test_a_reader_at_any_step_sees_all_of_a_night_or_none(tmp_path: Path) -> None:
    """While a night and then another run of it are published: none, the first, none, the second, never a part less."""
    out, seen = Store(str(tmp_path)), []

    def look() -> None:
        if out.read_json("latest") is None:
            seen.append("none")
            return
        rows = read_predictions(out.uri)
        assert len(rows) == 10
        seen.extend({row["label"] for row in rows})

    with at_every_step(look):
        run_night(out, Step("first"))
        run_night(out, Step("second"), facts={**FACTS, "model": "2"}, restart=True)
    assert [state for state, _ in groupby(seen)] == ["none", "first", "none", "second"]


def test_files_that_appear_wait_for_the_next_night(tmp_path: Path) -> None:
    """A resumed run keeps to the files of its plan; another date takes all."""
    out, step = Store(str(tmp_path)), Step()
    with crash_at(8, after=True), pytest.raises(Crash):
        run_night(out, step)
    take_over(out)
    run_night(out, step, files=input_files(3))
    check_whole(out, files=2)
    run_night(out, step, files=input_files(3), date="2026-02-01")
    check_whole(out, files=3, date="2026-02-01")


CHANGES: dict[str, tuple[dict[str, Any], list[InputFile], str]] = {
    "model": ({**FACTS, "model": "2"}, input_files(2), 'model is "2", was "1"'),
    "format": ({**FACTS, "format": 2}, input_files(2), "format is 2, was 1"),
    "file changed": (FACTS, input_files(2, "w"), 'files.0.version is "w", was "v"'),
    "file gone": (FACTS, input_files(1), 'files.1.version is "gone", was "v"'),
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


class Labelling(Step):
    """Predictions with the columns of a real night, some without a label."""

    def __init__(self, multilabel: bool) -> None:
        super().__init__()
        self.multilabel = multilabel

    def label(self, shard: Shard, row: int) -> Any:
        if row == 1:
            return [] if self.multilabel and shard.index else None
        return ["good", "late"] if self.multilabel else "good"

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        result = super().__call__(shard, attempt)
        rows = [
            {
                "id": f"{shard.name}-{row}",
                "label": self.label(shard, row),
                "score": 0.75,
                "scores": [0.75, 0.25],
                "depth": 3,
                "model_version": "7",
            }
            for row in range(result.counts.predicted)
        ]
        table = pa.Table.from_pylist(rows, schema=predictions_schema(self.multilabel))
        return StepResult({**result.files, "predictions.parquet": parquet(table)}, result.counts)


@pytest.mark.parametrize("multilabel", [False, True], ids=["label", "labels"])
def test_nights_are_one_table(multilabel: bool, tmp_path: Path) -> None:
    """The hive folders read as one table by date, in pyarrow and in DuckDB; nothing but Parquet lies in them."""
    import duckdb
    import pyarrow.dataset as ds

    out, dates, step = Store(str(tmp_path)), ["2026-02-01", "2026-02-02"], Labelling(multilabel)
    for day in dates:
        run_night(out, step, date=day)
    columns = ["id", "label", "score", "scores", "depth", "model_version", "date"]
    expected = [
        (f"{n:06d}-{row}", step.label(Shard(n, "", "", 0, 0), row), 0.75, [0.75, 0.25], 3, "7", day)
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


def test_an_overtaken_run_publishes_nothing(tmp_path: Path) -> None:
    """Its lease was taken while it slept in the middle of the publication: the next step is not taken."""
    out = Store(str(tmp_path))
    real = Store.move

    def overtaken(store: Store, key: str, to: str) -> None:
        real(store, key, to)
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
        patch.setattr(Store, "move", overtaken)
        with pytest.raises(HeldError, match="another run"):
            run_night(out, Step())
    assert out.read_json("latest") is None
    assert len(out.list("predictions")) == 1


STOPPED = """
import sys
from tests.pipelines.nightly import test_night as night
from pipelines.service_errors import HeldError

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
        def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
            result = super().__call__(shard, attempt)
            if shard.index != 3:
                return result
            return StepResult({}, replace(result.counts, rows=0, predicted=0, dead=0, bad="f1 is corrupt"))

    out = Store(str(tmp_path))
    manifest = run_night(out, Bad())
    assert manifest.quarantined == (QuarantinedFile("f1", "f1 is corrupt"),)
    assert [file.uri for file in manifest.inputs] == ["f0"]
    assert {name: getattr(manifest.counts, name) for name in ("rows", "predicted", "dead")} == {
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
def test_counts_that_do_not_add_up_are_told(change: dict[str, int], said: str) -> None:
    """A row that is nowhere, or twice, or was not planned ends the run with an error that names the shard."""
    shards = shards_of(input_files(1))
    counts = [Step()(shard, None).counts for shard in shards]  # type: ignore[arg-type]
    outcomes = [ShardOutcome(count, {}, tries=1, seconds=1.0, ended=0.0) for count in counts]
    reconcile(shards, outcomes)
    with pytest.raises(SpinError, match=said):
        reconcile(shards, [outcomes[0], replace(outcomes[1], counts=replace(counts[1], **change))])
    with pytest.raises(SpinError, match="2 shards were planned, 1 are committed"):
        reconcile(shards, outcomes[:1])


def test_counts_that_do_not_add_up_are_no_night(tmp_path: Path) -> None:
    """A step that loses a row: the run fails before its manifest, and nothing of it is seen."""

    class Losing(Step):
        def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
            result = super().__call__(shard, attempt)
            counts = replace(result.counts, predicted=result.counts.predicted - (shard.index == 2))
            return StepResult(result.files, counts)

    out = Store(str(tmp_path))
    with pytest.raises(SpinError, match="3 were planned, 3 read, 2 predicted or dead; nothing is published"):
        run_night(out, Losing())
    assert [key for key in out.list() if not key.startswith(("_lease/", "_runs/"))] == []


def test_deaths_of_the_machine_are_no_fault_of_a_document(tmp_path: Path) -> None:
    """Processes die in a shard of one document as often as is laid to the machine: it is done, not dead."""
    shard_log = ShardLog(Store(str(tmp_path)))
    for _ in range(MAX_CRASHES):
        with pytest.raises(Crash), shard_log.attempt("000000"):
            raise Crash
    with shard_log.attempt("000000") as attempt:
        assert attempt.crashes == MAX_CRASHES
        assert isolate_failing_rows([0], lambda rows: rows, attempt) == IsolatedRows([([0], [0])], {})


def test_workers_that_say_nothing_are_told(tmp_path: Path) -> None:
    """What ends is taken; then silence, for longer than is allowed: an error that names what was begun."""
    shard_log, never = ShardLog(Store(str(tmp_path))), threading.Event()
    shard_log.commit("000000", StepResult({}, ShardCounts(rows=1)), tries=1, seconds=1.0, ended=0.0)
    for name in ("000000", "000001"):
        with shard_log.attempt(name):
            pass

    def answers() -> Iterator[WorkerAnswer]:
        yield WorkerAnswer("000000")
        never.wait()

    heard = _within_stall_limit(answers(), 0.5, "trial", shard_log.store)
    assert next(heard) == WorkerAnswer("000000")
    try:
        with pytest.raises(StalledError, match=r"trial: no shard .* 0\.5 s .*begun and not ended: 000001 in"):
            next(heard)
    finally:
        never.set()
