"""Measures the memory of a process and of those that it starts, from outside."""

from __future__ import annotations

import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

_EVERY = 0.1
"""seconds between two measurements of the processes"""
_MB = 1e6


class Watch:
    """Measures the memory of a process, the driver, and of its workers while the context lasts."""

    def __init__(self, pid: int, is_worker: Callable[[psutil.Process], bool] = lambda process: True) -> None:
        """`is_worker` tells which of the processes that the driver has started count, by default all of them."""
        self.root, self._is_worker, self._ended = psutil.Process(pid), is_worker, threading.Event()
        self.peak: dict[str, float] = defaultdict(float)
        """peak resident memory in MB by kind of process, of the largest; library files and shared memory included"""
        self.own: dict[str, float] = defaultdict(float)
        """peak anonymous memory in MB, which belongs to the process alone, likewise; as measured at intervals"""
        self._thread = threading.Thread(target=self._measure, daemon=True, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _measure(self) -> None:
        while not self._ended.wait(_EVERY):
            try:
                workers = [child for child in self.root.children(True) if self._is_worker(child)]
            except psutil.Error:
                continue
            for process, kind in [(self.root, "driver"), *((worker, "worker") for worker in workers)]:
                status = _read_status(process.pid)
                for maximum, field in ((self.peak, "VmHWM"), (self.own, "RssAnon")):
                    maximum[kind] = max(maximum[kind], status.get(field, 0.0))


def run_watched(
    command: Sequence[str], name: str, is_worker: Callable[[psutil.Process], bool] = lambda process: True
) -> Watch:
    """Run a command to its end, and return the memory that it took. Raises SystemExit if it fails."""
    with subprocess.Popen(command) as process, Watch(process.pid, is_worker) as watch:
        if process.wait():
            raise SystemExit(f"{name} failed")
    return watch


def _read_status(pid: int) -> dict[str, float]:
    """Memory in MB by the field names of /proc; empty if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): 1024 * int(kilobytes) / _MB for name, kilobytes, _ in fields}
