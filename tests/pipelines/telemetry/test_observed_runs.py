"""Variables and files that switch traces and lineage on, as the SDK and the client read them; errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.telemetry.observed_runs import wants_lineage, wants_traces
from pipelines.telemetry.run_record import WorkError
from spin.errors import SpinError, UserError


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither variables nor files ask for anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OPENLINEAGE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_wanted_by_default() -> None:
    assert (wants_traces(), wants_lineage()) == (False, False)


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_endpoint_switches_traces_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://collector:4318")
    assert wants_traces()
    for variable, value in (("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(variable, value)
            assert not wants_traces()
    monkeypatch.setenv(name, "")
    assert not wants_traces()


@pytest.mark.parametrize("name", ["OPENLINEAGE_URL", "OPENLINEAGE__TRANSPORT__TYPE", "OPENLINEAGE__TRANSPORT"])
def test_a_variable_switches_lineage_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://marquez:5000")
    assert wants_lineage()
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert not wants_lineage()


@pytest.mark.parametrize("place", ["openlineage.yml", "home/.openlineage/openlineage.yml", "elsewhere.yml"])
def test_a_file_of_the_client_switches_lineage_on(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "elsewhere.yml":
        monkeypatch.setenv("OPENLINEAGE_CONFIG", place)
    assert not wants_lineage()
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("transport: {type: noop}")
    assert wants_lineage()


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (UserError("s3://a:b@c is no store"), WorkError("UserError", "s3://***@c is no store", 2, False)),
        (SpinError("two\n lines"), WorkError("SpinError", "two lines", 1, False)),
        (KeyError("a text"), WorkError("KeyError", "KeyError; the log has its message", 1, False)),
        (KeyboardInterrupt(), WorkError("KeyboardInterrupt", "KeyboardInterrupt", 130, True)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_reported_in_one_line(error: BaseException, reported: WorkError) -> None:
    assert WorkError.of(error) == reported
