"""The baselines that SPIN is compared with on the same documents: words, the last layer, and the best single site.

They learn from the documents that SPIN learns from: those that train and those that validate, once the latter have
chosen the strength of the regularisation. They are fitted in the process of the command, so each reads a bounded number
of rows: a stratified sample where the corpus is larger. A baseline that fails all the same is left out of the table.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipelines.data.corpus import Corpus
from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from spin.activations.engines.engine import open_engine
from spin.activations.extract import read_activations, single_segment
from spin.arrays import Floats, Hashes, Rows
from spin.backbone.model import Backbone
from spin.classifier import TrainedClassifier
from spin.errors import describe_error
from spin.integrate.bootstrap import OUTSIDE, difference_interval, score_intervals
from spin.labels.cross_validation import Fold
from spin.labels.label_space import Targets
from spin.labels.metrics import score
from spin.labels.sampling import sample_rows
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.pages.model_card import ContenderResult, ScoreInterval
from spin.sparsify.probe import Probe, best_probe, class_weights, signs
from spin.sparsify.solvers.l1_path import LassoPaths

_log = logging.getLogger(__name__)
STRENGTHS = {"tfidf": (1.0, 3.0, 10.0, 30.0, 100.0), "last_layer": (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)}
"""C of the logistic regressions, rising: their features differ in size"""
_FALLS = 2
"""strengths in a row that validate worse, after which no further ones are tried"""
_TOLERANCE = 3e-5
"""of the gradient; at three times as much, a regression that starts from that of another strength may stay there"""
_PENALTIES = 4
"""penalties on the way to that of a probe that is fitted again"""
SAMPLE_ROWS = 40_000
"""most rows that a baseline is fitted on"""
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


def words(corpus: Corpus, labels: Labels, data: TrainingData) -> Contender:
    """TF-IDF of words and word pairs with logistic regression."""
    rows, texts = _texts_to_fit(corpus, data)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=MAX_WORDS, sublinear_tf=True)
    try:
        vectorizer.fit(texts)
    except ValueError:  # no word occurs in two documents
        vectorizer = TfidfVectorizer(token_pattern=r"\S+", max_features=MAX_WORDS).fit(texts)
    model, _ = fit_best_strength(vectorizer.transform(texts), rows, data, STRENGTHS["tfidf"])

    def classify(texts: Sequence[str]) -> Targets:
        return _predict(model, vectorizer.transform(texts), data.label_space.multilabel)

    predicted = _predict_blocks(classify, corpus.text_blocks(labels.part("test")[0]))
    return Contender(
        "tfidf", predicted, 0, 0, classify, note=_sample_note(rows, data), words=len(vectorizer.vocabulary_)
    )


def last_layer(features: FeatureShards, backbone: Backbone, labels: Labels, data: TrainingData) -> Contender:
    """Logistic regression on the last layer after the final norm, under the pooling that validates better."""
    rows, multilabel = rows_to_fit(data, stored=labels.extracted), data.label_space.multilabel
    fitted = []
    for column in (c for c in features.columns if c.site.kind == "final"):
        values = features.read_rows(column, rows).astype(np.float32)
        model, valid_score = fit_best_strength(values, rows, data, STRENGTHS["last_layer"], standardised=True)
        fitted.append((valid_score, column, model))
    _, column, model = max(fitted, key=lambda entry: entry[:2])
    engine = open_engine(backbone, [single_segment([column])])
    return Contender(
        "last_layer",
        _predict_blocks(
            lambda values: _predict(model, values.astype(np.float32), multilabel),
            features.column_blocks(column, labels.part("test")[0]),
        ),
        features.columns[column],
        column.site.layer,
        lambda texts: model.predict(read_activations(engine, texts).values),
        note=_sample_note(rows, data),
    )


def best_site(
    features: FeatureShards, backbone: Backbone, probes: Sequence[Probe], labels: Labels, data: TrainingData
) -> Contender:
    """The probe of the one feature column that validates best, fitted on all rows at the penalty that was chosen."""
    probe, rows = best_probe(probes), rows_to_fit(data, stored=labels.extracted)
    if len(data.folds) == 1 or len(rows) != len(data.rows):  # cross-validation ends with a fit on all of its rows
        probe = _refit_probe(probe, features.read_rows(probe.column, rows), data.y[rows], data)
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
        note=_sample_note(rows, data),
    )


def _refit_probe(probe: Probe, values: Floats, y: Targets, data: TrainingData) -> Probe:
    """The probe fitted on other values (n, width) and targets, at the same share of the penalty that leaves nothing."""
    standardizer = Standardizer.fit(values)
    targets = signs(data.label_space.indicator(y), data.label_space)
    paths = LassoPaths([standardizer.transform(values)], targets, class_weights(targets, data.class_weights))
    ratios = np.geomspace(1, probe.lam / probe.lam_max, _PENALTIES)
    coef, intercept = paths.solve(ratios[:, None, None] * paths.lam_max)
    return replace(probe, coef=coef[-1, 0], intercept=intercept[-1, 0], standardizer=standardizer, folds=())


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
        words=len(spin.training_result.words or ()) if fitted.selection.word_logits else 0,
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
    note = f"{name} is left out of the table: {describe_error(error)}"
    _log.warning("%s", note, exc_info=error)
    notes.append(note)


def tabulate(
    contenders: Sequence[Contender],
    features: FeatureShards,
    depth: int,
    labels: Labels,
    corpus: Corpus,
    notes: list[str],
    seed: int,
) -> list[ContenderResult]:
    """The figures of every contender on the test documents, and its speed from text to label on the same sample.

    A baseline that fails while it classifies the sample has no row; `notes` gets a sentence about it.
    """
    rows, y = labels.part("test")
    sample = corpus.read_texts(rows[:_TIMED])
    speeds = _speeds(contenders, sample, notes)
    total = sum(features.columns[column] for column in features.probed)
    contenders = [contender for contender in contenders if contender.name in speeds]
    groups = labels.groups[rows]
    intervals = [_find_intervals(metric, y, contenders, seed, groups) for metric in ("accuracy", "macro_f1")]
    return [
        ContenderResult(
            name=contender.name,
            accuracy=score("accuracy", y, contender.predicted),
            accuracy_interval=accuracy,
            macro_f1=score("macro_f1", y, contender.predicted),
            macro_f1_interval=macro_f1,
            documents=len(y),
            neurons=contender.neurons,
            neurons_of=total,
            words=contender.words,
            depth=contender.depth,
            depth_of=depth,
            docs_per_s=round(speeds[contender.name], 1),
        )
        for contender, accuracy, macro_f1 in zip(contenders, *intervals, strict=True)
    ]


def _find_intervals(
    metric: str, y: Targets, contenders: Sequence[Contender], seed: int, groups: Hashes
) -> list[ScoreInterval]:
    """The intervals of each contender's score, and of its difference to the score of the row `spin`."""
    predictions = [contender.predicted for contender in contenders]
    [spin] = [contender.predicted for contender in contenders if contender.name == "spin"]
    intervals = score_intervals(metric, y, predictions, seed, groups)
    differences = [difference_interval(metric, y, each, spin, OUTSIDE, seed, groups) for each in predictions]
    return [ScoreInterval(*interval, *difference) for interval, difference in zip(intervals, differences, strict=True)]


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


def rows_to_fit(data: TrainingData, *, stored: Rows | None = None) -> Rows:
    """The rows that a baseline learns from, ascending: all that train or validate, as SPIN learns from them.

    Where these are more than `SAMPLE_ROWS`, or not all are `stored`, it is a stratified sample of the rows that have
    made SPIN's choices.
    """
    if stored is None and len(data.all_rows) <= SAMPLE_ROWS:
        return data.all_rows
    return _sample(data.rows, data, SAMPLE_ROWS)


def _sample(rows: Rows, data: TrainingData, most: int) -> Rows:
    """At most so many rows, of every class in each split the same share."""
    strata = 2 * data.label_space.strata(data.y[rows]) + np.isin(rows, data.folds[0].train)
    return sample_rows(rows, strata, most, data.seed)


def _texts_to_fit(corpus: Corpus, data: TrainingData) -> tuple[Rows, list[str]]:
    """The rows in whose texts words are counted, a stratified sample if they are many or long, and these texts."""
    rows = rows_to_fit(data)
    texts = corpus.read_texts(rows)
    most = max(1, SAMPLE_CHARACTERS * len(rows) // max(1, sum(map(len, texts))))
    sample = _sample(rows, data, most)
    return sample, [texts[position] for position in np.searchsorted(rows, sample).tolist()]


def _sample_note(rows: Rows, data: TrainingData) -> str | None:
    """On how many documents a baseline was fitted, None if on all."""
    if len(rows) == len(data.all_rows):
        return None
    return f"fitted on a stratified sample, {len(rows):,} of {len(data.all_rows):,} documents that train or validate"


@threadpool_limits.wrap(limits=1, user_api="blas")  # L-BFGS's vectors are too short for several threads
def fit_best_strength(
    X: Any, rows: Rows, data: TrainingData, strengths: Sequence[float], *, standardised: bool = False
) -> tuple[Any, float]:
    """Logistic regression on all rows, with the C that validates best in the folds of `data`, and that score.

    `X` are the features (n, p), dense or sparse, of n `rows`. Each strength starts from the one before.
    """
    y = data.y[rows]
    folds = [Fold(np.flatnonzero(np.isin(rows, f.train)), np.flatnonzero(np.isin(rows, f.valid))) for f in data.folds]
    models = [_regression(standardised, data.label_space.multilabel) for _ in folds]
    scores: list[float] = []
    for strength in strengths:
        of_folds = []
        for model, fold in zip(models, folds, strict=True):
            _fit(model, strength, X[fold.train], y[fold.train])
            predicted = _predict(model, X[fold.valid], data.label_space.multilabel)
            of_folds.append(score(data.metric, y[fold.valid], predicted))
        scores.append(float(np.mean(of_folds)))
        if len(scores) > _FALLS and max(scores[-_FALLS:]) < scores[-_FALLS - 1]:
            break
    best = int(np.argmax(scores))
    model = _regression(standardised, data.label_space.multilabel)
    return _fit(model, strengths[best], X, y), scores[best]


def _regression(standardised: bool, multilabel: bool) -> Any:
    regression: Any = LogisticRegression(max_iter=5000, tol=_TOLERANCE, warm_start=True)
    if multilabel:
        regression = OneVsRestClassifier(regression)
    return make_pipeline(StandardScaler(), regression) if standardised else make_pipeline(regression)


def _fit(model: Any, strength: float, X: Any, y: Targets) -> Any:
    """The pipeline of `_regression`, fitted with a C."""
    regression = model[-1]
    (regression if isinstance(regression, LogisticRegression) else regression.estimator).set_params(C=strength)
    return model.fit(X, y if y.ndim == 1 else y.astype(int))


def _predict(model: Any, X: Any, multilabel: bool) -> Targets:
    """Predictions of a scikit-learn model as targets of the label space."""
    predicted = model.predict(X)
    return predicted.astype(bool) if multilabel else predicted


def _predict_blocks(classify: Callable[[Any], Targets], blocks: Iterable[Any]) -> Targets:
    """The predictions for blocks of texts or of rows of features."""
    predicted: Targets = np.concatenate([classify(block) for block in blocks])
    return predicted
