"""The baselines that SPIN is compared with on the same documents: words, the last layer, and the best single site."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from spin.activations.encoder import split_segments
from spin.activations.engine import open_engine
from spin.activations.extract import read_activations, single_segment
from spin.backbone.model import Backbone
from spin.classifier import SpinClassifier
from spin.labels.label_space import Targets
from spin.labels.metrics import score
from spin.pages.model_card import ContenderResult
from spin.settings import Choice
from spin.sparsify.probe import Probe

STRENGTHS = tuple(float(c) for c in np.geomspace(1e-3, 10, 7))
"""C of the baselines' logistic regressions, chosen on the validation rows"""
_TIMED, _ROUNDS = 256, 3


@dataclass(frozen=True)
class Contender:
    """A classifier of the comparison: its predictions for the test documents, and a function that classifies text."""

    name: str
    predicted: Targets
    neurons: int
    depth: int
    classify: Callable[[Sequence[str]], Any]
    logits: NDArray[np.floating] | None = None
    """(n, K) of the test documents, None for a baseline"""


def words(texts: Sequence[str], labels: Labels, metric: str) -> Contender:
    """TF-IDF of words and word pairs with logistic regression."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    rows, _ = labels.part("train")
    try:
        vectorizer.fit([texts[row] for row in rows])
    except ValueError:  # no word occurs in two documents
        vectorizer = TfidfVectorizer(token_pattern=r"\S+").fit([texts[row] for row in rows])
    X = vectorizer.transform(texts)
    model = _fit_best_strength(X, labels, metric)
    predicted = _predict(model, X[labels.part("test")[0]], labels)
    return Contender("tfidf", predicted, 0, 0, lambda some: model.predict(vectorizer.transform(some)))


def last_layer(features: FeatureShards, backbone: Backbone, labels: Labels, metric: str) -> Contender:
    """Logistic regression on the last layer after the final norm, under the pooling that validates better."""
    fitted = []
    for column in (c for c in features.columns if c.site.kind == "final"):
        values = features.read(column).astype(np.float32)
        model = _fit_best_strength(values, labels, metric, standardised=True)
        rows, y = labels.part("valid")
        fitted.append((score(metric, y, _predict(model, values[rows], labels)), column, model, values))
    _, column, model, values = max(fitted, key=lambda entry: (entry[0], entry[1]))
    engine = open_engine(backbone, [single_segment([column])])
    return Contender(
        "last_layer",
        _predict(model, values[labels.part("test")[0]], labels),
        values.shape[1],
        column.site.layer,
        lambda texts: model.predict(read_activations(engine, texts).values),
    )


def best_site(features: FeatureShards, backbone: Backbone, probes: Sequence[Probe], labels: Labels) -> Contender:
    """The probe of the one feature column that validates best."""
    probe = max(probes, key=lambda p: (p.valid_score, -p.column.site.layer, p.column))
    values = features.read(probe.column)[labels.part("test")[0]]
    engine = open_engine(backbone, [single_segment([probe.column])])
    return Contender(
        "best_site",
        probe.predict(values, labels.label_space),
        int((probe.importance > 0).sum()),
        probe.column.site.layer,
        lambda texts: probe.decision(read_activations(engine, texts).values),
    )


def spin_row(features: FeatureShards, spin: SpinClassifier, labels: Labels, choice: Choice) -> Contender:
    """One of the three SPIN classifiers; the most accurate one is named `spin`."""
    fitted = spin.training_result.choices[choice]
    rows, _ = labels.part("test")
    logits = fitted.logits(features.read_selection(fitted.selection, rows))
    engine = open_engine(spin.backbone, split_segments(fitted.selection.neurons, []))

    def classify(texts: Sequence[str]) -> NDArray[np.floating]:
        return fitted.logits(read_activations(engine, texts).values)

    return Contender(
        "spin" if choice == "accuracy" else choice,
        labels.label_space.predict(logits),
        len(fitted.selection),
        fitted.selection.depth,
        classify,
        logits,
    )


def tabulate(
    contenders: Sequence[Contender], features: FeatureShards, depth: int, labels: Labels, texts: Sequence[str]
) -> list[ContenderResult]:
    """The figures of every contender on the test documents, and its speed from text to label on the same sample."""
    rows, y = labels.part("test")
    sample = [texts[row] for row in rows[:_TIMED]]
    speeds = _speeds(contenders, sample)
    total = sum(features.columns[column] for column in features.probed)
    table = []
    for contender, speed in zip(contenders, speeds, strict=True):
        accuracy, macro_f1 = (score(name, y, contender.predicted) for name in ("accuracy", "macro_f1"))
        table.append(
            ContenderResult(
                name=contender.name,
                accuracy=accuracy,
                macro_f1=macro_f1,
                neurons=contender.neurons,
                neurons_of=total,
                depth=contender.depth,
                depth_of=depth,
                docs_per_s=round(speed, 1),
            )
        )
    return table


def _speeds(contenders: Sequence[Contender], sample: Sequence[str]) -> list[float]:
    """Documents per second of each contender: the median of interleaved rounds, after one to warm up."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for turn in range(_ROUNDS + 1):
        for contender, times in zip(contenders, seconds, strict=True):
            start = time.perf_counter()
            contender.classify(sample)
            if turn:
                times.append(time.perf_counter() - start)
    return [len(sample) / statistics.median(times) for times in seconds]


def _fit_best_strength(X: Any, labels: Labels, metric: str, *, standardised: bool = False) -> Any:
    """Logistic regression, run to convergence, with the C that validates best."""
    (train, train_y), (valid, valid_y) = labels.part("train"), labels.part("valid")
    fitted = []
    for strength in STRENGTHS:
        regression: Any = LogisticRegression(C=strength, max_iter=5000)
        if labels.label_space.multilabel:
            regression = OneVsRestClassifier(regression)
        model = make_pipeline(StandardScaler(), regression) if standardised else regression
        model.fit(X[train], train_y if train_y.ndim == 1 else train_y.astype(int))
        fitted.append((score(metric, valid_y, _predict(model, X[valid], labels)), -strength, model))
    return max(fitted, key=lambda entry: entry[:2])[2]


def _predict(model: Any, X: Any, labels: Labels) -> Targets:
    """Predictions of a scikit-learn model as targets of the label space."""
    predicted = model.predict(X)
    return predicted.astype(bool) if labels.label_space.multilabel else predicted
