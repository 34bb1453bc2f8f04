"""Ridge: how much each neuron contributes to a ridge regression on all neurons of all feature columns at once."""

from __future__ import annotations

import json
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
from spin.labels.metrics import score
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.sites import FeatureColumn
from spin.sparsify.solvers.fista import full_float32

PENALTIES = (0.3, 1.0, 3.0)
"""penalties that are tried, as shares of the mean squared length of a row"""
MOST_ROWS = 5_000
"""rows that are used at most: time grows with the square of their number, and in part with its cube"""

_BLOCK = 1_000
"""rows of the Gram matrix that are computed at once"""

ReadColumn = Callable[[FeatureColumn], Floats]
"""returns the raw activations (n, width) of a feature column"""


@dataclass(frozen=True)
class RidgeImportance:
    """The importance of a feature column's neurons in the ridge regression on all columns."""

    column: FeatureColumn
    importance: Floats
    """(width,) each neuron's share of the squared weights of all columns, summed over the classes"""
    folds: tuple[Floats, ...] = ()
    """(width,) each: the same of a regression on the training rows of each fold alone"""

    def to_bytes(self) -> bytes:
        """A safetensors file whose metadata names the column."""
        tensors = {str(index): values for index, values in enumerate((self.importance, *self.folds))}
        return save_tensors(tensors, {"column": str(self.column)})

    @classmethod
    def from_bytes(cls, data: bytes) -> RidgeImportance:
        """The importance of the bytes that `to_bytes` returned."""
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        tensors = load_tensors(data)
        values = [tensors[str(index)] for index in range(len(tensors))]
        return cls(FeatureColumn.parse(header["__metadata__"]["column"]), values[0], tuple(values[1:]))


def fit_ridge(
    read: ReadColumn, columns: Sequence[FeatureColumn], data: TrainingData, group: ProcessGroup | None = None
) -> list[RidgeImportance]:
    """The importance of the neurons of `columns` in a ridge regression of the classes on all neurons.

    The regression is solved in its dual form (Saunders et al. 1998), whose Gram matrix (n, n) is a sum over columns:
    each member of a process group reads its own `columns`, one at a time and each of them twice. At most `MOST_ROWS`
    rows are used, in the proportions of the classes; where a document has one class, rows whose label the regression
    without them contradicts are left out, so that wrong labels do not choose neurons.
    """
    group = group or ProcessGroup()
    rows = sample_rows(data)
    gram = group.all_reduce(_add_grams(read, columns, rows, data.device))
    targets = torch.from_numpy(data.label_space.indicator(data.y[rows])).to(gram)
    parts = [_positions(rows, part).to(gram.device) for part in (data.rows, *(fold.train for fold in data.folds))]
    penalty = group.broadcast_object(_choose_penalty(gram, targets, parts[1], data, rows))
    duals = torch.zeros(len(rows), len(parts), targets.shape[1], device=gram.device)
    for index, part in list(enumerate(parts))[group.rank :: group.size]:
        if not data.label_space.multilabel:
            part = part[_trusted(gram, targets, part, penalty)]
        factor, _ = _factorize(gram[part][:, part], penalty)
        duals[part, index] = torch.cholesky_solve(targets[part] - targets[part].mean(0), factor)
    duals = group.all_reduce(duals).flatten(1)
    lengths = (duals * (gram @ duals)).sum(0).clamp_min(1e-30).sqrt()  # of the weights over all columns
    duals /= lengths
    return [
        _importance(column, _standardized(read(column), rows, gram.device), duals, len(parts)) for column in columns
    ]


@dataclass(frozen=True)
class RidgeSolution:
    """A ridge regression with an unpenalised intercept in its dual form."""

    dual: Tensor
    """(n, K); the weights (p, K) are X^T dual"""
    left_out: Tensor
    """(n, K) for each row the prediction of the regression on all other rows"""


def solve_ridge(gram: Tensor, targets: Tensor, penalty: float) -> RidgeSolution:
    """Minimise |targets - X w - b|^2 + lam |w|^2, where lam is `penalty` times the mean squared length of a row.

    `gram` (n, n) is X X^T, `targets` are (n, K). With the centred matrix G = H X X^T H the dual is
    (G + lam I)^-1 H targets. A row's residual in the regression without it is its residual over 1 minus its leverage
    (Hastie et al. 2009, section 7.10).
    """
    factor, lam = _factorize(gram, penalty)
    inverse = torch.cholesky_inverse(factor)
    dual = inverse @ (targets - targets.mean(0))
    free = (lam * inverse.diagonal() - 1 / len(gram)).clamp_min(1e-6)  # 1 minus the leverage
    return RidgeSolution(dual, targets - lam * dual / free[:, None])


def _factorize(gram: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The Cholesky factor (n, n) of G + lam I, and lam."""
    means = gram.mean(0)
    centred = gram - means - means[:, None] + means.mean()
    lam = penalty * centred.diagonal().mean().clamp_min(1e-12)
    centred.diagonal().add_(lam)
    return torch.linalg.cholesky(centred), lam


def predict_left_out(X: Floats, targets: NDArray[np.bool_], penalty: float) -> Floats:
    """(n, K) for each row the prediction of the ridge regression on all other rows, from features (n, p).

    As `solve_ridge`, in the primal form, for fewer features than rows: the matrix that is inverted is (p, p).
    """
    features, Y = torch.from_numpy(X - X.mean(0)), torch.from_numpy(targets).float()
    gram = features.T @ features
    lam = penalty * gram.trace() / len(X)
    gram.diagonal().add_(lam.clamp_min(1e-12))
    factor = torch.linalg.cholesky(gram)
    residuals = Y - Y.mean(0) - features @ torch.cholesky_solve(features.T @ Y, factor)
    leverages = torch.linalg.solve_triangular(factor, features.T, upper=False).square().sum(0) + 1 / len(X)
    return (Y - residuals / (1 - leverages).clamp_min(1e-6)[:, None]).numpy()


def sample_rows(data: TrainingData) -> Rows:
    """At most about `MOST_ROWS` of the rows that train or validate, ascending: of each class the same share."""
    rows = data.rows
    if len(rows) <= MOST_ROWS:
        return rows
    draw, strata = np.random.default_rng(data.seed), data.label_space.strata(data.y[rows])
    kept = []
    for stratum in np.unique(strata):
        own = draw.permutation(rows[strata == stratum])
        kept.append(own[: int(np.ceil(len(own) * MOST_ROWS / len(rows)))])
    return np.sort(np.concatenate(kept))


def _positions(rows: Rows, part: Rows) -> Tensor:
    """The positions in `rows` of those that are in `part`."""
    return torch.from_numpy(np.flatnonzero(np.isin(rows, part)))


def _add_grams(read: ReadColumn, columns: Sequence[FeatureColumn], rows: Rows, device: str) -> Tensor:
    """The sum (n, n) over columns of X X^T, with the activations X of each column standardised over the rows."""
    gram = torch.zeros(len(rows), len(rows), device=device)
    for column in columns:
        X = _standardized(read(column), rows, gram.device)
        with full_float32():
            for start in range(0, len(rows), _BLOCK):  # the lower triangle only, in steps
                stop = start + _BLOCK
                gram[start:stop, :stop].addmm_(X[start:stop], X[:stop].T)
    return gram.tril() + gram.tril(-1).T


def _standardized(activations: Floats, rows: Rows, device: torch.device) -> Tensor:
    raw = activations[rows]
    return torch.from_numpy(Standardizer.fit(raw).transform(raw)).to(device)


def _choose_penalty(gram: Tensor, targets: Tensor, part: Tensor, data: TrainingData, rows: Rows) -> float:
    """The penalty whose predictions of left-out rows score best; of equals the largest."""
    y = data.y[rows[part.cpu().numpy()]]
    border = 0.5 if data.label_space.multilabel else 0.0
    scores = {}
    for penalty in sorted(PENALTIES, reverse=True):
        left_out = solve_ridge(gram[part][:, part], targets[part], penalty).left_out
        scores[penalty] = score(data.metric, y, data.label_space.predict(left_out.cpu().numpy() - border))
    return max(scores, key=lambda penalty: scores[penalty])


def _trusted(gram: Tensor, targets: Tensor, part: Tensor, penalty: float) -> NDArray[np.bool_]:
    """Which rows of a part have a label that the regression without them does not contradict."""
    left_out = solve_ridge(gram[part][:, part], targets[part], penalty).left_out
    return ~find_suspects(left_out.clamp(0, 1).cpu().numpy(), targets[part].argmax(1).cpu().numpy())


def _importance(column: FeatureColumn, X: Tensor, duals: Tensor, parts: int) -> RidgeImportance:
    """The importance by standardised activations (n, width) and duals (n, parts * K) whose weights have length 1."""
    squares = (X.T @ duals).square().view(X.shape[1], parts, -1).sum(2).T.cpu().numpy()
    return RidgeImportance(column, squares[0].copy(), tuple(squares[1:].copy()))
