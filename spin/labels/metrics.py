"""The metrics by which probes, thresholds, exits and heads are chosen, and classifiers are measured.

The search scores thousands of small sets of predictions, for which the checks of scikit-learn take longer than the
metric itself, so the metrics are computed here; tests compare them with those of scikit-learn.

Macro-F1 and balanced accuracy are means over classes, namely over the classes of the true targets: on the full truth
all of its classes, and in a part of it (a fold, a bootstrap sample, a jackknife sample) those that occur there. The
predictions never decide which classes are averaged. Otherwise a single document could: a class that is predicted once
and does not occur has an F1 of 0, and would move the mean of two classes from 0.95 to 0.63.

A class of the full truth without documents in a part of it is left out of the mean of that part, which is the same as
giving it the mean of the other classes. Nothing there measures it: its recall is undefined, and its F1 is 0/0 or 0.
Counting it as 0 would lower the mean by a whole class although no prediction is worse. Keeping its F1 on the full truth
would hide that the F1 of a rare class is uncertain; in simulations with two documents of a class, nearly twice as many
chance differences were then significant, while leaving it out kept the error rate and gave the standard deviation of a
difference within 10 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from spin.labels.label_space import Targets


def score(metric: str, true: Targets, predicted: Targets) -> float:
    """The metric, from 0 to 1, of predicted targets against true ones.

    Both are class indices (n,), or booleans (n, K) in a multi-label task. Means over classes are over those that occur
    in `true`, whatever is predicted. In a multi-label task, accuracy is the share of documents whose set of classes is
    exactly right.
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
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur; 0 where none does.

    Equals scikit-learn's `f1_score` with `labels=` these classes and `average="macro"`.
    """
    hits, support, predictions = _class_counts(true, predicted)
    occurs = support > 0
    return float(np.mean(2 * hits[occurs] / (support + predictions)[occurs])) if occurs.any() else 0.0


def _balanced_accuracy(true: Targets, predicted: Targets) -> float:
    """The mean recall over the classes that occur; in a multi-label task the mean of their binary balanced accuracies.

    A binary balanced accuracy is the mean of two recalls: of the documents with the class and of those without. A class
    that no or every document has is left out; if each class is such a one, the mean is over the recalls that exist.
    """
    if true.ndim == 1:
        hits, support, _ = _class_counts(true, predicted)
        return float(np.mean(hits[support > 0] / support[support > 0]))
    right = true == predicted
    with np.errstate(invalid="ignore"):  # an empty group gives 0/0
        recalls = np.stack([(right & group).sum(0) / group.sum(0) for group in (true, ~true)])
    measurable = ~np.isnan(recalls).any(0)
    return float(recalls[:, measurable].mean() if measurable.any() else np.nanmean(recalls))


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
