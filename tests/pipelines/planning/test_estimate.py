"""`spin plan`: its estimates of shards and bytes compared with real nights, its arithmetic and its output."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from fsspec.implementations.local import LocalFileSystem
from safetensors.numpy import save_file

import jobs.commands.planning_commands
from pipelines.data import intake
from pipelines.data.files.formats import MAX_BYTES
from pipelines.data.files.input_files import list_files
from pipelines.data.files.shards import Piece as SpoolPiece
from pipelines.data.intake import IntakeReport
from pipelines.data.spool import SPOOL, ReadyPiece
from pipelines.nightly import classify
from pipelines.nightly.steps.classify_job import ClassifyJob
from pipelines.nightly.steps.classify_step import ClassifyStep
from pipelines.nightly.steps.counts import ClassifyCounts, IntakeCounts
from pipelines.planning import estimate, sample
from pipelines.planning.estimate import Deadline, Intake, NightEstimate, estimate_night
from pipelines.planning.sample import MeasuredShard, NightSample, Rates, SampleFigures
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.store_requests import RequestCounter, RequestTotals
from spin.errors import UserError
from spin.monitor.profile import Profile
from spin.settings import Settings, parse_settings
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.command_line import CallSpin
from tests.support.night_project import run_shards_here
from tests.support.registry_fixture import build_quick_classifier

pytestmark = pytest.mark.slow

DATE = "2026-03-01"
Row = dict[str, Any]
JSON_KEYS = {
    **dict.fromkeys(("model", "model_version", "scales", "source", "documents", "shards", "one_machine")),
    "sample": [
        "dead_share",
        "documents",
        "documents_per_s",
        "load_seconds",
        "pieces",
        "seconds",
        "threads",
        "tokens_per_document",
        "whole",
        "windows_per_document",
    ],
    "intake": ["documents_per_s", "partitions"],
    "hours": ["one_worker", "with_workers", "workers"],
    "deadline": ["hours", "workers"],
    "store": ["read", "written"],
}
"""the keys of `spin plan --json`, which other programs read"""


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with a champion and its drift reference, as `spin train` registers them."""
    folder = tmp_path_factory.mktemp("registry")
    rows = tiny.make_documents(120)
    texts = [row["text"] for row in rows]
    classifier = build_quick_classifier(backbone_folder, sites=["ffn"], poolings=["mean"])
    spin = classifier.fit(texts, [row["label"] for row in rows]).trained_
    spin.save(folder / "1")
    features = spin.features(texts)
    values = features.values
    profile = Profile.from_outputs(spin.label_space, spin.fitted, spin.fitted.logits(values), values, features)
    tensors = {
        f"{choice}.{name}": tensor for choice in ("accuracy", "accuracy.early") for name, tensor in profile.sums.items()
    }
    save_file(tensors, folder / "1/reference.safetensors")
    (folder / "champion").write_text("1")
    return FolderRegistry(folder)


@pytest.fixture
def nights_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run nights in this process, without Ray and without renewals of the lease."""
    run_shards_here(monkeypatch)
    monkeypatch.setattr(Lease, "_renew", lambda _: None)


@pytest.fixture
def settings(backbone_folder: Path) -> Settings:
    return make_settings(backbone_folder)


def make_settings(backbone: Path, ids: str = "checked", documents: int = 40, **ray: Any) -> Settings:
    tree = {
        "backbone": {"model": str(backbone), "dtype": "float32", "device": "cpu"},
        "data": {"train": "nowhere", "ids": ids},
        "store": "nowhere",
        "ray": {"workers": 1, "shard_documents": documents, **ray},
        "classify": {"max_dead_fraction": 1},
    }
    return parse_settings(tree)


def write_rows(uri: str, kind: str, rows: Sequence[Row], files: int = 1, group: int = 40) -> str:
    """Write rows to a number of files of one format in the folder `in` of a store; returns the folder."""
    for file in range(files):
        part = rows[len(rows) * file // files : len(rows) * (file + 1) // files]
        data = "".join(json.dumps(row) + "\n" for row in part).encode()
        if kind == "csv":
            data = ("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in part)).encode()
        elif kind == "parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(list(part)), sink, row_group_size=group)
            data = sink.getvalue().to_pybytes()
        Store(uri).write(f"in/{file}.{kind}", data)
    return f"{uri}/in"


def add_dead_letters(rows: list[Row]) -> list[Row]:
    """Give every tenth row a blank text, so that it becomes a dead letter."""
    return [{**row, "text": " "} if number % 10 == 0 else row for number, row in enumerate(rows)]


@pytest.fixture
def night_bytes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts of the bytes that nights write for their shards, and that they read from JSONL, profiles and ids."""
    counts: Counter[str] = Counter()
    create, read, add = Store.create, LocalFileSystem.cat_file, RequestCounter.add

    def counted_create(store: Store, key: str, data: bytes) -> bool:
        folders = ("parts/", "attempts/", "spool/", "predictions/", "dead_letters/", "_runs/")
        records = ("plan.json", "kept.json", "report.json", "night.json", "run.json")
        if key.startswith(folders) and not key.endswith(records) and not store.uri.endswith("/repeats"):
            counts["written"] += len(data)
        return create(store, key, data)

    def counted_read(fs: Any, path: str, *args: Any, **options: Any) -> bytes:
        data: bytes = read(fs, path, *args, **options)
        if path.endswith((".ids", ".profile.safetensors")):
            counts["read"] += len(data)
        return data

    def counted_add(counter: RequestCounter, totals: RequestTotals) -> None:
        counts["read"] += totals.bytes_read
        add(counter, totals)

    monkeypatch.setattr(Store, "create", counted_create)
    monkeypatch.setattr(LocalFileSystem, "cat_file", counted_read)
    monkeypatch.setattr(RequestCounter, "add", counted_add)
    return counts


@pytest.mark.usefixtures("nights_in_this_process")
@pytest.mark.parametrize(
    ("kind", "ids", "count", "files", "dead"),
    [
        ("jsonl", "checked", 120, 1, False),
        ("jsonl", "checked", 120, 1, True),
        ("jsonl", "trusted", 120, 1, False),
        ("jsonl", "trusted", 120, 1, True),
        ("jsonl", "trusted", 40, 1, False),
        ("jsonl", "checked", 121, 3, False),
        ("parquet", "checked", 120, 1, False),
        ("csv", "trusted", 120, 2, True),
    ],
)
def test_estimated_shards_and_bytes_are_those_of_a_night(
    kind: str,
    ids: str,
    count: int,
    files: int,
    dead: bool,
    registry_fixture: FolderRegistry,
    backbone_folder: Path,
    tmp_path: Path,
    night_bytes: Counter[str],
) -> None:
    """What is read is within 1 % if the night has the sampled documents.

    What is written is within 3 %: the records of a night name its tables.
    """
    rows = add_dead_letters(tiny.make_documents(count)) if dead else tiny.make_documents(count)
    source, settings = write_rows(str(tmp_path), kind, rows, files), make_settings(backbone_folder, ids)
    estimated = estimate_night(settings, registry_fixture, count, source=source)  # type: ignore[arg-type]
    night_bytes.clear()
    output = str(tmp_path / "out")
    report = classify.run_classify(settings, registry_fixture, source, output, night=DATE)  # type: ignore[arg-type]
    assert report.drift
    assert report.shards == estimated.shards
    assert estimated.store.read == pytest.approx(night_bytes["read"], rel=0.01)
    assert estimated.store.written == pytest.approx(night_bytes["written"], rel=0.03)


@pytest.mark.usefixtures("nights_in_this_process")
def test_bytes_of_large_shards_are_estimated_from_small_pieces(
    registry_fixture: FolderRegistry,
    backbone_folder: Path,
    tmp_path: Path,
    night_bytes: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fixed part of a file's size counts once per shard, not once per piece of the sample."""
    source = write_rows(str(tmp_path), "parquet", add_dead_letters(tiny.make_documents(3000)), group=1000)
    settings = make_settings(backbone_folder, documents=1000)
    monkeypatch.setattr(sample, "_PIECES", 1_000_000_000)
    estimated = estimate_night(settings, registry_fixture, 3000, source=source, seconds=2)  # type: ignore[arg-type]
    assert estimated.shards == 12
    assert estimated.sample.documents / estimated.sample.pieces < 100
    night_bytes.clear()
    classify.run_classify(settings, registry_fixture, source, str(tmp_path / "out"), night=DATE)  # type: ignore[arg-type]
    assert estimated.store.written == pytest.approx(night_bytes["written"], rel=0.1)


def test_the_sample_runs_with_the_threads_of_a_worker(
    registry_fixture: FolderRegistry, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It covers documents of all shards, and this process gets its own number of threads back."""
    threads, own_threads = [], torch.get_num_threads()

    class RecordingStep(ClassifyStep):
        def __call__(self, *args: Any) -> Any:
            threads.append(torch.get_num_threads())
            return super().__call__(*args)

    monkeypatch.setattr(sample, "ClassifyStep", RecordingStep)
    source = write_rows(str(tmp_path), "jsonl", add_dead_letters(tiny.make_documents(100)), files=2)
    settings = make_settings(backbone_folder, classify={"cpus_per_worker": 3})
    figures = estimate_night(settings, registry_fixture, 1000, source=source).sample  # type: ignore[arg-type]
    assert set(threads) == {3}
    assert torch.get_num_threads() == own_threads
    assert (figures.documents, figures.whole) == (100, True)
    assert figures.dead_share == 0.1
    assert figures.pieces + 2 == len(threads)  # two more warm up
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_sample_runs_on_the_cpu_if_workers_have_no_gpu(
    registry_fixture: FolderRegistry, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The devices of this machine do not matter."""
    opened: list[tuple[str, str]] = []

    class RecordingStep(ClassifyStep):
        def __init__(self, job: ClassifyJob, settings: Settings) -> None:
            super().__init__(job, settings)
            opened.append((settings.backbone.device, settings.backbone.engine))

    monkeypatch.setattr(sample, "ClassifyStep", RecordingStep)
    source = write_rows(str(tmp_path), "jsonl", tiny.make_documents(60))
    settings = make_settings(backbone_folder)
    update = {"device": "auto", "engine": "openvino"}
    settings = settings.model_copy(update={"backbone": settings.backbone.model_copy(update=update)})
    assert estimate_night(settings, registry_fixture, 1000, source=source).sample.documents == 60  # type: ignore[arg-type]
    assert opened == [("cpu", "openvino")]


@pytest.fixture
def constructed_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the sample: 100 documents per second in five pieces, 10,000 ids per second, 36 s to load."""
    counts = ClassifyCounts(
        rows=100,
        uri="a.jsonl",
        work="0",
        predicted=100,
        dead=0,
        reasons={},
        labels={},
        abstained=0,
        unlabelled=0,
        depths={},
        tokens=2500,
        truncated=0,
    )
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a"] * 100}), table)
    files = {"predictions.parquet": table.getvalue().to_pybytes(), "profile.safetensors": b"p" * 50, "json": b"{}"}
    pieces = [MeasuredShard(counts, seconds, 0, files) for seconds in (0.5, 1, 1, 1, 2)]
    part = ReadyPiece(SpoolPiece("part", SPOOL, 0, 100, documents=100, size=5000), 0, 5000)
    taken_in = IntakeCounts(rows=100, report=IntakeReport((), (part,), {}), repeated=0)
    reading = MeasuredShard(taken_in, 0.01, 5000, {"ids": b"i" * 2000, "json": b"{}"})
    figures = SampleFigures.of(pieces, whole=True, threads=1, load_seconds=36)
    monkeypatch.setattr(
        estimate, "take_sample", lambda *_, **__: NightSample(figures, pieces, [reading], drift=True, scales=None)
    )


@pytest.mark.usefixtures("constructed_sample")
def test_hours_and_workers_follow_from_the_sample(
    registry_fixture: FolderRegistry, backbone_folder: Path, tmp_path: Path
) -> None:
    """The figures can be calculated by hand: a shard is not divided, and the intake is a separate pass."""
    source = write_rows(str(tmp_path), "jsonl", tiny.make_documents(50))

    def estimate_documents(count: float, deadline: float = 8, **changes: Any) -> NightEstimate:
        settings = make_settings(backbone_folder, documents=10_000, **changes)
        return estimate_night(settings, registry_fixture, count, source=source, deadline=deadline)  # type: ignore[arg-type]

    checked = estimate_documents(3.6e6, workers=4)
    assert checked.shards == 360
    assert estimate_documents(6000).shards == 24
    assert checked.sample.documents_per_s == Rates(median=100, lowest=50, highest=200)
    assert (checked.sample.tokens_per_document, checked.sample.windows_per_document) == (25, 1)
    assert checked.intake == Intake(documents_per_s=pytest.approx(10_000), partitions=2)  # type: ignore[arg-type]
    assert checked.hours.one_worker == pytest.approx(0.01 + 10 + 0.1)
    assert (checked.hours.workers, checked.hours.with_workers) == (4, pytest.approx(0.01 + 10.1 / 4))
    assert checked.deadline == Deadline(hours=8, workers=2)
    assert checked.store.read == pytest.approx(3.6e6 * (2 * 50 + 20) + 360 * 50, rel=0.01)
    trusted = estimate_documents(3.6e6, workers=7, ids="trusted")
    assert trusted.intake.partitions == 0
    assert trusted.hours.with_workers == pytest.approx(0.01 + 10.1 * 52 / 360)
    assert estimate_documents(3.6e6, deadline=0.1, workers=1).deadline.workers == 120  # three shards each
    assert estimate_documents(3.6e6, deadline=0.03, workers=1).deadline.workers is None


@pytest.mark.usefixtures("constructed_sample")
def test_a_shard_of_long_documents_holds_as_many_as_its_bytes_allow() -> None:
    """`ray.shard_documents` is not reached by documents of 20 kB."""
    measured = estimate.take_sample(*[None] * 6)  # type: ignore[arg-type]
    (reading,) = measured.readings
    (part,) = reading.counts.report.pieces
    report = replace(reading.counts.report, pieces=(replace(part, bytes=20_000 * part.piece.documents),))
    long = replace(reading, counts=replace(reading.counts, report=report))
    assert replace(measured, readings=[long]).most_in_shard == MAX_BYTES // 20_000


@pytest.mark.usefixtures("constructed_sample")
@pytest.mark.parametrize(("size", "share"), [(100, 1 / 5), (10_000, 1)])
def test_large_shards_have_dead_letters_more_often_than_small_pieces(size: int, share: float) -> None:
    """If one piece in five has a dead letter, so does one shard in five of that size, and every much larger shard."""
    first, *others = estimate.take_sample(*[None] * 6).pieces  # type: ignore[arg-type]
    assert estimate._share_with_dead([first, *others], size) == 0
    with_dead_letter = replace(first, counts=replace(first.counts, predicted=99, dead=1))
    assert estimate._share_with_dead([with_dead_letter, *others], size) == pytest.approx(share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documents": 0}, "--documents 0: expected a number above 0"),
        ({"documents": -5.0}, "--documents -5: expected a number above 0"),
        ({"documents": float("nan")}, "--documents nan: expected a number above 0"),
        ({"documents": float("inf")}, "--documents inf: expected a number above 0"),
        ({"documents": 2.5}, "--documents 2.5: expected a whole number, such as 5e6"),
        ({"deadline": 0.0}, "--deadline 0: expected a number above 0"),
        ({"seconds": -1.0}, "--seconds -1: expected a number above 0"),
        ({"model": "models:/tiny/7"}, "models:/tiny/7 does not exist"),
        ({}, "no data at nowhere"),
        ({"source": "empty"}, r"empty holds no documents; name some to sample with --input"),
        ({"source": "broken"}, r"broken holds no documents that can be read: .*broken/0\.parquet cannot be read"),
        ({"source": "dead"}, "none of the documents that were sampled can be classified: empty_text, null_text"),
    ],
)
def test_invalid_options_and_inputs_are_refused(
    options: dict[str, Any],
    message: str,
    registry_fixture: FolderRegistry,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "dead"):
        Path(name).mkdir()
    Path("empty/0.csv").write_text("id,text\n")
    Path("broken/0.parquet").write_bytes(b"PAR1")
    Path("dead/0.jsonl").write_text('{"id": 1, "text": " "}\n{"id": 2, "text": null}\n')
    with pytest.raises(UserError, match=message):
        estimate_night(settings, registry_fixture, **{"documents": 10, **options})  # type: ignore[arg-type]


def test_an_estimate_without_a_champion_is_refused(settings: Settings, sqlite_uri: str) -> None:
    from pipelines.registry.versions import Registry

    mlflow = settings.mlflow.model_copy(update={"tracking_uri": sqlite_uri, "model": "none yet"})
    with pytest.raises(UserError, match="`spin run` trains and registers one"):
        estimate_night(settings, Registry(settings.model_copy(update={"mlflow": mlflow})), 10)


def test_spin_plan_prints_text_or_json(
    registry_fixture: FolderRegistry,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_spin: CallSpin,
) -> None:
    """The options reach the estimate; the text names shards, hours, deadline, bytes and what is left out."""
    monkeypatch.setattr(jobs.commands.planning_commands, "open_registry", lambda _: registry_fixture)
    source = write_rows(str(tmp_path), "jsonl", tiny.make_documents(90))
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    run = partial(call_spin, "plan", file)
    options = ("--documents", "5e6", "--set", f"data.train={source}", "--set", "ray.workers=2")
    status, out, _ = run(*options, "--json", "--deadline", "4.5", "--seconds", "1")
    printed = json.loads(out)
    assert (status, printed["documents"], printed["shards"]) == (0, 5_000_000, 125_000)
    assert printed["deadline"]["hours"] == 4.5
    assert {name: sorted(value) if isinstance(value, dict) else None for name, value in printed.items()} == JSON_KEYS
    status, out, _ = run(*options, "--input", source, "--model", "models:/tiny/1")
    assert (status, out.splitlines()[0].split()[:3]) == (0, ["sample", "90", "documents"])
    for text in (
        "5,000,000 documents in 125,000 shards of about 40",
        "with one worker",
        "with 2 workers",
        "to finish within",
        " read, ",
        "requests to the object store are not estimated",
    ):
        assert text in out
    status, _, error = run("--documents", "0", "--input", source)
    assert (status, error) == (2, "error: --documents 0: expected a number above 0\n")


def test_the_sample_of_the_intake_has_rows(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its speed would be 0. In one of the two orders the task without rows is drawn first, and another follows."""
    monkeypatch.setattr(intake, "_GROUP_FILES", 1)
    (tmp_path / "data").mkdir()
    for name, rows in (("a", ""), ("b", "1,a fine film\n")):
        (tmp_path / "data" / f"{name}.csv").write_text(f"id,text\n{rows}")
    tasks = intake.plan_intake(list_files(str(tmp_path / "data")), bad={})
    for order in (tasks, tasks[::-1]):
        readings = sample._readings(Store(f"{tmp_path}/{order[0].index}"), order, settings, 0)
        assert readings[-1].rows == 1
