"""The rate of large matrix products, which is the ceiling of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.timer import Times, time_queued

SIZES = ((4096, 4096, 4096), (8192, 8192, 8192), (12288, 12288, 12288), (16384, 8192, 8192))
"""rows, inner width and columns of the products on a GPU"""
SMALL_SIZES = ((64, 64, 64), (128, 64, 128))
"""the same on a processor, of which many multiply bfloat16 slowly"""
_SETS = 4
"""pairs of matrices that take turns"""


@dataclass(frozen=True)
class GemmRate:
    """The rate of products of one size in bfloat16."""

    size: tuple[int, int, int]
    """rows, inner width, columns"""
    times: Times
    """of one product"""

    @property
    def rate(self) -> float:
        """Operations per second, by the median time."""
        rows, inner, columns = self.size
        return 2 * rows * inner * columns / self.times.median


def measure_gemm(device: torch.device, sizes: Sequence[tuple[int, int, int]], repeats: int) -> list[GemmRate]:
    """The rate of bfloat16 products of random matrices, by size."""
    rates = []
    for rows, inner, columns in sizes:
        pairs = [(_random(rows, inner, device), _random(inner, columns, device)) for _ in range(_SETS)]
        products = [partial(torch.mm, *pair, out=_random(rows, columns, device)) for pair in pairs]
        rates.append(GemmRate((rows, inner, columns), time_queued(device, products, repeats)))
    return rates


def ceiling(rates: Sequence[GemmRate]) -> float:
    """Operations per second of the fastest size."""
    return max(each.rate for each in rates)


def _random(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    return torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
