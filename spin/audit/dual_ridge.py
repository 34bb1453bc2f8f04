"""Ridge regression with far more features than documents, for many targets at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spin.arrays import Floats

PENALTIES = tuple(float(penalty) for penalty in np.geomspace(1e-4, 10, 11))
"""penalties that are tried, as shares of the largest eigenvalue of the Gram matrix"""


@dataclass(frozen=True)
class DualRidge:
    """A fitted ridge regression of v targets on d features of n documents, in its dual form."""

    mean: Floats
    """(d,) of the features"""
    scale: Floats
    """(d,) standard deviation of the features; 1 where a feature is constant"""
    X: Floats
    """(n, d) standardised features of the documents that it was fitted on"""
    alpha: Floats
    """(n, v)"""
    intercept: Floats
    """(v,)"""
    penalty: float

    @classmethod
    def fit(cls, X: Floats, Y: Floats) -> DualRidge:
        """Fit targets (n, v) on features (n, d), with the penalty that has the least leave-one-out error of all.

        With K the Gram matrix of the standardised features and H = K (K + p I)^-1, the error of document i without
        itself is (Y - H Y)_i / (1 - H_ii) (Hastie, Tibshirani & Friedman 2009, section 7.10), for every penalty p by
        one eigendecomposition.
        """
        X = X.astype(np.float32)
        mean, scale = X.mean(axis=0), X.std(axis=0)
        scale[scale < 1e-6] = 1.0
        X = (X - mean) / scale
        intercept = Y.mean(axis=0)
        centred = Y - intercept
        values, vectors = np.linalg.eigh((X @ X.T).astype(np.float64))
        values = np.maximum(values, 0)
        rotated = vectors.T @ centred
        best = min(PENALTIES, key=lambda share: _left_out_error(values, vectors, rotated, centred, share))
        alpha = vectors @ (rotated / (values + _penalty(values, best))[:, None])
        return cls(mean, scale, X, alpha.astype(np.float32), intercept, best)

    def predict(self, X: Floats) -> Floats:
        """(m, v) the predicted targets of features (m, d)."""
        standardised = (X.astype(np.float32) - self.mean) / self.scale
        predicted: Floats = (standardised @ self.X.T) @ self.alpha + self.intercept
        return predicted


def _penalty(values: Floats, share: float) -> float:
    return share * max(float(values.max()), 1e-12)


def _left_out_error(values: Floats, vectors: Floats, rotated: Floats, centred: Floats, share: float) -> float:
    """The mean squared error of documents that are left out one at a time."""
    shrunk = values / (values + _penalty(values, share))
    leverage = np.einsum("ij,j,ij->i", vectors, shrunk, vectors) + 1 / len(values)  # the intercept has its part
    residuals = centred - vectors @ (shrunk[:, None] * rotated)
    return float(np.square(residuals / np.maximum(1 - leverage, 1e-6)[:, None]).mean())
