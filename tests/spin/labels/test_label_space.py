"""Labels with one class or any number of classes per document: which can be learned, their targets, and the metrics."""

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
from spin.labels.cross_validation import jackknife_rows
from spin.labels.label_space import Label, LabelSpace, divide_rare_classes
from spin.labels.metrics import score
from spin.labels.splits import CROSS_VALIDATION_BELOW
from spin.settings import METRICS

SINGLE_LABEL, MULTILABEL = LabelSpace(("a", "b", "c")), LabelSpace(("a", "b", "c"), multilabel=True)
TWO_EACH = ["train", "train", "valid", "valid"]

names = st.sampled_from(SINGLE_LABEL.classes)
lists = st.lists(st.lists(names, max_size=4), max_size=8)
rates = st.floats(0, 1)


def draw_booleans(n: int, k: int, rate: float, seed: int) -> NDArray[np.bool_]:
    """Draw an (n, k) array with this rate of true entries; whole rows and columns may be equal."""
    return np.random.default_rng(seed).random((n, k)) < rate


# Labels that can be learned


def test_classes_are_the_sorted_names_in_the_labels() -> None:
    """Labels are strings or lists, some of them empty; the order of the documents does not matter."""
    assert LabelSpace.of(["b", "a", "b", "a"], TWO_EACH) == LabelSpace(("a", "b"))
    assert LabelSpace.of(np.array(["b", "a", "b", "a"]), TWO_EACH) == LabelSpace(("a", "b"))  # type: ignore[arg-type]
    lists = [["c", "a"], ["b"], ["b", "c", "a"], []]
    assert LabelSpace.of(lists, TWO_EACH) == LabelSpace.of(lists[::-1], TWO_EACH[::-1]) == MULTILABEL
    assert (len(MULTILABEL), MULTILABEL.multilabel, SINGLE_LABEL.multilabel) == (3, True, False)


UNLEARNABLE: dict[str, tuple[list[Label], list[str], str]] = {
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
    # a class that occurs twice in one list has one document
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


@pytest.mark.parametrize("case", UNLEARNABLE)
def test_labels_that_cannot_be_learned_are_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message, in one line, names the problem and what was expected."""
    monkeypatch.setattr("spin.labels.splits.CROSS_VALIDATION_BELOW", 0)
    labels, splits, message = UNLEARNABLE[case]
    with pytest.raises(UserError) as raised:
        LabelSpace.of(labels, splits)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_few_labels_are_pooled_over_train_and_valid() -> None:
    """Each class then needs two documents in these splits together, and a document without it."""
    assert LabelSpace.of(list("aabb"), ["train", "train", "valid", "valid"]).classes == ("a", "b")
    with pytest.raises(UserError, match="class 'b' has fewer than 2 documents in the train and valid split"):
        LabelSpace.of(list("aabb"), ["train", "valid", "valid", "test"])
    with pytest.raises(UserError, match="class 'a' is in every list of the train and valid split"):
        LabelSpace.of([["a"], ["a", "b"], ["a", "b"]], ["train", "valid", "valid"])


def test_few_labels_of_a_class_are_of_two_groups() -> None:
    """Documents that test, and groups where labels are many, do not count."""
    labels, splits = list("aabbb"), ["train", "valid", "train", "valid", "test"]
    assert LabelSpace.of(labels, splits, [1, 2, 3, 4, 4]).classes == ("a", "b")
    message = "labels: all documents of class 'b' to train and validate are of one group: .* label documents of another"
    with pytest.raises(UserError, match=message):
        LabelSpace.of(labels, splits, [1, 2, 3, 3, 4])
    with pytest.raises(UserError, match="class 'b'"):
        LabelSpace.of([["a"], ["a", "b"], ["b"], [], []], splits, np.array([1, 2, 2, 3, 4], np.uint64))
    quarter = CROSS_VALIDATION_BELOW // 4
    many = ["train", "valid"] * 2 * quarter
    assert LabelSpace.of(list("aabb") * quarter, many, [1, 1, 2, 2] * quarter).classes == ("a", "b")


# Labels to targets and back


def test_targets_are_class_indices_or_rows_of_booleans() -> None:
    """If lists are expected, a string counts as a list of one class, as in a CSV file."""
    indices = SINGLE_LABEL.index(["c", "a"])
    assert (indices.tolist(), indices.dtype) == ([2, 0], np.int64)
    indicators = MULTILABEL.index([["c", "a", "c"], [], "b"])
    assert indicators.dtype == np.bool_
    np.testing.assert_array_equal(indicators, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert (SINGLE_LABEL.index([]).shape, MULTILABEL.index([]).shape) == ((0,), (0, 3))


@pytest.mark.parametrize(
    ("label_space", "labels", "message"),
    [
        (SINGLE_LABEL, ["a", "z", "y"], "label 'y' is not one of the model's: a, b, c"),
        (MULTILABEL, [["a"], ["b", "z"]], "label 'z' is not one of the model's: a, b, c"),
        (
            SINGLE_LABEL,
            ["a", ["b"]],
            "found a list of classes; the model gives each document one class, expected a string",
        ),
        (SINGLE_LABEL, [[]], "found a list of classes"),
    ],
)
def test_labels_outside_the_label_space_are_refused(label_space: LabelSpace, labels: list[Label], message: str) -> None:
    """The message names the first unknown class in sorted order. A single-label task refuses lists as well."""
    with pytest.raises(UserError, match=message):
        label_space.index(labels)


@given(st.lists(names, max_size=8), lists)
def test_targets_convert_back_to_the_same_names(names: list[str], lists: list[list[str]]) -> None:
    """Lists come back sorted and without repetitions."""
    assert SINGLE_LABEL.names(SINGLE_LABEL.index(names)) == names
    assert MULTILABEL.names(MULTILABEL.index(lists)) == [sorted(set(label)) for label in lists]


@given(st.lists(names, max_size=8))
def test_the_indicator_of_a_name_is_that_of_a_list_of_one(names: list[str]) -> None:
    """In a multi-label task the indicator is the targets themselves."""
    targets = MULTILABEL.index([[name] for name in names])
    for indicator in (SINGLE_LABEL.indicator(SINGLE_LABEL.index(names)), MULTILABEL.indicator(targets)):
        assert (indicator.shape, indicator.dtype) == ((len(names), 3), np.bool_)
        np.testing.assert_array_equal(indicator, targets)


def test_logits_give_predictions_and_probabilities() -> None:
    """Single-label: the largest logit, softmax. Multi-label: every logit above zero, sigmoid."""
    logits = np.array([[-1.0, -2.0, -3.0], [1.0, 3.0, 2.0], [0.5, 0.0, -0.5]])
    np.testing.assert_array_equal(SINGLE_LABEL.predict(logits), [0, 1, 0])
    np.testing.assert_array_equal(MULTILABEL.predict(logits), [[0, 0, 0], [1, 1, 1], [1, 0, 0]])
    np.testing.assert_allclose(SINGLE_LABEL.probabilities(logits), softmax(logits, axis=1))
    np.testing.assert_allclose(MULTILABEL.probabilities(logits), expit(logits))
    assert MULTILABEL.names(MULTILABEL.predict(logits)) == [[], ["a", "b", "c"], ["a"]]
    empty = np.empty((0, 3))
    assert (SINGLE_LABEL.predict(empty).shape, MULTILABEL.predict(empty).shape) == ((0,), (0, 3))


@given(st.integers(0, 9), rates, st.integers(0, 99))
def test_the_stratum_of_a_list_is_its_rarest_class(n: int, rate: float, seed: int) -> None:
    """Of equally rare classes it is the first; for an empty list it is the number of classes."""
    y = draw_booleans(n, 3, rate, seed)
    expected = []
    for row in y:
        stratum = 3
        for k in range(3):
            if row[k] and (stratum == 3 or sum(y[:, k]) < sum(y[:, stratum])):
                stratum = k
        expected.append(stratum)
    assert MULTILABEL.strata(y).tolist() == expected


def test_the_stratum_of_a_single_label_is_its_class() -> None:
    y = np.array([2, 0, 1, 2])
    assert SINGLE_LABEL.strata(y).tolist() == y.tolist()


# Metrics


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 12), st.integers(2, 4), rates, rates, st.integers(0, 99))
def test_multilabel_metrics_average_those_of_scikit_learn_over_classes(
    n: int, k: int, rate: float, predicted_rate: float, seed: int
) -> None:
    """Accuracy is the share of documents whose whole list is right; a class without documents does not count."""
    true, predicted = draw_booleans(n, k, rate, seed), draw_booleans(n, k, predicted_rate, seed + 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is no warning about a class that all or no documents have
        actual = {name: score(name, true, predicted) for name in METRICS}
    assert actual["accuracy"] == pytest.approx(
        np.mean([list(t) == list(p) for t, p in zip(true, predicted, strict=True)])
    )
    occur = np.flatnonzero(true.any(0))
    sklearn_f1 = f1_score(true, predicted, labels=occur, average="macro", zero_division=0.0) if len(occur) else 0.0
    assert actual["macro_f1"] == pytest.approx(sklearn_f1)
    measurable = [c for c in occur if not true[:, c].all()] or list(range(k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sklearn_balanced = [balanced_accuracy_score(true[:, c], predicted[:, c]) for c in measurable]
    assert actual["balanced_accuracy"] == pytest.approx(np.mean(sklearn_balanced))


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 4), st.integers(0, 99))
def test_single_label_metrics_equal_those_of_scikit_learn(n: int, classes: int, first: int, seed: int) -> None:
    """Only classes that occur are averaged: some do not occur, and some are only predicted."""
    draw = np.random.default_rng(seed)
    true, predicted = draw.integers(0, classes, n), draw.integers(first, first + classes, n)
    occur = np.unique(true)
    sklearn_f1 = f1_score(true, predicted, labels=occur, average="macro", zero_division=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert score("accuracy", true, predicted) == accuracy_score(true, predicted)
        assert score("balanced_accuracy", true, predicted) == balanced_accuracy_score(true, predicted)
        assert score("macro_f1", true, predicted) == pytest.approx(sklearn_f1)
    assert {score(name, true, true) for name in METRICS} == {1.0}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("multilabel", [False, True])
def test_one_document_moves_no_metric_by_a_whole_class(metric: str, multilabel: bool) -> None:
    """A rare class of three is predicted for a single document of others, in rows without a document of that class."""
    space = MULTILABEL if multilabel else SINGLE_LABEL
    true = np.repeat([0, 1], 20)
    predicted = np.where(np.arange(40) % 20 == 0, 1 - true, true)  # one error per class
    once = predicted.copy()
    once[0] = 2
    both = [space.indicator(y) if multilabel else y for y in (predicted, once)]
    targets = space.indicator(true) if multilabel else true
    assert score(metric, targets, both[0]) == pytest.approx(0.95, abs=0.001)
    assert score(metric, targets, both[1]) == pytest.approx(0.95, abs=0.02)


def test_the_jackknife_leaves_out_a_class_without_documents_for_every_candidate() -> None:
    """The difference of two candidates does not depend on which of them predicts the class that is left out."""
    true = np.array([0] * 11 + [1] * 10 + [2])  # its part holds none of the documents that are predicted wrongly
    candidate, baseline = true.copy(), true.copy()
    candidate[0] = 2
    baseline[0] = 1
    differences = [
        score("macro_f1", true[rows], candidate[rows]) - score("macro_f1", true[rows], baseline[rows])
        for rows in jackknife_rows(len(true))
    ]
    assert max(map(abs, differences)) < 0.2


@pytest.mark.parametrize(("side", "other"), [("train", "valid"), ("valid", "train")])
def test_a_rare_class_that_a_hash_gave_to_one_side_is_divided(
    side: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All texts of a group change sides, near-identical ones of other classes among them; what is divided stays."""
    monkeypatch.setattr("spin.labels.splits.CROSS_VALIDATION_BELOW", 0)
    labels = ["a", "b", "a", "b", "c", "c", "c", "a"]
    splits = [side, side, other, other, side, side, side, side]
    groups = [1, 2, 3, 4, 5, 6, 6, 5]
    divided = divide_rare_classes(labels, splits, groups)
    assert divided == [side, side, other, other, other, side, side, other]
    assert divide_rare_classes(labels, divided, groups) == divided
    several = divide_rare_classes([["c"], ["c", "a"], ["a"]], [side, side, other], [1, 2, 3])
    assert several == [other, side, other]
    assert divide_rare_classes(["a", "a", "b"], [side, side, other], [1, 1, 2]) == [side, side, other]
    assert divide_rare_classes(["a", "a", "b"], [side] * 3, [1, 2, 3]) == [side] * 3
    tested = divide_rare_classes(["c", "c", "c", "a"], ["test", side, side, other], [1, 1, 2, 3])
    assert tested == ["test", other, side, other]
    larger = divide_rare_classes(["c", "c", "a", "b"], [side, side, side, other], [1, 2, 1, 3])
    assert larger == [side, other, side, other], "the smaller of two groups changes sides"
    last = divide_rare_classes([["c", "b"], ["c"], ["c"], ["b"]], [side, side, side, other], [1, 2, 2, 3])
    assert last == [side, other, other, other], (
        "a larger group, since the smallest has the last document of another class"
    )
    monkeypatch.setattr("spin.labels.splits.CROSS_VALIDATION_BELOW", 5)
    assert divide_rare_classes(["c", "c", "a"], [side, side, other], [1, 2, 3]) == [side, side, other]
