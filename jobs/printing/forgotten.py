"""Print what was removed of documents that are forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs import terminal
from jobs.printing.figures import format_rows
from spin.pages.number_format import counted

if TYPE_CHECKING:
    from pipelines.forget.forget import Forgotten


def print_forgotten(forgotten: Forgotten, ids: int, dry_run: bool) -> None:
    """Print what outputs, the store and the registry held of the documents."""
    terminal.say_about("forget", _describe_forgotten(forgotten, ids, dry_run))


def _describe_forgotten(forgotten: Forgotten, ids: int, dry_run: bool) -> Iterator[str]:
    yield f"{counted(ids, 'id')}{', nothing is changed' if dry_run else ''}"
    for output in forgotten.outputs:
        rows = format_rows(output.rows) or "no rows"
        yield (
            f"{output.output}: {rows} of {counted(len(output.rewritten), 'night')}, {counted(output.labels, 'label')}"
        )
        yield from (f"given up: {run}" for run in output.given_up)
    held = ("would be emptied" if dry_run else "emptied") if forgotten.emptied else "holds none of the documents"
    yield f"store: {held}{'; the next training begins anew' if forgotten.emptied else ''}"
    for model in forgotten.registries:
        versions = f", neurons of versions {', '.join(model.versions)}" if model.versions else ""
        yield (
            f"model {model.model}: {counted(model.evaluation, 'document')} of the evaluation set, "
            f"{counted(model.nights, 'logged report')}{versions}"
        )
    yield "the input of nights and the corpus are not changed: remove the documents there too"
