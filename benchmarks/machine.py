"""The machine of a benchmark: its processor, variables that restrict libraries, and its speed of matrix products."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import torch

THROTTLES = (
    "OPENBLAS_CORETYPE",
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
"""environment variables that keep a library from using all of the processor"""
_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)
"""instruction sets that determine the speed of a matrix product on x86 and ARM"""
_SIZES = (1024, 2048)
_TRIES = 4


def unthrottle() -> None:
    """If one of `THROTTLES` is set, restart this command without them: libraries read them once, while loading."""
    names = [name for name in THROTTLES if name in os.environ]
    if names:
        print(f"restarted without {', '.join(names)}", flush=True)
        environment = {name: value for name, value in os.environ.items() if name not in names}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def threads() -> int:
    """The number of cores that this process may use; every contender has as many threads."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def flags() -> list[str]:
    """The instruction sets that the processor reports, of those that matter here."""
    reported = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [flag for flag in _FLAGS if flag in reported]


def versions(names: Iterable[str]) -> str:
    """Installed distributions with their versions, in one line."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def describe_run(libraries: Iterable[str]) -> str:
    """Today, the processor and its cores, and the versions of Python and of some libraries, in one line."""
    cores, python = os.cpu_count(), platform.python_version()
    return f"{date.today().isoformat()}; {processor()}, {cores} cores; Python {python}, {versions(libraries)}"


def peaks() -> dict[str, float]:
    """GFLOP/s (for int8 GOP/s) of large square matrix products through torch's oneDNN, by precision.

    The best of a few tries and sizes, since other load on the machine can only lower the figure.
    """
    best: dict[str, float] = {}
    for size in _SIZES:
        for precision, multiply in _products(size).items():
            best[precision] = max(best.get(precision, 0.0), 2e-9 * size**3 / _shortest(multiply))
    return best


def _products(size: int) -> dict[str, Callable[[], object]]:
    """A product of two square matrices in each precision."""
    X, W = torch.randn(size, size), torch.randn(size, size)
    Xb, Wb = X.bfloat16(), W.bfloat16()
    small = torch.randint(-100, 100, (size, size), dtype=torch.int8)
    products: dict[str, Callable[[], object]] = {"float32": lambda: X @ W, "bfloat16": lambda: Xb @ Wb}
    onednn = torch.ops.onednn
    try:  # not a public function of torch, and not available on every processor
        packed = onednn.qlinear_prepack(small, [size, size])
        scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.long)
        unsigned = small.abs().to(torch.uint8)
        output_options = (None, 1.0, 0, torch.float32, "none", [], "")
        products["int8"] = lambda: onednn.qlinear_pointwise(unsigned, 0.1, 0, packed, scales, zeros, *output_options)
        products["int8"]()
    except (RuntimeError, AttributeError, NotImplementedError):
        products.pop("int8", None)
    return products


def _shortest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls, after one that is not timed."""
    run()
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _cpuinfo(key: str) -> str:
    """What Linux tells of the first processor; empty for what it does not."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith(key)), "")
