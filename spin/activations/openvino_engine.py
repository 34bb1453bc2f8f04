"""The OpenVINO engine: each group of blocks traced from torch once and compiled for the processor."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spin.activations.encoder import BlockSegment, NeuronEncoder
from spin.arrays import Floats
from spin.backbone.batching import STEP, token_batches
from spin.backbone.hub import quiet
from spin.backbone.model import Backbone
from spin.errors import UserError

_HINT = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoEngine:
    """Runs compiled graphs, as many batches at once as torch is set to threads: one each wastes less than all on one.

    Raises UserError for int8 where NNCF, which scales it, is not installed.
    """

    def __init__(self, backbone: Backbone, segments: Sequence[BlockSegment], calibration: Sequence[str] = ()) -> None:
        self.backbone, self.segments, self.streams = backbone, segments, torch.get_num_threads()
        requests: list[list[Any]] = [[] for _ in range(self.streams)]
        self._free: SimpleQueue[list[Any]] = SimpleQueue()
        for of_stream in requests:
            self._free.put(of_stream)
        eighth = backbone.precision == "int8" and len(calibration) > 0
        precision = backbone.uncalibrated if backbone.precision == "int8" else backbone.precision
        batches = list(self._batches(calibration)) if eighth else []
        for index, segment in enumerate(segments):
            graph = to_graph(NeuronEncoder(backbone, segment, carry=segment is not segments[-1]))
            if eighth:
                graph = _quantised(graph, batches)
            # what stays beside the products of int8 loses too much in bfloat16
            compiled = _compiled(graph, "float32" if eighth else precision, self.streams)
            for of_stream in requests:
                of_stream.append(compiled.create_infer_request())
            if eighth and index + 1 < len(segments):
                batches = [(ids, mask, self.run(index, ids, mask, *hidden)[1]) for ids, mask, *hidden in batches]

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> tuple[Floats, Any]:
        requests = self._free.get()
        try:
            values, *out = requests[index].infer(_inputs(ids, mask, hidden), share_inputs=True).values()
        finally:
            self._free.put(requests)
        return values[: len(ids)], torch.from_numpy(out[0])[: len(ids)] if out else None

    def _batches(self, texts: Sequence[str]) -> Any:
        tokens = self.backbone.tokenize(texts)
        for rows in token_batches(list(map(len, tokens.ids)), min(self.backbone.batch_tokens, 1024)):
            yield self.backbone.batch([tokens.ids[row] for row in rows])


def to_graph(encoder: NeuronEncoder, module: nn.Module | None = None) -> Any:
    """An `openvino.Model` of a reader, or of a module around it, with the reader's inputs.

    By the frontend itself: `openvino.convert_model` does the same in ten times the time.
    """
    _keep_to_ourselves()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with quiet(), warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of tracing, about what is constant in it
        traced = torch.jit.trace(module or encoder, encoder.example(), check_trace=False)
        decoder = TorchScriptPythonDecoder(traced, shared_memory=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _keep_to_ourselves() -> None:
    """OpenVINO and NNCF report what they do to their makers, unless what they do it with is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _compiled(graph: Any, precision: str, streams: int) -> Any:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": streams,
        "INFERENCE_PRECISION_HINT": _HINT[precision],
        "NUM_STREAMS": streams,
        # every graph, of this process or another, would else have its first stream on the first core
        "ENABLE_CPU_PINNING": False,
        # fused attention takes longer than the parts, up to some 200 tokens
        "SNIPPETS_MODE": "DISABLE",
    }
    return openvino.Core().compile_model(graph, "CPU", options)


def _inputs(ids: Tensor, mask: Tensor, hidden: Any = None) -> list[Any]:
    """What a graph takes. A last batch is filled up with its last document: a shape seen first takes twice as long."""
    values = [ids.numpy(), mask.long().numpy(), *([] if hidden is None else [hidden.numpy()])]
    more = -len(ids) % STEP if len(ids) > STEP else 0
    return [np.concatenate([of, of[-1:].repeat(more, 0)]) for of in values] if more else values


def _quantised(graph: Any, batches: Sequence[Any]) -> Any:
    """The graph with its products in int8, scaled by what batches show; the choice of neurons stays exact."""
    try:
        import nncf
    except ImportError:
        raise UserError(
            "backbone.dtype int8 needs NNCF; pip install 'spin-neurons[openvino]', or set bfloat16"
        ) from None
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf.quantize(
        graph,
        nncf.Dataset(batches, lambda batch: _inputs(*batch)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=max(1, len(batches)),
        ignored_scope=nncf.IgnoredScope(patterns=[".*picks.*"], validate=False),
    )
