"""`spin plan`: an estimate of what a night will take."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs import terminal
from jobs.options import AsJson, File, Model, Set, open_registry
from jobs.printing.plans import print_plan
from spin.settings import load_settings


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
        print_plan(estimate)
