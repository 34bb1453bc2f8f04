"""Print the estimate of what a night will take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.filesize import decimal

from jobs import terminal
from spin.pages.number_format import counted

if TYPE_CHECKING:
    from pipelines.planning.estimate import NightEstimate


def print_plan(estimate: NightEstimate) -> None:
    """Print what a sample has shown of the documents, and what a night of them is estimated to take."""
    hours, store, intake = estimate.hours, estimate.store, estimate.intake
    terminal.say_about("sample", _describe_sample(estimate))
    documents, shards = counted(estimate.documents, "document"), counted(estimate.shards, "shard")
    read = f"they are read and checked first, at {_format_rate(intake.documents_per_s)} documents/s per worker"
    size = f"{estimate.documents / estimate.shards:,.0f}"
    terminal.say_about("night", [f"{documents} in {shards} of about {size}", read])
    times = [f"{_format_hours(hours.one_worker)} with one worker"]
    if hours.workers > 1:
        shared = "; on one machine they share its memory bandwidth, so expect more" * estimate.one_machine
        times.append(f"{_format_hours(hours.with_workers)} with {hours.workers:,} workers{shared}")
    terminal.say_about("time", [*times, _describe_workers(estimate)])
    moved = f"{decimal(store.read)} read, {decimal(store.written)} written"
    terminal.say_about("store", [moved, "requests to the object store are not estimated"])


def _describe_sample(estimate: NightEstimate) -> Iterator[str]:
    sample, rates = estimate.sample, estimate.sample.documents_per_s
    yield (
        f"{counted(sample.documents, 'document')} of {estimate.source}{', all of it,' * sample.whole} in "
        f"{_format_rate(sample.seconds)} s by version {estimate.model_version}, "
        f"{counted(sample.threads, 'torch thread')}"
    )
    windows = f" in {sample.windows_per_document:.1f} windows" * (sample.windows_per_document > 1)
    yield (
        f"{_format_rate(rates.median)} documents/s per worker (median of {counted(sample.pieces, 'part')}, "
        f"{_format_rate(rates.lowest)} to {_format_rate(rates.highest)}); "
        f"{sample.tokens_per_document:.1f} tokens per document{windows}"
    )
    yield f"{sample.load_seconds:.1f} s to load the model"
    if sample.dead_share:
        yield f"{100 * sample.dead_share:.1f} % dead letters"


def _describe_workers(estimate: NightEstimate) -> str:
    """The workers that a deadline needs, or the reason why none suffice."""
    workers, within = estimate.deadline.workers, f"within {_format_hours(estimate.deadline.hours)}"
    if workers is None:
        return f"no number of workers finishes {within}: one shard or the ids take longer; lower ray.shard_documents"
    return f"{counted(workers, 'worker')} to finish {within}"


def _format_hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f}".removesuffix(".0") + " h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def _format_rate(value: float) -> str:
    return f"{value:,.{0 if value >= 10 else 1}f}"
