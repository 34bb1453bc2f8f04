"""The paper's probes (Jiao et al. 2024) as its public code fits them, and SPIN's, on the same activations."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from unittest.mock import patch

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.limits.minilm import count_columns, extract_tweets
from benchmarks.method.corpora import METRIC
from benchmarks.method.paper import PROBE_STRENGTHS
from benchmarks.method.run import warm_up
from benchmarks.section_page import Part, table
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
"""of saga per strength; each restart continues from the one before"""
_MAX_CHECKS, _ROUNDS = 5, 50
"""of SPIN's solver: optimality checks per round, and rounds at most; after each round its objectives are compared"""
Model = tuple[Floats, float]


@dataclass(frozen=True)
class Race:
    """The comparison on one feature column; times are processor seconds of one thread, over all classes."""

    column: FeatureColumn
    width: int
    saga: float
    """seconds of the paper's recipe at its five strengths"""
    spin: float
    """seconds of `BatchedPaths` on the same raw activations until no objective exceeds saga's, comparison included"""
    shipped: float
    """seconds of `fit_probes` with default settings, which choose a penalty of a path on standardised activations"""
    kkt: float
    """violation of optimality of the default probe, as a share of its penalty"""
    objectives: list[tuple[float, float, float]]
    """strength, objective of saga and of SPIN, each per document and averaged over the classes"""
    reached: bool
    """whether no objective of SPIN exceeds that of saga, at any strength and for any class"""


@dataclass(frozen=True)
class Races:
    """The comparisons on some feature columns, and all columns for which they stand."""

    races: Sequence[Race]
    columns: Mapping[int, int]
    """number of feature columns of MiniLM by width"""

    def total(self, name: str) -> float:
        """Seconds of all columns, by the field of `Race`: the mean per width times the columns of that width."""
        return sum(
            count * statistics.mean(getattr(race, name) for race in self.races if race.width == width)
            for width, count in self.columns.items()
        )


def measure(folder: Path, *, quick: bool) -> Races:
    """Compare the probes on a few columns of MiniLM, with one thread; nothing is written to the folder."""
    train, valid = (400, 100) if quick else (6400, 1600)
    features, labels = extract_tweets(train + valid, COLUMNS)
    label_space = LabelSpace(tuple(sorted(set(labels))))
    fold, races = Fold(np.arange(train), np.arange(train, train + valid)), []
    with threadpool_limits(1):
        warm_up()
        for column in COLUMNS:
            races.append(race(column, features[column], label_space.index(labels), fold, label_space))
            print(races[-1], flush=True)
    return Races(races, count_columns())


def section(measured: Races) -> Part:
    """Seconds and objectives per feature column, and seconds for all."""
    races = measured.races
    saga, spin, shipped = (measured.total(name) for name in ("saga", "spin", "shipped"))
    rows = [
        [str(r.column), f"{r.saga:.1f}", f"{r.spin:.2f}", f"{r.saga / r.spin:.1f}", f"{r.shipped:.2f}",
         f"{r.saga / r.shipped:.1f}", f"{r.kkt:.0e}"]
        for r in races
    ]  # fmt: skip
    total = f"all {sum(measured.columns.values())}, extrapolated"
    rows.append(
        [total, f"{saga:.0f}", f"{spin:.0f}", f"{saga / spin:.1f}", f"{shipped:.0f}", f"{saga / shipped:.1f}", ""]
    )
    heads = ["", "recipe, s", "SPIN to the same objective, s", "×", "SPIN by default, s", "×",
             "violation of optimality"]  # fmt: skip
    objectives = [
        [str(r.column), f"{C:g}", f"{recipe:.5f}", f"{spin:.5f}"] for r in races for C, recipe, spin in r.objectives
    ]
    text = [
        table(heads, rows),
        f"Processor seconds of one thread, all classes of the tweets on MiniLM. The recipe: saga on raw activations, "
        f"five strengths, {RESTARTS} warm restarts of {EPOCHS} epochs each. SPIN to the same objective: the batched "
        "solver for GPUs, here on the CPU, on the same raw activations and for all strengths and classes together, "
        "stopped as soon as no objective exceeds the recipe's; the comparison is included. SPIN by default: the path "
        "of penalties of the default settings on standardised activations, solved to the violation shown, its penalty "
        "chosen by validation. Extrapolated: the mean time per width times the feature columns of that width.\n",
        table(["", "C", "objective, recipe", "objective, SPIN"], objectives),
    ]
    speeds = {"SPIN to the same objective": saga / spin, "SPIN by default": saga / shipped}
    return "\n".join(text), [
        (all(r.reached for r in races), "no objective of SPIN exceeds the recipe's, at any strength, for any class"),
        *((x >= _FASTER, f"{name} is {x:.1f} × faster, expected at least {_FASTER:g} ×") for name, x in speeds.items()),
    ]


_FASTER = 10.0
"""promise: speedup over the recipe"""


def race(column: FeatureColumn, values: Floats, y: Targets, fold: Fold, label_space: LabelSpace) -> Race:
    """Fit the probes of a feature column by saga and by SPIN; `values` (n, width) are those of all rows."""
    X = values[fold.train].astype(np.float32)
    targets = signs(label_space.indicator(y[fold.train]), label_space)
    start = process_time()
    models = [[_fit_saga(X, y_class, C) for y_class in targets] for C in PROBE_STRENGTHS]
    saga = process_time() - start
    saga_objectives = _objectives(X, targets, models)
    start = process_time()
    spin_objectives = _solve_until(X, targets, saga_objectives)
    spin = process_time() - start
    start = process_time()
    data = TrainingData(y, (fold,), label_space, METRIC)
    [probe] = fit_probes({column: values}, data, ProbeSettings())
    shipped = process_time() - start
    objectives = list(
        zip(PROBE_STRENGTHS, saga_objectives.mean(1).tolist(), spin_objectives.mean(1).tolist(), strict=True)
    )
    reached = bool((spin_objectives <= saga_objectives).all())
    return Race(column, X.shape[1], saga, spin, shipped, probe.kkt, objectives, reached)


def _fit_saga(X: Floats, y: Floats, C: float) -> Model:
    """The model of one class against all others, on raw activations."""
    model = LogisticRegression(C=C, l1_ratio=1, solver="saga", max_iter=EPOCHS, warm_start=True, random_state=42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the iterations are too few to converge
        for _ in range(RESTARTS):
            model.fit(X, y)
    return model.coef_[0], float(model.intercept_[0])


def _solve_until(X: Floats, targets: Floats, limits: Floats) -> Floats:
    """The objectives (L, K) of all strengths and classes, solved together until none exceeds its limit (L, K)."""
    X = X - X.mean(0)  # the intercept is not penalised, so that this changes nothing else
    paths = BatchedPaths([X], targets, class_weights(targets, "none"))
    lams = np.array([[[1 / (C * len(X))] * len(targets)] for C in PROBE_STRENGTHS])
    objectives = np.full(limits.shape, np.inf)
    with patch("spin.sparsify.solvers.batched_l1_path._MAX_CHECKS", _MAX_CHECKS):
        for _ in range(_ROUNDS):
            coef, intercept = paths.solve(lams)
            solutions = zip(coef[:, 0], intercept[:, 0], strict=True)
            objectives = _objectives(X, targets, [list(zip(*solution, strict=True)) for solution in solutions])
            if (objectives <= limits).all():
                break
    return objectives


def _objectives(X: Floats, targets: Floats, models: Sequence[Sequence[Model]]) -> Floats:
    """Mean loss plus penalty (L, K): (|w|_1 + C sum log(1 + exp(-y (x w + b)))) / (C n)."""
    objectives = np.empty((len(PROBE_STRENGTHS), len(targets)))
    for row, C, class_models in zip(objectives, PROBE_STRENGTHS, models, strict=True):
        for k, (y, (w, b)) in enumerate(zip(targets, class_models, strict=True)):
            scores = (X @ w.astype(np.float32)).astype(np.float64) + float(b)
            row[k] = np.logaddexp(0, -y * scores).mean() + np.abs(w, dtype=np.float64).sum() / (C * len(y))
    return objectives
