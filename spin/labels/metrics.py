"""The metric by which every choice is made.

The search scores thousands of small sets of predictions, for which the checks of scikit-learn take longer than the
metric itself, so the metrics are computed here; tests compare them with those of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from spin.labels.label_space import Targets


def score(metric: str, true: Targets, predicted: Targets) -> float:
    """The metric, from 0 to 1, of predicted targets against true ones.

    Both are class indices (n,), or booleans (n, K) in a multi-label task. In a multi-label task, accuracy is the share
    of documents whose set of classes is exactly right, and macro-F1 counts a class that neither occurs nor is
    predicted as 0.
    """
    return _FUNCTIONS[metric](true, predicted)


class ClassFigures(BaseModel):
    """How well one class is predicted, from 0 to 1."""

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


def _accuracy(true: Targets, predicted: Targets) -> float:
    right = true == predicted
    return float(np.mean(right if true.ndim == 1 else right.all(axis=1)))


def _macro_f1(true: Targets, predicted: Targets) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN); of single labels, over those that occur or are predicted."""
    hits, support, predictions = _class_counts(true, predicted)
    sizes = support + predictions
    counted = sizes > 0 if true.ndim == 1 else np.full(len(sizes), True)
    return float(np.mean(2 * hits[counted] / np.maximum(sizes[counted], 1)))


def _balanced_accuracy(true: Targets, predicted: Targets) -> float:
    """The mean recall over classes; in a multi-label task the mean of the K binary balanced accuracies.

    A binary balanced accuracy is the mean of two recalls: of the documents with the class and of those without. Where
    one of these groups is empty, it is the recall of the other.
    """
    if true.ndim == 1:
        hits, support, _ = _class_counts(true, predicted)
        return float(np.mean(hits[support > 0] / support[support > 0]))
    right = true == predicted
    with np.errstate(invalid="ignore"):  # an empty group gives 0/0, which the mean leaves out
        recalls = [(right & group).sum(0) / group.sum(0) for group in (true, ~true)]
    return float(np.nanmean(recalls, axis=0).mean())


def _class_counts(true: Targets, predicted: Targets) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For each class the numbers of documents that have it and are predicted to, that have it, and predicted to."""
    if true.ndim == 2:
        return (true & predicted).sum(0), true.sum(0), predicted.sum(0)
    classes = 1 + max(true.max(), predicted.max())
    hits, support, predictions = (
        np.bincount(labels, minlength=classes) for labels in (true[true == predicted], true, predicted)
    )
    return hits, support, predictions


_FUNCTIONS: dict[str, Callable[[Targets, Targets], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
}
