"""Nights of several models in one command: they read together, and each is published, resumed and refused by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.files.shards import Shard
from pipelines.nightly import classify, classify_pass, finish, night_driver
from pipelines.nightly.night_driver import NightDriver
from pipelines.nightly.night_models import RequestedModel
from pipelines.nightly.nights import list_output, models_to_resume
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import RUNS, lease_model
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, INPUTS, PREDICTIONS, read_rows
from pipelines.nightly.tables.vacuum import models_of, plan_vacuum, run_vacuum
from pipelines.service_errors import BadRowsError, HeldError, UnavailableError
from pipelines.storage.shard_log import StepResult
from spin.errors import UserError
from tests.support.fake_nights import (
    DATE,
    LAST,
    NEXT,
    PUBLISHING,
    WAKING,
    FakeNights,
    FakeRegistry,
    FakeStep,
    before_call,
    make_rows,
)
from tests.support.nights import claim_model

A, B, C = FakeRegistry("a-model"), FakeRegistry("b's/model"), FakeRegistry("c-model")
NAMES = (A.name, B.name)


def failed(error: type[Exception] = UnavailableError) -> Callable[[], Any]:
    """A function that raises an error."""

    def fail() -> None:
        raise error("here it ends")

    return fail


def rows_of(nights: FakeNights, model: str, date: str = DATE) -> dict[str, list[dict[str, Any]]]:
    """What readers see of a night of a model, without what its run is called."""
    names = {PREDICTIONS: "id", DEAD_LETTERS: "row", INPUTS: "uri"}
    found = {}
    for table, key in names.items():
        rows = read_rows(nights.tables.open(table), {"date": date, "model": model}).to_pylist()
        found[table] = sorted(rows, key=lambda row: str(row[key]))
    return found


def run_of(nights: FakeNights, model: str, date: str = DATE) -> str:
    """The published run of a model."""
    [run] = [night.run for night in list_nights(nights.tables) if (night.model, night.date) == (model, date)]
    return run


def passes_of(nights: FakeNights) -> list[str]:
    """The folders of passes in an output."""
    return [name for name in nights.out.list_names(RUNS) if name.startswith("pass-")]


# one pass


@pytest.mark.slow
def test_each_model_has_the_night_that_it_has_alone(nights: FakeNights, tmp_path: Any) -> None:
    """Predictions, dead letters and inputs are equal; the documents were read once, and each model has its commit."""
    files = [("a.jsonl", make_rows(*(f"a{n}" for n in range(9)), "a0")), ("b.csv", make_rows("x", "y"))]
    alone = FakeNights(str(tmp_path / "alone"))
    for each in (nights, alone):
        for name, rows in files:
            each.write(name, rows)
        each.write("c.jsonl", b'{"id": "cut')
        each.write("d.jsonl", b"")
    for registry in (A, B):
        alone.run(registry=registry)
    FakeStep.computed.clear()
    result = nights.run_several(B, A)
    result.raise_failures()
    assert result.models == NAMES
    assert FakeStep.computed == sorted(set(FakeStep.computed))
    for model in NAMES:
        ours, own = rows_of(nights, model), rows_of(alone, model)
        assert [row["id"] for row in ours[PREDICTIONS]] == [row["id"] for row in own[PREDICTIONS]]
        for table in (PREDICTIONS, DEAD_LETTERS):
            drop = [{k: v for k, v in row.items() if k != "file"} for row in ours[table]]
            assert drop == [{k: v for k, v in row.items() if k != "file"} for row in own[table]]
        assert [row["status"] for row in ours[INPUTS]] == [row["status"] for row in own[INPUTS]]
    assert [report.counts for report in result.reports] == [alone_report(alone, model) for model in NAMES]
    assert len(passes_of(nights)) == 1
    assert passes_of(alone) == []
    for model in NAMES:
        run = run_of(nights, model)
        assert nights.out.exists(f"{RUNS}/{run}/report.html")
        assert {key.split("/")[1] for key in nights.out.list("predictions") if run in key} == {run}


def alone_report(nights: FakeNights, model: str) -> Any:
    from pipelines.nightly.report.night_report import find_report

    report = find_report(nights.out / f"{RUNS}/{run_of(nights, model)}")
    assert report is not None
    return report.counts


def test_models_with_other_backbones_have_a_pass_of_their_own(local_nights: FakeNights) -> None:
    """Two of three share one; the third classifies alone in the same command."""
    local_nights.write("a.jsonl", make_rows("a", "b"))
    other = FakeRegistry("other", backbone="1")
    spools: list[str] = []

    def list_spools() -> None:
        spools.extend(key for key in local_nights.out.list(RUNS) if "/spool/" in key)

    with before_call(night_driver, "classify_pass", list_spools, once=False):
        local_nights.run_several(A, other, C).raise_failures()
    assert spools == [], "the texts of a pass are deleted before the next begins"
    for model in (A.name, C.name, "other"):
        assert local_nights.ids(model) == {DATE: ["a", "b"]}
    assert len(passes_of(local_nights)) == 1
    assert FakeStep.computed == ["000000", "000000"]
    alone = run_of(local_nights, "other")
    assert local_nights.out.read_json(f"{RUNS}/{alone}/run.json")["pass_name"] == alone


def test_the_same_registered_name_twice_is_refused(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    with pytest.raises(UserError, match=r"a-model is given twice.*--shadow"):
        local_nights.run_several(A, FakeRegistry(A.name))
    assert local_nights.out.list() == []


@pytest.mark.parametrize("models", [(A,), (A, B)], ids=["one model", "two models"])
def test_the_work_of_a_pass_is_deleted_when_its_nights_are_published(
    models: tuple[FakeRegistry, ...], local_nights: FakeNights
) -> None:
    """The spool holds texts. The records stay, and the same command does nothing more."""
    local_nights.write("a.jsonl", make_rows("a", "b", "a"))
    result = local_nights.run_several(*models)
    result.raise_failures()
    left = local_nights.out.list(RUNS)
    names = {key.split("/")[2] for key in left}
    assert names.isdisjoint({"spool", "model", "attempts"})
    assert not [key for key in left if key.endswith(".ids")]
    assert {"run.json", "plan.json", "night.json", "report.json", "report.html"} <= names
    assert ("pass.json" in names) is (len(models) > 1)
    assert local_nights.run_several(*models).reports == result.reports
    assert FakeStep.computed == ["000000"]


# failures


@pytest.mark.slow
def test_a_model_that_fails_its_limits_holds_back_no_other(
    local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names it, and the status is that of the limits; with a higher limit the command publishes it too."""
    monkeypatch.setattr(classify_pass, "ClassifyStep", StrictStep)
    local_nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(6))))
    result = local_nights.run_several(A, B, limits={"max_dead_fraction": 0.1})
    assert [report.model for report in result.reports] == [B.name]
    with pytest.raises(BadRowsError, match=r"^model a-model: 6 of 6 rows cannot be classified \(6 poison\)"):
        result.raise_failures()
    assert (local_nights.ids(A.name), local_nights.ids(B.name)) == ({}, {DATE: [f"a{n}" for n in range(6)]})
    computed, run = list(FakeStep.computed), run_of(local_nights, B.name)
    local_nights.run_several(A, B, limits={"max_dead_fraction": 1}).raise_failures()
    assert FakeStep.computed == computed, "all shards of the pass were there"
    assert run_of(local_nights, B.name) == run
    assert local_nights.ids(A.name) == {DATE: []}
    assert len(rows_of(local_nights, A.name)[DEAD_LETTERS]) == 6


class StrictStep(FakeStep):
    """A step in which the first model computes nothing."""

    def _result(self, number: int, shard: Shard, documents: Any, dead: Any, *computed: Any) -> StepResult[Any]:
        if self.job.models[number].run.model == A.name:
            dead = dead | dict.fromkeys(set(range(len(documents))) - dead.keys(), ("poison", "x"))
        return super()._result(number, shard, documents, dead, *computed)


def test_the_highest_status_of_several_failures_is_that_of_the_command(
    local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    monkeypatch.setattr(classify_pass, "ClassifyStep", StrictStep)
    with before_call(night_driver, "publish_night", failed()):
        result = local_nights.run_several(A, B, limits={"max_dead_fraction": 0.1})
    assert [failure.status for failure in result.failures] == [4, 5]
    with pytest.raises(UnavailableError, match="model b's/model: here it ends; model a-model: 1 of 1 row cannot"):
        result.raise_failures()


def test_nothing_is_computed_if_no_model_can_be_published(local_nights: FakeNights) -> None:
    """A column that is no id ends the pass before anything is classified, and both models name it."""
    local_nights.write("a.jsonl", make_rows(*(["a"] * 20)))
    result = local_nights.run_several(A, B, limits={"max_dead_fraction": 0.1})
    assert [type(failure.error) for failure in result.failures] == [BadRowsError] * 2
    assert FakeStep.computed == []


@pytest.mark.slow
def test_a_pass_that_fails_holds_back_no_other_pass(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    other = FakeRegistry("other", backbone="1")
    with before_call(classify_pass, "_share_models", failed()):
        result = local_nights.run_several(A, B, other)
    assert [failure.model for failure in result.failures] == list(NAMES)
    assert local_nights.ids("other") == {DATE: ["a"]}
    local_nights.run_several(A, B, other).raise_failures()
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a"]}


# resuming


@pytest.mark.slow
def test_the_same_command_resumes_the_pass(nights: FakeNights) -> None:
    """Each shard is computed once, under the run names with which the pass began."""
    nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(12))))
    calls = {"n": 0}

    def fail_at_fourth() -> None:
        calls["n"] += 1
        if calls["n"] == 4:  # the second model in the second shard
            raise UnavailableError("here it ends")

    with before_call(FakeStep, "_find_dead", fail_at_fourth, once=False), pytest.raises(UnavailableError):
        nights.run_several(A, B).raise_failures()
    runs = {run.run for run in list_output(nights.output)}
    [name] = passes_of(nights)
    nights.run_several(B, A).raise_failures()
    assert {run_of(nights, model) for model in NAMES} == runs
    assert passes_of(nights) == [name]
    assert sorted(FakeStep.computed) == ["000000", "000001", "000002"]
    assert nights.ids(A.name) == nights.ids(B.name) == {DATE: sorted(f"a{n}" for n in range(12))}


@pytest.mark.slow
@pytest.mark.parametrize("then", [(A,), (A, B, C), (B, C)], ids=["one of them", "one more", "another one"])
def test_a_command_for_other_models_begins_what_it_cannot_resume(
    local_nights: FakeNights, then: tuple[FakeRegistry, ...]
) -> None:
    """A pass goes on with all of its runs or not at all; every model is published once, and the other one later."""
    local_nights.write("a.jsonl", make_rows("a", "b", "c", "d", "e"))
    with before_call(classify_pass, "_share_models", failed()):
        local_nights.run_several(A, B)
    begun = {run.model: run.run for run in list_output(local_nights.output)}
    local_nights.run_several(*then).raise_failures()
    whole = {A, B} <= set(then)
    for registry in then:
        assert local_nights.ids(registry.name) == {DATE: ["a", "b", "c", "d", "e"]}
        if registry.name in begun:
            assert (run_of(local_nights, registry.name) == begun[registry.name]) is whole
    local_nights.run_several(A, B, C).raise_failures()
    for registry in (A, B, C):
        assert local_nights.ids(registry.name) == {DATE: ["a", "b", "c", "d", "e"]}
    states = [run.state for run in list_output(local_nights.output)]
    assert states.count("published") == 3


def test_an_unfinished_pass_names_the_models_with_which_it_goes_on(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    with before_call(classify_pass, "_share_models", failed()):
        local_nights.run_several(A, B)
    runs = list_output(local_nights.output)
    assert [models_to_resume(run, runs) for run in runs] == [["models:/a-model/1", "models:/b's/model/1"]] * 2
    with before_call(night_driver, "publish_night", failed()), suppress(UnavailableError):
        local_nights.run(NEXT, registry=A)
    runs = list_output(local_nights.output)
    assert models_to_resume(runs[-1], runs) == []


@pytest.mark.slow
@pytest.mark.parametrize("then", [(B,), (A, B)], ids=["the other one", "both"])
def test_a_pass_goes_on_once_another_run_of_one_of_its_models_is_published(
    local_nights: FakeNights, then: tuple[FakeRegistry, ...]
) -> None:
    """No command goes on with the run that the published one follows, so the pass needs it no more."""
    local_nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(9))))
    with before_call(finish, "write_records", failed(), once=False):
        local_nights.run_several(A, B)
    begun = {run.model: run for run in list_output(local_nights.output)}
    local_nights.run(registry=A)
    assert run_of(local_nights, A.name) != begun[A.name].run
    assert models_to_resume(begun[B.name], list_output(local_nights.output)) == ["models:/b's/model/1"]

    computed = list(FakeStep.computed)
    local_nights.run_several(*then).raise_failures()
    assert run_of(local_nights, B.name) == begun[B.name].run
    assert FakeStep.computed == computed
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: sorted(f"a{n}" for n in range(9))}


def test_a_run_that_began_alone_goes_on_alone(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a", "b"))
    with before_call(night_driver, "publish_night", failed()), suppress(UnavailableError):
        local_nights.run(registry=A)
    [begun] = [run.run for run in list_output(local_nights.output)]
    local_nights.run_several(A, B).raise_failures()
    assert run_of(local_nights, A.name) == begun
    assert FakeStep.computed == ["000000", "000000"]
    assert passes_of(local_nights) == []


def test_a_pass_whose_driver_died_while_it_began_is_begun_anew(local_nights: FakeNights) -> None:
    """Only one of its runs has a plan, so no command can continue it."""
    local_nights.write("a.jsonl", make_rows("a"))
    planned = {"n": 0}

    def fail_at_second() -> None:
        planned["n"] += 1
        if planned["n"] == 2:
            raise UnavailableError("here it ends")

    from pipelines.nightly.tables import resume

    with before_call(resume, "_plan_run", fail_at_second, once=False), pytest.raises(UnavailableError):
        local_nights.run_several(A, B)
    local_nights.run_several(A, B).raise_failures()
    assert [run_of(local_nights, model)[-6:] for model in NAMES] == ["000002", "000002"]
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a"]}


@pytest.mark.slow
def test_a_pass_keeps_the_runs_of_a_model_that_was_taken_over_before_it_began(local_nights: FakeNights) -> None:
    """Whoever took it over died before it began a run, so the next command goes on with the run of the pass."""
    local_nights.write("a.jsonl", make_rows("a"))

    def claim_and_die() -> None:
        local_nights.expire_lease(list_leases(local_nights)[0])
        claim_model(local_nights.tables, A.name)

    with before_call(NightDriver, "publish_finished", claim_and_die):
        result = local_nights.run_several(A, B)
    assert [failure.model for failure in result.failures] == [A.name]
    [begun] = [run.run for run in list_output(local_nights.output) if run.model == A.name]
    local_nights.run(registry=A)
    assert run_of(local_nights, A.name) == begun
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a"]}
    assert FakeStep.computed == ["000000"]


@pytest.mark.slow
def test_a_published_model_is_not_computed_again(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    first = local_nights.run(registry=A)
    reports = local_nights.run_several(A, B).reports
    assert [report.run for report in reports] == [first.run, run_of(local_nights, B.name)]
    local_nights.run_several(A, B, restart=True).raise_failures()
    assert run_of(local_nights, A.name) != first.run


@pytest.mark.slow
def test_a_published_model_of_another_version_holds_back_no_other(local_nights: FakeNights) -> None:
    """The champion of one is a new one when the command runs again, so its run is refused; the other is published."""
    local_nights.write("a.jsonl", make_rows("a", "b"))
    registry = FakeRegistry(A.name)
    with failing_publication_of(B.name):
        local_nights.run_several(registry, B)
    assert (local_nights.ids(A.name), local_nights.ids(B.name)) == ({DATE: ["a", "b"]}, {})
    registry.champion = "2"
    result = local_nights.run_several(registry, B)
    assert result.models == NAMES
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a", "b"]}
    assert FakeStep.computed == ["000000"]
    with pytest.raises(UserError, match=r"^model a-model: .*model.*--restart"):
        result.raise_failures()


@pytest.mark.slow
def test_an_unfinished_model_of_another_version_names_the_way_out(local_nights: FakeNights) -> None:
    """Its companion waits for it in the pass: nothing begins anew without being asked."""
    local_nights.write("a.jsonl", make_rows("a", "b"))
    registry = FakeRegistry(A.name)
    with before_call(classify_pass, "_share_models", failed()):
        local_nights.run_several(registry, B)
    registry.champion = "2"
    with pytest.raises(UserError, match=r"^model a-model: .*\(--model models:/a-model/1\).* leave a-model out"):
        local_nights.run_several(registry, B)
    assert len(list_output(local_nights.output)) == 2
    with before_call(classify_pass, "_share_models", failed()):
        local_nights.run_several(registry, FakeRegistry("other", backbone="1"))
    registry.champion = "1"
    local_nights.run_several(registry, B).raise_failures()
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a", "b"]}


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True], ids=["by itself", "with another"])
def test_a_published_run_of_a_pass_that_has_lost_its_report_is_refused(several: bool, local_nights: FakeNights) -> None:
    """Nothing is known of its counts: the command must not end with status 0, nor hold back the other model."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run_several(A, B).raise_failures()
    run = run_of(local_nights, A.name)
    local_nights.out.delete_many([f"{RUNS}/{run}/report.json"])
    result = local_nights.run_several(*((A, B) if several else (A,)))
    assert [report.model for report in result.reports] == [B.name] * several
    with pytest.raises(UserError, match=rf"{run} has lost its report \(report.json\); --restart begins a new run"):
        result.raise_failures()
    with pytest.raises(UserError, match="has lost its report"):
        local_nights.run(registry=A)
    local_nights.run_several(A, B, restart=True).raise_failures()


@pytest.mark.slow
@pytest.mark.parametrize("then", [(A,), (A, B)], ids=["alone", "with another"])
def test_the_report_of_a_run_that_classified_alone_is_made_again(
    then: tuple[FakeRegistry, ...], local_nights: FakeNights
) -> None:
    """Nothing is computed for it, and its night does not change."""
    local_nights.write("a.jsonl", make_rows("a"))
    report = local_nights.run(registry=A)
    files = local_nights.tables.open(PREDICTIONS).files({"model": A.name})
    for key in ("report.json", f"{RUNS}/{report.run}/report.json"):
        local_nights.out.delete_many([key])
    result = local_nights.run_several(*then)
    result.raise_failures()
    assert (result.reports[0].run, result.reports[0].counts) == (report.run, report.counts)
    assert FakeStep.computed == ["000000"] * len(then)
    assert local_nights.tables.open(PREDICTIONS).files({"model": A.name}) == files


def test_the_work_of_a_pass_is_deleted_when_its_last_finished_night_is_published(local_nights: FakeNights) -> None:
    """The last one was finished, and not published, by the command that classified; the spool holds its texts."""
    local_nights.write("a.jsonl", make_rows("a", "b", "a"))
    with failing_publication_of(B.name, KeyboardInterrupt), suppress(KeyboardInterrupt):
        local_nights.run_several(A, B)  # the process is ended
    [name] = passes_of(local_nights)
    folder = local_nights.out / f"{RUNS}/{name}"
    assert {key.split("/")[0] for key in folder.list()} >= {"spool", "model"}
    local_nights.run_several(A, B).raise_failures()
    left = folder.list()
    assert {key.split("/")[0] for key in left}.isdisjoint({"spool", "model", "attempts"})
    assert not [key for key in left if key.endswith(".ids")]
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a", "b"]}


@pytest.mark.parametrize("where", ["find_finished", "publish_night"])
def test_a_finished_night_that_cannot_be_published_at_first_is_tried_again(
    where: str, local_nights: FakeNights
) -> None:
    """The store does not answer once; the other model classifies meanwhile."""
    local_nights.write("a.jsonl", make_rows("a"))
    other = FakeRegistry("other", backbone="1")
    with failing_publication_of(A.name):
        local_nights.run_several(A)
    begun = list_output(local_nights.output)
    with before_call(night_driver, where, failed()):
        local_nights.run_several(A, other).raise_failures()
    assert run_of(local_nights, A.name) == begun[0].run
    assert FakeStep.computed == ["000000", "000000"]
    assert local_nights.ids(A.name) == local_nights.ids("other") == {DATE: ["a"]}


def test_the_nights_of_a_pass_are_shown_before_the_next_pass_begins(local_nights: FakeNights) -> None:
    """A pass may take hours; each night is logged to MLflow once."""
    local_nights.write("a.jsonl", make_rows("a"))
    registries = [FakeRegistry(A.name), FakeRegistry("other", backbone="1")]
    logged: list[list[int]] = []
    with before_call(
        classify_pass, "take_in", lambda: logged.append([len(each.logged) for each in registries]), once=False
    ):
        local_nights.run_several(*registries).raise_failures()
    assert logged == [[0, 0], [1, 0]]
    assert [len(each.logged) for each in registries] == [1, 1]


def test_the_intake_ends_a_pass_in_which_no_night_waits_to_be_published(local_nights: FakeNights) -> None:
    """One model is overtaken, and the files of the other cannot be read: hours of work would publish nothing."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run(LAST, registry=B)
    local_nights.write("b.csv", b"nothing\n1\n")
    with before_call(night_driver, "find_finished", lambda: take_lease(local_nights, 0)):
        result = local_nights.run_several(A, B, incremental=True, limits={"max_bad_files": 0.4})
    assert [(failure.model, type(failure.error)) for failure in result.failures] == [
        (A.name, HeldError),
        (B.name, BadRowsError),
    ]
    assert FakeStep.computed == ["000000"], "of the earlier night"


def test_each_night_of_a_pass_that_the_intake_ends_has_its_own_error(local_nights: FakeNights) -> None:
    """One model reads a good file more."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run(LAST, registry=A)
    local_nights.write("b.csv", b"nothing\n1\n")
    local_nights.write("c.csv", b"nothing\n1\n")
    result = local_nights.run_several(A, B, incremental=True, limits={"max_bad_files": 0.0})
    assert FakeStep.computed == ["000000"], "of the earlier night"
    assert [failure.status for failure in result.failures] == [4, 4]
    assert result.failures[0].error is not result.failures[1].error


def test_a_defect_of_one_model_is_logged_with_its_traceback(
    local_nights: FakeNights, caplog: pytest.LogCaptureFixture
) -> None:
    """The line of an error that is no SpinError says too little."""
    local_nights.write("a.jsonl", make_rows("a"))
    with before_call(night_driver, "finish_night", failed(ZeroDivisionError)):
        result = local_nights.run_several(A, B)
    assert [failure.model for failure in result.failures] == [A.name]
    [record] = [record for record in caplog.records if record.exc_info and record.levelname == "WARNING"]
    assert "ZeroDivisionError" in caplog.text
    assert A.name in record.getMessage()


def test_several_shadows_are_refused(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    requested = [RequestedModel(each, None, "models:/x/2") for each in (A, B)]  # type: ignore[arg-type]
    settings = local_nights.settings(4, None, None)
    with pytest.raises(UserError, match="--shadow: a-model, b's/model have one each"):
        classify.classify_nights(settings, requested, local_nights.source, local_nights.output)
    assert local_nights.out.list() == []


def test_the_slowest_shards_of_a_model_have_the_numbers_of_the_pass(local_nights: FakeNights) -> None:
    """One model takes only the last file, which is in the second shard."""
    local_nights.write("a.jsonl", make_rows("a", "b", "c", "d"))
    local_nights.run(LAST, registry=A)
    local_nights.write("b.jsonl", make_rows("e"))
    result = local_nights.run_several(A, B, incremental=True)
    assert [sorted(shard.number for shard in report.slowest) for report in result.reports] == [[1], [0, 1]]


def test_a_run_that_is_refused_is_overtaken_first(local_nights: FakeNights) -> None:
    """Another driver may have taken over while this one chose its runs."""
    local_nights.write("a.jsonl", make_rows("a"))
    registry = FakeRegistry(A.name)
    local_nights.run(registry=registry)
    registry.champion = "2"
    with (
        before_call(classify, "_refuse_run", lambda: take_lease(local_nights, 0)),
        pytest.raises(HeldError),
    ):
        local_nights.run(registry=registry)


def take_lease(nights: FakeNights, number: int) -> None:
    """Let another driver claim a model."""
    nights.expire_lease(list_leases(nights)[number])
    with lease_model(nights.out, NAMES[number]):
        claim_model(nights.tables, NAMES[number])


@contextmanager
def failing_publication_of(model: str, error: type[BaseException] = UnavailableError) -> Iterator[None]:
    """The publication of the nights of a model fails."""
    original = night_driver.publish_night

    def publish_others(tables: Any, night: Any, **options: Any) -> None:
        if night.model == model:
            raise error("here it ends")
        original(tables, night, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(night_driver, "publish_night", publish_others)
        yield


def test_a_model_that_was_overtaken_before_its_claim_stays_in_its_pass(local_nights: FakeNights) -> None:
    """The other model goes on with what both have computed, and is published."""
    local_nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(9))))
    with before_call(finish, "write_records", failed()):
        local_nights.run_several(A, B)
    computed = len(FakeStep.computed)

    def overtake() -> None:
        local_nights.expire_lease(list_leases(local_nights)[0])
        with lease_model(local_nights.out, A.name):
            claim_model(local_nights.tables, A.name)

    with before_call(classify, "claim_nights", overtake):
        result = local_nights.run_several(A, B)
    assert [report.model for report in result.reports] == [B.name]
    with pytest.raises(HeldError, match=f"model {A.name}: "):
        result.raise_failures()
    assert len(FakeStep.computed) == computed, "no shard is computed again"


def test_a_missing_record_of_a_pass_begins_new_runs(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    with before_call(classify_pass, "_share_models", failed()):
        local_nights.run_several(A, B)
    [name] = passes_of(local_nights)
    local_nights.out.delete_many([f"{RUNS}/{name}/pass.json"])
    local_nights.run_several(A, B).raise_failures()
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a"]}


# drivers that overtake each other


@pytest.mark.slow
@pytest.mark.parametrize("waking", WAKING)
@pytest.mark.parametrize("number", [0, 1])
def test_a_driver_that_is_overtaken_for_one_model_publishes_the_others(
    waking: str, number: int, local_nights: FakeNights
) -> None:
    """It leaves with status 3. What the other driver has published stays, and every row is in one night per model."""
    local_nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(9))))
    overtaking = (A, B)[number]

    def overtake() -> None:
        local_nights.expire_lease(list_leases(local_nights)[number])
        local_nights.run(registry=overtaking)

    with before_call(*WAKING[waking], overtake):
        result = local_nights.run_several(A, B)
    published = {report.model for report in result.reports}
    assert NAMES[1 - number] in published
    if overtaking.name not in published:
        with pytest.raises(HeldError, match=f"model {overtaking.name}: "):
            result.raise_failures()
    assert (overtaking.name in published) <= (waking in PUBLISHING), "only what was ready may be found published"
    for model in NAMES:
        assert local_nights.ids(model) == {DATE: [f"a{n}" for n in range(9)]}
    states = [run.state for run in list_output(local_nights.output)]
    assert states.count("published") == 2


@pytest.mark.parametrize("waking", WAKING)
def test_a_driver_that_wakes_after_another_has_published_all_changes_nothing(
    waking: str, local_nights: FakeNights
) -> None:
    """The other one resumes the pass, or begins another one, and both models leave this driver with status 3."""
    local_nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(9)), "a0"))
    versions: list[Any] = []

    def overtake() -> None:
        for lease in list_leases(local_nights):
            local_nights.expire_lease(lease)
        local_nights.run_several(A, B).raise_failures()
        versions.append(local_nights.tables.open(PREDICTIONS).files({}))

    with before_call(*WAKING[waking], overtake), suppress(HeldError):
        local_nights.run_several(A, B).raise_failures()
    assert versions == [local_nights.tables.open(PREDICTIONS).files({})]
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: [f"a{n}" for n in range(9)]}


def list_leases(nights: FakeNights) -> list[str]:
    """The names of the leases in an output, in order of model."""
    return sorted(nights.out.list_names("_leases"))


# incremental nights


@pytest.mark.slow
def test_incremental_is_asked_per_model(local_nights: FakeNights) -> None:
    """One model is new: it takes all files, the other only those that are new to it; both read one pass."""
    local_nights.write("a.jsonl", make_rows("a", "b"))
    local_nights.run(DATE, registry=A)
    local_nights.write("b.jsonl", make_rows("c", "a"))
    FakeStep.computed.clear()
    result = local_nights.run_several(A, B, date=NEXT, incremental=True)
    result.raise_failures()
    assert local_nights.ids(A.name) == {DATE: ["a", "b"], NEXT: ["a", "c"]}
    assert local_nights.ids(B.name) == {NEXT: ["a", "b", "c"]}
    assert [report.files.skipped for report in result.reports] == [1, 0]
    assert [report.counts.reasons for report in result.reports] == [{}, {"repeated_id": 1}]
    assert len(FakeStep.computed) == 2, "no file was read twice, and no shard has files of different models"
    local_nights.write("c.jsonl", make_rows("d"))
    local_nights.run_several(A, B, date=LAST, incremental=True).raise_failures()
    assert local_nights.ids(A.name)[LAST] == local_nights.ids(B.name)[LAST] == ["d"]


@pytest.mark.slow
def test_an_incremental_pass_resumes_with_the_files_of_each_model(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a", "b"))
    local_nights.run(DATE, registry=A)
    local_nights.write("b.jsonl", make_rows("c"))
    with before_call(night_driver, "publish_night", failed()):
        local_nights.run_several(A, B, date=NEXT, incremental=True)
    assert local_nights.ids(B.name) == {NEXT: ["a", "b", "c"]}
    local_nights.write("z.jsonl", make_rows("z"))
    computed = list(FakeStep.computed)
    local_nights.run_several(A, B, date=NEXT, incremental=True).raise_failures()
    assert local_nights.ids(A.name) == {DATE: ["a", "b"], NEXT: ["c"]}
    assert FakeStep.computed == computed


# kept columns


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["the first model", "the second model"])
@pytest.mark.parametrize("old", [{"a": 1}, {"a": 1, "b": "one"}], ids=["in two tasks", "in one task"])
def test_kept_columns_of_two_types_in_the_files_of_one_model_hold_back_no_other(
    old: dict[str, Any], number: int, local_nights: FakeNights
) -> None:
    """One model takes files whose types differ; another one has classified them before the column was kept."""
    other, model = (A, B)[1 - number], (A, B)[number]
    for name, value in old.items():
        local_nights.write(f"{name}.parquet", [{"id": name, "text": "good day", "n": value}])
    local_nights.run(DATE, registry=other)
    local_nights.write("c.parquet", [{"id": "c", "text": "good day", "n": "two"}])
    night: dict[str, Any] = {"date": NEXT, "incremental": True}
    FakeStep.computed.clear()
    result = local_nights.run_several(A, B, data={"keep": ["n"]}, **night)
    assert [(report.model, report.counts.predicted) for report in result.reports] == [(other.name, 1)]
    assert [(failure.model, failure.status) for failure in result.failures] == [(model.name, 2)]
    with pytest.raises(UserError, match=rf"^model {model.name}: [^;]*column 'n' is (int64|string).*--restart$"):
        result.raise_failures()
    assert [row["n"] for row in rows_of(local_nights, other.name, NEXT)[PREDICTIONS]] == ["two"]
    assert local_nights.ids(model.name) == {}

    computed = list(FakeStep.computed)
    again = local_nights.run_several(A, B, data={"keep": ["n"]}, **night)
    assert [(failure.model, failure.status) for failure in again.failures] == [(model.name, 2)]
    assert FakeStep.computed == computed
    local_nights.run(NEXT, registry=model, data={"keep": {"n": "string"}}, restart=True)
    kept = {row["id"]: row["n"] for row in rows_of(local_nights, model.name, NEXT)[PREDICTIONS]}
    assert kept == {**{name: str(value) for name, value in old.items()}, "c": "two"}


@pytest.mark.slow
def test_the_first_model_settles_the_type_of_a_new_column(local_nights: FakeNights) -> None:
    """The files of each model agree, and the table can have only one of the types."""
    local_nights.write("a.parquet", [{"id": "a", "text": "good day", "n": 1}])
    local_nights.run(DATE, registry=B)
    local_nights.write("b.parquet", [{"id": "b", "text": "good day", "n": "two"}])
    local_nights.run(DATE, registry=A, source=f"{local_nights.source}/b.parquet")
    result = local_nights.run_several(A, B, C, date=NEXT, incremental=True, data={"keep": ["n"]})
    assert [report.model for report in result.reports] == [A.name]
    assert [(failure.model, failure.status) for failure in result.failures] == [(B.name, 2), (C.name, 2)]
    assert [row["n"] for row in rows_of(local_nights, A.name, NEXT)[PREDICTIONS]] == [1]


@pytest.mark.slow
def test_a_kept_column_that_only_the_files_of_another_model_have_is_null(local_nights: FakeNights) -> None:
    """Also where the types in the files of a third model differ."""
    local_nights.write("a.parquet", [{"id": "a", "text": "good day", "n": 1}])
    local_nights.run(DATE, registry=A)
    local_nights.write("b.jsonl", make_rows("b"))
    result = local_nights.run_several(A, B, date=NEXT, incremental=True, data={"keep": ["n"]})
    result.raise_failures()
    assert [row["n"] for row in rows_of(local_nights, A.name, NEXT)[PREDICTIONS]] == [None]
    assert [row["n"] for row in rows_of(local_nights, B.name, NEXT)[PREDICTIONS]] == [1, None]


def test_no_model_is_classified_where_the_kept_columns_of_all_have_two_types(local_nights: FakeNights) -> None:
    local_nights.write("a.parquet", [{"id": "a", "text": "good day", "n": 1}])
    local_nights.write("b.parquet", [{"id": "b", "text": "good day", "n": "two"}])
    result = local_nights.run_several(A, B, data={"keep": ["n"]})
    assert [(failure.model, failure.status) for failure in result.failures] == [(A.name, 2), (B.name, 2)]
    assert result.failures[0].error is not result.failures[1].error
    assert FakeStep.computed == []


# vacuum


def vacuum(nights: FakeNights, later: timedelta) -> None:
    claims = {model: claim_model(nights.tables, model) for model in models_of(nights.tables)}
    plan = plan_vacuum(nights.tables, now=datetime.now(UTC) + later, age=timedelta(hours=24))
    run_vacuum(nights.tables, plan, claims)


@pytest.mark.slow
def test_a_vacuum_keeps_a_pass_that_can_go_on_and_deletes_it_afterwards(local_nights: FakeNights) -> None:
    """A pass stays while one of its runs is unfinished and young; it goes when all are published or given up."""
    local_nights.write("a.jsonl", make_rows("a", "b"))
    with before_call(FakeStep, "_find_dead", failed()):
        local_nights.run_several(A, B)
    before = local_nights.out.list(RUNS)
    vacuum(local_nights, timedelta(hours=23))
    assert local_nights.out.list(RUNS) == before
    local_nights.run_several(A, B).raise_failures()
    assert len(passes_of(local_nights)) == 1
    vacuum(local_nights, timedelta(hours=25))
    assert passes_of(local_nights) == []
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a", "b"]}


@pytest.mark.slow
def test_a_vacuum_keeps_the_old_objects_of_a_pass_that_can_go_on(local_nights: FakeNights, tmp_path: Path) -> None:
    """A pass changes as its runs do: what it began with stays while they are at work."""
    local_nights.write("a.jsonl", make_rows("a", "b"))
    with before_call(FakeStep, "_find_dead", failed()):
        local_nights.run_several(A, B)
    [name] = passes_of(local_nights)
    folder = tmp_path / "store" / "out" / RUNS
    records = [path for path in folder.rglob("*") if path.is_file() and "attempts" not in path.parts]
    assert any(path.parent.name == name for path in records)
    for path in records:
        os.utime(path, (1_700_000_000, 1_700_000_000))
    before = local_nights.out.list(RUNS)
    vacuum(local_nights, timedelta())
    assert local_nights.out.list(RUNS) == before
    local_nights.run_several(A, B).raise_failures()
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a", "b"]}


@pytest.mark.slow
def test_a_vacuum_keeps_the_pass_of_a_run_whose_companion_is_published(local_nights: FakeNights) -> None:
    """It is as old as its last object; the run goes on without computing anything."""
    local_nights.write("a.jsonl", make_rows("a", "b"))
    with before_call(finish, "write_records", failed()):
        local_nights.run_several(A, B)
    assert local_nights.ids(A.name) == {}
    assert local_nights.ids(B.name) == {DATE: ["a", "b"]}
    computed = list(FakeStep.computed)
    vacuum(local_nights, timedelta(hours=23))
    local_nights.run_several(A, B).raise_failures()
    assert FakeStep.computed == computed
    assert local_nights.ids(A.name) == {DATE: ["a", "b"]}


@pytest.mark.slow
def test_a_vacuum_gives_up_old_runs_with_their_pass(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a", "b"))
    with before_call(FakeStep, "_find_dead", failed()):
        local_nights.run_several(A, B)
    vacuum(local_nights, timedelta(hours=25))
    assert passes_of(local_nights) == []
    assert {run.state for run in list_output(local_nights.output)} == {"abandoned"}
    local_nights.run_several(A, B).raise_failures()
    assert local_nights.ids(A.name) == local_nights.ids(B.name) == {DATE: ["a", "b"]}
