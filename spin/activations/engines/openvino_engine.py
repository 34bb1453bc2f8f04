"""The OpenVINO engine: each segment is traced from torch once and compiled for the processor."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spin.activations.engines.encoder import BlockSegment, NeuronEncoder, SegmentOutput, read_tokens
from spin.activations.engines.int8_rounding import round_products
from spin.activations.engines.neuron_order import order_wanted_first
from spin.backbone.batching import BATCH_MULTIPLE
from spin.backbone.engine_choice import fast_precision
from spin.backbone.engine_trial import SHORT_TEXT
from spin.backbone.hooks import HOOK_LOCK
from spin.backbone.hub import silence_transformers
from spin.backbone.model import Backbone
from spin.errors import UserError

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names of precisions"""


class OpenVinoEngine:
    """Runs compiled graphs, as many batches at once as torch has threads.

    One thread per batch wastes less than all threads on one batch. In int8 the linear maps of the blocks round by the
    backbone's `scales`, and the rest is computed in the precision that the processor is fast in: an EPYC with
    AVX512-BF16 reads tweets with MiniLM 1.21 times as fast with the rest in bfloat16 as in float32, and the values are
    as far from those in float32 (a relative error of 0.098 and 0.097). Raises UserError for a backbone in int8 without
    scales.
    """

    def __init__(self, backbone: Backbone, segments: Sequence[BlockSegment]) -> None:
        self.backbone, self.segments, self.streams = backbone, segments, torch.get_num_threads()
        requests: list[list[Any]] = [[] for _ in range(self.streams)]
        self._free: SimpleQueue[list[Any]] = SimpleQueue()
        for stream_requests in requests:
            self._free.put(stream_requests)
        in_int8 = backbone.precision == "int8"
        scales = backbone.scales if in_int8 else None
        hint = _HINTS[fast_precision("cpu") if in_int8 else backbone.precision]
        if in_int8 and scales is None:
            raise UserError("found a backbone in int8 without scales; expected those of `measure_scales`")
        for segment in segments:
            with HOOK_LOCK, order_wanted_first(backbone, segment) as (ordered, orders):
                encoder = NeuronEncoder(backbone, ordered, carry=segment is not segments[-1])
                with nullcontext() if scales is None else round_products(backbone, scales, orders):
                    graph = convert_to_openvino(encoder, encoder.example_inputs())
            if scales is not None:
                _fold_constants(graph)
            compiled = _compile(graph, hint, self.streams, backbone.max_tokens)
            for stream_requests in requests:
                stream_requests.append(compiled.create_infer_request())

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> SegmentOutput:
        requests = self._free.get()
        try:
            outputs = requests[index].infer(_graph_inputs(ids, mask, hidden), share_inputs=True).values()
        finally:
            self._free.put(requests)
        read, segment = [output[: len(ids)] for output in outputs], self.segments[index]
        following = None if segment is self.segments[-1] else torch.from_numpy(read.pop())
        return SegmentOutput(read[0], following, read_tokens(segment, read, mask.shape[1]))


def convert_to_openvino(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> Any:
    """The `openvino.Model` of a module, traced with example inputs.

    Uses OpenVINO's PyTorch frontend directly; `openvino.convert_model` does the same in ten times the time.
    """
    _disable_telemetry()
    # The decoder's module is not in OpenVINO's documentation, and its frontend takes no other form of a traced graph.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with silence_transformers(), warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of values that become constants
        traced = torch.jit.trace(module, example_inputs, check_trace=False)
        decoder = TorchScriptPythonDecoder(traced, shared_memory=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _disable_telemetry() -> None:
    """Keep OpenVINO from reporting its use to its makers, by hiding the package it does that with."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _compile(graph: Any, hint: str, streams: int, max_tokens: int) -> Any:
    """Compile a graph for the processor and texts of `max_tokens` at most; return an `openvino.CompiledModel`."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": streams,
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": streams,
        # pinned, every graph, of this process or another, would have its first stream on the first core
        "ENABLE_CPU_PINNING": False,
    }
    if max_tokens <= SHORT_TEXT:
        options["SNIPPETS_MODE"] = "DISABLE"  # of fused operations, among which attention is
    return openvino.Core().compile_model(graph, "CPU", options)


def _graph_inputs(ids: Tensor, mask: Tensor, hidden: Any = None) -> list[Any]:
    """The inputs of a graph as arrays.

    A batch of another size is filled up to a multiple of `BATCH_MULTIPLE` with copies of its last document. That saves
    time: the first batch of a new shape takes twice as long.
    """
    inputs = [ids.numpy(), mask.long().numpy(), *([] if hidden is None else [hidden.numpy()])]
    missing = -len(ids) % BATCH_MULTIPLE if len(ids) > BATCH_MULTIPLE else 0
    return [np.concatenate([array, array[-1:].repeat(missing, 0)]) for array in inputs] if missing else inputs


def _fold_constants(graph: Any) -> None:
    """Compute what depends on no input: OpenVINO multiplies in int8 only where the scales are constants."""
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(graph)
