"""Copies between the processor and a GPU, which is simulated here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spin.activations.engines.host_copy import HostCopy, copy_to_device


class SimulatedGpuTensor(torch.Tensor):
    """A tensor of the processor that says that it is on a GPU."""

    device = torch.device("cuda")


def test_on_a_processor_the_arrays_are_the_tensors_themselves() -> None:
    values = torch.rand(2, 3)
    [array] = HostCopy([values]).wait()
    assert array.ctypes.data == values.data_ptr()
    assert copy_to_device(values, torch.device("cpu")) is values


def test_a_gpu_copies_to_pinned_memory_and_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    empty, copy = torch.empty, torch.Tensor.copy_

    def record_copy(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        events.append(f"copy, non_blocking {non_blocking}")
        return copy(self, source.as_subclass(torch.Tensor))

    def record_empty(*args: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        assert pin_memory
        return empty(*args, **options)

    event = SimpleNamespace(synchronize=lambda: events.append("wait"))
    stream = SimpleNamespace(record_event=lambda: events.append("record") or event)
    monkeypatch.setattr(torch, "empty", record_empty)
    monkeypatch.setattr(torch.Tensor, "copy_", record_copy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    tensors = [torch.rand(2, 3), torch.arange(4)]
    queued = HostCopy([tensor.as_subclass(SimulatedGpuTensor) for tensor in tensors])
    assert events == ["copy, non_blocking True"] * 2 + ["record"]
    for array, tensor in zip(queued.wait(), tensors, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())
    assert events[3:] == ["wait"]
