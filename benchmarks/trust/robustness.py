"""How robust the champion of the quickstart is, as it is shipped and at full depth."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.section_page import Part, table
from benchmarks.trust.champion import Champion
from spin.audit.robustness import MODERATE, RobustnessReport, measure_robustness


def measure(champion: Champion, *, quick: bool = False) -> dict[str, RobustnessReport]:
    """The figures with early exits and without, on the same documents."""
    limit = 100 if quick else None
    texts, labels = list(champion.evaluation_set.texts[:limit]), champion.evaluation_set.labels[:limit]
    reports = {}
    for name, exits in (("as shipped", True), ("full depth", False)):
        spin = champion.classifier(exits=exits)
        y, metric = spin.label_space.index(labels), champion.settings.metric
        reports[name] = measure_robustness(spin.predict_all, spin.decision_rule, texts, y, metric).report
        print(f"robustness, {name}: {100 * reports[name].mean_loss:.1f} points", flush=True)
    return reports


def section(reports: Mapping[str, RobustnessReport]) -> Part:
    """The page's section: a row per perturbation at moderate severity."""
    shipped, full = reports.values()
    rows = []
    for row, deep in zip(shipped.at(MODERATE), full.at(MODERATE), strict=True):
        rows.append(
            [
                row.name, f"{100 * row.loss:+.1f}", f"{100 * deep.loss:+.1f}", f"{100 * row.flips:.1f} %",
                f"{100 * deep.flips:.1f} %", f"{row.ece_before:.3f}", f"{row.ece:.3f}", f"{row.documents:,}",
            ]
        )  # fmt: skip
    negated = ", ".join(f"{100 * row.flips_of_right:.1f} %" for row in shipped.figures if not row.keeps_label)
    text = (
        f"{shipped.documents:,} test documents; {shipped.metric} {100 * shipped.score:.1f} as shipped and "
        f"{100 * full.score:.1f} at full depth. Loss: points by which the changed texts score lower. Moderate "
        f"severity; on average the loss is {100 * shipped.mean_loss:.1f} points as shipped and "
        f"{100 * full.mean_loss:.1f} at full depth. Of the labels that were right, negation changes {negated} by "
        f"severity. ECE: exact probabilities show up to {shipped.ece_limit:.3f} by chance on as many texts.\n\n"
        + table(
            ["perturbation", "loss", "at full depth", "flips", "at full depth", "ECE before", "ECE", "documents"], rows
        )
    )
    return text, []
