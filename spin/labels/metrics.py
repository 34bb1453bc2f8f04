"""The metric by which every choice is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_recall_fscore_support

from spin.labels.label_space import Targets


def score(metric: str, true: Targets, predicted: Targets) -> float:
    """The metric, from 0 to 1, of predicted targets against true ones.

    Both are class indices (n,), or booleans (n, K) in a multi-label task. In a multi-label task, accuracy is the share
    of documents whose set of classes is exactly right, and macro-F1 counts a class that neither occurs nor is
    predicted as 0.
    """
    return float(_FUNCTIONS[metric](true, predicted))


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
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=np.arange(len(classes)), zero_division=0.0
    )
    return {
        name: ClassFigures(precision=precision[k], recall=recall[k], f1=f1[k], support=support[k])
        for k, name in enumerate(classes)
    }


def _balanced_accuracy(true: Targets, predicted: Targets) -> float:
    """The mean recall over classes; in a multi-label task the mean of the K binary balanced accuracies.

    A binary balanced accuracy is the mean of two recalls: of the documents with the class and of those without. Where
    one of these groups is empty, it is the recall of the other.
    """
    if true.ndim == 1:
        return balanced_accuracy_score(true, predicted)
    right = true == predicted
    with np.errstate(invalid="ignore"):  # an empty group gives 0/0, which the mean leaves out
        recalls = [(right & group).sum(0) / group.sum(0) for group in (true, ~true)]
    return np.nanmean(recalls, axis=0).mean()


_FUNCTIONS: dict[str, Callable[[Targets, Targets], float]] = {
    "accuracy": accuracy_score,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": lambda true, predicted: f1_score(true, predicted, average="macro", zero_division=0.0),
}
