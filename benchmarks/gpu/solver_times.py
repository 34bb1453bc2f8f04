"""The solvers of training on a device and on the processor: their times, and how far their results are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.spin_pass import topic_design
from benchmarks.gpu.timer import Times, time_once
from spin.arrays import Floats
from spin.integrate.fit_linear import fit_linear
from spin.sparsify.solvers.batched_l1_path import BatchedPaths
from spin.sparsify.solvers.ridge_regression import add_products, fill_upper, predict_left_out

LIMITS = {"L1 paths": 1e-3, "ridge": 1e-3, "heads": 2e-2}
"""largest difference of the results by solver, see `SolverTime.difference`: paths end at a relative violation of 1e-3
and heads at one of 3e-3, while ridge is solved exactly, in float32"""
_STEP = 0.8
"""factor from one penalty of a path to the next"""
_RIDGE_PENALTIES = (0.3, 1.0, 3.0)
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Problem:
    """The size of a problem."""

    documents: int
    width: int
    """number of neurons"""
    classes: int
    designs: int = 1
    """number of feature columns that are solved together"""
    penalties: int = 1
    on_processor: bool = True
    """whether it is solved on the processor too"""


@dataclass(frozen=True)
class SolverTime:
    """A solver on one problem."""

    solver: str
    problem: Problem
    device: Times
    """seconds, from arrays in memory to arrays in memory"""
    processor: Times | None
    """the same on the processor; None where it was not run"""
    difference: float | None
    """of the two results: for L1 paths the largest relative difference of the objective, else the norm of the
    difference by the norm"""

    @property
    def holds(self) -> bool:
        """Whether the difference is within its limit."""
        return self.difference is None or self.difference < LIMITS[self.solver]


def full_problems() -> dict[str, Sequence[Problem]]:
    """Problems as trainings have them: a small one that the processor solves too, and a large one."""
    return {
        "L1 paths": [
            Problem(4_000, 768, 3, designs=2, penalties=12),
            Problem(16_000, 3_072, 8, designs=2, penalties=20, on_processor=False),
        ],
        "ridge": [Problem(5_000, 20_000, 8), Problem(5_000, 90_000, 8, on_processor=False)],
        "heads": [Problem(8_000, 2_000, 4), Problem(20_000, 8_000, 4, on_processor=False)],
    }


def small_problems() -> dict[str, Sequence[Problem]]:
    """Problems of seconds, one per solver."""
    return {
        "L1 paths": [Problem(300, 24, 3, designs=2, penalties=5)],
        "ridge": [Problem(200, 300, 3)],
        "heads": [Problem(300, 40, 4)],
    }


def measure_solver(solver: str, problem: Problem, device: torch.device, repeats: int) -> SolverTime:
    """Time a solver on a problem on the device, and once on the processor if the problem wants that."""
    designs, classes = draw_problem(problem)
    solve = _SOLVERS[solver]
    results: list[NDArray[np.floating]] = []

    def run_on(where: str) -> Callable[[], None]:
        return lambda: results.append(solve(designs, classes, problem, where))

    run_on(str(device))()  # warms up
    on_device = Times(tuple(time_once(device, run_on(str(device))) for _ in range(repeats)))
    if not problem.on_processor:
        return SolverTime(solver, problem, on_device, None, None)
    on_processor = Times((time_once(torch.device("cpu"), run_on("cpu")),))
    compare = _objective_difference if solver == "L1 paths" else _relative_difference
    return SolverTime(solver, problem, on_device, on_processor, compare(designs, classes, results[0], results[-1]))


def draw_problem(problem: Problem) -> tuple[list[Floats], NDArray[np.int64]]:
    """Standardised designs (n, width), and classes (n,) that a random linear model with noise draws from the first."""
    random = np.random.default_rng(0)
    designs = []
    for _ in range(problem.designs):
        X = random.standard_normal((problem.documents, problem.width), np.float32)
        X += random.standard_normal((problem.documents, 1), np.float32)  # neurons correlate
        X -= X.mean(0)
        X /= X.std(0)
        designs.append(X)
    weights = random.standard_normal((problem.width, problem.classes), np.float32) / problem.width**0.5
    logits = 3 * designs[0] @ weights
    return designs, (logits + random.gumbel(size=logits.shape)).argmax(1)


def _solve_paths(designs: Sequence[Floats], classes: NDArray[np.int64], problem: Problem, device: str) -> Floats:
    """The coefficients and intercepts (L, P, K, width + 1) at falling penalties."""
    targets = _signs(classes)
    paths = BatchedPaths(designs, targets, np.full_like(targets, 1 / len(classes)), device=device)
    shares = _STEP ** np.arange(1, problem.penalties + 1)
    coef, intercept = paths.solve(shares[:, None, None] * paths.lam_max)
    return np.concatenate([coef, intercept[..., None]], axis=-1)


def _solve_ridge(designs: Sequence[Floats], classes: NDArray[np.int64], problem: Problem, device: str) -> Floats:
    """The left-out predictions (n, K) of all penalties side by side; the design comes in blocks of 4,096 neurons."""
    gram = torch.zeros(problem.documents, problem.documents, device=device)
    for start in range(0, problem.width, 4096):
        add_products(gram, torch.from_numpy(designs[0][:, start : start + 4096]).to(device))
    gram = fill_upper(gram)
    targets = torch.from_numpy(_signs(classes).T > 0).to(gram)
    return torch.cat([predict_left_out(gram, targets, each) for each in _RIDGE_PENALTIES], 1).cpu().numpy()


def _solve_heads(designs: Sequence[Floats], classes: NDArray[np.int64], problem: Problem, device: str) -> Floats:
    """The logits (n, K) of the heads of all strengths side by side."""
    heads = fit_linear(topic_design(designs[0], classes, device), _STRENGTHS)
    return np.concatenate([head.logits(designs[0]) for head in heads], axis=1)


_SOLVERS = {"L1 paths": _solve_paths, "ridge": _solve_ridge, "heads": _solve_heads}


def _signs(classes: NDArray[np.int64]) -> Floats:
    """(K, n) 1 for the class of a document, else -1."""
    return np.where(np.arange(classes.max() + 1)[:, None] == classes, 1, -1).astype(np.float32)


def _relative_difference(_designs: Sequence[Floats], _classes: NDArray[np.int64], one: Floats, other: Floats) -> float:
    return float(np.linalg.norm(one.astype(np.float64) - other) / np.linalg.norm(other))


def _objective_difference(designs: Sequence[Floats], classes: NDArray[np.int64], one: Floats, other: Floats) -> float:
    """The largest relative difference of the objectives of all paths, in float64."""
    a, b = (_objectives(designs, classes, solution.astype(np.float64)) for solution in (one, other))
    return float((np.abs(a - b) / b).max())


def _objectives(designs: Sequence[Floats], classes: NDArray[np.int64], solution: NDArray[np.float64]) -> Floats:
    """(L, P, K) the penalised loss of solutions (L, P, K, width + 1)."""
    targets = _signs(classes).astype(np.float64)
    objectives = np.empty(solution.shape[:3])
    for p, design in enumerate(designs):
        X = design.astype(np.float64)
        largest = np.abs((targets - targets.mean(1, keepdims=True)) @ X / (2 * len(X))).max(1)  # lam_max (K,)
        for step, weights in enumerate(solution[:, p]):
            margins = targets * (weights[:, :-1] @ X.T + weights[:, -1:])
            penalty = _STEP ** (step + 1) * largest * np.abs(weights[:, :-1]).sum(1)
            objectives[step, p] = np.logaddexp(0, -margins).mean(1) + penalty
    return objectives
