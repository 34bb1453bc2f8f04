"""Nights on Ray and the real S3 server whose documents, workers and drivers fail: every row ends once, and resumes."""

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

from pipelines.nightly import classify
from pipelines.nightly.classify import run_classify
from pipelines.nightly.publish import PredictionRow, read_predictions
from pipelines.nightly.run_records import RunManifest
from pipelines.service_errors import BadRowsError
from pipelines.storage.object_store import Store
from spin.classifier import SpinClassifier
from spin.settings import Settings, parse_settings
from tests.support import chaos, tiny
from tests.support.chaos import FolderRegistry
from tests.support.repository import ROOT

pytestmark = pytest.mark.s3
DATE = "2026-03-01"
Row = dict[str, Any]


@dataclass
class Project:
    """Settings, a shelf with two versions of a model, and the S3 prefix of a test."""

    tree: dict[str, Any]
    registry_fixture: FolderRegistry
    base: str

    def settings(self, **changes: Any) -> Settings:
        return parse_settings({**self.tree, **changes})

    def write(self, name: str, data: bytes) -> str:
        Store(self.base).write(f"data/{name}", data)
        return f"{self.base}/data"

    def night(self, **changes: Any) -> RunManifest:
        out = f"{self.base}/out"
        return run_classify(self.settings(**changes), self.registry_fixture, f"{self.base}/data", out, night=DATE)  # type: ignore[arg-type]

    @property
    def out(self) -> Store:
        return Store(f"{self.base}/out")


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """Two versions that say different things."""
    folder = tmp_path_factory.mktemp("shelf")
    for number, classes in (("1", ("good", "bad")), ("2", ("plain", "bad"))):
        rows = tiny.documents(240, classes)
        spin = SpinClassifier(str(backbone_folder), metric="accuracy")
        spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / number)
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


def parquet(rows: list[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"id": [row["id"] for row in rows], "text": [row["text"] for row in rows]})
    pq.write_table(table, sink, row_group_size=40)
    return sink.getvalue().to_pybytes()


def check_silence(out: Store, *secrets: str) -> None:
    """No secret stands in anything that a run wrote beside its predictions."""
    keys = [key for key in out.list() if not key.startswith("predictions/")]
    assert len(keys) > 4
    for key in keys:
        data = out.read(key)
        assert data is not None
        assert not [secret for secret in secrets if secret.encode() in data], key


def letters_of(out: Store) -> list[Row]:
    found: list[Row] = []
    for key in out.list(f"dead_letters/date={DATE}"):
        with out.open(key) as file:
            found += pq.ParquetFile(file).read().to_pylist()
    return found


def check_whole(project: Project, manifest: RunManifest, rows: int) -> list[PredictionRow]:
    """Every row once, in predictions or dead letters; the counts agree with what is there."""
    predicted, letters, counts = read_predictions(f"{project.base}/out"), letters_of(project.out), manifest.counts
    assert len(predicted) + len(letters) == counts.rows == rows
    assert (len(predicted), len(letters)) == (counts.predicted, counts.dead)
    assert len({row["id"] for row in predicted}) == len(predicted)
    assert dict(Counter(letter["reason"] for letter in letters)) == counts.reasons
    return predicted


@pytest.mark.usefixtures("ray_session")
def test_what_is_wrong_with_documents_and_files_stays_with_them(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poison, deadly, odd and repeated documents are dead letters, broken files are named; all others are predicted.

    One document kills its process the first time only, as a machine that dies: that is not seen.
    """
    monkeypatch.setattr(classify, "ClassifyStep", chaos.ChaosStep)
    good = tiny.documents(120)
    rows: list[Row] = [dict(row) for row in good]
    rows[50]["text"] = f"{chaos.KILL_ONCE}{tmp_path / 'killed'}"
    odd = [
        ("raise", chaos.RAISE, "poison"),
        ("kill", chaos.KILL, "poison"),
        ("null", None, "null_text"),
        ("empty", " ", "empty_text"),
        ("d00003", "seen in this file", "repeated_id"),
        (None, "a fine day", "null_id"),
    ]
    rows[60:60] = [{"id": id, "text": text} for id, text, _ in odd[:2]]
    rows += [{"id": id, "text": text} for id, text, _ in odd[2:]]
    rows += [{"id": "nul", "text": "a fine \0 day"}, {"id": "long", "text": "fine " * (2 << 20)}]
    project.write("a.parquet", parquet(rows))
    lines = [{"id": "d00007", "text": "seen in another file"}, {"id": "half", "text": "a \ud800 day"}]
    project.write("b.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode() + b"[not a record]\n")
    whole = parquet([{"id": f"x{n}", "text": "a fine day " * 20} for n in range(80)])
    flipped = bytearray(whole)
    flipped[200:260] = bytes(60)
    project.write("c-truncated.parquet", whole[:-30])
    project.write("d-flipped.parquet", bytes(flipped))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["y"], "text": [3.5]}), sink)
    project.write("e-numbers.parquet", sink.getvalue().to_pybytes())
    project.write("f-empty.parquet", b"")
    manifest = project.night(classify={"max_dead_fraction": 0.5, "max_bad_files": 0.8})
    predicted = check_whole(project, manifest, len(rows) + 3)
    assert (tmp_path / "killed").exists()
    assert sorted(file.uri.rpartition("/")[2][0] for file in manifest.quarantined) == ["c", "d", "e", "f"]
    assert [file.uri.rpartition("/")[2] for file in manifest.inputs] == ["a.parquet", "b.jsonl"]
    reasons = {letter["id"]: letter["reason"] for letter in letters_of(project.out)}
    expected = {id: reason for id, _, reason in odd} | {"d00007": "repeated_id", "half": "not_text"}
    assert {id: reasons[id] for id in expected if id} == {id: why for id, why in expected.items() if id}
    assert manifest.counts.reasons["malformed"] == 1
    messages = [letter["message"] for letter in letters_of(project.out) if letter["reason"] == "poison"]
    assert sorted(messages) == ["computing it raised RuntimeError", "every process that computed it was killed"]
    sound = {row["id"]: row["text"] for row in rows if row["id"] not in expected and row["text"]}
    assert {row["id"] for row in predicted} == {row["id"] for row in good} | {"nul", "long"}
    spin = SpinClassifier.load(project.registry_fixture.folder / "1")
    labels = dict(zip(sound, spin.predict(list(sound.values())), strict=True))
    assert {row["id"]: row["label"] for row in predicted if row["id"] in labels} == labels
    check_silence(project.out, os.environ["AWS_SECRET_ACCESS_KEY"], chaos.RAISE, "seen in another", "not a record")


@pytest.mark.usefixtures("ray_session")
def test_too_many_broken_files_fail_the_night(project: Project) -> None:
    """Status 4, naming one, with nothing published; what was computed is published once it is allowed."""
    project.write("a.parquet", parquet(tiny.documents(30)))
    project.write("b.parquet", b"PAR1")
    with pytest.raises(BadRowsError, match=r"1 of 2 files cannot be classified.*b\.parquet cannot be read") as error:
        project.night()
    assert error.value.status == 4
    assert [key for key in project.out.list() if not key.startswith(("_lease/", "_runs/"))] == []
    check_whole(project, project.night(classify={"max_bad_files": 0.5}), 30)


@pytest.mark.usefixtures("ray_session")
def test_one_version_a_run_and_the_same_labels(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The champion moves in the middle: all rows carry the version that the run began with.

    One worker and two, over other shards, give the same labels, within 0.05 of a logit.
    """
    project.write("a.parquet", parquet(tiny.documents(150, seed=3)))
    real = classify.map_shards

    def moved(*args: Any, **given: Any) -> Any:
        (project.registry_fixture.folder / "champion").write_text("2")
        return real(*args, **given)

    monkeypatch.setattr(classify, "map_shards", moved)
    check_whole(project, project.night(), 150)
    two = read_predictions(f"{project.base}/out")
    assert {row["model_version"] for row in two} == {"1"}
    (project.registry_fixture.folder / "champion").write_text("1")
    out = f"{project.base}/alone"
    alone = project.settings(ray={"workers": 1, "shard_documents": 17})
    run_classify(alone, project.registry_fixture, f"{project.base}/data", out, night=DATE)  # type: ignore[arg-type]
    one = read_predictions(out)
    assert [row["id"] for row in one] == [row["id"] for row in two]
    np.testing.assert_allclose([row["scores"] for row in one], [row["scores"] for row in two], atol=0.01)
    assert [row["label"] for row in one] == [row["label"] for row in two]


@pytest.mark.usefixtures("ray_session")
def test_a_night_takes_what_is_new(project: Project) -> None:
    """`since` skips files that earlier nights have taken, over several nights; a changed or quarantined one is not."""

    def night(date: str, since: str | None) -> tuple[list[str], list[str]]:
        settings = project.settings(classify={"max_bad_files": 0.9})
        source, out = f"{project.base}/data", f"{project.base}/out"
        manifest = run_classify(settings, project.registry_fixture, source, out, night=date, since=since)  # type: ignore[arg-type]
        ids = {row["id"] for row in read_predictions(out)}
        names = sorted(file.uri.rpartition("/")[2] for file in manifest.inputs)
        return names, sorted(ids)[:1]

    for name, first in (("a", 0), ("b", 40)):
        project.write(f"{name}.parquet", parquet(tiny.documents(80)[first : first + 40]))
    project.write("broken.parquet", b"PAR1")
    out = f"{project.base}/out"
    assert night("2026-03-01", None) == (["a.parquet", "b.parquet"], ["d00000"])
    project.write("b.parquet", parquet(tiny.documents(130)[80:130]))
    assert night("2026-03-02", out) == (["b.parquet"], ["d00080"])
    project.write("broken.parquet", parquet(tiny.documents(140)[130:]))
    assert night("2026-03-03", out) == (["broken.parquet"], ["d00130"])
    assert night("2026-03-04", out) == ([], [])


def driver(call: str, *args: Any, **env: str) -> subprocess.Popen[str]:
    """A process of its own that calls a function of tests.support.chaos, with its own Ray."""
    code = f"import sys, json; from tests.support import chaos; chaos.{call}(*json.loads(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(args)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def await_(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait for what a process does; it must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def test_a_killed_driver_loses_nothing(project: Project, tmp_path: Path) -> None:
    """SIGKILL after the first shard and after a later one: reruns compute again at most a shard a worker each time."""
    documents = tiny.documents(400, seed=5)
    source = project.write("a.parquet", parquet(documents))
    log, output, shards, workers = tmp_path / "log", f"{project.base}/out", 10, 2
    given = (project.tree, str(project.registry_fixture.folder), source, output, DATE)

    def committed() -> int:
        return sum(key.endswith(".json") for key in project.out.list(f"_runs/{DATE}-001/parts"))

    kills = 0
    for count in (1, 5):
        process = driver("run_night", *given, **{chaos.LOG: str(log)})
        try:
            await_(lambda count=count: committed() >= count, process)  # type: ignore[misc]
        finally:
            kills += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        assert project.out.read_json("latest") is None
    process = driver("run_night", *given, **{chaos.LOG: str(log)})
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    manifest = RunManifest.from_json(project.out.read_json(f"_runs/{DATE}-001/manifest.json"))
    predicted = check_whole(project, manifest, 400)
    assert [row["id"] for row in predicted] == [row["id"] for row in documents]
    assert kills == 2
    computed = Counter(log.read_text().split())
    assert len(computed) == shards
    assert computed.total() <= shards + kills * workers
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in said
    check_silence(project.out, os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"])


def test_a_step_that_never_ends_is_told(tmp_path: Path) -> None:
    """The driver leaves with a status of its own and names the shard."""
    process = driver("run_hanging_stage", str(tmp_path / "out"))
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:  # or it would outlive the test that waited for it in vain
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 6
    assert "trial: no shard has ended for 20 s" in said
    assert "begun and not ended: 000001 in" in said
