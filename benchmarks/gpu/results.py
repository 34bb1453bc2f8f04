"""What a run has measured, its file, and whether it reached the goals."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers

from benchmarks.gpu.deviations import Deviation
from benchmarks.gpu.gemm import GemmRate, ceiling
from benchmarks.gpu.solver_times import SolverTime
from benchmarks.gpu.speed_rounds import EXITS, IN_ORDER, SAME_SPIN, SORTED, SPIN, WorkloadSpeed
from benchmarks.machine import processor
from benchmarks.section_page import Verdict

SHARE = 0.35
"""of the rate of matrix products, for every shape and distribution of lengths"""
RATE = 0.7e6
"""tokens per second of BERT-base on `CARD`, for either distribution of lengths"""
CARD = "H100"
_RATED = "BERT-base"


@dataclass(frozen=True)
class GpuMachine:
    """Where a run took place."""

    device: str
    """the card's name; that of the processor where there is no card"""
    memory: int
    """bytes of the card; 0 without one"""
    driver: str
    """of the card; empty without one"""
    processor: str
    cores: int
    versions: Mapping[str, str]
    """of Python and of the libraries that count here"""

    @classmethod
    def of(cls, device: torch.device) -> GpuMachine:
        """The machine that this process runs on."""
        versions = {"Python": platform.python_version(), "torch": torch.__version__, "CUDA": str(torch.version.cuda)}
        versions |= {"transformers": transformers.__version__}
        cores = os.cpu_count() or 1
        if device.type != "cuda":
            return cls(processor(), 0, "", processor(), cores, versions)
        card = torch.cuda.get_device_properties(device)
        return cls(card.name, card.total_memory, _driver_version(), processor(), cores, versions)


@dataclass
class Results:
    """All numbers of a run, which grow part by part."""

    machine: GpuMachine
    quick: bool
    gemm: list[GemmRate] = field(default_factory=list)
    speeds: list[WorkloadSpeed] = field(default_factory=list)
    deviations: list[Deviation] = field(default_factory=list)
    solvers: list[SolverTime] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """parts that an error ended, with the error"""
    seconds: float = 0.0
    """of the whole run so far"""

    @property
    def on_gpu(self) -> bool:
        """Whether a card was measured."""
        return self.machine.memory > 0

    def share(self, speed: WorkloadSpeed) -> float:
        """The rate of SPIN's pass as a share of the fastest matrix products of this run."""
        return speed.rate / ceiling(self.gemm)

    def disagreements(self) -> list[str]:
        """What is beyond its limit, in words; a run that has any has failed."""
        passes = [each.describe() for each in self.deviations if not each.holds]
        solvers = [f"{s.solver}, {s.problem}: difference {s.difference:.2g}" for s in self.solvers if not s.holds]
        return passes + solvers

    def write(self, path: Path) -> None:
        """Write all numbers, and those that follow from them, as JSON."""
        derived = [
            {
                "shape": each.shape,
                "workload": each.workload,
                "tokens_per_second": {name: speed.rate for name, speed in each.speeds.items()},
                "operations_per_second": each.rate,
                "share_of_gemm": self.share(each),
                "ratios": {name: each.ratio(SPIN, name) for name in (SORTED, IN_ORDER, EXITS, SAME_SPIN)},
            }
            for each in self.speeds
        ]
        rates = [{"size": each.size, "operations_per_second": each.rate} for each in self.gemm]
        content = asdict(self) | {"derived": {"gemm": rates, "speeds": derived}}
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def judge(results: Results) -> list[Verdict]:
    """Whether each goal is reached by the slower distribution of lengths; none is judged without a GPU."""
    if not results.on_gpu:
        return []
    verdicts = []
    for shape in dict.fromkeys(speed.shape for speed in results.speeds):
        slowest = min((s for s in results.speeds if s.shape == shape), key=results.share)
        text = f"{shape}: {results.share(slowest):.1%} of the rate of matrix products ({slowest.workload})"
        verdicts.append((results.share(slowest) >= SHARE, f"{text}, goal {SHARE:.0%}"))
    rates = {s.workload: s.speeds[SPIN].rate for s in results.speeds if s.shape == _RATED}
    if rates and CARD in results.machine.device:
        slowest_name = min(rates, key=lambda name: rates[name])
        text = f"{_RATED} on an {CARD}: {rates[slowest_name] / 1e6:.2f} million tokens per second ({slowest_name})"
        verdicts.append((rates[slowest_name] >= RATE, f"{text}, goal {RATE / 1e6:g} million"))
    return verdicts


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return lines[0].strip() if lines else "unknown"
