"""Report the work of this process to traces and lineage, if the environment asks for them.

A command wraps its work in `observe_runs`. Below that, `observe_work` marks work on one run or a pass, and
`observe_stage` a stage, from anywhere in the same context. Where neither is asked for, they do nothing. An
observer that fails is logged and left out: it never fails the work, and is waited for `FLUSH_SECONDS` at the end.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipelines.storage.shard_log import ShardOutcome
from pipelines.telemetry.current_runs import current_runs, within_span
from pipelines.telemetry.run_record import Observer, RunRecord, WorkError
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
    observation = _Observation(_open_observers() if runs else [], runs)
    token = _observation.set(observation)
    cause: BaseException | None = None
    try:
        yield
    except BaseException as error:
        cause = error
        raise
    finally:
        observation.close(cause)
        _observation.reset(token)


def observe_work() -> AbstractContextManager[None]:
    """Report work on `current_runs()`: a run, or several at once."""
    return _current().within(None)


def observe_stage(stage: str) -> AbstractContextManager[None]:
    """Report a stage of the current work to observers. A stage within one of the same name is part of that one."""
    return _current().within(stage)


def report_shard(name: str, shard: ShardOutcome[Any]) -> None:
    """Report to observers that a worker has committed a shard of the current stage."""
    _current().notify(lambda each: each.shard_ended(name, shard))


def update_run(run: RunRecord) -> None:
    """Keep a later record of a run, with what it has read and written, to be reported at the end of the work."""
    _current().update(run)


def end_run(run: str, error: BaseException | None = None) -> None:
    """Report to observers that the work on a run has ended, unless that was reported before."""
    _current().end(run, error)


class _Observation:
    """The observers of a process, and the runs whose end they wait for."""

    def __init__(self, observers: Sequence[Observer] = (), runs: Sequence[RunRecord] = ()) -> None:
        self._working, self._all = list(observers), tuple(observers)
        self._open = {run.run.name: run for run in runs}
        self._known = frozenset(run.run for run in runs)
        self._nested: list[str | None] = []
        for run in runs:
            self.notify(lambda each, run=run: each.run_started(run))  # type: ignore[misc]

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
    def within(self, stage: str | None) -> Iterator[None]:
        """Report the beginning and the end of a stage, or without one of all work, on `current_runs()`: the context.

        Work on runs of which observers know nothing is not reported, nor is a stage within itself.
        """
        runs = current_runs()
        known = bool(runs) and self._known.issuperset(runs)
        if not known or (stage is not None and self._nested and self._nested[-1] == stage):
            yield
            return
        self._nested.append(stage)
        spans = self.notify(lambda each: each.work_started(runs, stage))
        span = next((span for span in spans if span is not None), None)
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

    def update(self, run: RunRecord) -> None:
        """Replace the record of a run, unless it has ended."""
        if run.run.name in self._open:
            self._open[run.run.name] = run

    def end(self, run: str, error: BaseException | None) -> None:
        """Report the end of a run, unless it has ended."""
        record = self._open.pop(run, None)
        if record is not None:
            ended = replace(record, error=None if error is None else WorkError.of(error))
            self.notify(lambda each: each.run_ended(ended))

    def close(self, error: BaseException | None) -> None:
        """End the runs that are open, and let all observers deliver what they have, for at most `FLUSH_SECONDS`."""
        for run in list(self._open):
            self.end(run, error)
        deadline = time.monotonic() + FLUSH_SECONDS
        # daemons, since a thread that waits for a server must not keep the process from ending
        threads = [threading.Thread(target=each.close, daemon=True, name="flush") for each in self._all]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.notify(lambda each: each.give_up())


_observation: ContextVar[_Observation | None] = ContextVar("observation", default=None)


def _current() -> _Observation:
    """The observation of the innermost `observe_runs`; one without observers outside of it."""
    return _observation.get() or _Observation()


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
