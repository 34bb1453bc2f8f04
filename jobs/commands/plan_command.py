"""`spin plan`: an estimate of what a night will take."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.options import AsJson, File, Model, Set, open_registry
from spin.pages.number_format import counted
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.planning.estimate import NightEstimate


def plan(
    settings: File,
    documents: Annotated[float, typer.Option(metavar="N", help="number of documents of the night, such as 5e6")],
    input: Annotated[
        str | None,
        typer.Option(metavar="URI", help="file, folder or glob to take the sample from; default: data.train"),
    ] = None,
    model: Model = None,
    deadline: Annotated[
        float, typer.Option(metavar="HOURS", help="time limit for which the necessary workers are computed")
    ] = 8.0,
    seconds: Annotated[float, typer.Option(help="approximate duration of the sample")] = 60.0,
    as_json: AsJson = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Estimate hours, workers and bytes of a night, from a sample that is classified on this machine."""
    loaded = load_settings(settings, set)
    from pipelines.planning.estimate import estimate_night

    estimate = estimate_night(
        loaded, open_registry(loaded), documents, source=input, model=model, deadline=deadline, seconds=seconds
    )
    if as_json:
        terminal.plain(asdict(estimate))
    else:
        _show(estimate)


def _show(estimate: NightEstimate) -> None:
    sample, rates, hours, store = estimate.sample, estimate.sample.documents_per_s, estimate.hours, estimate.store
    threads = counted(sample.threads, "torch thread")
    terminal.say(
        f"sample    {counted(sample.documents, 'document')} of {estimate.source}{', all of it,' * sample.whole} in "
        f"{_rate(sample.seconds)} s by version {estimate.model_version}, {threads}"
    )
    terminal.say(
        f"          {_rate(rates.median)} documents/s per worker (median of {counted(sample.pieces, 'part')}, "
        f"{_rate(rates.lowest)} to {_rate(rates.highest)}); "
        f"{sample.tokens_per_document:.1f} tokens per document"
        + f" in {sample.windows_per_document:.1f} windows"
        * (sample.windows_per_document > 1)
    )
    terminal.say(f"          {sample.load_seconds:.1f} s to load the model")
    if sample.dead_share:
        terminal.say(f"          {100 * sample.dead_share:.1f} % dead letters")
    each = estimate.documents / estimate.shards
    intake = estimate.intake
    documents, shards = counted(estimate.documents, "document"), counted(estimate.shards, "shard")
    terminal.say(f"night     {documents} in {shards} of about {each:,.0f}")
    terminal.say(
        f"          they are read and checked first, at {_rate(intake.documents_per_s)} documents/s per worker"
    )
    terminal.say(f"time      {_time(hours.one_worker)} with one worker")
    if hours.workers > 1:
        shared = "; on one machine they share its memory bandwidth, so expect more" * estimate.one_machine
        terminal.say(f"          {_time(hours.with_workers)} with {hours.workers:,} workers{shared}")
    terminal.say(f"          {_needed(estimate)}")
    terminal.say(f"store     {terminal.format_bytes(store.read)} read, {terminal.format_bytes(store.written)} written")
    terminal.say("          requests to the object store are not estimated")


def _needed(estimate: NightEstimate) -> str:
    workers, within = estimate.deadline.workers, f"within {_time(estimate.deadline.hours)}"
    if workers is None:
        return f"no number of workers finishes {within}: one shard or the ids take longer; lower ray.shard_documents"
    return f"{counted(workers, 'worker')} to finish {within}"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f}".removesuffix(".0") + " h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def _rate(value: float) -> str:
    return f"{value:,.{0 if value >= 10 else 1}f}"
