"""`spin roi`: what errors, reviews and compute cost together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs import terminal
from jobs.options import AsJson, File, Html, Model, Set, open_registry, write_page
from jobs.printing.audits import print_roi
from spin.settings import load_settings


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
