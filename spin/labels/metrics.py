"""The metrics by which probes, thresholds, exits and heads are chosen, and classifiers are measured.

The search scores thousands of small sets of predictions, for which the checks of scikit-learn take longer than the
metric itself. So the metrics are computed here; tests compare them with those of scikit-learn.

Macro-F1 and balanced accuracy are means over the classes of the true targets. On the full truth these are all of its
classes. In a part of it (a fold, a bootstrap sample, a jackknife sample) they are those that occur there. The
predictions never decide which classes are averaged. Otherwise a single document could. A class that is predicted once
and does not occur has an F1 of 0, and would move the mean of two classes from 0.95 to 0.63.

A class of the full truth without documents in a part of it is left out of the mean of that part. That is the same as
giving it the mean of the other classes. Nothing there measures it: its recall is undefined, and its F1 is 0/0 or 0.
Counting it as 0 would lower the mean by a whole class although no prediction is worse. Keeping its F1 on the full truth
would hide that the F1 of a rare class is uncertain. In simulations with two documents of a class, nearly twice as many
chance differences were then significant. Leaving it out kept the error rate and gave the standard deviation of a
difference within 10 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from spin.arrays import Floats
from spin.labels.label_space import Targets


def score(metric: str, true: Targets, predicted: Targets) -> float:
    """The metric, from 0 to 1, of predicted targets against true ones.

    Both are class indices (n,), or booleans (n, K) in a multi-label task. Means over classes are over those that occur
    in `true`, whatever is predicted. In a multi-label task, accuracy is the share of documents whose set of classes is
    exactly right.
    """
    if metric == "accuracy":
        right = true == predicted
        return float(np.mean(right if true.ndim == 1 else right.all(axis=1)))
    return float(_of_classes(metric, _count_classes(true, predicted), len(true), multilabel=true.ndim == 2))


def score_samples(metric: str, true: Targets, predicted: Targets, counts: Floats) -> Floats:
    """The metric (s,) in s samples of n documents; `counts` (s, n) say how often each document is in each sample."""
    every = np.arange(1 + max(true.max(), predicted.max()))
    has, given = (true, predicted) if true.ndim == 2 else (t[:, None] == every for t in (true, predicted))
    size = counts.sum(1)
    if metric == "accuracy":
        return np.asarray(counts @ (has == given).all(1) / size)
    of_classes = _ClassCounts(*(counts @ each.astype(np.float64) for each in (has & given, has, given)))
    return _of_classes(metric, of_classes, size[:, None], multilabel=true.ndim == 2)


class ClassFigures(BaseModel):
    """The quality of the predictions of one class, from 0 to 1."""

    model_config = ConfigDict(frozen=True)

    precision: float
    recall: float
    f1: float
    support: float
    """number of documents of the class"""


def class_figures(true: Targets, predicted: Targets, classes: Sequence[str]) -> dict[str, ClassFigures]:
    """Precision, recall, F1 and number of documents of each class, by its name."""
    from sklearn.metrics import precision_recall_fscore_support  # takes a second, and inference needs none of it

    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=np.arange(len(classes)), zero_division=0.0
    )
    return {
        name: ClassFigures(precision=precision[k], recall=recall[k], f1=f1[k], support=support[k])
        for k, name in enumerate(classes)
    }


class _ClassCounts(NamedTuple):
    """Numbers of documents (..., K) in any number of samples."""

    hits: NDArray[Any]
    """documents that have the class and are predicted to"""
    support: NDArray[Any]
    """documents that have the class"""
    predictions: NDArray[Any]
    """documents that are predicted to have the class"""


def _of_classes(metric: str, counts: _ClassCounts, documents: Floats | int, *, multilabel: bool) -> Floats:
    """A metric (...) that is a mean over classes; `documents` are those of each sample."""
    if metric == "macro_f1":
        return _macro_f1(counts)
    return _mean_binary_balanced_accuracy(counts, documents) if multilabel else _mean_recall(counts)


def _macro_f1(counts: _ClassCounts) -> Floats:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur; 0 where none does.

    Equals scikit-learn's `f1_score` with `labels=` these classes and `average="macro"`.
    """
    f1 = 2 * counts.hits / np.maximum(counts.support + counts.predictions, 1)
    return _mean(f1, counts.support > 0)


def _mean_recall(counts: _ClassCounts) -> Floats:
    return _mean(counts.hits / np.maximum(counts.support, 1), counts.support > 0)


def _mean_binary_balanced_accuracy(counts: _ClassCounts, documents: Floats | int) -> Floats:
    """The mean over classes of the mean of two recalls: of the documents with the class and of those without.

    A class that no or every document has is left out; if each class is such a one, the mean is over the recalls that
    exist.
    """
    sizes = np.concatenate([counts.support, documents - counts.support], axis=-1)
    rejected = documents - counts.support - (counts.predictions - counts.hits)
    recalls = np.concatenate([counts.hits, rejected], axis=-1) / np.maximum(sizes, 1)
    measurable = np.tile((sizes > 0).reshape(*sizes.shape[:-1], 2, -1).all(-2), 2)
    return _mean(recalls, np.where(measurable.any(-1, keepdims=True), measurable, sizes > 0))


def _mean(values: Floats, counted: NDArray[np.bool_]) -> Floats:
    """The means (...) of those values (..., K) that are counted; 0 where none is."""
    return np.asarray((values * counted).sum(-1) / np.maximum(counted.sum(-1), 1))


def _count_classes(true: Targets, predicted: Targets) -> _ClassCounts:
    """The counts (K,) of one set of documents."""
    if true.ndim == 2:
        return _ClassCounts((true & predicted).sum(0), true.sum(0), predicted.sum(0))
    classes = 1 + max(true.max(), predicted.max())
    labels = (true[true == predicted], true, predicted)
    return _ClassCounts(*(np.bincount(each, minlength=classes) for each in labels))
