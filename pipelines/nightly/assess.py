"""Assess a classified night: its drift, the quality of its labels, how often a shadow agrees, and the report of all."""

from __future__ import annotations

from pipelines.nightly.night import Night
from pipelines.nightly.night_share import NightShare
from pipelines.nightly.report.drift_causes import name_causes
from pipelines.nightly.report.drift_check import measure_drift
from pipelines.nightly.report.night_report import (
    LISTED_FILES,
    EarlierNight,
    FileCounts,
    NightReport,
    QuarantinedFile,
    find_earlier_night,
    measure_throughput,
    slowest_shards,
    total_counts,
)
from pipelines.nightly.report.quality_check import NightQuality, estimate_labels
from pipelines.nightly.report.throughput import busy_seconds
from pipelines.nightly.review.checked_labels import list_scores
from pipelines.nightly.steps.classify_job import PROFILE, SAMPLE
from pipelines.nightly.steps.night_profile import sum_profiles
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import TAKEN
from spin.classifier import TrainedClassifier
from spin.heads.held_out import HeldOutLogits
from spin.monitor.agreement import ShadowAgreement, total_agreement
from spin.monitor.drift import Drift

_SCORED = 30
"""nights with checked labels in a report"""


def assess_night(night: Night, share: NightShare) -> NightReport:
    """The report of a classified night."""
    run, rows = night.run, share.input_rows
    drift, quality = _measure(night, share)
    taken = sum(row.status == TAKEN for row in rows)
    return NightReport(
        fingerprint=run.fingerprint,
        date=run.record.date,
        run=run.name,
        output=night.tables.out.uri,
        model=night.name,
        model_version=run.record.model_version,
        token=night.claim,
        incremental=run.record.incremental,
        classes=tuple(night.model.metadata.classes),
        seconds=round(busy_seconds(share.outcomes), 1),
        drift=tuple(drift),
        quality=quality.estimate,
        quality_withdrawn=quality.withdrawn,
        scored=tuple(list_scores(night.tables, night.name, most=_SCORED)),
        max_error=night.settings.decision.max_error,
        before=_find_night_before(night),
        shadow=_total_agreement(night, share),
        counts=total_counts([outcome.counts for outcome in share.readable]),
        files=FileCounts(taken, run.plan.derived.skipped, len(rows) - taken),
        quarantined=tuple(QuarantinedFile(*each) for each in list(share.quarantined.items())[:LISTED_FILES]),
        shards=len(share.outcomes),
        throughput=measure_throughput(share.outcomes),
        slowest=slowest_shards(share.outcomes, [shard.index for shard in share.plan.shards]),
    )


def _measure(night: Night, share: NightShare) -> tuple[list[Drift], NightQuality]:
    """The drift of the classified documents from the reference of the model, with its causes, and their quality."""
    settings, out, model = night.settings, night.tables.out, night.model.folder / "model"
    profile = sum_profiles(out, share.keys(PROFILE))
    if profile is None:
        return [], NightQuality(None)
    spin, held_out = TrainedClassifier.open(model, settings), HeldOutLogits.read(model, settings.choose)
    drift = measure_drift(profile, model, spin, held_out, settings.classify.max_psi)
    drift = name_causes(drift, out, share.keys(SAMPLE), spin.fitted.selection, settings.classify)
    return drift, estimate_labels(profile.quality, spin, held_out, drift)


def _total_agreement(night: Night, share: NightShare) -> ShadowAgreement | None:
    """The agreement with the shadow over the files that could be read, None without a shadow."""
    shadow = night.model.shadow
    if shadow is None:
        return None
    counts = [outcome.counts.shadow for outcome in share.readable if outcome.counts.shadow is not None]
    return total_agreement(shadow.version, night.model.metadata.multilabel, counts)


def _find_night_before(night: Night) -> EarlierNight | None:
    """The night of the model that precedes this one."""
    earlier = (each for each in list_nights(night.tables) if each.date < night.run.record.date)
    before = find_newest_night(earlier, model=night.name)
    return None if before is None else find_earlier_night(night.tables.out / f"{RUNS}/{before.run}")
