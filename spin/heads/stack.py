"""The stack: the logits of several sources of evidence in one sum, each with a weight, and a bias per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from spin.arrays import Floats
from spin.heads.calibration import fit_temperature, smooth_targets, smoothed_loss
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.labels.label_space import LabelSpace, Targets

Source = Literal["neurons", "words", "network"]
"""the linear head on the selected neurons, the word regression, and the network on the same neurons"""
_WEIGHT_SD, _BIAS_SD = 0.3, 2.0
"""standard deviations of normal priors: of a weight around 1 for the neurons and 0 for others, of a bias around 0; the
weights are those of logits that are calibrated by a temperature each"""
_MOST_WEIGHT = 20.0
_MOST_ROWS = 20_000
"""documents that a stack is fitted on, at most"""


@dataclass(frozen=True)
class Stack:
    """The calibrated logits: the sum of those of each source times its weight, plus a bias per class."""

    bias: tuple[float, ...]
    """(K,)"""
    neurons: float = 0.0
    words: float = 0.0
    network: float = 0.0

    def logits(self, sources: Mapping[Source, Floats]) -> Floats:
        """(n, K) the calibrated logits, from those (n, K) of each source that has a weight."""
        shape = next(iter(sources.values())).shape
        total = np.broadcast_to(np.array(self.bias, np.float32), shape)
        for source in SOURCES:
            if weight := self.weight(source):
                total = total + np.float32(weight) * sources[source]
        return total

    def weight(self, source: Source) -> float:
        """The weight of a source; 0 if it is none of this stack."""
        weight: float = getattr(self, source)
        return weight

    def share(self, source: Source, sources: Mapping[Source, Floats]) -> float:
        """The share of a source in the spread of the sum, by the logits (n, K) of all sources."""
        spreads = {name: self.weight(name) * float(logits.std()) for name, logits in sources.items()}
        return spreads[source] / (sum(spreads.values()) or 1.0)

    def join(
        self, head: LinearHead, *, network: NetworkHead | None = None, word_scale: Floats | None = None
    ) -> LinearHead:
        """One head whose logits are the calibrated ones, from the head on p neurons and the network on the same.

        With a `word_scale` (K,) its first K features are the logits of the word regression, each over its scale.
        """
        words = np.zeros((len(self.bias), 0), np.float32)
        if word_scale is not None:
            words = np.diag(np.float32(self.words) * word_scale.astype(np.float32))
        coef = np.concatenate([words, np.float32(self.neurons) * head.coef], axis=1)
        intercept = np.float32(self.neurons) * head.intercept + np.array(self.bias, np.float32)
        if network is None:
            return LinearHead(coef, intercept)
        weight = np.float32(self.network)
        unread = np.zeros((len(network.inner), words.shape[1]), np.float32)
        inner = np.concatenate([unread, network.inner], axis=1)
        intercept = intercept + weight * network.intercept
        return NetworkHead(coef, intercept, inner, network.inner_bias, weight * network.outer)


SOURCES: tuple[Source, ...] = ("neurons", "words", "network")


def fit_stack(sources: Mapping[Source, Floats], y: Targets, label_space: LabelSpace, repeats: float = 1) -> Stack:
    """The stack with the least penalised log loss on held-out logits (n, K) of each source.

    No source has seen the documents, so a weight measures what its evidence is worth beside that of the others (stacked
    regressions: Breiman 1996). With one source this is temperature scaling with a bias per class (Guo et al. 2017). The
    biases match how frequent each class is predicted to how frequent it is, which weights cannot: they scale logits
    around a probability of one half, and do not shift them. The loss is convex; the weights are from 0 to 20, over the
    temperature of each source. Normal priors keep them near those of neurons alone where documents are few. Targets are
    smoothed (`smooth_targets`). `repeats` says how often each document stands among the n, as after repeated
    cross-validation: it counts once as evidence.
    """
    step = -(-len(y) // _MOST_ROWS)  # every step-th document, so that at most `_MOST_ROWS` are left
    y = y[::step]
    temperatures = [fit_temperature(values[::step], y, label_space, repeats) for values in sources.values()]
    logits = np.stack(
        [values[::step] / np.float64(t) for values, t in zip(sources.values(), temperatures, strict=True)]
    )
    targets, count = smooth_targets(y, label_space, repeats), len(sources)
    expected = np.array([float(source == "neurons" or count == 1) for source in sources])

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = values[:count], values[count:]
        joined = np.tensordot(weights, logits, 1) + bias
        off = (weights - expected) / _WEIGHT_SD
        total = smoothed_loss(joined, targets, label_space) / repeats + (off @ off + bias @ bias / _BIAS_SD**2) / 2
        # the derivative of the log loss by the logits, with softmax and with sigmoid
        residuals = (label_space.probabilities(joined) - targets) / repeats
        slope = [(logits * residuals).sum((1, 2)) + off / _WEIGHT_SD, residuals.sum(0) + bias / _BIAS_SD**2]
        # per document, so that the tolerance `gtol` means the same for few and for many
        return float(total / len(y)), np.concatenate(slope) / len(y)

    start = np.concatenate([expected, np.zeros(len(label_space))])
    bounds = [*[(0, _MOST_WEIGHT)] * count, *[(None, None)] * len(label_space)]
    options = {"ftol": 1e-10, "gtol": 1e-6, "maxiter": 200}
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    weights = dict(zip(sources, map(float, best[:count] / temperatures), strict=True))
    return Stack(tuple(map(float, best[count:])), **weights)
