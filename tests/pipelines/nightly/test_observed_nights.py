"""Traces and lineage of nights: complete, resumed, overtaken, failed and shared ones, and broken collectors."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.nightly import classify_pass, finish, night_driver
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.vacuum import models_of
from pipelines.service_errors import BadRowsError, HeldError, UnavailableError
from pipelines.telemetry import observed_runs
from pipelines.telemetry.json_lines import JsonFormatter
from pipelines.telemetry.traces import Traces
from spin_neurons import install_command
from tests.support.collectors import ReceivedSpan, Receiver, receiving
from tests.support.fake_nights import DATE, FakeNights, FakeRegistry, FakeStep, before_call, make_rows
from tests.support.repository import ROOT

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OPENLINEAGE_URL")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A server to which all traces and events go."""
    with receiving() as receiver:
        send_to(receiver.url, monkeypatch)
        yield receiver


def send_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let traces and events be sent to a server."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, url)


def fail() -> None:
    raise UnavailableError("s3://user:secret@store does not answer")


def only(spans: list[ReceivedSpan]) -> ReceivedSpan:
    """The one span."""
    [span] = spans
    return span


def summary(receiver: Receiver) -> list[tuple[str, str]]:
    """The job and the type of each event."""
    return [(event["job"]["name"], event["eventType"]) for event in receiver.events]


def statistics(event: dict[str, Any], side: str) -> dict[str, dict[str, int]]:
    """The statistics of the datasets of an event by the last part of their names."""
    facets = {"inputs": ("inputFacets", "inputStatistics"), "outputs": ("outputFacets", "outputStatistics")}
    outer, inner = facets[side]
    found = {dataset["name"].rpartition("/")[2]: dataset.get(outer, {}).get(inner, {}) for dataset in event[side]}
    return {
        name: {key: value for key, value in facet.items() if not key.startswith("_")} for name, facet in found.items()
    }


def warnings_of_spin(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings that SPIN has logged."""
    records = [record for record in caplog.records if record.name.startswith("pipelines.")]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def count_root_records(nights: FakeNights) -> int:
    """The number of records of traces in an output."""
    return sum("traceparent" in key for key in nights.out.list(RUNS))


# one process


def test_a_night_is_one_trace(local_nights: FakeNights, receiver: Receiver) -> None:
    """Its root names run, model, version and date; stages are below it, and below them a span per shard."""
    local_nights.write("a.jsonl", make_rows(*"abcdefg", "a"))
    report = local_nights.run()
    root = only(receiver.named("night"))
    assert root.attributes == {
        "spin.run": report.run,
        "spin.model": "tiny",
        "spin.model_version": "1",
        "spin.night": DATE,
        "spin.process": 1,
        "spin.output": local_nights.out.uri,
        "spin.input.rows": 8,
        "spin.input.files": 1,
        "spin.output.predictions.rows": 7,
        "spin.output.dead_letters.rows": 1,
        "spin.output.inputs.rows": 1,
        "spin.output.disagreements.rows": 0,
    }
    assert (root.parent, root.links, root.failed) == ("", (), False)
    assert {span.trace for span in receiver.spans} == {root.trace}
    assert receiver.services == {"spin"}
    stages = [span for span in receiver.spans if span.parent == root.id]
    assert [span.name for span in stages] == ["intake", "repeats", "classify", "report", "publish"]
    assert all(root.start <= span.start <= span.end <= root.end for span in stages)
    classify = stages[2]
    shards = [span for span in receiver.named("shard") if span.parent == classify.id]
    assert [(s.attributes["spin.shard"], s.attributes["spin.rows"]) for s in shards] == [("000000", 4), ("000001", 4)]
    assert sum(shard.attributes["spin.dead_letters"] for shard in shards) == 1
    assert all({"spin.tries", "spin.tokens"} <= shard.attributes.keys() for shard in shards)


def test_a_night_starts_and_completes_in_lineage(local_nights: FakeNights, receiver: Receiver) -> None:
    """The input folder, the model's version and the four tables, with their numbers when it is complete."""
    local_nights.write("a.jsonl", make_rows(*"abcdefg", "a"))
    local_nights.write("b.jsonl", make_rows("x"))
    report = local_nights.run()
    start, complete = receiver.events
    assert [start["eventType"], complete["eventType"]] == ["START", "COMPLETE"]
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert complete["job"]["namespace"] == "spin"
    assert complete["job"]["name"] == "night.tiny"
    facets = complete["run"]["facets"]
    assert facets["nominalTime"]["nominalStartTime"] == f"{DATE}T00:00:00Z"
    own = {key: value for key, value in facets["spin_run"].items() if not key.startswith("_")}
    assert own == {"run": report.run, "model": "tiny", "process": 1, "modelVersion": "1", "night": DATE}
    schema = "https://pypi.org/project/spin-neurons#SpinRunFacet-1-0-0"
    assert facets["spin_run"]["_schemaURL"] == schema
    assert "errorMessage" not in facets
    folder, model = complete["inputs"]
    assert (folder["namespace"], folder["name"]) == ("file", local_nights.source)
    assert (model["namespace"], model["name"], model["facets"]["version"]["datasetVersion"]) == ("mlflow", "tiny", "1")
    assert "rowCount" not in statistics(start, "inputs")["data"]
    read = statistics(complete, "inputs")["data"]
    assert (read["rowCount"], read["fileCount"]) == (9, 2)
    written = statistics(complete, "outputs")
    assert {name: figures["rowCount"] for name, figures in written.items()} == {
        "predictions": 8,
        "dead_letters": 1,
        "inputs": 2,
        "disagreements": 0,
    }
    assert written["predictions"]["size"] > 0
    assert {output["facets"]["storage"]["storageLayer"] for output in complete["outputs"]} == {"delta"}


def test_log_lines_name_the_run_and_the_span(local_nights: FakeNights, receiver: Receiver) -> None:
    """A line of the classify stage holds the ids of its span, which finds the place in the trace."""
    lines: list[dict[str, str]] = []
    handler = logging.Handler()
    handler.setFormatter(JsonFormatter())
    handler.emit = lambda record: lines.append(json.loads(handler.format(record)))  # type: ignore[method-assign]
    logger = logging.getLogger("pipelines.test")
    logger.addHandler(handler)
    local_nights.write("a.jsonl", make_rows(*"abcd"))
    try:
        with before_call(FakeStep, "_find_dead", lambda: logger.warning("here")):
            report = local_nights.run()
    finally:
        logger.removeHandler(handler)
    [line], classify = lines, only(receiver.named("classify"))
    assert (line["run"], line["trace_id"], line["span_id"]) == (report.run, classify.trace, classify.id)


# several processes


def test_a_resumed_night_is_linked_to_its_earlier_process(local_nights: FakeNights, receiver: Receiver) -> None:
    """It is the same run: the second trace has a link to the first root span, and only what it computed itself."""
    local_nights.write("a.jsonl", make_rows(*"abcdefgh"))
    with before_call(finish, "write_records", fail), pytest.raises(UnavailableError):
        local_nights.run()
    report = local_nights.run()
    first, second = receiver.named("night")
    assert {first.attributes["spin.run"], second.attributes["spin.run"]} == {report.run}
    assert (first.attributes["spin.process"], second.attributes["spin.process"]) == (1, 2)
    assert first.failed
    assert first.message == "s3://***@store does not answer"
    assert (first.attributes["error.type"], first.attributes["spin.exit_status"]) == ("UnavailableError", 5)
    assert not second.failed
    assert first.links == ()
    assert second.links == ((first.trace, first.id),)
    assert first.trace != second.trace
    shards = {span.trace for span in receiver.named("shard")}
    assert shards == {first.trace}
    assert only([span for span in receiver.named("report") if span.trace == first.trace]).failed
    assert summary(receiver) == [("night.tiny", state) for state in ("START", "FAIL", "START", "COMPLETE")]
    _, failed, started, _ = receiver.events
    message = "UnavailableError: s3://***@store does not answer (exit status 5)"
    assert failed["run"]["facets"]["errorMessage"]["message"] == message
    assert "stackTrace" not in failed["run"]["facets"]["errorMessage"]
    assert failed["run"]["runId"] != started["run"]["runId"]
    assert failed["run"]["facets"]["parent"]["run"] == started["run"]["facets"]["parent"]["run"]


def test_an_overtaken_process_ends_with_an_error(local_nights: FakeNights, receiver: Receiver) -> None:
    """Its successor goes on with the run, and later processes are linked to that one."""
    local_nights.write("a.jsonl", make_rows(*"abcd"))

    def overtake() -> None:
        local_nights.expire_lease()
        local_nights.run()

    with before_call(finish, "write_records", overtake), pytest.raises(HeldError):
        local_nights.run()
    local_nights.run()  # finds the night published
    first, second, third = sorted(receiver.named("night"), key=lambda span: span.attributes["spin.process"])
    assert [span.failed for span in (first, second, third)] == [True, False, False]
    assert (first.attributes["error.type"], first.attributes["spin.exit_status"]) == ("HeldError", 3)
    assert only([s for s in receiver.named("report") if s.trace == first.trace]).failed
    assert second.links == ((first.trace, first.id),)
    assert third.links == ((second.trace, second.id),)
    states = {event["run"]["runId"]: event["eventType"] for event in receiver.events}
    numbers = {event["run"]["runId"]: event["run"]["facets"]["spin_run"]["process"] for event in receiver.events}
    assert {numbers[run]: state for run, state in states.items()} == {1: "ABORT", 2: "COMPLETE", 3: "COMPLETE"}


def test_a_process_that_wakes_late_hides_no_trace_of_its_successor(
    local_nights: FakeNights, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is suspended before it stores its own: the next process is linked to the successor all the same."""
    local_nights.write("a.jsonl", make_rows(*"abcd"))

    def overtake() -> None:
        local_nights.expire_lease()
        local_nights.run()

    with before_call(Traces, "run_started", overtake), pytest.raises(HeldError):
        local_nights.run()
    local_nights.run()
    by_number = {span.attributes["spin.process"]: span for span in receiver.named("night")}
    assert by_number[1].failed
    assert by_number[3].links == ((by_number[2].trace, by_number[2].id),)


def test_a_failed_night_says_why(local_nights: FakeNights, receiver: Receiver) -> None:
    """The status of the span has the message, and the event FAIL too; nothing is written to the tables."""
    local_nights.write("a.jsonl", make_rows(*"aaab"))
    with pytest.raises(BadRowsError) as error:
        local_nights.run(limits={"max_dead_fraction": 0})
    root = only(receiver.named("night"))
    assert (root.failed, root.message, root.attributes["spin.exit_status"]) == (True, str(error.value), 4)
    start, end = receiver.events
    assert end["eventType"] == "FAIL"
    assert end["run"]["facets"]["errorMessage"]["message"] == f"BadRowsError: {error.value} (exit status 4)"
    assert statistics(end, "outputs")["predictions"] == {}
    assert start["run"]["runId"] == end["run"]["runId"]


def test_an_error_that_is_not_spins_own_shows_no_text(local_nights: FakeNights, receiver: Receiver) -> None:
    """The message of such an error may hold a document."""
    local_nights.write("a.jsonl", make_rows(*"abcd"))

    def break_down() -> None:
        raise ValueError("the whole text of a document")

    with before_call(classify_pass, "take_in", break_down), pytest.raises(ValueError, match="the whole text"):
        local_nights.run()
    root = only(receiver.named("night"))
    assert (root.message, root.attributes["error.type"]) == ("ValueError; the log has its message", "ValueError")
    assert all(b"the whole text" not in body for _, body in receiver.bodies)


def test_a_stopped_process_is_aborted(local_nights: FakeNights, receiver: Receiver) -> None:
    """SIGTERM and SIGINT end a command by what is no Exception; its spans and events end all the same."""
    local_nights.write("a.jsonl", make_rows(*"abcd"))

    def stop() -> None:
        raise KeyboardInterrupt

    with before_call(FakeStep, "_find_dead", stop), pytest.raises(KeyboardInterrupt):
        local_nights.run()
    assert only(receiver.named("night")).attributes["error.type"] == "KeyboardInterrupt"
    assert only(receiver.named("classify")).failed
    assert [state for _, state in summary(receiver)] == ["START", "ABORT"]


# several models


def test_models_that_share_a_pass_have_a_trace_each_and_one_of_the_pass(
    local_nights: FakeNights, receiver: Receiver
) -> None:
    """The spans of the pass are linked to those of the runs, which hold what is done for each model by itself."""
    local_nights.write("a.jsonl", make_rows(*"abcd"))
    result = local_nights.run_several(FakeRegistry("a"), FakeRegistry("b"))
    runs = [report.run for report in result.reports]
    roots = receiver.named("night")
    shared = only(receiver.named("pass"))
    assert {root.attributes["spin.run"] for root in roots} == set(runs)
    assert len({shared.trace, *(root.trace for root in roots)}) == 3
    assert set(shared.links) == {(root.trace, root.id) for root in roots}
    assert shared.attributes == {"spin.runs": runs, "spin.models": ["a", "b"]}
    assert all(root.links == ((shared.trace, shared.id),) for root in roots)
    for stage in ("intake", "repeats", "classify"):
        assert only(receiver.named(stage)).parent == shared.id
    for stage in ("report", "publish"):
        assert {span.parent for span in receiver.named(stage)} == {root.id for root in roots}
    classified = [span for span in receiver.named("shard") if span.parent == only(receiver.named("classify")).id]
    assert [span.attributes["spin.tokens"] for span in classified] == [0]
    assert sorted(summary(receiver)) == [(f"night.{m}", s) for m in "ab" for s in ("COMPLETE", "START")]


def test_a_model_that_fails_ends_before_the_others(local_nights: FakeNights, receiver: Receiver) -> None:
    """Its own trace and event have the error; those of the other model have none."""
    local_nights.write("a.jsonl", make_rows(*"abcd"))
    with before_call(night_driver, "publish_night", fail):
        result = local_nights.run_several(FakeRegistry("a"), FakeRegistry("b"))
    [failure] = result.failures
    failed = {root.attributes["spin.model"]: root.failed for root in receiver.named("night")}
    assert failed == {"a": True, "b": False}
    assert failure.model == "a"
    assert not only(receiver.named("pass")).failed
    ends = [each for each in summary(receiver) if each[1] != "START"]
    assert ends == [("night.a", "FAIL"), ("night.b", "COMPLETE")]


# broken collectors


@pytest.mark.parametrize("kind", ["hanging", "failing", "absent"])
def test_a_night_does_not_depend_on_its_collectors(
    kind: str, local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is published, and a warning says what was not delivered. The server that hangs answers only after it."""
    monkeypatch.setattr(observed_runs, "FLUSH_SECONDS", 0.2)
    local_nights.write("a.jsonl", make_rows(*"abcd"))
    with receiving(500, hanging=kind == "hanging") as receiver:
        send_to("http://127.0.0.1:9" if kind == "absent" else receiver.url, monkeypatch)
        local_nights.run()
        if kind != "absent":
            assert receiver.arrived.wait(10)
    assert local_nights.ids() == {DATE: ["a", "b", "c", "d"]}
    messages = warnings_of_spin(caplog)
    assert any("events were not delivered" in message for message in messages)
    assert any("spans were not delivered to the collector at http://127.0.0.1" in message for message in messages)
    assert len(messages) <= 4  # two each: the first failure, and what is lost at the end


@pytest.mark.parametrize("method", ["run_started", "work_started", "work_ended", "shard_ended", "run_ended"])
def test_an_observer_that_fails_is_left_out(
    method: str,
    local_nights: FakeNights,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The night is published, lineage is complete, and one warning names the observer."""

    def break_down(*args: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Traces, method, break_down)
    local_nights.write("a.jsonl", make_rows(*"abcd"))
    local_nights.run()
    assert local_nights.ids() == {DATE: ["a", "b", "c", "d"]}
    assert [state for _, state in summary(receiver)] == ["START", "COMPLETE"]
    assert warnings_of_spin(caplog) == ["traces: stopped after an error (RuntimeError); the work goes on"]


def test_a_missing_package_is_named(
    local_nights: FakeNights,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning for each of the two says how to install it; the night is published."""
    for ours, package in (
        ("traces", "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
        ("lineage", "openlineage.client"),
    ):
        monkeypatch.delitem(sys.modules, f"pipelines.telemetry.{ours}", raising=False)
        monkeypatch.setitem(sys.modules, package, None)
    local_nights.write("a.jsonl", make_rows(*"abcd"))
    local_nights.run()
    assert local_nights.ids() == {DATE: ["a", "b", "c", "d"]}
    messages = warnings_of_spin(caplog)
    assert len(messages) == 2
    assert install_command("otel") in messages[0]
    assert install_command("lineage") in messages[1]
    assert receiver.bodies == []


# switched off

QUIET = """
import os, sys
import pytest
from tests.support.fake_nights import NEXT, FakeNights, make_rows, use_fake_step
with pytest.MonkeyPatch.context() as patch:
    use_fake_step(patch)
    nights = FakeNights(sys.argv[1])
    nights.write("a.jsonl", make_rows(*"abcd"))
    nights.run()
    os.environ |= dict.fromkeys(("OTEL_EXPORTER_OTLP_ENDPOINT", "OPENLINEAGE_URL"), sys.argv[2])
    os.environ |= {"OTEL_SDK_DISABLED": "true", "OPENLINEAGE_DISABLED": "true"}
    nights.run(NEXT)
packages = ("opentelemetry", "openlineage", "pipelines.telemetry.traces", "pipelines.telemetry.lineage")
print([name for name in sys.modules if name.startswith(packages)])
print([key for key in nights.out.list("_runs") if "traceparent" in key])
"""


@pytest.mark.slow
def test_nothing_happens_unless_it_is_asked_for(receiver: Receiver, tmp_path: Any) -> None:
    """No package is imported, no request is sent and no object is written, whether unset or switched off."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{':'.join(sys.path)}"}
    command = [sys.executable, "-c", QUIET, str(tmp_path / "store"), receiver.url]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]
    assert receiver.bodies == []


@pytest.mark.slow
def test_mlflow_is_told_what_a_night_has_read(local_nights: FakeNights) -> None:
    """The folder, the files and the documents, and a digest of the list of files; whether it is observed or not."""
    local_nights.write("a.jsonl", make_rows(*"abcd"))
    local_nights.run()
    local_nights.run("2026-03-02")
    local_nights.write("b.jsonl", make_rows("x"))
    local_nights.run("2026-03-03")
    first, second, third = (data for _, data in local_nights.registry.logged)
    assert (first.name, first.source) == ("tiny", local_nights.source)
    assert first.profile == {"documents": 4, "files": 1}
    assert third.profile == {"documents": 5, "files": 2}
    assert first.digest == second.digest != third.digest


def test_the_records_of_traces_are_in_no_ones_way(local_nights: FakeNights, receiver: Receiver) -> None:
    """A process writes one small object per run, and what lists runs and models takes no notice of it."""
    local_nights.write("a.jsonl", make_rows(*"abcd"))
    local_nights.run()
    local_nights.run(restart=True)
    assert count_root_records(local_nights) == 2
    assert models_of(local_nights.tables) == ["tiny"]
    assert len(local_nights.out.list_names(RUNS)) == 2
    assert local_nights.ids() == {DATE: ["a", "b", "c", "d"]}
