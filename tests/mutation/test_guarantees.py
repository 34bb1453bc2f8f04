"""The table of promises is true to the code, the tests and the README; python -m tests.mutation.guarantees tries it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.mutation.guarantees import PROMISES, ROOT, Cut

CUTS = [pytest.param(cut, id=f"{n}-{m}") for n, promise in enumerate(PROMISES, 1) for m, cut in enumerate(promise.cuts)]
FUNCTIONS = {
    path.stem: {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    for path in (ROOT / "tests").rglob("*.py")
}


def rows_of_the_readme() -> dict[str, list[str]]:
    """Each promise with the tests that stand beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("### Reliability\n")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {words: re.findall(r"`([^`]+)`", tests) for words, tests in cells[1:]}


@pytest.mark.parametrize("cut", CUTS)
def test_each_line_is_there_once(cut: Cut) -> None:
    """And without it the file is still Python that says something else: its test is to fail, not the import."""
    text = (ROOT / cut.file).read_text(encoding="utf-8")
    without = ast.dump(ast.parse(cut.apply(text)))
    assert without != ast.dump(ast.parse(text))


@pytest.mark.parametrize("cut", CUTS)
def test_each_test_is_there(cut: Cut) -> None:
    file, _, name = cut.test.partition("::")
    assert name in FUNCTIONS[Path(file).stem]


def test_the_readme_promises_the_same() -> None:
    """Every promise, in order; beside it only tests that there are, among them those that fail without its lines."""
    rows = rows_of_the_readme()
    assert list(rows) == [promise.words for promise in PROMISES]
    every = set().union(*FUNCTIONS.values())
    for promise, named in zip(PROMISES, rows.values(), strict=True):
        for name in named:
            module, _, function = name.rpartition(".")
            assert function in (FUNCTIONS[module] if module else every), promise.words
        assert {cut.test.partition("::")[2] for cut in promise.cuts} <= set(named), promise.words


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


def test_every_promise_has_a_line() -> None:
    assert len(PROMISES) == 16
    assert all(promise.cuts for promise in PROMISES)
