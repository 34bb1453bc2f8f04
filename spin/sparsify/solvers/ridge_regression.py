"""Ridge regression by matrix products, in its dual form."""

from __future__ import annotations

import torch
from torch import Tensor

from spin.sparsify.solvers.fista import full_float32

_BLOCK = 1_000
"""rows that are computed at once"""


def add_products(gram: Tensor, X: Tensor) -> None:
    """Add X X^T of features X (n, p) to the lower triangle of `gram` (n, n), in place and without TF32."""
    with full_float32():
        for start in range(0, len(X), _BLOCK):
            stop = start + _BLOCK
            gram[start:stop, :stop].addmm_(X[start:stop], X[:stop].T)


def fill_upper(gram: Tensor) -> Tensor:
    """The symmetric matrix (n, n) with the lower triangle of `gram`."""
    return gram.tril() + gram.tril(-1).T


def predict_left_out(gram: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """(n, K) the prediction for each row by the ridge regression on all other rows.

    The regression minimises |targets - X w - b|^2 + lam |w|^2, where lam is `penalty` times the mean squared length of
    a row. `gram` (n, n) is X X^T, `targets` are (n, K). With the centred matrix G = H X X^T H the dual is
    (G + lam I)^-1 H targets, and the weights are X^T dual. A row's residual in the regression without it is its
    residual over 1 minus its leverage (Hastie et al. 2009, section 7.10).
    """
    factor, lam = factorize_gram(gram, penalty)
    inverse = torch.cholesky_inverse(factor)
    dual = inverse @ (targets - targets.mean(0))
    free = (lam * inverse.diagonal() - 1 / len(gram)).clamp_min(1e-6)  # 1 minus the leverage
    return targets - lam * dual / free[:, None]


def factorize_gram(gram: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The Cholesky factor (n, n) of G + lam I, and lam."""
    # the Gram matrix of centred features, from that of the features alone: the intercept bears no penalty
    means = gram.mean(0)
    centred = gram - means - means[:, None] + means.mean()
    lam = penalty * centred.diagonal().mean().clamp_min(1e-12)
    centred.diagonal().add_(lam)
    return torch.linalg.cholesky(centred), lam
