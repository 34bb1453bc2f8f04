"""Engines, which run a frozen backbone: torch, or OpenVINO, which runs more documents per second on a processor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spin.activations.engines.encoder import BlockSegment, NeuronEncoder
from spin.activations.engines.segment_output import SegmentOutput, read_tokens
from spin.activations.engines.torch_compile import compile_if_faster
from spin.arrays import Floats
from spin.attribution.token_sums import TokenReadings
from spin.backbone.hooks import HOOK_LOCK
from spin.backbone.model import Backbone
from spin.errors import UserError

CALIBRATION_TEXTS = 256
"""texts that int8 is calibrated with, at most"""


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

    streams = 1

    def __init__(self, backbone: Backbone, segments: Sequence[BlockSegment]) -> None:
        self.backbone, self.segments = backbone, segments
        self.on_gpu = backbone.device.type == "cuda"
        encoders = [NeuronEncoder(backbone, segment, carry=segment is not segments[-1]) for segment in segments]
        self.encoders = [
            compile_if_faster(encoder) if backbone.compile and self.on_gpu else encoder for encoder in encoders
        ]

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> SegmentOutput:
        with suppress(torch.OutOfMemoryError), torch.inference_mode(), HOOK_LOCK:
            outputs = self.encoders[index](
                self._to_device(ids), self._to_device(mask), *([] if hidden is None else [hidden])
            )
            is_last = self.segments[index] is self.segments[-1]
            read = [self._to_numpy(each) for each in (outputs if is_last else outputs[:-1])]
            return SegmentOutput(
                read[0], None if is_last else outputs[-1], read_tokens(self.segments[index], read, mask.shape[1])
            )
        # outside the context, where nothing refers to the tensors of the failed attempt any more
        return self._run_in_halves(index, ids, mask, hidden)

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

    def _to_device(self, values: Tensor) -> Tensor:
        """Values on the backbone's device; a GPU copies from pinned memory while the processor goes on."""
        return values.pin_memory().to(self.backbone.device, non_blocking=True) if self.on_gpu else values

    def _to_numpy(self, values: Tensor) -> Floats:
        """Values on the processor; from a GPU they are copied to pinned memory."""
        if not self.on_gpu:
            return values.numpy()
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values).numpy()


def open_engine(backbone: Backbone, segments: Sequence[BlockSegment], *, calibration: Sequence[str] = ()) -> Engine:
    """The engine that the backbone was loaded for, to run consecutive segments of it.

    `calibration` are texts that int8 is calibrated with; without any, the backbone's `uncalibrated_precision` is used.
    Raises UserError for int8 if NNCF, which calibrates it, is not installed.
    """
    if backbone.engine == "openvino":
        from spin.activations.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(backbone, segments, calibration)
    return TorchEngine(backbone, segments)
