"""The recipe of the paper (Jiao et al. 2024) after its public code, with the bugs of that code fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import process_time

import numpy as np
from numpy.typing import NDArray

from benchmarks.method.contenders import Answer, calibrate, falling
from benchmarks.method.corpora import METRIC, Exam
from spin.arrays import Floats, Rows
from spin.labels.cross_validation import Fold
from spin.labels.metrics import score
from spin.sites import FeatureColumn
from spin.sparsify.probe import signs
from spin.sparsify.solvers.l1_path import LogisticPaths

PROBE_STRENGTHS = (0.01, 0.1, 0.2, 1.0, 10.0)
HEAD_STRENGTHS = (0.2, 1.0)
"""the paper's grid also has 10, for which each path on concatenated raw layers takes minutes"""
ETAS = (0.01, 0.1, 0.3, 0.5, 0.8)
"""every second of the paper's ten"""
ROUND = 5
"""folds of the cross-validation where labels are few: one of its rounds"""
_PROBE_PATIENCE, _HEAD_PATIENCE = 1.0, 4.0
"""seconds after which the path of a class ends, fewer per fold in cross-validation; models not reached are counted"""


@dataclass(frozen=True)
class Linear:
    """One-vs-rest logistic regression on raw features."""

    coef: Floats
    """(K, p)"""
    intercept: Floats
    """(K,)"""

    def logits(self, X: Floats) -> Floats:
        return X.astype(np.float32) @ self.coef.T + self.intercept


class Recipe:
    """Probes on raw hidden states, and heads on the neurons selected in the first k layers under one pooling."""

    def __init__(self, exam: Exam) -> None:
        self.exam, self.folds = exam, exam.folds[:ROUND]
        self.columns = [c for c in exam.corpus.features if c.site.kind == "resid"]
        share = 1.0 if len(self.folds) == 1 else 2 / ROUND
        self.probe_patience = share * _PROBE_PATIENCE
        self.head_patience = share * _HEAD_PATIENCE
        self.requested = self.unreached = 0  # models
        self.order: dict[FeatureColumn, list[tuple[NDArray[np.int64], Floats]]] = {}
        """by column, per fold and last for all labelled rows: neurons by falling importance, the share before each"""
        for column in self.columns:
            self._probe(column)

    def paths(self, X: Floats, rows: Rows, strengths: Sequence[float], patience: float) -> list[Linear | None]:
        """One model per strength, in ascending order; None if the path of a class ended before that strength.

        The minima of |w|_1 + C sum_i log(1 + exp(-y_i (x_i w + b))), on raw features. Centring
        them changes only the intercept, which is not penalised, and makes the path faster.
        """
        X, label_space = X.astype(np.float32), self.exam.corpus.label_space
        mean = X.mean(0)
        X = X - mean
        lams = [1 / (C * len(X)) for C in strengths]
        solved: list[list[tuple[Floats, float] | None]] = []
        for y in signs(label_space.indicator(self.exam.y[rows]), label_space):
            # no class needs the strengths that the class before did not reach
            reached = lams[: sum(model is not None for model in solved[-1])] if solved else lams
            solved.append(_path(X, y, reached, patience) + [None] * (len(lams) - len(reached)))
        models: list[Linear | None] = []
        for class_models in zip(*solved, strict=True):
            if any(model is None for model in class_models):
                models.append(None)
                continue
            coef = np.array([w for w, _ in class_models], np.float32)
            models.append(Linear(coef, np.array([b for _, b in class_models], np.float32) - coef @ mean))
        self.requested += len(models)
        self.unreached += sum(model is None for model in models)
        return models

    def judge(self, models: Sequence[Linear | None], values: Sequence[Floats]) -> float:
        """The mean validation score over the folds; -1 if a path did not reach the model of a fold."""
        predict = self.exam.corpus.label_space.predict
        scores = [
            -1.0 if model is None else score(METRIC, self.exam.y[fold.valid], predict(model.logits(X)))
            for fold, model, X in zip(self.folds, models, values, strict=True)
        ]
        return -1.0 if min(scores) < 0 else float(np.mean(scores))

    def features(self, columns: Sequence[FeatureColumn], eta: float, part: int, rows: Rows) -> Floats:
        """The raw activations (rows, p) of the neurons that the probes of a fold select, side by side."""
        parts = []
        for column in columns:
            selected = most_important(*self.order[column][part], eta)
            parts.append(self.exam.corpus.features[column][np.ix_(rows, selected)])
        return np.concatenate(parts, axis=1)

    def _probe(self, column: FeatureColumn) -> None:
        """Fit the probes of a column at the best strength in validation, and order its neurons by importance."""
        values = self.exam.corpus.features[column]
        models = [self.paths(values[f.train], f.train, PROBE_STRENGTHS, self.probe_patience) for f in self.folds]
        held_out = [values[f.valid] for f in self.folds]
        scores = [self.judge([fold_models[i] for fold_models in models], held_out) for i in range(len(PROBE_STRENGTHS))]
        best = int(np.argmax(scores))
        if scores[best] < 0:
            models = [self.paths(values[f.train], f.train, PROBE_STRENGTHS[:1], np.inf) for f in self.folds]
        chosen = [fold_models[best] for fold_models in models]
        if len(self.folds) > 1:
            rows = self.exam.data.rows
            chosen += self.paths(values[rows], rows, [PROBE_STRENGTHS[best]], np.inf)
        else:  # as in SPIN, the probe of a single division also selects for the final head
            chosen += chosen
        squares = [(model.coef.astype(np.float64) ** 2).sum(0) for model in chosen if model is not None]
        self.order[column] = [order(importance) for importance in squares]


def paper(exam: Exam) -> Answer:
    """Probes, selection and head as in the paper; of all heads the one with the best validation score."""
    start = process_time()
    recipe = Recipe(exam)
    candidates = []
    for pooling in sorted({c.pooling for c in recipe.columns}):
        columns = [c for c in recipe.columns if c.pooling == pooling]
        for k in sorted({1, len(columns) // 2, len(columns) - 1, len(columns)}):
            for eta in ETAS:
                candidates += _fit_heads(recipe, columns[:k], eta)
    best = max(candidates, key=lambda candidate: candidate.valid_score)
    held_out = best.held_out(recipe)
    logits = best.final_logits(recipe)
    neurons = recipe.features(best.columns, best.eta, -1, exam.test[:1]).shape[1]
    site = best.columns[-1].site
    choice = (
        f"{best.columns[0].pooling}, first {len(best.columns)}, eta {best.eta}, C {best.strength:g}; "
        f"{recipe.unreached} of {recipe.requested} models not reached"
    )
    return calibrate(exam, "the paper's recipe", logits, held_out, process_time() - start, choice, neurons, site)


@dataclass(frozen=True)
class Candidate:
    """A head of the search, fitted per fold."""

    columns: Sequence[FeatureColumn]
    eta: float
    strength: float
    valid_score: float
    models: Sequence[Linear]

    def held_out(self, recipe: Recipe) -> list[Floats]:
        """The logits of the validation documents of each fold by the head fitted on its training documents."""
        return [
            model.logits(recipe.features(self.columns, self.eta, i, fold.valid))
            for i, (model, fold) in enumerate(zip(self.models, recipe.folds, strict=True))
        ]

    def final_logits(self, recipe: Recipe) -> Floats:
        """Logits of the test documents by the head fitted on all labelled ones."""
        exam, rows = recipe.exam, recipe.exam.data.rows
        X = recipe.features(self.columns, self.eta, -1, rows)
        [model] = recipe.paths(X, rows, [self.strength], np.inf)
        assert model is not None
        return model.logits(recipe.features(self.columns, self.eta, -1, exam.test))


def _fit_heads(recipe: Recipe, columns: Sequence[FeatureColumn], eta: float) -> list[Candidate]:
    """One head per strength on the given columns at one eta, without those that a path did not reach."""

    def fit(part: int, fold: Fold) -> list[Linear | None]:
        return recipe.paths(
            recipe.features(columns, eta, part, fold.train), fold.train, HEAD_STRENGTHS, recipe.head_patience
        )

    models = [fit(part, fold) for part, fold in enumerate(recipe.folds)]
    held_out = [recipe.features(columns, eta, part, fold.valid) for part, fold in enumerate(recipe.folds)]
    candidates = []
    for i, strength in enumerate(HEAD_STRENGTHS):
        strength_models = [fold_models[i] for fold_models in models]
        reached = [model for model in strength_models if model is not None]
        if len(reached) == len(strength_models):
            candidates.append(Candidate(columns, eta, strength, recipe.judge(strength_models, held_out), reached))
    return candidates


def _path(X: Floats, y: Floats, lams: Sequence[float], patience: float) -> list[tuple[Floats, float] | None]:
    """The solution at each of the falling penalties, None for those not reached within `patience` seconds."""
    start = process_time()
    path = LogisticPaths(X, y[None], np.full((1, len(y)), 1 / len(y), np.float32))
    solutions: dict[float, tuple[Floats, float]] = {}
    for lam in falling(float(path.lam_max[0]), lams):
        if process_time() - start > patience:
            break
        path.solve(np.minimum(lam, path.lam_max))
        if lam in lams:
            solutions[lam] = (path.coef[0], float(path.intercept[0]))
    return [solutions.get(lam) for lam in lams]


def order(importance: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Neurons with any importance, by falling importance (width,), and the summed share before each."""
    share = importance.astype(np.float64) / max(importance.sum(dtype=np.float64), 1e-300)
    neurons = np.argsort(-share, kind="stable")[: (share > 0).sum()]
    return neurons, np.cumsum(share[neurons]) - share[neurons]


def most_important(neurons: NDArray[np.int64], before: Floats, eta: float) -> NDArray[np.int64]:
    """The fewest neurons, ascending, whose importance reaches a share `eta`, from what `order` returned."""
    return np.sort(neurons[before < eta * (1 - 1e-12)])
