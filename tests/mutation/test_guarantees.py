"""The guards in the product match the tests and docs/reliability.md; guarantees.py removes the guarded lines."""

from __future__ import annotations

import pytest

from tests.mutation.guarantees import (
    ROOT,
    Guard,
    find_guards,
    find_sources,
    find_tests,
    read_guarantee_table,
    read_guards,
)

GUARDS = [pytest.param(guard, id=f"{guard.file}:{guard.row + 1}") for guard in find_guards()]
TESTS = find_tests()


@pytest.mark.slow
@pytest.mark.parametrize("guard", GUARDS)
def test_a_guarded_line_can_be_removed_and_its_test_exists(guard: Guard) -> None:
    """Without the line the code can be imported: it is the test that must fail, not the import."""
    guard.break_code((ROOT / guard.file).read_text(encoding="utf-8"))
    assert len(TESTS[guard.test]) == 1


def test_every_mark_is_read() -> None:
    """A mark at the end of a line of code would guard nothing."""
    marks = sum(path.read_text("utf-8").count("# guarded by ") for path in find_sources())
    assert marks == len(GUARDS)


def test_every_guarantee_has_tests_and_a_guarded_line() -> None:
    guarantees, guarded = read_guarantee_table(), {guard.test for guard in find_guards()}
    assert len(guarantees) == 39
    for text, names in guarantees.items():
        for name in names:
            module, _, function = name.rpartition(".")
            assert any(module in file for file in TESTS[function]), text
        assert guarded & set(names), text
    assert guarded <= set().union(*guarantees.values())


@pytest.mark.parametrize(
    ("marked", "broken"),
    [
        ("# guarded by test_x\na()\nb()\n", "# guarded by test_x\npass\nb()\n"),
        ("f(\n    # guarded by test_x\n    a=1,\n    b=2,\n)\n", "f(\n    # guarded by test_x\n    b=2,\n)\n"),
        ("# guarded by test_x\nif a:\n    b()\n\n    c()\nd()\n", "# guarded by test_x\npass\nd()\n"),
        (
            "# guarded by test_x; broken by:\n#   if a:\nif a and b:\n    c()\n",
            "# guarded by test_x; broken by:\n#   if a:\nif a:\n    c()\n",
        ),
    ],
    ids=["statement", "argument", "block", "replacement"],
)
def test_a_line_is_removed_or_replaced(marked: str, broken: str) -> None:
    [guard] = read_guards("x.py", marked)
    assert guard.test == "test_x"
    assert guard.break_code(marked) == broken


@pytest.mark.parametrize("line", ["a()", "if b:"])
def test_a_replacement_that_is_the_same_or_no_code_is_refused(line: str) -> None:
    text = f"# guarded by test_x; broken by:\n#   {line}\na()\n"
    [guard] = read_guards("x.py", text)
    with pytest.raises(ValueError, match=r"x\.py:3: expected other Python code without the line: a\(\)"):
        guard.break_code(text)
