"""What a process reports to observers: which runs it works on, their stages and shards, and how each run ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, Protocol

from pipelines.service_errors import HeldError
from pipelines.telemetry.current_runs import CurrentRun
from pipelines.telemetry.current_span import CurrentSpan
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


class RecordStore(Protocol):
    """A folder or prefix for small records of a run, such as a `Store`."""

    @property
    def uri(self) -> str: ...

    def read(self, key: str) -> bytes | None: ...

    def create(self, key: str, data: bytes) -> bool: ...

    def list_names(self, prefix: str = "") -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A run on which a process begins to work, or goes on."""

    run: CurrentRun
    """its name and model"""
    kind: Literal["night", "training"]
    number: int
    """of this process among those of the run: a later process has a larger one"""
    home: str
    """URI of the output of a night, or of the store of a training"""
    records: RecordStore
    """where records of the run are kept"""
    date: str | None = None
    """of the night, YYYY-MM-DD"""
    inputs: tuple[DataUse, ...] = ()
    """what the run reads"""
    outputs: tuple[DataUse, ...] = ()
    """what the run writes"""

    @property
    def model_version(self) -> str | None:
        """The version of the model that classifies a night, None for a training."""
        return next((use.version for use in self.inputs if use.kind == "model"), None)


@dataclass(frozen=True)
class RunResults:
    """What a run has read and written in the end."""

    inputs: tuple[DataUse, ...] = ()
    outputs: tuple[DataUse, ...] = ()

    def updated(self, later: RunResults) -> RunResults:
        """These results with what later ones say about the same or other data."""
        return RunResults(update_uses(self.inputs, later.inputs), update_uses(self.outputs, later.outputs))


def update_uses(uses: Sequence[DataUse], later: Sequence[DataUse]) -> tuple[DataUse, ...]:
    """Uses of data, with the numbers of later ones where they have some."""
    merged = {(use.kind, use.uri): use for use in uses}
    for use in later:
        known = {name: value for name, value in asdict(use).items() if value is not None}
        merged[use.kind, use.uri] = replace(merged.get((use.kind, use.uri), use), **known)
    return tuple(merged.values())


@dataclass(frozen=True)
class WorkError:
    """Why work has ended early."""

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
        """What is reported of an error."""
        kind, status = type(error).__name__, exit_status(error)
        aborted = isinstance(error, HeldError) or not isinstance(error, Exception)
        if isinstance(error, SpinError) or not isinstance(error, Exception):  # these are a line of SPIN's own
            message = " ".join(str(error).split()) or kind
        else:
            message = f"{kind}; the log has its message"
        return cls(kind, mask_credentials(message), status, aborted)


@dataclass(frozen=True)
class RunEnd:
    """The end of the work of a process on a run."""

    error: WorkError | None = None
    """None if the run is complete"""
    results: RunResults = field(default_factory=RunResults)
    """what is known of its results"""


class ShardRows(Protocol):
    """The counts of a shard that every stage has."""

    @property
    def rows(self) -> int: ...

    @property
    def dead_letters(self) -> int: ...


class ShardEnd(Protocol):
    """A committed shard, such as a `ShardOutcome`."""

    @property
    def counts(self) -> ShardRows: ...

    @property
    def tries(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    @property
    def ended(self) -> float: ...


class Observer:
    """Receives what a process reports of its work; by default it ignores everything.

    Work and stages are nested: the one that began last ends first.
    """

    def run_started(self, start: RunStart) -> None:
        """The process begins to work on a run."""

    def run_ended(self, start: RunStart, end: RunEnd) -> None:
        """The process has ended its work on a run; this is reported once."""

    def work_started(self, runs: Sequence[CurrentRun]) -> None:
        """What follows is work on one run, or on several runs at once: on a pass."""

    def work_ended(self, error: WorkError | None) -> None:
        """The work that began last has ended."""

    def stage_started(self, stage: str) -> None:
        """A stage begins within the current work."""

    def stage_ended(self, error: WorkError | None) -> None:
        """The stage that began last has ended."""

    def shard_ended(self, name: str, shard: ShardEnd) -> None:
        """A worker has committed a shard of the current stage."""

    def current_span(self) -> CurrentSpan | None:
        """The span by which log lines name the current work or stage."""
        return None

    def close(self) -> None:
        """Deliver what is not delivered. This may take longer than the caller waits."""

    def give_up(self) -> None:
        """Log what was not delivered by the time that the caller no longer waits; it ends `close`."""
