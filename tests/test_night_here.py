"""Nights of a real model in this process, without Ray: what they hold, what they refuse, what does not change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import classify
from pipelines.night import read_predictions
from pipelines.shards import map_shards
from pipelines.store import Store
from spin.classifier import SpinClassifier
from spin.errors import BadRowsError, UserError
from spin.settings import parse_settings
from tests import chaos, tiny
from tests.chaos import Shelf

DATE = "2026-03-01"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Shelf:
    """Two versions that say different things."""
    folder = tmp_path_factory.mktemp("shelf")
    for number, classes in (("1", ("good", "bad")), ("2", ("plain", "bad"))):
        rows = tiny.documents(120, classes)
        spin = SpinClassifier(str(backbone_folder), metric="accuracy")
        spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / number)
    return Shelf(folder)


class Place:
    """A folder with data, a shelf whose champion is version 1, and nights over them."""

    def __init__(self, folder: Path, shelf: Shelf, backbone: Path) -> None:
        self.folder, self.shelf, self.backbone = folder, shelf, backbone
        (folder / "data").mkdir()
        self.promote("1")

    def promote(self, number: str) -> None:
        (self.shelf.folder / "champion").write_text(number)

    def write(self, name: str, rows: list[Row]) -> None:
        (self.folder / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def night(self, out: str = "out", documents: int = 40, **allowed: float) -> dict[str, Any]:
        tree = {
            "backbone": {"model": str(self.backbone), "dtype": "float32", "device": "cpu"},
            "data": {"train": "nowhere"},
            "store": "nowhere",
            "ray": {"shard_documents": documents},
            "classify": allowed,
        }
        data = str(self.folder / "data")
        return classify.run_classify(parse_settings(tree), self.shelf, data, str(self.folder / out), night=DATE)  # type: ignore[arg-type]

    def predictions(self, out: str = "out") -> list[Row]:
        return read_predictions(str(self.folder / out))

    def published(self) -> list[str]:
        return [key for key in Store(str(self.folder / "out")).list() if not key.startswith(("_lease/", "_runs/"))]


@pytest.fixture
def place(tmp_path: Path, shelf: Shelf, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(classify, "map_shards", lambda *args, **given: map_shards(*args, **{**given, "here": True}))
    return Place(tmp_path, shelf, backbone_folder)


def test_a_night_is_of_one_version(place: Place) -> None:
    """Another champion does not go on with the night of the one before: that is refused, naming both."""
    place.write("a.jsonl", tiny.documents(90, seed=3))
    place.night()
    place.promote("2")
    with pytest.raises(UserError, match=r'model\.version is "2", was "1"'):
        place.night()
    assert {row["model_version"] for row in place.predictions()} == {"1"}
    place.night("other")
    assert {row["model_version"] for row in place.predictions("other")} == {"2"}


def test_a_document_has_its_label_whatever_stands_beside_it(place: Place) -> None:
    """Shards of any size, and a second run: the same labels, the scores within 0.01."""
    place.write("a.jsonl", tiny.documents(150, seed=3))
    expected = None
    for number, documents in enumerate((40, 40, 7, 1000)):
        place.night(str(number), documents)
        rows = place.predictions(str(number))
        found = [(row["id"], row["label"]) for row in rows], np.array([row["scores"] for row in rows])
        expected = expected or found
        assert found[0] == expected[0]
        np.testing.assert_allclose(found[1], expected[1], atol=0.01)
    assert {label for _, label in expected[0]} == {"good", "bad"}


def test_broken_files_are_named_up_to_a_share(place: Place) -> None:
    """Above it the night fails, naming one, with nothing to be seen; what was computed serves once it is allowed."""
    place.write("a.jsonl", tiny.documents(30))
    (place.folder / "data" / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadRowsError, match=r"1 of 2 files cannot be classified.*b\.parquet cannot be read") as error:
        place.night()
    assert error.value.status == 4
    assert place.published() == []
    manifest = place.night(max_bad_files=0.5)
    assert [file["uri"].rpartition("/")[2] for file in manifest["quarantined"]] == ["b.parquet"]
    assert len(place.predictions()) == manifest["counts"]["rows"] == 30


def test_too_many_dead_letters_fail_the_night(place: Place) -> None:
    place.write("a.jsonl", [*tiny.documents(8), {"id": "x", "text": None}, {"id": "y", "text": " "}])
    with pytest.raises(BadRowsError, match=r"2 of 10 rows cannot be classified \(1 null_text, 1 empty_text\)"):
        place.night()
    assert place.published() == []
    place.night(max_dead_fraction=0.2)
    assert len(place.predictions()) == 8


def test_the_first_of_repeated_ids_is_predicted(place: Place) -> None:
    """In plan order, over shards and files."""
    first, second = tiny.documents(60), tiny.documents(80)[20:]
    place.write("b.jsonl", second)
    place.write("a.jsonl", first)
    manifest = place.night(documents=16, max_dead_fraction=0.5)
    assert manifest["counts"]["reasons"] == {"repeated_id": 40}
    assert [row["id"] for row in place.predictions()] == [row["id"] for row in first + second[40:]]


def test_a_document_that_raises_is_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of its shard have the labels that they have without it."""
    monkeypatch.setattr(classify, "ClassifyStep", chaos.ChaosStep)
    rows = tiny.documents(60)
    place.write("a.jsonl", rows)
    place.night("without")
    place.write("a.jsonl", [*rows[:17], {"id": "poison", "text": chaos.RAISE}, *rows[17:]])
    manifest = place.night()
    assert manifest["counts"]["reasons"] == {"poison": 1}
    labels = [[(row["id"], row["label"]) for row in place.predictions(out)] for out in ("without", "out")]
    assert labels[0] == labels[1]
