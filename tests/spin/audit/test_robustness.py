"""Robustness: figures equal those of scikit-learn and plain loops for classifiers whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from spin.audit.perturbations import PERTURBATIONS, SEVERITIES
from spin.audit.robustness import RobustnessReport, count_predictions, measure_robustness
from spin.audit.robustness_page import robustness_page
from spin.fitted.decision import Decision
from spin.heads.calibration import calibration_error, calibration_error_limit
from spin.labels.label_space import LabelSpace
from spin.predictions import Predictions
from spin.settings import DecisionSettings
from tests.support.browser import open_page
from tests.support.hostile_text import HOSTILE_TEXTS

CLASSES = ("bad", "good", "plain")
WORDS = {"bad": "dreadful", "good": "lovely", "plain": "ordinary"}
FEW, MANY = 2, 4
"""depths at which texts exit"""


def make_texts(count: int = 60) -> tuple[list[str], np.ndarray]:
    """Texts that name their class, except for each tenth, which names the next one."""
    draw = np.random.default_rng(0)
    y = draw.integers(3, size=count)
    named = np.where(np.arange(count) % 10 == 0, (y + 1) % 3, y)
    texts = [f"We saw a {WORDS[CLASSES[k]]} film that is number {row} of many" for row, k in enumerate(named)]
    return texts, y


class Spotter:
    """A classifier that looks for the words of the classes, letter by letter; texts without one are plain."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Predictions:
        self.asked += texts
        logits = np.array([[3.0 * (word in text) for word in WORDS.values()] for text in texts], np.float32)
        logits[:, 2] += 1.0
        logits -= 0.5  # in a multi-label task, classes without their word are not given
        depth = np.array([FEW if len(text) % 2 else MANY for text in texts], np.int32)
        return Predictions.from_logits(logits, depth, self.decision)


def measure(decision: Decision, texts: Sequence[str], y: Any, metric: str = "macro_f1") -> RobustnessReport:
    counted: list[int] = []
    report = measure_robustness(Spotter(decision), decision, texts, y, metric, progress=counted.append).report
    assert sum(counted) == count_predictions(len(texts))
    return report


SINGLE = Decision.of(LabelSpace(CLASSES), DecisionSettings())


def test_the_figures_equal_those_of_a_plain_loop() -> None:
    """For every perturbation, severity, class and exit."""
    texts, y = make_texts()
    report = measure(SINGLE, texts, y)
    original = Spotter(SINGLE)(texts).probabilities
    assert report.ece == pytest.approx(calibration_error(original, y, SINGLE.label_space))
    assert report.ece_limit == pytest.approx(calibration_error_limit(original, SINGLE.label_space))
    names = {p.name: p for p in PERTURBATIONS}
    assert [(row.name, row.severity) for row in report.figures] == [(n, s) for n in names for s in SEVERITIES]
    spot = Spotter(SINGLE)
    for row in report.figures:
        changed = names[row.name].apply(texts, row.severity)
        rows = [i for i, text in enumerate(texts) if text != changed[i]]
        before, after = spot([texts[i] for i in rows]), spot([changed[i] for i in rows])
        truth = [CLASSES[y[i]] for i in rows]
        assert row.documents == len(rows)
        for predictions, score, ece in ((before, row.score_before, row.ece_before), (after, row.score, row.ece)):
            assert score == pytest.approx(f1_score(truth, predictions.labels, average="macro"))
            assert ece == pytest.approx(calibration_error(predictions.probabilities, y[rows], SINGLE.label_space))
        flipped = np.array([a != b for a, b in zip(before.labels, after.labels, strict=True)])
        right = np.array([a == b for a, b in zip(before.labels, truth, strict=True)])
        assert row.flips == pytest.approx(flipped.mean())
        assert row.flips_of_right == pytest.approx(flipped[right].mean())
        for name, group in row.by_class.items():
            of_class = [i for i, label in enumerate(truth) if label == name]
            assert group.documents == len(of_class)
            assert group.flips == pytest.approx(flipped[of_class].mean())
            assert group.accuracy == pytest.approx(np.mean([after.labels[i] == name for i in of_class]))
            assert group.accuracy_before == pytest.approx(np.mean([before.labels[i] == name for i in of_class]))
        assert sorted(row.by_exit) == sorted({*after.exit_depth.tolist()})
        for depth, group in row.by_exit.items():
            of_exit = after.exit_depth == depth
            assert (group.documents, group.flips) == (of_exit.sum(), pytest.approx(flipped[of_exit].mean()))


def test_a_summary_is_of_moderate_perturbations_that_keep_the_class() -> None:
    texts, y = make_texts()
    report = measure(SINGLE, texts, y, "accuracy")
    moderate = [row for row in report.figures if row.severity == 2 and row.name != "negation"]
    assert len(moderate) == len(PERTURBATIONS) - 1
    assert report.mean_loss == pytest.approx(np.mean([row.score_before - row.score for row in moderate]))
    assert report.mean_flips == pytest.approx(np.mean([row.flips for row in moderate]))
    assert report.worst is not None
    assert report.worst.name == "case", "the upper case hides every word"
    assert report.score == pytest.approx(0.9)
    by_name = {row.name: row for row in moderate}
    assert by_name["white_space"].flips == 0
    assert json.loads(json.dumps(report.to_json()))["mean_loss"] == pytest.approx(report.mean_loss)


def test_only_documents_that_change_are_counted() -> None:
    """A text that offers nothing to change tells nothing of the perturbation."""
    texts = ["die Прага", "Прага"] * 10
    report = measure(SINGLE, texts, np.full(20, 2), "accuracy")
    counts = {(row.name, row.severity): row.documents for row in report.figures}
    assert counts["homoglyphs", 2] == 10
    assert ("negation", 1) not in counts, "no text has an auxiliary verb"
    assert counts["negation", 3] == 20


def test_the_abstention_band_hides_no_flip() -> None:
    texts, y = make_texts()
    wide = Decision.of(LabelSpace(CLASSES), DecisionSettings(abstain=0.999))
    assert measure(wide, texts, y) == measure(SINGLE, texts, y)


def test_a_multilabel_classifier_is_judged_by_lists_and_by_class() -> None:
    decision = Decision.of(LabelSpace(CLASSES, multilabel=True), DecisionSettings())
    texts, y = make_texts()
    targets = np.eye(3, dtype=bool)[y]
    targets[:, 2] = True  # the spotter gives `plain` to each text
    rows = {(row.name, row.severity): row for row in measure(decision, texts, targets, "accuracy").figures}
    assert rows["case", 1].flips == 0, "the words are in lower case already"
    upper = rows["case", 2]
    assert upper.by_class["plain"].flips == 0
    named = np.where(np.arange(len(y)) % 10 == 0, (y + 1) % 3, y)
    assert upper.by_class["good"].flips == pytest.approx(np.mean(named[y == 1] == 1))
    assert upper.flips == pytest.approx(np.mean(named != 2)), "the list loses good or bad"


def test_the_page_shows_the_figures_and_runs_nothing(browser: Any, tmp_path: Path) -> None:
    """Also with class names that a page must escape."""
    texts, y = make_texts()
    label_space = LabelSpace(tuple(HOSTILE_TEXTS[:3]))
    decision = Decision.of(label_space, DecisionSettings())
    report = measure(decision, texts, y)
    html = robustness_page(report, HOSTILE_TEXTS[0])
    with open_page(browser, tmp_path, html) as page:
        assert page.inner_text("h1") == HOSTILE_TEXTS[0]
        text = page.inner_text("main")
        assert all(name in text for name in HOSTILE_TEXTS[:3])
        tables = page.locator("table")
        assert tables.count() == 5
        rows = tables.nth(0).locator("tbody tr")
        assert rows.count() == 3 * (len(PERTURBATIONS) - 1)
        upper = next(row for row in report.figures if (row.name, row.severity) == ("case", 2))
        cells = rows.nth(4).locator("td").all_inner_texts()
        assert cells[0] == "moderate"
        assert cells[2] == f"{100 * upper.loss:+.1f}"
        assert cells[3].split("\u202f")[0] == f"{100 * upper.flips:.1f}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_report_without_negation_has_no_such_section() -> None:
    texts, y = make_texts()
    report = measure(SINGLE, texts, y)
    without = replace(report, figures=tuple(row for row in report.figures if row.keeps_label))
    assert "<h2>Negation</h2>" in robustness_page(report, "t")
    assert "<h2>Negation</h2>" not in robustness_page(without, "t")
