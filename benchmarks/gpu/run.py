"""`make bench-gpu`: SPIN's pass, heads and solvers on a GPU, beside plain transformers and the card's matrix products.

It needs torch, transformers and what these bring, but no other package, no files and no network. The models have random
weights. Without a GPU, tiny models show on the processor that everything runs and that results agree.
"""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.deviations import Expected, measure_deviation
from benchmarks.gpu.documents import LONG, SHORT, Documents, Workload, draw_documents
from benchmarks.gpu.gemm import SIZES, SMALL_SIZES, ceiling, measure_gemm
from benchmarks.gpu.gpu_page import render
from benchmarks.gpu.operations import count_operations
from benchmarks.gpu.plain_pass import PlainPass
from benchmarks.gpu.random_backbone import LookupBackbone, open_random_backbone, place_model, random_model
from benchmarks.gpu.reference import reference_features
from benchmarks.gpu.results import GpuMachine, Results, judge
from benchmarks.gpu.shapes import Shape, full_shapes, tiny_shapes
from benchmarks.gpu.solver_times import Problem, full_problems, measure_solver, small_problems
from benchmarks.gpu.speed_rounds import IN_ORDER, SORTED, SPIN, Rivals, WorkloadSpeed, measure_speed
from benchmarks.gpu.spin_pass import SpinPass, TopicHeads, choose_neurons
from spin.backbone.model import Backbone
from spin.errors import describe_error

_FOLDER, _PAGE = Path("runs/bench/gpu"), Path(__file__).resolve().parents[1] / "gpu.md"
_EXPECTED_SHARE = 0.4
"""of the rate of matrix products, by which the number of documents is chosen"""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    shapes: Sequence[Shape]
    gemm_sizes: Sequence[tuple[int, int, int]]
    problems: dict[str, Sequence[Problem]]
    rounds: int
    pass_seconds: float
    """what a pass should take; 0: as few tokens as `least_tokens`"""
    least_tokens: int
    """tokens per pass at least, and on a GPU four batches"""
    workload_seconds: float
    """after which no further round begins"""
    fitted: int
    """documents that the heads learn from"""
    compared: int
    """documents that are compared with the reference"""


def make_plan(device: torch.device, *, quick: bool) -> Plan:
    """The plan for a device: tiny on a processor, and on a GPU eight minutes at most, or with `quick` about two."""
    if device.type != "cuda":
        return Plan(tiny_shapes(), SMALL_SIZES, small_problems(), 2, 0.0, 2_000, 3.0, 60, 12)
    problems = full_problems()
    if quick:
        few = {solver: each[:1] for solver, each in problems.items()}
        return Plan(full_shapes(), SIZES[:2], few, 2, 0.3, 50_000, 5.0, 500, 48)
    return Plan(full_shapes(), SIZES, problems, 5, 1.0, 200_000, 22.0, 1500, 48)


class Run:
    """A run of the benchmark, which keeps its results in a file after every part."""

    def __init__(self, device: torch.device, plan: Plan, folder: Path, *, quick: bool) -> None:
        self.device, self.plan, self.file = device, plan, folder / "gpu.json"
        self.results, self.start = Results(GpuMachine.of(device), quick), time.perf_counter()

    def measure(self) -> Results:
        """Measure all parts; an error ends its part alone."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._part("matrix products", self._measure_gemm)
        for shape in self.plan.shapes:
            self._part(shape.name, partial(self._measure_shape, shape))
        for solver, problems in self.plan.problems.items():
            for problem in problems:
                self._part(solver, partial(self._measure_solver, solver, problem))
        return self.results

    def _part(self, name: str, measure: Callable[[], None]) -> None:
        try:
            measure()
        except Exception as error:  # time on a GPU is dear: the other parts still show something
            traceback.print_exc()
            self.results.failures.append(f"{name}: {describe_error(error)}")
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.results.seconds = time.perf_counter() - self.start
        self.results.write(self.file)

    def _say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.start:6.1f} s  {text}", flush=True)

    def _measure_gemm(self) -> None:
        self.results.gemm += measure_gemm(self.device, self.plan.gemm_sizes, 20)
        self._say(f"matrix products: {ceiling(self.results.gemm) / 1e12:.3g} TFLOP/s")

    def _measure_solver(self, solver: str, problem: Problem) -> None:
        self.results.solvers.append(measure_solver(solver, problem, self.device, 2))
        self._say(f"{solver}, {problem}: {self.results.solvers[-1].device.median:.2f} s")

    def _measure_shape(self, shape: Shape) -> None:
        model = random_model(shape)
        backbone = open_random_backbone(shape, place_model(model, torch.bfloat16, self.device))
        spin = SpinPass(backbone, choose_neurons(backbone, np.random.default_rng(0)), shape.exit_depth)
        self._say(f"{shape.name}: batches of {backbone.batch_tokens:,} tokens")
        self._compare_all(shape, model, spin)
        whole = SpinPass(open_random_backbone(shape, backbone.model, lookup=False), spin.neurons, shape.exit_depth)
        for workload in (SHORT, LONG):
            heads = spin.fit_heads(self._draw(shape, workload, round(self.plan.fitted * workload.mean), backbone))
            rivals = Rivals(shape.name, spin, heads, PlainPass(backbone), whole)
            documents = self._draw(shape, workload, self._tokens(shape, workload, backbone), backbone, seed=2)
            self.results.speeds.append(self._measure_speed(rivals, workload, documents))

    def _compare_all(self, shape: Shape, model: Any, spin: SpinPass) -> None:
        """Compare passes in float32 and bfloat16 with the reference; `model` is on the processor."""
        backbone = spin.backbone
        heads = spin.fit_heads(self._draw(shape, SHORT, round(self.plan.fitted * SHORT.mean), backbone))
        compared = self._draw(shape, SHORT, round(self.plan.compared * SHORT.mean), backbone, seed=1)
        exact = open_random_backbone(shape, place_model(model, torch.float64, torch.device("cpu")))
        references = (reference_features(each, compared.ids, spin.neurons) for each in (exact, backbone))
        expected = Expected(compared.texts, *references)
        del exact
        for device in dict.fromkeys(("cpu", self.device.type)):
            other = open_random_backbone(shape, place_model(model, torch.float32, torch.device(device)))
            _learn(other, compared)
            self._compare(shape, SpinPass(other, spin.neurons, shape.exit_depth), heads, expected)
            del other
        self._compare(shape, spin, heads, expected)

    def _compare(self, shape: Shape, spin: SpinPass, heads: TopicHeads, expected: Expected) -> None:
        self.results.deviations.append(measure_deviation(shape.name, spin, expected, heads))
        self._say(self.results.deviations[-1].describe())

    def _measure_speed(self, rivals: Rivals, workload: Workload, documents: Documents) -> WorkloadSpeed:
        speed = measure_speed(
            rivals,
            workload,
            documents,
            rounds=self.plan.rounds,
            seconds=self.plan.workload_seconds,
            all_neurons=workload is LONG,
        )
        self._say(
            f"{speed.shape}, {speed.workload}: {speed.speeds[SPIN].rate:,.0f} tokens/s, "
            f"{self.results.share(speed):.1%} of matrix products, × {speed.ratio(SPIN, SORTED):.2f} sorted, "
            f"× {speed.ratio(SPIN, IN_ORDER):.2f} in order, exits of {speed.exit_share:.0%}"
        )
        return speed

    def _draw(self, shape: Shape, workload: Workload, tokens: int, backbone: Backbone, seed: int = 0) -> Documents:
        random = np.random.default_rng(seed)
        documents = draw_documents(shape, workload.draw_lengths(random, tokens), random)
        _learn(backbone, documents)
        return documents

    def _tokens(self, shape: Shape, workload: Workload, backbone: Backbone) -> int:
        """The tokens of a pass that takes about as long as planned."""
        length = round(workload.mean)
        rate = _EXPECTED_SHARE * ceiling(self.results.gemm) * length / count_operations(backbone, [length])
        batches = 4 * backbone.batch_tokens if self.device.type == "cuda" else 0
        return max(round(self.plan.pass_seconds * rate), self.plan.least_tokens, batches)


def _learn(backbone: Backbone, documents: Documents) -> None:
    assert isinstance(backbone, LookupBackbone)
    backbone.learn(documents)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer documents and rounds: shows only that it runs")
    parser.add_argument("--device", help="cuda, cuda:N or cpu; default: a GPU if torch sees one")
    parser.add_argument("--out", type=Path, default=_FOLDER, help=f"folder of gpu.json; default: {_FOLDER}")
    parser.add_argument(
        "--page", type=Path, help="default: benchmarks/gpu.md, gpu.md in the folder for --quick, none on a processor"
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.index is not None:
        torch.cuda.set_device(device)
    run = Run(device, make_plan(device, quick=options.quick), options.out, quick=options.quick)
    results = run.measure()
    page = options.page or (None if not results.on_gpu else options.out / "gpu.md" if options.quick else _PAGE)
    for reached, goal in judge(results):
        print(f"{'reached' if reached else 'missed'}: {goal}")
    print(f"numbers in {run.file}; {results.seconds:.0f} s")
    if page is not None:
        page.write_text(render(results), encoding="utf-8")
        print(f"written to {page}")
    if failed := results.failures + results.disagreements():
        raise SystemExit("failed: " + "; ".join(failed))
