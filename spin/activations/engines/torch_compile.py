"""A neuron encoder as one compiled graph, used if it measures faster."""

from __future__ import annotations

import logging
import timeit
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from spin.activations.engines.encoder import NeuronEncoder
from spin.errors import describe_error

Run = Callable[..., tuple[Tensor, ...]]
"""takes the inputs of a `NeuronEncoder` and returns its outputs"""
Batches = Sequence[tuple[Tensor, ...]]
_MIN_SPEEDUP = 1.2
"""least ratio of speeds for a graph: at equal speed chance would decide, and workers would round differently"""
_SHAPES = ((64, 32), (16, 128))
"""documents and tokens of the batches that are timed"""
_TOLERANCE = 0.02
"""allowed difference as a share of the largest value; in bfloat16 another order of summation differs as much"""
_log = logging.getLogger(__name__)


def compile_if_faster(encoder: NeuronEncoder) -> Run:
    """The encoder's compiled graph if it returns the same values clearly faster, else the encoder."""
    batches = [encoder.example_inputs(*shape) for shape in _SHAPES]
    return choose_faster(encoder, lambda: compile_encoder(encoder), batches)


def compile_encoder(encoder: NeuronEncoder, backend: str = "inductor") -> Run:
    """Compile an encoder to one graph for batches of any size.

    It is traced first: torch.compile alone would compile anew for the hooks that the encoder sets in each batch.
    """
    # Both `make_fx` and its argument are experimental in torch. No public function traces with symbolic sizes a module
    # whose weights and buffers are no inputs.
    with torch.no_grad():
        graph = make_fx(encoder, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*encoder.example_inputs())
    run: Run = torch.compile(graph, dynamic=True, backend=backend)
    return run


def choose_faster(plain: Run, build: Callable[[], Run], batches: Batches) -> Run:
    """The result of `build` if it returns nearly the values of `plain` clearly faster on the batches, else `plain`.

    It is `plain` too if building or running raises any error: compilers fail in many ways. The error is logged.
    """
    with torch.inference_mode():
        try:
            built = build()
            agrees = all(_nearly_equal(built(*batch), plain(*batch)) for batch in batches)
            return built if agrees and _seconds(built, batches) * _MIN_SPEEDUP < _seconds(plain, batches) else plain
        except Exception as error:
            _log.info("the backbone is not compiled (%s)", describe_error(error))
            _log.debug("traceback of the failed compilation", exc_info=True)
            return plain


def _seconds(run: Run, batches: Batches) -> float:
    """The shortest of five times over all batches."""

    def run_all() -> None:
        for batch in batches:
            _ = [out.cpu() for out in run(*batch)]  # waits for the GPU

    return min(timeit.repeat(run_all, number=1, repeat=5))


def _nearly_equal(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether the values agree; positions of largest values need not, since values that are nearly equal share one."""
    return all(
        bool((output - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())
        for output, wanted in zip(outputs, expected, strict=True)
        if wanted.is_floating_point()
    )
