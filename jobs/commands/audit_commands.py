"""The commands of `spin audit`: robustness and privacy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.extras import PipelinesCommand
from jobs.options import AsJson, File, Html, Model, Set, command_group, open_registry, write_page
from spin.pages.number_format import signed
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.registry.version_records import AuditRecord
    from spin.audit.privacy import PrivacyReport
    from spin.audit.robustness import RobustnessReport
    from spin.audit.robustness_comparison import RobustnessComparison

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


def print_robustness(report: RobustnessReport) -> None:
    """Print a row per perturbation and severity; of negation the flips of labels that were right."""
    from spin.audit.perturbations import SEVERITIES

    table = terminal.new_table(["perturbation", "severity"], ["documents", report.metric, "loss", "flips", "ECE"])
    for row in report.figures:
        judged = [f"{100 * row.score:.1f}", f"{100 * row.loss:+.1f}", f"{100 * row.flips:.1f} %", f"{row.ece:.3f}"]
        shown = judged if row.keeps_label else ["–", "–", f"{100 * row.flips_of_right:.1f} %", "–"]
        table.add_row(row.name, SEVERITIES[row.severity], f"{row.documents:,}", *shown)
    terminal.show(table)
    terminal.say(f"ECE: exact probabilities show up to {report.ece_limit:.3f} by chance on as many texts")


def print_comparison(champion: RobustnessComparison) -> None:
    """Print a row per perturbation that keeps the class and severity: the scores of both and their difference."""
    from spin.audit.perturbations import SEVERITIES

    figures = ["version", "champion", "difference", f"{100 * champion.confidence:.4g} % interval"]
    title = f"against the champion, version {champion.champion}: {champion.report.metric}"
    table = terminal.new_table(["perturbation", "severity"], figures, title=title)
    for row in champion.differences:
        scores = (f"{100 * score:.1f}" for score in (row.score, row.champion_score))
        value, low, high = (
            signed(100 * each, 1) for each in (row.difference.value, row.difference.low, row.difference.high)
        )
        table.add_row(row.name, SEVERITIES[row.severity], *scores, value, f"{low} to {high}")
    terminal.show(table)


def print_privacy(report: PrivacyReport) -> None:
    """Print a row per kind of stored numbers: the words and, in another table, the attributes that it reveals."""
    from spin.audit.word_recovery import BANDS

    table = terminal.new_table(["stored"], ["numbers", "words", *BANDS])
    for figure in report.figures:
        bands = (figure.recovery.by_band.get(name) for name in BANDS)
        shares = ("–" if share is None else f"{100 * share:.1f} %" for share in (figure.recovery.every, *bands))
        table.add_row(figure.name, f"{figure.numbers:,}", *shares)
    terminal.show(table)
    terminal.say("words: share of the content words that an attacker names, by how frequent they are")
    if not report.attributes:
        return
    table = terminal.new_table(["stored"], report.attributes)
    for figure in report.figures:
        areas = (figure.attributes.get(name) for name in report.attributes)
        table.add_row(figure.name, *("–" if area is None else f"{area:.2f}" for area in areas))
    terminal.show(table)
    terminal.say("attributes: area under the ROC curve, 0.5 by chance")
