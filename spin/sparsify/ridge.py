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

from spin.arrays import Floats, Hashes, Rows
from spin.labels.label_errors import find_suspects
from spin.labels.sampling import sample_rows
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.sites import FeatureColumn
from spin.sparsify.solvers.ridge_regression import add_products, factorize_gram, fill_upper, predict_left_out

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


@dataclass(frozen=True)
class LeftOutPredictions:
    """What the ridge regression on all neurons predicts for documents that it was fitted without."""

    rows: Rows
    """(m,) the documents, ascending"""
    values: Floats
    """(m, K) predicted indicators of the classes, mostly between 0 and 1"""

    def to_bytes(self) -> bytes:
        """A safetensors file of the rows and values."""
        return save_tensors({"rows": self.rows, "values": self.values})

    @classmethod
    def from_bytes(cls, data: bytes) -> LeftOutPredictions:
        """The predictions from the bytes that `to_bytes` returned."""
        return cls(**load_tensors(data))


def fit_ridge(
    read: ReadRows, columns: Sequence[FeatureColumn], data: TrainingData, group: ProcessGroup | None = None
) -> tuple[list[RidgeImportance], LeftOutPredictions]:
    """The importance of the neurons of `columns` in a ridge regression of the classes on all neurons.

    The regression is solved in its dual form (Saunders et al. 1998), whose Gram matrix (n, n) is a sum over columns.
    Each member of a process group reads its own `columns`, one at a time and each of them twice. At most `MOST_ROWS`
    rows are used. The penalty of each fold predicts left-out training rows best; on all rows it is the one that most
    folds chose. Where a document has one class, rows whose label the regression without them contradicts are left out,
    so that wrong labels do not choose neurons.

    Each of these rows is also predicted by the regression on all rows of other groups: near-identical documents would
    vouch for each other. Each further row of none of these groups is predicted by that on all of them, without the rows
    that were left out for their labels. No neuron is chosen for these predictions, since a choice would know the label
    of the row.
    """
    group = group or ProcessGroup()
    rows = choose_rows(data)
    others = np.setdiff1d(data.rows, rows)
    if data.groups is not None:
        others = others[~np.isin(data.groups[others], data.groups[rows])]
    gram = group.all_reduce(_add_grams(read, columns, rows, data.device))
    targets = torch.from_numpy(data.label_space.indicator(data.y[rows])).to(gram)
    duals, left_out = _solve_parts(gram, targets, rows, data, group)
    parts, of_all, duals = duals.shape[1], slice(targets.shape[1]), duals.flatten(1)
    products = gram @ duals
    lengths = (duals * products).sum(0).clamp_min(1e-30).sqrt()  # of the weights over all columns
    importances, predicted = [], torch.zeros(len(others), targets.shape[1], device=gram.device)
    for column in columns:
        activations = read(column, rows)
        standardizer = Standardizer.fit(activations)
        weights = _tensor(standardizer.transform(activations), gram.device).T @ (duals / lengths)
        importances.append(_importance(column, weights, parts))
        if len(others):
            features = _tensor(standardizer.transform(read(column, others)), gram.device)
            predicted += features @ (weights * lengths)[:, of_all]
    kept = duals[:, of_all].any(1)  # those that were left out for their labels have no part in the weights
    intercept = (targets - products[:, of_all])[kept].mean(0)
    values = torch.cat([left_out, group.all_reduce(predicted) + intercept]).cpu().numpy()
    every = np.concatenate([rows, others])
    return importances, LeftOutPredictions(np.sort(every), values[np.argsort(every)])


def choose_rows(data: TrainingData) -> Rows:
    """Rows that train or validate, ascending: of every class in each split the same share.

    They are `MOST_ROWS` at most.
    """
    strata = 2 * data.label_space.strata(data.y[data.rows]) + np.isin(data.rows, data.folds[0].train)
    return sample_rows(data.rows, strata, MOST_ROWS, data.seed)


def _solve_parts(
    gram: Tensor, targets: Tensor, rows: Rows, data: TrainingData, group: ProcessGroup
) -> tuple[Tensor, Tensor]:
    """The duals (n, 1 + folds, K), first that on all rows, and the predictions (n, K) of each row without it."""
    duals = torch.zeros(len(rows), 1 + len(data.folds), targets.shape[1], device=gram.device)
    groups = None if data.groups is None else data.groups[rows]
    left_out, votes = torch.zeros_like(targets), torch.zeros(len(PENALTIES))
    for index in range(1 + group.rank, duals.shape[1], group.size):
        own = torch.from_numpy(np.flatnonzero(np.isin(rows, data.folds[index - 1].train))).to(gram.device)
        part = gram[own][:, own], targets[own], None if groups is None else groups[own.cpu().numpy()]
        duals[own, index], penalty, _ = _fit_part(*part, data, PENALTIES)
        votes[PENALTIES.index(penalty)] += 1
    votes = group.all_reduce(votes)
    if group.rank == 0:
        elected = max(zip(votes.tolist(), PENALTIES, strict=True))[1]
        duals[:, 0], _, left_out = _fit_part(gram, targets, groups, data, [elected])
    return group.all_reduce(duals), group.all_reduce(left_out)


def _add_grams(read: ReadRows, columns: Sequence[FeatureColumn], rows: Rows, device: str) -> Tensor:
    """The sum (n, n) over columns of X X^T, with the activations X of each column standardised over the rows."""
    gram = torch.zeros(len(rows), len(rows), device=device)
    for column in columns:
        activations = read(column, rows)
        add_products(gram, _tensor(Standardizer.fit(activations).transform(activations), gram.device))
    return fill_upper(gram)


def _tensor(values: Floats, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def _fit_part(
    gram: Tensor, targets: Tensor, groups: Hashes | None, data: TrainingData, penalties: Sequence[float]
) -> tuple[Tensor, float, Tensor]:
    """The dual (n, K) of the regression on some rows, given their part of the Gram matrix, the targets and the groups.

    Its penalty, which is returned too, is the one whose predictions of left-out rows have the least squared error.
    These predictions (n, K) come last.
    """
    left_out = {penalty: predict_left_out(gram, targets, penalty, groups) for penalty in penalties}
    penalty = min(penalties, key=lambda p: float((left_out[p] - targets).square().sum()))
    kept = np.full(len(gram), True)
    if not data.label_space.multilabel:
        kept = _trusted(left_out[penalty].cpu().numpy(), targets.cpu().numpy().argmax(1))
    rows = torch.from_numpy(np.flatnonzero(kept)).to(gram.device)
    factor, _ = factorize_gram(gram[rows][:, rows], penalty)
    dual = torch.zeros_like(targets)
    dual[rows] = torch.cholesky_solve(targets[rows] - targets[rows].mean(0), factor)
    return dual, penalty, left_out[penalty]


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


def _importance(column: FeatureColumn, weights: Tensor, parts: int) -> RidgeImportance:
    """The importance by the weights (width, parts * K), whose columns have length 1 over all feature columns."""
    squares = weights.square().view(len(weights), parts, -1).sum(2).T.cpu().numpy()
    return RidgeImportance(column, squares[0].copy(), tuple(squares[1:].copy()))
