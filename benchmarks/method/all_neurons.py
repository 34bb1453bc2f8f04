"""The row that selects nothing: logistic regression on all neurons of all sites."""

from __future__ import annotations

from collections.abc import Sequence
from time import process_time

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from benchmarks.method.contenders import Answer, finish, settle
from benchmarks.method.corpora import Exam
from spin.arrays import Floats, Rows
from spin.heads.linear_head import Penalty
from spin.integrate.feature_matrix import row_weights
from spin.integrate.fit_linear import Design, fit_linear
from spin.labels.standardizer import Standardizer
from spin.process_group import ProcessGroup

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""prior variance of a logit"""


def all_neurons(exam: Exam) -> Answer:
    """Every site.pooling, standardised, with multinomial logistic regression under an L2 penalty."""
    start = process_time()

    def fit(rows: Rows, out: Rows, strengths: Sequence[float]) -> list[Floats]:
        X, Z = _everything(exam, rows, out)
        return _ridge(X, Z, exam, rows, strengths)

    settled = settle(exam, fit, STRENGTHS)
    logits = finish(exam, fit, settled)
    deepest = max(c.site for c in exam.corpus.sites)
    return Answer(
        "all neurons", logits, exam.corpus.neurons, deepest.layer, exam.corpus.compute(deepest),
        process_time() - start, f"strength {settled.strength:g}",
    )  # fmt: skip


def _everything(exam: Exam, rows: Rows, out: Rows) -> tuple[Floats, Floats]:
    """All columns beside one another, standardised on `rows`, of either rows."""
    X = np.empty((len(rows), exam.corpus.neurons), np.float32)
    Z = np.empty((len(out), exam.corpus.neurons), np.float32)
    at = 0
    for values in exam.corpus.sites.values():
        here = slice(at, at + values.shape[1])
        standardizer = Standardizer.fit(values[rows])
        X[:, here], Z[:, here] = standardizer.transform(values[rows]), standardizer.transform(values[out])
        at += values.shape[1]
    return X, Z


def _ridge(X: Floats, Z: Floats, exam: Exam, rows: Rows, strengths: Sequence[float]) -> list[Floats]:
    """Logits of Z (m, p) by a head a strength on X (n, p) with n below p.

    An L2 penalty does not see a rotation, and the n rows span at most n directions: X = L Q with orthonormal rows of
    Q, so that the minimum over the p coefficients is one over n on the lower triangle L of X X' = L L'.
    """
    n, p = X.shape
    gram = (X @ X.T).astype(np.float64)
    gram[np.diag_indices(n)] += 1e-6 * gram.trace() / n
    L = cholesky(gram, lower=True)
    has = exam.corpus.label_space.indicator(exam.y[rows])
    weights = row_weights(has, "none", exam.corpus.label_space)
    design = Design(L.astype(np.float32), has, weights, np.ones(n, np.float32), exclusive=True, group=ProcessGroup())
    heads = fit_linear(design, [Penalty(strength * n / p) for strength in strengths])
    found = []
    for head in heads:
        dual = solve_triangular(L, head.coef.T, lower=True, trans="T").astype(np.float32)  # (n, K)
        found.append(Z @ (X.T @ dual) + head.intercept)
    return found
