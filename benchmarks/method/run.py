"""`make bench-method`: compare the method with simpler ones on real text; writes benchmarks/method.md.

`make bench-method TASK=debian` takes other texts than the tweets, and writes the page of that task. Each experiment is
one division of one corpus. Its result is a file of benchmarks/results/TASK, so that a run that was ended resumes, and
the page can be written without measuring anew. A result also holds a digest of what it depends on: the format in
benchmarks/method/lineup.py, the documents, the grids of the rows, and the default settings of SPIN. One with another
digest is not shown; the next run computes it again. A new row is computed by the next run, too, with the other rows
that depend on SPIN. After a change of SPIN's code, `--again` computes these, and keeps those of other libraries.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import spin
from benchmarks.machine import describe_run
from benchmarks.method.corpora import Plan, draw_exam, extract_corpus, load
from benchmarks.method.lineup import Row, answers, digest, rows_of
from benchmarks.method.peers.libraries import require_peers
from benchmarks.method.tasks.catalogue import TASKS
from benchmarks.method.tasks.task import Task
from benchmarks.method.tasks.tweets import TWEETS

FOLDER, RESULTS = Path("runs/bench"), Path("benchmarks/results")
_DRAWS, _NOISY_DRAWS = 5, 3
"""five draws at least for the regret; with fewer of the flipped labels, a run ends within 90 minutes"""
_PROCESSES = 2
"""of one thread each; on two cores faster than one process of two threads"""
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "transformers", "numba")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Experiment:
    """Every contender on one division of a corpus."""

    plan: Plan
    setting: str
    """`full`, `noisy`, or `few16` with the number of labels per class"""
    seed: int
    task: str = TWEETS.name

    @property
    def key(self) -> str:
        return f"{self.plan.name}-{self.setting}-{self.seed}"

    @property
    def digest(self) -> str:
        return digest(self.plan, self.setting)

    @property
    def rows(self) -> list[Row]:
        """The rows that it has."""
        return rows_of(self.setting, self.left_out, self.seed)

    @property
    def left_out(self) -> Mapping[str, str]:
        """The rows that it does not have, with the reason."""
        return TASKS[self.task].rows_left_out(self.plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default=TWEETS.name, help="the texts, the tweets by default")
    parser.add_argument("--quick", action="store_true", help="tiny subsets and one seed: shows only that it runs")
    parser.add_argument("--fresh", action="store_true", help="compute everything again, not only what is missing")
    parser.add_argument("--again", action="store_true", help="compute rows of SPIN again if they are of other code")
    parser.add_argument("--report", action="store_true", help="only write the page from the results so far")
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    if not arguments.report:
        require_peers()
    folder = task.folder(FOLDER / "quick" if arguments.quick else FOLDER)
    stored = folder / "results" if arguments.quick else RESULTS / task.name
    if arguments.fresh:
        shutil.rmtree(stored, ignore_errors=True)
    stored.mkdir(parents=True, exist_ok=True)
    plans = task.plans(arguments.quick)
    wanted = experiments(task, plans, arguments.quick)
    page = folder / task.page.name if arguments.quick else task.page
    if arguments.report:
        write_report(wanted, stored, page)
        return
    read = cache(partial(task.read, FOLDER))  # once for both corpora
    missing = find_missing(wanted, stored, again=arguments.again)
    for plan in plans:
        if any(experiment.plan == plan for experiment in missing):
            extract_corpus(plan, read, folder / plan.name)
    failed = run_all(missing, folder, stored)
    if failed:
        raise SystemExit(f"{failed} of {len(missing)} experiments failed; the next run computes only what is missing")
    write_report(wanted, stored, page)


def experiments(task: Task, plans: tuple[Plan, Plan], quick: bool) -> list[Experiment]:
    """All experiments of a task, long ones first, so that short ones fill the gaps at the end."""
    encoder, decoder = plans
    draws, noisy_draws = (range(1 if quick else count) for count in (_DRAWS, _NOISY_DRAWS if task.noisy else 0))
    few = dict.fromkeys(sorted(task.few)[:2], 1) if quick else task.few
    last = max(few.values(), default=0)
    planned = [Experiment(plan, "full", seed, task.name) for plan in (decoder, encoder) for seed in draws]
    planned += [Experiment(encoder, "noisy", seed, task.name) for seed in noisy_draws]
    return planned + [
        Experiment(encoder, f"few{labels}", draw, task.name)
        for draw in range(last)
        for labels, count in few.items()
        if draw < count
    ]


def find_missing(wanted: list[Experiment], stored: Path, *, again: bool = False) -> list[Experiment]:
    """The experiments without a stored result or one of its rows, and `again` those of other code of SPIN."""
    code = digest_code()
    results = {e: read_result(stored, e) for e in wanted}
    missing = [
        e
        for e, result in results.items()
        if result is None or lacks_rows(e, result) or (again and result.get("code") != code)
    ]
    print(f"{len(wanted)} experiments, {len(wanted) - len(missing)} already finished", flush=True)
    return missing


def lacks_rows(experiment: Experiment, result: Mapping[str, Any]) -> bool:
    """Whether a result has not all rows of its experiment."""
    return bool({row.name for row in experiment.rows} - {row["name"] for row in result["rows"]})


def run_all(missing: list[Experiment], folder: Path, stored: Path) -> int:
    """Run experiments on the corpora in `folder`, and return how many failed."""
    code = digest_code()
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # a spawned process reads it before it loads numpy
    failed, start = 0, time.perf_counter()
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn"), initializer=warm_up) as pool:
        running = {pool.submit(run_one, experiment, folder, stored, code): experiment for experiment in missing}
        for done, future in enumerate(as_completed(running), 1):
            experiment = running[future]
            try:
                summary = future.result()
            except Exception as error:
                failed += 1
                summary = "failed: " + "".join(traceback.format_exception(error))
            print(
                f"[{done}/{len(missing)}, {time.perf_counter() - start:.0f} s] {experiment.key}: {summary}", flush=True
            )
    return failed


def digest_code() -> str:
    """A digest of the modules of SPIN's package, committed or not, by which results know what code they are of."""
    total, package = hashlib.blake2b(digest_size=8), Path(spin.__file__).parent
    for file in sorted(package.rglob("*.py")):
        total.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def run_one(experiment: Experiment, folder: Path, stored: Path, code: str) -> str:
    """Measure every contender, write the result of this `code` of SPIN, and return a summary in one line.

    If there is a result, it is of other code or lacks rows: those that do not depend on SPIN are kept.
    """
    start = time.perf_counter()
    corpus = load(experiment.plan, folder / experiment.plan.name)
    exam = draw_exam(corpus, experiment.setting, experiment.seed)
    reads_spin = {row.name: row.reads_spin for row in experiment.rows}
    earlier = read_result(stored, experiment) or {"rows": []}
    known = {row["name"]: row for row in earlier["rows"] if not reads_spin[row["name"]]}
    new = answers(exam, experiment.setting, experiment.left_out, known)
    rows = known | {answer.name: answer.row(exam) for answer in new}
    result: dict[str, Any] = {
        "digest": experiment.digest,
        "code": code,
        "measured": describe_run(_LIBRARIES),
        "experiment": asdict(experiment),
        "neurons": corpus.neurons,
        "depth": corpus.depth,
        "classes": len(corpus.label_space),
        "origin": corpus.origin,
        "documents": [len(exam.train), len(exam.valid), len(exam.test)],
        "rows": [rows[name] for name in reads_spin],
        "wall_seconds": time.perf_counter() - start,
    }
    write_result(stored, experiment, result)
    figures = ", ".join(f"{row['name']} {100 * row['macro_f1']:.1f}" for row in result["rows"])
    return f"{result['wall_seconds']:.0f} s; macro-F1 {figures}"


def write_report(wanted: list[Experiment], stored: Path, path: Path) -> None:
    """Write the page from the results so far; it lists the experiments that are missing."""
    from benchmarks.method.table import report

    results, missing = read_results(wanted, stored)
    task = TASKS[wanted[0].task]
    path.write_text(report(results, missing, task), encoding="utf-8")
    print(f"written to {path}")


def read_results(wanted: list[Experiment], stored: Path) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The results by corpus and setting, such as `minilm-full`, and the keys of experiments without one."""
    results: dict[str, list[dict[str, Any]]] = {}
    missing = []
    for experiment in wanted:
        result = read_result(stored, experiment)
        if result is None:
            missing.append(experiment.key)
        else:
            results.setdefault(f"{experiment.plan.name}-{experiment.setting}", []).append(result)
    return results, missing


def read_result(stored: Path, experiment: Experiment) -> dict[str, Any] | None:
    """The result of an experiment, or None if there is none of its digest."""
    file = _result(stored, experiment)
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return result if result.get("digest") == experiment.digest else None


def write_result(stored: Path, experiment: Experiment, result: dict[str, Any]) -> None:
    """Store the result of an experiment, whole or not at all."""
    file = _result(stored, experiment)
    file.with_suffix(".tmp").write_text(json.dumps(result, indent=1), encoding="utf-8")
    file.with_suffix(".tmp").replace(file)


def _result(stored: Path, experiment: Experiment) -> Path:
    return stored / f"{experiment.key}.json"


def warm_up() -> None:
    """Use one thread, and compile the solver before anything is timed."""
    import numpy as np
    import torch

    from spin.sparsify.solvers.l1_path import LogisticPaths

    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    y = np.where(draw.random(64) < 0.5, -1, 1).astype(np.float32)
    path = LogisticPaths(draw.normal(size=(64, 8)).astype(np.float32), y[None], np.full((1, 64), 1 / 64, np.float32))
    path.solve(path.lam_max / 2)
