"""Report the work of this process to traces and lineage, if the environment asks for them.

A command wraps its work in `observe_runs`. Below that, `observe_work` marks work on one run or a pass, and
`observe_stage` a stage, from anywhere in the same context. Where neither is asked for, all three do nothing. An
observer that fails is logged and left out: it never fails the work, and is waited for `FLUSH_SECONDS` at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from pipelines.telemetry.current_runs import current_runs
from pipelines.telemetry.current_span import within_span
from pipelines.telemetry.run_events import Observer, RunEnd, RunResults, RunStart, ShardEnd, WorkError
from pipelines.telemetry.telemetry_settings import wants_lineage, wants_traces
from spin_neurons import install_command

_log = logging.getLogger(__name__)
FLUSH_SECONDS = 5.0
"""for which the end of a command waits for what is not delivered"""


@contextmanager
def observe_runs(starts: Sequence[RunStart]) -> Iterator[None]:
    """Report that this process works on some runs, which end with the context unless `end_run` ends them."""
    observers = _open_observers() if starts else []
    if not observers:
        yield
        return
    observation = _Observation(observers, starts)
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
    if observation is None or not observation.knows([run.name for run in runs]):
        yield
        return
    with observation.within(lambda each: each.work_started(runs), lambda each, error: each.work_ended(error)):
        yield


@contextmanager
def observe_stage(stage: str) -> Iterator[ObservedStage]:
    """Report a stage of the current work to observers. A stage within one of the same name is part of that one."""
    observation = _observation.get()
    if observation is None or observation.stages[-1:] == [stage]:
        yield ObservedStage(observation)
        return
    observation.stages.append(stage)
    try:
        with observation.within(lambda each: each.stage_started(stage), lambda each, error: each.stage_ended(error)):
            yield ObservedStage(observation)
    finally:
        observation.stages.pop()


def add_results(run: str, results: RunResults) -> None:
    """Keep what a run has read and written for the end of its work, beside what was kept before."""
    observation = _observation.get()
    if observation is not None:
        observation.results[run] = observation.results.get(run, RunResults()).updated(results)


def end_run(run: str, error: BaseException | None = None) -> None:
    """Report to observers that the work on a run has ended, unless that was reported before."""
    observation = _observation.get()
    if observation is not None:
        observation.end(run, error)


class ObservedStage:
    """A stage that is reported to observers."""

    def __init__(self, observation: _Observation | None) -> None:
        self._observation = observation

    def shard_ended(self, name: str, shard: ShardEnd) -> None:
        """Report to observers that a worker has committed a shard."""
        if self._observation is not None:
            self._observation.notify(lambda each: each.shard_ended(name, shard))


class _Observation:
    """The observers of a process, and the runs whose end they wait for."""

    def __init__(self, observers: Sequence[Observer], starts: Sequence[RunStart]) -> None:
        self._observers = list(observers)
        self._all = tuple(observers)
        self._open = {start.run.name: start for start in starts}
        self._known = frozenset(self._open)
        self.results: dict[str, RunResults] = {}
        self.stages: list[str] = []
        for start in starts:
            self.notify(lambda each, start=start: each.run_started(start))  # type: ignore[misc]

    def knows(self, runs: Sequence[str]) -> bool:
        """Whether all of some runs were reported to observers, and there are any."""
        return bool(runs) and self._known.issuperset(runs)

    def notify(self, event: Callable[[Observer], None]) -> None:
        """Report an event to all observers; one that fails is removed."""
        for observer in list(self._observers):
            try:
                event(observer)
            except Exception as error:
                self._observers.remove(observer)
                name = type(observer).__name__.lower()
                _log.warning("%s: stopped after an error (%s); the work goes on", name, type(error).__name__)
                _log.debug("an observer failed", exc_info=True)

    @contextmanager
    def within(
        self, begin: Callable[[Observer], None], end: Callable[[Observer, WorkError | None], None]
    ) -> Iterator[None]:
        """Report the beginning and the end of the context to observers."""
        self.notify(begin)
        span = next((span for each in self._observers if (span := each.current_span()) is not None), None)
        try:
            with nullcontext() if span is None else within_span(span):
                yield
        except BaseException as error:
            work_error = WorkError.of(error)
            self.notify(lambda each: end(each, work_error))
            raise
        else:
            self.notify(lambda each: end(each, None))

    def end(self, run: str, error: BaseException | None) -> None:
        start = self._open.pop(run, None)
        if start is not None:
            work_error = None if error is None else WorkError.of(error)
            end = RunEnd(work_error, self.results.get(run, RunResults()))
            self.notify(lambda each: each.run_ended(start, end))

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


def _open_observers() -> list[Observer]:
    """The observers that the environment asks for and whose packages are installed."""
    observers: list[Observer] = []
    try:
        if wants_traces():
            from pipelines.telemetry.traces import Traces

            observers.append(Traces())
    except Exception as error:
        _warn_not_open("traces", "otel", error)
    try:
        if wants_lineage():
            from pipelines.telemetry.lineage import Lineage

            observers.append(Lineage())
    except Exception as error:
        _warn_not_open("lineage", "lineage", error)
    return observers


def _warn_not_open(name: str, extra: str, error: Exception) -> None:
    if isinstance(error, ImportError):
        _log.warning(
            "%s: the environment asks for it, but %s is not installed: %s; the work goes on without",
            name,
            error.name or "a package",
            install_command(extra),
        )
    else:
        _log.warning("%s: cannot be set up (%s); the work goes on without", name, type(error).__name__)
    _log.debug("%s could not be set up", name, exc_info=True)
