"""L1 paths by matrix products: all penalties, problems and designs at once, for a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.process_group import ProcessGroup
from spin.sparsify.solvers.fista import Regressions, full_float32

TOLERANCE = 1e-3
"""relative KKT violation at which a solution is accepted"""
_MAX_CHECKS = 300
_BLOCK_BYTES = 1 << 28
"""bytes of all designs that are on a device at once if it has no room for all rows"""


class BatchedPaths:
    """The minimisers of sum_i s_ki log(1 + exp(-y_ki (x_i w + b))) + lam |w|_1 for P designs, K problems, L penalties.

    Solutions that float32 keeps from the tolerance are returned like the others; the caller certifies them.
    """

    lam_max: NDArray[np.float64]
    """(P, K) the smallest penalty of each design and problem at which every coefficient is zero"""

    def __init__(
        self,
        designs: Sequence[Floats],
        targets: Floats,
        weights: Floats,
        tolerance: float = TOLERANCE,
        *,
        device: str = "cpu",
    ) -> None:
        """Start at zero coefficients for P `designs` (n, width), float32, standardised; `targets` (K, n) are -1 or 1.

        Each row of `weights` (K, n) sums to 1. `tolerance` is the relative KKT violation at which a solution is
        accepted.
        """
        self._tolerance = tolerance
        self._positive = torch.as_tensor(targets > 0, device=device).float().T  # (n, K)
        self._weights = torch.as_tensor(weights, dtype=torch.float32, device=device).T  # (n, K)
        self._blocks = _place_rows(designs, device)
        width = designs[0].shape[1]
        # a problem without one of its classes would have its intercept at infinity
        share = (self._positive * self._weights).sum(0).clamp(1e-6, 1 - 1e-6)
        start = torch.zeros(len(designs), width + 1, 1, len(share), device=device)
        start[:, width] = share.logit()
        with full_float32():
            residuals = self._weights * (share - self._positive)
            gradient, first = torch.zeros(len(designs), width, len(share), device=device), 0
            for block in self._blocks:
                gradient += block[:, :, :width].mT @ residuals[first : first + block.shape[1]]
                first += block.shape[1]
        self.lam_max = gradient.abs().amax(1).double().cpu().numpy()
        self._lams, self._solved = self.lam_max[None], start  # (L, P, K) and (P, width + 1, L, K), for a warm start

    def solve(self, lams: Floats) -> tuple[Floats, Floats]:
        """The solutions at the penalties `lams` (L, P, K): coef (L, P, K, width) and intercept (L, P, K) in float32.

        Each starts from the solution of the last call at the nearest penalty, in the first call from zero.
        """
        apart = np.abs(np.log(np.maximum(self._lams, 1e-30)) - np.log(lams)[:, None])  # (L, L last, P, K)
        nearest = torch.as_tensor(apart.argmin(1), device=self._solved.device).transpose(0, 1)  # (P, L, K)
        shape = *self._solved.shape[:2], len(lams), self._solved.shape[3]
        start = self._solved.gather(2, nearest[:, None].expand(shape)).flatten(2)[..., None]
        lam = torch.as_tensor(lams, dtype=torch.float32, device=start.device).transpose(0, 1).flatten(1)  # (P, L * K)
        positive, weights = (x.repeat(1, len(lams))[..., None] for x in (self._positive, self._weights))
        ones = torch.ones(shape[1], 1, 1, device=start.device)
        problems = Regressions(
            self._blocks, positive, weights, ones, lam, torch.zeros_like(lam), exclusive=False, group=ProcessGroup()
        )
        self._lams, self._solved = np.array(lams), problems.solve(start, self._tolerance * lam, _MAX_CHECKS).view(shape)
        solutions = self._solved.permute(2, 0, 3, 1).cpu().numpy()
        return np.ascontiguousarray(solutions[..., :-1]), np.ascontiguousarray(solutions[..., -1])


def _place_rows(designs: Sequence[Floats], device: str) -> Iterable[torch.Tensor]:
    """The rows of P designs as one block (P, n, width + 1) on a device, or in blocks if they would fill half of it.

    Each has a last column of ones for the intercept.
    """
    n, width = designs[0].shape
    row_bytes = 4 * len(designs) * (width + 1)
    if n * row_bytes <= _room(device):
        return list(_RowBlocks(designs, device, max(1, n)))
    return _RowBlocks(designs, device, max(1, _BLOCK_BYTES // row_bytes))


def _room(device: str) -> float:
    """Half of the bytes that are free on a GPU; a CPU holds the designs anyway."""
    return torch.cuda.mem_get_info(device)[0] / 2 if torch.device(device).type == "cuda" else float("inf")


@dataclass(frozen=True)
class _RowBlocks:
    """Moves blocks of `step` rows to a device whenever it is iterated."""

    designs: Sequence[Floats]
    device: str
    step: int

    def __iter__(self) -> Iterator[torch.Tensor]:
        n, width = self.designs[0].shape
        for start in range(0, max(1, n), self.step):
            stop = min(n, start + self.step)
            block = torch.ones(len(self.designs), stop - start, width + 1, device=self.device)
            for part, design in zip(block, self.designs, strict=True):
                part[:, :width] = torch.as_tensor(design[start:stop], device=self.device)
            yield block
