"""Classifiers with random neurons, heads and exits, which no training made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spin.classifier import TrainedClassifier
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import ChoiceSummary, FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings
from spin.sites import BY_WORDS, FeatureColumn
from spin.words.word_regression import WordRegression


def build_classifier(
    settings: BackboneSettings,
    digest: str,
    neurons: dict[FeatureColumn, np.ndarray],
    *,
    exits: Sequence[tuple[int, float]] = (),
    classes: int = 3,
    multilabel: bool = False,
    words: WordRegression | None = None,
    head_reads_words: bool = True,
    seed: int = 0,
    **options: Any,
) -> TrainedClassifier:
    """Return a classifier that reads these neurons, with a random head.

    `exits` are depths, -1 for that by words, and the confidence from which a document exits there. It exits early if it
    has any. `options` are those of `TrainedClassifier`.
    """
    draw = np.random.default_rng(seed)
    in_head = classes if words is not None and head_reads_words else 0
    selection = Selection(neurons, {c: np.zeros(len(n)) for c, n in neurons.items()}, 0.5, word_logits=in_head)

    def head(features: int) -> LinearHead:
        coef = draw.normal(size=(classes, features)) * 1.5 / np.sqrt(max(1, features))
        return LinearHead(coef.astype(np.float32), draw.normal(size=classes).astype(np.float32) * np.float32(0.1))

    fitted = FittedClassifier(
        selection,
        Standardizer(np.zeros(len(selection), np.float32), np.ones(len(selection), np.float32)),
        head(len(selection)),
        ChoiceSummary.model_construct(thresholds=None),
        tuple(
            EarlyExit(depth, head(classes if depth == BY_WORDS else len(selection.up_to(depth))), threshold)
            for depth, threshold in exits
        ),
    )
    result = TrainingResult(dict.fromkeys(("accuracy", "balanced", "cheapest"), fitted), (), 0, words)
    space = LabelSpace(tuple(f"class {seed} {k}" for k in range(classes)), multilabel)
    return TrainedClassifier(settings, digest, space, result, "macro_f1", early=bool(exits), **options)


def draw_neurons(
    draw: np.random.Generator, columns: Sequence[FeatureColumn], widths: Sequence[int], share: float = 0.3
) -> dict[FeatureColumn, np.ndarray]:
    """Return random neurons of each column, about `share` of all, at least one."""
    chosen = [np.flatnonzero(draw.random(width) < share) for width in widths]
    return {c: n if len(n) else np.array([0]) for c, n in zip(columns, chosen, strict=True)}
