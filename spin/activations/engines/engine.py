"""Engines, which run a frozen backbone: torch, or OpenVINO, which runs more documents per second on a processor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spin.activations.engines.encoder import BlockSegment, NeuronEncoder, SegmentOutput, read_tokens
from spin.activations.engines.host_copy import HostCopy, copy_to_device
from spin.activations.engines.torch_compile import compile_if_faster
from spin.attribution.token_sums import TokenReadings
from spin.backbone.hooks import HOOK_LOCK
from spin.backbone.model import Backbone
from spin.errors import UserError


class Engine(Protocol):
    """Runs the segments of a backbone, one after another, over a batch of documents."""

    backbone: Backbone
    segments: Sequence[BlockSegment]
    """consecutive; each but the last hands its residual stream on to the next"""
    streams: int
    """number of batches that may run at the same time, each in its own thread"""

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> SegmentOutput:
        """Run segment `index` over token ids and mask, both (B, T), and the hidden states that the one before returned.

        The mask is that of `Backbone.pad_tokens` where the backbone reads windows, each of which is a row of the batch.
        """
        ...


class TorchEngine:
    """Runs the backbone in torch on its device. A batch that does not fit into the memory of a GPU is run in halves.

    `run` raises UserError if a single document does not fit.
    """

    def __init__(self, backbone: Backbone, segments: Sequence[BlockSegment]) -> None:
        self.backbone, self.segments = backbone, segments
        self.on_gpu = backbone.device.type == "cuda"
        # while a GPU computes a batch, another thread stores the one before and queues the next
        self.streams = 2 if self.on_gpu else 1
        encoders = [NeuronEncoder(backbone, segment, carry=segment is not segments[-1]) for segment in segments]
        self.encoders = [
            compile_if_faster(encoder) if backbone.compile and self.on_gpu else encoder for encoder in encoders
        ]

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> SegmentOutput:
        with suppress(torch.OutOfMemoryError):
            copy, following = self._queue(index, ids, mask, hidden)
            read = copy.wait()
            return SegmentOutput(read[0], following, read_tokens(self.segments[index], read, mask.shape[1]))
        # outside the context, where nothing refers to the tensors of the failed attempt any more
        return self._run_in_halves(index, ids, mask, hidden)

    def _queue(self, index: int, ids: Tensor, mask: Tensor, hidden: Any) -> tuple[HostCopy, Any]:
        """The outputs of a segment on their way to the processor, and the hidden states; a GPU has yet to compute them.

        The lock is free again while it does, so that another thread can queue the next batch.
        """
        device = self.backbone.device
        with torch.inference_mode(), HOOK_LOCK:
            inputs = copy_to_device(ids, device), copy_to_device(mask, device)
            outputs = self.encoders[index](*inputs, *([] if hidden is None else [hidden]))
            is_last = self.segments[index] is self.segments[-1]
            return HostCopy(outputs if is_last else outputs[:-1]), None if is_last else outputs[-1]

    def _run_in_halves(self, index: int, ids: Tensor, mask: Tensor, hidden: Any) -> SegmentOutput:
        if len(ids) == 1:
            raise UserError(
                f"backbone: the GPU has no room for a single text of {int((mask > 0).sum())} tokens; lower "
                "backbone.max_tokens or give a worker more of a GPU (ray.gpus_per_worker)"
            )
        torch.cuda.empty_cache()
        halves = slice(len(ids) // 2), slice(len(ids) // 2, None)
        parts = [self.run(index, ids[half], mask[half], None if hidden is None else hidden[half]) for half in halves]
        values, out, tokens = zip(*parts, strict=True)
        return SegmentOutput(
            np.concatenate(values),
            None if out[0] is None else torch.cat(out),
            None if tokens[0] is None else TokenReadings.stack(tokens),
        )


def open_engine(backbone: Backbone, segments: Sequence[BlockSegment]) -> Engine:
    """The engine that the backbone was loaded for, to run consecutive segments of it.

    Raises UserError for a backbone in int8 that has no scales.
    """
    if backbone.engine == "openvino":
        from spin.activations.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(backbone, segments)
    return TorchEngine(backbone, segments)
