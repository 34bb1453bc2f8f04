"""Nights of a real model in this process, without Ray: what they hold, what they refuse, what does not change them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.nightly import classify
from pipelines.nightly.classify_step import ClassifyStep
from pipelines.nightly.precision_check import check_precision
from pipelines.nightly.publish import PredictionRow, read_predictions
from pipelines.nightly.run_records import RunManifest
from pipelines.service_errors import BadRowsError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog, ShardOutcome
from pipelines.workers.map_shards import map_shards
from spin.classifier import SpinClassifier
from spin.errors import NotFiniteError, UserError
from spin.settings import load_settings
from tests.support import chaos, tiny
from tests.support.browser import open_page
from tests.support.chaos import FolderRegistry

DATE = "2026-03-01"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """Two versions that say different things."""
    folder = tmp_path_factory.mktemp("shelf")
    for number, classes in (("1", ("good", "bad")), ("2", ("plain", "bad"))):
        rows = tiny.documents(120, classes)
        spin = SpinClassifier(str(backbone_folder), metric="accuracy", sites=["ffn"], poolings=["mean"])
        spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / number)
    return FolderRegistry(folder)


class Place:
    """A folder with data, a shelf whose champion is version 1, and nights over them."""

    def __init__(self, folder: Path, registry_fixture: FolderRegistry, backbone: Path) -> None:
        self.folder, self.registry_fixture, self.backbone = folder, registry_fixture, backbone
        (folder / "data").mkdir()
        self.promote("1")

    def promote(self, number: str) -> None:
        (self.registry_fixture.folder / "champion").write_text(number)

    def write(self, name: str, rows: list[Row]) -> None:
        (self.folder / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def night(
        self,
        out: str = "out",
        documents: int = 40,
        *,
        date: str = DATE,
        since: str | None = None,
        shadow: str | None = None,
        restart: bool = False,
        set: tuple[str, ...] = (),
        **allowed: float,
    ) -> RunManifest:
        tree: dict[str, Any] = {
            "backbone": {"model": str(self.backbone), "dtype": "float32", "device": "cpu"},
            "data": {"train": "nowhere"},
            "store": "nowhere",
            "ray": {"shard_documents": documents},
            "classify": allowed,
        }
        file = self.folder / "settings.yaml"
        file.write_text(json.dumps(tree))
        source, output = str(self.folder / "data"), str(self.folder / out)
        given: dict[str, Any] = {"night": date, "shadow": shadow, "restart": restart}
        given["since"] = since and str(self.folder / since)
        return classify.run_classify(load_settings(file, set), self.registry_fixture, source, output, **given)  # type: ignore[arg-type]

    def predictions(self, out: str = "out") -> list[PredictionRow]:
        return read_predictions(str(self.folder / out))

    def letters(self, out: str = "out") -> list[Row]:
        return pq.read_table(self.folder / out / "dead_letters" / f"date={DATE}").to_pylist()  # type: ignore[no-any-return]

    def published(self) -> list[str]:
        return [key for key in Store(str(self.folder / "out")).list() if not key.startswith(("_lease/", "_runs/"))]


@pytest.fixture
def place(
    tmp_path: Path, registry_fixture: FolderRegistry, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.setattr(classify, "map_shards", lambda *args, **given: map_shards(*args, **{**given, "here": True}))
    return Place(tmp_path, registry_fixture, backbone_folder)


def test_what_is_kept_of_a_shard_does_not_grow_with_its_rows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten times the rows, dead ones among them, each pass tells the driver as much: counts, and nothing of a row."""
    kept: list[dict[str, Any]] = []

    def listen(*args: Any, **given: Any) -> list[ShardOutcome[Any]]:
        outcomes = map_shards(*args, **{**given, "here": True})
        kept.extend(outcome.to_json() for outcome in outcomes)
        return outcomes

    monkeypatch.setattr(classify, "map_shards", listen)
    told = {}
    for rows in (60, 600):
        dead: list[Row] = [{"id": f"e{n}", "text": ""} for n in range(rows // 10)]
        documents = tiny.documents(rows, seed=3)
        place.write("a.jsonl", [*documents, *dead, *documents[: rows // 10]])
        assert place.night(f"out-{rows}", 10 * rows, set=("data.ids=checked",), max_dead_fraction=0.5).counts.dead
        told[rows] = [_leaves(outcome) for outcome in kept]
        kept.clear()
    assert len(told[60]) == 3
    assert told[60] == told[600]


def _leaves(value: Any) -> Any:
    """What a record is made of: names and kinds, whatever the figures."""
    if isinstance(value, dict):
        return {name: _leaves(of) for name, of in value.items()}
    return [_leaves(of) for of in value] if isinstance(value, list) else type(value)


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
    assert [file.uri.rpartition("/")[2] for file in manifest.quarantined] == ["b.parquet"]
    assert len(place.predictions()) == manifest.counts.rows == 30


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
    assert manifest.counts.reasons == {"repeated_id": 40}
    assert [row["id"] for row in place.predictions()] == [row["id"] for row in first + second[40:]]


def test_a_document_that_raises_is_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of its shard have the labels that they have without it."""
    monkeypatch.setattr(classify, "ClassifyStep", chaos.ChaosStep)
    rows = tiny.documents(60)
    place.write("a.jsonl", rows)
    place.night("without")
    place.write("a.jsonl", [*rows[:17], {"id": "poison", "text": chaos.RAISE}, *rows[17:]])
    manifest = place.night()
    assert manifest.counts.reasons == {"poison": 1}
    labels = [[(row["id"], row["label"]) for row in place.predictions(out)] for out in ("without", "out")]
    assert labels[0] == labels[1]


class NotFiniteStep(ClassifyStep):
    """Activations of texts that begin with "inf" are not finite."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        features = self.spin.features

        def odd(texts: list[str]) -> Any:
            if any(text.startswith("inf") for text in texts):
                raise NotFiniteError("ffn.01: the backbone gave values that are not finite")
            return features(texts)

        self.spin.features = odd  # type: ignore[method-assign,assignment]


def test_a_document_whose_activations_are_not_finite_is_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a poison document, not the end of every night that has it."""
    monkeypatch.setattr(classify, "ClassifyStep", NotFiniteStep)
    rows = tiny.documents(60)
    place.write("a.jsonl", [*rows[:17], {"id": "poison", "text": "infinite"}, *rows[17:]])
    assert place.night().counts.reasons == {"poison": 1}
    assert [row["id"] for row in place.predictions()] == [row["id"] for row in rows]


def during(stage: str, act: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something to the store of a stage, or beside it, before that stage computes anything."""

    def watched(*args: Any, **given: Any) -> Any:
        if given["stage"] == stage:
            act(args[3])
        return map_shards(*args, **{**given, "here": True})

    monkeypatch.setattr(classify, "map_shards", watched)


def test_a_file_that_kills_who_reads_it_is_quarantined(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes died before they came to a document of it: the night goes on without the file."""
    place.write("a.jsonl", tiny.documents(20))
    place.write("b.jsonl", tiny.documents(40)[20:])

    def killed(store: Store) -> None:
        store.write_json("attempts/000000.json", {"begun": 3, "ended": 0, "note": {}})

    for stage in ("ids", "classify"):
        during(stage, killed, monkeypatch)
        manifest = place.night(stage, max_bad_files=0.5)
        [file] = manifest.quarantined
        assert file.uri.endswith("a.jsonl")
        assert "every process that read it was killed" in file.reason
        assert [row["id"] for row in place.predictions(stage)] == [row["id"] for row in tiny.documents(40)[20:]]


def test_a_file_that_changes_while_it_is_read_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be half of one and half of another is not published; started over, it is."""
    place.write("a.jsonl", tiny.documents(20))
    with monkeypatch.context() as patch:
        during("classify", lambda _: place.write("a.jsonl", tiny.documents(30)), patch)
        with pytest.raises(UserError, match=r"1 of 1 files changed while they were read, .*a\.jsonl .*--restart"):
            place.night()
    assert place.published() == []
    with pytest.raises(UserError, match=r"files\.0\.size"):
        place.night()
    assert place.night(restart=True).counts.rows == 30


def test_a_file_of_another_kind_is_quarantined(place: Place) -> None:
    """One stray file is no reason for a night to fail."""
    place.write("a.jsonl", tiny.documents(20))
    place.write("notes.txt", [])
    manifest = place.night(max_bad_files=0.5)
    [file] = manifest.quarantined
    assert file.reason.endswith("notes.txt is not Parquet, JSONL or CSV by its name; expected .parquet, .jsonl or .csv")
    assert len(place.predictions()) == 20


def test_starting_over_skips_what_the_night_skipped(place: Place) -> None:
    """Not what the night itself has taken since: with `since` its own output, all its rows are there again."""
    place.write("a.jsonl", tiny.documents(20))
    place.night(date="2026-02-28", since=None)
    place.write("b.jsonl", tiny.documents(50)[20:])
    for number, restart in (("1", False), ("2", True), ("2", False)):
        place.promote(number)
        manifest = place.night(since="out", restart=restart)
        assert [file.uri.rpartition("/")[2] for file in manifest.inputs] == ["b.jsonl"]
        assert [file.uri.rpartition("/")[2] for file in manifest.skipped] == ["a.jsonl"]
        assert {row["model_version"] for row in place.predictions()} == {number}
        assert len(place.predictions()) == 30


def test_a_night_is_held_against_the_one_before(place: Place) -> None:
    """Not against a later one, where a night is made up for."""
    place.write("a.jsonl", tiny.documents(20))
    before = {date: place.night(date=date).before for date in ("2026-03-01", "2026-03-03", "2026-03-02")}
    assert before["2026-03-01"] is None
    assert (before["2026-03-03"].date, before["2026-03-03"].counts.rows) == ("2026-03-01", 20)
    assert before["2026-03-02"] is None


def test_labels_are_held_against_float32(place: Place) -> None:
    """Row by row, past dead letters and repeated ids, over several shards, as far as was asked."""
    rows: list[Any] = tiny.documents(90, seed=4)
    odd = [{"id": "x", "text": None}, dict(rows[2]), {"id": "y", "text": " "}]
    place.write("a.jsonl", [odd[0], *rows[:30], *odd[1:], *rows[30:]])
    manifest = place.night()
    settings = load_settings(place.folder / "settings.yaml")

    class Loads(FolderRegistry):
        def load(self, number: str, *, backbone: Any) -> SpinClassifier:
            return SpinClassifier.load(self.folder / number, backbone=backbone, early=True)

    registry: Any = Loads(place.registry_fixture.folder)
    assert check_precision(settings, registry, manifest, 1000) == (90, 90)
    assert check_precision(settings, registry, manifest, 47) == (47, 47)
    first, second = (registry.load(number, backbone=settings.backbone) for number in ("1", "2"))
    texts = [row["text"] for row in rows]
    same = sum(a == b for a, b in zip(first.predict(texts), second.predict(texts), strict=True))
    assert 0 < same < 90
    assert check_precision(settings, registry, replace(manifest, model_version="2"), 90) == (90, same)


def test_texts_are_kept_only_if_asked(place: Place) -> None:
    """A dead letter has an id and a reason; its text for who asks, lone surrogates replaced."""
    rows = [{"id": "a", "text": "a fine day"}, {"id": "a", "text": "again"}, {"id": "b", "text": None}]
    place.write("a.jsonl", [*rows, {"id": "c", "text": "half \ud800"}, {"id": "d", "text": 7}])
    place.night(max_dead_fraction=1)
    assert [letter["text"] for letter in place.letters()] == [None] * 4
    place.night("asked", max_dead_fraction=1, dead_letter_text=True)
    assert [letter["text"] for letter in place.letters("asked")] == ["again", None, "half ?", None]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("choose=cheapest", 'choose is "cheapest", was "accuracy"'),
        ("decision.abstain=0.1", "decision.abstain is 0.1, was 0"),
        ("decision.thresholds={good: 0.9}", "decision.thresholds"),
        ("backbone.dtype=bfloat16", "backbone.dtype"),
        ("backbone.max_tokens=16", "backbone.max_tokens is 16, was 256"),
        ("backbone.batch_tokens=64", "backbone.batch_tokens is 64"),
        ("backbone.pool_special_tokens=true", "backbone.pool_special_tokens is true"),
        ("data.id=label", 'data.id is "label", was "id"'),
        ("data.text=label", 'data.text is "label", was "text"'),
        ("data.ids=trusted", 'data.ids is "trusted"'),
        ("ray.shard_documents=7", "shard_documents is 7, was 40"),
        ("classify.dead_letter_text=true", "dead_letter_text is true"),
    ],
)
def test_what_changes_results_is_refused(place: Place, change: str, named: str) -> None:
    """One setting at a time, of a night that has ended as of one that has not."""
    place.write("a.jsonl", tiny.documents(12))
    place.night()
    with pytest.raises(UserError, match=rf"made with other settings or data: .*{re.escape(named)}.*--restart"):
        place.night(set=(change,))


@pytest.mark.parametrize(
    "change",
    ["ray.workers=2", "ray.stall_seconds=9", "classify.max_psi=0.9", "classify.fail_on_drift=true", "metric=accuracy"],
)
def test_what_does_not_change_results_resumes(place: Place, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night that stopped after a shard goes on from there."""
    place.write("a.jsonl", tiny.documents(120))

    class Stop(Exception):
        pass

    def stop(shard_log: ShardLog, name: str, *args: Any, **given: Any) -> Any:
        if shard_log.store.uri.endswith("-001") and name == "000002":
            raise Stop
        return commit(shard_log, name, *args, **given)

    commit = ShardLog.commit
    with monkeypatch.context() as patch:
        patch.setattr(ShardLog, "commit", stop)
        with pytest.raises(Stop):
            place.night()
    computed: list[str] = []
    monkeypatch.setattr(
        ShardLog,
        "commit",
        lambda shard_log, name, *args, **given: (
            computed.append(f"{shard_log.store.uri[-3:]} {name}"),
            commit(shard_log, name, *args, **given),
        )[1],
    )
    place.night(set=(change,))
    assert computed == ["001 000002"]
    assert len(place.predictions()) == 120


def test_the_page_of_a_real_night_shows_its_manifest(browser: Any, tmp_path: Path, place: Place) -> None:
    """What `run_classify` left, of documents, dead letters and a broken file."""
    place.write("a.jsonl", [*tiny.documents(90), {"id": "x", "text": None}])
    (place.folder / "data" / "b.parquet").write_bytes(b"PAR1")
    manifest = place.night(max_bad_files=0.5)
    html = (place.folder / "out" / "report.html").read_text()
    assert html == (place.folder / "out" / "_runs" / manifest.run / "report.html").read_text()
    with open_page(browser, tmp_path, html) as window:
        shown = window.locator("body").inner_text()
        said = " ".join(window.locator(".sum").inner_text().split())
        assert said == "91 documents = 90 predicted + 1 dead letters"
        assert "null_text" in shown
        assert manifest.quarantined[0].reason in shown
        assert all(f"{label}" in shown for label in manifest.counts.labels)
        assert window.locator(".pace svg").bounding_box()["height"] > 60
