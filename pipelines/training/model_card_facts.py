"""The facts of the model card of a trained classifier, from its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

from pipelines.data.training_labels import Labels
from spin.classifier import TrainedClassifier
from spin.fitted import persistence
from spin.fitted.abstention import ErrorPromise
from spin.fitted.held_out import HeldOutLogits
from spin.monitor.quality import QualityEstimate, expect_quality
from spin.pages.model_card import NIGHT, CardFacts, Comparison, ContenderResult, model_card
from spin.precision_trial import PrecisionTrial
from spin.settings import Settings


def build_card(
    settings: Settings,
    spin: TrainedClassifier,
    labels: Labels,
    figures: Comparison,
    *,
    held_out: HeldOutLogits,
    promise: ErrorPromise | None,
    fingerprint: str,
    precision_trial: PrecisionTrial | None = None,
) -> str:
    """The model card as Markdown.

    `held_out` are the logits of the test documents that the version carries, and `promise` is what they prove of
    `decision.max_error`; `fingerprint` is that of the probes, and `precision_trial` the trial of int8 if there was one.
    """
    facts = CardFacts(
        **vars(figures),
        name=settings.mlflow.name,
        purpose=f"Tells {len(labels.label_space)} classes apart in text: {', '.join(labels.classes)}.",
        data=settings.data.train,
        fingerprint=fingerprint,
        label_space=labels.label_space,
        y=labels.y,
        splits=labels.splits,
        backbone=settings.backbone.model,
        digest=spin.backbone_digest,
        max_tokens=spin.backbone.max_tokens,
        max_windows=spin.backbone.max_windows if spin.backbone.reads_windows else None,
        window_overlap=spin.backbone.window_overlap,
        precision="" if precision_trial is None else str(precision_trial),
        metric=settings.metric,
        tested=_tested(spin, figures.table),
        training=spin.training_result.summary(),
        choose=settings.choose,
        selection=spin.fitted.selection,
        words=len(spin.training_result.words or ()) if spin.fitted.selection.word_logits else 0,
        decision=spin.fitted.applied_settings(labels.label_space, settings.decision),
        held_out=len(held_out),
        expected=_expect_quality(settings, spin, held_out, promise),
        promise=promise,
        versions={name: version(name) for name in persistence.LIBRARIES},
    )
    return model_card(facts)


def _expect_quality(
    settings: Settings, spin: TrainedClassifier, held_out: HeldOutLogits, promise: ErrorPromise | None
) -> QualityEstimate | None:
    """The quality that a night under these settings is expected to estimate; None where it will have no estimate."""
    decision = spin.decision_rule
    if not len(held_out) or (promise is not None and promise.band is None):
        return None
    if promise is not None and promise.band is not None:
        decision = replace(decision, abstain=promise.band.abstain)
    exits = spin.fitted.exits if settings.classify.cascade else ()
    return expect_quality(held_out.probabilities(exits, decision), held_out.y, decision, NIGHT)


def _tested(spin: TrainedClassifier, table: Sequence[ContenderResult]) -> ContenderResult | None:
    """The row of the classifier in use; one that is several choices has the name of the first."""
    first = next(name for name, fitted in spin.training_result.choices.items() if fitted is spin.fitted)
    name = "spin" if first == "accuracy" else first
    return next((row for row in table if row.name == name), None)
