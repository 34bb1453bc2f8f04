"""Nights on Ray and a real S3 server whose documents, workers and drivers fail: every row is published once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.nightly import classify_pass
from pipelines.nightly.classify import run_classify
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_history import PredictionRow, list_nights, read_predictions
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, INPUTS, NightTables, read_rows
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json
from pipelines.workers.map_shards import map_shards
from spin.classifier import TrainedClassifier
from spin.settings import BackboneSettings, Settings, parse_settings
from tests.support import chaos, tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import replace_map_shards
from tests.support.registry_fixture import build_quick_classifier
from tests.support.repository import ROOT
from tests.support.shard_logs import open_shard_log

pytestmark = [pytest.mark.s3, pytest.mark.ray]
DATE = "2026-03-01"
Row = dict[str, Any]


@dataclass
class Project:
    """Settings, a registry with two versions of a model, and the S3 prefix of a test."""

    tree: dict[str, Any]
    registry_fixture: FolderRegistry
    base: str

    def build_settings(self, **changes: Any) -> Settings:
        return parse_settings({**self.tree, **changes})

    def write(self, name: str, data: bytes) -> str:
        """Write an input file; returns the URI of the input folder."""
        Store(self.base).write(f"data/{name}", data)
        return f"{self.base}/data"

    def run_night(self, **changes: Any) -> NightReport:
        source, output = f"{self.base}/data", f"{self.base}/out"
        settings = self.build_settings(**changes)
        return run_classify(settings, self.registry_fixture, source, output, night=DATE)  # type: ignore[arg-type]

    @property
    def out(self) -> Store:
        return Store(f"{self.base}/out")


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with two versions whose classes differ."""
    folder = tmp_path_factory.mktemp("registry")
    backbone = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    for number, classes in (("1", ("good", "bad")), ("2", ("plain", "bad"))):
        rows = tiny.make_documents(240, classes)
        classifier = build_quick_classifier(backbone)
        classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / number)
    (folder / "champion").write_text("1")
    return FolderRegistry(folder)


@pytest.fixture
def project(registry_fixture: FolderRegistry, s3_server: str, backbone_folder: Path) -> Project:
    tree = {
        "backbone": {"model": str(backbone_folder), "dtype": "float32", "device": "cpu"},
        "data": {"train": "nowhere"},
        "store": "nowhere",
        "ray": {"workers": 2, "shard_documents": 40},
    }
    (registry_fixture.folder / "champion").write_text("1")
    return Project(tree, registry_fixture, f"{s3_server}/{uuid.uuid4().hex}")


def to_parquet(rows: list[Row]) -> bytes:
    """Return a Parquet file with 40 rows per row group."""
    sink = pa.BufferOutputStream()
    table = pa.table({"id": [row["id"] for row in rows], "text": [row["text"] for row in rows]})
    pq.write_table(table, sink, row_group_size=40)
    return sink.getvalue().to_pybytes()


def check_no_secrets(out: Store, *secrets: str) -> None:
    """Check that nothing that a run wrote, apart from its predictions, contains a secret."""
    keys = [key for key in out.list() if not key.startswith("predictions/")]
    assert len(keys) > 4
    for key in keys:
        data = out.read(key)
        assert data is not None
        assert not [secret for secret in secrets if secret.encode() in data], key


def read_dead_letters(out: Store) -> list[Row]:
    rows: list[Row] = read_rows(NightTables(out).open(DEAD_LETTERS), {"date": DATE}).to_pylist()
    return rows


def read_input_names(out: Store, date: str = DATE) -> dict[str, list[str]]:
    """The names of the input files of a night, sorted, by their status."""
    names: dict[str, list[str]] = {"taken": [], "quarantined": []}
    for row in read_rows(NightTables(out).open(INPUTS), {"date": date}).to_pylist():
        names[row["status"]].append(row["uri"].rpartition("/")[2])
    return {status: sorted(listed) for status, listed in names.items()}


def check_complete(project: Project, report: NightReport, rows: int) -> list[PredictionRow]:
    """Check that every row is published once, as a prediction or a dead letter, and that the counts are right.

    Returns the predictions.
    """
    predicted, letters = read_predictions(f"{project.base}/out"), read_dead_letters(project.out)
    counts = report.counts
    assert len(predicted) + len(letters) == counts.rows == rows
    assert (len(predicted), len(letters)) == (counts.predicted, counts.dead)
    assert len({row["id"] for row in predicted}) == len(predicted)
    assert dict(Counter(letter["reason"] for letter in letters)) == counts.reasons
    return predicted


@pytest.mark.usefixtures("ray_session")
def test_bad_documents_and_files_do_not_affect_the_others(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing, invalid and duplicate documents are dead letters, unreadable files are named, all others are predicted.

    One document kills its process the first time only, as a crash of the machine would: it is predicted.
    """
    monkeypatch.setattr(classify_pass, "ClassifyStep", chaos.ChaosStep)
    documents = tiny.make_documents(120)
    rows: list[Row] = [dict(row) for row in documents]
    rows[50]["text"] = f"{chaos.KILL_ONCE}{tmp_path / 'killed'}"
    invalid = [
        ("raise", chaos.RAISE, "poison"),
        ("kill", chaos.KILL, "poison"),
        ("null", None, "null_text"),
        ("empty", " ", "empty_text"),
        ("d00003", "seen in this file", "repeated_id"),
        (None, "a fine day", "null_id"),
    ]
    rows[60:60] = [{"id": id, "text": text} for id, text, _ in invalid[:2]]
    rows += [{"id": id, "text": text} for id, text, _ in invalid[2:]]
    rows += [{"id": "nul", "text": "a fine \0 day"}, {"id": "long", "text": "fine " * (2 << 20)}]
    project.write("a.parquet", to_parquet(rows))
    lines = [{"id": "d00007", "text": "seen in another file"}, {"id": "half", "text": "a \ud800 day"}]
    project.write("b.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode() + b"[not a record]\n")
    intact = to_parquet([{"id": f"x{n}", "text": "a fine day " * 20} for n in range(80)])
    flipped = bytearray(intact)
    flipped[200:260] = bytes(60)
    project.write("c-truncated.parquet", intact[:-30])
    project.write("d-flipped.parquet", bytes(flipped))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["y"], "text": [3.5]}), sink)
    project.write("e-numbers.parquet", sink.getvalue().to_pybytes())
    project.write("f-empty.parquet", b"")
    report = project.run_night(classify={"max_dead_fraction": 0.5, "max_bad_files": 0.8})
    predicted = check_complete(project, report, len(rows) + 3)
    assert (tmp_path / "killed").exists()
    assert sorted(file.uri.rpartition("/")[2][0] for file in report.quarantined) == ["c", "d", "e", "f"]
    assert read_input_names(project.out)["taken"] == ["a.parquet", "b.jsonl"]
    letters = read_dead_letters(project.out)
    reasons = {letter["id"]: letter["reason"] for letter in letters}
    expected = {id: reason for id, _, reason in invalid} | {
        "d00007": "repeated_id",
        "half": "not_text",
        "long": "too_long",
    }
    assert {id: reasons[id] for id in expected if id} == {id: reason for id, reason in expected.items() if id}
    assert report.counts.reasons["malformed"] == 1
    messages = [letter["message"] for letter in letters if letter["reason"] == "poison"]
    assert sorted(messages) == ["computing it raised RuntimeError", "every process that computed it was killed"]
    text_by_id = {row["id"]: row["text"] for row in rows if row["id"] not in expected and row["text"]}
    assert {row["id"] for row in predicted} == {row["id"] for row in documents} | {"nul"}
    classifier = TrainedClassifier.load(project.registry_fixture.folder / "1")
    labels = dict(zip(text_by_id, classifier.predict(list(text_by_id.values())), strict=True))
    assert {row["id"]: row["label"] for row in predicted if row["id"] in labels} == labels
    check_no_secrets(project.out, os.environ["AWS_SECRET_ACCESS_KEY"], chaos.RAISE, "seen in another", "not a record")


@pytest.mark.usefixtures("ray_session")
def test_a_run_uses_one_model_version_and_labels_do_not_depend_on_workers(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion changes during the run: all rows have the version with which the run began.

    This process with smaller shards gives the same labels as two workers, and scores that differ by at most 0.01.
    """
    project.write("a.parquet", to_parquet(tiny.make_documents(150, seed=3)))

    def change_champion(*args: Any, **keywords: Any) -> Any:
        (project.registry_fixture.folder / "champion").write_text("2")
        return map_shards(*args, **keywords)

    replace_map_shards(monkeypatch, change_champion)
    check_complete(project, project.run_night(), 150)
    two_workers = read_predictions(f"{project.base}/out")
    assert {row["model_version"] for row in two_workers} == {"1"}
    (project.registry_fixture.folder / "champion").write_text("1")
    output = f"{project.base}/no_workers"
    settings = project.build_settings(ray={"workers": 0, "shard_documents": 17})
    run_classify(settings, project.registry_fixture, f"{project.base}/data", output, night=DATE)  # type: ignore[arg-type]
    no_workers = read_predictions(output)
    assert [row["id"] for row in no_workers] == [row["id"] for row in two_workers]
    scores = [[[*row["scores"].values()] for row in rows] for rows in (no_workers, two_workers)]
    np.testing.assert_allclose(*scores, atol=0.01)
    assert [row["label"] for row in no_workers] == [row["label"] for row in two_workers]


def start_driver(function: str, *args: Any, **env: str) -> subprocess.Popen[str]:
    """Start a process with its own Ray that calls a function of tests.support.chaos."""
    code = f"import sys, json; from tests.support import chaos; chaos.{function}(*json.loads(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(args)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait until a condition holds that a process brings about; fail if the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the process ended: {process.communicate()[0]}"
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        time.sleep(0.1)


def test_a_killed_driver_loses_no_finished_work(project: Project, tmp_path: Path) -> None:
    """The driver is killed after its third shard. A rerun repeats at most one shard per worker.

    test_night.py lets a night crash any number of times, at any steps.
    """
    documents = tiny.make_documents(400, seed=5)
    source = project.write("a.parquet", to_parquet(documents))
    log, output, shards, workers = tmp_path / "log", f"{project.base}/out", 10, 2
    args = (project.tree, str(project.registry_fixture.folder), source, output, DATE)

    shard_log = open_shard_log(project.out, f"{DATE}-tiny-000001")

    def count_committed() -> int:
        return len(shard_log.committed())

    process = start_driver("run_night", *args, **{chaos.LOG: str(log)})
    try:
        wait_until(lambda: count_committed() >= 3, process)
        assert process.poll() is None, "the night was over before the driver was killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert list_nights(NightTables(project.out)) == []
    process = start_driver("run_night", *args, **{chaos.LOG: str(log)})
    output_text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output_text
    report = from_json(NightReport, project.out.read_json("report.json"))
    predicted = check_complete(project, report, 400)
    assert [row["id"] for row in predicted] == [row["id"] for row in documents]
    computed = Counter(log.read_text().split())
    assert len(computed) == shards
    assert computed.total() <= shards + workers
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in output_text
    check_no_secrets(project.out, os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"])


def test_a_step_that_never_ends_fails_the_run_and_names_its_shard(tmp_path: Path) -> None:
    """The driver ends with status 6, and not sooner by the limit of Ray Data, which is half an hour by default."""
    limit = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "5"}
    process = start_driver("run_hanging_stage", str(tmp_path / "out"), **limit)
    try:
        output_text, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:  # a driver that hangs must not outlive the test
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 6
    assert "trial: no shard has ended for 40 s" in output_text
    assert "begun and not ended: 000001 in" in output_text
