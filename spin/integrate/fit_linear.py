"""Fit linear heads over the selected neurons of all layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from spin.heads.design import Design
from spin.heads.linear_head import LinearHead
from spin.sparsify.solvers.fista import STEPS, Regressions, full_float32
from spin.sparsify.solvers.quadratic_bound import MOST_WIDTH, solve_under_bound

_MOST_TOGETHER = 1 << 21
"""features, rows times columns, of the designs that are solved together"""


def fit_linear(
    design: Design, strengths: Sequence[float], *, tolerance: float = 3e-3, max_checks: int = 20
) -> list[LinearHead]:
    """Fit one head per strength of regularisation, all at once; every member of the group gets the same heads.

    A strength is the prior variance of a logit, so that it depends neither on the number of documents nor of neurons:
    the head minimises sum_i s_i loss_i + |V|^2 / (2 strength N) over V. The coefficients are V times the unit scale
    and N counts the rows of the whole group. Ends where no optimality condition is violated by more than `tolerance`
    times the steepest slope of the null model, or after `max_checks` checks. This stops weakly regularised heads early,
    which regularises them a little more. So the heads of the search and the final head must use the same tolerance.
    """
    return _fit_together([design], strengths, tolerance, max_checks)[0]


def fit_folds(designs: Iterable[Design], strengths: Sequence[float]) -> Iterator[list[LinearHead]]:
    """The heads of `fit_linear` for each design, in order.

    Small designs are solved in one batch: on few rows the calls of a step take longer than its arithmetic.
    """
    batch: list[Design] = []
    for design in designs:
        if batch and sum(math.prod(of.features.shape) for of in (*batch, design)) > _MOST_TOGETHER:
            yield from _fit_together(batch, strengths)
            batch = []
        batch.append(design)
    yield from _fit_together(batch, strengths)


@full_float32()
def _fit_together(
    designs: Sequence[Design], strengths: Sequence[float], tolerance: float = 3e-3, max_checks: int = 20
) -> list[list[LinearHead]]:
    """The heads of each of one or more designs, of which several must be in memory."""
    first = designs[0]
    are_wide = all(_is_wide(design, len(strengths)) for design in designs)
    spaces = [_Space.of_rows(design) if are_wide else _Space.of_features(design) for design in designs]
    blocks, scales, basis = _join(spaces)
    width = scales.shape[-3] - 1
    targets, weights = (
        pad_sequence([design.tensor(getattr(design, name))[:, None] for design in designs], batch_first=True)
        for name in ("has", "weights")
    )
    l2 = first.tensor(np.array([[1 / (strength * design.count) for strength in strengths] for design in designs]))
    regressions = Regressions(
        blocks,
        targets,
        weights,
        scales,
        torch.zeros_like(l2),
        l2,
        exclusive=first.exclusive,
        group=first.group,
        basis=basis,
    )
    share = first.group.all_reduce((weights * targets).sum(1)).clamp(1e-6, 1 - 1e-6)
    start = torch.zeros(len(designs), width + 1, len(strengths), targets.shape[-1], device=first.device)
    start[:, width] = share.log() if first.exclusive else share.logit()
    tolerances = tolerance * regressions.steepest(start)
    if width <= MOST_WIDTH:
        solutions = solve_under_bound(regressions, start, tolerances, STEPS * max_checks)
    else:
        solutions = regressions.solve(start, tolerances, max_checks)
    return [space.heads(solution) for space, solution in zip(spaces, solutions, strict=True)]


def _is_wide(design: Design, heads: int) -> bool:
    """Whether n rows are so few for p features that solving in the space that they span takes less time.

    It takes a factorisation of the rows, and then for each head an inverse of n rows in place of p. The rows must all
    be here.
    """
    n, p = design.features.shape
    faster = n * n * (2 * p + n + heads * n) < p * p * (n + heads * p) and n <= MOST_WIDTH
    return faster and design.features.in_memory and design.group.size == 1


@dataclass(frozen=True)
class _Space:
    """The coordinates in which the weights of a design are found: those of its features, or of the space of its rows.

    Under a ridge penalty alone the best weights lie in the space that the scaled rows span (the representer theorem:
    Kimeldorf & Wahba 1971). A part that is orthogonal to all rows would only add to their length.
    """

    blocks: Iterable[torch.Tensor]
    """(1, m, width + 1) each"""
    scales: torch.Tensor
    """(width + 1, 1, 1)"""
    unit: float
    """the scale of the features"""
    basis: torch.Tensor | None = None
    """(p, width) orthonormal, of the space of the rows; None: the coordinates are those of the features"""

    @classmethod
    def of_features(cls, design: Design) -> _Space:
        scales = torch.full((design.features.shape[1] + 1, 1, 1), design.unit, device=design.device)
        scales[-1] = 1
        return cls(design.blocks(), scales, design.unit)

    @classmethod
    def of_rows(cls, design: Design) -> _Space:
        [block] = design.blocks()
        basis, coordinates = torch.linalg.qr((block[0, :, :-1] * design.unit).T)
        ones = torch.ones(len(coordinates), 1, device=design.device)
        scales = torch.ones(len(coordinates) + 1, 1, 1, device=design.device)
        return cls([torch.cat([coordinates.T, ones], 1)[None]], scales, design.unit, basis)

    def heads(self, solution: torch.Tensor) -> list[LinearHead]:
        """The B heads of a solution (width + 1, B, K), whose width may be padded."""
        weights = solution[: len(self.scales) - 1]
        if self.basis is not None:
            weights = (self.basis @ weights.flatten(1)).unflatten(1, weights.shape[1:])
        coefs = (weights * self.unit).permute(1, 2, 0).cpu().numpy()
        intercepts = solution[-1].cpu().numpy()
        return [
            LinearHead(np.ascontiguousarray(coef), np.ascontiguousarray(intercept))
            for coef, intercept in zip(coefs, intercepts, strict=True)
        ]


def _join(spaces: Sequence[_Space]) -> tuple[Iterable[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """The blocks (P, n, width + 1), scales (P, width + 1, 1, 1) and basis (P, p, width), if any, of P spaces.

    Several, whose features are in memory, are padded with zeros to the most rows and the largest width.
    """
    if len(spaces) == 1:
        return spaces[0].blocks, spaces[0].scales, spaces[0].basis
    designs = [block[0] for space in spaces for block in space.blocks]
    rows, width = (max(design.shape[axis] for design in designs) for axis in (0, 1))
    blocks = designs[0].new_zeros(len(spaces), rows, width)
    scales = designs[0].new_ones(len(spaces), width, 1, 1)
    blocks[:, :, -1] = 1
    for index, (space, design) in enumerate(zip(spaces, designs, strict=True)):
        own = design.shape[1] - 1
        blocks[index, : len(design), :own], scales[index, :own] = design[:, :-1], space.scales[:-1]
    bases = [space.basis for space in spaces if space.basis is not None]
    if not bases:
        return [blocks], scales, None
    basis = blocks.new_zeros(len(bases), max(map(len, bases)), width - 1)
    for index, of_space in enumerate(bases):
        basis[index, : len(of_space), : of_space.shape[1]] = of_space
    return [blocks], scales, basis
