"""The figure that makes every choice, by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

METRICS: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64]], float]] = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "macro_f1": lambda true, predicted: f1_score(true, predicted, average="macro", zero_division=0.0),
}


def score(metric: str, true: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """The metric of `predicted` (n,) against `true` (n,), both class indices."""
    return float(METRICS[metric](true, predicted))
