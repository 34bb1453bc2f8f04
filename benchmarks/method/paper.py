"""The recipe of the paper (Jiao et al. 2024) as its public code has it, with that code's bugs fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import process_time

import numpy as np
from numpy.typing import NDArray

from benchmarks.method.contenders import Answer, falling, temperature
from benchmarks.method.corpora import METRIC, Exam
from spin.arrays import Floats, Rows
from spin.labels.cross_validation import Fold, labelled_rows
from spin.labels.metrics import score
from spin.sites import FeatureColumn
from spin.sparsify.probe import signs
from spin.sparsify.solvers.l1_path import LogisticPath

PROBE_STRENGTHS = (0.01, 0.1, 0.2, 1.0, 10.0)
HEAD_STRENGTHS = (0.2, 1.0)
"""the paper's grid has 10 as well: on concatenated raw layers its paths take minutes each"""
ETAS = (0.01, 0.1, 0.3, 0.5, 0.8)
"""every second of its ten"""
_FOLDS = 5
"""of the cross-validation where labels are few: one of its rounds"""
_PROBE_PATIENCE, _HEAD_PATIENCE = 1.0, 4.0
"""seconds after which a class's path stops falling, fewer where there are folds: what it does not reach is counted"""


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
    """Probes on raw hidden states, and heads on what they select of the first k layers under one pooling."""

    def __init__(self, exam: Exam) -> None:
        self.exam, self.folds = exam, exam.folds[:_FOLDS]
        self.columns = [c for c in exam.corpus.features if c.site.kind == "resid"]
        share = 1.0 if len(self.folds) == 1 else 2 / _FOLDS
        self.probe_patience = share * _PROBE_PATIENCE
        self.head_patience = share * _HEAD_PATIENCE
        self.asked = self.unreached = 0
        self.order: dict[FeatureColumn, list[tuple[NDArray[np.int64], Floats]]] = {}
        """of each column, a fold and last all labelled rows: neurons by falling importance, the share before each"""
        for column in self.columns:
            self._probe(column)

    def paths(self, X: Floats, rows: Rows, strengths: Sequence[float], patience: float) -> list[Linear | None]:
        """A model a strength, in the order of rising strengths; None where the path of a class did not get there.

        The minima of |w|_1 + C sum_i log(1 + exp(-y_i (x_i w + b))), the features raw: an intercept that no penalty
        holds makes moving them to mean zero a change of its value alone, and the path faster.
        """
        X, label_space = X.astype(np.float32), self.exam.corpus.label_space
        mean = X.mean(0)
        X = X - mean
        lams = [1 / (C * len(X)) for C in strengths]
        solved: list[list[tuple[Floats, float] | None]] = []
        for y in signs(label_space.indicator(self.exam.y[rows]), label_space):
            wanted = lams[: sum(one is not None for one in solved[-1])] if solved else lams  # what one class reached
            solved.append(_path(X, y, wanted, patience) + [None] * (len(lams) - len(wanted)))
        found: list[Linear | None] = []
        for of_classes in zip(*solved, strict=True):
            if any(one is None for one in of_classes):
                found.append(None)
                continue
            coef = np.array([w for w, _ in of_classes], np.float32)
            found.append(Linear(coef, np.array([b for _, b in of_classes], np.float32) - coef @ mean))
        self.asked += len(found)
        self.unreached += sum(one is None for one in found)
        return found

    def judge(self, models: Sequence[Linear | None], values: Sequence[Floats]) -> float:
        """The metric on validation rows, the mean over folds; -1 where a path did not get there."""
        scores = [
            -1.0 if model is None else score(METRIC, self.exam.y[fold.valid], model.logits(X).argmax(1))
            for fold, model, X in zip(self.folds, models, values, strict=True)
        ]
        return -1.0 if min(scores) < 0 else float(np.mean(scores))

    def features(self, columns: Sequence[FeatureColumn], eta: float, part: int, rows: Rows) -> Floats:
        """What the probes of a fold select, side by side and raw."""
        found = []
        for column in columns:
            neurons, before = self.order[column][part]
            kept = np.sort(neurons[before < eta * (1 - 1e-12)])
            found.append(self.exam.corpus.features[column][np.ix_(rows, kept)])
        return np.concatenate(found, axis=1)

    def _probe(self, column: FeatureColumn) -> None:
        """The probes of a column at the strength that validates best, as an order of its neurons."""
        values = self.exam.corpus.features[column]
        found = [self.paths(values[f.train], f.train, PROBE_STRENGTHS, self.probe_patience) for f in self.folds]
        held_out = [values[f.valid] for f in self.folds]
        scores = [self.judge([of_fold[i] for of_fold in found], held_out) for i in range(len(PROBE_STRENGTHS))]
        best = int(np.argmax(scores))
        if scores[best] < 0:
            found = [self.paths(values[f.train], f.train, PROBE_STRENGTHS[:1], np.inf) for f in self.folds]
        chosen = [of_fold[best] for of_fold in found]
        if len(self.folds) > 1:
            rows = labelled_rows(self.exam.folds)
            chosen += self.paths(values[rows], rows, [PROBE_STRENGTHS[best]], np.inf)
        else:  # as ours: what one division has probed selects for the final head too
            chosen += chosen
        self.order[column] = [_order(model) for model in chosen if model is not None]


def paper(exam: Exam) -> Answer:
    """Probes, selection and head as in the paper, the best on validation of all that was tried."""
    start = process_time()
    recipe = Recipe(exam)
    tried = []
    for pooling in sorted({c.pooling for c in recipe.columns}):
        columns = [c for c in recipe.columns if c.pooling == pooling]
        for k in sorted({1, len(columns) // 2, len(columns) - 1, len(columns)}):
            for eta in ETAS:
                tried += _heads(recipe, columns[:k], eta)
    best = max(tried, key=lambda one: one.valid_score)
    logits = best.held_out_and_test(recipe)
    neurons = recipe.features(best.columns, best.eta, -1, exam.test[:1]).shape[1]
    site = best.columns[-1].site
    choice = (
        f"{best.columns[0].pooling}, first {len(best.columns)}, eta {best.eta}, C {best.strength:g}; "
        f"{recipe.unreached} of {recipe.asked} models not reached"
    )
    return Answer(
        "the paper's recipe", logits, neurons, site.layer, exam.corpus.compute(site), process_time() - start, choice
    )


@dataclass(frozen=True)
class Tried:
    """A head of the search."""

    columns: Sequence[FeatureColumn]
    eta: float
    strength: float
    valid_score: float
    models: Sequence[Linear]

    def held_out_and_test(self, recipe: Recipe) -> Floats:
        """Logits of the test documents, fitted on all labelled ones, over the temperature of the held-out ones."""
        exam, rows = recipe.exam, labelled_rows(recipe.exam.folds)
        held_out = [
            model.logits(recipe.features(self.columns, self.eta, i, fold.valid))
            for i, (model, fold) in enumerate(zip(self.models, recipe.folds, strict=True))
        ]
        X = recipe.features(self.columns, self.eta, -1, rows)
        [model] = recipe.paths(X, rows, [self.strength], np.inf)
        assert model is not None
        test = model.logits(recipe.features(self.columns, self.eta, -1, exam.test))
        return test / temperature(exam, held_out)


def _heads(recipe: Recipe, columns: Sequence[FeatureColumn], eta: float) -> list[Tried]:
    """A head a strength on the first layers at one eta."""

    def fit(part: int, fold: Fold) -> list[Linear | None]:
        return recipe.paths(
            recipe.features(columns, eta, part, fold.train), fold.train, HEAD_STRENGTHS, recipe.head_patience
        )

    found = [fit(part, fold) for part, fold in enumerate(recipe.folds)]
    held_out = [recipe.features(columns, eta, part, fold.valid) for part, fold in enumerate(recipe.folds)]
    tried = []
    for i, strength in enumerate(HEAD_STRENGTHS):
        models = [of_fold[i] for of_fold in found]
        reached = [model for model in models if model is not None]
        if len(reached) == len(models):
            tried.append(Tried(columns, eta, strength, recipe.judge(models, held_out), reached))
    return tried


def _path(X: Floats, y: Floats, lams: Sequence[float], patience: float) -> list[tuple[Floats, float] | None]:
    """The solution at each of the falling penalties, None from where patience ends."""
    start = process_time()
    path = LogisticPath(X, y, np.full(len(y), 1 / len(y), np.float32))
    found: dict[float, tuple[Floats, float]] = {}
    for lam in falling(path.lam_max, lams):
        if process_time() - start > patience:
            break
        path.solve(min(lam, path.lam_max))
        if lam in lams:
            found[lam] = (path.w.copy(), path.b)
    return [found.get(lam) for lam in lams]


def _order(model: Linear) -> tuple[NDArray[np.int64], Floats]:
    """Neurons by falling importance, the squared weights summed over the classes, and the share before each."""
    importance = (model.coef.astype(np.float64) ** 2).sum(0)
    share = importance / max(importance.sum(), 1e-300)
    neurons = np.argsort(-share, kind="stable")[: (share > 0).sum()]
    return neurons, np.cumsum(share[neurons]) - share[neurons]
