"""The share of one night in its pass: what it takes of the files, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipelines.data.files.shards import Shard
from pipelines.data.intake import FileOutcome, NightPlan
from pipelines.data.spool import SPOOL
from pipelines.nightly.night import Night
from pipelines.nightly.steps.run_records import ClassifyCounts
from pipelines.nightly.tables.night_tables import QUARANTINED, TAKEN
from pipelines.nightly.tables.publication import InputRow
from pipelines.storage.shard_log import ShardOutcome

Outcomes = Sequence[ShardOutcome[ClassifyCounts]]


@dataclass(frozen=True)
class NightShare:
    """The share of a night in its pass."""

    night: Night
    """the night"""
    plan: NightPlan
    """its shards and files"""
    rejected: Mapping[str, str]
    """reasons by URI of its files that the intake did not read"""
    tasks: frozenset[int]
    """tasks of the intake with its files"""
    shards: frozenset[int] | None
    """indices of its shards, None if it takes all of the pass"""
    outcomes: Outcomes = ()
    """of its shards, once all are classified"""

    @property
    def documents(self) -> int:
        """Number of documents in its shards."""
        return sum(shard.documents for shard in self.plan.shards)

    def takes(self, shard: Shard) -> bool:
        """Whether the night takes the files of a shard."""
        return self.shards is None or shard.index in self.shards

    @cached_property
    def quarantined(self) -> Mapping[str, str]:
        """The reason for each file that could not be read, by URI, in order of URI."""
        changed = {o.counts.uri: o.counts.bad for o in self.outcomes if o.counts.bad is not None}
        unreadable = {file.uri: file.reason for file in self.plan.files if file.reason is not None}
        return dict(sorted({**self.rejected, **changed, **unreadable}.items()))

    @cached_property
    def readable(self) -> Outcomes:
        """The outcomes of the shards whose files could be read: all spooled parts, and pieces of other files."""
        pairs = zip(self.plan.shards, self.outcomes, strict=True)
        return [o for shard, o in pairs if shard.pieces[0].kind == SPOOL or shard.uri not in self.quarantined]

    @cached_property
    def input_rows(self) -> list[InputRow]:
        """A row per input file that the run was to read."""
        listed = {file.uri: file for file in self.night.run.listing.files}
        counted = self._rows_of_large_files()
        rows = [self._input_row(file, counted.get(file.uri, file.rows)) for file in self.plan.files]
        for uri, reason in self.rejected.items():
            size, version = (listed[uri].size, listed[uri].version) if uri in listed else (0, "")
            rows.append(InputRow(uri, size, version, 0, QUARANTINED, reason))
        return rows

    def keys(self, ending: str) -> list[str]:
        """The keys in the output of the files of its readable shards that have an ending."""
        return [key for outcome in self.readable for key in outcome.files if key.endswith(ending)]

    def _input_row(self, file: FileOutcome, rows: int) -> InputRow:
        reason = self.quarantined.get(file.uri)
        if reason is not None:
            return InputRow(file.uri, file.size, file.version, 0, QUARANTINED, reason)
        return InputRow(file.uri, file.size, file.version, rows, TAKEN)

    def _rows_of_large_files(self) -> Mapping[str, int]:
        """The rows that the classify step read, by file: the intake estimates those of files that it did not read."""
        rows: Counter[str] = Counter()
        for shard, outcome in zip(self.plan.shards, self.outcomes, strict=True):
            if shard.pieces[0].by_bytes:
                rows[shard.uri] += outcome.counts.rows
        return rows
