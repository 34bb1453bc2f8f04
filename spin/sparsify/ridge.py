"""Ridge: how much each neuron contributes to a ridge regression on all neurons of all feature columns at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch import Tensor

from spin.arrays import Floats, Rows
from spin.labels.label_errors import find_suspects
from spin.labels.label_space import Targets
from spin.labels.metrics import score
from spin.labels.sampling import one_per_group, sample_rows
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.sites import FeatureColumn
from spin.sparsify.solvers.ridge_regression import add_products, factorize_gram, fill_upper, solve_ridge

PENALTIES = (0.3, 1.0, 3.0)
"""penalties that are tried, as shares of the mean squared length of a row"""
MOST_ROWS = 5_000
"""rows that are used at most: time grows with the square of their number, and in part with its cube"""

_MOST_SUSPECT = 0.25
"""share of a class that is left out at most"""

ReadRows = Callable[[FeatureColumn, Rows], Floats]
"""returns the raw activations (m, width) of a feature column for m rows"""


@dataclass(frozen=True)
class RidgeImportance:
    """The importance of a feature column's neurons in the ridge regression on all columns."""

    column: FeatureColumn
    importance: Floats
    """(width,) each neuron's share of the squared weights of all columns, summed over the classes"""
    folds: tuple[Floats, ...] = ()
    """(width,) each: importance by a regression on the training rows of each fold alone"""

    def to_bytes(self) -> bytes:
        """A safetensors file of the values; the column is the key that it is stored under."""
        return save_tensors({str(index): values for index, values in enumerate((self.importance, *self.folds))})

    @classmethod
    def from_bytes(cls, column: FeatureColumn, data: bytes) -> RidgeImportance:
        """The importance of a column from the bytes that `to_bytes` returned."""
        tensors = load_tensors(data)
        values = [tensors[str(index)] for index in range(len(tensors))]
        return cls(column, values[0], tuple(values[1:]))


def fit_ridge(
    read: ReadRows, columns: Sequence[FeatureColumn], data: TrainingData, group: ProcessGroup | None = None
) -> list[RidgeImportance]:
    """The importance of the neurons of `columns` in a ridge regression of the classes on all neurons.

    The regression is solved in its dual form (Saunders et al. 1998), whose Gram matrix (n, n) is a sum over columns.
    Each member of a process group reads its own `columns`, one at a time and each of them twice. At most `MOST_ROWS`
    rows are used, and one of each group of near-identical documents, which would vouch for each other. The penalty of
    each fold predicts left-out training rows best; on all rows it is the one that most folds chose. Where a document
    has one class, rows whose label the regression without them contradicts are left out, so that wrong labels do not
    choose neurons.
    """
    group = group or ProcessGroup()
    rows = choose_rows(data)
    gram = group.all_reduce(_add_grams(read, columns, rows, data.device))
    targets = torch.from_numpy(data.label_space.indicator(data.y[rows])).to(gram)
    parts = 1 + len(data.folds)
    duals = torch.zeros(len(rows), parts, targets.shape[1], device=gram.device)
    votes = torch.zeros(len(PENALTIES))
    for index in range(1 + group.rank, parts, group.size):
        own = torch.from_numpy(np.flatnonzero(np.isin(rows, data.folds[index - 1].train))).to(gram.device)
        duals[own, index], penalty = _fit_part(gram[own][:, own], targets[own], data, PENALTIES)
        votes[PENALTIES.index(penalty)] += 1
    votes = group.all_reduce(votes)
    if group.rank == 0:
        elected = max(zip(votes.tolist(), PENALTIES, strict=True))[1]
        duals[:, 0], _ = _fit_part(gram, targets, data, [elected])
    duals = group.all_reduce(duals).flatten(1)
    lengths = (duals * (gram @ duals)).sum(0).clamp_min(1e-30).sqrt()  # of the weights over all columns
    duals /= lengths
    return [_importance(c, _standardized(read(c, rows), gram.device), duals, parts) for c in columns]


def choose_rows(data: TrainingData) -> Rows:
    """Rows that train or validate, ascending: one of each group, and of every class in each split the same share.

    They are `MOST_ROWS` at most.
    """
    rows = data.rows
    if data.groups is not None:
        rows = one_per_group(rows, data.groups[rows])
    strata = 2 * data.label_space.strata(data.y[rows]) + np.isin(rows, data.folds[0].train)
    return sample_rows(rows, strata, MOST_ROWS, data.seed)


def _add_grams(read: ReadRows, columns: Sequence[FeatureColumn], rows: Rows, device: str) -> Tensor:
    """The sum (n, n) over columns of X X^T, with the activations X of each column standardised over the rows."""
    gram = torch.zeros(len(rows), len(rows), device=device)
    for column in columns:
        X = _standardized(read(column, rows), gram.device)
        add_products(gram, X)
    return fill_upper(gram)


def _standardized(activations: Floats, device: torch.device) -> Tensor:
    return torch.from_numpy(Standardizer.fit(activations).transform(activations)).to(device)


def _fit_part(gram: Tensor, targets: Tensor, data: TrainingData, penalties: Sequence[float]) -> tuple[Tensor, float]:
    """The dual (n, K) of the regression on some rows, given their part of the Gram matrix and of the targets.

    Its penalty, which is returned too, is the one whose predictions of left-out rows score best, of equals the largest.
    """
    left_out = {penalty: solve_ridge(gram, targets, penalty).left_out.cpu().numpy() for penalty in penalties}
    has = targets.cpu().numpy() > 0
    y: Targets = has if data.label_space.multilabel else has.argmax(1)
    border = 0.5 if data.label_space.multilabel else 0.0
    scores = {p: score(data.metric, y, data.label_space.predict(values - border)) for p, values in left_out.items()}
    penalty = max(scores, key=lambda p: (scores[p], p))
    kept = np.full(len(has), True) if data.label_space.multilabel else _trusted(left_out[penalty], has.argmax(1))
    rows = torch.from_numpy(np.flatnonzero(kept)).to(gram.device)
    factor, _ = factorize_gram(gram[rows][:, rows], penalty)
    dual = torch.zeros_like(targets)
    dual[rows] = torch.cholesky_solve(targets[rows] - targets[rows].mean(0), factor)
    return dual, penalty


def _trusted(left_out: Floats, y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) the rows without suspect labels, by predictions (n, K) of left-out rows.

    Of each class at most a quarter is left out, the clearest first: where the regression hardly knows a class, it
    contradicts many right labels.
    """
    probabilities = left_out.clip(0, 1)
    margins = probabilities.max(1) - probabilities[np.arange(len(y)), y]
    suspect = find_suspects(probabilities, y)
    kept = np.full(len(y), True)
    for k in np.unique(y):
        own = np.flatnonzero(suspect & (y == k))
        clearest = own[np.argsort(-margins[own], kind="stable")]
        kept[clearest[: int(_MOST_SUSPECT * (y == k).sum())]] = False
    return kept


def _importance(column: FeatureColumn, X: Tensor, duals: Tensor, parts: int) -> RidgeImportance:
    """The importance by standardised activations (n, width) and duals (n, parts * K) whose weights have length 1."""
    squares = (X.T @ duals).square().view(X.shape[1], parts, -1).sum(2).T.cpu().numpy()
    return RidgeImportance(column, squares[0].copy(), tuple(squares[1:].copy()))
