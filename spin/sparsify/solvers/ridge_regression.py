"""Ridge regression by matrix products, in its dual form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spin.arrays import Hashes
from spin.sparsify.solvers.fista import full_float32

_BLOCK = 1_000
"""rows that are computed at once"""
_LEAST_FREE = 1e-6
"""1 minus the largest leverage: a row of its own would predict itself alone"""


def add_products(gram: Tensor, X: Tensor) -> None:
    """Add X X^T of features X (n, p) to the lower triangle of `gram` (n, n), in place and without TF32."""
    with full_float32():
        for start in range(0, len(X), _BLOCK):
            stop = start + _BLOCK
            gram[start:stop, :stop].addmm_(X[start:stop], X[:stop].T)


def fill_upper(gram: Tensor) -> Tensor:
    """The symmetric matrix (n, n) with the lower triangle of `gram`."""
    return gram.tril() + gram.tril(-1).T


def predict_left_out(gram: Tensor, targets: Tensor, penalty: float, groups: Hashes | None = None) -> Tensor:
    """(n, K) the prediction for each row by the ridge regression on all other rows, or on those of other `groups` (n,).

    The regression minimises |targets - X w - b|^2 + lam |w|^2, where lam is `penalty` times the mean squared length of
    a row. `gram` (n, n) is X X^T, `targets` are (n, K). With the centred matrix G = H X X^T H the dual is
    (G + lam I)^-1 H targets, and the weights are X^T dual. A row's residual in the regression without it is its
    residual over 1 minus its leverage (Hastie et al. 2009, section 7.10). That of several rows is (I - S)^-1 times
    theirs, where S is their block of the hat matrix, whose diagonal are the leverages (Cook & Weisberg 1982).
    """
    factor, lam = factorize_gram(gram, penalty)
    inverse = torch.cholesky_inverse(factor)
    dual = inverse @ (targets - targets.mean(0))
    free = (lam * inverse.diagonal() - 1 / len(gram)).clamp_min(_LEAST_FREE)  # 1 minus the leverage
    left_out = targets - lam * dual / free[:, None]
    for rows in [] if groups is None else _rows_of_groups(groups):
        block = lam * inverse[rows][:, rows] - 1 / len(gram)
        block.diagonal().add_(_LEAST_FREE)  # that of all rows is singular: there is no other group to learn from
        left_out[rows] = targets[rows] - torch.linalg.solve(block, lam * dual[rows])
    return left_out


def _rows_of_groups(groups: Hashes) -> list[Tensor]:
    """The rows of each group that has several, ascending."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    return [torch.from_numpy(rows) for rows in np.split(order, starts) if len(rows) > 1]


def factorize_gram(gram: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The Cholesky factor (n, n) of G + lam I, and lam."""
    # the Gram matrix of centred features, from that of the features alone: the intercept bears no penalty
    means = gram.mean(0)
    centred = gram - means - means[:, None] + means.mean()
    lam = penalty * centred.diagonal().mean().clamp_min(1e-12)
    centred.diagonal().add_(lam)
    return torch.linalg.cholesky(centred), lam
