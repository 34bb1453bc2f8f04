"""The commands that weigh a night before it runs: `spin plan`, what it takes, and `spin roi`, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from jobs import terminal
from jobs.options import AsJson, File, Html, Model, Set, open_registry, write_page
from spin.pages.number_format import counted, significant
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.planning.estimate import NightEstimate
    from spin.roi.roi_report import RoiReport


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
    terminal.show_result(estimate, as_json, print_plan)


def roi(
    settings: File,
    volume: Annotated[float, typer.Option(metavar="N", help="number of documents to classify, such as 5e6")],
    cost_error: Annotated[float, typer.Option(metavar="PRICE", help="cost of a wrong label")],
    cost_review: Annotated[float, typer.Option(metavar="PRICE", help="cost of a document that people label")],
    cpu_hour: Annotated[float, typer.Option(metavar="PRICE", help="price of one core for an hour")] = 0.05,
    cost_label: Annotated[
        float | None,
        typer.Option(metavar="PRICE", help="cost of a labelled document to learn from; default: that of a review"),
    ] = None,
    cost_matrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML or JSON file with costs by true and given class, such as {spam: {ham: 2.5}}"
        ),
    ] = None,
    label_mix: Annotated[
        list[str],
        typer.Option(
            metavar="A=SHARE,B=SHARE",
            help="shares of the classes to come, or a YAML or JSON file with them; for names with commas once per "
            "class as NAME=SHARE; default: those of the evaluation set",
        ),
    ] = [],  # noqa: B006
    llm_price: Annotated[
        float | None, typer.Option(metavar="PRICE", help="price of a thousand documents that a language model labels")
    ] = None,
    llm_accuracy: Annotated[
        float, typer.Option(metavar="SHARE", help="share of the language model's labels that are right")
    ] = 1.0,
    model: Model = None,
    documents: Annotated[
        int, typer.Option(min=2, metavar="N", help="number of evaluation documents that are classified")
    ] = 4000,
    html: Html = None,
    as_json: AsJson = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Weigh errors, reviews and compute: the cheapest classifier, exits and abstention band, and the alternatives."""
    loaded = load_settings(settings, set)
    from pipelines.planning.roi import estimate_roi
    from pipelines.planning.roi_terms import RoiTerms, read_cost_matrix, read_label_mix

    terms = RoiTerms(
        volume=volume,
        cost_error=cost_error,
        cost_review=cost_review,
        cpu_hour=cpu_hour,
        cost_label=cost_label,
        pairs=read_cost_matrix(cost_matrix) if cost_matrix is not None else {},
        label_mix=read_label_mix(label_mix),
        llm_price=llm_price,
        llm_accuracy=llm_accuracy,
    )
    report = estimate_roi(loaded, open_registry(loaded), terms, model=model, documents=documents)
    if as_json:
        terminal.plain(report.to_json())
    else:
        print_roi(report)
    if html is not None:
        from spin.roi.roi_report import roi_page

        write_page(html, roi_page(report))


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
    scales = "" if estimate.scales is None else f" in int8 by scales {estimate.scales[:12]}"
    yield (
        f"{counted(sample.documents, 'document')} of {estimate.source}{', all of it,' * sample.whole} in "
        f"{_format_rate(sample.seconds)} s by version {estimate.model_version}{scales}, "
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


def print_roi(report: RoiReport) -> None:
    """Print the best point of every classifier, the alternatives, and the settings of the best point."""
    from pipelines.planning.roi import break_even_sentences, summarise
    from spin.roi.operating_points import THOUSAND, rank_cost

    figures = ["band", "reviewed", "wrong", "compute", "expected", "realised"]
    title = "costs per thousand documents, the least expected first"
    table = terminal.new_table(["choose", "exits"], figures, title=title)
    for point in sorted(report.bests, key=rank_cost):
        shares = (f"{100 * share:.1f} %" for share in (point.reviewed, point.errors))
        costs = significant(point.compute, 2), significant(point.expected_total), significant(point.total)
        table.add_row(point.choose, "yes" if point.exits else "no", f"{point.abstain:g}", *shares, *costs)
    terminal.show(table)
    terminal.say(f"{report.model} version {report.version}: {summarise(report)}")
    terminal.say(f"{report.volume:,.0f} documents: {significant(report.best.total * report.volume / THOUSAND)}")
    for sentence in break_even_sentences(report):
        terminal.say(f"  {sentence}")
    for line in ("", "Settings of this point:", "", *report.settings().splitlines(), ""):
        terminal.say(line)
