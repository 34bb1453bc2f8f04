"""`make bench`: time SPIN and the alternatives that users would run instead, and write benchmarks/speed.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.speed.graphs import graph_peers
from benchmarks.speed.peers import torch_peers
from benchmarks.speed.rounds import Contender, Race, race
from benchmarks.speed.spin_rows import spin_contenders
from benchmarks.speed.standings import HOW_TO_READ, section, verdict_list
from benchmarks.speed.trial import Trial, draw_trial, speed_plans
from benchmarks.speed.verdicts import Row, verdicts

_REPORT = Path("benchmarks/speed.md")
_ASIDE = Path("runs/bench/speed.md")
_LIBRARIES = (
    "torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "nncf", "scikit-learn", "numpy",
)  # fmt: skip
_ROUNDS = 3
_BATCHES = {False: (8, 16, 32, 64, 128), True: (4, 16, 64)}
"""batch sizes to try, in documents, by whether the model is a decoder"""
_FEW_SITES = {
    False: ("resid.03", "resid.06", "ffn.06"),
    True: tuple(f"{kind}.{layer}" for layer in (10, 20, 30) for kind in ("resid", "ffn")),
}
"""sites that SPIN learns from: of an encoder in a quick run, of a decoder always, since all 61 take too long"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few documents and one round: shows only that it runs")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="only these rows: 'OpenVINO*', '*bfloat16'")
    parser.add_argument("--model", choices=("minilm", "smollm2"), help="measure only this model")
    arguments = parser.parse_args()
    machine.unthrottle()
    # or else the pipeline turns off the threads of tokenizers, and nncf and OpenVINO send telemetry
    os.environ.update(TOKENIZERS_PARALLELISM="true", CI="true")
    torch.set_num_threads(machine.threads())
    start, load = time.perf_counter(), os.getloadavg()[0]
    plans = [plan for plan in speed_plans(arguments.quick) if arguments.model in (None, plan.name)]
    rounds, parts, failed = 1 if arguments.quick else _ROUNDS, [], False
    whole = not arguments.quick and arguments.only == "*" and arguments.model is None
    for plan in plans:
        print(f"{plan.title}:", flush=True)
        batches = (8, 16) if arguments.quick else _BATCHES[plan.name == "smollm2"]
        trial = draw_trial(plan, machine.threads(), batches)
        if arguments.quick or trial.causal:
            trial.sites = _FEW_SITES[trial.causal]
        rows, results = measure(trial, arguments.only, rounds)
        parts.append(section(rows, trial, results.peaks, rounds))
        if not trial.causal:  # no figure is promised for a decoder
            judged = verdicts(rows)
            parts.append(verdict_list(judged))
            failed = any(verdict.asserted and not verdict.holds for verdict in judged)
    seconds = time.perf_counter() - start
    page = _REPORT if whole else _ASIDE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([head(load, seconds), *parts, HOW_TO_READ]), encoding="utf-8")
    print("\n".join(parts), f"written to {page} after {seconds:.0f} s", sep="\n")
    if whole and failed:
        raise SystemExit(1)


def measure(trial: Trial, only: str, rounds: int) -> tuple[list[Row], Race]:
    """Time the contenders of a trial whose names match the pattern `only`."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        available = torch_peers(trial) + ([] if trial.causal else graph_peers(trial, folder))
        available += spin_contenders(trial, folder / "spin")
        contenders = [contender for contender in available if fnmatch(contender.key, only)]
        results = race(contenders, trial.texts, rounds)
        return [_row(contender, contenders, results, trial) for contender in contenders], results


def _row(contender: Contender, contenders: Sequence[Contender], results: Race, trial: Trial) -> Row:
    """The figures of a contender; its agreement is with the first contender of SPIN, or the first peer, in float32."""
    answers = results.answers[contender.key]
    exact = [c.key for c in contenders if c.spin == contender.spin and c.precision == "float32" and c.max_loss is None]
    return Row(
        contender.name,
        contender.precision,
        tuple(results.seconds[contender.key]),
        float((answers == trial.y).mean()),
        float((answers == results.answers[exact[0]]).mean()) if exact else float("nan"),
        results.batch[contender.key],
        contender.compute(),
        contender.spin,
        contender.calibrated,
        contender.max_loss,
    )


def head(load: float, seconds: float) -> str:
    """The title and a paragraph about the machine and the libraries."""
    return (
        f"# Speed\n\n{datetime.date.today().isoformat()}; {machine.processor()}, {os.cpu_count()} cores "
        f"({', '.join(machine.flags()) or 'no known instruction sets'}); {machine.threads()} threads per row; load "
        f"average before the run {load:.1f}; the run took {seconds / 60:.0f} minutes. Python "
        f"{platform.python_version()}, {machine.versions(_LIBRARIES)}. Written by `make bench`.\n"
    )
