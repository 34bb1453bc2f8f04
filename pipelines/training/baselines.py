"""The baselines that SPIN is compared with on the same documents: words, the last layer, and the best single site.

They are fitted in the process of the command, so each reads a bounded number of rows: a stratified sample where the
corpus is larger. A baseline that fails all the same is left out of the table.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.data.corpus import Corpus
from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from spin.activations.engines.engine import open_engine
from spin.activations.extract import read_activations, single_segment
from spin.arrays import Floats, Rows
from spin.backbone.model import Backbone
from spin.classifier import TrainedClassifier
from spin.labels.label_space import Targets
from spin.labels.metrics import score
from spin.labels.sampling import sample_rows
from spin.pages.model_card import ContenderResult
from spin.sparsify.probe import Probe, best_probe

_log = logging.getLogger(__name__)
STRENGTHS = tuple(float(c) for c in np.geomspace(1e-3, 10, 7))
"""C of the baselines' logistic regressions, chosen on the validation rows"""
SAMPLE_ROWS = 20_000
"""most training rows, and most validation rows, that a baseline is fitted on"""
SAMPLE_CHARACTERS = 50_000_000
"""characters of text that words are counted in, about; with longer texts the sample has fewer rows"""
MAX_WORDS = 100_000
"""most words and word pairs of TF-IDF, the most frequent ones"""
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
    note: str | None = None
    """what a reader of its row should know"""
    words: int = 0
    """words, word pairs and strings of characters that it counts in a text"""


def words(corpus: Corpus, labels: Labels, metric: str, seed: int) -> Contender:
    """TF-IDF of words and word pairs with logistic regression."""
    (train, train_texts), (valid, valid_texts) = (
        _texts_to_fit(corpus, labels, split, seed) for split in ("train", "valid")
    )
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=MAX_WORDS, sublinear_tf=True)
    try:
        vectorizer.fit(train_texts)
    except ValueError:  # no word occurs in two documents
        vectorizer = TfidfVectorizer(token_pattern=r"\S+", max_features=MAX_WORDS).fit(train_texts)
    model = fit_best_strength(
        (vectorizer.transform(train_texts), labels.y[train]),
        (vectorizer.transform(valid_texts), labels.y[valid]),
        labels,
        metric,
    )
    classify = partial(_classify_words, vectorizer=vectorizer, model=model, labels=labels)
    predicted = _predict_blocks(classify, corpus.text_blocks(labels.part("test")[0]))
    return Contender(
        "tfidf", predicted, 0, 0, classify, note=_sample_note(train, labels), words=len(vectorizer.vocabulary_)
    )


def _classify_words(texts: Sequence[str], *, vectorizer: Any, model: Any, labels: Labels) -> Targets:
    return _predict(model, vectorizer.transform(texts), labels)


def last_layer(features: FeatureShards, backbone: Backbone, labels: Labels, metric: str, seed: int) -> Contender:
    """Logistic regression on the last layer after the final norm, under the pooling that validates better."""
    train, valid = (rows_to_fit(labels, split, SAMPLE_ROWS, seed, labels.extracted) for split in ("train", "valid"))
    fitted = []
    for column in (c for c in features.columns if c.site.kind == "final"):
        train_values, valid_values = (features.read_rows(column, rows).astype(np.float32) for rows in (train, valid))
        parts = (train_values, labels.y[train]), (valid_values, labels.y[valid])
        model = fit_best_strength(*parts, labels, metric, standardised=True)
        valid_score = score(metric, labels.y[valid], _predict(model, valid_values, labels))
        fitted.append((valid_score, column, model))
    _, column, model = max(fitted, key=lambda entry: entry[:2])
    engine = open_engine(backbone, [single_segment([column])])
    return Contender(
        "last_layer",
        _predict_blocks(
            lambda values: _predict(model, values.astype(np.float32), labels),
            features.column_blocks(column, labels.part("test")[0]),
        ),
        features.columns[column],
        column.site.layer,
        lambda texts: model.predict(read_activations(engine, texts).values),
        note=_sample_note(train, labels),
    )


def best_site(features: FeatureShards, backbone: Backbone, probes: Sequence[Probe], labels: Labels) -> Contender:
    """The probe of the one feature column that validates best."""
    probe = best_probe(probes)
    engine = open_engine(backbone, [single_segment([probe.column])])
    return Contender(
        "best_site",
        _predict_blocks(
            lambda values: probe.predict(values, labels.label_space),
            features.column_blocks(probe.column, labels.part("test")[0]),
        ),
        int((probe.importance > 0).sum()),
        probe.column.site.layer,
        lambda texts: probe.decision(read_activations(engine, texts).values),
    )


def spin_row(features: FeatureShards, spin: TrainedClassifier, labels: Labels, words: Floats | None) -> Contender:
    """The SPIN classifier that `choose` names, by its labels before abstention and without early exits.

    The most accurate one is named `spin`. `words` (m, K) are the words' logits of the test rows.
    """
    fitted = spin.fitted
    rows, _ = labels.part("test")
    blocks = features.selection_blocks(fitted.selection, rows, words)
    logits = np.concatenate([fitted.logits(values) for values in blocks])
    return Contender(
        "spin" if spin.choose == "accuracy" else spin.choose,
        fitted.decision(labels.label_space, spin.decision).decide(labels.label_space.probabilities(logits))[0],
        fitted.selection.neuron_count,
        fitted.selection.depth,
        spin.predict_logits,
        logits,
        words=len(spin.training_result.words or ()) if fitted.selection.words else 0,
    )


def attempt(name: str, make: Callable[[], Contender], notes: list[str]) -> list[Contender]:
    """A baseline, or none if it cannot be made for whatever reason, lack of memory included.

    The error is logged with its traceback, and `notes` gets a sentence about it: a comparison is not worth a training.
    """
    try:
        contender = make()
    except Exception as error:
        _leave_out(name, error, notes)
        return []
    if contender.note:
        notes.append(f"{name}: {contender.note}")
    return [contender]


def _leave_out(name: str, error: Exception, notes: list[str]) -> None:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    note = f"{name} is left out of the table: {reason}"
    _log.warning("%s", note, exc_info=error)
    notes.append(note)


def tabulate(
    contenders: Sequence[Contender],
    features: FeatureShards,
    depth: int,
    labels: Labels,
    corpus: Corpus,
    notes: list[str],
) -> list[ContenderResult]:
    """The figures of every contender on the test documents, and its speed from text to label on the same sample.

    A baseline that fails while it classifies the sample has no row; `notes` gets a sentence about it.
    """
    rows, y = labels.part("test")
    sample = corpus.read_texts(rows[:_TIMED])
    speeds = _speeds(contenders, sample, notes)
    total = sum(features.columns[column] for column in features.probed)
    table = []
    for contender in contenders:
        if contender.name not in speeds:
            continue
        accuracy, macro_f1 = (score(name, y, contender.predicted) for name in ("accuracy", "macro_f1"))
        table.append(
            ContenderResult(
                name=contender.name,
                accuracy=accuracy,
                macro_f1=macro_f1,
                neurons=contender.neurons,
                neurons_of=total,
                words=contender.words,
                depth=contender.depth,
                depth_of=depth,
                docs_per_s=round(speeds[contender.name], 1),
            )
        )
    return table


def _speeds(contenders: Sequence[Contender], sample: Sequence[str], notes: list[str]) -> dict[str, float]:
    """Documents per second of each contender by name: the median of interleaved rounds, after one to warm up.

    A baseline that fails is left out.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(_ROUNDS + 1):
        for contender in [contender for contender in contenders if contender.name in seconds]:
            start = time.perf_counter()
            try:
                contender.classify(sample)
            except Exception as error:
                if contender.logits is not None:
                    raise
                _leave_out(contender.name, error, notes)
                del seconds[contender.name]
                continue
            if turn:
                seconds[contender.name].append(time.perf_counter() - start)
    return {name: len(sample) / statistics.median(times) for name, times in seconds.items()}


def rows_to_fit(labels: Labels, split: str, most: int, seed: int, among: Rows | None = None) -> Rows:
    """The rows of a split in order, or a stratified sample of `most` of them if there are more.

    With `among` only these rows are taken.
    """
    rows, y = labels.part(split)
    if among is not None:
        wanted = np.isin(rows, among)
        rows, y = rows[wanted], y[wanted]
    return sample_rows(rows, labels.label_space.strata(y), most, seed)


def _texts_to_fit(corpus: Corpus, labels: Labels, split: str, seed: int) -> tuple[Rows, list[str]]:
    """The rows of a split in whose texts words are counted, a stratified sample if there are many, and these texts."""
    rows = rows_to_fit(labels, split, SAMPLE_ROWS, seed)
    texts = corpus.read_texts(rows)
    most = max(1, SAMPLE_CHARACTERS * len(rows) // max(1, sum(map(len, texts))))
    positions = sample_rows(np.arange(len(rows)), labels.label_space.strata(labels.y[rows]), most, seed)
    return rows[positions], [texts[position] for position in positions]


def _sample_note(train: Rows, labels: Labels) -> str | None:
    """On how many documents a baseline was fitted, None if on all."""
    count = labels.splits.count("train")
    if len(train) == count:
        return None
    return f"fitted on a stratified sample, {len(train):,} of {count:,} training documents"


def fit_best_strength(
    train: tuple[Any, Targets], valid: tuple[Any, Targets], labels: Labels, metric: str, *, standardised: bool = False
) -> Any:
    """Logistic regression, run to convergence, with the C that validates best.

    `train` and `valid` are features (n, p), dense or sparse, with targets.
    """
    (X, y), (valid_X, valid_y) = train, valid
    fitted = []
    for strength in STRENGTHS:
        regression: Any = LogisticRegression(C=strength, max_iter=5000)
        if labels.label_space.multilabel:
            regression = OneVsRestClassifier(regression)
        model = make_pipeline(StandardScaler(), regression) if standardised else regression
        model.fit(X, y if y.ndim == 1 else y.astype(int))
        fitted.append((score(metric, valid_y, _predict(model, valid_X, labels)), -strength, model))
    return max(fitted, key=lambda entry: entry[:2])[2]


def _predict(model: Any, X: Any, labels: Labels) -> Targets:
    """Predictions of a scikit-learn model as targets of the label space."""
    predicted = model.predict(X)
    return predicted.astype(bool) if labels.label_space.multilabel else predicted


def _predict_blocks(classify: Callable[[Any], Targets], blocks: Iterable[Any]) -> Targets:
    """The predictions for blocks of texts or of rows of features."""
    predicted: Targets = np.concatenate([classify(block) for block in blocks])
    return predicted
