"""The rows of the tables: every contender, fitted, chosen and calibrated on the same documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from time import process_time
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar
from unittest.mock import patch

import numpy as np
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import spin.fit
import spin.integrate.integrate
from benchmarks.method.corpora import METRIC, Exam
from spin.arrays import Floats, Rows
from spin.fit import group_by_site
from spin.fitted.candidate import Candidate
from spin.fitted.decision import apply_thresholds
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.heads.calibration import calibration_error, calibration_error_limit, fit_temperature
from spin.heads.selection import Selection
from spin.integrate.class_thresholds import choose_class_thresholds
from spin.integrate.feature_matrix import ReadSelection
from spin.integrate.fit_words import WordFit
from spin.integrate.frontier import one_standard_error_choice
from spin.integrate.integrate import CandidateFitter, integrate
from spin.integrate.search import Search
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.labels.standardizer import Standardizer
from spin.settings import CascadeSettings, Choice, DecisionSettings, SearchSettings
from spin.sites import Site
from spin.sparsify.probe import Probe, best_probe, class_weights, signs
from spin.sparsify.ridge import fit_ridge
from spin.sparsify.solvers.l1_path import LassoPaths

STRENGTHS = tuple(float(c) for c in np.geomspace(1e-3, 10, 7))
"""C of the logistic regression on the last layer"""
TFIDF_STRENGTHS = tuple(float(c) for c in np.geomspace(0.1, 46.4, 5))
"""C of the logistic regressions on TF-IDF, whose values are much smaller: with many classes it chooses 10 or more"""
_STEPS = 5000
"""of the solver of a logistic regression, at most"""
LONGEST_TEXT = 4000
"""characters of a text whose strings count; a manual page may have 100,000"""
EXITS = "SPIN, with exits"
_STEP = 0.6
"""ratio of a penalty to the one before, on the path down to a known penalty"""

Strength = TypeVar("Strength")
"""what validation chooses: how strongly a model is regularised, or several settings of it"""
Fit = Callable[[Rows, Rows, Sequence[Strength]], list[Floats]]
"""fits one model per strength on the first rows; returns their logits (m, K) for the second rows"""


@dataclass(frozen=True)
class Answer:
    """The logits of a contender for the test documents, and their cost."""

    name: str
    logits: Floats
    """(m, K), divided by the temperature"""
    neurons: int
    depth: float
    """number of blocks"""
    compute: float
    """FLOPs per token as a share of the whole backbone's"""
    seconds: float
    """to fit, the choice of strengths included"""
    choice: str
    """the chosen settings, for the record"""
    predicted: Targets | None = None
    """the targets, where they are not those that the logits predict without thresholds"""

    def row(self, exam: Exam) -> dict[str, Any]:
        """The row of the table as JSON values."""
        y, label_space = exam.y[exam.test], exam.corpus.label_space
        predicted = label_space.predict(self.logits) if self.predicted is None else self.predicted
        probabilities = label_space.probabilities(self.logits)
        return {
            "name": self.name,
            "accuracy": score("accuracy", y, predicted),
            "macro_f1": score("macro_f1", y, predicted),
            "ece": calibration_error(probabilities, y, label_space),
            "ece_limit": calibration_error_limit(probabilities, label_space, y=y, groups=exam.corpus.groups[exam.test]),
            "neurons": self.neurons,
            "depth": self.depth,
            "compute": self.compute,
            "seconds": self.seconds,
            "choice": self.choice,
        }


@dataclass(frozen=True)
class ChosenStrength(Generic[Strength]):
    """The strength with the best validation score, and the held-out logits of each fold at this strength."""

    valid_score: float
    strength: Strength
    held_out: list[Floats]


def choose_strength(exam: Exam, fit: Fit[Strength], strengths: Sequence[Strength]) -> ChosenStrength[Strength]:
    """Choose the strength with the best mean validation score; of equals the first, which regularises most."""
    logits = [fit(fold.train, fold.valid, strengths) for fold in exam.folds]
    scores = [
        np.mean(
            [
                score(METRIC, exam.y[f.valid], exam.corpus.label_space.predict(fold_logits[i]))
                for f, fold_logits in zip(exam.folds, logits, strict=True)
            ]
        )
        for i in range(len(strengths))
    ]
    best = int(np.argmax(scores))
    return ChosenStrength(float(scores[best]), strengths[best], [fold_logits[best] for fold_logits in logits])


def temperature(exam: Exam, held_out: Sequence[Floats]) -> np.float32:
    """The temperature by which the held-out logits of all folds are best divided."""
    y = np.concatenate([exam.y[fold.valid] for fold in exam.folds[: len(held_out)]])
    return np.float32(fit_temperature(np.concatenate(held_out), y, exam.corpus.label_space))


def choose_targets(exam: Exam, held_out: Sequence[Floats], logits: Floats) -> Targets | None:
    """The targets of logits (m, K) after the temperature; None for those that they predict without thresholds.

    In a multi-label exam the thresholds per class are chosen by the held-out logits of all folds, as SPIN chooses its
    own: macro-F1 depends on them so much that rows with and without them could not be compared.
    """
    label_space = exam.corpus.label_space
    if not label_space.multilabel:
        return None
    rows = np.concatenate([fold.valid for fold in exam.folds[: len(held_out)]])
    thresholds = choose_class_thresholds(
        np.concatenate(held_out) / temperature(exam, held_out),
        exam.y[rows],
        label_space,
        metric=METRIC,
        class_weights="none",
        documents=exam.corpus.groups[rows],
    )
    return None if thresholds is None else apply_thresholds(label_space, label_space.probabilities(logits), thresholds)


def calibrate(
    exam: Exam,
    name: str,
    logits: Floats,
    held_out: Sequence[Floats],
    seconds: float,
    choice: str,
    neurons: int = 0,
    site: Site | None = None,
) -> Answer:
    """The answer of logits (m, K) by the temperature and the thresholds of held-out logits.

    It reads `neurons`, the deepest at `site`; without one, words alone.
    """
    logits = logits / temperature(exam, held_out)
    depth, compute = (0, 0.0) if site is None else (site.layer, exam.corpus.compute(site))
    return Answer(name, logits, neurons, depth, compute, seconds, choice, choose_targets(exam, held_out, logits))


def tfidf(exam: Exam) -> Answer:
    """TF-IDF of words and word pairs with logistic regression."""
    return _tfidf("TF-IDF", exam, word_vectorizer())


def word_vectorizer() -> TfidfVectorizer:
    """The features of the row TF-IDF."""
    return TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)


def choose_tfidf_model(exam: Exam) -> Any:
    """The model of the row TF-IDF as a pipeline of scikit-learn, fitted on all labelled documents of single labels."""
    chosen = choose_strength(exam, _fit_tfidf(exam, word_vectorizer()), TFIDF_STRENGTHS)
    texts = [exam.corpus.texts[row] for row in exam.data.rows]
    regression = LogisticRegression(C=chosen.strength, max_iter=_STEPS)
    return make_pipeline(word_vectorizer(), regression).fit(texts, exam.y[exam.data.rows])


def tfidf_characters(exam: Exam) -> Answer:
    """TF-IDF of strings of 2 to 4 characters within words with logistic regression."""
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True, dtype=np.float32)
    return _tfidf("TF-IDF, characters", exam, characters, LONGEST_TEXT)


def _tfidf(name: str, exam: Exam, vectorizer: TfidfVectorizer, longest: int | None = None) -> Answer:
    start, fit = process_time(), _fit_tfidf(exam, vectorizer, longest)
    chosen = choose_strength(exam, fit, TFIDF_STRENGTHS)
    [logits] = fit(exam.data.rows, exam.test, [chosen.strength])
    return calibrate(exam, name, logits, chosen.held_out, process_time() - start, f"C {chosen.strength:.3g}")


def _fit_tfidf(exam: Exam, vectorizer: TfidfVectorizer, longest: int | None = None) -> Fit[float]:
    texts = np.array([text[:longest] for text in exam.corpus.texts], object)

    def fit(rows: Rows, out: Rows, strengths: Sequence[float]) -> list[Floats]:
        fitted = clone(vectorizer)
        try:
            fitted.fit(texts[rows])
        except ValueError:  # no term occurs in two documents
            fitted = TfidfVectorizer(token_pattern=r"\S+").fit(texts[rows])
        X, Z = fitted.transform(texts[rows]), fitted.transform(texts[out])
        return [regression_logits(X, exam.y[rows], Z, C, exam.corpus.label_space) for C in strengths]

    return fit


def last_layer(exam: Exam) -> Answer:
    """Logistic regression on the standardised last layer after the final norm; the pooling is chosen by validation."""
    start = process_time()

    def fit_of(values: Floats) -> Fit[float]:
        def fit(rows: Rows, out: Rows, strengths: Sequence[float]) -> list[Floats]:
            standardizer = Standardizer.fit(values[rows])
            X, Z = (standardizer.transform(values[part]) for part in (rows, out))
            return [regression_logits(X, exam.y[rows], Z, C, exam.corpus.label_space) for C in strengths]

        return fit

    columns = [c for c in exam.corpus.features if c.site.kind == "final"]
    chosen = {c: choose_strength(exam, fit_of(exam.corpus.features[c]), STRENGTHS) for c in columns}
    best = max(columns, key=lambda c: (chosen[c].valid_score, c))
    values, held_out, strength = exam.corpus.features[best], chosen[best].held_out, chosen[best].strength
    [logits] = fit_of(values)(exam.data.rows, exam.test, [strength])
    seconds, choice = process_time() - start, f"{best.pooling}, C {strength:.3g}"
    return calibrate(exam, "last layer", logits, held_out, seconds, choice, values.shape[1], best.site)


def regression_logits(X: Any, y: Targets, Z: Any, strength: float, label_space: LabelSpace) -> Floats:
    """Logits (m, K) of Z by a logistic regression on X (n, p): one for all classes, in a multi-label task one each.

    A class that none of the n documents has gets the constant logit -log(n + 1), and a class of a multi-label task
    that all of them have log(n + 1).
    """
    logits = np.full((Z.shape[0], len(label_space)), -np.log(len(y) + 1.0))
    if label_space.multilabel:
        for k, has in enumerate(y.T):
            if has.any() and not has.all():
                logits[:, k] = _decision(X, has, Z, strength)
            elif has.any():
                logits[:, k] *= -1
        return logits
    present = np.unique(y)
    if len(present) == len(label_space) > 2:
        return _decision(X, y, Z, strength)
    if len(present) > 1:
        decision = _decision(X, y, Z, strength)
        logits[:, present] = np.outer(decision, [-0.5, 0.5]) if len(present) == 2 else decision
    return logits


def _decision(X: Any, y: Targets, Z: Any, strength: float) -> Floats:
    decision: Floats = LogisticRegression(C=strength, max_iter=_STEPS).fit(X, y).decision_function(Z)
    return decision


@dataclass(frozen=True)
class FittedSpin:
    """The results of `fit_classifiers` and its times; other rows take the probes and the candidates from it."""

    probes: list[Probe]
    search: Search
    """with all candidates that it tried"""
    training_result: TrainingResult
    words: WordFit | None
    seconds: float
    probing: Mapping[Site, float]
    """seconds of each site's probes"""
    word_seconds: float
    _classifiers: dict[int, FittedClassifier] = field(default_factory=dict)
    """of the candidates that were fitted so far, by their places in `search.tried`"""

    def fit_candidate(self, candidate: Candidate) -> FittedClassifier:
        """The classifier of a candidate of the search, without network and early exits; that of several rows once."""
        place = next(place for place, tried in enumerate(self.search.tried) if tried is candidate)
        if place not in self._classifiers:
            linear = copy(self.search)
            linear.settings = linear.settings.model_copy(update={"network": "off"})
            fitter = CandidateFitter(linear, CascadeSettings(max_loss=0), DecisionSettings())
            self._classifiers[place] = fitter.fit(candidate)
        return self._classifiers[place]


def fit_spin(exam: Exam) -> FittedSpin:
    """Fit SPIN with its default settings."""
    start = process_time()
    with (
        _recorded(spin.fit, "fit_probes") as probing,
        _recorded(spin.fit, "fit_words") as wording,
        _recorded(spin.integrate.integrate, "Search") as searching,
    ):
        probes, _, training_result = spin.fit.fit_classifiers(
            exam.corpus.sites, exam.data, compute=exam.corpus.flops, texts=exam.corpus.texts
        )
    seconds = process_time() - start
    by_site = dict(zip(group_by_site(list(exam.corpus.sites)), (call.seconds for call in probing), strict=True))
    [of_words], [of_search] = wording, searching
    return FittedSpin(probes, of_search.result, training_result, of_words.result, seconds, by_site, of_words.seconds)


class _Call(NamedTuple):
    result: Any
    seconds: float


@contextmanager
def _recorded(module: ModuleType, name: str) -> Iterator[list[_Call]]:
    """Record the calls that a module makes of a function or class while the context lasts."""
    calls: list[_Call] = []
    function = getattr(module, name)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        start = process_time()
        result = function(*args, **kwargs)
        calls.append(_Call(result, process_time() - start))
        return result

    with patch.object(module, name, recorded):
        yield calls


def words(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """The word regression of SPIN alone."""
    fit = fitted_spin.words
    assert fit is not None
    logits = fit.regression.logits([exam.corpus.texts[row] for row in exam.test])
    return calibrate(exam, "words", logits, fit.held_out, fitted_spin.word_seconds, f"C {fit.strength:.3g}")


def spin_choice(exam: Exam, fitted_spin: FittedSpin, choice: Choice) -> Answer:
    """One of the classifiers of the search, `accuracy` or `balanced`."""
    fitted = fitted_spin.training_result.choices[choice]
    return _fitted_answer(f"SPIN, {choice}", exam, fitted, fitted_spin.words, fitted_spin.seconds)


def with_exits(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """The choice `accuracy` as nights run it: each document stops at the first exit that is sure of its label.

    Its depth and its compute are means over the test documents, 0 for those that words alone decide.
    """
    fitted, label_space = fitted_spin.training_result.choices["accuracy"], exam.corpus.label_space
    features, words = _read_test_features(exam, fitted, fitted_spin.words)
    decision = fitted.decision(label_space, DecisionSettings())
    depths = fitted.exit_depths(features, decision, words)
    logits = fitted.predict_logits(features, depths, words)
    compute = {
        depth: max((exam.corpus.compute(column.site) for column in fitted.selection.up_to(depth).neurons), default=0.0)
        for depth in np.unique(depths)
    }
    exits = [f"{np.mean(depths == exit.depth):.0%} at {exit.depth}" for exit in fitted.exits]
    return Answer(
        EXITS,
        logits,
        fitted.selection.neuron_count,
        float(np.maximum(depths, 0).mean()),
        float(np.mean([compute[depth] for depth in depths])),
        fitted_spin.seconds,
        ", ".join(exits) or "no exits",
        decision.decide(label_space.probabilities(logits))[0],
    )


def neurons_alone(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """The best candidate of SPIN without words."""
    return _best_candidate(
        "SPIN, neurons", exam, fitted_spin, [c for c in fitted_spin.search.tried if not c.reads_words]
    )


def neurons_and_words(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """The best candidate of SPIN with neurons and words; words alone where no neurons add anything to them."""
    with_words = [c for c in fitted_spin.search.tried if c.reads_words]
    with_both = [c for c in with_words if c.reads_neurons]
    return _best_candidate("SPIN, neurons + words", exam, fitted_spin, with_both or with_words)


def _best_candidate(name: str, exam: Exam, fitted_spin: FittedSpin, candidates: Sequence[Candidate]) -> Answer:
    """The choice `accuracy` among some candidates of the search, with no early exits."""
    fitted = fitted_spin.fit_candidate(one_standard_error_choice(candidates, exam.folds))
    return _fitted_answer(name, exam, fitted, fitted_spin.words, fitted_spin.seconds)


def lower_half(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """SPIN restricted to the lower half of the blocks; its probes are the same, as each depends on its site alone."""
    start, half = process_time(), exam.corpus.depth // 2
    probes = [probe for probe in fitted_spin.probes if probe.column.site.layer <= half]
    ridge, _ = fit_ridge(
        lambda column, rows: exam.corpus.features[column][rows], [probe.column for probe in probes], exam.data
    )
    result = integrate(
        probes,
        ridge,
        reader(exam),
        exam.data,
        settings=SearchSettings(balanced_loss=0, cheapest_loss=0),
        compute=exam.corpus.flops,
        cascade=CascadeSettings(max_loss=0),  # no time for early exits, and little for the cheaper choices
        words=fitted_spin.words,
    )
    seconds = sum(s for site, s in fitted_spin.probing.items() if site.layer <= half) + process_time() - start
    seconds += fitted_spin.word_seconds
    return _fitted_answer("SPIN, lower half", exam, result.choices["accuracy"], fitted_spin.words, seconds)


def _fitted_answer(name: str, exam: Exam, fitted: FittedClassifier, word_fit: WordFit | None, seconds: float) -> Answer:
    """The answer of a classifier of SPIN."""
    selection, summary = fitted.selection, fitted.summary
    features, _ = _read_test_features(exam, fitted, word_fit)
    settings = (
        f"eta {summary.eta}, strength {summary.strength}, {list(summary.part)}, "
        f"{summary.head}, {'with' if summary.words else 'without'} words, "
        f"{'chosen' if summary.thresholds else 'no'} thresholds"
    )
    logits, label_space = fitted.logits(features), exam.corpus.label_space
    return Answer(
        name,
        logits,
        selection.neuron_count,
        summary.depth,
        summary.compute,
        seconds,
        settings,
        fitted.decision(label_space, DecisionSettings()).decide(label_space.probabilities(logits))[0],
    )


def _read_test_features(exam: Exam, fitted: FittedClassifier, word_fit: WordFit | None) -> tuple[Floats, Floats | None]:
    """The raw features (m, p) of the test documents, and the words' logits (m, K) if there are words."""
    features = np.concatenate(list(reader(exam)(fitted.selection, exam.test)))
    if word_fit is None:
        return features, None
    words = word_fit.regression.logits([exam.corpus.texts[row] for row in exam.test])
    return np.concatenate([words, features], axis=1) if fitted.selection.word_logits else features, words


def reader(exam: Exam) -> ReadSelection:
    def read(selection: Selection, rows: Rows) -> list[Floats]:
        nothing = np.empty((len(rows), 0), np.float32)
        parts = (exam.corpus.features[c][np.ix_(rows, n)] for c, n in selection.neurons.items())
        return [np.concatenate([nothing, *parts], axis=1)]

    return read


def best_site(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """The probe with the best validation score, refitted on all labelled documents at its relative penalty."""
    start = process_time()
    probe = best_probe(fitted_spin.probes)
    values = exam.corpus.features[probe.column]
    held_out = [probe.for_fold(i).decision(values[fold.valid]) for i, fold in enumerate(exam.folds)]
    final_probe = probe if probe.folds else _refitted(exam, probe, values, exam.data.rows)
    logits, neurons = final_probe.decision(values[exam.test]), int((final_probe.importance > 0).sum())
    seconds, column = sum(fitted_spin.probing.values()) + process_time() - start, probe.column
    return calibrate(exam, "best single site", logits, held_out, seconds, str(column), neurons, column.site)


def _refitted(exam: Exam, probe: Probe, values: Floats, rows: Rows) -> Probe:
    standardizer = Standardizer.fit(values[rows])
    targets = signs(exam.corpus.label_space.indicator(exam.y[rows]), exam.corpus.label_space)
    X = standardizer.transform(values[rows])
    paths = LassoPaths([X], targets, class_weights(targets, "none"))
    share = probe.lam / probe.lam_max
    lams = paths.lam_max * falling(1.0, [share])[:, None, None]
    coef, intercept = paths.solve(lams)
    return Probe(
        probe.column, coef[-1, 0], intercept[-1, 0], standardizer, probe.lam, probe.lam_max, 0.0, probe.valid_score
    )


def falling(top: float, wanted: Sequence[float]) -> Floats:
    """The wanted penalties in falling order, with others before and between them as warm starts for a path."""
    path: list[float] = []
    above = top
    for penalty in sorted(wanted, reverse=True):
        while above * _STEP > penalty * 1.0001:
            above *= _STEP
            path.append(above)
        path.append(penalty)
        above = min(above, penalty)
    return np.array(path)
