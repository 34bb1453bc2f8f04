"""The row without a selection: logistic regression on all neurons of all sites."""

from __future__ import annotations

from collections.abc import Sequence
from time import process_time

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from benchmarks.method.contenders import Answer, calibrate, choose_strength
from benchmarks.method.corpora import Exam
from benchmarks.method.layers import fit_heads
from spin.arrays import Floats, Rows
from spin.labels.standardizer import Standardizer

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""prior variance of a logit"""


def all_neurons(exam: Exam) -> Answer:
    """Multinomial logistic regression with an L2 penalty on all standardised feature columns."""
    start = process_time()

    def fit(rows: Rows, out: Rows, strengths: Sequence[float]) -> list[Floats]:
        X, Z = _everything(exam, rows, out)
        return _ridge(X, Z, exam, rows, strengths)

    chosen = choose_strength(exam, fit, STRENGTHS)
    [logits] = fit(exam.data.rows, exam.test, [chosen.strength])
    deepest = max(c.site for c in exam.corpus.sites)
    seconds, choice = process_time() - start, f"strength {chosen.strength:g}"
    return calibrate(exam, "all neurons", logits, chosen.held_out, seconds, choice, exam.corpus.neurons, deepest)


def _everything(exam: Exam, rows: Rows, out: Rows) -> tuple[Floats, Floats]:
    """All feature columns side by side for `rows` and for `out`, both standardised on `rows`."""
    X = np.empty((len(rows), exam.corpus.neurons), np.float32)
    Z = np.empty((len(out), exam.corpus.neurons), np.float32)
    first = 0
    for values in exam.corpus.sites.values():
        here = slice(first, first + values.shape[1])
        standardizer = Standardizer.fit(values[rows])
        X[:, here], Z[:, here] = standardizer.transform(values[rows]), standardizer.transform(values[out])
        first += values.shape[1]
    return X, Z


def _ridge(X: Floats, Z: Floats, exam: Exam, rows: Rows, strengths: Sequence[float]) -> list[Floats]:
    """Logits of Z (m, p) by one head per strength, fitted on X (n, p) with n below p.

    An L2 penalty is invariant under rotation, and the n rows span at most n directions: X = L Q, where Q has
    orthonormal rows and L is the Cholesky factor of X X' = L L'. So n coefficients on L replace the p on X.
    """
    n, p = X.shape
    gram = (X @ X.T).astype(np.float64)
    gram[np.diag_indices(n)] += 1e-6 * gram.trace() / n
    L = cholesky(gram, lower=True)
    heads = fit_heads(exam, L.astype(np.float32), rows, [strength * n / p for strength in strengths])
    logits = []
    for head in heads:
        dual = solve_triangular(L, head.coef.T, lower=True, trans="T").astype(np.float32)  # (n, K)
        logits.append(Z @ (X.T @ dual) + head.intercept)
    return logits
