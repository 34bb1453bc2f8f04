"""`spin audit robustness`: perturb the frozen evaluation set and compare a version's labels."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipelines.audit.audited_version import open_audited
from pipelines.registry.audit_record import AuditRecord
from pipelines.registry.versions import Registry
from pipelines.workers.progress import progress
from spin.audit.robustness import MODERATE, RobustnessReport, count_predictions, measure_robustness
from spin.audit.robustness_page import robustness_page
from spin.pages.number_format import signed
from spin.settings import Settings


@dataclass(frozen=True)
class RobustnessAudit:
    """The robustness of one version."""

    model: str
    """registered name"""
    version: str
    report: RobustnessReport

    def page(self) -> str:
        """The report as one HTML page."""
        return robustness_page(self.report, f"Robustness of {self.model}, version {self.version}")

    def to_json(self) -> dict[str, object]:
        """The content of `robustness.json`."""
        return {"model": self.model, "version": self.version, **self.report.to_json()}

    def summary(self) -> str:
        """The main figures in two sentences."""
        report, worst = self.report, self.report.worst
        text = (
            f"Moderate perturbations that keep the class change the {report.metric} of {100 * report.score:.1f} by "
            f"{signed(-100 * report.mean_loss, 1)} points on average, and flip {100 * report.mean_flips:.1f} % of "
            f"the labels ({report.documents:,} documents)."
        )
        if worst is not None and worst.loss > 0:
            text += f" The largest loss is {100 * worst.loss:.1f} points, by {worst.name}."
        return text

    def record(self) -> AuditRecord:
        """What is kept with the version."""
        figures = {f"{row.name}_loss": row.loss for row in self.report.at(MODERATE)}
        return AuditRecord(
            "robustness",
            self.summary(),
            {"score": self.report.score, "mean_loss": self.report.mean_loss, **figures},
            {"robustness.json": json.dumps(self.to_json(), indent=2), "robustness.html": self.page()},
        )


def audit_robustness(
    settings: Settings, registry: Registry, *, model: str | None = None, documents: int | None = None
) -> RobustnessAudit:
    """Measure a version, by default the champion, on perturbed texts, and log the result with it.

    `documents` are the number of evaluation documents that are drawn, by default all. The version decides as in a
    night with these settings, early exits included, but gives a label also where a night would abstain. Raises
    UserError where no evaluation set is frozen, or the version does not know one of its classes.
    """
    audited = open_audited(registry, model, documents)
    spin = audited.spin
    with progress("audit", count_predictions(len(audited.texts)), "texts") as advance:
        report = measure_robustness(
            spin.predict_all,
            spin.decision_rule,
            audited.texts,
            audited.y,
            settings.metric,
            seed=settings.seed,
            progress=advance,
        )
    audit = RobustnessAudit(registry.name, audited.number, report)
    registry.log_audit(audited.number, audit.record())
    return audit
