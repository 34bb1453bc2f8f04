"""The reports of a nightly run: `report.json`, and `report.html`, a self-contained page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

from pipelines.nightly.run_records import ClassifyCounts, NightCounts, RunManifest
from pipelines.nightly.throughput import pace
from pipelines.storage.shard_log import ShardOutcome
from spin.pages.rendering import render
from spin.pages.stylesheet import base_css, read_css

_COLUMNS = 60
"""of the throughput chart"""
_SLOWEST = 8
"""shards listed"""
_CLASSES = 30
"""classes listed, the most frequent first"""
_DISAGREEMENTS = 12
"""pairs of labels listed on which the model and its shadow differ"""
_PROPERTIES = {
    "labels": "distribution of the labels",
    "scores": "largest probability per document",
    "lengths": "tokens per document",
    "unknown": "share of unknown tokens per document",
    "neurons": "means of the selected neurons",
}


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
    end: datetime

    @property
    def peak(self) -> float:
        """The largest rate."""
        return max(self.rates)


@dataclass(frozen=True)
class LabelShares:
    """The share of each label in a set of documents."""

    name: str
    """of the set: heading of a column"""
    shares: Mapping[str, float]
    """by class; "" stands for no label"""


@dataclass(frozen=True)
class SlowShard:
    """A shard among those that took longest."""

    number: int
    uri: str
    """of the input file"""
    documents: int
    seconds: float
    attempts: int

    @property
    def rate(self) -> float:
        """Documents per second."""
        return self.documents / max(self.seconds, 1e-3)


def render_reports(manifest: RunManifest) -> dict[str, bytes]:
    """Return the files of the report by name; `report.json` is the manifest without its shards and parts."""
    return {
        "report.json": json.dumps(manifest.report_json(), indent=2).encode() + b"\n",
        "report.html": report_page(manifest).encode(),
    }


def report_page(manifest: RunManifest) -> str:
    """Return the HTML of a run: counts, throughput, labels, shadow, drift, dead letters and slowest shards."""
    counts = manifest.counts
    columns = _label_columns(manifest)
    labels = _ranked_labels(columns)
    return render(
        "pipelines.nightly/run_report.html.j2",
        page_title=f"{manifest.model}, night of {manifest.date}",
        style=Markup(base_css() + read_css("pipelines.nightly", "run_report.css")),
        manifest=manifest,
        counts=counts,
        depths=sorted((int(depth), count) for depth, count in counts.depths.items()),
        throughput=_throughput(manifest),
        label_columns=columns,
        labels=labels[:_CLASSES],
        more_labels=len(labels[_CLASSES:]),
        shadow=manifest.shadow,
        classes_listed=_CLASSES,
        disagreements_listed=_DISAGREEMENTS,
        drifts=manifest.drift,
        properties=_PROPERTIES,
        reasons=sorted(counts.reasons.items(), key=lambda item: (-item[1], item[0])),
        slowest=_slowest_shards(manifest.shards),
    )


def _throughput(manifest: RunManifest) -> Throughput | None:
    """Return the throughput of the shards that hold documents, None without any."""
    computed = [shard for shard in manifest.shards if shard.counts.rows]
    if not computed:
        return None
    rates, borders = pace(computed, _COLUMNS)
    begin, end = (datetime.fromtimestamp(float(seconds), UTC) for seconds in (borders[0], borders[-1]))
    mean = manifest.counts.rows / max(manifest.seconds, 1e-3)
    return Throughput(tuple(rates.tolist()), mean, manifest.seconds, begin, end)


def _label_columns(manifest: RunManifest) -> list[LabelShares]:
    """Return the labels of this night, of the night before, and of the reference in training, where there are such."""
    columns = [_label_shares("this night", manifest.counts)]
    before = manifest.before
    if before is not None:
        columns.append(_label_shares(f"night of {before.date}", before.counts))
    for drift in manifest.drift:
        if drift.name == "labels":
            counts = dict(zip([*manifest.classes, ""], drift.then, strict=True))
            columns.append(LabelShares("reference", _shares(counts)))
    return columns


def _label_shares(name: str, counts: NightCounts) -> LabelShares:
    return LabelShares(name, _shares({**counts.labels, "": counts.unlabelled}))


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = max(1, sum(counts.values()))
    return {name: count / total for name, count in counts.items()}


def _ranked_labels(columns: list[LabelShares]) -> list[str]:
    """Return the labels with a document in any column, the most frequent of the first column first."""
    labels = {label for column in columns for label, share in column.shares.items() if share}
    return sorted(labels, key=lambda label: (-columns[0].shares.get(label, 0), label))


def _slowest_shards(shards: Sequence[ShardOutcome[ClassifyCounts]]) -> list[SlowShard]:
    rows = [
        SlowShard(number, shard.counts.uri, shard.counts.rows, shard.seconds, shard.tries)
        for number, shard in enumerate(shards)
    ]
    return sorted(rows, key=lambda row: -row.seconds)[:_SLOWEST]
