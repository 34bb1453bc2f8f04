"""Counts of the steps of a nightly run: in a shard, and of a night."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.data.intake import IntakeReport
from pipelines.storage.shard_log import ShardCounts, ShardTally
from spin.monitor.agreement import AgreementCounts


@dataclass(frozen=True, kw_only=True)
class IntakeCounts(ShardCounts):
    """A task of the intake."""

    report: IntakeReport
    """what it read"""
    repeated: int
    """rows whose id an earlier row of the same task has: none of them can be predicted"""


@dataclass(frozen=True, kw_only=True)
class DocumentCounts:
    """Counts of documents that a model has classified."""

    rows: int
    """documents read, dead letters included"""
    predicted: int
    """rows with a prediction"""
    abstained: int
    """predicted rows without a label because the decision abstains"""
    unlabelled: int
    """predicted rows without any class, including those on which the decision abstains"""
    dead: int
    """number of dead letters"""
    tokens: int
    """tokens that the backbone read"""
    truncated: int
    """texts that were not read to their end"""
    reasons: Mapping[str, int]
    """dead letters by reason"""
    labels: Mapping[str, int]
    """predicted rows by class; a row counts for each of its classes"""
    depths: Mapping[str, int]
    """predicted rows by the block after which they exited, in decimal digits; -1: their words alone decided"""
    windows: int = 0
    """windows in which the backbone read the texts, 0 where long texts are cut"""
    unread_tokens: int = 0
    """tokens of the texts beyond their last window, 0 where long texts are cut"""


@dataclass(frozen=True, kw_only=True)
class ClassifyCounts(DocumentCounts, ShardCounts):
    """A classified shard: every row is predicted or a dead letter."""

    uri: str
    """URI of the input file of the first row"""
    work: str
    """digest of the shard's pieces, which shows whether the plan is still the same"""
    shadow: AgreementCounts | None = None
    """agreement with the shadow, None without one"""


@dataclass(frozen=True, kw_only=True)
class PassCounts(ShardCounts):
    """A shard that was classified for the models of a pass."""

    models: Mapping[str, ClassifyCounts]
    """counts of each model by the name of its run"""

    @property
    def tokens(self) -> int:
        """Tokens that the backbone read for the model that reads the most."""
        return max((counts.tokens for counts in self.models.values()), default=0)

    @property
    def dead_letters(self) -> int:
        return max((counts.dead for counts in self.models.values()), default=0)

    def tallies(self) -> Mapping[str | None, ShardTally]:
        return {
            run: ShardTally(
                documents=counts.rows, tokens=counts.tokens, dead_letters=counts.reasons, exits=counts.depths
            )
            for run, counts in self.models.items()
        }


@dataclass(frozen=True, kw_only=True)
class NightCounts(DocumentCounts):
    """Counts of a night over all shards of the files that could be read."""

    truncated_share: float
    """truncated texts per predicted row, to four digits"""
