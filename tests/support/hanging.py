"""Faults of the fresh process in which the gate loads a version: it hangs, or dies, before it loads anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

_ONLY_THERE = """
import os, subprocess, sys, time
if "pipelines.registry.promotion.subprocess_predict" in sys.orig_argv:
"""
_HANG = """
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"])
    with open({pids!r}, "w") as file:
        file.write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(3600)
"""


def run_in_fresh_process(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fresh process run an indented block of code when its interpreter starts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_ONLY_THERE + code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))  # the fresh process gets the path of this one


def hang_fresh_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Let the fresh process start a child and hang; returns a function that returns the ids of both."""
    pids = folder.with_suffix(".pids")
    run_in_fresh_process(_HANG.format(pids=str(pids)), folder, monkeypatch)

    def read() -> list[int]:
        return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []

    return read


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until a condition holds; fails after a number of seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not hold within {seconds} s"
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and waiting for its parent."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
