"""Every exit status other than 0 comes with one line on standard error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

import pipelines.service_errors
import pipelines.storage.delta_table  # noqa: F401  (both define error classes)
from jobs.commands import registry_commands
from spin.errors import SpinError, UserError
from tests.support.command_line import CallSpin

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_spin: CallSpin) -> Run:
    """A function that runs `spin` in a folder with settings; returns its status and the lines of standard error."""
    monkeypatch.chdir(tmp_path)
    tree = {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s"}
    Path("settings.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

    def run(*arguments: str) -> tuple[int, list[str]]:
        status, _, error = call_spin(*arguments)
        return status, error.splitlines()

    return run


@pytest.fixture
def fail(spin: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], tuple[int, list[str]]]:
    """A function that runs a command that raises an error."""

    def run(error: BaseException) -> tuple[int, list[str]]:
        def open_registry(*_: object) -> None:
            raise error

        monkeypatch.setattr(registry_commands, "open_registry", open_registry)
        return spin("models", "settings.yaml")

    return run


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["probe"],
        ["promote"],
        ["rollback"],
        ["history"],
        ["models"],
        ["classify", "--input", "in", "--output", "out"],
        ["forget", "--ids", "ids.txt"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_needs_a_registered_name_has_none_by_default(spin: Run, words: list[str]) -> None:
    """Versions of two projects with one name would pass for each other."""
    Path("ids.txt").write_text("an id\n", encoding="utf-8")
    command, *options = words
    status, [line] = spin(command, "settings.yaml", *options)
    assert status == 2
    assert line.startswith("error: 'mlflow.model' is missing; expected the name under which this project's versions")
    assert not Path("mlflow.db").exists()


STATUSES = {
    "SpinError": 1,
    "WorkerFaultError": 1,
    "HeldError": 3,
    "BadRowsError": 4,
    "UnavailableError": 5,
    "StaleSnapshotError": 5,
    "StalledError": 6,
    "DriftError": 7,
}
"""exit status of each class of errors; of all others it is 2"""


def error_types(kind: type[SpinError] = SpinError) -> list[type[SpinError]]:
    """An error class and all below it that are imported."""
    return [kind, *(each for below in kind.__subclasses__() for each in error_types(below))]


TYPES = [kind for kind in error_types() if kind.__module__.startswith(("spin.", "pipelines."))]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_an_error_of_each_class_ends_a_command_with_its_status_and_one_line(
    kind: type[SpinError], fail: Callable[[BaseException], tuple[int, list[str]]]
) -> None:
    """A message of several lines is one line too."""
    assert fail(kind("what was\nfound")) == (STATUSES.get(kind.__name__, 2), ["error: what was found"])


def test_a_defect_ends_a_command_with_status_1_and_one_line_that_names_the_place(
    fail: Callable[[BaseException], tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SPIN_LOG=debug the traceback precedes it."""
    status, [line] = fail(RuntimeError("no\nsuch thing"))
    assert status == 1
    assert line.startswith("error: RuntimeError: no such thing in jobs/commands/registry_commands.py:")
    assert line.endswith("this is a defect, SPIN_LOG=debug shows more")
    monkeypatch.setenv("SPIN_LOG", "debug")
    status, lines = fail(RuntimeError("no such thing"))
    assert status == 1
    assert "Traceback (most recent call last):" in lines
    assert lines[-1].startswith("error: RuntimeError: no such thing")


def test_an_interrupted_command_ends_with_status_130_and_one_line(
    fail: Callable[[BaseException], tuple[int, list[str]]],
) -> None:
    assert fail(KeyboardInterrupt()) == (130, ["error: interrupted; run it again to resume"])
    assert fail(typer.Abort()) == (1, ["error: stopped at a question"])


def test_a_library_that_ends_the_process_ends_the_command_with_one_line(
    fail: Callable[[BaseException], tuple[int, list[str]]],
) -> None:
    """Ray ends it with 15 where it gets the signal SIGTERM, for which the status is 143."""
    line = "error: a library ended the command {}; run it again to resume"
    assert fail(SystemExit(3)) == (1, [line.format("with status 3")])
    assert fail(SystemExit("the head is gone")) == (1, [line.format("with: the head is gone")])
    assert fail(SystemExit(15)) == (143, ["error: ended by SIGTERM; run it again to resume"])


@pytest.mark.slow
def test_a_reader_of_the_output_that_leaves_ends_the_command_without_a_line() -> None:
    """Such as `head`: Python sees it when it writes."""
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: expected a command; `spin --help` lists them"),
        (["nonsense"], "error: No such command 'nonsense'; see `spin --help`"),
        (["classify", "settings.yaml", "--input", "x"], "error: Missing option '--output'; see `spin classify --help`"),
        (["models", "settings.yaml", "--nonsense"], "error: No such option: --nonsense; see `spin models --help`"),
        (["--log", "xml", "models"], "error: --log xml: expected auto or json"),
        (["submit", "run"], "error: Missing argument 'SETTINGS'; see `spin run --help`"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_status_2_and_one_line(
    spin: Run, arguments: list[str], line: str
) -> None:
    assert spin(*arguments) == (2, [line])


def test_a_token_in_the_user_part_of_a_uri_is_masked_in_the_line(
    fail: Callable[[BaseException], tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the message of a defect, and in the log with its traceback."""
    for error in (UserError, RuntimeError):
        status, [line] = fail(error("http://ghp_hush@host/x and s3://KEY:hu/sh@b do not answer"))
        assert status
        assert "http://***@host/x and s3://***@b do not answer" in line
    monkeypatch.setenv("SPIN_LOG", "debug")
    _, lines = fail(RuntimeError("http://ghp_hush@host/x"))
    assert len(lines) > 2
    assert "hush" not in "\n".join(lines)
