"""`make bench`: time SPIN and the alternatives that users would run instead, and write benchmarks/speed.md.

`make bench TASK=debian` takes other texts than the tweets, and writes benchmarks/speed-debian.md. Activations and
trained parts are kept in runs/bench, so that a second run only times.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from functools import cache, partial
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.limits.overhead import ONE_WIDE, PLAIN_WIDE
from benchmarks.method.corpora import Plan, extract_corpus, load
from benchmarks.method.peers.libraries import require_peers
from benchmarks.method.run import FOLDER
from benchmarks.method.tasks.catalogue import TASKS
from benchmarks.method.tasks.task import DECODER, Task
from benchmarks.method.tasks.tweets import TWEETS
from benchmarks.speed import ray_cost, verdicts
from benchmarks.speed.measurement import Measurement
from benchmarks.speed.page import HOW_TO_READ, Conditions, equal_table, head, section, verdict_list
from benchmarks.speed.role import LOSSES, SHIPPED
from benchmarks.speed.trial import DECODER_SIDES, QUICK_DECODER_SIDES, QUICK_SIDES, SIDES, Trial, make_trial
from benchmarks.speed.verdicts import Verdict, at_equal_scores

_ROUNDS, _DECODER_ROUNDS, _RAY_ROUNDS = 6, 3, 5
_QUICK_ROUNDS = 2
_BATCHES = {False: (8, 16, 32, 64, 128), True: (4, 16, 64)}
"""batch sizes to try, in documents, by whether the model is a decoder"""
_FEW_SITES = {
    False: ("resid.03", "resid.06", "ffn.06"),
    True: tuple(f"{kind}.{layer}" for layer in (10, 20, 30) for kind in ("resid", "ffn")),
}
"""sites that SPIN learns from: of an encoder in a quick run, of a decoder always, since all 61 take too long"""
_QUICK_LOSSES = (SHIPPED, 0.02)
_PRICE = 0.04
"""of a core per hour, in dollars"""


def main() -> None:
    options = _parse()
    machine.unthrottle()
    # or else the pipeline turns off the threads of tokenizers, and nncf and OpenVINO send telemetry
    os.environ.update(TOKENIZERS_PARALLELISM="true", CI="true")
    torch.set_num_threads(machine.threads())
    require_peers(("fasttext", "model2vec", "skeletoken"))
    start, load_before = time.perf_counter(), os.getloadavg()[0]
    task = TASKS[options.task]
    folder = task.folder(FOLDER / "quick" if options.quick else FOLDER)
    parts, judged = [], []
    read = cache(partial(task.read, FOLDER))
    for plan in _plans(task, options):
        print(f"{plan.title}:", flush=True)
        extract_corpus(plan, read, folder / plan.name)
        trial = _trial(task, plan, folder, options)
        measurement = Measurement(trial, options.only)
        measurement.enter_peers()
        measurement.enter_ours()
        rounds = _QUICK_ROUNDS if options.quick else _DECODER_ROUNDS if trial.causal else options.rounds
        rows, results = measurement.race(rounds)
        parts.append(section(rows, trial, results.peaks, options.price))
        if not trial.causal:  # no figure is promised for a decoder
            pairs = at_equal_scores(rows, measurement.tried, trial.y(trial.test))
            parts.append(equal_table(pairs, trial))
            judged += verdicts.verdicts(rows, pairs)
            parts.append(verdict_list(judged))
    if task.name == TWEETS.name and options.only == "*" and options.model is None:
        judged.append(_ray(folder, options.quick))
        parts.append(f"## Ray\n\n{verdict_list(judged[-1:])}")
    seconds = time.perf_counter() - start
    page = _page(task, folder, options)
    command = "make bench" if task.name == TWEETS.name else f"make bench TASK={task.name}"
    conditions = Conditions(command, load_before, seconds, options.price)
    page.write_text("\n".join([head(conditions), *parts, HOW_TO_READ]), encoding="utf-8")
    print("\n".join(parts), f"written to {page} after {seconds:.0f} s", sep="\n")
    if _is_whole(options) and not all(verdict.holds for verdict in judged):
        raise SystemExit(1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=SIDES, default=TWEETS.name, help="the texts, the tweets by default")
    parser.add_argument("--quick", action="store_true", help="few documents and rounds: shows only that it runs")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="only these rows: 'OpenVINO*', '*bfloat16'")
    parser.add_argument("--model", choices=("minilm", "smollm2"), help="measure only this model")
    parser.add_argument("--price", type=float, default=_PRICE, help=f"of a core per hour, in $; {_PRICE} by default")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"of the encoder, at least 2; {_ROUNDS} by default")
    parser.add_argument("--fresh", action="store_true", help="train everything again")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds}: expected at least 2, since an interval needs them")
    return options


def _is_whole(options: argparse.Namespace) -> bool:
    return not options.quick and options.only == "*" and options.model is None


def _page(task: Task, folder: Path, options: argparse.Namespace) -> Path:
    """The page of a task in benchmarks/, or for a run of a part one in its folder of runs/bench."""
    name = "speed.md" if task.name == TWEETS.name else f"speed-{task.name}.md"
    return (Path("benchmarks") if _is_whole(options) else folder) / name


def _plans(task: Task, options: argparse.Namespace) -> list[Plan]:
    """The corpora to time; the decoder is timed on tweets alone."""
    plans = task.plans(options.quick)[: 2 if task.name == TWEETS.name else 1]
    return [plan for plan in plans if options.model in (None, plan.name)]


def _trial(task: Task, plan: Plan, folder: Path, options: argparse.Namespace) -> Trial:
    """The trial of a plan; `--fresh` removes the parts that were trained before."""
    decoder = plan.name == DECODER
    quick_sides, sides = (QUICK_DECODER_SIDES, DECODER_SIDES) if decoder else (QUICK_SIDES, SIDES[task.name])
    parts = folder / "speed" / plan.name
    if options.fresh:
        shutil.rmtree(parts, ignore_errors=True)
    return make_trial(
        load(plan, folder / plan.name),
        quick_sides if options.quick else sides,
        parts,
        machine.threads(),
        (8, 16) if options.quick else _BATCHES[decoder],
        losses=_QUICK_LOSSES if options.quick else LOSSES,
        sites=_FEW_SITES[decoder] if options.quick or decoder else (),
    )


def _ray(folder: Path, quick: bool) -> Verdict:
    seconds = ray_cost.measure(folder / "speed/ray", _QUICK_ROUNDS if quick else _RAY_ROUNDS, quick=quick)
    return verdicts.ray(seconds[PLAIN_WIDE], seconds[ONE_WIDE])
