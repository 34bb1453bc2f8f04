"""Evaluate a registered version on any labelled files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.data.files.input_files import list_files
from pipelines.data.labelled_corpus import read_labelled
from pipelines.registry.versions import Registry
from pipelines.workers.progress import progress
from spin.errors import UserError
from spin.integrate.bootstrap import score_intervals
from spin.labels.label_space import Label
from spin.labels.metrics import ClassFigures, class_figures, score
from spin.settings import METRICS, DecisionSettings, Settings


@dataclass(frozen=True)
class EvaluationReport:
    """The quality of the labels that a version gives some documents in a night with these settings."""

    model_version: str
    documents: int
    """documents that were read"""
    abstained: int
    """documents without a label, because the decision abstains; the figures leave them out"""
    decision: DecisionSettings
    """the thresholds, those that training chose included, and the abstention band that were applied"""
    metrics: dict[str, float]
    """every metric, from 0 to 1, by name; empty if the decision abstains for all documents"""
    intervals: dict[str, tuple[float, float]]
    """the 95 % interval of each, by the bootstrap over the documents; near-identical ones are drawn together"""
    per_class: dict[str, ClassFigures]


def run_evaluate(settings: Settings, registry: Registry, source: str, *, model: str | None = None) -> EvaluationReport:
    """Evaluate a version, by default the champion, with the labels that a night with these settings would give.

    Raises UserError if there are no rows, a row has no id, text or label, or the model does not know a label.
    """
    version = registry.resolve(model)
    data = settings.data.model_copy(update={"split": None, "group": None})
    labelled = read_labelled(list_files(source), data, keep_texts=None)
    truth = labelled.labels
    spin = registry.load(version)
    if not truth:
        raise UserError(f"{source}: found no documents; expected labelled ones to evaluate on")
    try:
        y = spin.label_space.index(truth)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    predicted: list[Label | None] = []
    with progress("evaluate", len(truth), "documents") as advance:
        size = settings.ray.shard_documents
        for start in range(0, len(truth), size):
            predicted += spin.predict_all(labelled.texts[start : start + size], progress=advance).labels
    rows = np.flatnonzero([label is not None for label in predicted])
    given = spin.label_space.index([label for label in predicted if label is not None])
    metrics, groups = METRICS if len(rows) else (), np.asarray(labelled.groups)[rows]
    return EvaluationReport(
        model_version=version,
        documents=len(truth),
        abstained=len(truth) - len(rows),
        decision=spin.fitted.applied_settings(spin.label_space, spin.decision),
        metrics={name: score(name, y[rows], given) for name in metrics},
        intervals={name: score_intervals(name, y[rows], [given], settings.seed, groups)[0] for name in metrics},
        per_class=class_figures(y[rows], given, spin.label_space.classes) if len(rows) else {},
    )
