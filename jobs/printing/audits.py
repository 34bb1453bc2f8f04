"""Print what is measured on labelled documents: scores, robustness, privacy and costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs import terminal
from spin.pages.number_format import counted, signed, significant

if TYPE_CHECKING:
    from pipelines.training.evaluate import EvaluationReport
    from spin.audit.privacy import PrivacyReport
    from spin.audit.robustness import RobustnessReport
    from spin.audit.robustness_comparison import RobustnessComparison
    from spin.roi.roi_report import RoiReport


def print_evaluation(report: EvaluationReport) -> None:
    """Print every metric and the figures of every class, and how labels were decided."""
    table = terminal.new_table(["class"], ["precision", "recall", "F1", "documents"])
    for name, figures in report.per_class.items():
        shown = [f"{100 * value:.1f}" for value in (figures.precision, figures.recall, figures.f1)]
        table.add_row(name, *shown, f"{figures.support:,.0f}")
    terminal.show(table)
    intervals = {name: f"[{100 * low:.1f}–{100 * high:.1f}]" for name, (low, high) in report.intervals.items()}
    scores = (f"{name} {100 * value:.1f} {intervals[name]}" for name, value in report.metrics.items())
    metrics = ", ".join(scores) or "no labels"
    terminal.say(f"version {report.model_version} on {counted(report.documents, 'document')}: {metrics}")
    decision = report.decision
    thresholds = ", ".join(f"{name} {threshold:g}" for name, threshold in decision.thresholds.items()) or "default"
    terminal.say(f"decided as a night does: thresholds {thresholds}, abstention band {decision.abstain:g}")
    if report.abstained:
        without = f"{counted(report.abstained, 'document')} ({100 * report.abstained / report.documents:.1f} %)"
        terminal.say(f"{without} got no label; the figures above leave them out")


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
