"""The list of guarantees matches the code, the tests and docs/reliability.md; guarantees.py checks its lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.mutation.guarantees import GUARANTEES, ROOT, Cut

CUTS = [
    pytest.param(cut, id=f"{n}-{m}")
    for n, guarantee in enumerate(GUARANTEES, 1)
    for m, cut in enumerate(guarantee.cuts)
]
FUNCTIONS = {
    path.stem: {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    for path in (ROOT / "tests").rglob("*.py")
}


def rows_of_the_page() -> dict[str, list[str]]:
    """Each guarantee in the table of docs/reliability.md with the tests in its row."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {text: re.findall(r"`([^`]+)`", tests) for text, tests in cells[1:]}


@pytest.mark.parametrize("cut", CUTS)
def test_each_line_is_there_once(cut: Cut) -> None:
    """Without it the file is still Python, but different: its test must fail, not the import."""
    text = (ROOT / cut.file).read_text(encoding="utf-8")
    without = ast.dump(ast.parse(cut.apply(text)))
    assert without != ast.dump(ast.parse(text))


@pytest.mark.parametrize("cut", CUTS)
def test_each_test_is_there(cut: Cut) -> None:
    file, _, name = cut.test.partition("::")
    assert name in FUNCTIONS[Path(file).stem]


def test_the_page_lists_the_same_guarantees() -> None:
    """Every guarantee, in order; next to it only tests that exist, among them those that fail without its lines."""
    rows = rows_of_the_page()
    assert list(rows) == [guarantee.text for guarantee in GUARANTEES]
    every = set().union(*FUNCTIONS.values())
    for guarantee, named in zip(GUARANTEES, rows.values(), strict=True):
        for name in named:
            module, _, function = name.rpartition(".")
            assert function in (FUNCTIONS[module] if module else every), guarantee.text
        assert {cut.test.partition("::")[2] for cut in guarantee.cuts} <= set(named), guarantee.text


@pytest.mark.parametrize("text", ["a = 1\n", "if b:\n    a = 2\n    a = 2\n"])
def test_a_line_that_is_not_there_once_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"x\.py has [02] times: a = 2"):
        Cut("t", "x.py", "a = 2").apply(text)


def test_lines_go_and_others_take_their_place() -> None:
    """With the indentation of the first."""
    text = "if b:\n    try:\n        a()\n    finally:\n        c()\n"
    assert (
        Cut("t", "x.py", "finally:\nc()", "except E:\n    raise").apply(text).endswith("    except E:\n        raise\n")
    )
    assert Cut("t", "x.py", "try:\na()\nfinally:", "if d:").apply(text) == "if b:\n    if d:\n        c()\n"


def test_every_guarantee_has_a_line() -> None:
    assert len(GUARANTEES) == 16
    assert all(guarantee.cuts for guarantee in GUARANTEES)
