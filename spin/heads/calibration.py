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
    """Mean negative log-likelihood of logits (n, K), summed over the classes of a multi-label task."""
    has = label_space.indicator(y)
    if label_space.multilabel:
        return float(-log_expit(np.where(has, logits, -logits)).sum(1).mean())
    return float(-log_softmax(logits, axis=1)[has].mean())


def fit_temperature(logits: Floats, y: Targets, label_space: LabelSpace) -> float:
    """The T for which logits / T have the least log loss (Guo et al. 2017), between 1/20 and 20."""
    logits = logits.astype(np.float64)
    found = minimize_scalar(lambda t: log_loss(logits / np.exp(t), y, label_space), bounds=(-3, 3), method="bounded")
    return float(np.exp(found.x))


def calibration_error(probabilities: Floats, y: Targets, label_space: LabelSpace) -> float:
    """Expected calibration error over 15 bins of equal width (Naeini et al. 2015): the mean distance, weighted by
    documents, of how often a bin is right from how sure it is.

    Of the predicted class; in a multi-label task of every class of every document.
    """
    has = label_space.indicator(y)
    right = has.ravel() if label_space.multilabel else has[np.arange(len(has)), probabilities.argmax(1)]
    return _distance(_sure(probabilities, label_space), right)


def calibration_error_limit(probabilities: Floats, label_space: LabelSpace, significance: float, seed: int) -> float:
    """The calibration error that probabilities (n, K) which are exactly right pass with a chance of `significance`.

    Few documents show an error of their own: their answers are drawn 200 times from the probabilities themselves
    (consistency resampling, Bröcker & Smith 2007).
    """
    draw, sure = np.random.default_rng(seed), _sure(probabilities, label_space)
    found = [_distance(sure, draw.random(len(sure)) < sure) for _ in range(_DRAWS)]
    return float(np.quantile(found, 1 - significance))


def _sure(probabilities: Floats, label_space: LabelSpace) -> Floats:
    return probabilities.ravel() if label_space.multilabel else probabilities.max(1)


def _distance(sure: Floats, right: NDArray[np.bool_]) -> float:
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, right.astype(float) - sure, _BINS)
    return float(np.abs(gaps).sum() / max(len(sure), 1))
