"""Removes each line that a guarantee of docs/reliability.md depends on, and shows that a test fails without it.

A comment above such a line names the test:

    # guarded by test_name
    lease.check()

The check removes the line, with its block if it begins one. Where removal alone would break nothing, the comment goes
on with the code to put in place of the line:

    # guarded by test_name; broken by:
    #   if published:
    if published or taken:

`python -m tests.mutation.guarantees [TEST...]` checks all guards, or those of the given tests. It copies the repository
and runs the tests there, which must pass. Then it removes one line after another, and each time its test must fail. The
exit status is 1 if a test passes without its line. Some tests need the S3 server, and some that of
MLflow: run the command within infra/s3/run.sh and infra/mlflow/run.sh.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import Phase, settings

from tests.support.repository import ROOT

TEST_TIMEOUT = 300
"""seconds for one test; without some of the lines a test would wait forever"""
_MARK = re.compile(r"(?P<indent> *)# guarded by (?P<test>test_\w+)(?P<replaced>; broken by:)?")


@dataclass(frozen=True)
class Guard:
    """A line that a guarantee depends on."""

    file: str
    row: int
    """of the line, from 0"""
    test: str
    """name of the test that must fail without the line"""
    replacement: str | None
    """code to put in place of the line; None: nothing, in place of the line and its block"""

    def break_code(self, text: str) -> str:
        """The text of the file without the line. Raises ValueError if it is not valid Python, or is the same code."""
        rows = text.splitlines()
        line = rows[self.row]
        indent = line[: len(line) - len(line.lstrip())]
        if self.replacement is not None:
            choices = [[*rows[: self.row], indent + self.replacement, *rows[self.row + 1 :]]]
        else:
            after = self.row + 1
            while after < len(rows) and (not rows[after] or rows[after].startswith(indent + " ")):
                after += 1
            choices = [[*rows[: self.row], *instead, *rows[after:]] for instead in ([indent + "pass"], [])]
        for choice in choices:
            broken = "\n".join(choice) + "\n"
            if _is_other_code(broken, text):
                return broken
        raise ValueError(f"{self.file}:{self.row + 1}: expected other Python code without the line: {line.strip()}")


def _is_other_code(broken: str, text: str) -> bool:
    try:
        return ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))
    except SyntaxError:
        return False


def read_guards(file: str, text: str) -> list[Guard]:
    """The guards that comments in the text of a file name."""
    guards, rows = [], text.splitlines()
    for row, line in enumerate(rows):
        if mark := _MARK.fullmatch(line):
            replacement = rows[row + 1].strip().removeprefix("#   ") if mark["replaced"] else None
            guarded = next(after for after in range(row + 1, len(rows)) if not rows[after].lstrip().startswith("#"))
            guards.append(Guard(file, guarded, mark["test"], replacement))
    return guards


def find_sources() -> list[Path]:
    """The modules of the product, sorted by path."""
    return sorted(path for package in ("spin", "pipelines", "jobs") for path in (ROOT / package).rglob("*.py"))


def find_guards() -> list[Guard]:
    """All guards of the product, by file and row."""
    return [
        guard for path in find_sources() for guard in read_guards(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    ]


def find_tests() -> dict[str, list[str]]:
    """The files that hold each test function, relative to the repository, by the name of the function."""
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                files.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    return files


def read_guarantee_table() -> dict[str, list[str]]:
    """Each guarantee in the table of docs/reliability.md with the tests in its row."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {text: re.findall(r"`([^`]+)`", tests) for text, tests in cells[1:]}


def copy_repository(to: Path) -> None:
    """Copy the files of the repository as they are, committed or not."""
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(list_files, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run_python(copy: Path, *args: str) -> tuple[int, str]:
    """Run Python in the copy, with the packages of the copy; returns exit status and output."""
    env = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",  # a file changed within a second may keep its size and modification time
        "COLUMNS": "300",  # on narrower lines pytest omits why a test failed
    }
    done = subprocess.run([sys.executable, *args], cwd=copy, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def pytest_configure() -> None:
    """Tell Hypothesis not to shrink failing examples. The runs of pytest below load this module as a plugin."""
    settings.register_profile("guarantees", phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("guarantees")


def run_tests(copy: Path, *tests: str) -> tuple[int, str]:
    """Run tests in the copy up to the first failure, with a fixed Hypothesis seed; returns exit status and output."""
    plugins = ["-p", "no:cacheprovider", "-p", "tests.mutation.guarantees"]
    options = ["-x", "-q", "-rfs", "--tb=line", "--hypothesis-seed=0", f"--timeout={TEST_TIMEOUT}"]
    return run_python(copy, "-m", "pytest", *plugins, *options, *tests)


def check_imports(copy: Path) -> None:
    """Raise SystemExit unless Python imports the packages of the copy, even if this repository is installed."""
    code = "import spin, pipelines, jobs, tests; print(*(m.__path__[0] for m in (spin, pipelines, jobs, tests)))"
    status, output = run_python(copy, "-c", code)
    if status or output.split() != [str(copy / name) for name in ("spin", "pipelines", "jobs", "tests")]:
        raise SystemExit(f"the copy's packages are not imported: {output}")


def find_failure_without(copy: Path, guard: Guard, test: str) -> str | None:
    """Return the message with which the test fails without the line, or None if it does not fail."""
    path = copy / guard.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(guard.break_code(whole), encoding="utf-8")
    try:
        status, output = run_tests(copy, test)
    finally:
        path.write_text(whole, encoding="utf-8")
    failed = re.search(r"^FAILED .*? - (.*)", output, re.MULTILINE)
    if status == 1 and failed:  # an error in a fixture or at import does not count
        return failed[1][:100]
    if status != 0:
        print(output[-1000:])
    return None


def run(names: Sequence[str]) -> int:
    """Check the guards of tests by name, or all of them; returns the exit status."""
    files = find_tests()
    guards = [guard for guard in find_guards() if not names or guard.test in names]
    nodes = {guard.test: f"{files[guard.test][0]}::{guard.test}" for guard in guards}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        copy_repository(copy)
        check_imports(copy)
        status, output = run_tests(copy, *nodes.values())
        if status or "SKIPPED" in output:
            print(f"with all lines in place the tests fail or are skipped:\n{output[-2000:]}")
            return 1
        missed = 0
        for guard in guards:
            failure = find_failure_without(copy, guard, nodes[guard.test])
            missed += failure is None
            print(f"{guard.file}:{guard.row + 1} {nodes[guard.test]}: {failure or 'DOES NOT FAIL'}", flush=True)
    print(f"{len(guards) - missed} of {len(guards)} removed lines make a test fail")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
