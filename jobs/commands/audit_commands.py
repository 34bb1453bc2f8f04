"""The commands of `spin audit`: robustness and privacy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from jobs import terminal
from jobs.extras import PipelinesCommand
from jobs.options import AsJson, File, Model, Set, open_registry
from jobs.page_file import check_writable, write_page
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.audit.audit_privacy import PrivacyAudit
    from pipelines.audit.audit_robustness import RobustnessAudit
    from spin.audit.privacy import PrivacyReport
    from spin.audit.robustness import RobustnessReport
    from spin.audit.robustness_comparison import RobustnessComparison

Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="also write the report as a page")]

app = typer.Typer(
    name="audit",
    help="Measure what breaks a model and what it reveals, on the frozen evaluation set.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


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
    if html is not None:
        check_writable(html)
    from pipelines.audit.audit_robustness import audit_robustness

    audited = audit_robustness(
        loaded, open_registry(loaded), model=model, documents=documents, with_champion=not without_champion
    )
    if not as_json:
        _print_robustness(audited.report)
        if audited.champion is not None:
            _print_comparison(audited.champion)
        if audited.note is not None:
            terminal.say(audited.note)
    _finish(audited, html, as_json)


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
    if html is not None:
        check_writable(html)
    from pipelines.audit.audit_privacy import audit_privacy

    audited = audit_privacy(loaded, open_registry(loaded), model=model, documents=documents)
    if not as_json:
        _print_privacy(audited.report)
    _finish(audited, html, as_json)


def _finish(audited: RobustnessAudit | PrivacyAudit, html: Path | None, as_json: bool) -> None:
    """Print the summary, or everything as JSON, and write the page."""
    if as_json:
        terminal.plain(audited.to_json())
    else:
        terminal.say(f"{audited.model} version {audited.version}: {audited.summary()}")
    if html is not None:
        write_page(html, audited.page())


def _print_privacy(report: PrivacyReport) -> None:
    """Print a row per kind of stored numbers: the words that it reveals; and another table of attributes."""
    from spin.audit.word_recovery import BANDS

    table = Table()
    table.add_column("stored")
    for name in ("numbers", "words", *BANDS):
        table.add_column(name, justify="right", no_wrap=True)
    for figure in report.figures:
        bands = (figure.recovery.by_band.get(name) for name in BANDS)
        shares = ("–" if share is None else f"{100 * share:.1f} %" for share in (figure.recovery.every, *bands))
        table.add_row(figure.name, f"{figure.numbers:,}", *shares)
    terminal.show(table)
    terminal.say("words: share of the content words that an attacker names, by how frequent they are")
    if report.attributes:
        _print_attributes(report)


def _print_attributes(report: PrivacyReport) -> None:
    """Print a row per kind of stored numbers: how well it tells whether a text has an attribute."""
    table = Table()
    table.add_column("stored")
    for name in report.attributes:
        table.add_column(name, justify="right", no_wrap=True)
    for figure in report.figures:
        areas = (figure.attributes.get(name) for name in report.attributes)
        table.add_row(figure.name, *("–" if area is None else f"{area:.2f}" for area in areas))
    terminal.show(table)
    terminal.say("attributes: area under the ROC curve, 0.5 by chance")


def _print_robustness(report: RobustnessReport) -> None:
    """Print a row per perturbation and severity; of negation the flips of labels that were right."""
    from spin.audit.perturbations import SEVERITIES

    table = Table()
    table.add_column("perturbation", no_wrap=True)
    table.add_column("severity", no_wrap=True)
    for name in ("documents", report.metric, "loss", "flips", "ECE"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.figures:
        judged = [f"{100 * row.score:.1f}", f"{100 * row.loss:+.1f}", f"{100 * row.flips:.1f} %", f"{row.ece:.3f}"]
        shown = judged if row.keeps_label else ["–", "–", f"{100 * row.flips_of_right:.1f} %", "–"]
        table.add_row(escape(row.name), SEVERITIES[row.severity], f"{row.documents:,}", *shown)
    terminal.show(table)


def _print_comparison(champion: RobustnessComparison) -> None:
    """Print a row per perturbation that keeps the class and severity: the scores of both and their difference."""
    from spin.audit.perturbations import SEVERITIES
    from spin.pages.number_format import signed

    table = Table(title=f"against the champion, version {champion.champion}: {champion.report.metric}")
    table.add_column("perturbation", no_wrap=True)
    table.add_column("severity", no_wrap=True)
    for name in ("version", "champion", "difference", f"{100 * champion.confidence:.4g} % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in champion.differences:
        difference = row.difference
        table.add_row(
            escape(row.name),
            SEVERITIES[row.severity],
            f"{100 * row.score:.1f}",
            f"{100 * row.champion_score:.1f}",
            signed(100 * difference.value, 1),
            f"{signed(100 * difference.low, 1)} to {signed(100 * difference.high, 1)}",
        )
    terminal.show(table)
