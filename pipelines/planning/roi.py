"""`spin roi`: what classifying costs at every operating point of a version, on the frozen evaluation set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.audit.audited_version import open_audited
from pipelines.planning.operations import measure_operations
from pipelines.planning.roi_terms import RoiTerms, weigh_classes
from pipelines.registry.version_records import AuditRecord
from pipelines.registry.versions import Registry
from spin.arrays import Floats
from spin.pages.number_format import significant
from spin.roi.error_costs import ErrorCosts
from spin.roi.operating_points import THOUSAND, OperatingPoint, Prices, best_point, weigh_points, with_interval
from spin.roi.roi_report import Alternative, RoiReport, roi_page
from spin.settings import Settings

_BASELINES = {"tfidf": "words alone (TF-IDF)", "last_layer": "last layer of the backbone"}


def estimate_roi(
    settings: Settings,
    registry: Registry,
    terms: RoiTerms,
    *,
    model: str | None = None,
    documents: int | None = None,
) -> RoiReport:
    """Weigh every classifier of a version, by default the champion, with and without early exits, and log the report.

    `documents` are the number of evaluation documents that are drawn, by default all of the half that the gate does not
    read. Speed is measured from text to label with the threads of one worker; reading and writing documents, which
    `spin plan` measures, is not in it. Raises UserError where no evaluation set is frozen, or for terms that do not fit
    the classes.
    """
    audited = open_audited(registry, model, documents, certificate=True)
    label_space, y = audited.spin.label_space, audited.y
    prices = Prices(ErrorCosts.of(label_space, terms.cost_error, terms.pairs), terms.cost_review, terms.cpu_hour)
    mix = weigh_classes(terms.label_mix, label_space, y)
    shares = label_space.indicator(y).mean(axis=0) if mix is None else mix
    points: list[OperatingPoint] = []
    bests: list[OperatingPoint] = []
    for operation in measure_operations(settings, registry, audited.number, audited.texts):
        weighed = weigh_points(operation, y, prices, mix)
        points += weighed
        best = best_point(weighed)
        bests.append(
            with_interval(
                best, operation, y, prices, volume=terms.volume, mix=mix, seed=settings.seed, groups=audited.groups
            )
        )
    training = registry.training_report(audited.number)
    counts = training.get("counts")
    cost_label = terms.cost_review if terms.cost_label is None else terms.cost_label
    threads = settings.ray.for_stage("classify").cpus_per_worker
    report = RoiReport(
        model=registry.name,
        version=audited.number,
        documents=len(audited.texts),
        volume=terms.volume,
        labelling=None if counts is None else sum(counts.values()) * cost_label,
        points=tuple(points),
        bests=tuple(bests),
        alternatives=tuple(_alternatives(training, terms, prices, shares, threads)),
    )
    registry.log_audit(audited.number, _record(report))
    return report


def _alternatives(
    training: Mapping[str, Any], terms: RoiTerms, prices: Prices, shares: Floats, threads: int
) -> Iterator[Alternative]:
    """The baselines of the training, a language model at its price, and people; `shares` (K,) are those of classes."""
    per_error = THOUSAND * prices.errors.mean(shares)
    for row in training.get("table", ()):
        if row["name"] in _BASELINES:
            errors = 1 - row["accuracy"]
            compute = THOUSAND * threads / row["docs_per_s"] / 3600 * prices.cpu_hour
            yield Alternative(_BASELINES[row["name"]], errors, per_error * errors, compute, needs_labels=True)
    if terms.llm_price is not None:
        errors = 1 - terms.llm_accuracy
        yield Alternative("language model", errors, per_error * errors, terms.llm_price, needs_labels=False)
    yield Alternative("manual labelling", 0.0, 0.0, THOUSAND * prices.review, needs_labels=False)


def _record(report: RoiReport) -> AuditRecord:
    """The record that is kept with the version."""
    return AuditRecord(
        "roi",
        summarise(report),
        {"cost_per_thousand": report.best.total, "reviewed": report.best.reviewed, "errors": report.best.errors},
        report.to_json(),
        roi_page(report),
    )


def summarise(report: RoiReport) -> str:
    """The best point in two sentences."""
    best, interval = report.best, report.best.interval
    assert interval is not None
    exits = "with" if best.exits else "without"
    return (
        f"The point with the least expected cost is `{best.choose}` {exits} early exits and an abstention band of "
        f"{best.abstain:g}: {significant(best.expected_total)} per thousand documents by the probabilities, and "
        f"{significant(best.total)} by the labels of {report.documents:,} documents (95 % interval of those to come "
        f"{significant(interval.low)} to {significant(interval.high)}). "
        f"People then label {100 * best.reviewed:.1f} % of the documents, and {100 * best.errors:.1f} % get a wrong "
        "label."
    )


def break_even_sentences(report: RoiReport) -> Sequence[str]:
    """From how many documents the best point is cheaper than each alternative."""
    sentences = []
    for other in report.alternatives:
        cost, volume = f"{other.name}: {significant(other.total)} per thousand", report.break_even(other)
        if other.total <= report.best.total:
            sentences.append(f"{cost}, cheaper at any volume")
        elif volume is None:
            sentences.append(f"{cost}, more expensive; the break-even is unknown without the number of labels")
        elif volume == 0:
            sentences.append(f"{cost}, more expensive at any volume")
        else:
            sentences.append(f"{cost}, more expensive from {significant(volume)} documents on")
    return sentences
