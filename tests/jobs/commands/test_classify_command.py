"""`spin classify`: what its options ask of a night, and what it prints of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import jobs.commands.classify_command
from jobs.commands import job_commands
from jobs.commands.classify_command import print_night
from pipelines.nightly import classify, command_result
from pipelines.nightly.command_result import CommandResult, NightFailure
from pipelines.nightly.report import precision_check
from pipelines.nightly.report.night_report import FileCounts, NightReport, QuarantinedFile
from pipelines.nightly.steps.counts import NightCounts
from pipelines.service_errors import BadRowsError, DriftError, HeldError, UnavailableError
from spin.errors import SpinError
from spin.monitor.drift import Drift, NeuronShift
from spin.settings import BackboneSettings, MlflowSettings
from tests.support.command_line import CallSpin
from tests.support.fake_nights import FakeRegistry

COUNTS = NightCounts(
    rows=12,
    predicted=10,
    abstained=0,
    unlabelled=0,
    dead=2,
    tokens=90,
    truncated=0,
    truncated_share=0.0,
    reasons={"null_text": 2},
    labels={"good": 7, "bad": 3},
    depths={"3": 10},
)
REPORT = NightReport(
    fingerprint="f" * 64,
    date="2026-03-01",
    run="2026-03-01-topics-000002",
    output="out",
    model="topics",
    model_version="7",
    token=2,
    incremental=True,
    classes=("bad", "good"),
    seconds=1.5,
    drift=(),
    counts=COUNTS,
    files=FileCounts(taken=3, skipped=0, quarantined=0),
    quarantined=(),
    shards=1,
    slowest=(),
)


@pytest.fixture
def settings(tmp_path: Path) -> str:
    """A settings file."""
    path = tmp_path / "settings.yaml"
    tree = {
        "backbone": {"model": "m"},
        "data": {"train": "t.csv"},
        "store": str(tmp_path / "store"),
        "mlflow": {"model": "tweets"},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


@pytest.fixture
def classified(settings: str, call_spin: CallSpin) -> CallSpin:
    """A function that runs `spin classify` with further options; returns its status, its output and its errors."""
    return partial(call_spin, "classify", settings, "--input", "in", "--output", "out")


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[[CommandResult], list[str]]:
    """A function that lets nights of several models end with a result; returns the options that name the models."""

    def end_with(result: CommandResult) -> list[str]:
        monkeypatch.setattr(classify, "classify_nights", lambda *_, **__: result)
        monkeypatch.setattr(jobs.commands.classify_command, "open_registry", lambda _, name: FakeRegistry(name))
        return [word for name in result.models for word in ("--model", f"models:/{name}@champion")]

    return end_with


@pytest.fixture
def asked(classified: CallSpin, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that runs `spin classify` with further options and returns what it asks of the pipelines."""
    calls: list[dict[str, Any]] = []

    def classify_nights(loaded: Any, requested: Any, source: str, output: str, **options: Any) -> CommandResult:
        models = [(each.name, each.model, each.shadow) for each in requested]
        calls.append({"source": source, "output": output, "models": models, **options})
        return CommandResult(("topics",), (REPORT,), ())

    monkeypatch.setattr(classify, "classify_nights", classify_nights)
    monkeypatch.setattr(jobs.commands.classify_command, "open_registry", lambda _, name: FakeRegistry(name))

    def run(*words: str) -> dict[str, Any]:
        assert classified(*words)[0] == 0
        return calls.pop()

    return run


def test_a_night_without_options_takes_all_of_its_input(asked: Callable[..., dict[str, Any]]) -> None:
    assert asked() == {
        "source": "in",
        "output": "out",
        "models": [("tweets", None, None)],
        "night": None,
        "incremental": False,
        "restart": False,
    }


def test_incremental_restart_and_date_are_combined(asked: Callable[..., dict[str, Any]]) -> None:
    night = asked("--incremental", "--restart", "--date", "2026-03-01")
    assert (night["incremental"], night["restart"], night["night"]) == (True, True, "2026-03-01")
    assert asked("--restart")["incremental"] is False
    assert asked("--incremental")["restart"] is False


def test_several_models_are_asked_for_by_name_and_a_shadow_belongs_to_one(asked: Callable[..., dict[str, Any]]) -> None:
    """The registered name of the shadow says whose it is; for a single model an alias is enough."""
    several = ("--model", "models:/topics@champion", "--model", "models:/tweets/3")
    expected = [
        ("topics", "models:/topics@champion", None),
        ("tweets", "models:/tweets/3", "models:/tweets@challenger"),
    ]
    assert asked(*several, "--shadow", "models:/tweets@challenger")["models"] == expected
    assert asked("--shadow", "challenger")["models"] == [("tweets", None, "challenger")]
    assert asked(*several[:2])["models"] == [("topics", "models:/topics@champion", None)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                ("--shadow", shadow, "--model", "models:/topics@champion", "--model", "models:/tweets/3"),
                "several models classify, topics, tweets; expected models:/NAME@ALIAS",
            )
            for shadow in ("challenger", "models:/other@champion")
        ),
        (("--since", "out"), "No such option: --since"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(
    options: tuple[str, ...], message: str, classified: CallSpin
) -> None:
    """A shadow of none of several models, and an option that was there once."""
    status, _, error = classified(*options)
    assert status == 2
    [line] = error.splitlines()
    assert message in line


def test_nights_are_printed_and_the_status_is_the_highest(
    classified: CallSpin, give: Callable[[CommandResult], list[str]]
) -> None:
    """Of three models one is published; the line names both others."""
    failures = (NightFailure("a", UnavailableError("no answer")), NightFailure("b", BadRowsError("too many")))
    status, out, error = classified(*give(CommandResult(("a", "b", "topics"), (REPORT,), failures)))
    assert status == UnavailableError.status
    assert out.startswith("classify  10 of 12 documents by topics version 7: ")
    assert error.splitlines() == ["error: model a: no answer; model b: too many"]


@pytest.mark.parametrize("error", [BadRowsError("too many"), HeldError("taken over"), UnavailableError("no answer")])
def test_drift_does_not_hide_that_another_model_is_not_published(
    error: SpinError,
    classified: CallSpin,
    give: Callable[[CommandResult], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its status is the highest number, and yet the one that says that its night is published."""

    def drifted(report: NightReport) -> None:
        raise DriftError("psi 0.9")

    models = give(CommandResult(("b", "topics"), (REPORT,), (NightFailure("b", error),)))
    monkeypatch.setattr(command_result, "check_drift", drifted)
    status, _, line = classified(*models, "--set", "classify.fail_on_drift=true")
    assert status == error.status
    assert line.splitlines() == [f"error: model b: {error}; model topics: psi 0.9"]


def test_a_model_is_checked_with_its_own_backbone(
    classified: CallSpin, give: Callable[[CommandResult], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--check` loads the model again; the settings of the command name the backbone of the others."""
    checked: list[str] = []

    def check_precision(given: Any, *_: Any) -> tuple[int, int]:
        checked.append(given.backbone.model)
        return 1, 1

    own = BackboneSettings(model="own")
    models = give(CommandResult(("b", "topics"), (replace(REPORT, model="b"), REPORT), (), {"topics": own}))
    monkeypatch.setattr(precision_check, "check_precision", check_precision)
    assert classified("--check", "5", *models)[0] == 0
    assert checked == ["m", "own"]


def test_the_name_of_a_job_names_its_models() -> None:
    """A night of other models in the same output is another job; without `--model` it is that of the settings."""
    locations, named = {"--input": "/in", "--output": "/out"}, MlflowSettings(model="tweets")
    names = [
        job_commands._job_name(
            job_commands._Submitted("classify", "s.yaml", [], False, None, locations, models), named, "2026-03-01"
        )
        for models in ((), ("models:/tweets/3",), ("models:/topics@champion",), ("models:/tweets/3", "models:/a/1"))
    ]
    assert [name.rpartition("-")[0] for name in names] == [
        f"classify-{models}-2026-03-01" for models in ("tweets", "tweets", "topics", "a-tweets")
    ]


def test_a_night_is_printed_with_its_counts_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    files = FileCounts(taken=3, skipped=1_200, quarantined=2)
    bad = (QuarantinedFile("b.csv", "b.csv: an open quote"),)
    print_night(replace(REPORT, files=files, quarantined=bad), "out/")
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "classify  10 of 12 documents by version 7: bad 3, good 7",
        "1,200 files skipped that other nights have taken",
        "quarantined: b.csv: an open quote",
        f"quarantined: 2 files in all; `spin nights show {REPORT.run} --output out/ --json` lists them",
        "2 dead letters: null_text 2",
        f"predictions in out/predictions, the report in out/_runs/{REPORT.run}/report.html",
    ]


def test_the_exits_of_a_night_are_printed_shallow_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Documents that their words alone decide come first, and have no block."""
    print_night(replace(REPORT, counts=replace(COUNTS, depths={"10": 1_200, "-1": 5, "2": 3})), "out")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "exits: 5 by words, 3 after block 2, 1,200 after block 10" in lines


def test_the_causes_of_drift_are_printed_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Characters of an id that would control the terminal are replaced."""
    moved = (
        NeuronShift("ffn.01.max", 17, 0.9, ("d1", "\x1b[31md2\n"), ("storm", "late")),
        NeuronShift("words", 0, -0.5, words=("storm",)),
        NeuronShift("ffn.02.max", 3, 0.4),
    )
    drift = Drift("neurons", 0.81, 0.13, (2, 98), (), moved, drifted=True)
    print_night(replace(REPORT, drift=(drift,)), "out")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = lines.index("drift: neurons stability index 0.81, above 0.13")
    assert lines[at + 1 : at + 3] == [
        "ffn.01.max[17] moved by +0.90 standard deviations: documents d1, ␛[31md2␊; words storm, late",
        "words[0] moved by -0.50 standard deviations: words storm",
    ]
    assert "ffn.02" not in "".join(lines)


def test_an_empty_night_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    empty = replace(COUNTS, rows=0, predicted=0, dead=0, reasons={}, labels={}, depths={})
    print_night(replace(REPORT, counts=empty, files=FileCounts(0, 0, 0)), "out")
    assert capsys.readouterr().out.splitlines()[0] == "classify  0 of 0 documents by version 7"
