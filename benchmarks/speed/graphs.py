"""The alternatives that run a graph: ONNX Runtime and OpenVINO, with the mean pooling inside the graph."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.contender import Contender, TransformerPeer
from benchmarks.speed.peers import Embed, by_length, hugging_face, peer
from benchmarks.speed.trial import Trial
from spin.arrays import Floats

_NAMES = ["input_ids", "attention_mask"]
_CALIBRATION = 200
"""number of training documents, at most a tenth of them, from which nncf takes the ranges of int8 activations"""


def graph_peers(trial: Trial, folder: Path) -> list[Contender]:
    """Every graph of an encoder; the files are written to `folder` at first use."""
    graph = Graph(trial, folder)
    contenders = [
        peer(trial, TransformerPeer("ONNX Runtime", "float32"), lambda: onnx_runtime(trial, graph.onnx)),
        peer(trial, TransformerPeer("ONNX Runtime, dynamic", "int8"), lambda: onnx_runtime(trial, graph.onnx_int8)),
    ]
    for streams in (1, 2):
        name = "OpenVINO" if streams == 1 else f"OpenVINO, {streams} streams"
        float32, bfloat16 = (TransformerPeer(name, p) for p in ("float32", "bfloat16"))
        int8 = TransformerPeer(f"{name}, nncf", "int8")
        contenders += [
            peer(trial, float32, lambda s=streams: openvino(trial, graph.openvino, s, "f32")),
            peer(trial, bfloat16, lambda s=streams: openvino(trial, graph.openvino, s, "bf16")),
            peer(trial, int8, lambda s=streams: openvino(trial, graph.openvino_int8, s, "bf16")),
        ]
    return contenders


class Pooled(nn.Module):
    """Returns the mean of the last layer (B, width) for token ids and their mask (B, T)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        values = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(values.dtype)
        return (values * mask).sum(1) / mask.sum(1)


class Graph:
    """The pooled model of a trial in every graph format; each graph is built once."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        self.trial, self.folder = trial, folder

    @cached_property
    def torch(self) -> tuple[Pooled, tuple[Tensor, Tensor]]:
        """The module and an example input: two documents, one of them padded."""
        model, _ = hugging_face(self.trial, torch.float32)
        ids, mask = torch.randint(5, model.config.vocab_size, (2, 7)), torch.ones(2, 7, dtype=torch.long)
        mask[1, 5:] = 0
        return Pooled(model).eval(), (ids, mask)

    @cached_property
    def onnx(self) -> Path:
        module, example = self.torch
        path = self.folder / "pooled.onnx"
        axes = {name: {0: "documents", 1: "tokens"} for name in _NAMES} | {"pooled": {0: "documents"}}
        with warnings.catch_warnings(action="ignore"):  # the tracer warns of Python values, which do not vary here
            torch.onnx.export(
                module, example, str(path), input_names=_NAMES, output_names=["pooled"], dynamic_axes=axes,
                opset_version=17, dynamo=False,
            )  # fmt: skip
        return path

    @cached_property
    def onnx_int8(self) -> Path:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = self.folder / "pooled-int8.onnx"
        quantize_dynamic(self.onnx, path, weight_type=QuantType.QInt8, per_channel=True)
        return path

    @cached_property
    def openvino(self) -> Any:
        from openvino import convert_model

        module, example = self.torch
        with warnings.catch_warnings(action="ignore"), torch.inference_mode():
            return convert_model(module, example_input=example)

    @cached_property
    def openvino_int8(self) -> Any:
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        _, tokenizer = hugging_face(self.trial, torch.float32)
        texts = self.trial.train_texts[: min(_CALIBRATION, len(self.trial.train_texts) // 10)]
        inputs = [[ids, mask] for _, ids, mask in by_length(tokenizer, texts, 1, self.trial.plan.max_tokens)]
        return nncf.quantize(
            self.openvino, nncf.Dataset(inputs), subset_size=len(inputs), model_type=nncf.ModelType.TRANSFORMER
        )


def onnx_runtime(trial: Trial, path: Path) -> Embed:
    """Open a session with all threads and all optimisations of ONNX Runtime; return its function that embeds texts."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = trial.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    _, tokenizer = hugging_face(trial, torch.float32)

    def embed(texts: Sequence[str], batch: int) -> Floats:
        out = np.empty((len(texts), session.get_outputs()[0].shape[1]), np.float32)
        for rows, ids, mask in by_length(tokenizer, texts, batch, trial.plan.max_tokens):
            out[rows] = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return out

    return embed


def openvino(trial: Trial, graph: Any, streams: int, precision: str) -> Embed:
    """Compile a graph for latency (one stream) or throughput (several); return its function that embeds texts."""
    from openvino import Core

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": trial.threads}
    hint = {"PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT", "NUM_STREAMS": streams}
    compiled = Core().compile_model(graph, "CPU", settings | hint)
    # not AsyncInferQueue: its callbacks can deadlock with the interpreter while the queue is destroyed
    requests = [compiled.create_infer_request() for _ in range(streams)]
    width = int(compiled.output(0).get_partial_shape()[1].get_length())
    _, tokenizer = hugging_face(trial, torch.float32)

    def embed(texts: Sequence[str], batch: int) -> Floats:
        out = np.empty((len(texts), width), np.float32)
        running: deque[tuple[Any, list[int]]] = deque()

        def finish_oldest() -> Any:
            request, rows = running.popleft()
            request.wait()
            out[rows] = request.get_output_tensor().data
            return request

        idle = list(requests)
        for rows, ids, mask in by_length(tokenizer, texts, batch, trial.plan.max_tokens):
            request = idle.pop() if idle else finish_oldest()
            request.start_async([ids, mask])
            running.append((request, rows))
        while running:
            finish_oldest()
        return out

    return embed
