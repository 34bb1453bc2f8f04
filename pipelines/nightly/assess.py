"""Assess a classified night: its drift, the quality of its labels, how often a shadow agrees, and the report of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.nightly.night import Night, NightShare
from pipelines.nightly.report.drift_causes import name_causes
from pipelines.nightly.report.night_report import (
    LISTED_FILES,
    EarlierNight,
    FileCounts,
    NightReport,
    QuarantinedFile,
    busy_seconds,
    find_report,
    measure_throughput,
    slowest_shards,
    total_counts,
)
from pipelines.nightly.review.checked_labels import list_scores
from pipelines.nightly.steps.classify_job import PROFILE, SAMPLE
from pipelines.nightly.steps.night_profile import NightProfile, sum_profiles
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_records import RUNS
from pipelines.registry.packaging import REFERENCE
from spin.classifier import TrainedClassifier
from spin.fitted.held_out import HeldOutLogits
from spin.monitor.agreement import ShadowAgreement, total_agreement
from spin.monitor.drift import Drift
from spin.monitor.drift_statistics import list_breaking
from spin.monitor.profile import Profile
from spin.monitor.quality import QualityEstimate, QualitySums, estimate_quality

_SCORED = 30
"""nights with checked labels in a report"""
_Quality = tuple[QualityEstimate | None, tuple[str, ...]]
"""the estimated quality of labels, None where there is none, and the properties whose drift withdraws it"""


def assess_night(night: Night, share: NightShare) -> NightReport:
    """The report of a classified night."""
    run, files = night.run, share.input_files
    drift, (quality, withdrawn) = _measure(night, share)
    taken = sum(file.reason is None for file in files)
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
        quality=quality,
        quality_withdrawn=withdrawn,
        scored=tuple(list_scores(night.tables, night.name, most=_SCORED)),
        max_error=night.settings.decision.max_error,
        before=_find_night_before(night),
        shadow=_total_agreement(night, share),
        counts=total_counts([outcome.counts for outcome in share.outcomes]),
        files=FileCounts(taken, run.plan.derived.skipped, len(files) - taken),
        quarantined=tuple(QuarantinedFile(*each) for each in list(share.quarantined.items())[:LISTED_FILES]),
        shards=len(share.outcomes),
        throughput=measure_throughput(share.outcomes),
        slowest=slowest_shards(share.outcomes, [shard.index for shard in share.plan.shards]),
    )


def _measure(night: Night, share: NightShare) -> tuple[list[Drift], _Quality]:
    """The drift of the classified documents from the reference of the model, with its causes, and their quality."""
    settings, out, model = night.settings, night.tables.out, night.model.folder / "model"
    profile = sum_profiles(out, share.keys(PROFILE))
    if profile is None:
        return [], (None, ())
    spin, held_out = TrainedClassifier.open(model, settings), HeldOutLogits.read_all(model).get(settings.choose)
    drift = _measure_drift(profile, model, spin, held_out, settings.classify.max_psi)
    drift = name_causes(drift, out, share.keys(SAMPLE), spin.fitted.selection, settings.classify)
    return drift, _estimate_quality(profile.quality, spin, held_out, drift)


def _measure_drift(
    profile: NightProfile, model: Path, spin: TrainedClassifier, held_out: HeldOutLogits | None, allowed: float
) -> list[Drift]:
    """The drift of the profile of a night from the reference in the folder of a model, opened as `spin`.

    Where documents may exit early, the reference is that of documents with early exits, under the decision of the night
    if the model carries the logits of its test documents; neurons above the first exit, which not all documents reach,
    are not compared. Empty for a model that was saved without a reference, or where no document was predicted.
    """
    if not (model / REFERENCE).exists():
        return []
    prefix = f"{spin.choose}.early." if spin.early else f"{spin.choose}."
    reference = Profile.from_bytes((model / REFERENCE).read_bytes(), prefix)
    if held_out is not None and spin.exits_early:
        reference = reference.under(held_out, spin.fitted.exits, spin.decision_rule)
    return profile.documents.drift_from(reference, spin.fitted.selection, allowed)


def _estimate_quality(
    sums: QualitySums, spin: TrainedClassifier, held_out: HeldOutLogits | None, drift: Sequence[Drift]
) -> _Quality:
    """The quality of the labels of a night, estimated by their sums and the test documents of its model."""
    if held_out is None:
        return None, ()
    withdrawn = tuple(each.name for each in drift if each.drifted and each.name in list_breaking())
    if withdrawn:
        return None, withdrawn
    probabilities = held_out.probabilities(spin.fitted.exits if spin.early else (), spin.decision_rule)
    return estimate_quality(sums, probabilities, held_out.y, spin.decision_rule), ()


def _total_agreement(night: Night, share: NightShare) -> ShadowAgreement | None:
    """The agreement with the shadow over the files that could be read, None without a shadow."""
    shadow = night.model.shadow
    if shadow is None:
        return None
    counts = [outcome.counts.shadow for outcome in share.outcomes if outcome.counts.shadow is not None]
    return total_agreement(shadow.version, night.model.metadata.multilabel, counts)


def _find_night_before(night: Night) -> EarlierNight | None:
    """The night of the model that precedes this one, None if there is none, or none with a report."""
    earlier = (each for each in list_nights(night.tables) if each.date < night.run.record.date)
    before = find_newest_night(earlier, model=night.name)
    report = None if before is None else find_report(night.tables.out / f"{RUNS}/{before.run}")
    return None if report is None else EarlierNight(report.date, report.model_version, report.counts)
