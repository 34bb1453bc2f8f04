"""Fitting the word regression: held-out logits know nothing of their rows, and rare terms are not kept."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import hstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from spin.heads.calibration import fit_temperature, log_loss
from spin.integrate import fit_words as module
from spin.integrate.fit_words import WordFit, fit_words
from spin.labels.cross_validation import Fold, make_folds
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.training_data import TrainingData
from spin.words.vocabulary import UNITS
from tests.support import tiny

CLASSES = ("bad", "good", "plain")


def make_data(
    count: int = 240, *, folds: int = 1, multilabel: bool = False, kind: str = "none"
) -> tuple[list[str], TrainingData]:
    """Texts whose words show their class most of the time, a fifth of them in no fold."""
    draw = random.Random(0)
    documents = tiny.make_documents(count, CLASSES)
    texts = [d["text"] for d in documents]
    label_space = LabelSpace(CLASSES, multilabel)
    y: Targets = np.array([CLASSES.index(d["label"]) for d in documents])
    for row in draw.sample(range(count), count // 6):
        y[row] = draw.randrange(3)
    if multilabel:
        y = np.stack([y == 0, y == 1, (y == 2) | (np.arange(count) % 7 == 0)], axis=1)
    train, valid = np.arange(0, count // 2), np.arange(count // 2, count * 4 // 5)
    parts = (Fold(train, valid),) if folds == 1 else make_folds(label_space, y, train, valid, 0)[:folds]
    return texts, TrainingData(y, tuple(parts), label_space, "accuracy", kind)


def read_from(texts: list[str]) -> module.ReadTexts:
    return lambda rows: [texts[row] for row in rows]


def fit(texts: list[str], data: TrainingData) -> WordFit:
    fitted = fit_words(read_from(texts), data)
    assert fitted is not None
    return fitted


def refit(
    texts: list[str], data: TrainingData, train: NDArray[np.int64], rows: NDArray[np.int64], strength: float
) -> NDArray[np.floating]:
    """Logits of `rows` by scikit-learn's pipeline on `train`, which has never seen another text."""
    columns, others = [], []
    for unit, arguments in UNITS.items():
        read = [text[:1000] for text in texts] if unit == "characters" else texts
        counter = CountVectorizer(min_df=3, **arguments).fit([read[row] for row in train])
        counts = counter.transform(read)
        transformer = TfidfTransformer(sublinear_tf=True).fit(counts[train])
        columns.append(transformer.transform(counts[train]))
        others.append(transformer.transform(counts[rows]))
    X, Z = hstack(columns).tocsr(), hstack(others).tocsr()
    weight = "balanced" if data.class_weights == "balanced" else None

    def one(y: NDArray[np.integer]) -> NDArray[np.floating]:
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=10000, class_weight=weight)
        return model.fit(X, y).decision_function(Z)

    if data.label_space.multilabel:
        return np.stack([one(has) for has in data.y[train].T], axis=1)
    return one(data.y[train])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "balanced"])
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("folds", [1, 3])
def test_logits_are_those_of_an_independent_fit(multilabel: bool, folds: int, kind: str) -> None:
    """Held-out ones by training rows alone; those of the final regression by all labelled rows.

    Whatever penalties were tried before: the stack takes both for logits of the same regression.
    """
    texts, data = make_data(multilabel=multilabel, folds=folds, kind=kind)
    fitted = fit(texts, data)
    for fold, held_out in zip(data.folds, fitted.held_out, strict=True):
        expected = refit(texts, data, fold.train, fold.valid, fitted.strength)
        np.testing.assert_allclose(held_out, expected, atol=1e-2 * np.abs(expected).max())
    test = np.setdiff1d(np.arange(len(texts)), data.rows)
    expected = refit(texts, data, data.rows, test, fitted.strength)
    actual = fitted.regression.logits([texts[row] for row in test])
    np.testing.assert_allclose(actual, expected, atol=1e-2 * np.abs(expected).max())


@pytest.mark.slow
def test_long_texts_are_read_in_training_as_in_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half of the texts the class stands after the characters that are counted, where words count alone."""
    texts, data = make_data()
    texts = [f"{'the film was on it ' * 60}{text}" if row % 2 else text for row, text in enumerate(texts)]
    fitted = fit(texts, data)
    [fold] = data.folds
    expected = refit(texts, data, fold.train, fold.valid, fitted.strength)
    np.testing.assert_allclose(fitted.held_out[0], expected, atol=1e-2 * np.abs(expected).max())
    expected = refit(texts, data, data.rows, np.arange(len(texts)), fitted.strength)
    np.testing.assert_allclose(fitted.regression.logits(texts), expected, atol=1e-2 * np.abs(expected).max())


def test_a_class_that_no_row_or_every_row_has_is_as_unlikely_or_likely_as_that() -> None:
    """Of several labels per document; a fold may be such although all documents together are not."""
    texts, data = make_data(multilabel=True)
    [fold] = data.folds
    y = data.y.copy()
    y[fold.train, 0], y[fold.train, 1] = True, False
    held_out = fit(texts, replace(data, y=y)).held_out[0]
    expected = np.log(len(fold.train) + 1)
    np.testing.assert_allclose(held_out[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(held_out[:, 1], -expected, rtol=1e-5)


def test_two_exclusive_classes_have_opposite_logits() -> None:
    texts, data = make_data()
    two = replace(data, y=np.minimum(data.y, 1), label_space=LabelSpace(("a", "b")))
    fitted = fit(texts, two)
    expected = refit(texts, two, two.rows, np.arange(len(texts)), fitted.strength)
    actual = fitted.regression.logits(texts)
    np.testing.assert_allclose(actual[:, 1] - actual[:, 0], expected, atol=1e-2 * np.abs(expected).max())
    np.testing.assert_allclose(actual[:, 1], -actual[:, 0], rtol=1e-3, atol=1e-3)


def test_the_strength_has_the_least_held_out_log_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each strength by itself, at its best temperature."""
    strengths = (1e-4, 1.0, 1e4)
    monkeypatch.setattr(module, "STRENGTHS", strengths)
    texts, data = make_data(folds=3)
    chosen = fit(texts, data)
    assert chosen.strength == 1.0
    y = data.y[np.concatenate([fold.valid for fold in data.folds])]
    losses = {}
    for strength in strengths:
        monkeypatch.setattr(module, "STRENGTHS", (strength,))
        logits = np.concatenate(fit(texts, data).held_out)
        losses[strength] = log_loss(logits / fit_temperature(logits, y, data.label_space), y, data.label_space)
    assert losses[chosen.strength] <= min(losses.values()) + 1e-3


def test_a_regression_that_does_not_converge_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the shipped number of steps it converges at every penalty."""
    texts, data = make_data()
    fit(texts, data)
    assert caplog.messages == []
    monkeypatch.setattr(module, "_STEPS", 1)
    fit(texts, data)
    assert "words: the regression with C = 1 has not converged in 1 steps" in caplog.messages


def test_labels_of_validation_and_test_rows_do_not_affect_held_out_logits() -> None:
    texts, data = make_data()
    [fold] = data.folds
    other = data.y.copy()
    other[np.setdiff1d(np.arange(len(other)), fold.train)] = 0
    other[fold.valid[:2]] = (1, 2)
    one, two = fit(texts, data), fit(texts, replace(data, y=other))
    if one.strength == two.strength:
        np.testing.assert_array_equal(one.held_out[0], two.held_out[0])


def test_rare_strings_and_texts_outside_the_folds_are_not_stored() -> None:
    """A string in two labelled documents is rare; one in all test documents was never there."""
    texts, data = make_data()
    test = np.setdiff1d(np.arange(len(texts)), data.rows)
    texts = [f"{text} quixotic" if row in test else text for row, text in enumerate(texts)]
    for row in data.rows[:2]:
        texts[row] += " zyzzyva"
    terms = {term for vocabulary in fit(texts, data).regression.vocabularies for term in vocabulary.terms}
    assert "lovely" in terms
    assert not {"quixotic", "zyzzyva", "quix", "zyzz"} & terms


def test_texts_without_common_terms_have_no_regression() -> None:
    texts, data = make_data()
    assert fit_words(read_from([chr(0x4E00 + row) for row in range(len(texts))]), data) is None


def test_bytes_hold_the_whole_fit() -> None:
    texts, data = make_data(folds=3)
    fitted = fit(texts, data)
    loaded = WordFit.from_bytes(fitted.to_bytes())
    assert loaded.strength == fitted.strength
    for actual, expected in zip(loaded.held_out, fitted.held_out, strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(loaded.regression.logits(texts), fitted.regression.logits(texts))


def test_long_corpora_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By documents and by characters; every validation row has logits all the same, in the order of the fold."""
    texts, data = make_data()
    order = np.random.default_rng(0).permutation(data.folds[0].valid)
    data = replace(data, folds=(Fold(data.folds[0].train, order),))
    read: list[int] = []

    def recorded(rows: NDArray[np.int64]) -> list[str]:
        assert (np.diff(rows) > 0).all()
        read.append(len(rows))
        return [texts[row] for row in rows]

    counted: list[int] = []
    fit_path = module._fit_path
    monkeypatch.setattr(module, "_fit_path", lambda X, *rest: (counted.append(X.shape[0]), fit_path(X, *rest))[1])
    monkeypatch.setattr(module, "MOST_ROWS", 60)
    monkeypatch.setattr(module, "MOST_CHARACTERS", sum(map(len, texts)) * 40 // len(texts))
    fitted = fit_words(recorded, data)
    assert fitted is not None
    monkeypatch.setattr("spin.words.word_regression._PART", 7)
    in_parts = fit_words(read_from(texts), data)
    assert in_parts is not None
    np.testing.assert_allclose(in_parts.held_out[0], fitted.held_out[0], atol=1e-5)
    assert len(read) == 1
    assert len(order) < read[0] <= len(order) + 60
    assert max(counted) <= 40
    assert fitted.held_out[0].shape == (len(order), 3)
    right = (fitted.held_out[0].argmax(1) == data.y[order]).mean()
    assert right > 0.5


def test_many_classes_have_fewer_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, data = make_data()
    monkeypatch.setattr(module, "MOST_WEIGHTS", 3 * 2 * 10)
    assert [len(v.terms) for v in fit(texts, data).regression.vocabularies] == [10, 10]


def test_a_class_that_a_sample_lacks_is_unlikely(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, data = make_data()
    y = np.where(np.isin(np.arange(len(texts)), data.folds[0].train), np.minimum(data.y, 1), data.y)
    fitted = fit(texts, replace(data, y=y))
    assert (fitted.held_out[0].argmax(1) < 2).all()
    assert np.isfinite(fitted.held_out[0]).all()
