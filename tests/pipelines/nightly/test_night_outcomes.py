"""What a Pushgateway and a file hold of nights over histories of successes, failures, redos and sleeping drivers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from jobs.signals import Stopped
from pipelines.nightly import classify, night_driver, night_outcomes
from pipelines.nightly.night_driver import NightDriver
from pipelines.nightly.tables.night_records import lease_model
from pipelines.service_errors import BadRowsError, HeldError, UnavailableError
from pipelines.telemetry import gauge_export
from pipelines.telemetry.gauge_export import GaugeValue, export_gauges
from spin.errors import UserError
from spin.settings import MetricsSettings
from tests.support.fake_nights import DATE, LAST, NEXT, FakeNights, FakeRegistry, before_call
from tests.support.leases import expire_lease, hold_model
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
    """The figures with the label of a test, without this label and that of the output."""
    own: Figures = {}
    for name, values in figures.items():
        for labels, value in values.items():
            if ("test", test) in labels:
                own.setdefault(name, {})[_without(labels, "test", "output")] = value
    return own


def _without(labels: tuple[tuple[str, str], ...], *names: str) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in labels if pair[0] not in names)


def _read_files(folder: Path) -> Figures:
    figures: Figures = {}
    for file in folder.glob("*.prom"):
        for name, values in read_samples(file.read_text(), "spin_night_").items():
            for labels, value in values.items():
                figures.setdefault(name, {})[_without(labels, "output")] = value
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_night_of_an_earlier_date_leaves_the_figures_of_the_newest(
    local_nights: FakeNights, exported: Callable[[], Figures], fails: bool
) -> None:
    """Whether it succeeds or not, and whatever the newest night has ended with."""
    local_nights.write("a.jsonl", ROWS)
    local_nights.run(NEXT)
    local_nights.write("a.jsonl", [*ROWS, {"id": "x", "text": ""}])
    with pytest.raises(BadRowsError):
        local_nights.run(LAST, limits={"max_dead_fraction": 0})
    before = exported()
    with pytest.raises(BadRowsError) if fails else nullcontext():
        local_nights.run(DATE, limits={"max_dead_fraction": 0 if fails else 1})
    assert figures_of_night(exported()) == figures_of_night(before)
    assert status_of(exported()) == status_of(before) == 4


@pytest.mark.slow
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

    with before_call(night_driver, "classify_pass", fail), pytest.raises(type(error)):
        local_nights.run()
    assert status_of(exported()) == status
    assert figures_of_night(exported()) == {}


def test_an_error_before_a_night_begins_is_exported(local_nights: FakeNights, exported: Callable[[], Figures]) -> None:
    with pytest.raises(UserError):
        local_nights.run(source=local_nights.output)
    assert status_of(exported()) == 2


@pytest.mark.slow
def test_a_command_that_finds_the_output_held_exports_nothing(
    local_nights: FakeNights, exported: Callable[[], Figures]
) -> None:
    """Its status would hide that of the run that works."""
    local_nights.write("a.jsonl", ROWS)
    local_nights.run()
    before = exported()
    with hold_model(local_nights.out, "tiny"), pytest.raises(HeldError):
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
        local_nights.write("a.jsonl", ROWS[:5])
        after.append(overtake(local_nights, exported, NEXT))

    with before_call(night_driver, place, sleep), pytest.raises(HeldError):
        local_nights.run(DATE)
    assert exported() == after[0]
    assert exported()["spin_night_documents"] == {TINY: 5}


def overtake(nights: FakeNights, exported: Callable[[], Figures], date: str) -> Figures:
    """Publish a night while another driver sleeps; return what is exported then."""
    expire_lease(lease_model(nights.out, "tiny").store)
    nights.run(date)
    return exported()


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", [(NightDriver, "_publish"), (night_outcomes, "list_figures"), (night_driver, "show_reports")]
)
def test_a_driver_that_slept_while_or_after_it_published_exports_nothing(
    local_nights: FakeNights, exported: Callable[[], Figures], place: tuple[Any, str]
) -> None:
    """Whether the command then fails or succeeds, the figures are those of the later night."""
    local_nights.write("a.jsonl", ROWS)
    after: list[Figures] = []
    with (
        before_call(*place, lambda: after.append(overtake(local_nights, exported, LAST))),
        suppress(HeldError),
    ):
        local_nights.run(DATE)
    assert exported() == after[0]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ((night_driver, "classify_pass"), Stopped(signal.SIGTERM)),
        ((classify, "check_declared_types"), UnavailableError("its connection was lost meanwhile")),
    ],
)
def test_an_overtaken_driver_that_fails_otherwise_exports_nothing(
    local_nights: FakeNights, exported: Callable[[], Figures], place: tuple[Any, str], error: BaseException
) -> None:
    """It fails when it wakes, after the night of its successor was published."""
    local_nights.write("a.jsonl", ROWS)
    after: list[Figures] = []

    def sleep() -> None:
        after.append(overtake(local_nights, exported, NEXT))
        raise error

    with before_call(*place, sleep), pytest.raises(type(error)):
        local_nights.run(NEXT)
    assert exported() == after[0]


@pytest.mark.slow
def test_a_night_is_exported_before_another_model_ends(
    local_nights: FakeNights, exported: Callable[[], Figures]
) -> None:
    """A command that is killed while it works on another model has left the figures of the first."""
    a, b = FakeRegistry("a"), FakeRegistry("b", backbone="1")
    local_nights.write("a.jsonl", ROWS)
    seen: list[Figures] = []
    original = night_driver.classify_pass

    def look_before_b(shared: Any, waiting: Any) -> Any:
        if "b" in waiting:
            seen.append(exported())
        return original(shared, waiting)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(night_driver, "classify_pass", look_before_b)
        local_nights.run_several(a, b)
    assert seen[0]["spin_night_documents"] == {(("model", "a"),): 9}
    assert set(exported()["spin_night_documents"]) == {(("model", "a"),), (("model", "b"),)}


def test_an_empty_night_has_neither_a_speed_nor_a_coverage(
    local_nights: FakeNights, exported: Callable[[], Figures]
) -> None:
    local_nights.store.write("data/.keep", b"")
    local_nights.run()
    assert exported()["spin_night_documents"] == {TINY: 0}
    assert not {"spin_night_documents_per_second", "spin_night_coverage"} & set(exported())


def test_each_model_has_its_own_status(local_nights: FakeNights, exported: Callable[[], Figures]) -> None:
    """The figures of a model that fails do not hide those of one that succeeds."""
    a, b = FakeRegistry("a"), FakeRegistry("b", backbone="1")
    local_nights.write("a.jsonl", ROWS)
    with pytest.MonkeyPatch.context() as patch:
        original = night_driver.classify_pass

        def fail_for_b(shared: Any, waiting: Any) -> Any:
            if "b" in waiting:
                raise UnavailableError("away")
            return original(shared, waiting)

        patch.setattr(night_driver, "classify_pass", fail_for_b)
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
    export_gauges(
        settings, "tiny", local_nights.output, [GaugeValue("spin_night_status", "status", 0), estimate], replace=True
    )
    assert exported()[estimate.name] == {(("bound", "value"), ("model", "tiny")): 0.9}
    local_nights.write("a.jsonl", ROWS)
    local_nights.run()
    assert estimate.name not in exported()


@pytest.mark.parametrize("address", ["http://pushgateway:PORT", "http://127.0.0.1:9", "nonsense"])
def test_no_address_costs_a_night(local_nights: FakeNights, caplog: pytest.LogCaptureFixture, address: str) -> None:
    local_nights.metrics = {"pushgateway": address}
    local_nights.write("a.jsonl", ROWS)
    assert local_nights.run().counts.rows == 9
    assert "metrics.pushgateway" in caplog.text


def test_a_gateway_that_hangs_is_waited_for_a_limited_time(
    local_nights: FakeNights, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauge_export, "EXPORT_SECONDS", 0.2)
    released = threading.Event()
    monkeypatch.setattr(gauge_export, "_push", lambda *args, **options: released.wait())
    local_nights.metrics = {"pushgateway": "http://127.0.0.1:9"}
    local_nights.write("a.jsonl", ROWS)
    assert local_nights.run().counts.rows == 9
    assert "no answer for 0.2 s" in caplog.text
    released.set()


def test_a_damaged_file_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, status = MetricsSettings(textfile=str(tmp_path)), [GaugeValue("spin_night_status", "status", 0)]
    export_gauges(settings, "tiny", "out", status, replace=True)
    [file] = tmp_path.glob("*.prom")
    file.write_text("{ this is no exposition")
    export_gauges(settings, "tiny", "out", status, replace=False)
    assert "metrics.textfile" in caplog.text
    export_gauges(settings, "tiny", "out", status, replace=True)
    assert _read_files(tmp_path) == {"spin_night_status": {TINY: 0}}


def test_no_two_models_outputs_or_projects_share_a_file(tmp_path: Path) -> None:
    cases: list[tuple[str, str, dict[str, str]]] = [
        *((name, "out", {}) for name in ("a b", "a_b", "a\nb", "ä_b", "b")),
        ("b", "other", {}),
        ("b", "out", {"x": "a"}),
        ("b", "out", {"y": "a"}),
    ]
    for number, (name, output, labels) in enumerate(cases):
        settings = MetricsSettings(textfile=str(tmp_path), labels=labels)
        export_gauges(settings, name, output, [GaugeValue("spin_night_status", "status", number)], replace=True)
    values = [line.rpartition(" ")[2] for file in tmp_path.glob("*.prom") for line in file.read_text().splitlines()]
    assert sorted(float(value) for value in values if value[0].isdigit()) == list(range(8))


@pytest.mark.parametrize("name", ["deploy-env", "1st", "__x", "reason", "model"])
def test_labels_that_prometheus_refuses_or_figures_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no label"):
        MetricsSettings(labels={name: "x"})
