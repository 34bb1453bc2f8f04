"""One L1 logistic regularisation path a site.pooling: what a layer knows, and which of its neurons know it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.arrays import Floats, Rows
from spin.labels.cross_validation import Fold, labelled, standard_error
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.settings import ProbeSettings
from spin.sites import FeatureColumn
from spin.sparsify.solvers.l1_path import LassoPaths, kkt_violation

NO_NEURON = -1.0
"""the score of a probe without neurons, below every metric: it never wins against one that has some"""


@dataclass(frozen=True)
class Probe:
    """The L1 logistic regression of one site.pooling at the penalty that validation chose.

    One-vs-rest: K rows, or one for a task of two classes of which a document has one; coefficients act on
    standardised activations.
    """

    column: FeatureColumn
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
    """the metric on the validation rows, the mean over folds where there are several"""
    folds: tuple[Probe, ...] = ()
    """where cross-validation chose: the same probe, fitted on each fold's training rows alone"""

    def of_fold(self, index: int) -> Probe:
        """The probe that has not seen the validation rows of a fold."""
        return self.folds[index] if self.folds else self

    def decision(self, activations: Floats) -> Floats:
        """Logits (n, K) of raw activations (n, width)."""
        standard = (activations.astype(np.float32) - self.mean) / self.scale
        return standard @ self.coef.T + self.intercept

    def predict(self, activations: Floats, label_space: LabelSpace) -> Targets:
        """Class indices (n,), or booleans (n, K) of a multi-label task."""
        return decide(self.decision(activations), label_space)

    @property
    def importance(self) -> Floats:
        """(width,) squared weights, summed over the classes."""
        return (self.coef.astype(np.float64) ** 2).sum(0)

    def to_bytes(self) -> bytes:
        """A safetensors file; what is not a tensor lies in its metadata as JSON."""
        parts = (self, *self.folds)
        facts = [{"column": str(part.column), **{name: getattr(part, name) for name in _FACTS}} for part in parts]
        tensors = {
            f"{index}.{name}": np.ascontiguousarray(getattr(part, name), np.float32)
            for index, part in enumerate(parts)
            for name in _TENSORS
        }
        return save_tensors(tensors, {"probes": json.dumps(facts)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Probe:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        tensors: dict[str, Any] = load_tensors(data)
        parts = [
            {
                **facts,
                "column": FeatureColumn.parse(facts["column"]),
                **{name: tensors[f"{i}.{name}"] for name in _TENSORS},
            }
            for i, facts in enumerate(json.loads(header["__metadata__"]["probes"]))
        ]
        return cls(**parts[0], folds=tuple(cls(**part) for part in parts[1:]))


_TENSORS = ("coef", "intercept", "mean", "scale")
_FACTS = ("lam", "lam_max", "kkt", "valid_score")


def decide(logits: Floats, label_space: LabelSpace) -> Targets:
    """The targets of one-vs-rest logits (n, K), K being 1 for two classes of which a document has one."""
    return (logits[:, 0] > 0).astype(np.int64) if logits.shape[1] == 1 else label_space.predict(logits)


def fit_probes(
    activations: Mapping[FeatureColumn, Floats],
    y: Targets,
    folds: Sequence[Fold],
    label_space: LabelSpace,
    *,
    metric: str,
    settings: ProbeSettings,
    device: str = "cpu",
) -> list[Probe]:
    """Fit the paths of columns of one width and keep for each the penalty that the validation rows choose.

    `activations` are raw and of all rows (n, width), `y` the targets of all rows. For each class k the objective is
    sum_i s_ki log(1 + exp(-y_ki (x_i w_k + b_k))) + lam |w_k|_1 with the class weights s, on a grid of penalties that
    the classes share: geometric from lam_max to `min_ratio` of it, then further down while validation improves.
    With several folds a share of lam_max is chosen by their mean, and the probe is fitted on all of their rows at
    that share. On a CPU the paths follow one another, warm-started; a GPU solves them at once.
    """
    columns = range(len(activations))
    walks = [_Walk(activations, y, fold.train, label_space, settings, device) for fold in folds]
    ratios, scores = np.array(settings.ratios()), np.empty((len(folds), 0, len(activations)))
    while True:
        further = ratios[scores.shape[1] :]
        found = [
            walk.on(further).scores(activations, y, fold.valid, label_space, metric, len(further))
            for walk, fold in zip(walks, folds, strict=True)
        ]
        scores = np.concatenate([scores, found], axis=1)
        mean = scores.mean(0)
        if len(ratios) >= settings.penalties + settings.max_extra or (mean[-1] <= mean[:-1].max(0)).all():
            break
        ratios = np.append(ratios, ratios[-1] * settings.step)
    best = _choose(scores, folds)
    if len(folds) == 1:
        return [walks[0].probe(p, best[p], mean[best[p], p]) for p in columns]
    whole = _Walk(activations, y, labelled(folds), label_space, settings, device).on(ratios[: best.max() + 1])
    return [
        whole.probe(p, best[p], mean[best[p], p], tuple(walk.probe(p, best[p], mean[best[p], p]) for walk in walks))
        for p in columns
    ]


def _choose(scores: Floats, folds: Sequence[Fold]) -> NDArray[np.int64]:
    """The penalty (P,) of each column by scores (F, L, P): of equal ones the largest.

    With several folds the smallest that is not worse than the best by more than one standard error: the best of few
    documents is drawn from noise, and a neuron too many does less harm than one too few.
    """
    mean = scores.mean(0)
    best = mean.argmax(0)
    if len(folds) == 1:
        return best
    behind = np.take_along_axis(scores, best[None, None], axis=1) - scores
    near = (behind.mean(0) <= standard_error(behind, folds)) & (mean > NO_NEURON)
    return np.where(near.any(0), len(mean) - 1 - near[::-1].argmax(0), best)


class _Walk:
    """The paths of all columns and classes on some training rows, as far as they have been walked."""

    def __init__(
        self,
        activations: Mapping[FeatureColumn, Floats],
        y: Targets,
        rows: Rows,
        label_space: LabelSpace,
        settings: ProbeSettings,
        device: str,
    ) -> None:
        self.columns = list(activations)
        self.scalers, self.designs = zip(*(_standard(values[rows]) for values in activations.values()), strict=True)
        self.targets = signs(label_space.indicator(y[rows]), label_space)
        self.weights = balance(self.targets, settings.class_weights)
        self.paths: Any
        if device == "cpu":
            self.paths = LassoPaths(self.designs, self.targets, self.weights)
        else:
            from spin.sparsify.solvers.batched_l1_path import BatchedPaths

            self.paths = BatchedPaths(self.designs, self.targets, self.weights, device=device)
        self.lam_max = np.where(self.paths.lam_max > 0, self.paths.lam_max, 1.0)
        self.lams: Floats = np.empty((0, len(self.columns)))
        self.found: list[tuple[Floats, Floats]] = []

    def on(self, ratios: Floats) -> _Walk:
        """Solve at further shares of lam_max."""
        lams = ratios[:, None] * self.lam_max
        coef, intercept = self.paths.solve(lams)
        self.lams = np.concatenate([self.lams, lams])
        self.found += list(zip(coef, intercept, strict=True))
        return self

    def scores(
        self,
        activations: Mapping[FeatureColumn, Floats],
        y: Targets,
        rows: Rows,
        label_space: LabelSpace,
        metric: str,
        last: int,
    ) -> Floats:
        """The metric on other rows (last, P) of the last solutions."""
        held_out = [
            (values[rows].astype(np.float32) - mean) / scale
            for values, (mean, scale) in zip(activations.values(), self.scalers, strict=True)
        ]
        return np.array(
            [
                [
                    score(metric, y[rows], decide(X @ coef[p].T + intercept[p], label_space))
                    if coef[p].any()
                    else NO_NEURON
                    for p, X in enumerate(held_out)
                ]
                for coef, intercept in self.found[-last:]
            ]
        )

    def probe(self, p: int, at: int, valid_score: float, folds: tuple[Probe, ...] = ()) -> Probe:
        """The solution of column `p` at the penalty number `at`, with its certificate."""
        (coef, intercept), lam = self.found[at], float(self.lams[at, p])
        problems = zip(self.targets, self.weights, coef[p], intercept[p], strict=True)
        kkt = max(kkt_violation(self.designs[p], y, s, w, b, lam) for y, s, w, b in problems)
        mean, scale = self.scalers[p]
        lam_max = float(self.lam_max[p])
        return Probe(self.columns[p], coef[p], intercept[p], mean, scale, lam, lam_max, kkt, float(valid_score), folds)


def _standard(activations: Floats) -> tuple[tuple[Floats, Floats], Floats]:
    """Mean and scale, and the standardised design."""
    mean, scale = standardisation(activations)
    standard = (activations.astype(np.float32) - mean) / scale
    # a neuron that never varies must not speak through its rounding noise
    standard[:, np.einsum("np,np->p", standard, standard) < len(standard) / 2] = 0
    return (mean, scale), standard


def standardisation(activations: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation (width,) in float32; the deviation is 1 where a neuron never varies."""
    mean = activations.mean(0, dtype=np.float64)
    scale = activations.std(0, dtype=np.float64)
    constant = scale <= 1e-6 * np.maximum(1, np.abs(mean))
    return mean.astype(np.float32), np.where(constant, 1, scale).astype(np.float32)


def signs(has: NDArray[np.bool_], label_space: LabelSpace) -> Floats:
    """The one-vs-rest targets (K, n) of -1 and 1; of two classes of which a document has one, the second's alone."""
    columns = has[:, 1:] if len(label_space) == 2 and not label_space.multilabel else has
    return np.where(columns.T, 1, -1).astype(np.float32)


def balance(targets: Floats, kind: str) -> Floats:
    """The weights (K, n) of the rows in each one-vs-rest problem, summing to 1: all alike, or half a side."""
    if kind == "none":
        return np.full(targets.shape, 1 / targets.shape[1], np.float32)
    yes = targets > 0
    sides = [side / np.maximum(side.sum(1, keepdims=True), 1) for side in (yes, ~yes)]
    weights = sides[0] + sides[1]
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def describe(probe: Probe) -> dict[str, Any]:
    """What a report says of a probe."""
    neurons = int((probe.importance > 0).sum())
    return {
        "column": str(probe.column),
        "neurons": neurons,
        **{name: getattr(probe, name) for name in _FACTS},
    }
