"""Classes and targets, one a document or a list of them: what can be learned, and names that come back; the metrics."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from spin.errors import UserError
from spin.labels.label_space import Label, LabelSpace
from spin.labels.metrics import score
from spin.settings import METRICS

ONE, ANY = LabelSpace(("a", "b", "c")), LabelSpace(("a", "b", "c"), multilabel=True)
TWO_EACH = ["train", "train", "valid", "valid"]

names = st.sampled_from(ONE.classes)
lists = st.lists(st.lists(names, max_size=4), max_size=8)
rates = st.floats(0, 1)


def booleans(n: int, k: int, rate: float, seed: int) -> NDArray[np.bool_]:
    """(n, k), true at a rate: columns and rows that are all true or all false among them."""
    return np.random.default_rng(seed).random((n, k)) < rate


# What can be learned


def test_classes_are_sorted() -> None:
    """Of strings and of lists, empty ones among them; the order of the documents does not matter."""
    assert LabelSpace.of(["b", "a", "b", "a"], TWO_EACH) == LabelSpace(("a", "b"))
    assert LabelSpace.of(np.array(["b", "a", "b", "a"]), TWO_EACH) == LabelSpace(("a", "b"))  # type: ignore[arg-type]
    several = [["c", "a"], ["b"], ["b", "c", "a"], []]
    assert LabelSpace.of(several, TWO_EACH) == LabelSpace.of(several[::-1], TWO_EACH[::-1]) == ANY
    assert (len(ANY), ANY.multilabel, ONE.multilabel) == (3, True, False)


MISTAKES: dict[str, tuple[list[Label], list[str], str]] = {
    "none": ([], [], "labels: found no documents; expected at least two classes"),
    "empty lists": ([[], []], ["train", "valid"], "labels: found no class in any list; expected at least two classes"),
    "one": (list("aa"), ["train", "valid"], "labels: found one class only, 'a'; expected at least two classes"),
    "one in lists": ([["a"], ["a"], []], ["train", "valid", "test"], "labels: found one class only, 'a'"),
    "mixed": (
        ["a", ["a"]],
        ["train", "valid"],
        "labels: found strings and lists; expected one class per document, or a",
    ),
    "mixed, empty": (["a", []], ["train", "valid"], "labels: found strings and lists"),
    "rare": (list("aab"), ["train", "valid", "train"], "labels: class 'b' has 1 document; label more of it or leave"),
    # twice in one list is one document still
    "rare in lists": ([["a"], ["b", "b", "a"], []], ["train", "valid", "train"], "labels: class 'b' has 1 document"),
    "not in valid": (list("aabb"), ["train", "valid", "train", "train"], "class 'b' has no document in the valid spl"),
    "not in train": (list("aabb"), ["train", "valid", "valid", "test"], "class 'b' has no document in the train spl"),
    "no valid": (
        [["a"], ["b"], ["a", "b"]],
        ["train"] * 3,
        "labels: class 'a', 'b' has no document in the valid split",
    ),
    "no train": (
        [["a"], ["b"], ["a", "b"]],
        ["valid"] * 3,
        "labels: class 'a', 'b' has no document in the train split",
    ),
    "many": (list("abcdee"), ["train"] * 5 + ["valid"], "labels: class 'a', 'b', 'c' and 1 more has 1 document"),
    "everywhere": (
        [["a", "b"], ["a"], ["a", "b"], []],
        TWO_EACH,
        "labels: class 'a' is in every list of the train split; leave it out, or add documents without it",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_labels_that_cannot_be_learned(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds, one class, a class of one document, that a split lacks or that tells no document apart."""
    monkeypatch.setattr("spin.labels.splits.CROSS_VALIDATION_BELOW", 0)
    labels, splits, said = MISTAKES[case]
    with pytest.raises(UserError) as raised:
        LabelSpace.of(labels, splits)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_few_labels_are_one_pool() -> None:
    """It does not matter on which side a document is, but each class needs two there, and not all of them."""
    assert LabelSpace.of(list("aabb"), ["train", "train", "valid", "valid"]).classes == ("a", "b")
    with pytest.raises(UserError, match="class 'b' has fewer than 2 documents in the train and valid split"):
        LabelSpace.of(list("aabb"), ["train", "valid", "valid", "test"])
    with pytest.raises(UserError, match="class 'a' is in every list of the train and valid split"):
        LabelSpace.of([["a"], ["a", "b"], ["a", "b"]], ["train", "valid", "valid"])


# Labels to targets and back


def test_targets_of_labels() -> None:
    """An index, or a row of booleans; a string is a list of one where lists are expected, as in a CSV file."""
    one = ONE.index(["c", "a"])
    assert (one.tolist(), one.dtype) == ([2, 0], np.int64)
    several = ANY.index([["c", "a", "c"], [], "b"])
    assert several.dtype == np.bool_
    np.testing.assert_array_equal(several, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert (ONE.index([]).shape, ANY.index([]).shape) == ((0,), (0, 3))


@pytest.mark.parametrize(
    ("label_space", "labels", "said"),
    [
        (ONE, ["a", "z", "y"], "label 'y' is not one of the model's: a, b, c"),
        (ANY, [["a"], ["b", "z"]], "label 'z' is not one of the model's: a, b, c"),
        (ONE, ["a", ["b"]], "found a list of classes; the model gives each document one class, expected a string"),
        (ONE, [[]], "found a list of classes"),
    ],
)
def test_labels_that_the_classes_lack(label_space: LabelSpace, labels: list[Label], said: str) -> None:
    """A name that is none of them, the first in order, and a list where there is one class a document."""
    with pytest.raises(UserError, match=said):
        label_space.index(labels)


@given(st.lists(names, max_size=8), lists)
def test_names_come_back(one: list[str], several: list[list[str]]) -> None:
    """As they were given; of lists, each class once and in order."""
    assert ONE.names(ONE.index(one)) == one
    assert ANY.names(ANY.index(several)) == [sorted(set(label)) for label in several]


@given(st.lists(names, max_size=8))
def test_the_indicator_is_that_of_lists_of_one(one: list[str]) -> None:
    """In a task of one class a document; in a multi-label task it is the targets themselves."""
    several = ANY.index([[name] for name in one])
    for found in (ONE.indicator(ONE.index(one)), ANY.indicator(several)):
        assert (found.shape, found.dtype) == ((len(one), 3), np.bool_)
        np.testing.assert_array_equal(found, several)


def test_what_logits_say() -> None:
    """The largest, or each that is above zero; probabilities over the classes, or of each by itself."""
    logits = np.array([[-1.0, -2.0, -3.0], [1.0, 3.0, 2.0], [0.5, 0.0, -0.5]])
    np.testing.assert_array_equal(ONE.predict(logits), [0, 1, 0])
    np.testing.assert_array_equal(ANY.predict(logits), [[0, 0, 0], [1, 1, 1], [1, 0, 0]])
    np.testing.assert_allclose(ONE.probabilities(logits), softmax(logits, axis=1))
    np.testing.assert_allclose(ANY.probabilities(logits), expit(logits))
    assert ANY.names(ANY.predict(logits)) == [[], ["a", "b", "c"], ["a"]]
    none = np.empty((0, 3))
    assert (ONE.predict(none).shape, ANY.predict(none).shape) == ((0,), (0, 3))


@given(st.integers(0, 9), rates, st.integers(0, 99))
def test_strata_are_the_rarest_class_of_a_list(n: int, rate: float, seed: int) -> None:
    """The first of equals, K for an empty list."""
    y = booleans(n, 3, rate, seed)
    expected = []
    for row in y:
        stratum = 3
        for k in range(3):
            if row[k] and (stratum == 3 or sum(y[:, k]) < sum(y[:, stratum])):
                stratum = k
        expected.append(stratum)
    assert ANY.strata(y).tolist() == expected


def test_strata_of_one_class_a_document_are_the_classes() -> None:
    y = np.array([2, 0, 1, 2])
    assert ONE.strata(y).tolist() == y.tolist()


# Metrics


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(2, 4), rates, rates, st.integers(0, 99))
def test_metrics_of_booleans(n: int, k: int, rate: float, other: float, seed: int) -> None:
    """As scikit-learn's of each class by itself; accuracy is of whole lists; a class without documents counts."""
    true, predicted = booleans(n, k, rate, seed), booleans(n, k, other, seed + 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ours say nothing of a class that all or no documents have
        found = {name: score(name, true, predicted) for name in METRICS}
    by_class = list(zip(true.T, predicted.T, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        balanced = [balanced_accuracy_score(t, p) for t, p in by_class]
    assert found["accuracy"] == pytest.approx(
        np.mean([list(t) == list(p) for t, p in zip(true, predicted, strict=True)])
    )
    assert found["balanced_accuracy"] == pytest.approx(np.mean(balanced))
    assert found["macro_f1"] == pytest.approx(np.mean([f1_score(t, p, zero_division=0.0) for t, p in by_class]))


def test_metrics_of_class_indices() -> None:
    """Are scikit-learn's own."""
    draw = np.random.default_rng(0)
    true, predicted = draw.integers(0, 3, 50), draw.integers(0, 3, 50)
    assert score("accuracy", true, predicted) == accuracy_score(true, predicted)
    assert score("balanced_accuracy", true, predicted) == balanced_accuracy_score(true, predicted)
    assert score("macro_f1", true, predicted) == f1_score(true, predicted, average="macro")
    assert {score(name, true, true) for name in METRICS} == {1.0}
