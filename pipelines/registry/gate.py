"""The gate: what a version must show on the frozen evaluation set before it is champion."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from pipelines.registry.subprocess_predict import Answer, ask
from pipelines.registry.versions import Registry
from pipelines.workers.weights_cache import with_engine
from spin.errors import UserError
from spin.heads.calibration import calibration_error, calibration_error_limit
from spin.heads.decision import Decision
from spin.integrate.bootstrap import lower_bound
from spin.labels.label_space import Label, LabelSpace, Targets, class_names
from spin.labels.metrics import score
from spin.settings import Settings

LOADS = "loads"
"""the check without which nothing else can be told, and that nobody can force"""


@dataclass(frozen=True)
class Check:
    """One figure held against its limit, as a person reads both, and what to do where it fails."""

    name: str
    value: float
    limit: float
    found: str
    expected: str
    remedy: str
    at_most: bool = False
    """the limit is the largest value that passes, not the smallest"""

    @property
    def passed(self) -> bool:
        """Whether MLflow's model validation accepts the figure; one that is not a number it does not."""
        import mlflow
        from mlflow.models import EvaluationResult, MetricThreshold
        from mlflow.models.evaluation.validation import ModelValidationFailedException

        threshold = MetricThreshold(threshold=float(self.limit), greater_is_better=not self.at_most)
        found = EvaluationResult(metrics={self.name: float(self.value)}, artifacts={})
        try:
            mlflow.validate_evaluation_results({self.name: threshold}, found)
        except ModelValidationFailedException:
            return False
        return True


@dataclass(frozen=True)
class GateReport:
    """All that was checked of a version, and the figures behind it."""

    checks: tuple[Check, ...]
    figures: dict[str, float]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)


def inspect(registry: Registry, number: str, champion: str | None, rows: Sequence[dict[str, Any]]) -> GateReport:
    """Measure a version, and on the same rows here and now the champion, where there is one.

    Each is loaded by a fresh process as MLflow's own users load it, and its public answers are what is compared:
    labels as a night with these settings would give them, by their `choose` and `decision` and not by what was saved
    with the version. Where a night would abstain, the label counts that it would give without the band.
    """
    texts = [row["text"] for row in rows]
    mine = _measure(registry, number, texts)
    theirs = None if champion is None else _measure(registry, champion, texts)
    return judge(registry.settings, [row["label"] for row in rows], mine, theirs)


def try_out(registry: Registry, number: str) -> GateReport:
    """Only whether a version loads in a fresh process and predicts."""
    answer = _measure(registry, number, [])
    return GateReport((_loads(answer),), {})


def judge(settings: Settings, truth: Sequence[Label], mine: Answer | str, theirs: Answer | str | None) -> GateReport:
    """The checks on what a version and the champion answered, or why one of them did not answer.

    Without a champion there are only floors; without rows only what needs none.
    """
    checks = [_loads(mine)]
    if isinstance(mine, str):
        return GateReport(tuple(checks), {})
    checks.append(_schema(mine))
    if isinstance(theirs, Answer):
        checks.append(_classes(mine, theirs))
    if not truth:
        return GateReport(tuple(checks), {})
    wanted, metric = settings.promote, settings.metric
    label_space, y, given, before = _aligned(settings, truth, mine, theirs)
    own, calibrated = score(metric, y, given), _calibration(settings, truth, mine)
    figures = {"score": own, "ece": calibrated.value, "documents_per_s": _speed(mine)}
    checks.append(_score(settings, y, own))
    if before is not None and isinstance(theirs, Answer):
        figures |= {"score_before": score(metric, y, before), "documents_per_s_before": _speed(theirs)}
        bound = lower_bound(metric, y, given, before, wanted.significance, settings.seed)
        figures |= {"difference": own - figures["score_before"], "difference_at_least": bound}
        checks.append(_regression(settings, bound, f"{100 * figures['difference']:+.1f}, at least {100 * bound:+.1f}"))
    elif theirs is not None:
        checks.append(_regression(settings, math.nan, f"the champion does not answer: {theirs}"))
    if wanted.class_floors:
        checks.append(_floors(wanted.class_floors, label_space, y, given))
    return GateReport((*checks, calibrated, _throughput(wanted.min_docs_per_s, figures)), figures)


def _measure(registry: Registry, number: str, texts: Sequence[str]) -> Answer | str:
    """What a version says, or why it says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = registry.download_model(number, Path(folder))
            return ask(model, texts or ["Does it predict?"], with_engine(registry.settings, "classify"))
        except UserError as error:
            return str(error)


def _loads(mine: Answer | str) -> Check:
    found = mine if isinstance(mine, str) else f"texts answered: {len(mine.labels):,}"
    return Check(
        LOADS,
        float(isinstance(mine, Answer)),
        1.0,
        found,
        "loads in a fresh process and predicts",
        "mend what it names, or train again; this cannot be forced",
    )


def _schema(mine: Answer) -> Check:
    found = ", ".join(f"{name}: {kind}" for name, kind in mine.columns.items()) or "none"
    remedy = "register the version with `spin train`"
    return Check("schema", float(found == "text: string"), 1.0, found, "text: string", remedy)


def _classes(mine: Answer, theirs: Answer) -> Check:
    lost, new = sorted({*theirs.classes} - {*mine.classes}), sorted({*mine.classes} - {*theirs.classes})
    parts = [f"{word} {', '.join(names)}" for word, names in (("lacks", lost), ("adds", new)) if names]
    if mine.multilabel != theirs.multilabel:
        parts.append("gives lists of classes" if mine.multilabel else "gives one class a document")
    return Check(
        "classes",
        float(not parts),
        1.0,
        "; ".join(parts) or "the same",
        f"the champion's {len(theirs.classes)} classes",
        "train on a corpus with the champion's classes",
    )


def _score(settings: Settings, y: Targets, own: float) -> Check:
    least = settings.promote.min_score
    if least is None:
        values, counts = np.unique(y, axis=0, return_counts=True)
        constant = score(settings.metric, y, np.broadcast_to(values[counts.argmax()], y.shape))
        limit, expected = float(np.nextafter(constant, 1)), f"above {100 * constant:.1f}, one answer for all"
    else:
        limit, expected = least, f"at least {100 * least:.1f}"
    return Check(
        "score", own, limit, f"{100 * own:.1f} {settings.metric}", expected, "train again, or lower promote.min_score"
    )


def _regression(settings: Settings, bound: float, found: str) -> Check:
    margin = settings.promote.max_regression
    return Check(
        "regression",
        bound,
        -margin,
        found,
        f"at least {-100 * margin:+.1f} against the champion, {100 * (1 - settings.promote.significance):g} % sure",
        "train again, or raise promote.max_regression where so much less is no loss",
    )


def _floors(floors: dict[str, float], label_space: LabelSpace, y: Targets, given: Targets) -> Check:
    """The class that is furthest below its floor decides; one without a document here has no figure."""
    each = f1_score(y, given, labels=np.arange(len(label_space)), average=None, zero_division=0.0)
    here = np.any(label_space.indicator(y), axis=0)
    figures = {name: float(each[k]) if here[k] else math.nan for k, name in enumerate(label_space.classes)}
    found = {name: figures.get(name, math.nan) for name in floors}
    return Check(
        "class_floors",
        float(np.min([found[name] - floor for name, floor in floors.items()])),
        0.0,
        ", ".join(f"{name} " + (f"{100 * f1:.1f}" if f1 == f1 else "has no document") for name, f1 in found.items()),
        "F1 at least " + ", ".join(f"{name} {100 * floor:.1f}" for name, floor in floors.items()),
        "label more of these classes and train again, or lower promote.class_floors",
    )


def _calibration(settings: Settings, truth: Sequence[Label], mine: Answer) -> Check:
    """Of the version's own classes and, with probability 0, of those that it does not know."""
    known = {*mine.classes}
    more = sorted({name for label in truth for name in class_names(label)} - known)
    lists = mine.multilabel or not all(isinstance(label, str) for label in truth)
    label_space = LabelSpace((*mine.classes, *more), lists)
    probabilities = np.pad(mine.probabilities, ((0, 0), (0, len(more))))
    wanted = settings.promote
    chance = calibration_error_limit(probabilities, label_space, wanted.significance, settings.seed)
    limit = max(wanted.max_ece, chance)
    error = calibration_error(probabilities, label_space.index(truth), label_space)
    return Check(
        "calibration",
        error,
        limit,
        f"error {100 * error:.1f}",
        f"at most {100 * limit:.1f}" + (", which chance alone shows" if limit > wanted.max_ece else ""),
        "train again with more validation documents, or raise promote.max_ece",
        at_most=True,
    )


def _throughput(least: float, figures: dict[str, float]) -> Check:
    found = f"{figures['documents_per_s']:,.1f} documents/s"
    if "documents_per_s_before" in figures:
        found += f", the champion {figures['documents_per_s_before']:,.1f}"
    remedy = "choose: cheapest, or lower promote.min_docs_per_s"
    expected = f"at least {least:,.1f}" if least else "no floor"
    return Check("throughput", figures["documents_per_s"], least, found, expected, remedy)


def _speed(answer: Answer) -> float:
    return len(answer.labels) / max(answer.seconds, 1e-9)


def _aligned(
    settings: Settings, truth: Sequence[Label], mine: Answer, theirs: Answer | str | None
) -> tuple[LabelSpace, Targets, Targets, Targets | None]:
    """The truth and both answers in one task: of the classes that any of them has, which a version may not know."""
    given = _labels(settings, mine)
    before = _labels(settings, theirs) if isinstance(theirs, Answer) else []
    every = [*truth, *given, *before]
    classes = sorted({name for label in every for name in class_names(label)})
    label_space = LabelSpace(tuple(classes), not all(isinstance(label, str) for label in every))
    return (
        label_space,
        label_space.index(truth),
        label_space.index(given),
        label_space.index(before) if before else None,
    )


def _labels(settings: Settings, answer: Answer) -> list[Label]:
    label_space = LabelSpace(answer.classes, answer.multilabel)
    y, _ = Decision.of(label_space, settings.decision).decide(answer.probabilities)
    pairs = zip(answer.labels, label_space.names(y), strict=True)
    return [near if label is None else label for label, near in pairs]
