"""`make bench`: how fast ours and what users would otherwise run classify, in one run, into benchmarks/speed.md."""

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
from benchmarks.speed.ours import ours
from benchmarks.speed.peers import torch_peers
from benchmarks.speed.rounds import Contender, Race, race
from benchmarks.speed.standings import HOW, section, told
from benchmarks.speed.trial import Trial, speed_plans, trial_of
from benchmarks.speed.verdicts import Row, verdicts

_REPORT = Path("benchmarks/speed.md")
_ASIDE = Path("runs/bench/speed.md")
_LIBRARIES = (
    "torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "nncf", "scikit-learn", "numpy",
)  # fmt: skip
_ROUNDS = 3
_BATCHES = {False: (8, 16, 32, 64, 128), True: (4, 16, 64)}
"""documents a batch that are tried, by whether the model is a decoder"""
_FEW_SITES = {
    False: ("resid.03", "resid.06", "ffn.06"),
    True: tuple(f"{kind}.{layer}" for layer in (10, 20, 30) for kind in ("resid", "ffn")),
}
"""that ours learns from where it must be quick, and of SmolLM2, whose 61 would take longer than all rows to run"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few documents and one round: shows only that it runs")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="rows such as 'OpenVINO*' or '*bfloat16'")
    parser.add_argument("--model", choices=("minilm", "smollm2"), help="one of the two models")
    arguments = parser.parse_args()
    machine.unthrottle()
    # the pipeline would else forbid the threads of tokenizers to all; nncf and OpenVINO send no word of a CI run
    os.environ.update(TOKENIZERS_PARALLELISM="true", CI="true")
    torch.set_num_threads(machine.threads())
    start, load = time.perf_counter(), os.getloadavg()[0]
    plans = [plan for plan in speed_plans(arguments.quick) if arguments.model in (None, plan.name)]
    rounds, parts, failed = 1 if arguments.quick else _ROUNDS, [], False
    whole = not arguments.quick and arguments.only == "*" and arguments.model is None
    for plan in plans:
        print(f"{plan.title}:", flush=True)
        batches = (8, 16) if arguments.quick else _BATCHES[plan.name == "smollm2"]
        trial = trial_of(plan, machine.threads(), batches)
        if arguments.quick or trial.causal:
            trial.sites = _FEW_SITES[trial.causal]
        rows, found = measure(trial, arguments.only, rounds)
        parts.append(section(rows, trial, found.peaks, rounds))
        if not trial.causal:  # nothing is promised of a decoder
            judged = verdicts(rows)
            parts.append(told(judged))
            failed = any(verdict.asserted and not verdict.holds for verdict in judged)
    seconds = time.perf_counter() - start
    page = _REPORT if whole else _ASIDE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([head(load, seconds), *parts, HOW]), encoding="utf-8")
    print("\n".join(parts), f"written to {page} after {seconds:.0f} s", sep="\n")
    if whole and failed:
        raise SystemExit(1)


def measure(trial: Trial, only: str, rounds: int) -> tuple[list[Row], Race]:
    """Every contender of a trial whose name is like `only`, measured."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        of_all = torch_peers(trial) + ([] if trial.causal else graph_peers(trial, folder))
        of_all += ours(trial, folder / "spin")
        contenders = [contender for contender in of_all if fnmatch(contender.key, only)]
        found = race(contenders, trial.texts, rounds)
        return [_row(contender, contenders, found, trial) for contender in contenders], found


def _row(contender: Contender, contenders: Sequence[Contender], found: Race, trial: Trial) -> Row:
    """A contender as measured; it agrees with the first of its kind in float32."""
    answers = found.answers[contender.key]
    exact = [c.key for c in contenders if c.ours == contender.ours and c.precision == "float32" and c.max_loss is None]
    return Row(
        contender.name,
        contender.precision,
        tuple(found.seconds[contender.key]),
        float((answers == trial.y).mean()),
        float((answers == found.answers[exact[0]]).mean()) if exact else float("nan"),
        found.batch[contender.key],
        contender.compute(),
        contender.ours,
        contender.calibrated,
        contender.max_loss,
    )


def head(load: float, seconds: float) -> str:
    """The machine and what ran on it."""
    return (
        f"# Speed\n\n{datetime.date.today().isoformat()}; {machine.processor()}, {os.cpu_count()} cores "
        f"({', '.join(machine.flags()) or 'no flags known'}); {machine.threads()} threads for every row; load "
        f"before the run {load:.1f}, the whole took {seconds / 60:.0f} minutes. Python {platform.python_version()}, "
        f"{machine.versions(_LIBRARIES)}. Written by `make bench`.\n"
    )
