"""A version against the champion on perturbed texts: scores and intervals equal those of a plain loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from spin.audit.perturbations import PERTURBATIONS, SEVERITIES
from spin.audit.robustness import RobustnessMeasurement, measure_robustness
from spin.audit.robustness_comparison import RobustnessComparison, compare_robustness
from spin.audit.robustness_page import robustness_page
from spin.fitted.decision import Decision
from spin.integrate.bootstrap import difference_interval
from spin.labels.label_space import LabelSpace
from spin.predictions import Predictions
from spin.settings import DecisionSettings
from tests.spin.audit.test_robustness import CLASSES, SINGLE, Spotter, make_texts
from tests.support.browser import open_page
from tests.support.hostile_text import HOSTILE_TEXTS

MORE = ("absent", *CLASSES)
"""the classes of a champion that knows one more"""
WIDER = Decision.of(LabelSpace(MORE), DecisionSettings())


class CaseBlindSpotter(Spotter):
    """A spotter that does not mind capital letters, and knows a class that no text has."""

    def __call__(self, texts: Sequence[str]) -> Predictions:
        spotted = Spotter(SINGLE)([text.lower() for text in texts])
        logits = np.concatenate([np.full((len(texts), 1), -9.0, np.float32), spotted.logits], axis=1)
        return Predictions.from_logits(logits, spotted.exit_depth, self.decision)


def measure_both(texts: list[str], y: np.ndarray) -> tuple[RobustnessMeasurement, RobustnessMeasurement]:
    """The measurements of the spotter, and of the champion, whose classes have other numbers."""
    version = measure_robustness(Spotter(SINGLE), SINGLE, texts, y, "accuracy")
    return version, measure_robustness(CaseBlindSpotter(WIDER), WIDER, texts, y + 1, "accuracy")


@pytest.fixture(scope="module")
def compared() -> RobustnessComparison:
    texts, y = make_texts()
    return compare_robustness(*measure_both(texts, y), "7", significance=0.05, seed=3)


def test_differences_equal_those_of_a_plain_loop(compared: RobustnessComparison) -> None:
    """Labels are compared by name: the champion has other numbers for its classes."""
    texts, y = make_texts()
    by_name = {p.name: p for p in PERTURBATIONS if p.keeps_label}
    assert [(row.name, row.severity) for row in compared.differences] == [(n, s) for n in by_name for s in SEVERITIES]
    for row in compared.differences:
        changed = by_name[row.name].apply(texts, row.severity)
        rows = [i for i, text in enumerate(texts) if text != changed[i]]
        truth = [CLASSES[y[i]] for i in rows]
        labels, others = (
            spot([changed[i] for i in rows]).labels for spot in (Spotter(SINGLE), CaseBlindSpotter(WIDER))
        )
        assert row.score == pytest.approx(accuracy_score(truth, labels))
        assert row.champion_score == pytest.approx(accuracy_score(truth, others))
        assert row.difference.value == pytest.approx(row.score - row.champion_score)
        targets = [np.array([MORE.index(str(name)) for name in names]) for names in (truth, labels, others)]
        interval = difference_interval("accuracy", *targets, 0.05, 3)
        assert (row.difference.low, row.difference.high) == pytest.approx(interval)


def test_the_lowest_difference_is_that_of_a_moderate_perturbation(compared: RobustnessComparison) -> None:
    """Upper case hides every word from the version, and none from the champion."""
    assert compared.lowest is not None
    assert (compared.lowest.name, compared.lowest.severity) == ("case", 2)
    assert compared.lowest.difference.high < 0
    assert compared.confidence == pytest.approx(0.9)
    assert (compared.original.value, compared.original.low, compared.original.high) == (0, 0, 0)


def test_the_json_holds_the_report_of_the_champion_and_the_differences(compared: RobustnessComparison) -> None:
    stored: Any = json.loads(json.dumps(compared.to_json()))
    assert stored["version"] == "7"
    assert stored["mean_loss"] == pytest.approx(compared.report.mean_loss)
    assert len(stored["figures"]) == len(compared.report.figures)
    [upper] = [row for row in stored["differences"] if (row["name"], row["severity"]) == ("case", 2)]
    assert upper["difference"]["value"] == pytest.approx(upper["score"] - upper["champion_score"])


def test_a_champion_that_gives_lists_of_classes_is_compared_by_whole_lists() -> None:
    """Its targets are booleans; those of the version are numbers of classes."""
    texts, y = make_texts()
    several = Decision.of(LabelSpace(CLASSES, multilabel=True), DecisionSettings())
    version = measure_robustness(Spotter(SINGLE), SINGLE, texts, y, "accuracy")
    champion = measure_robustness(Spotter(several), several, texts, np.eye(3, dtype=bool)[y], "accuracy")
    compared = compare_robustness(version, champion, "7", significance=0.05)
    assert compared.original.value == pytest.approx(version.report.score - champion.report.score)
    assert 0 < champion.report.score < version.report.score, "it gives `plain` to each text, beside other classes"


def test_measurements_of_other_texts_are_not_compared() -> None:
    texts, y = make_texts()
    version, champion = measure_both(texts, y)
    first, *others = champion.changed
    shifted = replace(champion, changed=(replace(first, rows=first.rows + 1), *others))
    with pytest.raises(ValueError, match="typos: the champion has other changed texts"):
        compare_robustness(version, shifted, "7", significance=0.05)
    with pytest.raises(ValueError, match="zip"):
        compare_robustness(version, replace(champion, changed=champion.changed[1:]), "7", significance=0.05)


@pytest.mark.parametrize(("width", "media"), [(1280, "screen"), (720, "print")])
def test_the_page_shows_the_champion_without_scrolling(
    browser: Any, tmp_path: Path, compared: RobustnessComparison, width: int, media: str
) -> None:
    """Also on a printed page, which is as wide as 720 pixels."""
    texts, y = make_texts()
    version, _ = measure_both(texts, y)
    html = robustness_page(version.report, "title", champion=compared)
    with open_page(browser, tmp_path, html, width=width) as page:
        page.emulate_media(media=media)
        tables = page.locator("section", has_text="Against the champion").last.locator("table")
        cells = tables.nth(0).locator("tbody tr").nth(4).locator("td").all_inner_texts()
        upper = next(row for row in compared.differences if (row.name, row.severity) == ("case", 2))
        shares = [f"{100 * value:.1f}\u202f%" for value in (upper.score, upper.champion_score)]
        assert cells[:3] == ["moderate", *shares]
        assert cells[3] == f"{100 * upper.difference.value:.1f}".replace("-", "\u2212")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        fits = "[...document.querySelectorAll('.scroll')].map(part => part.scrollWidth <= part.clientWidth)"
        assert page.evaluate(fits) == [True] * 6


def test_the_page_has_no_section_of_a_champion_without_one() -> None:
    texts, y = make_texts()
    version, _ = measure_both(texts, y)
    assert "champion" not in robustness_page(version.report, "title")


def test_a_note_takes_the_place_of_a_champion_that_is_missing(browser: Any, tmp_path: Path) -> None:
    """However long its words are, and whatever they hold."""
    texts, y = make_texts()
    version, _ = measure_both(texts, y)
    note = f"it cannot be measured: {HOSTILE_TEXTS[0]} {'x' * 500}"
    with open_page(browser, tmp_path, robustness_page(version.report, "title", note=note)) as page:
        assert "it cannot be measured" in page.inner_text("main")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
