"""L1 logistic regressions along falling penalties: proximal Newton for many classes at once, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import expit

from spin.arrays import Floats

TOLERANCE = 1e-3
"""relative KKT violation at which a solution is accepted"""
_MARGIN = 0.9
"""share of the tolerance that is used here, since float32 rounds the solution"""
_MAX_STEPS = 200
_NEAR = 0.9
"""share of the penalty from which on the gradient of a feature makes it part of a quadratic model"""
_SLOW = 0.7
"""a step that leaves more than this share of the violation asks for a new quadratic model"""
_CURVED = (4.0, 1.0, 0.25, 0.0)
"""curvature, in multiples of the mean, above which a row counts by itself: of the first, second … model of a penalty"""
_ROUNDING = 1e-7
"""share of the objective that float32 does not resolve"""


Step = tuple[NDArray[np.float64], float]
"""a change of the coefficients (p,) and of the intercept of a problem"""

Solution = tuple[float, NDArray[np.float64], float]
"""a penalty with its coefficients (p,) and its intercept"""


class LogisticPaths:
    """The minimisers of sum_i s_ki log(1 + exp(-y_ki (x_i w_k + b_k))) + lam_k |w_k|_1 for falling penalties lam_k.

    The K problems share the design `X` (n, p), which is float32 and standardised; `targets` (K, n) are -1 or 1, each
    row of `weights` (K, n) sums to 1. Each solution starts from the previous one. The steps are those of proximal
    Newton (Friedman et al. 2010; Lee, Sun & Saunders 2014). All unsolved problems take them together, so that their
    gradients are one matrix product. It is over all features, so that a solution is optimal among all of them, not
    only among those that its quadratic models held.
    """

    lam_max: NDArray[np.float64]
    """(K,) the smallest penalty of each problem whose solution is zero"""

    def __init__(self, X: Floats, targets: Floats, weights: Floats, tolerance: float = TOLERANCE) -> None:
        self._design, self._tolerance = _Design(X), tolerance
        self._problems = [_Problem.at_zero(y, s, X.shape[1]) for y, s in zip(targets, weights, strict=True)]
        self.lam_max = np.abs(self._gradients(self._problems)).max(1, initial=0).astype(np.float64)

    @property
    def coef(self) -> NDArray[np.float64]:
        """(K, p) the coefficients at the last penalties."""
        return np.stack([problem.w for problem in self._problems])

    @property
    def intercept(self) -> NDArray[np.float64]:
        """(K,) the intercepts at the last penalties."""
        return np.array([problem.b for problem in self._problems])

    def start_at(self, coef: Floats, intercept: Floats) -> None:
        """Begin at coefficients (K, p) and intercepts (K,), such as a solution on similar rows, in place of zero."""
        for problem, w, b in zip(self._problems, coef.astype(np.float64), intercept.tolist(), strict=True):
            problem.w, problem.b = w, b

    def solve(self, lams: Floats) -> None:
        """Solve at `lams` (K,), which are at most the previous ones; `coef` and `intercept` are then the solution."""
        for problem, lam, scores in zip(self._problems, lams, self._scores(self.coef, self.intercept), strict=True):
            problem.begin(float(lam), scores)
        steps = [(problem, problem.extrapolate()) for problem in self._problems]
        for _ in range(_MAX_STEPS):
            self._take(steps)
            gradients = self._gradients([problem for problem, _ in steps])
            proposed = [
                (problem, problem.propose(gradient, self._design, self._tolerance))
                for (problem, _), gradient in zip(steps, gradients, strict=True)
            ]
            steps = [(problem, step) for problem, step in proposed if step is not None]
            if not steps:
                break

    def _take(self, steps: Sequence[tuple[_Problem, Step]]) -> None:
        """Take the steps of some problems, which move all their scores in one matrix product."""
        changes, intercept_changes = (np.stack(parts) for parts in zip(*(step for _, step in steps), strict=True))
        for (problem, step), moved in zip(steps, self._scores(changes, intercept_changes), strict=True):
            problem.move(*step, moved)

    def _gradients(self, problems: Sequence[_Problem]) -> Floats:
        """(B, p) the gradients of the losses of some problems with respect to their coefficients."""
        return np.stack([problem.residual for problem in problems]) @ self._design.X

    def _scores(self, coef: Floats, intercept: Floats) -> Floats:
        """(B, n) the scores of all rows, by coefficients (B, p) and intercepts (B,)."""
        return coef.astype(np.float32) @ self._design.X.T + intercept[:, None].astype(np.float32)


class LassoPaths:
    """Solves what `BatchedPaths` solves, one design after another on a CPU; its arguments are described there."""

    def __init__(
        self, designs: Sequence[Floats], targets: Floats, weights: Floats, tolerance: float = TOLERANCE
    ) -> None:
        self._paths = [LogisticPaths(X, targets, weights, tolerance) for X in designs]
        self.lam_max = np.stack([paths.lam_max for paths in self._paths])

    def start_at(self, design: int, coef: Floats, intercept: Floats) -> None:
        """Begin a design at coefficients (K, width) and intercepts (K,) in place of zero."""
        self._paths[design].start_at(coef, intercept)

    def solve(self, lams: Floats) -> tuple[Floats, Floats]:
        """The solutions at the penalties `lams` (L, P, K): coef (L, P, K, width) and intercept (L, P, K) in float32.

        The penalties of each problem must fall, within a call and from one call to the next.
        """
        coef, intercept = [], []
        for of_designs in lams:
            for of_problems, paths in zip(of_designs, self._paths, strict=True):
                paths.solve(of_problems)
            coef.append([paths.coef.astype(np.float32) for paths in self._paths])
            intercept.append([paths.intercept for paths in self._paths])
        return np.array(coef, np.float32), np.array(intercept, np.float32)


@dataclass
class _Problem:
    """One problem at one penalty, and how far its steps have come."""

    y: Floats
    s: Floats
    w: NDArray[np.float64]
    b: float
    scores: Floats
    """(n,) scores at the current point"""
    residual: Floats
    """(n,) the derivative of the loss with respect to the scores"""
    lam: float = np.inf
    last: Solution | None = None
    before_last: Solution | None = None
    objective: float = np.inf
    model: _Model | None = None
    models: int = 0
    """number of models that this penalty has had"""
    fresh: bool = False
    """whether the last step was the first one of its model"""
    violation: float = np.inf
    """violation of the optimality conditions before the last step"""
    gained: float = np.inf
    """descent of the objective by the last step"""

    @classmethod
    def at_zero(cls, y: Floats, s: Floats, width: int) -> _Problem:
        """The problem at the solution without coefficients."""
        # clipped: a single class must not give an infinite intercept
        share = float(np.clip(s[y > 0].sum(dtype=np.float64), 1e-6, 1 - 1e-6))
        b = float(np.log(share / (1 - share)))
        scores = np.full(len(y), b, np.float32)
        return cls(y, s, np.zeros(width), b, scores, _residual(y, s, scores))

    def begin(self, lam: float, scores: Floats) -> None:
        """Turn to a penalty, with the scores (n,) of the current point computed afresh.

        Steps only add to the scores, so that their rounding errors would grow from one penalty to the next.
        """
        self.before_last, self.last = self.last, (self.lam, self.w, self.b)
        self.lam, self.scores, self.residual = lam, scores, _residual(self.y, self.s, scores)
        self.objective = _loss(self.y, self.s, scores) + lam * np.abs(self.w).sum()
        self.model, self.models, self.fresh, self.violation, self.gained = None, 0, False, np.inf, np.inf

    def extrapolate(self) -> Step:
        """The step to where the last two solutions point, on a line over the logarithm of the penalty."""
        if self.last is None or self.before_last is None or not self.last[0] < self.before_last[0] < np.inf:
            return np.zeros_like(self.w), 0.0
        (last, *_), (before_last, w, b) = self.last, self.before_last
        ahead = np.log(last / self.lam) / np.log(before_last / last)
        target = self.w + ahead * (self.w - w)
        # a coefficient that would enter the support or change its sign is zero: the next steps decide about it
        return np.where(target * self.w > 0, target, 0) - self.w, ahead * (self.b - b)

    def propose(self, gradient: Floats, design: _Design, tolerance: float) -> Step | None:
        """A step of coefficients (p,) and intercept by the gradient (p,) of the loss; None within the tolerance.

        The step minimises a quadratic model of the loss plus the penalty, as in proximal Newton. The gradient of the
        model is always that of the current point; its second derivatives are kept as long as they lead on.
        """
        intercept_gradient = float(self.residual.sum(dtype=np.float64))
        violation = _violation(gradient, intercept_gradient, self.w, self.lam)
        slow = violation > _SLOW * self.violation
        # the step came from the exact second derivatives of its starting point, and yet float32 sees no descent
        exhausted = self.fresh and self.models >= len(_CURVED) and self.gained <= _ROUNDING * self.objective
        if violation <= _MARGIN * tolerance * self.lam or (slow and exhausted):
            return None
        self.violation, self.fresh = violation, slow or self.model is None
        if self.model is None or slow:
            # the others stay zero in this model; if one should not, the gradient over all features shows it later
            columns = np.flatnonzero((self.w != 0) | (np.abs(gradient) >= _NEAR * self.lam))
            probability = expit(self.scores)
            curved = _CURVED[min(self.models, len(_CURVED) - 1)]
            # the second derivative of s log(1 + exp(-y score)) by the score is s p (1 - p)
            self.model = design.model(columns, self.s * probability * (1 - probability), curved)
            self.models += 1
        # inexact proximal Newton (Lee, Sun & Saunders 2014): a model need not be solved more exactly than it holds
        enough = max(1e-4 * self.lam, violation / 20)
        return self.model.minimise(gradient, intercept_gradient, self.w, self.b, self.lam, enough)

    def move(self, change: NDArray[np.float64], intercept_change: float, moved: Floats) -> None:
        """Take a step, which moves the scores by `moved` (n,), or the largest half, quarter … of it that descends."""
        length = 1.0
        while length > 1e-4:  # the model ignores how curvature changes, so that a full step may overshoot
            w, scores = self.w + length * change, self.scores + np.float32(length) * moved
            objective = _loss(self.y, self.s, scores) + self.lam * np.abs(w).sum()
            if objective <= self.objective * (1 + _ROUNDING):
                self.w, self.b, self.scores = w, self.b + length * intercept_change, scores
                self.residual = _residual(self.y, self.s, scores)
                self.gained, self.objective = self.objective - objective, objective
                return
            length /= 2
        self.gained = self.violation = 0.0  # the next step needs a better model


@dataclass
class _Model:
    """The second derivatives of a loss on some features."""

    columns: NDArray[np.int64]
    """(m,) the features, ascending; the coefficients of all others stay as they are"""
    hessian: Floats
    """(m, m) second derivatives by two coefficients"""
    cross: Floats
    """(m,) second derivatives by a coefficient and the intercept"""
    total: float
    """second derivative by the intercept"""

    def minimise(
        self, gradient: Floats, intercept_gradient: float, w: Floats, b: float, lam: float, enough: float
    ) -> Step:
        """The change of coefficients (p,) and intercept that minimises the quadratic model plus lam |w|_1."""
        slope, start, change = gradient[self.columns].astype(np.float64), w[self.columns], np.zeros(len(w))
        end, intercept = _descend(
            self.hessian, self.cross, self.total, slope, intercept_gradient, start, b, lam, enough
        )
        change[self.columns] = end - start
        return change, intercept - b


@dataclass
class _Design:
    """The features, and what all problems share of their second derivatives."""

    X: Floats
    """(n, p)"""

    @cached_property
    def _sums(self) -> Floats:
        """(p,) the sum of each feature over the rows."""
        return np.asarray(self.X.sum(0))

    @cached_property
    def _gram(self) -> Floats:
        """(p, p) the Gram matrix X^T X of the features."""
        return np.asarray(self.X.T @ self.X)

    def model(self, columns: NDArray[np.int64], curvature: Floats, curved: float) -> _Model:
        """The second derivatives on `columns` (m,), by the curvature (n,) of the loss in each row's score.

        A row of a rare class is mostly certain, and its curvature small. So only rows with more than `curved` times
        the mean count by themselves, with what they have above the mean of the others. That mean, times the Gram
        matrix of all rows, stands for the rest, and is the same product for all problems. Where that saves little,
        every row counts by itself, and the second derivatives are exact, as they are for `curved` 0.
        """
        n, p = self.X.shape
        alone = curvature > curved * curvature.mean()
        if max(alone.sum(), p) > n / 2:
            rows, rest = np.arange(n), np.float32(0)
        else:
            rows, rest = np.flatnonzero(alone), curvature[~alone].mean()
        # sum_i h_i x_i x_i^T with h_i = (h_i - rest) + rest for these rows, and rest in place of h_i for the others.
        # The root is real: rest is a mean of curvatures below those of the rows that count by themselves.
        root = np.sqrt(curvature[rows] - rest)
        A = _gather(self.X, rows, columns, root)
        hessian, cross = A.T @ A, A.T @ root
        if rest:
            hessian += rest * self._gram.take(columns, 0).take(columns, 1)
            cross += rest * self._sums[columns]
        # by the intercept the sum is exact: the mean of the other rows stands for just their sum
        return _Model(columns, hessian, cross, float(curvature.sum(dtype=np.float64)))


def kkt_violation(X: Floats, y: Floats, s: Floats, w: Floats, b: Floats | float, lam: Floats | float) -> float:
    """The violation of the optimality conditions by (w, b), as a share of the penalty; of several problems the largest.

    It is the largest distance of the negative gradient from the subdifferential of lam |w|_1, and of the intercept's
    gradient from zero, over lam. `y` and `s` are (n,) or (K, n), `w` is (p,) or (K, p), `b` and `lam` are numbers or
    (K,).
    """
    residual = np.atleast_2d(_residual(y, s, w @ X.T + np.asarray(b)[..., None]))
    problems = zip(residual @ X, residual.sum(1), np.atleast_2d(w), np.atleast_1d(lam), strict=True)
    return max(_violation(*problem) / float(problem[-1]) for problem in problems)


def _violation(gradient: Floats, intercept_gradient: float, w: Floats, lam: float) -> float:
    # the subdifferential of lam |w_j| is lam sign(w_j), or the interval from -lam to lam where w_j is 0
    distance = np.where(w != 0, np.abs(gradient + lam * np.sign(w)), np.maximum(np.abs(gradient) - lam, 0))
    return float(max(distance.max(initial=0), abs(intercept_gradient)))


def _residual(y: Floats, s: Floats, scores: Floats) -> Floats:
    """The derivative (n,) of the loss with respect to the scores."""
    with np.errstate(over="ignore"):  # of a row that is certain: it counts zero
        return (-y * s / (1 + np.exp(y * scores))).astype(np.float32)


def _loss(y: Floats, s: Floats, scores: Floats) -> float:
    margin = y * scores
    # log(1 + exp(-m)), in a form in which exp never overflows
    losses = np.log1p(np.exp(-np.abs(margin))) - np.minimum(margin, 0)
    return float((s * losses).sum(dtype=np.float64))


@njit(cache=True, nogil=True)
def _gather(X, rows, columns, factors):  # type: ignore[no-untyped-def]
    """Some rows and columns of X (n, p), each row times its factor."""
    part = np.empty((len(rows), len(columns)), np.float32)
    for i in range(len(rows)):
        row, factor, gathered = X[rows[i]], factors[i], part[i]
        for j in range(len(columns)):
            gathered[j] = row[columns[j]] * factor
    return part


@njit(cache=True, nogil=True)
def _descend(hessian, cross, total, gradient, intercept_gradient, w, b, lam, enough):  # type: ignore[no-untyped-def]
    """Minimise gradient·d + d·hessian·d/2 + lam |w + d|_1 with a free intercept; return w + d and b + d_b.

    This is cyclic coordinate descent with covariance updates (Friedman et al. 2010). `cross` and `total` are the
    Hessian's intercept row and corner. Passes over the support alone follow a pass over everything. The end is a pass
    over everything in which no step moves the gradient by more than `enough`. Plain loops, since an array expression
    would allocate a row a step.
    """
    # invariant: slope = gradient + hessian·d + cross d_b and slope_b = intercept_gradient + cross·d + total d_b
    w, slope, slope_b, new_b = w.copy(), gradient.copy(), intercept_gradient, b
    everything = True
    for _ in range(1000):
        largest = 0.0
        for j in range(len(w)):
            curvature = hessian[j, j]
            if (not everything and w[j] == 0) or curvature <= 0:  # no curvature: the column is constant
                continue
            # the minimum along coordinate j: the Newton step from w_j, shrunk towards zero by lam / curvature
            pull = w[j] - slope[j] / curvature
            shrunk = max(abs(pull) - lam / curvature, 0.0)
            new = shrunk if pull > 0 else -shrunk
            change = new - w[j]
            if change != 0:
                w[j] = new
                row = hessian[j]
                for i in range(len(w)):  # a row of the symmetric Hessian, which lies together in memory
                    slope[i] += change * row[i]
                slope_b += change * cross[j]
                largest = max(largest, abs(change) * curvature)
        change = -slope_b / total  # the intercept bears no penalty: its minimum is where its slope is zero
        new_b += change
        for i in range(len(w)):
            slope[i] += change * cross[i]
        slope_b = 0.0
        largest = max(largest, abs(change) * total)
        if largest <= enough:
            if everything:
                break
            everything = True  # the support has settled: see whether other coefficients want to join it
        else:
            everything = False
    return w, new_b
