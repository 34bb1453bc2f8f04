"""The page, on constructed figures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.section_page import split_sections
from benchmarks.speed.contender import OurSetting, TransformerPeer, WordPeer
from benchmarks.speed.page import (
    HOW_TO_READ,
    TITLE,
    cores,
    cost_per_million,
    equal_table,
    table,
    verdict_list,
    with_section,
)
from benchmarks.speed.verdicts import verdicts
from tests.benchmarks.speed.made_rows import DEFAULT, GRAPH, PEERS, ROWS, SCALED, TFIDF, pairs


@pytest.fixture
def trial() -> Any:
    """100 test documents of 30 tokens."""
    return SimpleNamespace(test=np.arange(100), lengths=np.full(100, 30), flops=4e9, threads=2)


def line(page: str, start: str) -> list[str]:
    """The cells of the one line that begins with a text."""
    [found] = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("| ").split(" | ")]


def test_the_table_holds_speed_accuracy_share_of_the_peak_and_cost(trial: Any) -> None:
    """Documents per second are of the median round. Tokens and FLOPs do not count padding."""
    rows = [replace(DEFAULT, compute=0.5), *(row for row in ROWS if row is not DEFAULT)]
    page = table(rows, trial, {"bfloat16": 10.0}, 0.04)
    # 10 GFLOP/s at the peak, 40 MFLOP per document
    # 5 s for 100 documents on two cores: 100,000 core-seconds for a million, 27.8 hours
    assert line(page, "graph") == [
        "graph", "bfloat16", "–", "20", "20–20", "600", "8", "250", "0.60", "76.0", "76.0", "99.0", "100 %", "1.111",
    ]  # fmt: skip
    assert line(page, DEFAULT.role.name) == [
        DEFAULT.role.name, "bfloat16", "tokens", "62", "62–63", "1,875", "12", "500", "1.87", "80.0", "80.0", "99.0",
        "50 %", "0.356",
    ]  # fmt: skip
    assert line(page, "TF-IDF")[1:7] == ["–", "–", "200", "198–202", "–", "–"]


def test_peers_come_first_and_each_kind_from_slow_to_fast(trial: Any) -> None:
    names = [row.split(" | ")[0].strip("| ") for row in table(ROWS, trial, {}, 0.04).splitlines()[2:]]
    expected = [row.role.name for row in [*PEERS, *ROWS[4:]]]
    assert names == expected


def test_a_contender_pays_for_the_cores_that_it_uses() -> None:
    """A document per second on one core is 278 hours for a million."""
    assert cost_per_million(1.0, 1, 0.04) == pytest.approx(11.11, abs=0.01)
    assert cores(WordPeer("a", cores=1), 4) == 1
    assert cores(WordPeer("a"), 4) == cores(OurSetting("torch", "float32"), 4) == 4
    assert cores(TransformerPeer("a", "float32"), 4) == 4


def test_the_table_at_equal_scores_names_the_setting_of_every_peer(trial: Any) -> None:
    best = replace(GRAPH, valid_score=0.9)
    rows = [best, SCALED, TFIDF, *ROWS[4:]]
    page = equal_table(pairs(rows), trial)
    assert line(page, "graph bfloat16") == [
        "graph bfloat16", "20", "no setting reaches it", "–", "–", "–", "90.0",
    ]  # fmt: skip
    found = line(page, "TF-IDF")
    assert found[:4] == ["TF-IDF", "200", "SPIN, openvino, cheapest, max_loss 0.02 int8", "125"]
    assert found[4].startswith("0.62 × [0.6")
    assert found[5].startswith("+1.0 [")
    assert found[6] == "71.0 / 70.0"


def test_verdicts_name_floor_and_goal() -> None:
    listed = verdict_list(verdicts(ROWS, pairs(ROWS))).splitlines()
    assert listed[0].startswith("- holds (floor 1.7 ×; goal 2 × not reached): as shipped, at most 0.5 points")
    assert listed[2].startswith("- goal 0.5 × reached: at the macro-F1 of TF-IDF on validation: 0.62 ×")
    failed = verdict_list(verdicts(PEERS, pairs(PEERS)))
    assert failed.count("**does not hold**") == 3
    assert "no row of SPIN as shipped and at full depth to compare" in failed


def test_a_section_replaces_that_of_its_title_and_leaves_the_others() -> None:
    """A new one comes before the one on how to read the page."""
    page = "# Speed\n\nhead\n\n## One\n\nfirst\n\n## How to read it\n\n- so\n"
    added = with_section(page, "Two", "## Two\n\nsecond\n")
    assert added == "# Speed\n\nhead\n\n## One\n\nfirst\n\n## Two\n\nsecond\n\n## How to read it\n\n- so\n"
    assert split_sections(added)[1]["Two"] == "## Two\n\nsecond\n"
    assert list(split_sections(page)[1]) == ["One", "How to read it"]
    assert with_section(added, "Two", "## Two\n\nthird\n") == added.replace("second", "third")
    assert with_section(added, "Two", split_sections(added)[1]["Two"]) == added
    assert with_section(TITLE, "Two", "## Two\n\nsecond\n") == "# Speed\n\n## Two\n\nsecond\n"
    assert HOW_TO_READ.startswith("## How to read it\n")
