"""`spin roi` on a registered version: its figures, what it logs, and terms that it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.planning import operations
from pipelines.planning.roi import estimate_roi
from pipelines.planning.roi_terms import RoiTerms, read_cost_matrix
from spin import TrainedClassifier
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.labels.splits import certifies
from spin.settings import BackboneSettings, DecisionSettings, parse_settings
from spin.sites import FeatureColumn
from tests.support import tiny
from tests.support.command_line import read_cells, run_spin
from tests.support.random_classifiers import build_classifier
from tests.support.registry_databases import create_database
from tests.support.registry_fixture import RegistryFixture, build_evaluation_set

pytestmark = pytest.mark.slow

ROWS = tiny.make_documents(90, seed=6)
TERMS = RoiTerms(volume=1e6, cost_error=0.4, cost_review=0.25)


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> RegistryFixture:
    """A registry with one version, and a settings file."""
    folder = tmp_path_factory.mktemp("weighed")
    uri = create_database(folder / "mlflow.db")
    fixture = RegistryFixture(folder, backbone_folder, uri, evaluation_set=build_evaluation_set(ROWS))
    tree = fixture.settings.model_dump(mode="json", exclude_unset=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
    return fixture


def test_the_report_weighs_what_the_classifier_gives(weighed: RegistryFixture) -> None:
    """By its own probabilities; classifiers that are the same are listed once."""
    report = estimate_roi(weighed.settings, weighed.registry, TERMS, model=f"models:/{weighed.name}/1")
    rows = [row for row in ROWS if certifies(row["id"])]  # the gate reads the others
    given = weighed.spin.predict([row["text"] for row in rows])
    errors = np.mean([label != row["label"] for label, row in zip(given, rows, strict=True)])
    plain = next(p for p in report.points if (p.choose, p.exits, p.abstain) == ("accuracy", False, 0))
    assert plain.errors == pytest.approx(errors)
    assert plain.realised == pytest.approx(400 * errors)
    assert plain.compute > 0
    assert report.documents == len(rows) < len(ROWS)
    names = [(point.choose, point.exits) for point in report.bests]
    assert len(names) == len(set(names))
    summaries = {
        str(weighed.spin.training_result.choices[choose].summary) for choose in ("accuracy", "balanced", "cheapest")
    }
    assert len([name for name in names if not name[1]]) == len(summaries)
    assert [other.name for other in report.alternatives] == ["manual labelling"]
    assert report.labelling is None, "the fixture registers an empty report"
    client = weighed.registry.tracking.client
    [run] = client.search_runs([weighed.registry.tracking.experiment()], "tags.`spin.audit` = 'roi'")
    stored = json.loads(Path(client.download_artifacts(run.info.run_id, "roi.json")).read_text())
    assert stored["bests"][stored["best"]]["total"] == pytest.approx(report.best.total)
    assert "### roi" in client.get_model_version(weighed.name, "1").description


def test_baselines_of_the_training_and_a_language_model_are_alternatives(
    weighed: RegistryFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [
        {"name": "tfidf", "accuracy": 0.8, "docs_per_s": 10_000},
        {"name": "last_layer", "accuracy": 0.85, "docs_per_s": 100},
        {"name": "spin", "accuracy": 0.9, "docs_per_s": 100},
    ]
    training = {"table": table, "counts": {"train": 80, "valid": 20, "test": 100}}
    monkeypatch.setattr(weighed.registry, "training_report", lambda number: training)
    terms = RoiTerms(volume=1e6, cost_error=0.4, cost_review=0.25, cost_label=1.5, llm_price=3.0, llm_accuracy=0.95)
    report = estimate_roi(weighed.settings, weighed.registry, terms, model=f"models:/{weighed.name}/1", documents=40)
    words, last, llm, people = report.alternatives
    assert (words.errors, words.error_cost, words.needs_labels) == (pytest.approx(0.2), pytest.approx(80), True)
    assert last.running == pytest.approx(100 * words.running)
    assert llm.total == pytest.approx(0.05 * 400 + 3)
    assert people.total == 250
    assert report.labelling == 300
    assert report.break_even(words) in (0, None)
    assert report.documents == 40


def test_the_command_prints_the_best_point_and_its_settings(
    weighed: RegistryFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    matrix = tmp_path / "costs.yaml"
    matrix.write_text("good: {bad: 4.0}\n")
    words = [str(weighed.folder / "settings.yaml"), "--model", f"models:/{weighed.name}/1", "--volume", "5e6"]
    words += ["--cost-error", "0.4", "--cost-review", "0.25", "--cost-matrix", str(matrix)]
    words += ["--label-mix", "good=0.3,bad=0.7", "--llm-price", "3"]
    page = tmp_path / "roi.html"
    printed = run_spin(capsys, monkeypatch, "roi", *words, "--html", str(page))
    assert "The point with the least expected cost" in printed
    assert "language model: " in printed
    settings = yaml.safe_load(printed.partition("Settings of this point:")[2].partition("wrote")[0])
    assert set(settings) == {"choose", "classify", "decision"}
    assert "<polyline" in page.read_text()
    report = json.loads(run_spin(capsys, monkeypatch, "roi", *words, "--json"))
    best = report["bests"][report["best"]]
    assert best["choose"] == settings["choose"]
    assert best["interval"]["low"] <= best["total"] <= best["interval"]["high"]
    assert best["expected_total"] == min(point["expected_total"] for point in report["bests"])
    rows = [row for row in read_cells(printed) if row[0] in ("accuracy", "balanced", "cheapest")]
    expected = [float(row[6].replace(",", "")) for row in rows]
    assert len(expected) == len(report["bests"])
    assert expected == sorted(expected), "the least first, in the figure by which it is the least"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--volume", "0"], "--volume 0: expected a number above 0"),
        (["--volume", "1", "--label-mix", "good"], "expected a share of each class, such as spam=0.2,ham=0.8"),
        (
            ["--volume", "1", "--label-mix", "good=0.5", "--label-mix", "bad,worse=0.5"],
            "found 'good', 'bad,worse'; expected a share of 'bad', 'good'",
        ),
        (["--volume", "1", "--cost-label", "-1"], "--cost-label -1: expected a number from 0 on"),
        (["--volume", "1", "--llm-accuracy", "95"], "--llm-accuracy 95: expected a share from 0 to 1"),
        (["--volume", "1", "--cost-matrix", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
    ],
)
def test_terms_that_make_no_sense_are_refused(
    weighed: RegistryFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    words = [str(weighed.folder / "settings.yaml"), "--cost-error", "1", "--cost-review", "1"]
    words += ["--model", f"models:/{weighed.name}/1", *options]
    assert message in run_spin(capsys, monkeypatch, "roi", *words, status=2)


@pytest.mark.parametrize(
    "content", ["[1, 2]", "good: 3", "good: {bad: much}", "{good: {1: 2}}", "", "a: [", "yes: {a: 1}"]
)
def test_a_cost_matrix_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "costs.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match="costs.yaml"):
        read_cost_matrix(file)


def test_classes_without_documents_cannot_be_mixed_in(
    weighed: RegistryFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_good: Any = build_evaluation_set([row for row in ROWS if row["label"] == "good"])
    monkeypatch.setattr(weighed.registry, "evaluation_set", lambda: only_good)
    terms = RoiTerms(volume=1, cost_error=1, cost_review=1, label_mix={"good": 0.5, "bad": 0.5})
    with pytest.raises(UserError, match="no document of class 'bad', so its errors are unknown"):
        estimate_roi(weighed.settings, weighed.registry, terms, model=f"models:/{weighed.name}/1")


def test_a_band_keeps_documents_from_exiting_as_in_a_night(backbone_folder: Path) -> None:
    """The labels of every band are those of a classifier that is opened with it; full depth judges them."""
    texts = [row["text"] for row in ROWS]
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    backbone = load_backbone(settings)
    neurons = {FeatureColumn.parse(f"resid.{n:02d}.mean"): np.arange(8) for n in (1, 2, 3)}
    made = build_classifier(settings, backbone.digest, neurons, exits=[(1, 0.5), (2, 0.6)])

    def assemble(early: bool, band: float = 0.0) -> TrainedClassifier:
        return TrainedClassifier(
            settings, backbone.digest, made.label_space, made.training_result, "macro_f1",
            backbone=backbone, early=early, decision=DecisionSettings(abstain=band),
        )  # fmt: skip

    full = assemble(early=False)
    at_full_depth = full.predict_proba(texts)
    plain, exiting = operations._operate(full, assemble(early=True), "accuracy", texts, 1)
    assert (plain.exits, exiting.exits) == (False, True)
    exited = []
    for operation in (plain, exiting):
        for outcome in operation.outcomes[::3]:
            predictions = assemble(operation.exits, outcome.abstain).predict_all(texts)
            np.testing.assert_allclose(outcome.probabilities, at_full_depth, atol=1e-5)
            assert outcome.given.tolist() == predictions.probabilities.argmax(axis=1).tolist()
            assert outcome.abstains.tolist() == [label is None for label in predictions.labels]
            exited.append(int((predictions.exit_depth < 3).sum()))
    assert len(set(exited)) > 2, "fewer documents exit with a wider band"
    assert exited[-1] == 0
    seconds = [outcome.seconds for outcome in exiting.outcomes]
    assert seconds[-1] == pytest.approx(plain.outcomes[0].seconds), "no document exits within the widest band"


def test_classifiers_are_opened_without_exits_and_with_them(
    weighed: RegistryFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both without the band and the reasons of the settings, which would slow them; classifiers that are equal once."""
    opened: list[tuple[TrainedClassifier, TrainedClassifier]] = []
    monkeypatch.setattr(operations, "_operate", lambda full, early, *_: opened.append((full, early)) or [])
    tree = weighed.settings.model_dump(mode="json", exclude_unset=True)
    settings = parse_settings({**tree, "decision": {"abstain": 0.3}, "classify": {"reasons": 2}})
    assert list(operations.measure_operations(settings, weighed.registry, "1", ["text"])) == []
    summaries = [full.fitted.summary for full, _ in opened]
    assert all(summaries.count(summary) == 1 for summary in summaries)
    for full, early in opened:
        assert (full.early, early.early) == (False, True)
        assert {spin.reasons for spin in (full, early)} == {0}
        assert {spin.decision_rule.abstain for spin in (full, early)} == {0}


def test_a_multilabel_version_is_weighed_by_whole_lists(backbone_folder: Path, tmp_path: Path) -> None:
    """Exactly right lists count; a mix of classes makes no sense there."""
    rows = [{**row, "label": [row["label"]] + ["film"] * ("film" in row["text"])} for row in ROWS]
    uri = create_database(tmp_path / "mlflow.db")
    frozen = build_evaluation_set(rows)
    fixture = RegistryFixture(tmp_path, backbone_folder, uri, multilabel=True, evaluation_set=frozen)
    report = estimate_roi(fixture.settings, fixture.registry, TERMS, model=f"models:/{fixture.name}/1")
    rows = [row for row in rows if certifies(row["id"])]
    given = fixture.spin.predict([row["text"] for row in rows])
    wrong = np.mean([set(label or ()) != set(row["label"]) for label, row in zip(given, rows, strict=True)])
    plain = next(p for p in report.points if (p.choose, p.exits, p.abstain) == ("accuracy", False, 0))
    assert plain.errors == pytest.approx(wrong)
    mixed = replace(TERMS, label_mix={"good": 1.0})
    with pytest.raises(UserError, match="have lists of classes, whose shares do not add up to 1"):
        estimate_roi(fixture.settings, fixture.registry, mixed, model=f"models:/{fixture.name}/1")
