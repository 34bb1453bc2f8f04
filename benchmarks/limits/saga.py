"""The probes of the paper (Jiao et al. 2024) as its public code fits them, and ours, on the same activations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from time import process_time
from unittest.mock import patch

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.method.corpora import METRIC
from benchmarks.method.paper import PROBE_STRENGTHS
from spin.arrays import Floats
from spin.labels.cross_validation import Fold
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.training_data import TrainingData
from spin.settings import ProbeSettings
from spin.sites import FeatureColumn
from spin.sparsify.probe import class_weights, fit_probes, signs
from spin.sparsify.solvers.batched_l1_path import BatchedPaths

COLUMNS = tuple(map(FeatureColumn.parse, ("resid.06.mean", "ffn.03.max", "ffn.06.mean")))
RESTARTS, EPOCHS = 16, 4
"""of saga at each strength: each restart goes on from the last"""
_MAX_CHECKS, _ROUNDS = 5, 50
"""of our solver: looks at its optimality from one look at the objectives to the next, and of those at most"""
Model = tuple[Floats, float]


@dataclass(frozen=True)
class Race:
    """One site.pooling; seconds are processor seconds of one thread, over all classes."""

    column: FeatureColumn
    width: int
    saga: float
    """the paper's recipe at its five strengths"""
    ours: float
    """`BatchedPaths` on the same raw design, until no objective is above that of saga; judging them included"""
    shipped: float
    """`fit_probes`: the default settings, which choose a penalty of a path of its own on standardised activations"""
    kkt: float
    """how far the shipped probe is from optimal, as a share of its penalty"""
    objectives: list[tuple[float, float, float]]
    """strength, objective of saga and ours, each a document's mean and the mean over the classes"""
    reached: bool
    """at every strength and for every class"""


def race(column: FeatureColumn, values: Floats, y: Targets, fold: Fold, label_space: LabelSpace) -> Race:
    """Fit the probes of a site.pooling both ways; `values` (n, width) are of all rows."""
    X = values[fold.train].astype(np.float32)
    targets = signs(label_space.indicator(y[fold.train]), label_space)
    start = process_time()
    models = [[_saga(X, of_class, C) for of_class in targets] for C in PROBE_STRENGTHS]
    saga = process_time() - start
    wanted = _objectives(X, targets, models)
    start = process_time()
    found = _ours(X, targets, wanted)
    ours = process_time() - start
    start = process_time()
    data = TrainingData(y, (fold,), label_space, METRIC)
    [probe] = fit_probes({column: values}, data, ProbeSettings())
    shipped = process_time() - start
    told = list(zip(PROBE_STRENGTHS, wanted.mean(1).tolist(), found.mean(1).tolist(), strict=True))
    return Race(column, X.shape[1], saga, ours, shipped, probe.kkt, told, bool((found <= wanted).all()))


def _saga(X: Floats, y: Floats, C: float) -> Model:
    """The model of one class against all others, on raw activations."""
    model = LogisticRegression(C=C, l1_ratio=1, solver="saga", max_iter=EPOCHS, warm_start=True, random_state=42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not converge: it is not given the time
        for _ in range(RESTARTS):
            model.fit(X, y)
    return model.coef_[0], float(model.intercept_[0])


def _ours(X: Floats, targets: Floats, wanted: Floats) -> Floats:
    """The objectives (L, K) of all strengths and classes, solved at once until none is above what is wanted."""
    X = X - X.mean(0)  # an intercept that no penalty holds makes this a change of its value alone
    paths = BatchedPaths([X], targets, class_weights(targets, "none"))
    lams = np.array([[1 / (C * len(X))] for C in PROBE_STRENGTHS])
    found = np.full(wanted.shape, np.inf)
    with patch("spin.sparsify.solvers.batched_l1_path._LOOKS", _MAX_CHECKS):
        for _ in range(_ROUNDS):
            coef, intercept = paths.solve(lams)
            both = zip(coef[:, 0], intercept[:, 0], strict=True)
            found = _objectives(X, targets, [list(zip(*of, strict=True)) for of in both])
            if (found <= wanted).all():
                break
    return found


def _objectives(X: Floats, targets: Floats, models: Sequence[Sequence[Model]]) -> Floats:
    """(L, K) mean loss and penalty: (|w|_1 + C sum log(1 + exp(-y (x w + b)))) / (C n)."""
    found = np.empty((len(PROBE_STRENGTHS), len(targets)))
    for row, C, of_classes in zip(found, PROBE_STRENGTHS, models, strict=True):
        for k, (y, (w, b)) in enumerate(zip(targets, of_classes, strict=True)):
            scores = (X @ w.astype(np.float32)).astype(np.float64) + float(b)
            row[k] = np.logaddexp(0, -y * scores).mean() + np.abs(w, dtype=np.float64).sum() / (C * len(y))
    return found
