"""Temperature scaling, biases per class where class weights are balanced, and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_expit, log_softmax

from spin.arrays import Floats
from spin.heads.head import AnyHead
from spin.labels.label_space import LabelSpace, Targets

_MOST_ROWS = 20_000
"""largest number of documents that biases are fitted on"""
_BINS = 15
_DRAWS = 10_000
_BIAS_SD = 2.0
"""standard deviation of the prior of a bias"""
_HOTTEST = 20.0
"""largest temperature; the smallest is its inverse"""


@dataclass(frozen=True)
class Calibration:
    """Turns logits into calibrated ones: divided by a temperature, plus a bias per class."""

    temperature: float
    bias: Floats | None = None
    """(K,) None for a temperature alone"""

    @property
    def biases(self) -> tuple[float, ...] | None:
        """The bias as a tuple of K numbers."""
        return None if self.bias is None else tuple(map(float, self.bias))

    def apply(self, logits: Floats) -> Floats:
        """The calibrated logits (n, K) of logits (n, K)."""
        scaled = logits / np.float32(self.temperature)
        return scaled if self.bias is None else scaled + self.bias

    def fold_into(self, head: AnyHead) -> AnyHead:
        """The head whose logits are the calibrated ones of a head."""
        scaled = head.with_temperature(self.temperature)
        return scaled if self.bias is None else scaled.with_bias(self.bias)


def log_loss(logits: Floats, y: Targets, label_space: LabelSpace) -> float:
    """Mean negative log-likelihood per document of logits (n, K), summed over the classes of a multi-label task."""
    return float(log_losses(logits, y, label_space).mean())


def log_losses(logits: Floats, y: Targets, label_space: LabelSpace) -> Floats:
    """The negative log-likelihood (n,) of each document, which `log_loss` averages."""
    has = label_space.indicator(y)
    if label_space.multilabel:
        return np.asarray(-log_expit(np.where(has, logits, -logits)).sum(1))
    return np.asarray(-log_softmax(logits, axis=1)[has])


def fit_calibration(logits: Floats, y: Targets, label_space: LabelSpace, class_weights: str) -> Calibration:
    """The calibration of held-out logits (n, K) of heads that were fitted under `class_weights`.

    `none` takes a temperature alone. `balanced` weights teach a head that all classes are equally frequent, which no
    temperature can undo, so they take biases too.
    """
    if class_weights == "none":
        return Calibration(fit_temperature(logits, y, label_space))
    return _fit_temperature_and_biases(logits, y, label_space)


def fit_temperature(logits: Floats, y: Targets, label_space: LabelSpace) -> float:
    """The temperature T, between 1/20 and 20, for which logits / T have the least log loss (Guo et al. 2017).

    The targets are smoothed: without it, held-out documents that happen to be all right would make the probabilities of
    all others certain.
    """
    logits, targets = logits.astype(np.float64), smooth_targets(y, label_space)

    def loss(log_temperature: float) -> float:
        return smoothed_loss(logits / np.exp(log_temperature), targets, label_space) / len(logits)

    # over log T, in which a factor counts the same in both directions; exp(3) is 20
    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def smooth_targets(y: Targets, label_space: LabelSpace) -> Floats:
    """(n, K) targets from 0 to 1, as if one document more were wrong (after Platt 1999).

    Each gives a share 1 / (n + 2) of itself to all K classes alike, in a multi-label task to both sides.
    """
    smoothing, sides = 1 / (len(y) + 2), 2 if label_space.multilabel else len(label_space)
    smoothed: Floats = (1 - smoothing) * label_space.indicator(y) + smoothing / sides
    return smoothed


def _fit_temperature_and_biases(logits: Floats, y: Targets, label_space: LabelSpace) -> Calibration:
    """The temperature T and biases b (K,) for which logits / T + b have the least penalised log loss.

    They minimise the sum of the smoothed log losses of the documents plus |b|^2 / (2 * 2^2). That is convex in 1 / T
    and b. This is vector scaling (Guo et al. 2017) with biases only. The penalty is a normal prior, which counts for
    about one document per class. So a class with few held-out documents is not moved far.
    """
    # every step-th document, so that at most `_MOST_ROWS` are left
    step = -(-len(logits) // _MOST_ROWS)
    logits, y = logits[::step].astype(np.float64), y[::step]
    targets = smooth_targets(y, label_space)

    def loss(values: Floats) -> tuple[float, Floats]:
        inverse, bias = values[0], values[1:]
        scaled = inverse * logits + bias
        # the derivative of the log loss by the logits, with softmax and with sigmoid
        residuals = label_space.probabilities(scaled) - targets
        total = smoothed_loss(scaled, targets, label_space) + float(bias @ bias) / (2 * _BIAS_SD**2)
        slope = [float((residuals * logits).sum()), *(residuals.sum(0) + bias / _BIAS_SD**2)]
        # per document, so that the tolerance `gtol` means the same for few and for many
        return total / len(logits), np.array(slope) / len(logits)

    bounds = [(1 / _HOTTEST, _HOTTEST), *[(None, None)] * len(label_space)]
    start = np.array([1.0, *[0.0] * len(label_space)])
    options = {"ftol": 1e-10, "gtol": 1e-6, "maxiter": 200}
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return Calibration(float(1 / best[0]), best[1:].astype(np.float32))


def smoothed_loss(logits: Floats, targets: Floats, label_space: LabelSpace) -> float:
    """The sum of the log losses of logits (n, K) under smoothed targets (n, K)."""
    if label_space.multilabel:
        return float(-(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).sum())
    return float(-(targets * log_softmax(logits, axis=1)).sum())


def calibration_error(probabilities: Floats, y: Targets, label_space: LabelSpace) -> float:
    """Expected calibration error (Naeini et al. 2015) of probabilities (n, K) over 15 bins of equal width.

    It is the mean distance, weighted by labels, between a bin's accuracy and its mean confidence. Labels are the
    predicted class of each document, or in a multi-label task every predicted class. The classes that a document
    clearly does not have, which are nearly all of many, would hide the error of those that it is given.
    """
    given = _predicted(probabilities, label_space)
    return _binned_gap(probabilities[given], label_space.indicator(y)[given])


def calibration_error_limit(probabilities: Floats, label_space: LabelSpace, significance: float = 0.05) -> float:
    """The calibration error that perfectly calibrated probabilities (n, K) exceed with probability `significance`.

    A small sample shows an error even if its probabilities are exact. The outcomes are drawn 10,000 times from the
    probabilities themselves (consistency resampling, Bröcker & Smith 2007), always the same, so that no seed decides.
    """
    draw, confidences = np.random.default_rng(0), probabilities[_predicted(probabilities, label_space)]
    errors = [_binned_gap(confidences, draw.random(len(confidences)) < confidences) for _ in range(_DRAWS)]
    return float(np.quantile(errors, 1 - significance))


def _predicted(probabilities: Floats, label_space: LabelSpace) -> NDArray[np.bool_]:
    """(n, K) the classes that each document is given without thresholds."""
    return probabilities >= 0.5 if label_space.multilabel else label_space.indicator(probabilities.argmax(1))


def _binned_gap(confidences: Floats, right: NDArray[np.bool_]) -> float:
    # |accuracy - mean confidence| of a bin, times its share of the labels, is |sum of (right - confidence)| / labels
    bins = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, right.astype(float) - confidences, _BINS)
    return float(np.abs(gaps).sum() / max(len(confidences), 1))
