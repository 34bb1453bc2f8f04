"""The record of a run on which a process works: traces and lineage are written from it, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.service_errors import HeldError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardOutcome
from pipelines.telemetry.current_runs import CurrentRun
from spin.errors import SpinError, exit_status
from spin.settings import mask_credentials


@dataclass(frozen=True, kw_only=True)
class DataUse:
    """Data that a run reads or writes, and how much of it where that is known."""

    uri: str
    """a folder, a file or a glob, a Delta table, or the name of a registered model"""
    kind: Literal["files", "table", "model"]
    rows: int | None = None
    """documents or rows"""
    files: int | None = None
    """number of files"""
    bytes: int | None = None
    """size of these"""
    version: str | None = None
    """of a model"""


@dataclass(frozen=True)
class WorkError:
    """An error that has ended work early, as operators see it."""

    kind: str
    """name of the class of the error"""
    message: str
    """one line without credentials; of an error that is not SPIN's own only its class, since a text may stand in it"""
    status: int
    """exit status"""
    aborted: bool
    """whether the process was overtaken or stopped, and the work itself did not fail"""

    @classmethod
    def of(cls, error: BaseException) -> WorkError:
        """The report of an error."""
        kind, status = type(error).__name__, exit_status(error)
        aborted = isinstance(error, HeldError) or not isinstance(error, Exception)
        if isinstance(error, SpinError) or not isinstance(error, Exception):  # these are a line of SPIN's own
            message = " ".join(str(error).split()) or kind
        else:
            message = f"{kind}; the log has its message"
        return cls(kind, mask_credentials(message), status, aborted)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run on which a process works: at its start, and with what is known of its results at its end."""

    run: CurrentRun
    """its name and model"""
    kind: Literal["night", "training"]
    number: int
    """of this process among those of the run: a later process has a larger one"""
    home: str
    """URI of the output of a night, or of the store of a training"""
    records: Store
    """where records of the run are kept"""
    date: str | None = None
    """of the night, YYYY-MM-DD"""
    inputs: tuple[DataUse, ...] = ()
    """data that the run reads"""
    outputs: tuple[DataUse, ...] = ()
    """data that the run writes"""
    error: WorkError | None = None
    """the error that has ended the run; None before its end, and if it is complete"""

    @property
    def model_version(self) -> str | None:
        """The version of the model that classifies a night, None for a training."""
        return next((use.version for use in self.inputs if use.kind == "model"), None)


class Observer:
    """Writes what a process reports of its work to where operators look at it; by default it writes nothing.

    Work is nested: the part that began last ends first.
    """

    def run_started(self, run: RunRecord) -> None:
        """The process begins to work on a run."""

    def run_ended(self, run: RunRecord) -> None:
        """The process has ended its work on a run; this is reported once."""

    def work_started(self, runs: Sequence[CurrentRun], stage: str | None) -> Mapping[str, str] | None:
        """A stage of the work on some runs begins, or, without one, all that they do at once.

        `trace_id` and `span_id` of its span are returned, as in W3C Trace Context: log lines name it by them.
        """

    def work_ended(self, error: WorkError | None) -> None:
        """The work that began last has ended."""

    def shard_ended(self, name: str, shard: ShardOutcome[Any]) -> None:
        """A worker has committed a shard of the current stage."""

    def close(self) -> None:
        """Deliver what is not delivered. This may take longer than the caller waits."""

    def give_up(self) -> None:
        """Log what was not delivered by the time that the caller no longer waits; it ends `close`."""
