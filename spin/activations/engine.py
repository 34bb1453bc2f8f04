"""What runs a frozen backbone: torch, or OpenVINO where a processor is to do more of it a second."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spin.activations.encoder import BlockSegment, NeuronEncoder
from spin.activations.torch_compile import fastest
from spin.arrays import Floats
from spin.backbone.hooks import HOOK_LOCK
from spin.backbone.model import Backbone
from spin.errors import UserError

CALIBRATED = 256
"""texts by which int8 is scaled, at most"""


class Engine(Protocol):
    """Runs the groups of blocks of a backbone, one after another, over a batch of documents."""

    backbone: Backbone
    segments: Sequence[BlockSegment]
    streams: int
    """batches that may run at once, each in a thread of its own"""

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> tuple[Floats, Any]:
        """Group `index` over token ids and mask (B, T): the values (B, p) float32 of its columns, and what goes on.

        What goes on into the next group is rows of documents first, so that `hidden[rows]` are those of some.
        """
        ...


class TorchEngine:
    """Runs on the processor or the GPU that the backbone lies on; a batch that a GPU has no room for, in halves.

    Raises UserError where it has none for a single document.
    """

    streams = 1

    def __init__(self, backbone: Backbone, segments: Sequence[BlockSegment]) -> None:
        self.backbone, self.segments = backbone, segments
        self.on_gpu = backbone.device.type == "cuda"
        encoders = [NeuronEncoder(backbone, segment, carry=segment is not segments[-1]) for segment in segments]
        self.encoders = [fastest(encoder) if backbone.compile and self.on_gpu else encoder for encoder in encoders]

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> tuple[Floats, Any]:
        with suppress(torch.OutOfMemoryError), torch.inference_mode(), HOOK_LOCK:
            values, *out = self.encoders[index](
                self._sent(ids), self._sent(mask), *([] if hidden is None else [hidden])
            )
            return self._fetched(values), out[0] if out else None
        return self._halved(index, ids, mask, hidden)  # here, where nothing holds on to what did not fit any more

    def _halved(self, index: int, ids: Tensor, mask: Tensor, hidden: Any) -> tuple[Floats, Any]:
        if len(ids) == 1:
            raise UserError(
                f"backbone: the GPU has no room for a single text of {int(mask.sum())} tokens; lower "
                "backbone.max_tokens or give a worker more of a GPU (ray.gpus_per_worker)"
            )
        torch.cuda.empty_cache()
        halves = slice(len(ids) // 2), slice(len(ids) // 2, None)
        parts = [self.run(index, ids[at], mask[at], None if hidden is None else hidden[at]) for at in halves]
        values, out = zip(*parts, strict=True)
        return np.concatenate(values), None if out[0] is None else torch.cat(out)

    def _sent(self, values: Tensor) -> Tensor:
        """Where the backbone lies; a GPU fetches it from pinned memory while the processor goes on."""
        return values.pin_memory().to(self.backbone.device, non_blocking=True) if self.on_gpu else values

    def _fetched(self, values: Tensor) -> Floats:
        """On the processor, by way of pinned memory too."""
        if not self.on_gpu:
            return values.numpy()
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values).numpy()


def open_engine(backbone: Backbone, segments: Sequence[BlockSegment], *, calibration: Sequence[str] = ()) -> Engine:
    """The engine that a backbone was loaded for; int8 is scaled by texts, without them as `auto` gives."""
    if backbone.engine == "openvino":
        from spin.activations.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(backbone, segments, calibration)
    return TorchEngine(backbone, segments)
