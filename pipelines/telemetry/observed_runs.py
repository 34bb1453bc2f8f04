"""Report the work of this process to traces and lineage, if the environment asks for them.

A command wraps its work in `observe_runs`. Below that, `observe_work` marks work on one run or a pass, and
`observe_stage` a stage, from anywhere in the same context. Where neither is asked for, all three do nothing. An
observer that fails is logged and left out: it never fails the work, and is waited for `FLUSH_SECONDS` at the end.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipelines.storage.shard_log import ShardOutcome
from pipelines.telemetry.current_runs import CurrentRun, current_runs, within_span
from pipelines.telemetry.run_record import Observer, RunRecord, Work, WorkError
from spin.settings import mask_credentials
from spin_neurons import install_command

_log = logging.getLogger(__name__)
T = TypeVar("T")
FLUSH_SECONDS = 5.0
"""for which the end of a command waits for what is not delivered"""
_TRACE_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""variables of which one says where traces are sent"""
_LINEAGE_FILE = "openlineage.yml"


@contextmanager
def observe_runs(runs: Sequence[RunRecord]) -> Iterator[None]:
    """Report that this process works on some runs, which end with the context unless `end_run` ends them."""
    observers = _open_observers() if runs else []
    if not observers:
        yield
        return
    observation = _Observation(observers, runs)
    token = _observation.set(observation)
    try:
        yield
    except BaseException as error:
        observation.end_all(error)
        raise
    else:
        observation.end_all(None)
    finally:
        _observation.reset(token)
        observation.close()


@contextmanager
def observe_work() -> Iterator[None]:
    """Report work on `current_runs()`: a run, or several at once."""
    observation, runs = _observation.get(), current_runs()
    if observation is None or not observation.knows(runs):
        yield
    else:
        with observation.within(Work(runs)):
            yield


@contextmanager
def observe_stage(stage: str) -> Iterator[None]:
    """Report a stage of the current work to observers. A stage within one of the same name is part of that one."""
    observation = _observation.get()
    if observation is None or observation.stage == stage:
        yield
    else:
        with observation.within(Work(current_runs(), stage)):
            yield


def report_shard(name: str, shard: ShardOutcome[Any]) -> None:
    """Report to observers that a worker has committed a shard of the current stage."""
    observation = _observation.get()
    if observation is not None:
        observation.notify(lambda each: each.shard_ended(name, shard))


def add_results(run: str, results: RunRecord) -> None:
    """Keep what a run has read and written for the end of its work, beside what was kept before."""
    observation = _observation.get()
    if observation is not None:
        observation.add_results(run, results)


def end_run(run: str, error: BaseException | None = None) -> None:
    """Report to observers that the work on a run has ended, unless that was reported before."""
    observation = _observation.get()
    if observation is not None:
        observation.end(run, error)


class _Observation:
    """The observers of a process, and the runs whose end they wait for."""

    def __init__(self, observers: Sequence[Observer], runs: Sequence[RunRecord]) -> None:
        self._working, self._all = list(observers), tuple(observers)
        self._open = {run.run.name: run for run in runs}
        self._known = frozenset(run.run for run in runs)
        self._nested: list[Work] = []
        for run in runs:
            self.notify(lambda each, run=run: each.run_started(run))  # type: ignore[misc]

    @property
    def stage(self) -> str | None:
        """The stage at work, None outside of one."""
        return self._nested[-1].stage if self._nested else None

    def knows(self, runs: Sequence[CurrentRun]) -> bool:
        """Whether all of some runs were reported to observers, and there are any."""
        return bool(runs) and self._known.issuperset(runs)

    def notify(self, event: Callable[[Observer], T]) -> list[T]:
        """Report an event to all observers, and return their answers; one that fails is removed."""
        answers = []
        for observer in list(self._working):
            try:
                answers.append(event(observer))
            except Exception as error:
                self._working.remove(observer)
                name = type(observer).__name__.lower()
                _log.warning("%s: stopped after an error (%s); the work goes on", name, type(error).__name__)
                _log.debug("an observer failed", exc_info=True)
        return answers

    @contextmanager
    def within(self, work: Work) -> Iterator[None]:
        """Report the beginning and the end of work, which is the context, to observers."""
        self._nested.append(work)
        span = next((span for span in self.notify(lambda each: each.work_started(work)) if span is not None), None)
        work_error = None
        try:
            with nullcontext() if span is None else within_span(span):
                yield
        except BaseException as error:
            work_error = WorkError.of(error)
            raise
        finally:
            self.notify(lambda each: each.work_ended(work_error))
            self._nested.pop()

    def add_results(self, run: str, results: RunRecord) -> None:
        """Update the record of a run, unless it has ended."""
        if run in self._open:
            self._open[run] = self._open[run].updated(results)

    def end(self, run: str, error: BaseException | None) -> None:
        """Report the end of a run, unless it has ended."""
        record = self._open.pop(run, None)
        if record is not None:
            ended = replace(record, error=None if error is None else WorkError.of(error))
            self.notify(lambda each: each.run_ended(ended))

    def end_all(self, error: BaseException | None) -> None:
        """End the runs that are open, with the error that ends the context."""
        for run in list(self._open):
            self.end(run, error)

    def close(self) -> None:
        """Let all observers deliver what they have, together for at most `FLUSH_SECONDS`."""
        deadline = time.monotonic() + FLUSH_SECONDS
        # daemons, since a thread that waits for a server must not keep the process from ending
        threads = [threading.Thread(target=each.close, daemon=True, name="flush") for each in self._all]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.notify(lambda each: each.give_up())


_observation: ContextVar[_Observation | None] = ContextVar("observation", default=None)


def wants_traces() -> bool:
    """Whether an endpoint for traces is set, and OpenTelemetry is not switched off."""
    if _is_true("OTEL_SDK_DISABLED") or os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return _trace_endpoint() is not None


def _trace_endpoint() -> str | None:
    return next((value for name in _TRACE_ENDPOINTS if (value := os.environ.get(name))), None)


def wants_lineage() -> bool:
    """Whether the OpenLineage client finds a configuration, and is not switched off.

    It reads these variables and files; where there are none it would print events to standard output.
    """
    if _is_true("OPENLINEAGE_DISABLED"):
        return False
    if os.environ.get("OPENLINEAGE_URL") or any(name.startswith("OPENLINEAGE__TRANSPORT") for name in os.environ):
        return True
    files = [Path(_LINEAGE_FILE), Path("~/.openlineage").expanduser() / _LINEAGE_FILE]
    if named := os.environ.get("OPENLINEAGE_CONFIG"):
        files.append(Path(named))
    return any(file.is_file() for file in files)


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() == "true"


def _open_observers() -> list[Observer]:
    """The observers that the environment asks for and whose packages are installed."""
    observers: list[Observer] = []
    for name, extra, wanted, open_observer in (
        ("traces", "otel", wants_traces, _open_traces),
        ("lineage", "lineage", wants_lineage, _open_lineage),
    ):
        try:
            if wanted():
                observers.append(open_observer())
        except ImportError as error:
            _log.warning(
                "%s: the environment asks for it, but %s is not installed: %s; the work goes on without",
                name,
                error.name or "a package",
                install_command(extra),
            )
            _log.debug("%s could not be imported", name, exc_info=True)
        except Exception as error:
            _log.warning("%s: cannot be set up (%s); the work goes on without", name, type(error).__name__)
            _log.debug("%s could not be set up", name, exc_info=True)
    return observers


def _open_traces() -> Observer:
    from pipelines.telemetry.traces import Traces

    return Traces(mask_credentials(_trace_endpoint() or ""))


def _open_lineage() -> Observer:
    from pipelines.telemetry.lineage import Lineage

    return Lineage()
