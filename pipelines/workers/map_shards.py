"""Map a step over planned shards: an actor reads, computes and commits each shard under a key of the plan."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from pipelines.data.files.shards import Shard
from pipelines.service_errors import StalledError
from pipelines.storage.lease import LEASE_CHECK_SECONDS, Lease, LeaseGroup
from pipelines.storage.object_store import Store
from pipelines.storage.retrying import retry_unavailable
from pipelines.storage.shard_log import Attempt, LogLayout, ShardCounts, ShardLog, ShardOutcome, StepResult
from pipelines.telemetry.json_lines import WorkerLog
from pipelines.telemetry.observed_runs import observe_stage, report_shard
from pipelines.workers.fault_isolation import check_readable, run_check
from pipelines.workers.progress import polled_progress
from pipelines.workers.ray_cluster import (
    cluster,
    configure_worker,
    current_actor,
    current_node,
    least_workers,
    lost_nodes,
    translate_ray_errors,
    worker_count,
)
from pipelines.workers.repeated_calls import repeat
from pipelines.workers.stage_counts import (
    Report,
    ShardReports,
    StageCounts,
    ask_reports,
    count_shard,
    report_to,
    start_reports,
)
from pipelines.workers.stage_metrics import EXPORT_SECONDS, StageMetrics, export_metrics
from pipelines.workers.worker_faults import WorkerFaults, faults_of_worker
from spin.errors import SpinError, describe_error
from spin.pages.number_format import counted
from spin.settings import BackboneSettings, RaySettings

_log = logging.getLogger(__name__)
C = TypeVar("C", bound=ShardCounts)
T = TypeVar("T")
_Results = Generator[tuple[str, ShardOutcome[C]], None, None]


class Step(Protocol[C]):
    """The function that a stage applies to one shard. Computing a shard again must give the same result.

    A step may have a method `check()`, which computes what is known to be good. A new worker calls it once, before its
    first shard. The step itself passes it to `isolate_failing_rows`, so that a document is blamed only by a worker
    that can compute something.
    """

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[C]: ...


@dataclass(frozen=True)
class ShardWork(Generic[C]):
    """The work of a stage on its shards, and where they are committed; it is pickled and sent to the actors."""

    make: Callable[..., Step[C]]
    """class or function that returns the step; each worker calls it once"""
    args: tuple[Any, ...]
    """arguments of `make`"""
    counts_type: type[C]
    """record that the step counts"""
    store: Store
    """where shards are committed"""
    settings: RaySettings
    _: KW_ONLY
    stage: str
    """name of the stage, for metrics and messages"""
    claim: int
    """number of the driver"""
    layout: LogLayout = field(default_factory=LogLayout)
    """where the shard log and the files are in the store"""
    backbone: str | None = None
    """engine and precision of the backbone that the step loads, as `describe_backbone` returns them; None if it loads
    none"""
    log: WorkerLog = field(default_factory=WorkerLog.of_driver)
    """the runs that the stage works for, for metrics and log lines, and how the workers log"""
    reports: Any = None
    """actor that takes reports on the progress of shards; None for none"""

    def open_log(self, **node: Any) -> ShardLog:
        """The shard log of the run."""
        return ShardLog(self.store, claim=self.claim, layout=self.layout, **node)

    def make_step(self) -> Step[C]:
        """Make the step and run its known-good check, if it has one. Raises WorkerFaultError if the check fails."""
        with faults_of_worker():
            step = self.make(*self.args)
            if (check := getattr(step, "check", None)) is not None:
                run_check(check)
            return step


def map_shards(
    work: ShardWork[C],
    shards: Sequence[Shard],
    lease: Lease | LeaseGroup,
    *,
    documents: int | None,
    here: bool = False,
) -> list[ShardOutcome[C]]:
    """Run a step in an actor pool over the shards that are not yet committed; all outcomes in order of shards.

    `here` runs the step in this process instead, for so little work that starting actors would take longer; so does a
    stage without workers (`ray.workers: 0`). What kills this process kills the driver, so no document is blamed for it.
    `documents` is the number of all, for the progress, which counts bytes of input where it is None: not known yet.

    Whatever kills a worker or the driver, a shard that is not committed is computed again. While the store does not
    answer, requests are retried for its `retry_seconds`, and files that are computed are written without computing them
    again. Raises the error of a step, after the shards that were committed before it are safe; StalledError if no
    shard ends for `stall_seconds`; WorkerFaultError if workers die while they make the step, or fail on what is known
    to be good.
    """
    outcomes = work.open_log().outcomes(work.counts_type, {shard.name for shard in shards})
    # guarded by test_a_resumed_run_computes_only_what_is_missing; broken by:
    #   waiting = list(shards)
    waiting = [shard for shard in shards if shard.name not in outcomes]
    if waiting:
        counts = StageCounts(shards, outcomes, documents)
        run = _run_here if here or work.settings.workers == 0 else _run_in_actors
        with (
            observe_stage(work.stage),
            export_metrics(work.stage, lease) as metrics,
            polled_progress(work.stage, counts.total, counts.unit, counts.done, counts.others),
            closing(run(work, waiting, counts)) as results,
        ):
            for name, outcome in results:
                lease.check(max_age=LEASE_CHECK_SECONDS)
                outcomes[name] = outcome
                counts.shard_ended(name, outcome)
                metrics.count(outcome)
                report_shard(name, outcome)
    return [outcomes[shard.name] for shard in shards]


def describe_backbone(settings: BackboneSettings) -> str:
    """The engine and the precision of a backbone, for messages."""
    return f"engine {settings.engine}, precision {settings.dtype}"


def _run_here(work: ShardWork[C], shards: Sequence[Shard], counts: StageCounts) -> _Results[C]:
    step, shard_log, reports = work.make_step(), work.open_log(), ShardReports()
    counts.listen(reports.read)
    for shard in shards:
        with faults_of_worker():
            outcome = commit_shard(step, shard, shard_log, work.counts_type, report=reports.report)
        yield shard.name, outcome


def _run_in_actors(work: ShardWork[C], shards: Sequence[Shard], counts: StageCounts) -> _Results[C]:
    from ray import cloudpickle

    with cluster(work.settings), translate_ray_errors(work.stage):
        if work.backbone is not None:  # other steps take a shard in a moment
            reports = start_reports()
            counts.listen(partial(ask_reports, reports))
            work = replace(work, reports=reports)
        for row in _within_stall_limit(_map_in_ray(work, shards).iter_rows(), work):
            answer = cloudpickle.loads(row["answer"])
            if isinstance(answer, SpinError):
                raise answer
            yield row["shard"], answer


def commit_shard(
    step: Step[C],
    shard: Shard,
    shard_log: ShardLog,
    counts_type: type[C] | None = None,
    *,
    report: Report = lambda shard, documents: None,
) -> ShardOutcome[C]:
    """Compute a shard and commit it. Returns its outcome, which is another's if that was first.

    While a store does not answer the step, the step is called again for the `retry_seconds` of the log's store after
    its first failure. Requests of the log are retried on their own, without the step. With `counts_type`, a shard that
    was tried before is not computed if it has an outcome: Ray computes a shard again if the node with the answer is
    lost. `report` takes the name of the shard and the number of its computed documents, at most once per second.
    """
    with shard_log.attempt(shard.name, count_shard(shard.name, report)) as attempt:
        if counts_type is not None and attempt.begun > 1:
            outcome = shard_log.find_outcome(shard.name, counts_type)
            if outcome is not None:
                return outcome
        check_readable(_describe_shard(shard), attempt)
        for call in retry_unavailable(shard_log.store):
            with call:
                start = time.perf_counter()
                result = step(shard, attempt)
                seconds = round(time.perf_counter() - start, 3)
        tries, ended = attempt.begun + call.retry_state.attempt_number - 1, round(time.time(), 3)
        return shard_log.commit(shard.name, result, tries=tries, seconds=seconds, ended=ended)


def _describe_shard(shard: Shard) -> str:
    """The name of a shard and its first file, for messages."""
    files = list(dict.fromkeys(piece.uri for piece in shard.pieces))
    more = f" and {counted(len(files) - 1, 'more file')}" if len(files) > 1 else ""
    return f"shard {shard.name} ({files[0]}{more})" if files else f"shard {shard.name}"


def _map_in_ray(work: ShardWork[Any], shards: Sequence[Shard]) -> Any:
    """The Ray dataset of the answers; actors compute them, in the order in which they end, while it is read."""
    import ray
    from ray import cloudpickle

    rows = [{"shard": cloudpickle.dumps(shard)} for shard in shards]
    settings = work.settings
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,
        fn_constructor_args=(work,),
        compute=_pool(settings, len(rows)),
        # guarded by test_a_killed_worker_does_not_change_the_result; broken by:
        #   num_cpus=settings.cpus_per_worker, max_restarts=0, max_task_retries=0,
        num_cpus=settings.cpus_per_worker,
        num_gpus=settings.gpus_per_worker or None,
    )
    answers.context.execution_no_progress_timeout_s = -1  # Ray Data's own limit: `stall_seconds` is the one that counts
    return answers


def _pool(settings: RaySettings, work: int) -> Any:
    """Actors for the workers that the cluster holds now; if their number is open, it follows the cluster's size."""
    from ray.data import ActorPoolStrategy

    now = worker_count(settings, work)
    # guarded by test_a_night_uses_added_nodes_and_survives_lost_ones; broken by:
    #   most = now
    most = work if settings.address is not None and settings.workers is None else now
    least = least_workers(settings, most)
    return ActorPoolStrategy(min_size=least, max_size=most, initial_size=max(least, now))


def _within_stall_limit(answers: Iterator[T], work: ShardWork[Any]) -> Iterator[T]:
    """The answers; raises StalledError if the next one does not come within `stall_seconds` of the last."""
    seconds, shard_log = work.settings.stall_seconds, work.open_log()
    waiting: queue.Queue[T | BaseException | None] = queue.Queue()

    def listen() -> None:
        try:
            for answer in answers:
                waiting.put(answer)
            waiting.put(None)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=listen, daemon=True, name="answers").start()
    while True:
        try:
            # guarded by test_a_stalled_run_fails_and_names_the_shards_in_progress; broken by:
            #   answer = waiting.get()
            answer = waiting.get(timeout=seconds)
        except queue.Empty:
            committed = set(shard_log.committed())
            open_shards = [name for name in shard_log.begun() if name not in committed]
            raise StalledError(
                f"{work.stage}: no shard has ended for {seconds:g} s (ray.stall_seconds); begun and not ended: "
                f"{', '.join(open_shards[:8]) or 'none'} in {shard_log.store.uri}. Look at these, then run it "
                "again to resume"
            ) from None
        if answer is None:
            return
        if isinstance(answer, BaseException):
            raise answer
        yield answer


class _Worker:
    """One actor: makes the step once, then computes and commits shards."""

    def __init__(self, work: ShardWork[Any]) -> None:
        self.metrics = StageMetrics(work.stage, work.log.runs)
        self.lasting = ExitStack()  # open until the process ends
        self.lasting.enter_context(repeat(self.metrics.export, EXPORT_SECONDS, "metrics"))
        self.node = current_node()
        self.shard_log = work.open_log(node=self.node, lost_nodes=lost_nodes)
        self.counts_type = work.counts_type
        self.faults = WorkerFaults(work.store, work.layout, work.claim)
        self.log = work.log
        self.report: Report = lambda shard, documents: None
        if work.reports is not None:
            self.report = report_to(work.reports)
        self.failure: Exception | None = None
        with self.log.entered():
            try:
                configure_worker(work.settings)
                starting = self.faults.watch_start(current_actor(), self.node, lost_nodes, work.backbone)
                with self.faults.replacing_worker(), starting:
                    self.step = work.make_step()
            except Exception as error:  # raised here, it would make Ray start the actor again and again
                _log.debug("the worker cannot start", exc_info=True)
                self.failure = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The name of a shard, and its outcome or the SpinError for the driver, pickled."""
        from ray import cloudpickle

        shard: Shard = cloudpickle.loads(row["shard"])
        answer: ShardOutcome[Any] | SpinError
        with self.log.entered():
            try:
                if self.failure is not None:
                    raise self.failure
                with self.faults.replacing_worker():
                    answer = commit_shard(self.step, shard, self.shard_log, self.counts_type, report=self.report)
            except Exception as error:
                _log.debug("shard %s failed", shard.name, exc_info=True)
                answer = _error_for_driver(error)
        self.metrics.export()  # the process may end before the next regular export
        return {"shard": shard.name, "answer": cloudpickle.dumps(answer)}


def _error_for_driver(error: Exception) -> SpinError:
    """The error with its class and message alone; one that is not SPIN's own is described in a line."""
    if isinstance(error, SpinError):
        return type(error)(str(error))
    return SpinError(f"a worker raised {describe_error(error)}")
