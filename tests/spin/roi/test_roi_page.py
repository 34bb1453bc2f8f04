"""The report of costs: break-even volumes, the settings of the best point, and the page in a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from spin.pages.charts import Line, line_chart
from spin.roi.cost_interval import Interval
from spin.roi.operating_points import OperatingPoint
from spin.roi.roi_report import Alternative, RoiReport, roi_page
from tests.support.browser import open_page
from tests.support.hostile_text import HOSTILE_TEXTS


def point(choose: Any, exits: bool, abstain: float, errors: float, review: float) -> OperatingPoint:
    interval = Interval(errors + review - 5, errors + review + 5)
    return OperatingPoint(
        choose, exits, abstain, review / 250, errors / 400, 0.01, review, errors + 1, errors, interval
    )


BEST = point("balanced", True, 0.2, 30, 20)
POINTS = (point("accuracy", False, 0, 60, 0), point("accuracy", False, 0.2, 35, 20), BEST)
PEOPLE = Alternative("manual labelling", 0, 0, 250, needs_labels=False)
WORDS = Alternative(HOSTILE_TEXTS[0], 0.2, 80, 0.001, needs_labels=True)
CHEAP = Alternative("language model", 0, 0, 12, needs_labels=False)
REPORT = RoiReport(HOSTILE_TEXTS[1], "3", 4000, 5e6, 2000.0, POINTS, POINTS[1:], (WORDS, CHEAP, PEOPLE))


def test_break_even_is_where_the_saved_cost_repays_the_labels() -> None:
    assert REPORT.best == BEST
    volume = REPORT.break_even(PEOPLE)
    assert volume == pytest.approx(2000 / ((250 - BEST.total) / 1000))
    assert 2000 + volume * BEST.total / 1000 == pytest.approx(volume * PEOPLE.total / 1000)
    assert REPORT.break_even(WORDS) == 0
    assert REPORT.break_even(CHEAP) is None
    unknown = replace(REPORT, labelling=None)
    assert unknown.break_even(PEOPLE) is None
    assert unknown.break_even(WORDS) == 0
    assert "The price of the labels of its training is not known." in roi_page(unknown)


def test_the_settings_are_those_of_the_best_point() -> None:
    tree = yaml.safe_load(REPORT.settings())
    assert tree == {"choose": "balanced", "classify": {"cascade": True}, "decision": {"abstain": 0.2}}
    json = REPORT.to_json()
    assert json["best"] == 1
    assert len(json["points"]) == 3  # type: ignore[arg-type]


def test_a_line_chart_spans_both_axes() -> None:
    svg = line_chart([Line("a", [(0, 2), (0.5, 4)]), Line("b", [(0, 0), (1, 1)])], "costs")
    assert 'class="line-0" points="0.0,50.00 500.0,0.00"' in svg
    assert 'class="line-1" points="0.0,100.00 1000.0,75.00"' in svg


def test_the_page_shows_the_best_point_and_the_alternatives(browser: Any, tmp_path: Path) -> None:
    with open_page(browser, tmp_path, roi_page(REPORT)) as page:
        assert HOSTILE_TEXTS[1] in page.inner_text("h1")
        summary = page.locator(".sum").inner_text().split("\n")
        assert summary[:4] == ["50.0", "per thousand documents", "250,000", "for 5,000,000 documents"]
        assert yaml.safe_load(page.inner_text("pre")) == yaml.safe_load(REPORT.settings())
        assert page.locator("polyline").count() == 2
        rows = [
            row.locator("th, td").all_inner_texts() for row in page.locator("table").nth(1).locator("tbody tr").all()
        ]
        assert [row[0] for row in rows] == [HOSTILE_TEXTS[0], "language model", "manual labelling"]
        assert [row[-1] for row in rows] == ["0", "never", "10,000"]
        points = [
            row.locator("th, td").all_inner_texts() for row in page.locator("table").nth(0).locator("tbody tr").all()
        ]
        assert [row[0] for row in points] == ["balanced, early exits", "accuracy, full depth"], "the least first"
        assert [row[-3] for row in points] == ["51.0", "56.0"], "in the figure by which it is the least"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
