"""Histories of nights: whatever was started, suspended, killed, deleted or restored, no row is in two nights.

Hypothesis makes up the histories. Drivers run in threads that stop at gates before their operations on the store, so
that any driver can overtake any other at any operation. After every step, the logs and the files of the tables are
compared with a model of what must be in them, which knows nothing of the product (tests/support/histories.py).

`make soak` runs this for an hour.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from pipelines.data.forgotten_ids import FOLDER
from pipelines.nightly.nights import list_output, resumable_runs
from tests.support.gates import Driver, Outage
from tests.support.histories import Inputs, Night, Output, Violation
from tests.support.nightly_driver import (
    Deletion,
    Forgetting,
    Request,
    delete,
    forget,
    gated_nights,
    restore,
    run_request,
    vacuum,
)

pytestmark = pytest.mark.slow

HISTORIES = int(os.environ.get("SPIN_HISTORIES", "6"))
STRIDE = int(os.environ.get("SPIN_HISTORY_STRIDE", "29"))
"""a driver is overtaken before every operation whose number is divisible by this"""
STEPS = int(os.environ.get("SPIN_HISTORY_STEPS", "25"))
MODELS = ("topics", "it's/another")
SOURCES = ("mail", "web")
DATES = ("2026-03-01", "2026-03-02", "2026-03-03")
LAST = ("2026-03-08", "2026-03-09")
"""dates of the nights that close a history, one per source"""
OPERATIONS_OF_A_NIGHT = 100
"""a little more than a night takes"""
OPERATIONS_OF_TWO_NIGHTS = 190
"""a little more than a night of two models takes"""
OPERATIONS_OF_FORGETTING = 170
"""a little more than it takes to forget documents of two nights"""
OPERATIONS_OF_A_CLAIM = 14
"""a little more than lie between the lease of a model and its claim"""
OPERATIONS = st.one_of(st.integers(0, OPERATIONS_OF_A_NIGHT), st.integers(0, OPERATIONS_OF_TWO_NIGHTS))
"""after which a driver stops"""

requests = st.builds(
    Request,
    source=st.sampled_from(SOURCES),
    model=st.sampled_from(MODELS),
    date=st.sampled_from(DATES),
    restart=st.booleans(),
    strict=st.booleans(),
    others=st.sampled_from(((), (), MODELS)),
)
deletions = st.builds(Deletion, before=st.sampled_from((*DATES[1:], *LAST)), forget_files=st.booleans())
numbers_of_documents = st.lists(st.integers(0, 99), min_size=1, max_size=3)
outages = st.builds(Outage, first=OPERATIONS, length=st.sampled_from((1, 2, 1000)), lost=st.booleans())


class NightHistories(RuleBasedStateMachine):
    """One output, two sources, two models, and any number of drivers, of which one at a time moves."""

    statuses: ClassVar[Counter[str]] = Counter()
    """how the commands of all histories have ended"""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="histories-"))
        self.inputs = Inputs(self.folder / "in", SOURCES)
        self.uri = str(self.folder / "out")
        self.output = Output(self.folder / "out", self.inputs)
        self.suspended: list[Driver] = []
        self.publishers: dict[int, Driver] = {}
        self.version = self.drivers = 0
        self._gates = gated_nights()
        self._gates.__enter__()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.close()
            for driver in self.suspended:
                driver.kill()
        finally:
            self._gates.__exit__(None, None, None)
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """The history ends: all suspended drivers wake, and what is left is classified."""
        for driver in list(self.suspended):
            driver.run()
            self.step(driver)
        self.complete_forgetting()
        self.repair()

    def complete_forgetting(self) -> None:
        """No driver is left that could write anything: forgetting once more removes the documents from every object."""
        if self.output.announced and self.output.predictions.commits:
            driver = self.start_forgetting(frozenset(self.output.announced))
            assert driver.status in self.expected(0), driver.error

    @initialize()
    def begin_with_files(self) -> None:
        for source in SOURCES:
            self.write(source, "a", documents=2, dead=1, broken=False)

    # the input

    @rule(
        source=st.sampled_from(SOURCES),
        name=st.sampled_from("abc"),
        documents=st.integers(0, 2),
        dead=st.integers(0, 1),
        broken=st.booleans(),
    )
    def write(self, source: str, name: str, documents: int, dead: int, broken: bool) -> None:
        """A new file, or another content of one."""
        self.version += 1
        self.inputs.write(source, name, self.version, documents=documents or 1 - dead, dead=dead, broken=broken)

    @rule(source=st.sampled_from(SOURCES), name=st.sampled_from("abc"))
    def put_back(self, source: str, name: str) -> None:
        """What a file held before."""
        self.inputs.put_back(source, name)

    @rule(source=st.sampled_from(SOURCES), name=st.sampled_from("abc"))
    def remove(self, source: str, name: str) -> None:
        self.inputs.remove(source, name)

    # commands that nothing disturbs

    @rule(request=requests)
    def run_night(self, request: Request) -> None:
        driver = self.start(request)
        self.check_ended(driver)

    @rule(request=requests)
    def run_whole_night(self, request: Request) -> None:
        """Without `--incremental`: all of the input, whatever other dates hold."""
        driver = self.start(replace(request, incremental=False))
        self.check_ended(driver)

    # commands that something happens to

    @rule(request=requests, outage=outages)
    def run_during_outage(self, request: Request, outage: Outage) -> None:
        driver = self.start(request, outage=outage)
        assert driver.status in self.expected(0, 2, 4, 5), driver.error

    @rule(request=requests, operations=OPERATIONS)
    def run_and_kill(self, request: Request, operations: int) -> None:
        driver = self.start(request, operations)
        driver.kill()
        self.step(driver)

    @rule(request=requests, operations=OPERATIONS)
    def run_and_suspend(self, request: Request, operations: int) -> None:
        self.start(request, operations)

    @precondition(lambda self: self.suspended)
    @rule(data=st.data(), operations=st.one_of(st.none(), OPERATIONS))
    def wake(self, data: st.DataObject, operations: int | None) -> None:
        """A suspended driver goes on, up to its end or to another stop."""
        driver = data.draw(st.sampled_from(self.suspended), label="driver")
        driver.run(operations)
        self.step(driver)

    @rule(model=st.sampled_from(MODELS), number=st.integers(0, 9), operations=st.one_of(st.none(), OPERATIONS))
    def restore(self, model: str, number: int, operations: int | None) -> None:
        """Any run that was ever published; one that was replaced, if there is one."""
        ever = {run: night for run, night in self.output.runs.items() if night.model == model}
        visible = {night.run for night in self.output.nights.values()}
        if runs := sorted(ever.keys() - visible) or sorted(ever):
            run = runs[number % len(runs)]
            self.launch(f"restore {run}", lambda: restore(self.uri, run), operations=operations)

    @rule(later=st.booleans(), operations=st.one_of(st.none(), OPERATIONS))
    def vacuum(self, later: bool, operations: int | None) -> None:
        """Now, or two days later, when everything is old."""
        self.launch("vacuum", lambda: vacuum(self.uri, timedelta(days=2 * later)), operations=operations)

    @rule(deletion=deletions, operations=st.one_of(st.none(), OPERATIONS))
    def delete_nights(self, deletion: Deletion, operations: int | None) -> None:
        self.launch(str(deletion), lambda: delete(self.uri, deletion), deletion, operations=operations)

    @rule(numbers=numbers_of_documents, operations=st.one_of(st.none(), OPERATIONS), killed=st.booleans())
    def forget(self, numbers: list[int], operations: int | None, killed: bool) -> None:
        """Documents that any file ever held."""
        driver = self.start_forgetting(self.choose_documents(numbers), operations)
        if operations is None:
            nothing = not self.output.predictions.commits
            assert driver.status in self.expected(2 if nothing else 0), driver.error
        elif killed:
            driver.kill()
            self.step(driver)

    @rule(numbers=numbers_of_documents, outage=outages)
    def forget_during_outage(self, numbers: list[int], outage: Outage) -> None:
        driver = self.start_forgetting(self.choose_documents(numbers), outage=outage)
        assert driver.status in {0, 2, 5}, driver.error

    @rule(
        request=requests,
        numbers=st.one_of(st.none(), numbers_of_documents),
        operations=st.integers(0, OPERATIONS_OF_A_CLAIM),
        failing=st.integers(1, 3),
        lost=st.booleans(),
        successor=requests,
    )
    def cut_off_before_the_claim(
        self,
        request: Request,
        numbers: list[int] | None,
        operations: int,
        failing: int,
        lost: bool,
        successor: Request,
    ) -> None:
        """A command does not reach the store for longer than its lease lasts, and another one takes over."""
        driver = self.make_driver(request) if numbers is None else self.make_forgetting(self.choose_documents(numbers))
        driver.run_to_lease(operations)
        self.step(driver)
        if not driver.ended:
            driver.cut_off(failing, lost=lost)
            self.step(driver)
        if driver.ended:
            return
        claimed = bool(driver.commits)
        successor = replace(successor, model=request.model)
        overtaken = self.start(successor).status == 0 and numbers is None and request.models == (request.model,)
        driver.run()
        self.step(driver)
        allowed = {3} if overtaken and not claimed else {0, 2, 3, 4, 5}
        assert driver.status in allowed, (driver.name, driver.error)

    @rule(number=st.integers(0, 9))
    def resume(self, number: int) -> None:
        """The command that `spin nights` names publishes the night, unless an object was deleted."""
        if not self.output.predictions.commits:
            return
        if not (runs := resumable_runs(list_output(self.uri))):
            return
        run = runs[number % len(runs)]
        same_pass = (each for each in runs if run.shared_pass is not None and each.shared_pass == run.shared_pass)
        others = tuple(each.model for each in same_pass)
        incremental = bool(run.incremental)
        named = [Request(source, run.model, run.date, incremental, others=others) for source in SOURCES]
        driver = self.start(named[0])
        if driver.status == 2 and "data.input" in str(driver.error):  # the run has the other source
            driver = self.start(named[1])
        assert driver.status in self.expected(0), driver.error
        if driver.status == 0:
            left = resumable_runs(list_output(self.uri))
            assert (run.date, run.model) not in {(each.date, each.model) for each in left}

    @rule(number=st.integers(0, 999))
    def delete_object(self, number: int) -> None:
        """Anything outside the logs of the tables, but the input rows of at most one run at a time.

        Without the hashes of what was forgotten, nobody knows what a later night has to leave out: these stay.
        """
        keys = sorted(
            str(path.relative_to(self.folder / "out"))
            for path in (self.folder / "out").rglob("*")
            if path.is_file() and not {"_delta_log", FOLDER} & set(path.parts)
        )
        if keys and not self.output.damaged_nights():
            self.output.delete(keys[number % len(keys)])

    @rule()
    def repair(self) -> None:
        """Nights that have lost an object are done again, and then each source is classified once more.

        After that, every row that is in the input is in exactly one night of its model.
        """
        damaged = self.output.damaged_nights()
        if len(damaged) > 1:  # of two nights that have lost their input rows, neither knows what the other has taken
            return
        for model, date in damaged:
            source = self.every_night()[model, date].source
            self.run_successfully(Request(source, model, date, restart=True))
        for model in MODELS:
            for source, date in zip(SOURCES, LAST, strict=True):
                self.run_successfully(Request(source, model, date, restart=True))
            self.check_every_row_is_in_one_night(model)

    # what holds

    def run_successfully(self, request: Request) -> None:
        driver = self.start(request)
        assert driver.status == 0, driver.error

    def start(self, request: Request, operations: int | None = None, outage: Outage | None = None) -> Driver:
        driver = self.make_driver(request, outage)
        driver.run(operations)
        self.step(driver)
        return driver

    def make_driver(self, request: Request, outage: Outage | None = None) -> Driver:
        there = replace(request, source=self.inputs.source(request.source))
        return self.make(str(request), lambda: run_request(self.uri, there), there, outage)

    def choose_documents(self, numbers: list[int]) -> frozenset[str]:
        """Ids of documents that any file ever held."""
        ids = [id for content in self.inputs.contents.values() for id in content.ids]
        return frozenset(ids[number % len(ids)] for number in numbers)

    def start_forgetting(
        self, ids: frozenset[str], operations: int | None = None, outage: Outage | None = None
    ) -> Driver:
        driver = self.make_forgetting(ids, outage)
        driver.run(operations)
        self.step(driver)
        if operations is None and driver.status == 0:
            self.output.check_objects(ids)
        return driver

    def make_forgetting(self, ids: frozenset[str], outage: Outage | None = None) -> Driver:
        self.output.announced |= ids
        forgetting = Forgetting(ids)
        return self.make(f"forget {sorted(ids)}", lambda: forget(self.uri, forgetting), forgetting, outage)

    def launch(
        self,
        name: str,
        command: Callable[[], object],
        request: Deletion | None = None,
        operations: int | None = None,
    ) -> Driver:
        driver = self.make(name, command, request)
        driver.run(operations)
        self.step(driver)
        return driver

    def make(
        self,
        name: str,
        command: Callable[[], object],
        request: Request | Deletion | Forgetting | None = None,
        outage: Outage | None = None,
    ) -> Driver:
        self.drivers += 1
        return Driver(f"{self.drivers}: {name}", command, outage, request)

    def step(self, driver: Driver) -> None:
        """A driver has moved: note what it has committed, and check the output."""
        uri = f"{self.uri}/predictions"
        self.publishers |= {version: driver for table, version in driver.commits if table == uri}
        if driver.ended and driver in self.suspended:
            self.suspended.remove(driver)
        elif not driver.ended and driver not in self.suspended:
            self.suspended.append(driver)
        if driver.ended:
            self.statuses[driver.outcome] += 1
            if isinstance(driver.request, Forgetting) and driver.status == 0:
                self.output.forgotten |= driver.request.ids
        self.output.observe(self.publishers)

    def check_ended(self, driver: Driver) -> None:
        """Nothing disturbed the command: a night that starts over is published, with all of the input.

        One that does not start over may also find a run of its date with other settings, and names what to do.
        """
        request = driver.request
        assert isinstance(request, Request)
        allowed = self.expected(0, 4 if request.strict else 0, 0 if request.restart else 2)
        assert driver.status in allowed, driver.error
        if driver.status == 0 and request.restart:
            self.check_taken(request)
        if driver.status == 2:
            assert re.search(r"--restart|spin nights", str(driver.error)), driver.error

    def expected(self, *statuses: int) -> set[int]:
        """Statuses; a command may also end with status 2 if an object that it needs was deleted."""
        return {*statuses, 2} if self.output.lost else set(statuses)

    def check_taken(self, request: Request) -> None:
        """All of the input is in the night that was published, or in nights of other dates."""
        for model in request.models:
            nights = {date: night for (other, date), night in self.every_night().items() if other == model}
            if not request.incremental:
                nights = {request.date: nights[request.date]}
            listed = {state for night in nights.values() for state in night.taken | night.quarantined}
            if lacking := self.inputs.present(request.source) - listed:
                raise Violation(f"{request} has ended with status 0, and no night of {model} has {lacking}")

    def every_night(self) -> dict[tuple[str, str], Night]:
        """The nights that readers see, and the deleted ones whose files stay taken."""
        return self.output.deleted | self.output.nights

    def check_every_row_is_in_one_night(self, model: str) -> None:
        nights = [night for (other, _), night in self.every_night().items() if other == model]
        incremental = all(night.incremental for night in nights)
        for source in SOURCES:
            for state in self.inputs.present(self.inputs.source(source)):
                times = sum(state in night.taken for night in nights)
                sound = not self.inputs.contents[state].broken
                if times < sound or (incremental and times > sound):
                    raise Violation(f"{state} is in {times} nights of {model}")


def run_histories(histories: int, steps: int = STEPS) -> None:
    """Run so many histories."""
    run_state_machine_as_test(
        NightHistories,
        settings=settings(
            max_examples=histories,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_history_loses_or_doubles_a_row() -> None:
    NightHistories.statuses.clear()
    run_histories(HISTORIES)
    assert NightHistories.statuses["status 0"]


FIRST, SECOND, THIRD = DATES
MODEL, OTHER_MODEL = MODELS
OVERTAKEN = Request("mail", MODEL, SECOND)
OVERTAKEN_PASS = replace(OVERTAKEN, others=MODELS)
OVERTAKING: dict[str, Callable[[NightHistories], object]] = {
    "the same command": lambda history: history.start(OVERTAKEN),
    "the same night, begun anew": lambda history: history.start(replace(OVERTAKEN, restart=True)),
    "a night of another date": lambda history: history.start(replace(OVERTAKEN, date=THIRD)),
    "a night of another source": lambda history: history.start(replace(OVERTAKEN, source="web", restart=True)),
    "a night of another model": lambda history: history.start(replace(OVERTAKEN, model=OTHER_MODEL)),
    "a restored night": lambda history: history.restore(model=MODEL, number=0, operations=None),
    "a night of both models": lambda history: history.start(OVERTAKEN_PASS),
    "nights of both models, begun anew": lambda history: history.start(replace(OVERTAKEN_PASS, restart=True)),
    "a vacuum": lambda history: history.vacuum(later=True, operations=None),
    "a deletion": lambda history: history.delete_nights(deletion=Deletion(THIRD, False), operations=None),
    "a forgetting": lambda history: history.forget(numbers=FORGETTING, operations=None, killed=False),
}


FORGETTING = [0, 2, 3]
"""numbers of documents that are forgotten: one of each source, and a dead letter"""


def overtake_at_all_operations(overtaking: str, stride: int, overtaken: Request | None = OVERTAKEN) -> None:
    """Let a command overtake a driver at every so many operations, each in an output of its own."""
    for operations in range(0, count_operations(overtaken), stride):
        overtake(overtaking, operations, overtaken)


def count_operations(overtaken: Request | None) -> int:
    """About as many operations as a driver has, for a request or, without one, for forgetting."""
    return {OVERTAKEN: OPERATIONS_OF_A_NIGHT, OVERTAKEN_PASS: OPERATIONS_OF_TWO_NIGHTS, None: OPERATIONS_OF_FORGETTING}[
        overtaken
    ]


def overtake(overtaking: str, operations: int, overtaken: Request | None) -> None:
    """Let a command overtake a driver after some of its operations.

    The driver wakes when the other command has ended; then the input is classified once more. Without `overtaken`, it
    is one that forgets documents.
    """
    history = NightHistories()
    try:
        history.begin_with_files()
        history.start(Request("web", MODEL, FIRST))
        history.start(Request("web", MODEL, FIRST, restart=True))
        if overtaken is None:
            driver = history.start_forgetting(history.choose_documents(FORGETTING), operations)
        else:
            driver = history.start(overtaken, operations)
        OVERTAKING[overtaking](history)
        if not driver.ended:
            driver.run()
            history.step(driver)
        assert driver.status in {0, 2, 3}, driver.error
    finally:
        history.teardown()


COMMANDS = pytest.mark.parametrize("command", [OVERTAKEN, OVERTAKEN_PASS], ids=["one model", "two models"])


@pytest.mark.parametrize("overtaking", OVERTAKING)
def test_a_driver_may_be_overtaken_at_any_operation(overtaking: str) -> None:
    """A driver of two models: one of a single model takes the same steps."""
    overtake_at_all_operations(overtaking, STRIDE, OVERTAKEN_PASS)


@pytest.mark.parametrize("overtaking", ["the same command", "the same night, begun anew", "a vacuum"])
def test_a_driver_of_one_model_may_be_overtaken_at_any_operation(overtaking: str) -> None:
    overtake_at_all_operations(overtaking, STRIDE)


@pytest.mark.parametrize("overtaking", ["the same night, begun anew", "a forgetting"])
def test_forgetting_may_be_overtaken_at_any_operation(overtaking: str) -> None:
    overtake_at_all_operations(overtaking, STRIDE, None)


@pytest.mark.parametrize("operations", range(0, OPERATIONS_OF_A_CLAIM, 4))
def test_a_command_that_is_cut_off_before_its_claim_changes_nothing(operations: int) -> None:
    history = NightHistories()
    try:
        history.begin_with_files()
        history.cut_off_before_the_claim(
            request=OVERTAKEN, numbers=None, operations=operations, failing=2, lost=False, successor=OVERTAKEN
        )
    finally:
        history.teardown()


@COMMANDS
@pytest.mark.parametrize("lost", [False, True], ids=["refused", "answers lost"])
def test_an_outage_may_begin_at_any_operation(lost: bool, command: Request) -> None:
    """The command ends with status 5, or goes on if the outage is short; the same command then publishes the night."""
    for first in range(0, OPERATIONS_OF_A_NIGHT if command is OVERTAKEN else OPERATIONS_OF_TWO_NIGHTS, STRIDE):
        for length in (1, 1000):
            history = NightHistories()
            try:
                history.begin_with_files()
                driver = history.start(command, outage=Outage(first, length, lost))
                assert driver.status in {0, 5}, driver.error
                history.run_successfully(command)
            finally:
                history.teardown()


@COMMANDS
@pytest.mark.parametrize("operations", [70, None], ids=["unfinished", "published"])
def test_any_object_of_a_run_may_be_deleted(operations: int | None, command: Request) -> None:
    """The same command then ends well, or names what to do: `--restart` always helps."""
    history = NightHistories()
    try:
        history.begin_with_files()
        history.start(command, operations and (operations if command is OVERTAKEN else 110)).kill()
        run = history.folder / "run"
        shutil.copytree(history.output.folder, run)
        keys = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
        for key in [key for key in keys if "_delta_log" not in key]:
            check_deleted_object(history, run, key, command)
    finally:
        history.close = lambda: None  # type: ignore[method-assign]
        history.teardown()


def check_deleted_object(history: NightHistories, run: Path, key: str, command: Request) -> None:
    """Delete an object from a copy of an output and run the command again."""
    shutil.rmtree(history.output.folder)
    shutil.copytree(run, history.output.folder)
    history.output = Output(history.output.folder, history.inputs)
    (history.output.folder / key).unlink()
    there = replace(command, source=history.inputs.source(command.source))
    driver = Driver(f"without {key}", lambda: run_request(history.uri, there))
    driver.run()
    # 1: what was taken in again no longer fits the shards that were classified
    assert driver.status in {0, 1, 2}, (key, driver.error)
    if driver.status:
        assert "--restart" in str(driver.error), (key, driver.error)
    if driver.status or not key.startswith("_"):
        run_request(history.uri, replace(there, restart=True))
    [state] = history.inputs.present(there.source)
    predictions = history.output.predictions
    predictions.read_log()
    for version in range(len(predictions.commits)):
        predictions.apply(version)
    rows = [row for path in predictions.files for row in pq.read_table(predictions.folder / path).to_pylist()]
    expected = history.inputs.contents[state].predicted * len(command.models)
    assert sorted(row["id"] for row in rows) == sorted(expected), key
