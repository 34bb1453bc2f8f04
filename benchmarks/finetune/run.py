"""`make bench-finetune`: fine-tune all weights of the backbone on the divisions of `make bench-method`.

It writes benchmarks/finetune.md, which has the figures of SPIN beside it where `make bench-method` has stored them.
Each fit is one division, and its result a file of benchmarks/results/finetune/TASK. So a run that was ended resumes,
and `--hours` or `--fits` end one early. A result holds a digest of the format, the documents and the learning rates;
one with another digest is computed again. The first fit of a task chooses its learning rate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finetune.encoder import find_best_epoch, fine_tune
from benchmarks.machine import describe_run
from benchmarks.method.corpora import Corpus, draw_exam, extract_corpus, load
from benchmarks.method.division import divide
from benchmarks.method.run import FOLDER, RESULTS, Experiment, experiments, read_result, write_result
from benchmarks.method.tasks.catalogue import TASKS
from benchmarks.method.tasks.task import ENCODER, Task
from spin.arrays import Rows
from spin.labels.cross_validation import Fold
from spin.labels.split_groups import hash_text

FORMAT = 1
"""raise it when fits are computed in another way, or documents are divided differently"""
PAGE = Path("benchmarks/finetune.md")
DRAWS = {"debian": 2, "manuals": 1}
"""of the tasks whose fits take longest; of others all that `make bench-method` has"""
RATES = (2e-5, 5e-5, 1e-4)
"""learning rates of the backbone"""
_LIBRARIES = ("torch", "transformers")
RATE = "rate"
"""the setting that stands for the choice of the learning rate"""
MOST_DOCUMENTS = 1000
"""to train, and to validate, when the learning rate is chosen"""


@dataclass(frozen=True)
class FineTuning(Experiment):
    """The encoder fine-tuned on one division of a corpus; under the setting `rate` the choice of its learning rate."""

    @property
    def digest(self) -> str:
        depends_on = [FORMAT, self.plan.record(), RATES]
        return hashlib.blake2b(json.dumps(depends_on, sort_keys=True).encode(), digest_size=8).hexdigest()


def main() -> None:
    from benchmarks.finetune.page import read_task, report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="tweets", help="the texts, the tweets by default")
    parser.add_argument("--hours", type=float, default=inf, help="begin no fit after so many hours")
    parser.add_argument("--fits", type=int, help="end after so many fits; 0 only writes the page")
    arguments = parser.parse_args()
    run_missing(TASKS[arguments.task], FOLDER, RESULTS / "finetune", arguments.hours, arguments.fits)
    PAGE.write_text(report([read_task(task, RESULTS) for task in TASKS.values()]), encoding="utf-8")
    print(f"written to {PAGE}")


def plan_fits(task: Task) -> list[FineTuning]:
    """All fits of a task: the choice of the learning rate, then draw by draw, with the fewest labels first."""
    draws = DRAWS.get(task.name)
    plans = task.plans(quick=False)
    wanted = [
        FineTuning(e.plan, e.setting, e.seed, e.task)
        for e in reversed(experiments(task, plans, quick=False))
        if e.plan.name == ENCODER and e.setting != "noisy" and (draws is None or e.seed < draws)
    ]
    return [FineTuning(plans[0], RATE, 0, task.name), *sorted(wanted, key=lambda fit: fit.seed)]


def run_missing(task: Task, base: Path, stored: Path, hours: float = inf, fits: int | None = None) -> None:
    """Run the fits of a task without a stored result, one after another, until the time or the number is reached.

    The corpus is kept below `base`.
    """
    start, folder, wanted = time.perf_counter(), task.folder(base), plan_fits(task)
    results = stored / task.name
    missing = [fit for fit in wanted if read_result(results, fit) is None]
    print(f"{len(wanted)} fits, {len(wanted) - len(missing)} already finished", flush=True)
    if not missing[:fits]:
        return
    results.mkdir(parents=True, exist_ok=True)
    plan = wanted[0].plan
    extract_corpus(plan, partial(task.read, base), folder / plan.name)
    corpus = load(plan, folder / plan.name)
    for fit in missing[:fits]:
        if time.perf_counter() - start > 3600 * hours:
            break
        result = choose_rate(corpus, wanted[1:]) if fit.setting == RATE else run_one(corpus, fit, results)
        described = {"digest": fit.digest, "measured": describe_run(_LIBRARIES), "experiment": asdict(fit)}
        write_result(results, fit, described | result)
        print(f"[{time.perf_counter() - start:.0f} s] {fit.key}: {result['summary']}", flush=True)


def run_one(corpus: Corpus, fit: FineTuning, results: Path) -> dict[str, Any]:
    """Fine-tune the encoder on a division at the learning rate that was chosen for the task."""
    chosen = read_result(results, FineTuning(fit.plan, RATE, 0, fit.task))
    assert chosen is not None, "the learning rate is chosen first"
    exam = draw_exam(corpus, fit.setting, fit.seed)
    answer, epochs = fine_tune(exam, chosen["rate"])
    row = answer.row(exam) | {"epochs": epochs}
    return {
        "documents": [len(exam.train), len(exam.valid), len(exam.test)],
        "rows": [row],
        "summary": f"{answer.seconds:.0f} s; macro-F1 {100 * row['macro_f1']:.1f}, {answer.choice}",
    }


def choose_rate(corpus: Corpus, fits: Sequence[FineTuning]) -> dict[str, Any]:
    """Choose the learning rate with the best validation score on documents that no fit is tested on."""
    rows = development_rows(corpus, fits)
    y, size = corpus.y[rows], min(MOST_DOCUMENTS, len(rows) // 2)
    train, valid = divide(corpus.label_space.strata(y), corpus.groups[rows], (size, size), 0)
    fold = Fold(rows[train], rows[valid])
    scores = {rate: find_best_epoch(corpus, corpus.y, fold, rate, 0).score for rate in RATES}
    rate = max(scores, key=lambda rate: scores[rate])
    figures = ", ".join(f"{100 * scores[each]:.1f} with {each:g}" for each in RATES)
    summary = f"{rate:g}, by the macro-F1 of {len(valid):,} documents after learning from {len(train):,}: {figures}"
    return {"rate": rate, "scores": list(scores.values()), "summary": summary}


def development_rows(corpus: Corpus, fits: Sequence[FineTuning]) -> Rows:
    """The half of the documents that a hash of the text sets aside, without the test documents of every fit."""
    half = np.flatnonzero([hash_text(text) % 2 == 0 for text in corpus.texts])
    tested = {int(row) for fit in fits for row in draw_exam(corpus, fit.setting, fit.seed).test}
    return np.array([row for row in half if row not in tested], np.int64)
