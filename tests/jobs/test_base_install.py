"""What works without the extras, and what the command imports when it starts; each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.extras import PIPELINES
from spin.estimator import SpinClassifier
from spin_neurons import install_command
from tests.support.repository import ROOT

HEAVY = ("torch", "ray", "transformers", "mlflow", "sklearn", "numba", "pyarrow", "scipy", "pandas", "numpy")
"""libraries that take long to import"""
HIDDEN = (*PIPELINES, "sqlalchemy", "requests", "aiohttp", "aiobotocore", "botocore")
"""packages of the extra `pipelines`, with some of their dependencies"""
RUN = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

hidden = set(sys.argv.pop(1).split(","))
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
from jobs.cli import main
main()
"""
"""Python code that runs `spin` with some packages hidden from import"""


def run_without_pipelines(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `spin` with some words in a process without the packages of the extra `pipelines`."""
    command = [sys.executable, "-c", RUN, ",".join(HIDDEN), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def list_heavy_imports(code: str, *words: str) -> set[str]:
    """Return the heavy libraries that a process has imported after running some code."""
    code = (
        f"import atexit, json, sys\natexit.register(lambda: print(json.dumps([*sys.modules]), file=sys.stderr))\n{code}"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(HEAVY) & set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.slow
def test_help_and_init_import_no_heavy_library(tmp_path: Path) -> None:
    """Therefore `spin --help`, `spin init` and `import spin` take less than a second."""
    main = "from jobs.cli import main\nmain()"
    assert list_heavy_imports("import spin") == set()
    assert list_heavy_imports(main, "--help") == set()
    assert list_heavy_imports(main, "classify", "--help") == set()
    assert list_heavy_imports(main, "nights", "list", "--help") == set()
    assert list_heavy_imports(main, "init", str(tmp_path / "settings.yaml")) == set()
    assert list_heavy_imports("from spin import Settings, SpinError, load_settings") == set()
    assert list_heavy_imports("import numpy") == {"numpy"}


def test_every_public_name_can_be_imported_from_spin() -> None:
    """Names outside `spin.__all__` raise AttributeError."""
    import spin

    for name in spin.__all__:
        assert getattr(spin, name).__name__ == name
        assert name in dir(spin)
    assert spin.SpinClassifier is SpinClassifier
    with pytest.raises(AttributeError, match="module 'spin' has no attribute 'Nonsense'"):
        spin.Nonsense  # noqa: B018


def test_packages_that_commands_check_for_are_in_the_extra_alone() -> None:
    """Each is in the extra `pipelines`, and none is a base dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}

    assert set(PIPELINES) <= names(project["optional-dependencies"]["pipelines"])
    assert not set(PIPELINES) & names(project["dependencies"])


@pytest.mark.parametrize(
    "words",
    [
        ["run", "none.yaml"],
        ["classify", "none.yaml", "--input", "a", "--output", "b"],
        ["nights", "list", "--output", "none"],
        ["plan", "none.yaml", "--documents", "10"],
        ["promote", "none.yaml"],
        ["purge", "none.yaml"],
        ["submit", "run", "none.yaml"],
        ["jobs"],
        ["quickstart"],
        ["export", "models:/tiny/1", "graph", "--format", "onnx"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_without_its_extra_prints_how_to_install_it(words: list[str]) -> None:
    """It ends with status 2 and one line on standard error."""
    done = run_without_pipelines(*words)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: spin {words[0]}")
    assert line.endswith(f"not installed here; run: {install_command('pipelines')}")
    assert done.stdout == ""


def test_help_and_init_need_no_extra(tmp_path: Path) -> None:
    for words in (
        ["--help"],
        ["classify", "--help"],
        ["nights", "vacuum", "--help"],
        ["init", str(tmp_path / "settings.yaml")],
    ):
        done = run_without_pipelines(*words)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "settings.yaml").is_file()


@pytest.mark.slow
def test_a_saved_classifier_is_explained_and_exported_without_the_extra(saved: Path, tmp_path: Path) -> None:
    """The commands take the folder in place of a settings file. `explain` also writes its page."""
    page, graph = tmp_path / "page.html", tmp_path / "graph"
    done = run_without_pipelines("explain", str(saved), "--text", "the crew was lovely and warm", "--html", str(page))
    assert done.returncode == 0
    assert re.fullmatch(r"engine: (torch|openvino), \w+\n", done.stderr)
    assert "the crew was lovely and warm" in done.stdout
    assert done.stdout.startswith("good: ")
    assert "lovely" in page.read_text("utf-8")
    done = run_without_pipelines("export", str(saved), str(graph), "--format", "onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert (graph / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "option"), [(["--model", "models:/a/1"], "--model models:/a/1"), (["--set", "a=1"], "--set a=1")]
)
def test_options_for_registered_models_are_refused_with_a_saved_classifier(
    saved: Path, words: list[str], option: str
) -> None:
    """They are not ignored: `--model` chooses a version and `--set` changes its settings."""
    done = run_without_pipelines("explain", str(saved), "--text", "fine", *words)
    assert done.returncode == 2
    assert f"{option} is for registered models" in done.stderr


@pytest.mark.slow
def test_the_shell_completes_commands_and_options() -> None:
    """The requests are those of bash when Tab is pressed after these words."""
    for typed, expected in (
        ("spin cl", "classify"),
        ("spin classify --ou", "--output"),
        ("spin nights re", "restore"),
        ("spin nights vacuum --dry", "--dry-run"),
    ):
        environment = {"_SPIN_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
        code = "import sys; sys.argv[0] = 'spin'\nfrom jobs.cli import main\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=os.environ | environment,
        )
        assert done.stdout.split() == [expected], done.stderr
