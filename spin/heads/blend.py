"""The blend of two kinds of evidence: the logits of the neurons and those of another source, each with a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from spin.arrays import Floats
from spin.heads.calibration import smooth_targets, smoothed_loss
from spin.heads.head import AnyHead
from spin.labels.label_space import LabelSpace, Targets

_MOST_WEIGHT = 20.0
_MOST_ROWS = 20_000
"""documents that the weights are fitted on, at most"""


@dataclass(frozen=True)
class Blend:
    """The weights in a sum of the neurons' logits and those of another source: the words, or the last layer."""

    neurons: float
    other: float

    def logits(self, of_neurons: Floats, of_others: Floats) -> Floats:
        """(n, K) the weighted sum of both logits (n, K)."""
        return np.float32(self.neurons) * of_neurons + np.float32(self.other) * of_others

    def shares(self, of_neurons: Sequence[Floats], of_others: Sequence[Floats]) -> tuple[float, float]:
        """The shares that the neurons and the other source have of the spread of the sum, by logits (m, K) per fold."""
        ours = self.neurons * float(np.concatenate(of_neurons).std())
        others = self.other * float(np.concatenate(of_others).std())
        total = ours + others or 1.0
        return ours / total, others / total

    def fold_into(self, head: AnyHead, scale: Floats) -> AnyHead:
        """The neurons' head joined with the words; its first K features are the words' logits over a scale (K,)."""
        return head.join_words(np.float32(self.neurons), np.float32(self.other) * scale.astype(np.float32))


def fit_blend(of_neurons: Floats, of_others: Floats, y: Targets, label_space: LabelSpace) -> Blend:
    """The weights, from 0 to 20, whose sum of held-out logits (n, K) has the least log loss.

    This is a logarithmic opinion pool (Genest & Zidek 1986), and with smoothed targets as in `fit_temperature`. Neither
    regression has seen the documents, so a weight measures how much its evidence is worth beside the other's.
    """
    step = -(-len(of_neurons) // _MOST_ROWS)
    sources = np.stack([of_neurons[::step], of_others[::step]]).astype(np.float64)
    targets = smooth_targets(y[::step], label_space)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = np.tensordot(weights, sources, 1)
        residuals = label_space.probabilities(logits) - targets
        slope = (sources * residuals).sum((1, 2))
        return smoothed_loss(logits, targets, label_space) / len(targets), slope / len(targets)

    found = minimize(loss, np.array([1.0, 0.5]), jac=True, method="L-BFGS-B", bounds=[(0, _MOST_WEIGHT)] * 2)
    return Blend(*map(float, found.x))
