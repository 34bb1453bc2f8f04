"""Trials of int8: what a plain classifier loses by it decides."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold

from spin import SpinClassifier, TrainedClassifier, precision_trial
from spin.activations.engines.int8_rounding import measure_scales
from spin.activations.extract import extract
from spin.activations.features import Features
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.precision_trial import LabelledTexts, PrecisionTrial, settle_int8
from spin.settings import BackboneSettings
from tests.spin.backbone.test_model import FAMILIES
from tests.support import tiny

pytestmark = pytest.mark.slow

CLASSES = ("good", "bad")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> BackboneSettings:
    model = tiny.save_bert(tmp_path_factory.mktemp("backbone"))
    return BackboneSettings(model=str(model), engine="openvino", device="cpu")


@pytest.fixture(autouse=True)
def small_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_trial, "SMALLEST_CORPUS", 100)
    monkeypatch.setattr(precision_trial, "_FEWEST", 90)


def make_labelled(count: int = 200, *, multilabel: bool = False) -> LabelledTexts:
    """Texts of two classes; in a multi-label task every third has both and every fifth none."""
    documents = tiny.make_documents(count, CLASSES)
    found = np.array([[row["label"] == name for name in CLASSES] for row in documents])
    if multilabel:
        found[::3], found[::5] = True, False
    return LabelledTexts([row["text"] for row in documents], found, multilabel, np.arange(count, dtype=np.uint64) // 2)


def settle(
    settings: BackboneSettings, labelled: LabelledTexts, scales: Int8Scales | None = None
) -> tuple[Int8Scales | None, PrecisionTrial | None]:
    backbone = load_backbone(settings)

    def measure() -> Int8Scales:
        return measure_scales(backbone, labelled.texts) if scales is None else scales

    return settle_int8(settings, backbone, len(labelled.texts), measure, labelled.draw)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_scores_are_those_of_a_ridge_regression_by_a_plain_loop(
    settings: BackboneSettings, multilabel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its penalty is one here, so that the loop need not choose it; every fold is standardised by its own rows."""
    monkeypatch.setattr(precision_trial, "_STRENGTHS", np.array([100.0]))
    labelled = make_labelled(multilabel=multilabel)
    read: list[Features] = []
    monkeypatch.setattr(precision_trial, "extract", lambda *args: (read.append(extract(*args)), read[-1])[1])
    _, trial = settle(settings, labelled)
    assert trial is not None
    drawn = labelled.draw(90)
    assert trial.documents == len(drawn.texts) == 67
    assert len(trial.scores) == len(read) == 2
    for features, score in zip(read, trial.scores.values(), strict=True):
        assert set(map(str, features.columns)) == {"resid.01.mean", "resid.02.mean", "resid.03.mean"}
        x = np.concatenate(list(features.columns.values()), axis=1).astype(np.float64)
        given = np.zeros_like(drawn.classes)
        for train, held_out in GroupKFold(5).split(x, groups=drawn.groups):
            mean, deviation = x[train].mean(0), x[train].std(0)
            deviation[deviation < 1e-5] = 1
            ridge = Ridge(100.0).fit((x[train] - mean) / deviation, drawn.classes[train].astype(float))
            found = ridge.predict((x[held_out] - mean) / deviation)
            given[held_out] = found > 0.5 if multilabel else np.eye(2)[found.argmax(1)]
        assert score == pytest.approx(f1_score(drawn.classes, given, average="micro"))


@pytest.mark.parametrize(("of_int8", "taken"), [(0.82, True), (0.7981, True), (0.7979, False)])
def test_int8_may_lose_two_tenths_of_a_point(
    settings: BackboneSettings, monkeypatch: pytest.MonkeyPatch, of_int8: float, taken: bool
) -> None:
    def score(backbone: Backbone, *_: Any) -> float:
        return of_int8 if backbone.precision == "int8" else 0.8

    monkeypatch.setattr(precision_trial, "_held_out_score", score)
    scales, trial = settle(settings, make_labelled())
    assert trial is not None
    assert (scales is not None, trial.taken) == (taken, taken)
    assert list(trial.scores.values()) == [0.8, of_int8]
    outcome = "taken" if taken else "not taken"
    assert f"int8 is {outcome}: micro-F1 of a plain classifier on 67 documents: " in str(trial)
    assert str(trial).endswith(f" 80.0, int8 {100 * of_int8:.1f}")


@pytest.mark.parametrize("changes", [{"engine": "torch"}, {"dtype": "float32"}])
def test_int8_is_not_tried_against_the_settings(settings: BackboneSettings, changes: dict[str, Any]) -> None:
    assert settle(settings.model_copy(update=changes), make_labelled()) == (None, None)


def test_int8_is_not_tried_on_few_documents_decoders_and_old_processors(
    settings: BackboneSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert settle(settings, make_labelled(99)) == (None, None)
    [decoders] = [family for family in FAMILIES if family.name == "gpt2"]
    folder = tiny.save_backbone(tmp_path, decoders.config(), tiny.build_tokenizer(special=False))
    decoder = settings.model_copy(update={"model": str(folder)})
    assert settle(decoder, make_labelled()) == (None, None)
    monkeypatch.setattr(precision_trial, "adds_int8_products", lambda: False)
    assert settle(settings, make_labelled()) == (None, None)


def test_what_is_asked_for_in_int8_is_measured_without_a_trial(settings: BackboneSettings) -> None:
    scales, trial = settle(settings.model_copy(update={"dtype": "int8"}), make_labelled(20))
    assert scales is not None
    assert trial is None


def test_an_engine_that_cannot_compute_int8_is_logged(
    settings: BackboneSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("openvino in int8 crashed")

    labelled = make_labelled()
    backbone = load_backbone(settings)
    monkeypatch.setattr(precision_trial, "load_backbone", refuse)
    with caplog.at_level(logging.WARNING):
        found = settle_int8(settings, backbone, 200, lambda: measure_scales(backbone, labelled.texts), labelled.draw)
    assert found == (None, None)
    assert "int8 is not tried: openvino in int8 crashed" in caplog.text


def test_the_estimator_keeps_to_its_trial_when_it_is_saved(
    settings: BackboneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_trial, "_ALLOWED_LOSS", 1.0)
    labelled = make_labelled()
    labels = [CLASSES[row.argmax()] for row in labelled.classes]
    spin = SpinClassifier(backbone=settings).fit(labelled.texts, labels)
    assert spin.trained_.scales is not None
    assert spin.get_params()["backbone"].dtype == "auto"
    spin.save(tmp_path / "saved")
    loaded = TrainedClassifier.load(tmp_path / "saved", backbone=settings)
    assert loaded.backbone.precision == "int8"
    np.testing.assert_array_equal(loaded.predict_logits(labelled.texts), spin.predict_logits(labelled.texts))
