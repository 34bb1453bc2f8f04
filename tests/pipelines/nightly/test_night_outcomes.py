"""What a Pushgateway and a file hold of nights over histories of successes, failures, redos and sleeping drivers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.signals import Stopped
from pipelines.nightly import classify, finish_nights
from pipelines.nightly.tables.night_records import lease_model
from pipelines.service_errors import BadRowsError, HeldError, UnavailableError
from pipelines.telemetry.gauge_export import GaugeValue, export_gauges
from spin.errors import UserError
from spin.settings import MetricsSettings
from tests.support.fake_nights import DATE, LAST, NEXT, FakeNights, FakeRegistry, before_call
from tests.support.leases import expire_lease
from tests.support.monitoring import Pushgateway, read_samples, run_pushgateway, unpack_programs

Figures = dict[str, dict[tuple[tuple[str, str], ...], float]]
ROWS = [{"id": f"d{n}", "text": f"good film {n}"} for n in range(9)]
TINY = (("model", "tiny"),)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Pushgateway]:
    with run_pushgateway(unpack_programs()) as gateway:
        yield gateway


@pytest.fixture(params=["pushgateway", "textfile"])
def exported(request: pytest.FixtureRequest, local_nights: FakeNights, tmp_path: Path) -> Callable[[], Figures]:
    """Lets nights export their figures; returns a function that reads what is there of the test's nights."""
    if request.param == "pushgateway":
        gateway: Pushgateway = request.getfixturevalue("gateway")
        test = request.node.name
        local_nights.metrics = {"pushgateway": gateway.url, "labels": {"test": test}}
        return lambda: _of_test(gateway.read(), test)
    local_nights.metrics = {"textfile": str(tmp_path)}
    return lambda: _read_files(tmp_path)


def _of_test(figures: Figures, test: str) -> Figures:
    """The figures with the label of a test, without it."""
    own = {
        name: {
            tuple(p for p in labels if p[0] != "test"): v for labels, v in values.items() if ("test", test) in labels
        }
        for name, values in figures.items()
    }
    return {name: values for name, values in own.items() if values}


def _read_files(folder: Path) -> Figures:
    figures: Figures = {}
    for file in folder.glob("*.prom"):
        for name, values in read_samples(file.read_text(), "spin_night_").items():
            figures.setdefault(name, {}).update(values)
    return figures


def status_of(figures: Figures, model: str = "tiny") -> float:
    return figures["spin_night_status"][(("model", model),)]


def figures_of_night(figures: Figures) -> Figures:
    """The figures that are of the newest night, not of the last command."""
    return {
        name: values
        for name, values in figures.items()
        if name not in ("spin_night_status", "spin_night_last_run_timestamp_seconds")
    }


def test_a_night_exports_its_figures(local_nights: FakeNights, exported: Callable[[], Figures]) -> None:
    local_nights.write("a.jsonl", [*ROWS, {"id": "x", "text": ""}])
    report = local_nights.run()
    figures = exported()
    assert status_of(figures) == 0
    assert figures["spin_night_documents"] == {TINY: report.counts.rows}
    assert figures["spin_night_dead_letters"] == {(("model", "tiny"), ("reason", "empty_text")): 1}
    assert figures["spin_night_date_timestamp_seconds"] == {TINY: 1772323200}
    assert list(figures["spin_night_info"]) == [(("model", "tiny"), ("run", report.run), ("version", "1"))]


def test_a_later_night_replaces_all_figures(local_nights: FakeNights, exported: Callable[[], Figures]) -> None:
    """The reason of the dead letters of the night before is gone with them."""
    local_nights.write("a.jsonl", [*ROWS, {"id": "x", "text": ""}])
    local_nights.run()
    local_nights.write("a.jsonl", ROWS)
    local_nights.run(NEXT)
    assert exported()["spin_night_dead_letters"] == {(("model", "tiny"), ("reason", "none")): 0}


def test_a_failed_night_leaves_the_figures_of_the_newest(
    local_nights: FakeNights, exported: Callable[[], Figures]
) -> None:
    local_nights.write("a.jsonl", ROWS)
    local_nights.run()
    before = figures_of_night(exported())
    local_nights.write("a.jsonl", [*ROWS, {"id": "x", "text": ""}])
    with pytest.raises(BadRowsError):
        local_nights.run(NEXT, limits={"max_dead_fraction": 0})
    assert status_of(exported()) == 4
    assert figures_of_night(exported()) == before
    local_nights.run(NEXT)
    assert status_of(exported()) == 0
    assert figures_of_night(exported()) != before


def test_a_night_of_an_earlier_date_leaves_the_figures_of_the_newest(
    local_nights: FakeNights, exported: Callable[[], Figures]
) -> None:
    local_nights.write("a.jsonl", ROWS)
    local_nights.run(NEXT)
    before = figures_of_night(exported())
    local_nights.write("a.jsonl", ROWS[:5])
    local_nights.run(DATE)
    assert figures_of_night(exported()) == before
    assert status_of(exported()) == 0


def test_a_redo_of_the_newest_night_replaces_its_figures(
    local_nights: FakeNights, exported: Callable[[], Figures]
) -> None:
    local_nights.write("a.jsonl", ROWS)
    local_nights.run()
    local_nights.write("a.jsonl", ROWS[:5])
    local_nights.run(restart=True)
    assert exported()["spin_night_documents"] == {TINY: 5}


@pytest.mark.parametrize(
    ("error", "status"),
    [(UnavailableError("away"), 5), (Stopped(signal.SIGTERM), 143), (KeyboardInterrupt(), 130), (ValueError("bug"), 1)],
)
def test_whatever_ends_a_night_its_status_is_exported(
    local_nights: FakeNights,
    exported: Callable[[], Figures],
    error: BaseException,
    status: int,
) -> None:
    local_nights.write("a.jsonl", ROWS)

    def fail() -> None:
        raise error

    with before_call(finish_nights, "classify_pass", fail), pytest.raises(type(error)):
        local_nights.run()
    assert status_of(exported()) == status
    assert figures_of_night(exported()) == {}


def test_an_error_before_a_night_begins_is_exported(local_nights: FakeNights, exported: Callable[[], Figures]) -> None:
    with pytest.raises(UserError):
        local_nights.run("2026-13-01")
    assert status_of(exported()) == 2


def test_a_command_that_finds_the_output_held_exports_nothing(
    local_nights: FakeNights, exported: Callable[[], Figures]
) -> None:
    """Its status would hide that of the run that works."""
    local_nights.write("a.jsonl", ROWS)
    local_nights.run()
    before = exported()
    with lease_model(local_nights.out, "tiny"), pytest.raises(HeldError):
        local_nights.run(NEXT)
    assert exported() == before


@pytest.mark.parametrize("place", ["classify_pass", "finish_night"])
def test_a_driver_that_slept_while_a_later_night_was_published_exports_nothing(
    local_nights: FakeNights, exported: Callable[[], Figures], place: str
) -> None:
    """What is there is of the later night."""
    local_nights.write("a.jsonl", ROWS)
    after: list[Figures] = []

    def sleep() -> None:
        expire_lease(_lease_store(local_nights))
        local_nights.write("a.jsonl", ROWS[:5])
        local_nights.run(NEXT)
        after.append(exported())

    with before_call(finish_nights, place, sleep), pytest.raises(HeldError):
        local_nights.run(DATE)
    assert exported() == after[0]
    assert exported()["spin_night_documents"] == {TINY: 5}


def _lease_store(nights: FakeNights) -> Any:
    return lease_model(nights.out, "tiny").store


@pytest.mark.parametrize("place", [(finish_nights, "show_reports"), (classify, "export_outcomes")])
def test_a_driver_that_slept_after_it_published_exports_nothing(
    local_nights: FakeNights, exported: Callable[[], Figures], place: tuple[Any, str]
) -> None:
    """Its night is published and the command succeeds, but a later night is the newest now."""
    local_nights.write("a.jsonl", ROWS)
    after: list[Figures] = []

    def sleep() -> None:
        expire_lease(_lease_store(local_nights))
        local_nights.run(LAST)
        after.append(exported())

    with before_call(*place, sleep):
        local_nights.run(DATE)
    assert exported() == after[0]


def test_each_model_has_its_own_status(local_nights: FakeNights, exported: Callable[[], Figures]) -> None:
    """The figures of a model that fails do not hide those of one that succeeds."""
    a, b = FakeRegistry("a"), FakeRegistry("b", backbone="1")
    local_nights.write("a.jsonl", ROWS)
    with pytest.MonkeyPatch.context() as patch:
        original = finish_nights.classify_pass

        def fail_for_b(shared: Any, waiting: Any) -> Any:
            if "b" in waiting:
                raise UnavailableError("away")
            return original(shared, waiting)

        patch.setattr(finish_nights, "classify_pass", fail_for_b)
        local_nights.run_several(a, b)
    assert (status_of(exported(), "a"), status_of(exported(), "b")) == (0, 5)
    assert exported()["spin_night_documents"] == {(("model", "a"),): 9}


def test_what_cannot_be_written_is_a_warning(
    local_nights: FakeNights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local_nights.metrics = {"pushgateway": "http://127.0.0.1:9", "textfile": str(tmp_path / "missing")}
    local_nights.write("a.jsonl", ROWS)
    assert local_nights.run().counts.rows == 9
    assert [record.levelname for record in caplog.records if "metrics." in record.getMessage()] == ["WARNING"] * 2


def test_figures_that_a_newer_night_lacks_are_gone(local_nights: FakeNights, exported: Callable[[], Figures]) -> None:
    """An estimate of the night before is none of a night without one."""
    settings = MetricsSettings.model_validate(local_nights.metrics)
    estimate = GaugeValue("spin_night_estimated_accuracy", "estimate", 0.9, {"bound": "value"})
    export_gauges(settings, "tiny", [GaugeValue("spin_night_status", "status", 0), estimate], replace=True)
    assert exported()[estimate.name] == {(("bound", "value"), ("model", "tiny")): 0.9}
    local_nights.write("a.jsonl", ROWS)
    local_nights.run()
    assert estimate.name not in exported()


def test_a_damaged_file_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spin_night_tiny.prom").write_text("{ this is no exposition")
    settings = MetricsSettings(textfile=str(tmp_path))
    export_gauges(settings, "tiny", [GaugeValue("spin_night_status", "status", 0)], replace=False)
    assert "metrics.textfile" in caplog.text
    export_gauges(settings, "tiny", [GaugeValue("spin_night_status", "status", 0)], replace=True)
    assert _read_files(tmp_path) == {"spin_night_status": {TINY: 0}}


def test_no_two_models_or_projects_share_a_file(tmp_path: Path) -> None:
    names = ("a b", "a_b", "a\nb", "ä_b", "b")
    for number, (name, labels) in enumerate([*((name, {}) for name in names), ("b", {"x": "a"}), ("b", {"y": "a"})]):
        settings = MetricsSettings(textfile=str(tmp_path), labels=labels)
        export_gauges(settings, name, [GaugeValue("spin_night_status", "status", number)], replace=True)
    assert sorted(_read_files(tmp_path)["spin_night_status"].values()) == list(range(7))
