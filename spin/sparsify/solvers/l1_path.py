"""L1 logistic regression along falling penalties: proximal Newton with the sequential strong rule, for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import expit

from spin.arrays import Floats

TOLERANCE = 1e-3
"""relative KKT violation at which a solution is accepted"""


@dataclass
class LogisticPath:
    """The minimisers of sum_i s_i log(1 + exp(-y_i (x_i w + b))) + lam |w|_1 for falling penalties lam.

    Each solution starts from the previous one. `X` (n, p) is float32 and standardised, `y` (n,) is -1 or 1, the
    weights `s` (n,) sum to 1. The working set of a penalty are the features of the previous solution and those that
    the sequential strong rule keeps (Tibshirani et al. 2012). On it, each proximal Newton step minimises the quadratic
    model by coordinate descent on its Gram matrix (Friedman et al. 2010), which does not touch the n rows again.
    Features that the rule wrongly discarded fail the KKT check and join the working set.
    """

    X: Floats
    y: Floats
    s: Floats
    w: NDArray[np.float64] = field(init=False)
    """(p,) the solution at the last penalty"""
    b: float = field(init=False)
    lam_max: float = field(init=False)
    """the smallest penalty whose solution is zero"""

    def __post_init__(self) -> None:
        # clipped: a single class must not give an infinite intercept
        share = float(np.clip(self.s[self.y > 0].sum(dtype=np.float64), 1e-6, 1 - 1e-6))
        self.w = np.zeros(self.X.shape[1])
        self.b = float(np.log(share / (1 - share)))
        self._gradient = self.X.T @ _residual(self.y, self.s, np.full(len(self.y), self.b, np.float32))
        self._lam = self.lam_max = float(np.abs(self._gradient).max(initial=0))

    def solve(self, lam: float) -> None:
        """Solve at `lam`, which is at most the previous penalty; `w` and `b` hold the solution afterwards."""
        working_set = (self.w != 0) | (np.abs(self._gradient) >= 2 * lam - self._lam)
        for _ in range(20):
            columns = np.flatnonzero(working_set)
            scores = self._minimise(columns, lam)
            self._gradient = self.X.T @ _residual(self.y, self.s, scores)
            discarded = (np.abs(self._gradient) > lam * (1 + TOLERANCE)) & ~working_set
            if not discarded.any():
                break
            working_set |= discarded
        self._lam = lam

    def _minimise(self, columns: NDArray[np.int64], lam: float) -> Floats:
        """The scores (n,) of the solution by proximal Newton on the features `columns`."""
        A = np.ascontiguousarray(self.X[:, columns])
        w, b = self.w[columns], self.b
        scores = (A @ w.astype(np.float32) + np.float32(b)).astype(np.float32)
        objective = _loss(self.y, self.s, scores) + lam * np.abs(w).sum()
        model, last, fresh, gained = None, np.inf, False, 0.0
        for _ in range(50):
            residual = _residual(self.y, self.s, scores)
            gradient, slope_b = (A.T @ residual).astype(np.float64), float(residual.sum())
            violation = _violation(gradient, slope_b, w, lam)
            if violation <= TOLERANCE * lam / 2:
                break
            if fresh and violation > last / 2 and gained <= 1e-7 * objective:
                break  # no further descent is visible in float32
            fresh = False
            if model is None or violation > last / 2:  # an old Hessian is reused while it makes progress
                model, fresh = _hessian(A, self.s, scores), True
            last = violation
            new_w, new_b = _descend(*model, gradient, slope_b, w, b, lam, max(1e-4 * lam, violation / 20))
            step_w, step_b = new_w - w, new_b - b
            moved = A @ step_w.astype(np.float32) + np.float32(step_b)
            length = 1.0
            while length > 1e-4:
                trial = scores + np.float32(length) * moved
                trial_objective = _loss(self.y, self.s, trial) + lam * np.abs(w + length * step_w).sum()
                if trial_objective <= objective:
                    break
                length /= 2
            else:
                break
            gained = objective - trial_objective
            w, b, scores, objective = w + length * step_w, b + length * step_b, trial, trial_objective
        self.w = np.zeros(self.X.shape[1])
        self.w[columns], self.b = w, float(b)
        return scores


class LassoPaths:
    """The paths of P designs and K problems, solved one after another on a CPU; `BatchedPaths` does so on a GPU."""

    lam_max: NDArray[np.float64]
    """(P, K) for each design and problem the smallest penalty at which every coefficient is zero"""

    def __init__(self, designs: Sequence[Floats], targets: Floats, weights: Floats) -> None:
        """`designs` are P arrays (n, width), float32 and standardised; `targets` (K, n) is -1 or 1.

        Each row of `weights` (K, n) sums to 1.
        """
        self._paths = [[LogisticPath(X, y, s) for y, s in zip(targets, weights, strict=True)] for X in designs]
        self.lam_max = np.array([[path.lam_max for path in paths] for paths in self._paths])

    def solve(self, lams: Floats) -> tuple[Floats, Floats]:
        """The solutions at the penalties `lams` (L, P, K): coef (L, P, K, width) and intercept (L, P, K) in float32.

        The penalties of each problem must fall, within a call and from one call to the next.
        """
        coef, intercept = [], []
        for of_designs in lams:
            for of_problems, paths in zip(of_designs, self._paths, strict=True):
                for lam, path in zip(of_problems, paths, strict=True):
                    path.solve(lam)
            coef.append([[path.w for path in paths] for paths in self._paths])
            intercept.append([[path.b for path in paths] for paths in self._paths])
        return np.array(coef, np.float32), np.array(intercept, np.float32)


def _hessian(A: Floats, s: Floats, scores: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Second derivatives of the loss: (m, m) of the coefficients, (m,) with the intercept, and of the intercept."""
    probability = expit(scores)
    root = np.sqrt(probability * (1 - probability) * s)
    scaled = A * root[:, None]
    return (scaled.T @ scaled).astype(np.float64), (scaled.T @ root).astype(np.float64), float(root @ root)


def kkt_violation(X: Floats, y: Floats, s: Floats, w: Floats, b: float, lam: float) -> float:
    """The violation of the optimality conditions by (w, b), as a share of the penalty.

    It is the largest distance of the negative gradient from the subdifferential of lam |w|_1, and of the intercept's
    gradient from zero, over lam.
    """
    residual = _residual(y, s, X @ w + b)
    return _violation(X.T @ residual, float(residual.sum()), w, lam) / lam


def _violation(gradient: Floats, intercept_gradient: float, w: Floats, lam: float) -> float:
    distance = np.where(w != 0, np.abs(gradient + lam * np.sign(w)), np.maximum(np.abs(gradient) - lam, 0))
    return float(max(distance.max(initial=0), abs(intercept_gradient)))


def _residual(y: Floats, s: Floats, scores: Floats) -> Floats:
    """The derivative (n,) of the loss with respect to the scores."""
    return (-y * expit(-y * scores) * s).astype(np.float32)


def _loss(y: Floats, s: Floats, scores: Floats) -> float:
    return float((s * np.logaddexp(0, -y * scores)).sum(dtype=np.float64))


@njit(cache=True)
def _descend(hessian, cross, total, gradient, intercept_gradient, w, b, lam, enough):  # type: ignore[no-untyped-def]
    """Coordinate descent on gradient·d + d·hessian·d/2 + lam |w + d|_1 with a free intercept, giving w + d, b + d_b.

    `cross` and `total` are the Hessian's intercept row and corner. `slope` and `slope_b` follow the quadratic's
    gradient at the current point; passes over the support alone alternate with passes over everything, until no
    step moves the gradient by more than `enough`.
    """
    w, slope, slope_b, new_b = w.copy(), gradient.copy(), intercept_gradient, b
    everything = True
    for _ in range(1000):
        largest = 0.0
        for j in range(len(w)):
            curvature = hessian[j, j]
            if (not everything and w[j] == 0) or curvature <= 0:
                continue
            pull = w[j] - slope[j] / curvature
            shrunk = max(abs(pull) - lam / curvature, 0.0)
            new = shrunk if pull > 0 else -shrunk
            change = new - w[j]
            if change != 0:
                w[j] = new
                slope += change * hessian[j]
                slope_b += change * cross[j]
                largest = max(largest, abs(change) * curvature)
        change = -slope_b / total
        new_b += change
        slope += change * cross
        slope_b = 0.0
        largest = max(largest, abs(change) * total)
        if largest <= enough:
            if everything:
                break
            everything = True
        else:
            everything = False
    return w, new_b
