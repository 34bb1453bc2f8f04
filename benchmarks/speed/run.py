"""`make bench`: time SPIN and the alternatives that users would run instead, and write benchmarks/speed.md.

`make bench TASK=debian` takes other texts than the tweets, and writes benchmarks/speed-debian.md. The page of the
manuals has a section on whole documents too, and that of the tweets one on many classifiers, which reads Debian's
indices. `BENCH="--part rows"`,
`"--part documents"` or `"--part many"` measures one of them, and the others stay on the page. Activations and trained
parts are kept in runs/bench, so that a second run only times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.limits.overhead import ONE_WIDE, PLAIN_WIDE, race
from benchmarks.method.corpora import Plan, extract_corpus, load
from benchmarks.method.peers.libraries import require_peers
from benchmarks.method.run import FOLDER
from benchmarks.method.tasks.catalogue import TASKS
from benchmarks.method.tasks.debtags import DEBTAGS
from benchmarks.method.tasks.manuals import MANUALS
from benchmarks.method.tasks.task import DECODER, Task
from benchmarks.method.tasks.tweets import TWEETS
from benchmarks.section_page import split_sections
from benchmarks.speed import many, verdicts, whole_documents
from benchmarks.speed.contender import LOSSES, SHIPPED
from benchmarks.speed.measurement import Measurement
from benchmarks.speed.page import (
    HOW_TO_READ,
    TITLE,
    Conditions,
    equal_table,
    head,
    section,
    verdict_list,
    with_section,
)
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
_PARTS = {"documents": MANUALS.name, "many": TWEETS.name}
"""further sections of a page, by the task whose page has them"""
_PRICE = 0.04
"""of a core per hour, in dollars"""


def main() -> None:
    options = _parse()
    machine.unthrottle()
    # or else the pipeline turns off the threads of tokenizers, and nncf and OpenVINO send telemetry
    os.environ.update(TOKENIZERS_PARALLELISM="true", CI="true")
    torch.set_num_threads(machine.threads())
    require_peers(("fasttext", "model2vec", "skeletoken"))
    task = TASKS[options.task]
    folder = task.folder(FOLDER / "quick" if options.quick else FOLDER)
    page, plans = _page(task, folder, options), _plans(task, options)
    read = cache(partial(task.read, FOLDER))
    for plan in plans:
        extract_corpus(plan, read, folder / plan.name)
    judged = [] if options.part in _PARTS else _write_rows(page, task, plans, folder, options)
    if _has("documents", task, options):
        _write_whole_documents(page, plans[0], folder, options)
    if _has("many", task, options):
        _write_many_classifiers(page, options)
    if _is_whole(options) and not all(verdict.holds for verdict in judged):
        raise SystemExit(1)


def _write_rows(
    page: Path, task: Task, plans: Sequence[Plan], folder: Path, options: argparse.Namespace
) -> list[Verdict]:
    """Measure all rows and write the page, on which a section on whole documents stays; return the verdicts."""
    start, load_before = time.perf_counter(), os.getloadavg()[0]
    parts: list[str] = []
    judged: list[Verdict] = []
    for plan in plans:
        measured, found = _measure_rows(task, plan, folder, options)
        parts, judged = [*parts, *measured], [*judged, *found]
    if task.name == TWEETS.name and options.only == "*" and options.model is None:
        judged.append(_ray(folder, options.quick))
        parts.append(f"## Ray\n\n{verdict_list(judged[-1:])}")
    seconds = time.perf_counter() - start
    conditions = Conditions(task.command("bench"), load_before, seconds, options.price)
    text, (_, before) = "\n".join([head(conditions), *parts, HOW_TO_READ]), split_sections(_read(page))
    for title in (whole_documents.TITLE, many.TITLE):
        if title in before:
            text = with_section(text, title, before[title])
    page.write_text(text, encoding="utf-8")
    print("\n".join(parts), f"written to {page} after {seconds:.0f} s", sep="\n", flush=True)
    return judged


def _measure_rows(task: Task, plan: Plan, folder: Path, options: argparse.Namespace) -> tuple[list[str], list[Verdict]]:
    """The section on a model, in parts, and its verdicts."""
    print(f"{plan.title}:", flush=True)
    trial = _trial(task, plan, folder, options)
    measurement = Measurement(trial, options.only)
    measurement.enter_peers()
    measurement.enter_ours()
    rounds = _QUICK_ROUNDS if options.quick else _DECODER_ROUNDS if trial.causal else options.rounds
    rows, results = measurement.race(rounds)
    table = section(rows, trial, results.peaks, options.price)
    if trial.causal:  # no figure is promised for a decoder
        return [table], []
    pairs = at_equal_scores(rows, measurement.tried, trial.y(trial.test))
    judged = verdicts.verdicts(rows, pairs)
    return [table, equal_table(pairs, trial), verdict_list(judged)], judged


def _write_whole_documents(page: Path, plan: Plan, folder: Path, options: argparse.Namespace) -> None:
    """Measure what windows bring and cost, and write that section of the page; all others stay."""
    print(f"{whole_documents.TITLE}:", flush=True)
    start, load_before = time.perf_counter(), os.getloadavg()[0]
    parts = folder / "speed/whole-documents"
    if options.fresh:
        shutil.rmtree(parts, ignore_errors=True)
    comparison = whole_documents.measure(
        load(plan, folder / plan.name),
        whole_documents.window_settings(plan.model),
        whole_documents.QUICK_SIDES if options.quick else whole_documents.SIDES,
        parts,
        _QUICK_ROUNDS if options.quick else options.rounds,
        sites=_FEW_SITES[False] if options.quick else whole_documents.SITES,
    )
    seconds = time.perf_counter() - start
    conditions = Conditions(MANUALS.command("bench"), load_before, seconds, options.price)
    text = whole_documents.section(comparison, conditions, machine.threads())
    page.write_text(with_section(_read(page) or TITLE, whole_documents.TITLE, text), encoding="utf-8")
    print(text, f"written to {page} after {seconds:.0f} s", sep="\n", flush=True)


def _write_many_classifiers(page: Path, options: argparse.Namespace) -> None:
    """Measure several classifiers in one pass, and write that section of the page; all others stay."""
    print(f"{many.TITLE}:", flush=True)
    start, load_before = time.perf_counter(), os.getloadavg()[0]
    folder = DEBTAGS.folder(FOLDER / "quick" if options.quick else FOLDER)
    plan = DEBTAGS.plans(options.quick)[0]
    if options.quick:  # the small plan has fewer tags than there are tasks
        plan = replace(plan, name="many", classes=None)
    extract_corpus(plan, partial(DEBTAGS.read, FOLDER), folder / plan.name)
    if options.fresh:
        shutil.rmtree(folder / "speed/many", ignore_errors=True)
    result = many.measure(
        load(plan, folder / plan.name),
        many.QUICK_SIDES if options.quick else many.SIDES,
        folder / "speed/many",
        machine.threads(),
        (16,) if options.quick else _BATCHES[False],
        _QUICK_ROUNDS if options.quick else options.rounds,
        json.loads((folder / plan.name / "corpus.json").read_text(encoding="utf-8"))["docs_per_s"],
    )
    conditions = Conditions(TWEETS.command("bench"), load_before, time.perf_counter() - start, options.price)
    text = many.section(result, conditions)
    page.write_text(with_section(_read(page) or TITLE, many.TITLE, text), encoding="utf-8")
    print(text, f"written to {page}", sep="\n", flush=True)


def _has(part: str, task: Task, options: argparse.Namespace) -> bool:
    """Whether the run measures a further section of its page: not one of some rows, or of the decoder, alone."""
    of_all = options.part in (None, part) and options.only == "*" and options.model != DECODER
    return task.name == _PARTS[part] and of_all


def _read(page: Path) -> str:
    """The page so far, empty if there is none."""
    return page.read_text(encoding="utf-8") if page.exists() else ""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=SIDES, default=TWEETS.name, help="the texts, the tweets by default")
    parser.add_argument("--quick", action="store_true", help="few documents and rounds: shows only that it runs")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="only these rows: 'OpenVINO*', '*bfloat16'")
    parser.add_argument("--part", choices=("rows", *_PARTS), help="measure the rows, or one further section, alone")
    parser.add_argument("--model", choices=("minilm", "smollm2"), help="measure only this model")
    parser.add_argument("--price", type=float, default=_PRICE, help=f"of a core per hour, in $; {_PRICE} by default")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"of the encoder, at least 2; {_ROUNDS} by default")
    parser.add_argument("--fresh", action="store_true", help="train everything again")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds}: expected at least 2, since an interval needs them")
    if options.part in _PARTS and (options.task != _PARTS[options.part] or options.only != "*"):
        parser.error(f"--part {options.part}: expected --task {_PARTS[options.part]}, and no --only")
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
    """Whether `spin extract` with Ray keeps up with a plain loop over the same shards, with two threads each."""
    own = (folder / "speed/ray").resolve()  # workers run in folders of their own
    shutil.rmtree(own, ignore_errors=True)
    rounds = race(own, (PLAIN_WIDE, ONE_WIDE), _QUICK_ROUNDS if quick else _RAY_ROUNDS, quick=quick)
    shutil.rmtree(own)
    return verdicts.ray(*([times[way] for times in rounds] for way in (PLAIN_WIDE, ONE_WIDE)))
