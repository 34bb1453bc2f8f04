"""Log records on standard error: one line each, JSON under `--log json`, tracebacks only under SPIN_LOG=debug."""

from __future__ import annotations

import json
import logging

import pytest

from jobs.log_setup import configure_logging
from pipelines.telemetry.current_runs import CurrentRun, within_span, working_on
from spin.errors import UserError
from tests.support.command_line import CallSpin


def log_all() -> None:
    """Log one record per level in one package, the warning with a traceback, and two records of another library."""
    log = logging.getLogger("pipelines.nightly.anything")
    log.debug("a detail")
    log.info("a step")
    try:
        raise ValueError("broken")
    except ValueError:
        log.warning("could not\nread %s", "a.csv", exc_info=True)
    logging.getLogger("other").warning("of a library")
    logging.getLogger("other").info("not shown")


def test_warnings_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """They have no tracebacks, and appear once even if logging is configured twice."""
    configure_logging()
    configure_logging()
    log_all()
    assert capsys.readouterr().err.splitlines() == ["warning: could not read a.csv", "warning: of a library"]


def test_a_lower_level_shows_more(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """SPIN_LOG=info adds steps, debug adds details and tracebacks; other values are refused."""
    monkeypatch.setenv("SPIN_LOG", "info")
    configure_logging()
    log_all()
    assert capsys.readouterr().err.splitlines()[0] == "info: a step"
    monkeypatch.setenv("SPIN_LOG", "DEBUG")
    configure_logging()
    log_all()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["debug: a detail", "info: a step", "warning: could not read a.csv"]
    assert "ValueError: broken" in lines
    monkeypatch.setenv("SPIN_LOG", "loud")
    with pytest.raises(UserError, match="SPIN_LOG is 'loud'; expected one of warning, info, debug"):
        configure_logging()


def test_names_cannot_act_on_a_terminal_by_a_log_record(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in a message nor in a traceback, nor in JSON, from which the name is read as it is."""
    name = "a\x1b[2J\x9b2J\u202e\nerror: forged.csv"
    monkeypatch.setenv("SPIN_LOG", "debug")
    for as_json in (False, True):
        configure_logging(as_json=as_json)
        try:
            raise ValueError(name)
        except ValueError:
            logging.getLogger("pipelines.anything").warning("%s is cut", name, exc_info=True)
        printed = capsys.readouterr().err
        assert not {"\x1b", "\x9b", "\u202e"} & set(printed)
        if as_json:
            assert json.loads(printed)["message"] == f"{name} is cut"
        else:
            assert printed.splitlines()[0] == "warning: a␛[2J�2J� error: forged.csv is cut"


def test_json_is_one_object_per_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Each object has the time, level, logger, message and traceback."""
    configure_logging(as_json=True)
    log_all()
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert "ValueError: broken" in first.pop("traceback")
    assert first == {"level": "warning", "logger": "pipelines.nightly.anything", "message": "could not\nread a.csv"}
    assert second["logger"] == "other"


def test_the_engine_is_named_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    """As a line without a level, and as fields of a JSON line."""
    for as_json in (False, True):
        configure_logging(as_json=as_json)
        logging.getLogger("spin.engine").info("engine: torch", extra={"fields": {"engine": "torch"}})
    line, entry = capsys.readouterr().err.splitlines()
    assert line == "engine: torch"
    assert json.loads(entry)["engine"] == "torch"


def test_json_names_the_runs_and_the_span_at_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Models that share a pass are joined by a comma; a line outside of a run has neither entry."""
    configure_logging(as_json=True)
    log = logging.getLogger("pipelines.nightly.anything")
    with working_on([CurrentRun("run-a", "a"), CurrentRun("run-b", "b")]):
        log.warning("in a pass")
        with within_span({"trace_id": "0a" * 16, "span_id": "0b" * 8}):
            log.warning("in a span")
    log.warning("outside")
    named = [
        [json.loads(line).get(name) for name in ("run", "trace_id", "span_id")]
        for line in capsys.readouterr().err.splitlines()
    ]
    assert named == [["run-a,run-b", None, None], ["run-a,run-b", "0a" * 16, "0b" * 8], [None, None, None]]


def test_a_user_error_prints_its_traceback_at_debug_level_only(
    call_spin: CallSpin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the error is one line; under SPIN_LOG=debug the traceback comes first."""
    for level, has_traceback in (("warning", False), ("debug", True)):
        monkeypatch.setenv("SPIN_LOG", level)
        status, _, error = call_spin("run", "/none.yaml")
        assert status == 2
        assert ("Traceback" in error, len(error.splitlines()) == 1) == (has_traceback, not has_traceback)
        assert error.splitlines()[-1].startswith("error: no settings file at /none.yaml")
