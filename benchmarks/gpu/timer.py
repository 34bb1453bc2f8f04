"""Times of work on a device, with warm-up and waiting where they belong."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """The seconds of the same work, repeated."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The longest time less the shortest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_once(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds by the clock from an idle device to an idle device: what the processor does in between counts."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def time_queued(device: torch.device, works: Sequence[Callable[[], object]], repeats: int) -> Times:
    """Seconds per call of short work that the device queues, by its own events, in rounds through all of `works`.

    Those should read different tensors, so that none stays in the device's caches.
    """
    for work in works:
        work()
    if device.type != "cuda":
        return Times(tuple(time_once(device, work) for _ in range(repeats) for work in works))
    seconds = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        wait_for(device)
        begin.record()
        for work in works:
            work()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000 / len(works))
    return Times(tuple(seconds))
