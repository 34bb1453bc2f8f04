"""The figure that makes every choice, by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from spin.labels.label_space import Targets


def score(metric: str, true: Targets, predicted: Targets) -> float:
    """The metric of `predicted` against `true`: both class indices (n,), or both booleans of a multi-label task (n, K).

    Of booleans, accuracy is the share of documents whose list of classes is right as a whole, and macro_f1 counts a
    class that is neither had nor predicted as 0.
    """
    return float(_FUNCTIONS[metric](true, predicted))


def _balanced_accuracy(true: Targets, predicted: Targets) -> float:
    """The mean recall of the classes; of booleans, the mean over the K classes of each one's two-class figure.

    A two-class figure is the mean of two recalls: of the documents with the class, and of those without. Where there
    are no such documents it is the other recall alone.
    """
    if true.ndim == 1:
        return balanced_accuracy_score(true, predicted)
    right = true == predicted
    with np.errstate(invalid="ignore"):  # no documents on a side: 0/0, which the mean leaves out
        recalls = [(right & side).sum(0) / side.sum(0) for side in (true, ~true)]
    return np.nanmean(recalls, axis=0).mean()


_FUNCTIONS: dict[str, Callable[[Targets, Targets], float]] = {
    "accuracy": accuracy_score,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": lambda true, predicted: f1_score(true, predicted, average="macro", zero_division=0.0),
}
