"""Temperature scaling and the expected calibration error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from spin.arrays import Floats
from spin.labels.label_space import LabelSpace, Targets

_BINS = 15
_DRAWS = 200


def log_loss(logits: Floats, y: Targets, label_space: LabelSpace) -> float:
    """Mean negative log-likelihood per document of logits (n, K), summed over the classes of a multi-label task."""
    has = label_space.indicator(y)
    if label_space.multilabel:
        return float(-log_expit(np.where(has, logits, -logits)).sum(1).mean())
    return float(-log_softmax(logits, axis=1)[has].mean())


def fit_temperature(logits: Floats, y: Targets, label_space: LabelSpace) -> float:
    """The temperature T, between 1/20 and 20, for which logits / T have the least log loss (Guo et al. 2017)."""
    logits = logits.astype(np.float64)
    result = minimize_scalar(lambda t: log_loss(logits / np.exp(t), y, label_space), bounds=(-3, 3), method="bounded")
    return float(np.exp(result.x))


def calibration_error(probabilities: Floats, y: Targets, label_space: LabelSpace) -> float:
    """Expected calibration error (Naeini et al. 2015) of probabilities (n, K) over 15 bins of equal width.

    It is the mean distance, weighted by documents, between a bin's accuracy and its mean confidence: of the predicted
    class, or in a multi-label task of every class of every document.
    """
    has = label_space.indicator(y)
    right = has.ravel() if label_space.multilabel else has[np.arange(len(has)), probabilities.argmax(1)]
    return _binned_gap(_confidences(probabilities, label_space), right)


def calibration_error_limit(probabilities: Floats, label_space: LabelSpace, significance: float, seed: int) -> float:
    """The calibration error that perfectly calibrated probabilities (n, K) exceed with probability `significance`.

    A small sample shows an error even if its probabilities are exact. The outcomes are drawn 200 times from the
    probabilities themselves (consistency resampling, Bröcker & Smith 2007).
    """
    draw, confidences = np.random.default_rng(seed), _confidences(probabilities, label_space)
    errors = [_binned_gap(confidences, draw.random(len(confidences)) < confidences) for _ in range(_DRAWS)]
    return float(np.quantile(errors, 1 - significance))


def _confidences(probabilities: Floats, label_space: LabelSpace) -> Floats:
    return probabilities.ravel() if label_space.multilabel else probabilities.max(1)


def _binned_gap(confidences: Floats, right: NDArray[np.bool_]) -> float:
    bins = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, right.astype(float) - confidences, _BINS)
    return float(np.abs(gaps).sum() / max(len(confidences), 1))
