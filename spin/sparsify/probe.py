"""Probes: one L1 logistic regularisation path per feature column, which shows what its neurons know."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.arrays import Floats, Rows
from spin.labels.cross_validation import Fold, standard_error
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.settings import ProbeSettings
from spin.sites import FeatureColumn
from spin.sparsify.solvers.batched_l1_path import BatchedPaths
from spin.sparsify.solvers.l1_path import TOLERANCE, LassoPaths, kkt_violation

_log = logging.getLogger(__name__)
_NOTHING_TO_LEARN = 1e-9
"""a smallest penalty without neurons up to which a class has no gradient but rounding noise"""
_FOLD_TOLERANCE = 3e-2
"""relative KKT violation at which the probes of several folds are accepted, which choose a penalty and are not kept"""
_NOISE = 1e-5
"""mean square of a standardised activation below which it is rounding noise: the scale of few rows may be much larger
than its standard deviation"""
NO_NEURON = 100.0
"""the loss of a probe without neurons, above that of all others: it never wins against a probe that has some"""
NO_SCORE = -1.0
"""the score of a probe without neurons, below every metric"""
INEXACT = 1e-2
"""violation of the optimality conditions above which a probe is warned of"""


class ProbeSummary(BaseModel):
    """A probe as a report holds it."""

    model_config = ConfigDict(frozen=True)

    column: str
    """the feature column, such as `ffn.05.mean`"""
    neurons: int
    """number of neurons with a weight"""
    lam: float
    """the chosen penalty of the class with the largest `lam_max`; every class has the same share of its own"""
    lam_max: float
    """the smallest penalty at which every weight is zero"""
    kkt: float
    """largest violation of the optimality conditions, as a share of the penalty"""
    valid_score: float
    """the metric on the validation rows"""


@dataclass(frozen=True)
class Probe:
    """The L1 logistic regression of one feature column at the penalty that validation chose.

    It is one-vs-rest: K rows of coefficients on standardised activations, or a single row for two exclusive classes.
    """

    column: FeatureColumn
    coef: Floats
    """(K, width)"""
    intercept: Floats
    """(K,)"""
    standardizer: Standardizer
    """mean and scale (width,) over the training rows"""
    lam: float
    """the chosen penalty of the class with the largest `lam_max`; every class has the same share of its own"""
    lam_max: float
    """the smallest penalty at which every coefficient is zero"""
    kkt: float
    """largest violation of the optimality conditions at the chosen penalty, as a share of it"""
    valid_score: float
    """the metric on the validation rows, the mean over folds where there are several"""
    folds: tuple[Probe, ...] = ()
    """with cross-validation, the same probe fitted on each fold's training rows alone"""

    def for_fold(self, index: int) -> Probe:
        """The probe that has not seen the validation rows of a fold."""
        return self.folds[index] if self.folds else self

    def decision(self, activations: Floats) -> Floats:
        """Logits (n, K) of raw activations (n, width)."""
        return self.standardizer.transform(activations) @ self.coef.T + self.intercept

    def predict(self, activations: Floats, label_space: LabelSpace) -> Targets:
        """The predicted targets of raw activations (n, width)."""
        return decide(self.decision(activations), label_space)

    @property
    def importance(self) -> Floats:
        """(width,) squared weights (SPIN, Jiao et al. 2024, section 3.2) as shares of each class's sum, added up.

        The shares keep the neurons of a rare class, whose weights are small.
        """
        squares = self.coef.astype(np.float64) ** 2
        totals = squares.sum(1, keepdims=True)
        return np.asarray((squares / np.where(totals > 0, totals, 1)).sum(0))

    def summary(self) -> ProbeSummary:
        """The probe as a report holds it."""
        figures = {name: getattr(self, name) for name in _FIGURES}
        return ProbeSummary(column=str(self.column), neurons=int((self.importance > 0).sum()), **figures)

    def to_bytes(self) -> bytes:
        """A safetensors file of the values; the column is the key that it is stored under."""
        parts = (self, *self.folds)
        return save_tensors({f"{i}.{name}": t for i, part in enumerate(parts) for name, t in part._tensors().items()})

    @classmethod
    def from_bytes(cls, column: FeatureColumn, data: bytes) -> Probe:
        """The probe of a column from the bytes that `to_bytes` returned."""
        tensors = load_tensors(data)
        parts = [
            cls(
                column,
                tensors[f"{i}.coef"],
                tensors[f"{i}.intercept"],
                Standardizer(tensors[f"{i}.mean"], tensors[f"{i}.scale"]),
                *tensors[f"{i}.figures"].tolist(),
            )
            for i in range(len(tensors) // len(_TENSORS))
        ]
        return replace(parts[0], folds=tuple(parts[1:]))

    def _tensors(self) -> dict[str, NDArray[Any]]:
        arrays = (self.coef, self.intercept, self.standardizer.mean, self.standardizer.scale)
        values = [np.ascontiguousarray(array, np.float32) for array in arrays]
        figures = np.array([getattr(self, name) for name in _FIGURES], np.float64)
        return dict(zip(_TENSORS, [*values, figures], strict=True))


@dataclass(frozen=True)
class ProbeStart:
    """A probe of similar documents, from which that of the same feature column starts."""

    probe: Probe
    classes: tuple[str, ...]
    """of the rows of its coefficients; of two exclusive classes both"""

    def penalty_number(self, settings: ProbeSettings) -> int:
        """The number, from 0, of its penalty among the falling ones of the settings."""
        return round(np.log(self.probe.lam / self.probe.lam_max) / np.log(settings.step))

    def coefficients(self, standardizer: Standardizer, label_space: LabelSpace) -> tuple[Floats, Floats]:
        """The same function of raw activations by another standardizer: coef (K, width) and intercept (K,).

        The rows are those of the classes of a label space; a class that the probe does not know has zeros.
        """
        probe, old = self.probe, self.probe.standardizer
        raw = probe.coef / old.scale
        intercept = probe.intercept - raw @ old.mean + raw @ standardizer.mean
        coef = raw * standardizer.scale
        rows = list(zip(coef, intercept, strict=True))
        if len(rows) == 1 and len(self.classes) == 2:  # of two exclusive classes there is the row of the second
            rows.insert(0, (-rows[0][0], -rows[0][1]))
        known, nothing = dict(zip(self.classes, rows, strict=True)), (np.zeros(coef.shape[1]), 0.0)
        binary = len(label_space) == 2 and not label_space.multilabel
        wanted = [known.get(name, nothing) for name in (label_space.classes[1:] if binary else label_space.classes)]
        return np.stack([w for w, _ in wanted]), np.array([b for _, b in wanted])


_FIGURES = ("lam", "lam_max", "kkt", "valid_score")
_TENSORS = ("coef", "intercept", "mean", "scale", "figures")
"""names of the arrays that are stored of a probe"""


def warn_of_inexact_probes(summaries: Sequence[ProbeSummary]) -> None:
    """Log a warning if solvers ended far from the optimum: the neurons of these probes may be chosen badly."""
    inexact = [summary for summary in summaries if summary.kkt > INEXACT]
    if inexact:
        worst = max(inexact, key=lambda summary: summary.kkt)
        _log.warning(
            "%d of %d probes are not optimal: the conditions are violated by up to %.1g of the penalty (%s), expected "
            "at most %.0e; raise probe.min_ratio, or leave the site out",
            len(inexact),
            len(summaries),
            worst.kkt,
            worst.column,
            INEXACT,
        )


def best_probe(probes: Sequence[Probe]) -> Probe:
    """The probe that scores best on validation; of equal ones the shallowest."""
    return max(probes, key=lambda p: (p.valid_score, -p.column.site.layer, p.column))


def decide(logits: Floats, label_space: LabelSpace) -> Targets:
    """The targets of one-vs-rest logits (n, K), where K is 1 for two exclusive classes."""
    return (logits[:, 0] > 0).astype(np.int64) if logits.shape[1] == 1 else label_space.predict(logits)


def fit_probes(
    activations: Mapping[FeatureColumn, Floats],
    data: TrainingData,
    settings: ProbeSettings,
    starts: Mapping[FeatureColumn, ProbeStart] | None = None,
) -> list[Probe]:
    """Fit the paths of feature columns of one width and keep for each the penalty that validation chooses.

    `activations` are raw and of all rows (n, width). For each class k the objective is sum_i s_ki log(1 + exp(-y_ki
    (x_i w_k + b_k))) + lam_k |w_k|_1 with class weights s. The penalties are shares of each class's own lam_max, so
    that a rare class keeps its neurons. They fall geometrically from 1 to `min_ratio`, then further while the log loss
    of validation rows falls. With cross-validation the share is the smallest whose mean loss over the folds is within
    one standard error of the least, and the probe is fitted on all labelled rows at that share. A CPU follows the paths
    one after another, warm-started; a GPU solves them at once.

    With `starts` for all columns and a single fold, only the penalties next to those of the starts are tried, and
    further ones as above. A CPU begins at their coefficients. The solutions have the same certificates.
    """
    if len(data.folds) > 1:
        starts = None
    columns = range(len(activations))
    tolerance = TOLERANCE if len(data.folds) == 1 else _FOLD_TOLERANCE
    paths = [_ColumnPaths(activations, data, fold.train, settings, tolerance, starts) for fold in data.folds]
    numbers = _numbers_to_try([starts[column] for column in activations] if starts else [], settings)
    ratios = settings.step ** np.array(numbers)
    losses = np.empty((len(paths), 0, len(activations)))
    while True:
        further = ratios[losses.shape[1] :]
        more = [
            path.extend(further).losses(activations, fold.valid, len(further))
            for path, fold in zip(paths, data.folds, strict=True)
        ]
        losses = np.concatenate([losses, more], axis=1)
        mean = losses.mean(0)
        falls = (mean[-1] < mean[:-1].min(0)).any()
        if not falls or numbers.start + len(ratios) >= settings.penalties + settings.max_extra:
            break
        ratios = np.append(ratios, ratios[-1] * settings.step)
    best = _choose_penalties(losses, data.folds)
    scores = [path.scores(activations, fold.valid, best) for path, fold in zip(paths, data.folds, strict=True)]
    valid = np.mean(scores, axis=0)
    of_folds = [tuple(path.probe(p, best[p], valid[p]) for path in paths) for p in columns]
    if len(paths) == 1:
        return [probe for [probe] in of_folds]
    final = _ColumnPaths(activations, data, data.rows, settings).extend(ratios[: best.max() + 1])
    return [final.probe(p, best[p], valid[p], of_folds[p]) for p in columns]


def _numbers_to_try(starts: Sequence[ProbeStart], settings: ProbeSettings) -> range:
    """The numbers of the penalties that are tried first: all of the settings, or those next to the starts'."""
    if not starts:
        return range(settings.penalties)
    near = [start.penalty_number(settings) for start in starts]
    return range(max(0, min(near) - 1), min(max(near) + 2, settings.penalties + settings.max_extra))


def _choose_penalties(losses: Floats, folds: Sequence[Fold]) -> NDArray[np.int64]:
    """The index of each column's penalty (P,) by losses (F, L, P) of F folds and L falling penalties.

    With a single fold it is the best one, the largest among equals. With several folds it is the smallest penalty that
    is not worse than the best by more than one standard error. The best of few documents is drawn from noise, and a
    neuron too many does less harm than one too few.
    """
    mean = losses.mean(0)
    best = mean.argmin(0)
    if len(folds) == 1:
        return best
    behind = losses - np.take_along_axis(losses, best[None, None], axis=1)
    near = (behind.mean(0) <= standard_error(behind, folds)) & (mean < NO_NEURON)
    return np.where(near.any(0), len(mean) - 1 - near[::-1].argmax(0), best)


class _ColumnPaths:
    """The regularisation paths of all columns and classes on some training rows, as far as they have been solved."""

    def __init__(
        self,
        activations: Mapping[FeatureColumn, Floats],
        data: TrainingData,
        rows: Rows,
        settings: ProbeSettings,
        tolerance: float = TOLERANCE,
        starts: Mapping[FeatureColumn, ProbeStart] | None = None,
    ) -> None:
        self.columns, self.data = list(activations), data
        self.standardizers: list[Standardizer] = []
        self.designs: list[Floats] = []
        for values in activations.values():  # the raw rows of one column at a time are in memory
            raw = values[rows]
            self.standardizers.append(Standardizer.fit(raw))
            self.designs.append(_design(raw, self.standardizers[-1]))
        self.settings, self.targets = settings, self._targets(rows)
        self.weights = class_weights(self.targets, settings.class_weights)
        self.solver = self._open_solver(tolerance)
        if starts and isinstance(self.solver, LassoPaths):
            for p, column in enumerate(self.columns):
                self.solver.start_at(p, *starts[column].coefficients(self.standardizers[p], data.label_space))
        # (P, K); a class that all rows have, or none, is learned from rounding noise at any share of its own
        self.lam_max = np.where(self.solver.lam_max > _NOTHING_TO_LEARN, self.solver.lam_max, 1.0)
        self.ratios: Floats = np.empty(0)
        self.solutions: list[tuple[Floats, Floats]] = []

    def _open_solver(self, tolerance: float) -> LassoPaths | BatchedPaths:
        if self.data.device == "cpu":
            return LassoPaths(self.designs, self.targets, self.weights, tolerance)
        return BatchedPaths(self.designs, self.targets, self.weights, tolerance, device=self.data.device)

    def extend(self, ratios: Floats) -> _ColumnPaths:
        """Solve at further penalties, given as shares of lam_max."""
        coef, intercept = self.solver.solve(ratios[:, None, None] * self.lam_max)
        self.ratios = np.concatenate([self.ratios, ratios])
        self.solutions += list(zip(coef, intercept, strict=True))
        return self

    def losses(self, activations: Mapping[FeatureColumn, Floats], rows: Rows, last: int) -> Floats:
        """The log loss on other rows (last, P) of the last solutions, the mean over the classes' problems."""
        held_out, targets = self._standardize(activations, rows), self._targets(rows)
        weights = class_weights(targets, self.settings.class_weights)

        def measure(X: Floats, coef: Floats, intercept: Floats) -> float:
            return logistic_loss(X @ coef.T + intercept, targets, weights) if coef.any() else NO_NEURON

        return np.array(
            [
                [measure(X, coef[p], intercept[p]) for p, X in enumerate(held_out)]
                for coef, intercept in self.solutions[-last:]
            ]
        )

    def scores(
        self, activations: Mapping[FeatureColumn, Floats], rows: Rows, indices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(P,) the metric on other rows of one solution of each column; `NO_SCORE` for one without neurons."""
        data, scores = self.data, []
        for p, X in enumerate(self._standardize(activations, rows)):
            coef, intercept = (values[p] for values in self.solutions[indices[p]])
            labels = decide(X @ coef.T + intercept, data.label_space)
            scores.append(score(data.metric, data.y[rows], labels) if coef.any() else NO_SCORE)
        return np.array(scores)

    def _standardize(self, activations: Mapping[FeatureColumn, Floats], rows: Rows) -> list[Floats]:
        """The standardised activations of each column for other rows."""
        columns = zip(activations.values(), self.standardizers, strict=True)
        return [standardizer.transform(values[rows]) for values, standardizer in columns]

    def _targets(self, rows: Rows) -> Floats:
        """The one-vs-rest targets (K, m) of some rows."""
        return signs(self.data.label_space.indicator(self.data.y[rows]), self.data.label_space)

    def probe(self, p: int, index: int, valid_score: float, folds: tuple[Probe, ...] = ()) -> Probe:
        """The solution of column number `p` at penalty number `index`, with its certificate."""
        (coef, intercept), ratio, lam_max = self.solutions[index], float(self.ratios[index]), self.lam_max[p]
        return Probe(
            column=self.columns[p],
            coef=coef[p],
            intercept=intercept[p],
            standardizer=self.standardizers[p],
            lam=ratio * float(lam_max.max()),
            lam_max=float(lam_max.max()),
            kkt=kkt_violation(self.designs[p], self.targets, self.weights, coef[p], intercept[p], ratio * lam_max),
            valid_score=float(valid_score),
            folds=folds,
        )


def logistic_loss(logits: Floats, targets: Floats, weights: Floats) -> float:
    """The mean over the classes of the weighted log loss of logits (n, K); targets -1 or 1 and weights are (K, n)."""
    return float((weights * np.logaddexp(0, -targets * logits.T)).sum(1).mean())


def _design(activations: Floats, standardizer: Standardizer) -> Floats:
    """Standardised activations (n, width); a neuron that never varies is zero, not its own rounding noise."""
    standard = standardizer.transform(activations)
    standard[:, np.einsum("np,np->p", standard, standard) < _NOISE * len(standard)] = 0
    return standard


def signs(has: NDArray[np.bool_], label_space: LabelSpace) -> Floats:
    """The one-vs-rest targets (K, n), -1 or 1; of two exclusive classes only the second's."""
    columns = has[:, 1:] if len(label_space) == 2 and not label_space.multilabel else has
    return np.where(columns.T, 1, -1).astype(np.float32)


def class_weights(targets: Floats, kind: str) -> Floats:
    """The row weights (K, n) of one-vs-rest targets; each problem's sum to 1.

    `none` weighs all rows the same, `balanced` gives half of the weight to either side of each problem.
    """
    if kind == "none":
        return np.full(targets.shape, 1 / targets.shape[1], np.float32)
    positive = targets > 0
    sides = [side / np.maximum(side.sum(1, keepdims=True), 1) for side in (positive, ~positive)]
    weights = sides[0] + sides[1]
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
