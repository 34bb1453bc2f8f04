"""Copies between the processor and a GPU during which neither waits for the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spin.arrays import Floats


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of the processor on a device; a GPU copies them from pinned memory while the processor goes on."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class HostCopy:
    """Copies tensors of one device to the processor; a GPU does so once it has computed what was queued before.

    `wait` is to be called before the tensors are read, by any thread.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._done: torch.cuda.Event | None = None
        if not tensors or tensors[0].device.type != "cuda":
            self._copies = list(tensors)
            return
        self._copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.current_stream(tensors[0].device).record_event()

    def wait(self) -> list[Floats]:
        """The arrays, once they are complete."""
        if self._done is not None:
            self._done.synchronize()
        return [copy.numpy() for copy in self._copies]
