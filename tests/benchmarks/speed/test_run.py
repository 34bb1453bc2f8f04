"""The command: which parts it measures, and the page that they share. Nothing is measured."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.method.corpora import Plan
from benchmarks.method.tasks.manuals import MANUALS
from benchmarks.method.tasks.tweets import TWEETS
from benchmarks.speed import run

PLAN = Plan("minilm", "manual pages", "model", None, 0, 0, 0)
OPTIONS = Namespace(quick=False, only="*", model=None, part=None, rounds=2, price=0.04, fresh=False)


def titles(page: Path) -> list[str]:
    """The headings and the lines that stand for figures."""
    return [line for line in page.read_text().splitlines() if line and not line.startswith(("-", " "))]


def test_rows_and_whole_documents_share_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is measured alone, in any order, and leaves the other as it is."""
    figures = {"rows": "rows 1", "whole": "whole 1"}
    monkeypatch.setattr(run, "head", lambda _: "# Speed\n\nhead\n")
    monkeypatch.setattr(run, "_measure_rows", lambda *_: ([f"## Manual pages\n\n{figures['rows']}\n"], []))
    monkeypatch.setattr(run, "load", lambda *_: None)
    monkeypatch.setattr(run.whole_documents, "measure", lambda *_, **__: None)
    monkeypatch.setattr(run.whole_documents, "section", lambda *_: f"## Whole documents\n\n{figures['whole']}\n")
    page = tmp_path / "speed-manuals.md"
    run._write_whole_documents(page, PLAN, tmp_path, OPTIONS)
    assert titles(page) == ["# Speed", "## Whole documents", "whole 1"]
    run._write_rows(page, MANUALS, [PLAN], tmp_path, OPTIONS)
    whole = ["## Whole documents", "whole 1", "## How to read it"]
    assert titles(page) == ["# Speed", "head", "## Manual pages", "rows 1", *whole]
    figures["rows"] = "rows 2"
    run._write_rows(page, MANUALS, [PLAN], tmp_path, OPTIONS)
    assert titles(page) == ["# Speed", "head", "## Manual pages", "rows 2", *whole]
    figures["whole"] = "whole 2"
    run._write_whole_documents(page, PLAN, tmp_path, OPTIONS)
    whole[1] = "whole 2"
    assert titles(page) == ["# Speed", "head", "## Manual pages", "rows 2", *whole]


@pytest.mark.parametrize(("part", "task"), [("documents", MANUALS), ("many", TWEETS)])
def test_a_part_that_is_measured_alone_needs_its_task(part: str, task: Any) -> None:
    options = Namespace(**vars(OPTIONS) | {"part": part})
    assert [run._has(part, other, options) for other in (MANUALS, TWEETS)] == [task is MANUALS, task is TWEETS]


@pytest.mark.parametrize(
    ("task", "change", "expected"),
    [
        (MANUALS, {}, True),
        (MANUALS, {"part": "documents"}, True),
        (MANUALS, {"part": "rows"}, False),
        (MANUALS, {"only": "OpenVINO*"}, False),
        (MANUALS, {"model": "smollm2"}, False),
        (TWEETS, {}, False),
    ],
)
def test_whole_documents_are_measured_on_manuals(task: Any, change: dict[str, str], expected: bool) -> None:
    assert run._has("documents", task, Namespace(**vars(OPTIONS) | change)) is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "documents"], "expected --task manuals"),
        (["--task", "manuals", "--part", "documents", "--only", "a"], "no --only"),
        (["--task", "manuals", "--part", "many"], "expected --task tweets"),
        (["--rounds", "1"], "expected at least 2"),
    ],
)
def test_a_wrong_command_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", *arguments])
    with pytest.raises(SystemExit):
        run._parse()
    assert message in capsys.readouterr().err
