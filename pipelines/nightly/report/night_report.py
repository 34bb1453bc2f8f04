"""The report of a night: what the terminal, the page, MLflow and the next night show of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.nightly.steps.counts import ClassifyCounts, DocumentCounts, NightCounts
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_bytes
from pipelines.storage.shard_log import ShardOutcome
from spin.monitor.agreement import ShadowAgreement
from spin.monitor.drift import Drift
from spin.monitor.quality import Estimate, QualityEstimate

_log = logging.getLogger(__name__)
REPORT = "report.json"
"""name of the report in the folder of a run, and of that of the newest night in the output"""
LISTED_FILES = 20
"""most quarantined files in a report; the table of inputs has all of them"""
_COLUMNS = 60
"""of the throughput chart"""
_SLOWEST = 8
"""shards listed"""


@dataclass(frozen=True)
class FileCounts:
    """The input files of a night by what became of them."""

    taken: int
    """files whose documents it classified"""
    skipped: int
    """files that other nights had classified"""
    quarantined: int
    """files that could not be read; none of their documents is classified"""


@dataclass(frozen=True)
class QuarantinedFile:
    """An input file that could not be read; none of its documents is classified."""

    uri: str
    reason: str
    """why it cannot be read"""


@dataclass(frozen=True)
class EarlierNight:
    """The night before, with which the report compares a night."""

    date: str
    """YYYY-MM-DD"""
    model_version: str
    """version of the model that classified it"""
    counts: NightCounts


@dataclass(frozen=True)
class ScoredNight:
    """A night whose labels people have checked in part, and its accuracy."""

    date: str
    """YYYY-MM-DD"""
    model: str
    """registered name of the model"""
    model_version: str
    run: str
    """name of the run"""
    checked: int
    """documents with a label of people"""
    right: int
    """checked documents whose label is right"""
    accuracy: Estimate | None = None
    """of all labels of the night, by their scores and the checked ones; None where these do not stand for all"""
    estimated: Estimate | None = None
    """what the night had estimated without labels, if it had"""


@dataclass(frozen=True)
class Throughput:
    """Documents per second over the time of a run."""

    rates: tuple[float, ...]
    """documents per second, in equal stretches of time"""
    mean: float
    """documents per second while at least one shard was computed"""
    seconds: float
    """in which at least one shard was computed"""
    begin: datetime
    """start of the first shard"""
    end: datetime
    """end of the last shard"""

    @property
    def peak(self) -> float:
        """The largest rate."""
        return max(self.rates)


@dataclass(frozen=True)
class SlowShard:
    """A shard among those that took longest."""

    number: int
    """place in the plan"""
    uri: str
    """input file of its first row"""
    documents: int
    """rows of the shard"""
    seconds: float
    """that the last try took"""
    attempts: int
    """how often it was tried"""

    @property
    def rate(self) -> float:
        """Documents per second."""
        return self.documents / max(self.seconds, 1e-3)


@dataclass(frozen=True, kw_only=True)
class NightReport:
    """The report of a finished night. It holds counts; the lists of files and rows are tables."""

    fingerprint: str
    """fingerprint of the settings, the model and the input files"""
    date: str
    """date of the night, YYYY-MM-DD"""
    run: str
    """name of the run: its folder in the output is `_runs/RUN`"""
    output: str
    """URI of the output"""
    model: str
    """name of the registered model"""
    model_version: str
    """version of the model that classified"""
    token: int
    """number of the claim under which the run was finished"""
    incremental: bool
    """whether files that other nights had classified were skipped"""
    classes: tuple[str, ...]
    """classes of the model, in its order"""
    seconds: float
    """time in which at least one shard was being computed"""
    drift: tuple[Drift, ...]
    """drift from the training documents by property; empty where there is no reference or no prediction"""
    quality: QualityEstimate | None = None
    """estimated quality of the labels, None where there is no estimate"""
    quality_withdrawn: tuple[str, ...] = ()
    """properties whose drift withdraws the estimate"""
    scored: tuple[ScoredNight, ...] = ()
    """the latest nights of the model whose labels people have checked in part, by date"""
    max_error: float | None = None
    """largest share of wrong labels that the settings promise, None if they promise none"""
    before: EarlierNight | None = None
    """the night before of the same model, None if there is none"""
    forgotten: int = 0
    """predictions that were removed since by `spin forget`; all figures are those of the night as it was classified"""
    shadow: ShadowAgreement | None = None
    """agreement with the shadow, None for a night without one"""
    counts: NightCounts
    """counts over all documents of the files that were taken"""
    files: FileCounts
    """input files by what became of them"""
    quarantined: tuple[QuarantinedFile, ...]
    """the first of the files that could not be read, by URI"""
    shards: int
    """number of shards"""
    throughput: Throughput | None = None
    """documents per second over time, None if no document was read"""
    slowest: tuple[SlowShard, ...]
    """the shards that took longest"""

    @property
    def coverage(self) -> float:
        """Share of the predicted documents that got a label: on the others the decision abstained."""
        return 1 - self.counts.abstained / max(1, self.counts.predicted)


def find_report(run: Store) -> NightReport | None:
    """The report in the folder of a run, None if there is none, or one of another format."""
    stored = run.read_json(REPORT)
    try:
        return None if stored is None else from_json(NightReport, stored)
    except ValidationError:
        _log.debug("%s/%s is of another version", run.uri, REPORT, exc_info=True)
        return None


def create_report(run: Store, report: NightReport) -> NightReport:
    """Store a report in the folder of its run and return it; the stored one, if another driver was first."""
    run.create(REPORT, to_bytes(report))
    stored = find_report(run)
    return report if stored is None else stored


def measure_throughput(outcomes: Sequence[ShardOutcome[ClassifyCounts]]) -> Throughput | None:
    """The throughput of the shards that hold documents, None without any."""
    computed = [outcome for outcome in outcomes if outcome.counts.rows]
    if not computed:
        return None
    rates, borders = pace(computed, _COLUMNS)
    begin, end = (datetime.fromtimestamp(float(seconds), UTC) for seconds in (borders[0], borders[-1]))
    seconds = round(busy_seconds(outcomes), 1)
    mean = sum(outcome.counts.rows for outcome in computed) / max(seconds, 1e-3)
    return Throughput(tuple(round(float(rate), 3) for rate in rates), round(mean, 3), seconds, begin, end)


def busy_seconds(outcomes: Sequence[ShardOutcome[Any]]) -> float:
    """The seconds in which at least one shard was being computed; a resumed run has pauses."""
    total, until = 0.0, -np.inf
    for outcome in sorted(outcomes, key=_start_time):
        total += max(0.0, outcome.ended - max(until, _start_time(outcome)))
        until = max(until, outcome.ended)
    return float(total)


def span(outcomes: Sequence[ShardOutcome[Any]]) -> float:
    """The seconds from the start of the first shard to the end of the last."""
    return float(max(outcome.ended for outcome in outcomes) - min(map(_start_time, outcomes)))


def pace(outcomes: Sequence[ShardOutcome[Any]], buckets: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Documents per second in B equal intervals of time, and their borders (B + 1,) in seconds since 1970.

    The documents of a shard are spread evenly over the time in which it was computed.
    """
    first = min(map(_start_time, outcomes))
    borders = np.linspace(first, first + span(outcomes), buckets + 1)
    rates = np.zeros(buckets)
    for outcome in outcomes:
        seconds = max(outcome.seconds, 1e-3)
        done = np.clip((borders - _start_time(outcome)) / seconds, 0, 1)
        rates += outcome.counts.rows * np.diff(done)
    return rates / np.diff(borders), borders


def _start_time(outcome: ShardOutcome[Any]) -> float:
    return float(outcome.ended - max(outcome.seconds, 1e-3))


def slowest_shards(outcomes: Sequence[ShardOutcome[ClassifyCounts]], numbers: Sequence[int]) -> tuple[SlowShard, ...]:
    """The shards that took longest, the slowest first; `numbers` are their numbers in the plan."""
    rows = [
        SlowShard(number, outcome.counts.uri, outcome.counts.rows, outcome.seconds, outcome.tries)
        for number, outcome in zip(numbers, outcomes, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: -row.seconds)[:_SLOWEST])


def total_counts(shards: Sequence[ClassifyCounts]) -> NightCounts:
    """The sum of the counts of shards."""
    total: dict[str, Any] = {}
    for field in fields(DocumentCounts):
        values = [getattr(shard, field.name) for shard in shards]
        total[field.name] = _add_counts(values) if field.name in ("reasons", "labels", "depths") else sum(values)
    share = round(total["truncated"] / max(1, total["predicted"]), 4)
    return NightCounts(**total, truncated_share=share)


def _add_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
