"""The commands of `spin audit`: robustness and privacy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.extras import PipelinesCommand
from jobs.options import AsJson, File, Html, Model, Set, command_group, open_registry, write_page
from jobs.printing.audits import print_comparison, print_privacy, print_robustness
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.registry.version_records import AuditRecord

app = command_group("audit", "Measure what breaks a model and what it reveals, on the frozen evaluation set.")


@app.command(cls=PipelinesCommand)
def robustness(
    settings: File,
    model: Model = None,
    documents: Annotated[
        int, typer.Option(min=1, metavar="N", help="number of evaluation documents that are perturbed")
    ] = 1000,
    without_champion: Annotated[
        bool,
        typer.Option(
            "--without-champion", help="do not measure the champion beside another version, which takes as long again"
        ),
    ] = False,
    html: Html = None,
    as_json: AsJson = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Measure how typing errors, look-alike letters, markup and the like change a model's labels."""
    loaded = load_settings(settings, set)
    from pipelines.audit.audit_robustness import audit_robustness

    audited = audit_robustness(
        loaded, open_registry(loaded), model=model, documents=documents, with_champion=not without_champion
    )
    if not as_json:
        print_robustness(audited.report)
        if audited.champion is not None:
            print_comparison(audited.champion)
        if audited.note is not None:
            terminal.say(audited.note)
    _finish(audited.record, html, as_json)


@app.command(cls=PipelinesCommand)
def privacy(
    settings: File,
    model: Model = None,
    documents: Annotated[
        int, typer.Option(min=100, metavar="N", help="number of evaluation documents; the attacker knows half of them")
    ] = 4000,
    html: Html = None,
    as_json: AsJson = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Measure how much of a text can be read back from what is stored about it."""
    loaded = load_settings(settings, set)
    from pipelines.audit.audit_privacy import audit_privacy

    audited = audit_privacy(loaded, open_registry(loaded), model=model, documents=documents)
    if not as_json:
        print_privacy(audited.report)
    _finish(audited.record, html, as_json)


def _finish(audit: AuditRecord, html: Path | None, as_json: bool) -> None:
    """Print the summary, or everything as JSON, and write the page."""
    if as_json:
        terminal.plain(audit.content)
    else:
        terminal.say(f"{audit.content['model']} version {audit.content['version']}: {audit.summary}")
    if html is not None:
        write_page(html, audit.page)
