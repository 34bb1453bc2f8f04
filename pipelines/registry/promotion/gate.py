"""The gate: the checks on the frozen evaluation set that a version must pass before it becomes the champion."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.registry.champion_history import BEST_CHAMPION
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion.earlier_gates import EarlierGates
from pipelines.registry.promotion.gate_check import GateCheck
from pipelines.registry.promotion.promised_error import check_promised_error, settle_promise
from pipelines.registry.promotion.subprocess_predict import PredictionReply, predict_in_subprocess
from pipelines.registry.versions import Registry
from pipelines.service_errors import StalledError
from pipelines.storage.stage_plan import fingerprint
from pipelines.workers.weights_cache import with_engine
from spin.audit.perturbations import mix_perturbations
from spin.errors import UserError
from spin.heads.calibration import calibration_error, calibration_error_limit
from spin.heads.decision import Decision
from spin.integrate.bootstrap import lower_bound, score_intervals
from spin.labels.label_space import Label, LabelSpace, Targets, class_names
from spin.labels.metrics import score
from spin.settings import Settings

LOADS = "loads"
"""the check that cannot be forced: without predictions nothing else is known"""

SCORE = "score"
"""the check of the metric of the settings"""
_CHAMPION = "the champion"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateReport:
    """All checks of a version."""

    checks: tuple[GateCheck, ...]
    figures: Mapping[str, float]
    """metrics of the gate's MLflow run by name; `score` and, with a champion, `score_before` among them"""
    labels_digest: str = ""
    """of the version's labels for the evaluation set; empty where they were compared with no champion"""
    predictions: Mapping[str, PredictionReply] = field(default_factory=dict)
    """by version, for the evaluation set: those of the version and of the champion, as far as they predict"""

    @property
    def failed(self) -> tuple[GateCheck, ...]:
        return tuple(check for check in self.checks if not check.passed)


@dataclass(frozen=True)
class NoReply:
    """A version that does not load or predict."""

    reason: str


def run_gate(
    registry: Registry, number: str, champion: str | None, evaluation_set: EvaluationSet, earlier: EarlierGates
) -> GateReport:
    """Check a version against its limits, the champion and the best champion, on the same documents.

    The version and the champion are measured now, each loaded in a fresh process as MLflow's users load it; for former
    champions the predictions serve that earlier gates have stored. Labels are decided by the `choose` and `decision` of
    the registry's settings, as in a night, and not by the settings that were saved with the version; a class without a
    threshold there has the one that the training of the version chose. Where a night would abstain, the label that it
    would give without the abstention band counts. Raises StalledError for a version that takes longer than
    `promote.timeout_seconds`; a champion that does is one that does not predict.
    """
    settings, unproven = settle_promise(registry, number)
    reply = _measure(registry, number, evaluation_set.texts, settings)
    replies: dict[str, PredictionReply | NoReply] = {number: reply}
    champion_reply, perturbed = None, None
    if champion is not None:
        replies[champion] = champion_reply = _measure_champion(registry, champion, evaluation_set.texts)
        if isinstance(champion_reply, PredictionReply):
            earlier = earlier.without(champion)
        perturbed = _measure_perturbed(registry, number, champion, evaluation_set, settings)
    report = judge(registry.settings, evaluation_set.labels, reply, champion_reply, earlier, perturbed)
    if isinstance(reply, PredictionReply):
        max_error = registry.settings.decision.max_error
        promised = check_promised_error(max_error, reply, evaluation_set.labels, unproven)
        report = replace(report, checks=(*report.checks, *promised))
    predictions = {version: r for version, r in replies.items() if isinstance(r, PredictionReply)}
    return replace(report, predictions=predictions if evaluation_set else {})


def _measure_perturbed(
    registry: Registry, number: str, champion: str, evaluation_set: EvaluationSet, settings: Settings
) -> tuple[PredictionReply | NoReply, PredictionReply | NoReply] | None:
    """The predictions of a version and of the champion for perturbed texts; None where they are not compared."""
    if settings.promote.max_robustness_loss is None or not evaluation_set:
        return None
    texts = mix_perturbations(evaluation_set.texts, seed=settings.seed)
    return _measure(registry, number, texts, settings), _measure_champion(registry, champion, texts)


def check_loads(registry: Registry, number: str) -> GateReport:
    """Check only that a version loads in a fresh process and predicts. Raises StalledError as `run_gate`."""
    return GateReport((_loads(_measure(registry, number, [], settle_promise(registry, number)[0])),), {})


def judge(
    settings: Settings,
    labels: Sequence[Label],
    model: PredictionReply | NoReply,
    champion: PredictionReply | NoReply | None,
    earlier: EarlierGates = EarlierGates(),  # noqa: B008 - it is frozen
    perturbed: tuple[PredictionReply | NoReply, PredictionReply | NoReply] | None = None,
) -> GateReport:
    """The checks on the predictions of a version and of champions for documents with these labels.

    Without a champion the version is compared with fixed limits only; without labels there are only the checks that
    need none. `earlier` holds no predictions of the champion if it predicts now. `perturbed` are the predictions of the
    version and of the champion for the same documents with their texts perturbed, if they are compared.
    """
    checks = [_loads(model)]
    if isinstance(model, NoReply):
        return GateReport(tuple(checks), {})
    checks.append(_schema(model))
    if isinstance(champion, PredictionReply):
        checks.append(_classes(model, champion))
    if not labels:
        return GateReport(tuple(checks), {})
    given, champions = _labels(settings, model), _champion_labels(settings, champion, earlier, len(labels))
    label_space, y, predicted, others = _aligned(labels, given, champions)
    digest = "" if champion is None else fingerprint(given)[:16]
    comparison = _Comparison(settings, y, predicted, len(earlier.failed - {digest}))
    calibration, limits = _calibration(settings, labels, model), settings.promote
    [(low, high)] = score_intervals(settings.metric, y, [predicted], settings.seed)
    figures = {"score": comparison.score(predicted), "score_low": low, "score_high": high}
    figures |= {"ece": calibration.value, "documents_per_s": _speed(model)}
    checks.append(_score(settings, y, figures))
    if champion is not None:
        compared, more = _compare_with_champions(comparison, champion, others, earlier)
        checks, figures = checks + compared, figures | more
    if perturbed is not None:
        check, more = _compare_robustness(comparison, labels, *perturbed)
        checks, figures = [*checks, check], figures | more
    if limits.class_floors:
        checks.append(_class_floors(limits.class_floors, label_space, y, predicted))
    return GateReport((*checks, calibration, _throughput(limits.min_docs_per_s, figures)), figures, digest)


@dataclass(frozen=True)
class _Comparison:
    """The comparison of a version with others on the same documents."""

    settings: Settings
    y: Targets
    predicted: Targets
    """of the version"""
    failed: int
    """other attempts that failed since the champion became champion"""

    @property
    def significance(self) -> float:
        """The risk of passing a version that is worse by exactly the margin, divided by the number of attempts.

        Every attempt is a further chance to pass by luck: of 20 versions that are worse by the margin one would pass
        with probability 1 - 0.95^20 = 64 %. Bonferroni's correction for the attempts so far bounds the probability that
        one of n passes by `significance` times 1 + 1/2 + … + 1/n, which is 18 % for 20.
        """
        return self.settings.promote.significance / (1 + self.failed)

    def score(self, labels: Targets) -> float:
        return score(self.settings.metric, self.y, labels)

    def difference(self, other: Targets) -> tuple[float, float]:
        """How much higher the version scores than another one, and the lower confidence bound of that."""
        difference = self.score(self.predicted) - self.score(other)
        metric, seed = self.settings.metric, self.settings.seed
        return difference, lower_bound(metric, self.y, self.predicted, other, self.significance, seed)

    def check(self, name: str, other: str, bound: float, measured: str, limit: str = "max_regression") -> GateCheck:
        """`bound` is the lower confidence bound of the difference to the score of `other`.

        `limit` is the setting of `promote` that says how much lower the version may score.
        """
        margin, confidence = getattr(self.settings.promote, limit), 1 - self.significance
        attempts = f", after {self.failed} failed attempt{'s' * (self.failed > 1)}" if self.failed else ""
        return GateCheck(
            name,
            value=bound,
            limit=-margin,
            measured=measured,
            expected=f"at least {-100 * margin:+.1f} against {other}, "
            f"with {100 * confidence:.4g} % confidence{attempts}",
            remedy=f"train again, or raise promote.{limit} where such a loss is acceptable",
        )


def _compare_with_champions(
    comparison: _Comparison,
    champion: PredictionReply | NoReply,
    others: Mapping[str, Targets],
    earlier: EarlierGates,
) -> tuple[list[GateCheck], dict[str, float]]:
    """The checks `regression` and `best_champion`, and their figures; `others` holds the champions' labels by name.

    Each champion alone may be worse than the one before it by the margin. The comparison with the best of them bounds
    the sum of such losses by the margin. The best one is that with the highest score by the metric of the settings.
    """
    best = max(others, key=lambda name: comparison.score(others[name]), default=None)
    compared = {name: comparison.difference(others[name]) for name in others if name in (_CHAMPION, best)}
    measured = {name: f"{100 * d:+.1f}, at least {100 * bound:+.1f}" for name, (d, bound) in compared.items()}
    figures: dict[str, float] = {}
    if isinstance(champion, NoReply):
        reason = f"the champion does not predict: {champion.reason}"
        checks = [comparison.check("regression", _CHAMPION, math.nan, reason)]
    else:
        difference, bound = compared[_CHAMPION]
        figures |= {"score_before": comparison.score(others[_CHAMPION]), "documents_per_s_before": _speed(champion)}
        figures |= {"difference": difference, "difference_at_least": bound}
        checks = [comparison.check("regression", _CHAMPION, bound, measured[_CHAMPION])]
    if best is not None:
        difference, bound = compared[best]
        best_score = comparison.score(others[best])
        figures |= {"score_best": best_score, "difference_best": difference, "difference_best_at_least": bound}
        absent = [n for n in (*earlier.missing, *earlier.champions) if _former(n) not in others]
        note = f"; no predictions of version {', '.join(absent)} to compare with" if absent else ""
        text = f"{measured[best]} against {best}, {100 * best_score:.1f}{note}"
        checks.append(comparison.check(BEST_CHAMPION, "the best champion", bound, text))
    return checks, figures


def _compare_robustness(
    comparison: _Comparison,
    labels: Sequence[Label],
    model: PredictionReply | NoReply,
    champion: PredictionReply | NoReply,
) -> tuple[GateCheck, dict[str, float]]:
    """The check `robustness` and its figures: how much lower the version scores where each text is perturbed.

    `comparison` is that of the original texts, whose attempts count here too.
    """
    check = partial(comparison.check, "robustness", f"{_CHAMPION} on perturbed texts", limit="max_robustness_loss")
    if isinstance(model, NoReply):
        return check(math.nan, f"the version does not predict: {model.reason}"), {}
    if isinstance(champion, NoReply):
        return check(math.nan, f"the champion does not predict: {champion.reason}"), {}
    given, champions = (_labels(comparison.settings, reply) for reply in (model, champion))
    _, y, predicted, others = _aligned(labels, given, {_CHAMPION: champions})
    difference, bound = replace(comparison, y=y, predicted=predicted).difference(others[_CHAMPION])
    figures = {"difference_perturbed": difference, "difference_perturbed_at_least": bound}
    return check(bound, f"{100 * difference:+.1f}, at least {100 * bound:+.1f}"), figures


def _measure(registry: Registry, number: str, texts: Sequence[str], settings: Settings) -> PredictionReply | NoReply:
    """The predictions of a version, decided as `settings` say: those of the registry, with a band of the version."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = registry.download_model(number, Path(folder))
            return predict_in_subprocess(model, texts or ["Does it predict?"], with_engine(settings, "classify"))
        except UserError as error:
            logger.debug("version %s of %s does not predict", number, registry.name, exc_info=True)
            return NoReply(str(error))
        except StalledError as error:
            raise StalledError(f"version {number} of {registry.name} {error}") from None


def _measure_champion(registry: Registry, number: str, texts: Sequence[str]) -> PredictionReply | NoReply:
    """As `_measure`, but a champion that hangs does not keep a version from being promoted with --force."""
    try:
        return _measure(registry, number, texts, settle_promise(registry, number)[0])
    except StalledError as error:
        return NoReply(str(error))


def _loads(model: PredictionReply | NoReply) -> GateCheck:
    return GateCheck(
        LOADS,
        value=float(isinstance(model, PredictionReply)),
        limit=1.0,
        measured=model.reason if isinstance(model, NoReply) else f"texts predicted: {len(model.labels):,}",
        expected="loads in a fresh process and predicts",
        remedy="correct what it names, or train again; this cannot be forced",
    )


def _schema(model: PredictionReply) -> GateCheck:
    columns = ", ".join(f"{name}: {kind}" for name, kind in model.input_columns.items()) or "none"
    return GateCheck(
        "schema",
        value=float(columns == "text: string"),
        limit=1.0,
        measured=columns,
        expected="text: string",
        remedy="register the version with `spin train`",
    )


def _classes(model: PredictionReply, champion: PredictionReply) -> GateCheck:
    missing = sorted({*champion.classes} - {*model.classes})
    added = sorted({*model.classes} - {*champion.classes})
    changes = [f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("adds", added)) if names]
    if model.multilabel != champion.multilabel:
        changes.append("gives lists of classes" if model.multilabel else "gives one class per document")
    return GateCheck(
        "classes",
        value=float(not changes),
        limit=1.0,
        measured="; ".join(changes) or "the same",
        expected=f"the champion's {len(champion.classes)} classes",
        remedy="train on a corpus with the champion's classes",
    )


def _score(settings: Settings, y: Targets, figures: Mapping[str, float]) -> GateCheck:
    """By default the limit is just above the score of the commonest label for every document.

    What is measured says how, since the table of the training has other documents, or the same at full depth.
    """
    limit = settings.promote.min_score
    if limit is None:
        values, counts = np.unique(y, axis=0, return_counts=True)
        constant = score(settings.metric, y, np.broadcast_to(values[counts.argmax()], y.shape))
        limit, expected = float(np.nextafter(constant, 1)), f"above {100 * constant:.1f}, one label for all"
    else:
        expected = f"at least {100 * limit:.1f}"
    shown, low, high = (f"{100 * figures[name]:.1f}" for name in ("score", "score_low", "score_high"))
    how = "with early exits, as in a night" if settings.classify.cascade else "at full depth"
    return GateCheck(
        SCORE,
        value=figures["score"],
        limit=limit,
        measured=f"{shown} {settings.metric} [{low}–{high}] on {len(y):,} documents {how}",
        expected=expected,
        remedy="train again, or lower promote.min_score",
    )


def _class_floors(floors: Mapping[str, float], label_space: LabelSpace, y: Targets, predicted: Targets) -> GateCheck:
    """The class furthest below its floor decides; a class without documents cannot be measured."""
    from sklearn.metrics import f1_score

    every_f1 = f1_score(y, predicted, labels=np.arange(len(label_space)), average=None, zero_division=0.0)
    occurs = np.any(label_space.indicator(y), axis=0)
    measured = {name: float(every_f1[k]) for k, name in enumerate(label_space.classes) if occurs[k]}
    f1 = {name: measured.get(name, math.nan) for name in floors}
    return GateCheck(
        "class_floors",
        value=float(np.min([f1[name] - floor for name, floor in floors.items()])),
        limit=0.0,
        measured=", ".join(f"{name} " + ("has no document" if f != f else f"{100 * f:.1f}") for name, f in f1.items()),
        expected="F1 at least " + ", ".join(f"{name} {100 * floor:.1f}" for name, floor in floors.items()),
        remedy="label more of these classes and train again, or lower promote.class_floors",
    )


def _calibration(settings: Settings, labels: Sequence[Label], model: PredictionReply) -> GateCheck:
    """The calibration error over the version's classes and, with probability 0, the classes that it does not know."""
    unknown = sorted({name for label in labels for name in class_names(label)} - {*model.classes})
    multilabel = model.multilabel or not all(isinstance(label, str) for label in labels)
    label_space = LabelSpace((*model.classes, *unknown), multilabel)
    probabilities = np.pad(model.probabilities, ((0, 0), (0, len(unknown))))
    limits = settings.promote
    by_chance = calibration_error_limit(probabilities, label_space, limits.significance, settings.seed)
    limit = max(limits.max_ece, by_chance)
    error = calibration_error(probabilities, label_space.index(labels), label_space)
    return GateCheck(
        "calibration",
        value=error,
        limit=limit,
        measured=f"error {100 * error:.1f}",
        expected=f"at most {100 * limit:.1f}" + (", as chance alone gives" if limit > limits.max_ece else ""),
        remedy="train again with more validation documents, or raise promote.max_ece",
        at_most=True,
    )


def _throughput(limit: float, figures: Mapping[str, float]) -> GateCheck:
    measured = f"{figures['documents_per_s']:,.1f} documents/s"
    if "documents_per_s_before" in figures:
        measured += f", the champion {figures['documents_per_s_before']:,.1f}"
    return GateCheck(
        "throughput",
        value=figures["documents_per_s"],
        limit=limit,
        measured=measured,
        expected=f"at least {limit:,.1f}" if limit else "no limit",
        remedy="choose: cheapest, or lower promote.min_docs_per_s",
    )


def _speed(reply: PredictionReply) -> float:
    """Documents per second."""
    return len(reply.labels) / max(reply.seconds, 1e-9)


def _champion_labels(
    settings: Settings, champion: PredictionReply | NoReply | None, earlier: EarlierGates, count: int
) -> dict[str, list[Label]]:
    """The labels of the champion and of former champions for `count` documents, by their names in the report."""
    labels = {_CHAMPION: _labels(settings, champion)} if isinstance(champion, PredictionReply) else {}
    for number, reply in earlier.champions.items():
        undecided = replace(reply, labels=[None] * len(reply.probabilities))
        with suppress(UserError):  # the settings have a threshold for a class that it does not know
            if len(undecided.labels) == count:
                labels[_former(number)] = _labels(settings, undecided)
    return labels


def _former(number: str) -> str:
    return f"version {number}"


def _aligned(
    labels: Sequence[Label], given: Sequence[Label], champions: Mapping[str, Sequence[Label]]
) -> tuple[LabelSpace, Targets, Targets, dict[str, Targets]]:
    """The true labels, those of a version and those of champions as targets over the classes that occur in any."""
    every = [*labels, *given, *(label for of_one in champions.values() for label in of_one)]
    classes = sorted({name for label in every for name in class_names(label)})
    label_space = LabelSpace(tuple(classes), not all(isinstance(label, str) for label in every))
    targets = {name: label_space.index(of_one) for name, of_one in champions.items()}
    return label_space, label_space.index(labels), label_space.index(given), targets


def _labels(settings: Settings, reply: PredictionReply) -> list[Label]:
    """The predicted labels; where the decision abstains, the label without the abstention band."""
    label_space = LabelSpace(reply.classes, reply.multilabel)
    y, _ = Decision.of(label_space, settings.decision, reply.thresholds).decide(reply.probabilities)
    pairs = zip(reply.labels, label_space.names(y), strict=True)
    return [without_band if label is None else label for label, without_band in pairs]
