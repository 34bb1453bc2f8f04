"""Fit the word regression: TF-IDF weights and a logistic regression on the terms of the texts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.arrays import Floats, Rows
from spin.heads.calibration import fit_temperature, log_loss
from spin.labels.cross_validation import Fold, count_repeats
from spin.labels.label_space import Targets
from spin.labels.sampling import sample_rows
from spin.labels.training_data import TrainingData
from spin.words.vocabulary import UNITS, Unit, Vocabulary, read_part
from spin.words.word_regression import WordRegression, predict_with_each

_log = logging.getLogger(__name__)
STRENGTHS = (1.0, 4.0, 16.0)
"""prior variances of a weight that are tried, `C` in scikit-learn"""
MIN_DOCUMENTS = 3
"""documents that a term must be in, so that rare strings are not stored"""
MOST_ROWS = 20_000
"""documents that the regression is fitted on, at most: a stratified sample of more"""
MOST_CHARACTERS = 50_000_000
"""characters of these documents, about; with longer texts the sample has fewer documents"""
MOST_TERMS = 100_000
"""terms of each unit, the most frequent ones"""
MOST_WEIGHTS = 5_000_000
"""terms times classes; with many classes there are fewer terms"""
_TOLERANCE, _STEPS = 1e-4, 50
"""of Newton's method: with a tolerance of 0.001, a fit that starts from that of a stronger penalty stays there"""

ReadTexts = Callable[[Rows], Sequence[str]]
"""returns the texts of m rows in ascending order"""


@dataclass(frozen=True)
class WordFit:
    """The word regression on all rows that train or validate, and held-out logits by others of its kind."""

    regression: WordRegression
    held_out: tuple[Floats, ...]
    """(m, K) for each fold the logits of its validation rows, by a regression on its training rows"""
    strength: float
    """of those that were tried, the one whose held-out logits have the least log loss"""

    @property
    def scale(self) -> Floats:
        """(K,) standard deviation of the held-out logits of each class, at least 0.001."""
        scale: Floats = np.maximum(np.concatenate(self.held_out).std(0), 1e-3)
        return scale

    def to_bytes(self) -> bytes:
        """A safetensors file of all that it holds."""
        held_out = {f"held_out.{index}": logits for index, logits in enumerate(self.held_out)}
        return save_tensors(self.regression.to_tensors() | held_out | {"strength": np.array([self.strength])})

    @classmethod
    def from_bytes(cls, data: bytes) -> WordFit:
        """The fit of the bytes that `to_bytes` returned."""
        tensors = load_tensors(data)
        folds = sum(name.startswith("held_out.") for name in tensors)
        held_out = tuple(tensors[f"held_out.{index}"] for index in range(folds))
        return cls(WordRegression.from_tensors(tensors), held_out, float(tensors["strength"][0]))


def fit_words(read: ReadTexts, data: TrainingData, strengths: Sequence[float] = STRENGTHS) -> WordFit | None:
    """Fit the word regression, and one per fold for held-out logits; None if no term is in `MIN_DOCUMENTS` documents.

    Of the `strengths`, which rise, the one whose held-out logits have the least log loss is kept. The terms are counted
    once. Each fold has its own inverse document frequencies and weights.
    """
    counts = _count_terms(read, data)
    if counts is None:
        _log.warning(
            "words: no word or string of characters is in %d documents to learn from, so none counts", MIN_DOCUMENTS
        )
        return None
    of_folds = [_fit_fold(counts, fold, data, strengths) for fold in data.folds]
    losses = [_loss([held_out[index] for held_out in of_folds], data) for index in range(len(strengths))]
    best = int(np.argmin(losses))
    vocabularies = _weigh_terms(counts, counts.sample)
    X = _transform(counts, vocabularies, counts.sample)
    [(coef, intercept)] = _fit_path(X, data.y[counts.sample], data, strengths[best : best + 1])
    held_out = tuple(of_fold[best] for of_fold in of_folds)
    return WordFit(WordRegression(vocabularies, coef, intercept), held_out, strengths[best])


def _fit_fold(counts: _TermCounts, fold: Fold, data: TrainingData, strengths: Sequence[float]) -> list[Floats]:
    """For each strength the logits (m, K) of a fold's validation rows, by a regression on its training rows."""
    train = np.intersect1d(fold.train, counts.sample)
    if not len(train):
        return [np.zeros((len(fold.valid), len(data.label_space)), np.float32)] * len(strengths)
    vocabularies = _weigh_terms(counts, train)
    fitted = _fit_path(_transform(counts, vocabularies, train), data.y[train], data, strengths)
    regressions = [WordRegression(vocabularies, coef, intercept) for coef, intercept in fitted]
    return predict_with_each(regressions, [counts.texts[row] for row in fold.valid.tolist()])


@dataclass(frozen=True)
class _TermCounts:
    """How often each term occurs in each text."""

    sample: Rows
    """the rows that regressions are fitted on, ascending"""
    texts: Mapping[int, str]
    """by row, of the sample and of all validation rows"""
    terms: dict[Unit, tuple[str, ...]]
    counts: dict[Unit, Any]
    """sparse matrix (n, v) of the sample"""

    def part(self, unit: Unit, rows: Rows) -> Any:
        """The counts of some rows of the sample."""
        return self.counts[unit][np.searchsorted(self.sample, rows)]


def _count_terms(read: ReadTexts, data: TrainingData) -> _TermCounts | None:
    """The counts of the terms that are in enough documents of the sample; None if there are no such terms."""
    from sklearn.feature_extraction.text import CountVectorizer

    sample, texts = _read_texts(read, data)
    terms: dict[Unit, tuple[str, ...]] = {}
    counts: dict[Unit, Any] = {}
    for unit, arguments in UNITS.items():
        most = min(MOST_TERMS, MOST_WEIGHTS // len(UNITS) // len(data.label_space))
        vectorizer = CountVectorizer(min_df=MIN_DOCUMENTS, max_features=most, dtype=np.float32, **arguments)
        try:
            counts[unit] = vectorizer.fit_transform(read_part(unit, [texts[row] for row in sample.tolist()]))
        except ValueError:  # no term is in enough documents
            continue
        terms[unit] = tuple(vectorizer.get_feature_names_out().tolist())
    return _TermCounts(sample, texts, terms, counts) if terms else None


def _read_texts(read: ReadTexts, data: TrainingData) -> tuple[Rows, dict[int, str]]:
    """The rows that regressions are fitted on, ascending, and the texts of these and of all validation rows."""
    sample = sample_rows(data.rows, data.label_space.strata(data.y[data.rows]), MOST_ROWS, data.seed)
    rows = np.union1d(sample, np.concatenate([fold.valid for fold in data.folds]))
    texts = dict(zip(rows.tolist(), read(rows), strict=True))
    characters = sum(len(texts[row]) for row in sample.tolist())
    fitting = max(1, MOST_CHARACTERS * len(sample) // max(1, characters))
    return sample_rows(sample, data.label_space.strata(data.y[sample]), fitting, data.seed), texts


def _weigh_terms(counts: _TermCounts, rows: Rows) -> tuple[Vocabulary, ...]:
    """The terms with their inverse document frequencies in some rows: 0 for a term that is in too few of them.

    In a fold, held-out documents must not make up for the others: their own predictions would profit from terms that
    new documents do not have (Moscovich & Rosset 2022).
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    vocabularies = []
    for unit, terms in counts.terms.items():
        part = counts.part(unit, rows)
        idf = np.where(part.getnnz(axis=0) >= MIN_DOCUMENTS, TfidfTransformer().fit(part).idf_, 0)
        vocabularies.append(Vocabulary(unit, terms, idf.astype(np.float32)))
    return tuple(vocabularies)


def _transform(counts: _TermCounts, vocabularies: Sequence[Vocabulary], rows: Rows) -> Any:
    """The features (n, v) of some rows, as a word regression computes them from texts."""
    from scipy.sparse import hstack

    parts = [vocabulary.weigh(counts.part(vocabulary.unit, rows)) for vocabulary in vocabularies]
    return hstack(parts, format="csr")


def _fit_path(X: Any, y: Targets, data: TrainingData, strengths: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """The weights (K, v), rounded as they are stored, and intercepts (K,) of one regression per strength."""
    if data.label_space.multilabel:
        of_classes = [_fit_one(X, has.astype(np.int64), 2, data, strengths) for has in y.T]
        fitted = [
            (
                np.concatenate([np.diff(coef, axis=0) for coef, _ in pairs]),
                np.concatenate([np.diff(b) for _, b in pairs]),
            )
            for pairs in zip(*of_classes, strict=True)
        ]
    else:
        fitted = _fit_one(X, y, len(data.label_space), data, strengths)
    return [(coef.astype(np.float16).astype(np.float32), intercept) for coef, intercept in fitted]


def _fit_one(
    X: Any, y: Targets, classes: int, data: TrainingData, strengths: Sequence[float]
) -> list[tuple[Floats, Floats]]:
    """The weights (classes, v) and intercepts (classes,) of each strength; an absent class has a low intercept."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(y)
    coefs = np.zeros((len(strengths), classes, X.shape[1]), np.float32)
    intercepts = np.full((len(strengths), classes), -np.log(len(y) + 1.0), np.float32)
    intercepts[:, present] = 0
    model = LogisticRegression(
        solver="newton-cg",  # with many classes or terms it takes half the time of lbfgs
        tol=_TOLERANCE,
        max_iter=_STEPS,
        warm_start=True,
        class_weight="balanced" if data.class_weights == "balanced" else None,
    )
    for index, strength in enumerate(strengths if len(present) > 1 else ()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # logged instead
            model.set_params(C=strength).fit(X, y)
        if max(model.n_iter_) >= _STEPS:
            _log.warning("words: the regression with C = %g has not converged in %d steps", strength, _STEPS)
        if len(present) == 2:  # one row of weights, for the second class against the first
            coefs[index, present], intercepts[index, present] = model.coef_ / [[-2], [2]], model.intercept_ / [-2, 2]
        else:
            coefs[index, present], intercepts[index, present] = model.coef_, model.intercept_
    return list(zip(coefs, intercepts, strict=True))


def _loss(held_out: Sequence[Floats], data: TrainingData) -> float:
    """The log loss of the held-out logits of all folds, at the temperature that suits them best."""
    logits, y = np.concatenate(held_out), data.y[np.concatenate([fold.valid for fold in data.folds])]
    temperature = fit_temperature(logits, y, data.label_space, count_repeats(data.folds))
    return log_loss(logits / temperature, y, data.label_space)
