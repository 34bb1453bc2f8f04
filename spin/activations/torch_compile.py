"""A reader as one compiled graph, where that measures faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from spin.activations.encoder import NeuronEncoder

Run = Callable[..., tuple[Tensor, ...]]
Batches = Sequence[tuple[Tensor, ...]]
_CLEARLY = 1.2
"""times as fast: what measures about the same is not decided by chance, or two workers would round in two ways"""
_SHAPES = ((64, 32), (16, 128))
"""documents and tokens of the batches by which it is measured"""
_NEAR = 0.02
"""of the largest value, that another order of sums may make of the others in bfloat16"""


def fastest(encoder: NeuronEncoder) -> Run:
    """The reader, or its compiled graph where that is clearly faster and gives the same."""
    return faster(encoder, lambda: compiled(encoder), [encoder.example(*shape) for shape in _SHAPES])


def compiled(encoder: NeuronEncoder, backend: str = "inductor") -> Run:
    """One graph for batches of any size. It is traced first: torch.compile itself would start anew for the hooks that
    a reader sets in each batch."""
    with torch.no_grad():
        graph = make_fx(encoder, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*encoder.example())
    run: Run = torch.compile(graph, dynamic=True, backend=backend)
    return run


def faster(plain: Run, make: Callable[[], Run], batches: Batches) -> Run:
    """What `make` gives, where it gives nearly the values of `plain` and is clearly faster over batches, else `plain`.

    What cannot be made, or run, is not taken either: compilers fail in ways of their own.
    """
    with torch.inference_mode():
        try:
            other = make()
            same = all(_near(other(*batch), plain(*batch)) for batch in batches)
            return other if same and _seconds(other, batches) * _CLEARLY < _seconds(plain, batches) else plain
        except Exception:
            return plain


def _seconds(run: Run, batches: Batches) -> float:
    """The best of five times over all batches."""

    def once() -> float:
        start = time.perf_counter()
        for batch in batches:
            _ = [out.cpu() for out in run(*batch)]  # waits for the GPU
        return time.perf_counter() - start

    return min(once() for _ in range(5))


def _near(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        bool((mine - its).abs().max() <= _NEAR * its.abs().max()) for mine, its in zip(found, expected, strict=True)
    )
