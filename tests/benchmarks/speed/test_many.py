"""Many classifiers: which tasks there are, and what the section says."""

from __future__ import annotations

import numpy as np

from benchmarks.method.corpora import Corpus, Plan
from benchmarks.speed.many import COUNTS, ManyClassifiers, most_frequent, section, task_of
from benchmarks.speed.page import Conditions
from spin.labels.label_space import LabelSpace


def make_corpus() -> Corpus:
    """Twelve tags, of which the first is the rarest."""
    draw = np.random.default_rng(0)
    y = draw.random((4000, 12)) < np.linspace(0.1, 0.65, 12)
    space = LabelSpace(tuple(f"tag::{k:02d}" for k in range(12)), multilabel=True)
    plan = Plan("minilm", "tags", "model", None, 0, 0, 0)
    return Corpus(plan, ["text"] * 4000, np.arange(4000, dtype=np.uint64), y, space, {}, {}, 6)


def test_the_tasks_are_the_most_frequent_tags() -> None:
    corpus = make_corpus()
    assert most_frequent(corpus) == list(range(11, 1, -1))
    task = task_of(corpus, 3)
    assert task.label_space.classes == ("no", "yes")
    assert task.y.tolist() == corpus.y[:, 3].astype(int).tolist()


def test_the_alternative_runs_once_for_each_task() -> None:
    result = ManyClassifiers(1000, 500, "peer, int8", read_s=20.4, fit_s=31.6)
    result.peer_seconds = [2.0, 2.2]
    result.our_seconds = {count: [1.0 + 0.1 * count, 1.1 + 0.11 * count] for count in COUNTS}
    text = section(result, Conditions("make bench", 0.5, 60, 0.04))
    assert text.startswith("## Many classifiers\n")
    [row] = [line for line in text.splitlines() if line.startswith("| 10 |")]
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["476", "48"]
    assert "| 1 | 866 | 476 | 1.82 × [" in text
    assert "10.00 × [" in text
    assert "20 s to read the activations of 500 labelled documents once, and 32 s, in one process," in text
