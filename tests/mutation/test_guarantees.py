"""The list of guarantees matches the code, the tests and docs/reliability.md; guarantees.py removes the lines."""

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


def read_guarantee_table() -> dict[str, list[str]]:
    """Return each guarantee in the table of docs/reliability.md with the tests in its row."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {text: re.findall(r"`([^`]+)`", tests) for text, tests in cells[1:]}


@pytest.mark.parametrize("cut", CUTS)
def test_the_lines_of_a_cut_occur_once_and_their_removal_leaves_valid_python(cut: Cut) -> None:
    """The code differs without the lines, but can be imported: it is the test that must fail, not the import."""
    text = (ROOT / cut.file).read_text(encoding="utf-8")
    without = ast.dump(ast.parse(cut.apply(text)))
    assert without != ast.dump(ast.parse(text))


@pytest.mark.parametrize("cut", CUTS)
def test_the_test_of_a_cut_exists(cut: Cut) -> None:
    file, _, name = cut.test.partition("::")
    assert name in FUNCTIONS[Path(file).stem]


def test_the_reliability_page_lists_the_same_guarantees() -> None:
    """The page has all guarantees in order. Their tests exist, and include those that fail without the lines."""
    rows = read_guarantee_table()
    assert list(rows) == [guarantee.text for guarantee in GUARANTEES]
    all_tests = set().union(*FUNCTIONS.values())
    for guarantee, named in zip(GUARANTEES, rows.values(), strict=True):
        for name in named:
            module, _, function = name.rpartition(".")
            assert function in (FUNCTIONS[module] if module else all_tests), guarantee.text
        assert {cut.test.partition("::")[2] for cut in guarantee.cuts} <= set(named), guarantee.text


@pytest.mark.parametrize("text", ["a = 1\n", "if b:\n    a = 2\n    a = 2\n"])
def test_a_cut_whose_lines_do_not_occur_once_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"x\.py has [02] times: a = 2"):
        Cut("t", "x.py", "a = 2").apply(text)


def test_lines_are_removed_or_replaced_with_the_same_indentation() -> None:
    text = "if b:\n    try:\n        a()\n    finally:\n        c()\n"
    assert (
        Cut("t", "x.py", "finally:\nc()", "except E:\n    raise").apply(text).endswith("    except E:\n        raise\n")
    )
    assert Cut("t", "x.py", "try:\na()\nfinally:", "if d:").apply(text) == "if b:\n    if d:\n        c()\n"


def test_every_guarantee_has_a_cut() -> None:
    assert len(GUARANTEES) == 26
    assert all(guarantee.cuts for guarantee in GUARANTEES)
