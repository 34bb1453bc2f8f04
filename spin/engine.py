"""What runs a frozen backbone: torch, or OpenVINO where a processor is to do more of it a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.backbone import Backbone
from spin.reader import Group, Reader

Floats = NDArray[np.floating]
CALIBRATED = 256
"""texts by which int8 is scaled, at most"""


class Engine(Protocol):
    """Runs the groups of blocks of a backbone, one after another, over a batch of documents."""

    backbone: Backbone
    groups: Sequence[Group]
    lanes: int
    """batches that may run at once, each in a thread of its own"""

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> tuple[Floats, Any]:
        """Group `index` over token ids and mask (B, T): the values (B, p) float32 of its columns, and what goes on.

        What goes on into the next group is rows of documents first, so that `hidden[rows]` are those of some.
        """
        ...


class TorchEngine:
    """Runs on the processor or the GPU that the backbone lies on."""

    lanes = 1

    def __init__(self, backbone: Backbone, groups: Sequence[Group]) -> None:
        self.backbone, self.groups = backbone, groups
        self.readers = [Reader(backbone, group, carry=group is not groups[-1]) for group in groups]

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> tuple[Floats, Any]:
        device = self.backbone.device
        with torch.inference_mode():
            values, *out = self.readers[index](ids.to(device), mask.to(device), hidden)
            return values.cpu().numpy(), out[0] if out else None


def open_engine(backbone: Backbone, groups: Sequence[Group], *, calibration: Sequence[str] = ()) -> Engine:
    """The engine that a backbone was loaded for; int8 is scaled by texts, and without any computed as `auto` would."""
    if backbone.engine == "openvino":
        from spin.openvino import OpenVinoEngine

        return OpenVinoEngine(backbone, groups, calibration)
    return TorchEngine(backbone, groups)
