"""The integrated head: one small classifier over the selected neurons of all layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class LinearHead:
    """Multinomial logistic regression on standardised features."""

    coef: Floats
    """(K, p), summing to zero over the K classes"""
    intercept: Floats
    """(K,)"""
    strength: float
    """C, the inverse of the L2 penalty: small is strongly regularised"""

    def logits(self, X: Floats) -> Floats:
        """(n, K) of standardised features (n, p)."""
        return X @ self.coef.T + self.intercept

    def predict_proba(self, X: Floats) -> Floats:
        """(n, K), each row summing to 1."""
        return softmax(self.logits(X), axis=1)

    def predict(self, X: Floats) -> NDArray[np.int64]:
        """Class indices (n,)."""
        return self.logits(X).argmax(1)


def fit_head(X: Floats, y: NDArray[np.int64], strength: float, *, start: LinearHead | None = None) -> LinearHead:
    """Fit on standardised features (n, p) with class indices (n,), each of 0 to K-1 present.

    `start` is a head of the same features whose solution the fit begins from; the optimum does not depend on it.
    """
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3, warm_start=start is not None)
    binary = y.max() == 1
    if start is not None:
        model.coef_ = 2 * start.coef[1:] if binary else start.coef.copy()
        model.intercept_ = 2 * start.intercept[1:] if binary else start.intercept.copy()
        model.classes_ = np.arange(y.max() + 1)
    model.fit(X, y)
    coef, intercept = model.coef_, model.intercept_
    if binary:  # one row for the second class becomes two that mirror one another
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    centred = coef - coef.mean(0), intercept - intercept.mean()
    return LinearHead(centred[0].astype(np.float32), centred[1].astype(np.float32), strength)
