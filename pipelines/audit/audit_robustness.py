"""`spin audit robustness`: perturb the frozen evaluation set, and compare the labels of a version and the champion."""

from __future__ import annotations

import logging
from dataclasses import astuple, dataclass

from pipelines.audit.audited_version import open_audited
from pipelines.registry.promotion.gate import settle_promise
from pipelines.registry.version_records import AuditRecord
from pipelines.registry.versions import Registry
from pipelines.workers.progress import progress
from spin.arrays import Hashes
from spin.audit.robustness import (
    MODERATE,
    RobustnessMeasurement,
    RobustnessReport,
    count_predictions,
    measure_robustness,
)
from spin.audit.robustness_comparison import RobustnessComparison, compare_robustness
from spin.audit.robustness_page import robustness_page
from spin.errors import UserError
from spin.pages.number_format import counted, signed
from spin.settings import Settings, mask_credentials

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RobustnessAudit:
    """The robustness of one version, beside the champion's."""

    report: RobustnessReport
    champion: RobustnessComparison | None
    """None where the version is the champion itself, there is none, or it was not measured"""
    note: str | None
    """why the champion could not be measured"""
    record: AuditRecord
    """the record that is kept with the version"""


def audit_robustness(
    settings: Settings,
    registry: Registry,
    *,
    model: str | None = None,
    documents: int | None = None,
    with_champion: bool = True,
) -> RobustnessAudit:
    """Measure a version, by default the champion, on perturbed texts, and log the result with it.

    `documents` are the number of evaluation documents that are drawn, by default all. The version decides as in a
    night with these settings, early exits included, but gives a label also where a night would abstain. Another version
    than the champion is compared with it on the same texts, which takes the time of a second measurement, unless
    `with_champion` is false; a champion that cannot be measured leaves a note. Raises UserError where no evaluation set
    is frozen, or the version does not know one of its classes.
    """
    number = registry.resolve(model)
    measured, _ = _measure(settings, registry, number, documents, "audit")
    champion = registry.champion() if with_champion else None
    compared, note = None, None
    if champion is not None and champion != number:
        try:
            compared = _compare(settings, registry, measured, champion, documents)
        except UserError as error:
            _log.warning("the champion, version %s of %s, cannot be measured: %s", champion, registry.name, error)
            reason = mask_credentials(str(error))
            note = f"The champion, version {champion}, is not compared, because it cannot be measured: {reason}"
    record = _record(registry.name, number, measured.report, compared, note)
    registry.log_audit(number, record)
    return RobustnessAudit(measured.report, compared, note, record)


def _record(
    model: str, version: str, report: RobustnessReport, champion: RobustnessComparison | None, note: str | None
) -> AuditRecord:
    metrics = {"score": report.score, "mean_loss": report.mean_loss}
    metrics |= {f"{row.name}_loss": row.loss for row in report.at(MODERATE)}
    content = {"model": model, "version": version, **report.to_json(), "champion": None, "note": note}
    summary = _summarise(report)
    if champion is not None:
        metrics |= {"champion_score": champion.report.score, "champion_mean_loss": champion.report.mean_loss}
        moderate = [row for row in champion.differences if row.severity == MODERATE]
        metrics |= {f"{row.name}_difference": row.difference.value for row in moderate}
        content["champion"] = champion.to_json()
        summary += f" {_summarise_champion(champion)}"
    page = robustness_page(report, f"Robustness of {model}, version {version}", champion=champion, note=note)
    return AuditRecord("robustness", summary, metrics, content, page)


def _summarise(report: RobustnessReport) -> str:
    """The main figures in some sentences."""
    worst, change = report.worst, signed(-100 * report.mean_loss, 1)
    text = (
        f"Moderate perturbations that keep the class change the {report.metric} of {100 * report.score:.1f} by "
        f"{change} points on average, and flip {100 * report.mean_flips:.1f} % of the labels "
        f"({counted(report.documents, 'document')})."
    )
    if worst is not None and worst.loss > 0:
        text += f" The largest loss is {100 * worst.loss:.1f} points, by {worst.name}."
    return text


def _compare(
    settings: Settings,
    registry: Registry,
    measured: RobustnessMeasurement,
    champion: str,
    documents: int | None,
) -> RobustnessComparison:
    """Measure the champion on the same texts, and compare a version with it.

    As in the gate, the champion has its own abstention band under `decision.max_error`, or none where its test
    documents prove none. Raises UserError where it does not load or does not know a class of the evaluation set.
    """
    own = Registry(settle_promise(registry, champion)[0], registry.name)
    of_champion, groups = _measure(settings, own, champion, documents, "champion")
    significance = settings.promote.significance
    return compare_robustness(
        measured, of_champion, champion, significance=significance, seed=settings.seed, groups=groups
    )


def _measure(
    settings: Settings, registry: Registry, number: str, documents: int | None, stage: str
) -> tuple[RobustnessMeasurement, Hashes | None]:
    """Measure one version on the perturbed texts, and return the texts' groups; `stage` names its progress.

    Raises UserError as `open_audited`.
    """
    audited = open_audited(registry, f"models:/{registry.name}/{number}", documents)
    spin = audited.spin
    with progress(stage, count_predictions(len(audited.texts)), "texts") as advance:
        measured = measure_robustness(
            spin.predict_all,
            spin.decision_rule,
            audited.texts,
            audited.y,
            settings.metric,
            groups=audited.groups,
            seed=settings.seed,
            progress=advance,
        )
    return measured, audited.groups


def _summarise_champion(champion: RobustnessComparison) -> str:
    """The main figures of the champion, and where the version falls furthest behind."""
    mean = signed(-100 * champion.report.mean_loss, 1)
    text = f"The champion, version {champion.champion}, changes by {mean} points on average."
    lowest = champion.lowest
    if lowest is not None and lowest.difference.value < 0:
        value, low, high = (signed(100 * share, 1) for share in astuple(lowest.difference))
        text += (
            f" The version falls furthest behind it by {lowest.name}: {value} points "
            f"({100 * champion.confidence:.4g} % interval {low} to {high})."
        )
    return text
