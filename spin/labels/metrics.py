"""The metric by which every choice is made.

scikit-learn is imported where it is called: it loads for seconds, and workers that only predict never need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

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
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=np.arange(len(classes)), zero_division=0.0
    )
    return {
        name: ClassFigures(precision=precision[k], recall=recall[k], f1=f1[k], support=support[k])
        for k, name in enumerate(classes)
    }


def _accuracy(true: Targets, predicted: Targets) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(true, predicted)


def _macro_f1(true: Targets, predicted: Targets) -> float:
    from sklearn.metrics import f1_score

    return f1_score(true, predicted, average="macro", zero_division=0.0)


def _balanced_accuracy(true: Targets, predicted: Targets) -> float:
    """The mean recall over classes; in a multi-label task the mean of the K binary balanced accuracies.

    A binary balanced accuracy is the mean of two recalls: of the documents with the class and of those without. Where
    one of these groups is empty, it is the recall of the other.
    """
    from sklearn.metrics import balanced_accuracy_score

    if true.ndim == 1:
        return balanced_accuracy_score(true, predicted)
    right = true == predicted
    with np.errstate(invalid="ignore"):  # an empty group gives 0/0, which the mean leaves out
        recalls = [(right & group).sum(0) / group.sum(0) for group in (true, ~true)]
    return np.nanmean(recalls, axis=0).mean()


_FUNCTIONS: dict[str, Callable[[Targets, Targets], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
}
