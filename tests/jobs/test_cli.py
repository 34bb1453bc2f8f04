"""The `spin` command as a user types it, on a tiny project."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli, terminal
from spin.settings import METRICS, Settings, load_settings, parse_settings
from tests.support.command_line import CallSpin


@pytest.fixture
def run_spin(call_spin: CallSpin) -> Any:
    """A function that runs `spin` with some words and returns its output; fails on an error or a warning."""

    def run(*words: str) -> str:
        status, out, error = call_spin(*words)
        assert status == 0, error
        # a slow machine reports progress
        assert all(line.startswith(("progress: ", "engine: ")) for line in error.splitlines()), error
        return out

    return run


def test_the_version_is_that_of_the_installed_package(run_spin: Any) -> None:
    assert run_spin("--version") == f"{importlib.metadata.version('spin-neurons')}\n"


@pytest.mark.slow
def test_threads_of_torch_wait_asleep() -> None:
    """Its OpenMP library, which reads the environment when it loads, tells what it found there."""
    code = "from jobs.cli import configure_libraries; configure_libraries(); import torch"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr


def greet(name: str) -> None:
    """Greet somebody."""
    terminal.say(f"hello, {name}")


def test_a_command_of_another_file_takes_one_line_of_registration(
    run_spin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help lists it with the first line of its docstring, and it runs."""
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    cli.add_command(cli.USE, greet, needs_pipelines=False)
    assert re.search(r"greet +Greet somebody\.", run_spin("--help"))
    assert run_spin("greet", "[bold]Ada :cat:") == "hello, [bold]Ada :cat:\n"


def test_init_writes_all_settings_with_their_defaults(run_spin: Any, tmp_path: Path) -> None:
    """The file is valid as written. With every setting uncommented it holds all settings, still at their defaults."""
    path = tmp_path / "settings.yaml"
    assert f"spin run {path}" in run_spin("init", str(path))
    text = path.read_text("utf-8")
    written = load_settings(path)
    uncommented = yaml.safe_load(re.sub(r"^( *)#(?! |-|$)", r"\1", text, flags=re.MULTILINE))
    assert parse_settings(uncommented) == written
    defaults = Settings.model_validate(
        {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s", "mlflow": {"model": "first"}}
    )
    assert written.model_dump(exclude={"backbone", "data", "store"}) == defaults.model_dump(
        exclude={"backbone", "data", "store"}
    )
    assert collect_keys(uncommented) == collect_keys(written.model_dump(mode="json"))
    assert not (set(collect_keys(yaml.safe_load(text))) & {"revision", "penalties"})  # defaults are commented out


def collect_keys(tree: Any) -> list[str]:
    """Return the names of all settings of a mapping and of its sections, in alphabetical order."""
    return sorted(
        k for name, value in tree.items() for k in [name, *(collect_keys(value) if isinstance(value, dict) else [])]
    )


@pytest.mark.slow
def test_init_writes_an_example_that_can_be_run(run_spin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled reviews, a batch to classify, and settings for both; the command to go on with comes last."""
    monkeypatch.chdir(tmp_path)
    assert run_spin("init", "--example").splitlines()[-1] == "next: spin run settings.yaml"
    settings = load_settings("settings.yaml")
    rows = [json.loads(line) for line in Path(settings.data.train).read_text("utf-8").splitlines()]
    assert len(rows) == len({row["text"] for row in rows}) == len({row["id"] for row in rows}) == 200
    assert sorted({row["label"] for row in rows}) == ["bad", "good"]
    batch = [json.loads(line) for line in (tmp_path / "inbox/2026-11-24/batch.jsonl").read_text("utf-8").splitlines()]
    assert {row["text"] for row in batch}.isdisjoint(row["text"] for row in rows)
    assert (settings.mlflow.model, settings.ray.workers) == ("reviews", 0)


def test_init_writes_paths_that_yaml_would_read_otherwise(run_spin: Any, tmp_path: Path) -> None:
    """A # or a colon would end a plain value."""
    path = tmp_path / "runs #1: of 'é'" / "settings.yaml"
    path.parent.mkdir()
    assert shlex.split(run_spin("init", str(path), "--example").splitlines()[-1])[-1] == str(path)
    settings = load_settings(str(path))
    assert Path(settings.data.train).is_file()
    assert Path(settings.store.uri).is_relative_to(path.parent)


@pytest.mark.slow
def test_init_writes_a_schema_with_which_editors_check_the_settings(run_spin: Any, tmp_path: Path) -> None:
    """The first line names the JSON Schema file, which accepts the settings, refuses mistakes and has descriptions."""
    import jsonschema  # takes two seconds, because it compiles a grammar of addresses

    run_spin("init", str(tmp_path / "settings.yaml"))
    text = (tmp_path / "settings.yaml").read_text("utf-8")
    assert text.splitlines()[0] == "# yaml-language-server: $schema=spin.schema.json"
    schema = json.loads((tmp_path / "spin.schema.json").read_text("utf-8"))
    assert json.loads(run_spin("init", "--schema")) == schema
    checker = jsonschema.Draft202012Validator(schema)
    checker.check_schema(schema)
    tree = yaml.safe_load(text)
    assert list(checker.iter_errors(tree)) == []
    for change, message in (
        ({"metric": "auc"}, "'auc' is not one of"),
        ({"poolings": ["mode"]}, "is not valid under any"),
        ({"probe": {"penalty": 3}}, "'penalty' was unexpected"),
        ({"backbone": None}, "None is not of type 'object'"),
        ({"search": {"etas": [1.5]}}, "1.5 is greater than the maximum"),
        ({"store": 3}, "3 is not of type 'object', 'string'"),
        ({"store": {"retention": 30}}, "'uri' is a required property"),
    ):
        assert [error.message for error in checker.iter_errors({**tree, **change}) if message in error.message]
    for store in ("runs", {"uri": "runs"}, {"uri": "runs", "retention": 30}):
        assert list(checker.iter_errors({**tree, "store": store})) == []
    assert schema["properties"]["metric"]["enum"] == list(METRICS)
    assert all(
        field["description"]
        for kind in schema["$defs"].values()
        for field in kind["properties"].values()
        if "$ref" not in field
    )


def test_init_overwrites_no_file(tmp_path: Path, call_spin: CallSpin) -> None:
    """It ends with status 2 if the file exists, or if neither a name nor --schema is given."""
    path = tmp_path / "settings.yaml"
    path.write_text("existing", encoding="utf-8")
    for words, message in (([str(path)], "exists already"), ([], "expected the name of a settings file to write")):
        status, _, error = call_spin("init", *words)
        assert (status, message in error) == (2, True)
    assert path.read_text("utf-8") == "existing"


def test_help_in_a_pipe_has_headings_without_boxes(run_spin: Any) -> None:
    printed = run_spin("--help")
    assert "Use a model" in printed
    assert "quickstart" in printed
    assert not set(printed) & set("╭│─╮")
