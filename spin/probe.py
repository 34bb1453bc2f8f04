"""One L1 logistic regularisation path a site.pooling: what a layer knows, and which of its neurons know it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.lasso import LogisticPath, kkt_violation
from spin.metric import score
from spin.settings import ProbeSettings
from spin.sites import Column

Floats = NDArray[np.floating]
NO_NEURON = -1.0
"""the score of a probe without neurons, below every metric: it never wins against one that has some"""


@dataclass(frozen=True)
class Probe:
    """The L1 logistic regression of one site.pooling at the penalty that validation chose.

    K is the number of classes, one-vs-rest, or 1 for two classes; coefficients act on standardised activations.
    """

    column: Column
    coef: Floats
    """(K, width)"""
    intercept: Floats
    """(K,)"""
    mean: Floats
    """(width,) over the training rows"""
    scale: Floats
    """(width,) over the training rows, 1 where a neuron never varies"""
    lam: float
    """the chosen penalty"""
    lam_max: float
    """the smallest penalty at which every coefficient is zero"""
    kkt: float
    """largest violation of the optimality conditions at the chosen penalty, as a share of it"""
    valid_score: float
    """the metric on the validation rows"""

    def decision(self, activations: Floats) -> Floats:
        """Logits (n, K) of raw activations (n, width)."""
        standard = (activations.astype(np.float32) - self.mean) / self.scale
        return standard @ self.coef.T + self.intercept

    def predict(self, activations: Floats) -> NDArray[np.int64]:
        """Class indices (n,)."""
        return classes_of(self.decision(activations))

    @property
    def importance(self) -> Floats:
        """(width,) squared weights, summed over the classes."""
        return (self.coef.astype(np.float64) ** 2).sum(0)

    def to_bytes(self) -> bytes:
        """A safetensors file; what is not a tensor lies in its metadata as JSON."""
        facts = {"column": str(self.column), **{name: getattr(self, name) for name in _FACTS}}
        tensors = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in _TENSORS}
        return save_tensors(tensors, {"probe": json.dumps(facts)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Probe:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["probe"])
        tensors: dict[str, Any] = load_tensors(data)
        return cls(column=Column.parse(facts.pop("column")), **tensors, **facts)


_TENSORS = ("coef", "intercept", "mean", "scale")
_FACTS = ("lam", "lam_max", "kkt", "valid_score")


def classes_of(logits: Floats) -> NDArray[np.int64]:
    """Class indices (n,) of one-vs-rest logits (n, K), K being 1 for two classes."""
    return (logits[:, 0] > 0).astype(np.int64) if logits.shape[1] == 1 else logits.argmax(1)


def fit_probe(
    column: Column,
    train: tuple[Floats, NDArray[np.int64]],
    valid: tuple[Floats, NDArray[np.int64]],
    n_classes: int,
    *,
    metric: str,
    settings: ProbeSettings,
) -> Probe:
    """Fit the path on the training rows and keep the penalty that the validation rows choose.

    `train` and `valid` are raw activations (n, width) with class indices (n,). For each class k the objective is
    mean(log(1 + exp(-y (x w_k + b_k)))) + lam |w_k|_1, on a grid of penalties that the classes share: geometric
    from lam_max to `min_ratio` of it, warm-started, then further down only while validation improves.
    """
    activations, labels = train
    mean, scale = standardisation(activations)
    standard = (activations.astype(np.float32) - mean) / scale
    # a neuron that never varies must not speak through its rounding noise
    standard[:, np.einsum("np,np->p", standard, standard) < len(standard) / 2] = 0
    held_out = (valid[0].astype(np.float32) - mean) / scale
    targets = signs(labels, n_classes)
    paths = [LogisticPath(standard, target) for target in targets]
    lam_max = max(path.lam_max for path in paths) or 1.0
    step = settings.min_ratio ** (1 / (settings.penalties - 1))

    best: tuple[float, float, Floats, Floats] | None = None
    improved = False
    for index in range(settings.penalties + settings.max_extra):
        if index >= settings.penalties and not improved:
            break
        lam = lam_max * step**index
        for path in paths:
            path.solve(min(lam, path.lam_max))
        coef = np.stack([path.w for path in paths]).astype(np.float32)
        intercept = np.array([path.b for path in paths], np.float32)
        found = score(metric, valid[1], classes_of(held_out @ coef.T + intercept)) if coef.any() else NO_NEURON
        improved = best is None or found > best[0]
        if improved:
            best = found, lam, coef, intercept
    assert best is not None
    valid_score, lam, coef, intercept = best
    kkt = max(kkt_violation(standard, y, w, b, lam) for y, w, b in zip(targets, coef, intercept, strict=True))
    return Probe(column, coef, intercept, mean, scale, lam, lam_max, kkt, valid_score)


def standardisation(activations: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation (width,) in float32; the deviation is 1 where a neuron never varies."""
    mean = activations.mean(0, dtype=np.float64)
    scale = activations.std(0, dtype=np.float64)
    constant = scale <= 1e-6 * np.maximum(1, np.abs(mean))
    return mean.astype(np.float32), np.where(constant, 1, scale).astype(np.float32)


def signs(labels: NDArray[np.int64], n_classes: int) -> list[Floats]:
    """The one-vs-rest targets, each (n,) of -1 and 1: one for two classes, else one a class."""
    positive = [1] if n_classes == 2 else range(n_classes)
    return [np.where(labels == k, 1, -1).astype(np.float32) for k in positive]


def describe(probe: Probe) -> dict[str, Any]:
    """What a report says of a probe."""
    neurons = int((probe.importance > 0).sum())
    return {
        "column": str(probe.column),
        "neurons": neurons,
        **{name: getattr(probe, name) for name in _FACTS},
    }
