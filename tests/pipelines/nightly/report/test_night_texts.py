"""The texts of a night's documents, read again, are those that were classified."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.nightly.report.night_texts import read_texts
from pipelines.storage.object_store import Store
from spin.classifier import TrainedClassifier
from spin.estimator import SpinClassifier
from spin.settings import BackboneSettings, DataSettings, SearchSettings
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import NightProject, Row

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    folder, rows = tmp_path_factory.mktemp("registry"), tiny.make_documents(120)
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    quick = SearchSettings(etas=(0.5,), max_share=1, strengths=(1,), network="off", words="off")
    spin = SpinClassifier(settings, sites=["resid.01"], search=quick)
    spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / "1")
    return FolderRegistry(folder)


def test_texts_are_those_of_the_rows_that_were_classified(project: NightProject) -> None:
    """Not those of dead letters before them, nor of quarantined files; the settings of the run say how to read them."""

    def write_parquet(name: str, row: Row) -> None:
        pq.write_table(pa.Table.from_pylist([row]), project.folder / "data" / name)

    write_parquet("a.parquet", {"id": "typed", "text": "a dull film", "priority": [1]})
    write_parquet("b.parquet", {"id": "typed", "text": "a fine film", "priority": 1})
    project.write("c.jsonl", [{"id": f"{n}", "text": "a dull day", "priority": n} for n in range(3000)])
    broken = project.folder / "data" / "c.jsonl"
    broken.write_text(broken.read_text() + '{"id": "cut')
    project.write("d.jsonl", [{"id": f"{n}", "text": f"a fine day {n}", "priority": n} for n in range(2)])
    rows = [
        {"id": "malformed", "text": "a dull film", "priority": "high"},
        {"id": "surrogate", "text": "\ud800", "priority": 1},
        {"id": "no text", "text": ["a dull film"], "priority": 1},
        *({"id": id, "text": "a fine film", "priority": 3} for id in ("malformed", "surrogate", "no text")),
        {"id": "malformed", "text": "a late film", "priority": 3},
    ]
    project.write("e.jsonl", rows)
    report = project.run_night(max_bad_files=1, max_dead_fraction=1, set=("data.keep={priority: int64}",))
    texts = {"typed": "a fine film", "0": "a fine day 0", "1": "a fine day 1"}
    texts |= dict.fromkeys(("malformed", "surrogate", "no text"), "a fine film")
    predicted = {row["id"]: row["label"] for row in project.read_rows()}
    assert predicted.keys() == texts.keys()
    out = Store(str(project.folder / "out"))
    assert dict(read_texts(DataSettings(train="none"), out, report.run, [*predicted, "2", "none"])) == texts
    spin = TrainedClassifier.load(project.registry_fixture.folder / "1")
    assert spin.predict(texts.values()) == [predicted[id] for id in texts]
