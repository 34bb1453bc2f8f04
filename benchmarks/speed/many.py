"""Many classifiers on the same documents: ours share one forward pass, fine-tuned models take a pass each.

The tasks are the ten most frequent tags of Debian packages, each with a classifier that says whether a package has the
tag. The alternative is the fastest transformer peer, one model per task: for n tasks its time is n times that of one
pass. What each further task costs in training is measured too, since it reads no text again.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.method.contenders import fit_spin
from benchmarks.method.corpora import METRIC, Corpus
from benchmarks.section_page import table
from benchmarks.speed.graphs import graph_peers
from benchmarks.speed.interval import speed_ratio
from benchmarks.speed.page import Conditions, describe_run
from benchmarks.speed.rounds import Ready, make_ready, seconds_of
from benchmarks.speed.trial import Sides, Trial, make_trial
from spin import SharedPass, TrainedClassifier
from spin.backbone.loading import load_backbone
from spin.labels.label_space import LabelSpace
from spin.settings import BackboneSettings

TITLE = "Many classifiers"
TASKS = 10
COUNTS = (1, 3, TASKS)
SIDES, QUICK_SIDES = Sides(4000, 1000, 300, 3000), Sides(800, 200, 100, 100)
_SECONDS = "seconds.json"


@dataclass
class ManyClassifiers:
    """Seconds of the rounds, each for all documents, and of the training."""

    documents: int
    labelled: int
    peer: str
    """the fastest transformer peer in its first passes"""
    peer_seconds: list[float] = field(default_factory=list)
    our_seconds: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in COUNTS})
    """by the number of classifiers"""
    read_s: float = 0.0
    """to read the activations of the labelled documents, once for all tasks"""
    fit_s: float = 0.0
    """the median to fit a classifier on them"""


def measure(
    corpus: Corpus, sides: Sides, folder: Path, threads: int, batches: tuple[int, ...], rounds: int, docs_per_s: float
) -> ManyClassifiers:
    """Fit the classifiers, or read those of an earlier run, and time them and the fastest peer in turn.

    `docs_per_s` is the speed at which the corpus was extracted.
    """
    tags = most_frequent(corpus)
    trial = make_trial(task_of(corpus, tags[0]), sides, folder, threads, batches)
    fitted = [fit_task(trial, task_of(corpus, tag), corpus.label_space.classes[tag]) for tag in tags]
    classifiers, seconds = [classifier for classifier, _ in fitted], [took for _, took in fitted]
    texts, labelled = trial.texts(trial.test), len(trial.exam.data.rows)
    peer = fastest_peer(trial, folder)
    passes = {count: SharedPass(classifiers[:count]) for count in COUNTS}
    for shared in passes.values():
        shared.prepare()
        shared.predict_all(texts)  # compiles kernels for the shapes of the batches
    result = ManyClassifiers(
        len(texts), labelled, peer.key, read_s=labelled / docs_per_s, fit_s=float(np.median(seconds))
    )
    for number in range(rounds):
        for count in COUNTS if number % 2 else COUNTS[::-1]:
            result.our_seconds[count].append(seconds_of(passes[count].predict_all, texts))
        result.peer_seconds.append(seconds_of(peer.classify, texts, peer.batch))
        print(f"  round {number + 1} of {rounds}", flush=True)
    return result


def most_frequent(corpus: Corpus) -> list[int]:
    """The places of the ten classes that most documents have, the most frequent first."""
    return np.argsort(-corpus.y.sum(0), kind="stable")[:TASKS].tolist()


def task_of(corpus: Corpus, tag: int) -> Corpus:
    """The same documents, with two classes: whether a document has a tag."""
    return replace(corpus, y=corpus.y[:, tag].astype(np.int64), label_space=LabelSpace(("no", "yes")))


def fit_task(trial: Trial, corpus: Corpus, name: str) -> tuple[TrainedClassifier, float]:
    """The classifier of a task, on the documents of the trial, and the seconds that it took to fit it."""
    settings = BackboneSettings(model=corpus.plan.model, max_tokens=corpus.plan.max_tokens, device="cpu")
    data = replace(trial.exam.data, y=corpus.y, label_space=corpus.label_space)

    def train(folder: Path) -> None:
        start = time.perf_counter()
        result = fit_spin(replace(trial.exam, corpus=corpus, data=data)).training_result
        seconds = time.perf_counter() - start
        spin = TrainedClassifier(settings, load_backbone(settings).digest, corpus.label_space, result, METRIC)
        spin.save(folder / "classifier")
        (folder / _SECONDS).write_text(json.dumps(seconds), encoding="utf-8")

    folder = trial.parts.get(f"tag-{name.replace(':', '-')}", train)
    spin = TrainedClassifier.load(folder / "classifier", backbone=settings, early=True)
    return spin, json.loads((folder / _SECONDS).read_text(encoding="utf-8"))


def fastest_peer(trial: Trial, folder: Path) -> Ready:
    """The transformer peer that takes the least time for a part of the documents."""
    texts = trial.texts(trial.valid)
    graphs = folder / "graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    ready = [make_ready(contender, texts) for contender in graph_peers(trial, graphs)]
    return min(ready, key=lambda one: min(seconds_of(one.classify, texts, one.batch) for _ in range(2)))


def section(result: ManyClassifiers, conditions: Conditions) -> str:
    """The section of the page."""
    lines = []
    for count in COUNTS:
        ours, theirs = result.our_seconds[count], [count * seconds for seconds in result.peer_seconds]
        ratio = speed_ratio(theirs, ours)
        speeds = (f"{result.documents / float(np.median(seconds)):,.0f}" for seconds in (ours, theirs))
        lines.append([str(count), *speeds, f"{ratio.estimate:.2f} × [{ratio.low:.2f}–{ratio.high:.2f}]"])
    titles = ["classifiers", "SPIN, docs/s", "one model per task, docs/s", "ratio"]
    return (
        f"## {TITLE}\n\n{describe_run(conditions)} The tasks are the {TASKS} most frequent tags of Debian packages, "
        "each with a classifier that says whether a package has the tag. SPIN classifies by all of them in one pass, "
        f"as shipped; the alternative runs {result.peer}, the fastest transformer peer, once for each "
        f"task.\n\n{table(titles, lines)}\n{result.documents:,} documents; {len(result.peer_seconds)} rounds. "
        f"From labels to a classifier: {result.read_s:,.0f} s to read the activations of {result.labelled:,} labelled "
        f"documents once, and {result.fit_s:,.0f} s, in one process, to fit each classifier on them.\n"
    )
