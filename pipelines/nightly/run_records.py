"""Records of a nightly run: its plan, and what its steps count in a shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.data.input_files import InputFile
from pipelines.data.readers import Shard
from pipelines.storage.shard_log import ShardCounts
from spin.monitor.agreement import AgreementCounts


@dataclass(frozen=True)
class RunPlan:
    """What follows from the input files of a nightly run, worked out once."""

    shards: tuple[Shard, ...]
    """the work, in order"""
    bad: Mapping[str, str]
    """URIs of the files that cannot be read, each with the reason"""
    documents: int
    """in all shards; an estimate where a shard is a range of bytes"""
    skipped: tuple[InputFile, ...] = ()
    """files that an earlier night has taken already"""


@dataclass(frozen=True, kw_only=True)
class DigestCounts(ShardCounts):
    """First pass over the ids: the digests of a shard's ids are written."""

    bad: str | None = None
    """why the file cannot be read, None if it can"""


@dataclass(frozen=True, kw_only=True)
class DuplicateCounts(ShardCounts):
    """Second pass over the ids: one hash partition is searched; `rows` counts its ids."""

    repeats: int
    """rows whose id stood earlier"""


@dataclass(frozen=True, kw_only=True)
class ClassifyCounts(ShardCounts):
    """A classified shard: every row is predicted or a dead letter."""

    uri: str
    """of the input file"""
    predicted: int
    """rows with a prediction"""
    dead: int
    """dead letters"""
    reasons: Mapping[str, int]
    """dead letters by reason"""
    labels: Mapping[str, int]
    """predicted rows by class; a row counts for each of its classes"""
    abstained: int
    """predicted rows for which the decision gives no label"""
    unlabelled: int
    """predicted rows without any class, those that abstained included"""
    depths: Mapping[str, int]
    """predicted rows by the block at which they exited, in decimal digits"""
    tokens: int
    """that the backbone read"""
    truncated: int
    """texts that were cut at the backbone's limit"""
    bad: str | None = None
    """why the file cannot be read, None if it can"""
    shadow: AgreementCounts | None = None
    """agreement with the shadow, None without one"""

    @property
    def dead_letters(self) -> int:
        return self.dead
