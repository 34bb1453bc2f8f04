"""Histories of nights: whatever was started, suspended, killed, deleted or restored, no row is in two nights.

Hypothesis makes up the histories. Drivers run in threads that stop at gates before their operations on the store, so
that any driver can overtake any other at any operation. After every step, the logs and the files of the tables are
compared with a model of what must be in them, which knows nothing of the product (tests/support/histories.py).

`make soak` runs this for an hour; `SPIN_HISTORIES` is the number of histories.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from pipelines.nightly.tables.night_tables import NightTables
from pipelines.nightly.tables.publication import claim, restore_night
from pipelines.nightly.tables.vacuum import models_of, plan_vacuum, run_vacuum
from pipelines.storage.object_store import Store
from tests.support.gates import Driver, Outage, gated_stores
from tests.support.histories import Inputs, Output, Violation
from tests.support.table_driver import RETRY_SECONDS, NightRequest, classify_into_tables

HISTORIES = int(os.environ.get("SPIN_HISTORIES", "25"))
STEPS = int(os.environ.get("SPIN_HISTORY_STEPS", "25"))
MODELS = ("topics", "it's/another")
SOURCES = ("mail", "web")
DATES = ("2026-03-01", "2026-03-02", "2026-03-03")
LAST = ("2026-03-08", "2026-03-09")
"""dates of the nights that close a history, one per source"""
OPERATIONS = st.integers(0, 70)
"""after which a driver stops; a night takes about sixty"""

requests = st.builds(
    NightRequest,
    source=st.sampled_from(SOURCES),
    model=st.sampled_from(MODELS),
    date=st.sampled_from(DATES),
    restart=st.booleans(),
    strict=st.booleans(),
)
outages = st.builds(Outage, first=OPERATIONS, length=st.sampled_from((1, 2, 1000)), lost=st.booleans())


class NightHistories(RuleBasedStateMachine):
    """One output, two sources, two models, and any number of drivers, of which one at a time moves."""

    statuses: ClassVar[Counter[str]] = Counter()
    """how the commands of all histories have ended"""
    command: ClassVar[Callable[[str, NightRequest], object]] = staticmethod(classify_into_tables)
    """what runs a night"""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="histories-"))
        self.inputs = Inputs(self.folder / "in", SOURCES)
        self.uri = str(self.folder / "out")
        self.output = Output(self.folder / "out", self.inputs)
        self.suspended: list[Driver] = []
        self.publishers: dict[int, Driver] = {}
        self.version = self.drivers = 0
        self._gates = gated_stores()
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
        self.repair()

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
    def run_night(self, request: NightRequest) -> None:
        driver = self.start(request)
        self.check_ended(driver)

    @rule(request=requests)
    def run_whole_night(self, request: NightRequest) -> None:
        """Without `--incremental`: all of the input, whatever other dates hold."""
        driver = self.start(replace(request, incremental=False))
        self.check_ended(driver)

    # commands that something happens to

    @rule(request=requests, outage=outages)
    def run_during_outage(self, request: NightRequest, outage: Outage) -> None:
        driver = self.start(request, outage=outage)
        assert driver.status in self.expected(0, 4, 5)

    @rule(request=requests, operations=OPERATIONS)
    def run_and_kill(self, request: NightRequest, operations: int) -> None:
        driver = self.start(request, operations)
        driver.kill()
        self.step(driver)

    @rule(request=requests, operations=OPERATIONS)
    def run_and_suspend(self, request: NightRequest, operations: int) -> None:
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
            self.launch(f"restore {run}", lambda: self._restore(run, model), operations=operations)

    def _restore(self, run: str, model: str) -> None:
        tables = NightTables(Store(self.uri))
        token = claim(tables, model, retry_seconds=RETRY_SECONDS)
        restore_night(tables, run, token=token, retry_seconds=RETRY_SECONDS)

    @rule(later=st.booleans(), operations=st.one_of(st.none(), OPERATIONS))
    def vacuum(self, later: bool, operations: int | None) -> None:
        """Now, or two days later, when everything is old."""
        self.launch("vacuum", lambda: self._vacuum(timedelta(days=2 * later)), operations=operations)

    def _vacuum(self, later: timedelta) -> None:
        tables = NightTables(Store(self.uri))
        claims = {model: claim(tables, model, retry_seconds=RETRY_SECONDS) for model in models_of(tables)}
        if claims:
            plan = plan_vacuum(tables, now=datetime.now(UTC) + later, age=timedelta(hours=24))
            run_vacuum(tables, plan, claims, retry_seconds=RETRY_SECONDS)

    @rule(number=st.integers(0, 999))
    def delete_object(self, number: int) -> None:
        """Anything outside the logs of the tables, but the input rows of at most one run at a time."""
        keys = sorted(
            str(path.relative_to(self.folder / "out"))
            for path in (self.folder / "out").rglob("*")
            if path.is_file() and "_delta_log" not in path.parts
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
            source = self.output.nights[model, date].source
            self.run_successfully(NightRequest(source, model, date, restart=True))
        for model in MODELS:
            for source, date in zip(SOURCES, LAST, strict=True):
                self.run_successfully(NightRequest(source, model, date, restart=True))
            self.check_every_row_is_in_one_night(model)

    # what holds

    def run_successfully(self, request: NightRequest) -> None:
        driver = self.start(request)
        assert driver.status == 0, driver.error

    def start(self, request: NightRequest, operations: int | None = None, outage: Outage | None = None) -> Driver:
        command = type(self).command
        there = replace(request, source=self.inputs.source(request.source))
        return self.launch(str(request), lambda: command(self.uri, there), there, operations, outage)

    def launch(
        self,
        name: str,
        command: Callable[[], object],
        request: NightRequest | None = None,
        operations: int | None = None,
        outage: Outage | None = None,
    ) -> Driver:
        self.drivers += 1
        driver = Driver(f"{self.drivers}: {name}", command, outage, request)
        driver.run(operations)
        self.step(driver)
        return driver

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
        self.output.observe(self.publishers)

    def check_ended(self, driver: Driver) -> None:
        """Nothing disturbed the command: it has published its night, unless a file is bad or an object was deleted."""
        request = driver.request
        assert isinstance(request, NightRequest)
        assert driver.status in self.expected(0, 4 if request.strict else 0), driver.error
        if driver.status == 0:
            self.check_taken(request)

    def expected(self, *statuses: int) -> set[int]:
        """Statuses; a command may also end with status 2 if an object that it needs was deleted."""
        return {*statuses, 2} if self.output.lost else set(statuses)

    def check_taken(self, request: NightRequest) -> None:
        """All of the input is in the night that was published, or in nights of other dates."""
        nights = {date: night for (model, date), night in self.output.nights.items() if model == request.model}
        if not request.incremental:
            nights = {request.date: nights[request.date]}
        taken = {state for night in nights.values() for state in night.taken | night.quarantined}
        lacking = self.inputs.present(request.source) - taken
        if lacking:
            raise Violation(f"{request} has ended with status 0, and no night has {lacking}")

    def check_every_row_is_in_one_night(self, model: str) -> None:
        nights = [night for (other, _), night in self.output.nights.items() if other == model]
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
    assert {"status 0", "status 3", "killed"} <= NightHistories.statuses.keys()
