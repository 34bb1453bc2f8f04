"""The regret of the default, from stored results."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.method import regret, run
from benchmarks.method.regret import Regret, TaskResults, failures, limits, measure, measure_all, report
from benchmarks.method.tasks import task as task_module
from benchmarks.method.tasks.catalogue import TASKS
from benchmarks.method.tasks.tweets import TWEETS
from tests.benchmarks.test_method import make_results

SETTINGS = ("full", "few256", "few64", "few16")


def drawn(seed: int, setting: str = "full", draws: int = 5) -> list[dict[str, Any]]:
    """Results in which every row is better or worse than SPIN by chance."""
    draw = np.random.default_rng(seed)
    return make_results({name: draw.normal(0, 1, draws).tolist() for name in regret.ROWS}, setting)


def made(points: float, counted: bool = True) -> Regret:
    """A regret of so many points without any error."""
    return Regret("tweets", "all labels (8)", counted, 5, "words", 70.0 + points, 70.0, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_regret_is_what_a_plain_loop_computes(seed: int) -> None:
    """The best row by its mean, its paired differences to the default, and two standard errors less; not below 0."""
    results = drawn(seed)
    scores = {row["name"]: [] for row in results[0]["rows"]}
    for result in results:
        for row in result["rows"]:
            scores[row["name"]].append(100 * row["macro_f1"])
    best, most = "", 0.0
    for name in (
        "all neurons",
        "SPIN, neurons",
        "words",
        "SPIN, neurons + words",
        "best single site",
        "last layer",
    ):
        if sum(scores[name]) / 5 > most:
            best, most = name, sum(scores[name]) / 5
    differences = [a - b for a, b in zip(scores[best], scores["SPIN, accuracy"], strict=True)]
    error = statistics.stdev(differences) / 5**0.5
    expected = sum(differences) / 5 - 2 * error
    found = measure(results)
    assert found.best == best
    assert found.error == pytest.approx(error)
    assert found.points == pytest.approx(max(expected, 0.0))


def test_a_better_row_is_a_regret_only_beyond_two_standard_errors() -> None:
    """Rows of other libraries and of the recipes are no choices of training, and do not count."""
    steady = measure(make_results({"SPIN, neurons": [-1.0, -1.2, -0.8, -1.1, -0.9], "SIREN's recipe": [-9.0] * 5}))
    assert (steady.best, steady.draws, steady.labels) == ("SPIN, neurons", 5, "all labels (8)")
    assert steady.difference == pytest.approx(1.0)
    assert steady.points == pytest.approx(1.0 - 2 * statistics.stdev([1.0, 1.2, 0.8, 1.1, 0.9]) / 5**0.5)
    assert measure(make_results({"SPIN, neurons": [-3.0, 1.0, -3.0, 1.0, -1.0]})).points == 0.0
    assert measure(make_results({"words": [0.5] * 5})).points == 0.0


def test_limits_count_for_all_labels_and_256_per_class_and_need_five_draws() -> None:
    results = {f"minilm-{setting}": drawn(0, setting) for setting in SETTINGS}
    stored = [
        TaskResults(TWEETS, {**results, "smollm2-full": drawn(1, draws=4), "minilm-noisy": drawn(2, "noisy")}, [])
    ]
    found = measure_all(stored)
    assert [(one.labels, one.counted) for one in found] == [
        ("all labels (8)", True),
        ("256 per class", True),
        ("64 per class", False),
        ("16 per class", False),
    ]


def test_median_and_worst_are_judged() -> None:
    lines = limits([made(0.0), made(0.3), made(1.0)]).splitlines()
    assert [line.startswith("- holds: ") for line in lines] == [True, True]
    assert "(0.30, of 3 tables)" in lines[0]
    lines = limits([made(0.31), made(0.0), made(1.01)]).splitlines()
    assert [line.startswith("- **does not hold**: ") for line in lines] == [True, True]


def test_the_page_lists_what_does_not_hold_and_what_is_missing() -> None:
    """Regrets above the limit of the median, and the claims of the tables of every task."""
    losing = make_results({"SPIN, neurons": [-1.0] * 5, "TF-IDF": [-2.0] * 5})
    stored = [TaskResults(TWEETS, {"minilm-full": losing}, ["smollm2-full-0"])]
    page = report(stored)
    assert page.startswith("# The regret of the default\n")
    assert "- `make bench-method`: 1 experiment\n" in page
    assert "| Tweets | all labels (8) | 5 | SPIN, neurons |" in page
    listed = page[page.index("## What does not hold") : page.index("## How regret")]
    assert "- Tweets, all labels (8): SPIN, neurons is better by 1.00 ± 0.00 points, a regret of 1.00." in listed
    assert "does not hold: `accuracy` is not below TF-IDF by more than one standard error (-2.00" in listed
    assert "**" not in listed
    assert "- Nothing." in failures([made(0.2)], [])


def test_the_command_reads_the_stored_results_of_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of other code are missing, not shown."""
    monkeypatch.setattr(task_module, "_decoder_file", lambda: "weights.gguf")
    monkeypatch.setattr(sys, "argv", ["regret"])
    monkeypatch.chdir(tmp_path)
    encoder, _ = TASKS["manuals"].plans(quick=False)
    Path("benchmarks").mkdir()
    regret.main()
    assert "What does not hold" not in Path("benchmarks/regret.md").read_text(encoding="utf-8")
    folder = Path("benchmarks/results/manuals")
    folder.mkdir(parents=True)
    for draw, result in enumerate(make_results({"words": [-0.7] * 5})):
        experiment = run.Experiment(encoder, "full", draw, "manuals")
        (folder / f"{experiment.key}.json").write_text(json.dumps(result | {"digest": experiment.digest}))
    regret.main()
    page = Path("benchmarks/regret.md").read_text(encoding="utf-8")
    assert "| 5 | words |" in page
    assert "`make bench-method`: 28 experiments" in page
    (folder / "minilm-full-4.json").write_text("{}")
    regret.main()
    assert "| 5 | words |" not in Path("benchmarks/regret.md").read_text(encoding="utf-8")
