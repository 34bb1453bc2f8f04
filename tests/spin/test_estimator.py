"""SpinClassifier behaves as scikit-learn's estimators do, on texts."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)
from sklearn.utils.validation import check_is_fitted

import spin.estimator
import spin.fit
from spin import SpinClassifier, TrainedClassifier
from spin.errors import UserError
from spin.labels.split_groups import hash_text
from spin.labels.splits import assign_split
from spin.settings import BackboneSettings
from tests.support import tiny

TEXTS = [row["text"] for row in tiny.make_documents(60, ("good", "bad", "plain"))]
NAMES = [row["label"] for row in tiny.make_documents(60, ("good", "bad", "plain"))]
QUICK: dict[str, Any] = {
    "sites": ("resid.01",),
    "poolings": ("mean",),
    "probe": {"penalties": 2, "max_extra": 0},
    "search": {"etas": [0.5], "max_share": 1, "strengths": [1], "network": "off", "words": "off"},
}
WORDS = {**QUICK["search"], "words": "on"}


@pytest.fixture(scope="module")
def unfitted(backbone_folder: Path) -> SpinClassifier:
    return SpinClassifier(BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"), **QUICK)


@pytest.fixture(scope="module")
def fitted(unfitted: SpinClassifier) -> SpinClassifier:
    """A classifier of the labels 2, 10 and 30."""
    return clone(unfitted).fit(TEXTS, with_values([2, 10, 30]))


def with_values(values: list[Any]) -> list[Any]:
    """The labels of `TEXTS`, with values in place of the names."""
    return [dict(zip(("good", "bad", "plain"), values, strict=True))[name] for name in NAMES]


@pytest.mark.parametrize(
    "check",
    [
        check_mixin_order,
        check_estimator_cloneable,
        check_estimator_repr,
        check_estimator_tags_renamed,
        check_valid_tag_types,
        check_no_attributes_set_in_init,
        check_parameters_default_constructible,
        check_get_params_invariance,
        check_set_params,
    ],
)
def test_the_checks_of_scikit_learn_that_read_no_data_pass(unfitted: SpinClassifier, check: Any) -> None:
    check("SpinClassifier", clone(unfitted))


def test_parameters_are_stored_unchanged_and_cloned(backbone_folder: Path) -> None:
    given: dict[str, Any] = {
        **QUICK,
        "backbone": str(backbone_folder),
        "choose": "cheapest",
        "decision": {"abstain": 0.1},
    }
    before = copy.deepcopy(given)
    spin = SpinClassifier(**given)
    assert all(getattr(spin, name) is value for name, value in given.items())
    assert given == before
    assert clone(spin).get_params() == spin.get_params()
    assert "decision={'abstain': 0.1}" in repr(spin)
    assert "choose" not in repr(clone(spin).set_params(choose="accuracy"))


def test_it_is_a_classifier_of_text(unfitted: SpinClassifier) -> None:
    tags = get_tags(unfitted)
    assert is_classifier(unfitted)
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert tags.classifier_tags.multi_label


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"choose": "best"}, "'choose' is 'best': .*'accuracy', 'balanced' or 'cheapest'"),
        ({"search": {"word": "off"}}, "unknown setting 'search.word'"),
        ({"metric": "kappa"}, "'metric' is 'kappa': .*'macro_f1'"),
        ({"poolings": ["middle"]}, "'poolings.0' is 'middle'"),
        ({"sites": "ffn"}, "'sites' is 'ffn'"),
        ({"decision": {"max_error": 0.1}}, "decision.max_error: only the test documents"),
    ],
)
def test_parameters_are_checked_at_once_and_before_weights_load(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpinClassifier("no such model", **parameters)
    spin = SpinClassifier("no such model").set_params(**parameters)
    with pytest.raises(UserError, match=message):
        spin.fit(TEXTS, NAMES)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_logits", "explain", "save"])
def test_an_unfitted_classifier_is_told_in_both_conventions(unfitted: SpinClassifier, method: str) -> None:
    for kind in (UserError, NotFittedError):
        with pytest.raises(kind, match="the classifier is not fitted; call fit"):
            getattr(unfitted, method)(TEXTS)
    with pytest.raises(NotFittedError):
        check_is_fitted(unfitted)
    assert not hasattr(unfitted, "classes_")


@pytest.mark.parametrize(
    ("values", "label_type"),
    [([2.5, 10.0, 30.0], "float"), ([True, False, True], "bool"), (["a", "b", "c"], "str")],
)
def test_labels_keep_their_type(unfitted: SpinClassifier, tmp_path: Path, values: list[Any], label_type: str) -> None:
    """In `classes_`, in predictions and in a saved folder; strings inside."""
    y = with_values(values)
    spin = clone(unfitted).fit(TEXTS, np.array(y))
    spin.save(tmp_path)
    loaded = SpinClassifier.load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["metadata"]["label_type"] == label_type
    for classifier in (spin, loaded):
        predicted = classifier.predict(TEXTS)
        assert classifier.classes_.tolist() == sorted(set(values))
        assert isinstance(predicted, np.ndarray)
        assert predicted.dtype == classifier.classes_.dtype == np.array(values).dtype
        assert classifier.score(TEXTS, y) == np.mean(predicted == y) > 0.4
        assert set(classifier.trained_.predict(TEXTS)) == {str(label) for label in set(predicted.tolist())}
    assert loaded.predict(TEXTS).tolist() == spin.predict(TEXTS).tolist()


def test_classes_are_in_the_order_of_their_values(fitted: SpinClassifier) -> None:
    """As scikit-learn's measures take the columns of probabilities to be; as strings 10 would come before 2."""
    y = with_values([2, 10, 30])
    assert fitted.classes_.tolist() == [2, 10, 30]
    assert fitted.score(TEXTS, y) == accuracy_score(y, fitted.predict(TEXTS))
    probabilities = fitted.predict_proba(TEXTS)
    assert log_loss(y, probabilities) < log_loss(with_values([10, 2, 30]), probabilities)


def test_abstentions_are_none_and_count_as_wrong(fitted: SpinClassifier) -> None:
    y = with_values([2, 10, 30])
    margins = np.diff(np.sort(fitted.predict_proba(TEXTS), axis=1)[:, -2:]).ravel()
    strict = copy.deepcopy(fitted).set_params(decision={"abstain": float(np.median(margins))})
    predicted = strict.predict(TEXTS)
    assert predicted.dtype == object
    assert 0 < sum(label is None for label in predicted) < len(TEXTS)
    assert {type(label) for label in predicted} == {int, type(None)}
    right = [label == true for label, true in zip(predicted, y, strict=True)]
    assert strict.score(TEXTS, y) == np.mean(right)
    weights = np.arange(len(y))
    assert strict.score(TEXTS, y, sample_weight=weights) == np.average(right, weights=weights)
    with pytest.raises(UserError, match="labels of type str; the classifier was fitted on int"):
        fitted.score(TEXTS, list(map(str, y)))


def test_several_labels_are_lists_of_their_type(unfitted: SpinClassifier, tmp_path: Path) -> None:
    y = [[1, 2] if name == "good" else [2] if name == "bad" else [] for name in NAMES]
    spin = clone(unfitted).fit(TEXTS, y)
    spin.save(tmp_path)
    for classifier in (spin, SpinClassifier.load(tmp_path)):
        predicted = classifier.predict(TEXTS)
        assert isinstance(predicted, list)
        assert {label for labels in predicted for label in labels} == {1, 2}
        right = [labels == true for labels, true in zip(predicted, y, strict=True)]
        assert classifier.score(TEXTS, [list(reversed(labels)) for labels in y]) == np.mean(right)


def test_choose_decision_and_early_may_be_changed_after_fit(fitted: SpinClassifier, tmp_path: Path) -> None:
    """Also of a classifier whose backbone was truncated for a shallower choice; nothing is fitted again."""
    fitted.save(tmp_path)
    spin = SpinClassifier.load(tmp_path, choose="cheapest")
    spin.predict(TEXTS[:1])
    for choose in ("accuracy", "balanced", "cheapest"):
        spin.set_params(choose=choose)
        expected = TrainedClassifier.load(tmp_path, choose=choose)
        np.testing.assert_array_equal(spin.predict_proba(TEXTS), expected.predict_proba(TEXTS))
    thresholds = {"2": 0.98, "10": 0.01}
    spin.set_params(decision={"thresholds": thresholds}, early=True)
    assert spin.trained_.early
    assert spin.trained_.decision.thresholds == thresholds
    assert sum(spin.predict(TEXTS) == 2) < sum(fitted.predict(TEXTS) == 2)


def test_a_folder_is_loaded_with_settings_as_dictionaries(fitted: SpinClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    assert SpinClassifier.load(tmp_path, decision={"abstain": 0.2}).trained_.decision.abstain == 0.2
    for wrong, message in ({"decision": {"abstained": 1}}, "'abstained'"), ({"choose": "best"}, "accuracy, balanced"):
        with pytest.raises(UserError, match=message):
            SpinClassifier.load(tmp_path, **wrong)


@pytest.mark.slow
def test_it_works_in_a_pipeline_a_grid_search_and_a_cross_validation(unfitted: SpinClassifier) -> None:
    pipeline = make_pipeline(FunctionTransformer(lambda texts: [text.upper().lower() for text in texts]), unfitted)
    grid = [{"spinclassifier__choose": ["cheapest"]}, {"spinclassifier__search": [WORDS]}]
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(TEXTS, with_values([2, 10, 30]))
    assert search.best_score_ == max(search.cv_results_["mean_test_score"]) > 0.4
    assert set(search.predict(TEXTS)) <= {2, 10, 30}
    scores = cross_val_score(unfitted, TEXTS, NAMES, cv=2, scoring="neg_log_loss", error_score="raise")
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("duplicate", ["pickle", "joblib", "deepcopy"])
def test_a_classifier_that_has_predicted_can_be_copied(fitted: SpinClassifier, tmp_path: Path, duplicate: str) -> None:
    """Without the backbone, which is loaded again, and without texts."""
    expected = fitted.predict_proba(TEXTS)
    if duplicate == "joblib":
        joblib.dump(fitted, tmp_path / "model")
        copied = joblib.load(tmp_path / "model")
    else:
        written = pickle.dumps(fitted)
        assert TEXTS[0].encode() not in written
        assert len(written) < 200_000
        copied = pickle.loads(written) if duplicate == "pickle" else copy.deepcopy(fitted)
    np.testing.assert_array_equal(copied.predict_proba(TEXTS), expected)
    assert copied.get_params().keys() == fitted.get_params().keys()


def test_a_generator_gives_the_predictions_of_the_list(fitted: SpinClassifier) -> None:
    for method in (fitted.predict, fitted.predict_proba, fitted.predict_logits):
        np.testing.assert_array_equal(method(text for text in TEXTS), method(TEXTS))
    with pytest.raises(UserError, match="text 1 is ''; expected text that is not empty"):
        fitted.predict(text for text in ("fine", ""))


def test_columns_and_arrays_are_read_and_tables_refused(unfitted: SpinClassifier, fitted: SpinClassifier) -> None:
    y = with_values([2, 10, 30])
    frame = pd.DataFrame({"text": TEXTS, "label": y}, index=range(100, 160))
    expected = fitted.predict_logits(TEXTS)
    for texts, labels in (
        (np.array(TEXTS), np.array(y, np.int32)), (frame["text"].astype("string"), frame["label"].astype("Int64"))
    ):  # fmt: skip
        spin = clone(unfitted).fit(texts, labels)
        np.testing.assert_array_equal(spin.predict_logits(texts), expected)
        assert spin.classes_.tolist() == [2, 10, 30]
    refused = r"found a table with the columns text; expected one column of texts, such as df\['text'\]"
    for method in (fitted.predict, fitted.predict_proba, lambda texts: unfitted.fit(texts, ["a"])):
        with pytest.raises(UserError, match=refused):
            method(frame[["text"]])
        with pytest.raises(UserError, match=r"found an array of shape \(60, 1\)"):
            method(np.array(TEXTS)[:, None])


def test_a_fit_shows_a_bar_per_step_if_asked(unfitted: SpinClassifier, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise it prints nothing."""
    clone(unfitted).fit(TEXTS, NAMES)
    assert capsys.readouterr().err == ""
    clone(unfitted).fit(TEXTS, NAMES, progress=True)
    shown = capsys.readouterr().err
    assert [line.split()[0] for line in shown.splitlines()] == ["backbone", "documents", "probes", "fits"]
    assert "60/60" in shown
    assert "1/1" in shown


@pytest.mark.usefixtures("many_labels")
def test_a_rare_class_is_not_refused_for_its_hash(unfitted: SpinClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash has all three of its texts train."""
    texts = [f"text {number}" for number in range(1_100)]
    rare = [text for text in texts if assign_split(hash_text(text), unfitted.seed, 0.15, 0.0) == "train"][:3]

    def stop(settings: BackboneSettings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spin.estimator, "load_backbone", stop)
    with pytest.raises(KeyboardInterrupt):  # the labels are checked before
        clone(unfitted).fit(texts, ["rare" if text in rare else "ab"[len(text) % 2] for text in texts])


@pytest.mark.slow
@pytest.mark.parametrize("step", ["fit_ridge", "integrate"])
def test_few_texts_are_fitted_in_one_thread(
    unfitted: SpinClassifier, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The threads are as many as before afterwards, also where the fit fails."""
    seen, before = [], torch.get_num_threads()

    def stop(*arguments: Any, **options: Any) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(spin.fit, step, stop)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            clone(unfitted).fit(TEXTS, NAMES)
        assert (seen, torch.get_num_threads()) == ([1], 2)
        monkeypatch.setattr(spin.fit, "VERY_FEW_LABELS", 10)
        with pytest.raises(KeyboardInterrupt):
            clone(unfitted).fit(TEXTS, NAMES)
        assert seen == [1, 2]
    finally:
        torch.set_num_threads(before)
