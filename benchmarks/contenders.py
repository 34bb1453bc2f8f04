"""The rows of the tables: every way to classify, fitted, chosen and calibrated on the same documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import spin.learn
from benchmarks.corpora import Exam
from spin.calibrate import calibration_error, fit_temperature
from spin.folds import Fold, Rows, labelled
from spin.head import Design, Penalty, fit_linear
from spin.integrate import Integrated, Integration, integrate
from spin.lasso import LassoPaths
from spin.metric import score
from spin.probe import Probe, balance, signs, standardisation
from spin.search import Read, row_weights
from spin.select import Selection
from spin.settings import SearchSettings
from spin.sites import Column, Site
from spin.team import Team

Floats = NDArray[np.floating]
METRIC = "macro_f1"
STRENGTHS = tuple(float(c) for c in np.geomspace(1e-3, 10, 7))
"""C of the logistic regressions on words and on the last layer"""
ALL_NEURONS_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""prior variance of a logit in the logistic regression on all neurons"""
_STEP = 0.6
"""from a penalty to the next, where a path is walked down to one that is known"""

Fit = Callable[[Rows, Rows, Sequence[float]], list[Floats]]
"""logits (m, K) of the second rows by models of some strengths that were fitted on the first rows"""


@dataclass(frozen=True)
class Answer:
    """What a contender says of the test documents, and what that takes."""

    name: str
    logits: Floats
    """(m, K), over their temperature"""
    neurons: int
    depth: int
    compute: float
    """FLOPs a token as a share of the whole backbone's"""
    seconds: float
    """to fit, choices included"""
    choice: str

    def row(self, exam: Exam) -> dict[str, Any]:
        """The line of a table, as it is kept."""
        y, task = exam.y[exam.test], exam.corpus.task
        predicted = self.logits.argmax(1)
        return {
            "name": self.name,
            "accuracy": score("accuracy", y, predicted),
            "macro_f1": score("macro_f1", y, predicted),
            "ece": calibration_error(task.probabilities(self.logits), y, task),
            "neurons": self.neurons,
            "depth": self.depth,
            "compute": self.compute,
            "seconds": self.seconds,
            "choice": self.choice,
        }


@dataclass(frozen=True)
class Settled:
    """The strength that validation chose for a way to fit, and the logits of each fold that spoke for it."""

    valid_score: float
    strength: float
    held_out: list[Floats]


def settle(exam: Exam, fit: Fit, strengths: Sequence[float]) -> Settled:
    """The best strength on validation, the mean over folds; among equals the strongest regularisation."""
    found = [fit(fold.train, fold.valid, strengths) for fold in exam.folds]
    scores = [
        np.mean([score(METRIC, exam.y[f.valid], of[i].argmax(1)) for f, of in zip(exam.folds, found, strict=True)])
        for i in range(len(strengths))
    ]
    best = int(np.argmax(scores))
    return Settled(float(scores[best]), strengths[best], [of_fold[best] for of_fold in found])


def temperature(exam: Exam, held_out: Sequence[Floats]) -> np.float32:
    """What the held-out logits of all folds are best divided by."""
    y = np.concatenate([exam.y[fold.valid] for fold in exam.folds])
    return np.float32(fit_temperature(np.concatenate(held_out), y, exam.corpus.task))


def finish(exam: Exam, fit: Fit, settled: Settled) -> Floats:
    """Logits of the test documents by the chosen model fitted on all labelled ones, over its temperature."""
    return fit(labelled(exam.folds), exam.test, [settled.strength])[0] / temperature(exam, settled.held_out)


def words(exam: Exam) -> Answer:
    """TF-IDF of words and word pairs with logistic regression."""
    start, texts = time.perf_counter(), np.array(exam.corpus.texts, object)

    def fit(rows: Rows, out: Rows, strengths: Sequence[float]) -> list[Floats]:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        try:
            vectorizer.fit(texts[rows])
        except ValueError:  # so few words that none stands in two documents
            vectorizer = TfidfVectorizer(token_pattern=r"\S+").fit(texts[rows])
        X, Z = vectorizer.transform(texts[rows]), vectorizer.transform(texts[out])
        return [_regression(X, exam.y[rows], C).decision_function(Z) for C in strengths]

    settled = settle(exam, fit, STRENGTHS)
    logits = finish(exam, fit, settled)
    return Answer("TF-IDF", logits, 0, 0, 0.0, time.perf_counter() - start, f"C {settled.strength:.3g}")


def last_layer(exam: Exam) -> Answer:
    """The last layer after the final norm, standardised, with logistic regression; the better of two poolings."""
    start = time.perf_counter()

    def fit_of(values: Floats) -> Fit:
        def fit(rows: Rows, out: Rows, strengths: Sequence[float]) -> list[Floats]:
            mean, scale = standardisation(values[rows])
            X, Z = ((values[part].astype(np.float32) - mean) / scale for part in (rows, out))
            return [_regression(X, exam.y[rows], C).decision_function(Z) for C in strengths]

        return fit

    columns = [c for c in exam.corpus.features if c.site.kind == "final"]
    found = {c: settle(exam, fit_of(exam.corpus.features[c]), STRENGTHS) for c in columns}
    best = max(columns, key=lambda c: (found[c].valid_score, c))
    values = exam.corpus.features[best]
    logits = finish(exam, fit_of(values), found[best])
    choice = f"{best.pooling}, C {found[best].strength:.3g}"
    return Answer("last layer", logits, values.shape[1], exam.corpus.depth, 1.0, time.perf_counter() - start, choice)


def _regression(X: Any, y: Any, strength: float) -> Any:
    return LogisticRegression(C=strength, max_iter=5000).fit(X, y)


def all_neurons(exam: Exam) -> Answer:
    """Every site.pooling, standardised, with multinomial logistic regression under an L2 penalty."""
    start = time.perf_counter()

    def fit(rows: Rows, out: Rows, strengths: Sequence[float]) -> list[Floats]:
        X, Z = _everything(exam, rows, out)
        return _ridge(X, Z, exam, rows, strengths)

    settled = settle(exam, fit, ALL_NEURONS_STRENGTHS)
    logits = finish(exam, fit, settled)
    deepest = max(c.site for c in exam.corpus.sites)
    return Answer(
        "all neurons", logits, exam.corpus.neurons, deepest.layer, exam.corpus.compute(deepest),
        time.perf_counter() - start, f"strength {settled.strength:g}",
    )  # fmt: skip


def _everything(exam: Exam, rows: Rows, out: Rows) -> tuple[Floats, Floats]:
    """All columns beside one another, standardised on `rows`, of either rows."""
    X = np.empty((len(rows), exam.corpus.neurons), np.float32)
    Z = np.empty((len(out), exam.corpus.neurons), np.float32)
    at = 0
    for values in exam.corpus.sites.values():
        here = slice(at, at + values.shape[1])
        mine = values[rows]
        mean, scale = standardisation(mine)
        X[:, here], Z[:, here] = (mine - mean) / scale, (values[out] - mean) / scale
        at += values.shape[1]
    return X, Z


def _ridge(X: Floats, Z: Floats, exam: Exam, rows: Rows, strengths: Sequence[float]) -> list[Floats]:
    """Logits of Z (m, p) by a head a strength on X (n, p) with n below p.

    An L2 penalty does not see a rotation, and the n rows span at most n directions: X = L Q with orthonormal rows of
    Q, so that the minimum over the p coefficients is one over n on the lower triangle L of X X' = L L'.
    """
    n, p = X.shape
    gram = (X @ X.T).astype(np.float64)
    gram[np.diag_indices(n)] += 1e-6 * gram.trace() / n
    L = cholesky(gram, lower=True)
    has = exam.corpus.task.indicator(exam.y[rows])
    weights = row_weights(has, "none", exam.corpus.task)
    design = Design(L.astype(np.float32), has, weights, np.ones(n, np.float32), exclusive=True, team=Team())
    heads = fit_linear(design, [Penalty(strength * n / p) for strength in strengths])
    found = []
    for head in heads:
        dual = solve_triangular(L, head.coef.T, lower=True, trans="T").astype(np.float32)  # (n, K)
        found.append(Z @ (X.T @ dual) + head.intercept)
    return found


@dataclass(frozen=True)
class Learnt:
    """What `learn` gave, and the seconds that it took."""

    probes: list[Probe]
    integrated: Integrated
    seconds: float
    probing: Mapping[Site, float]
    """seconds of each site's probes"""


def learnt(exam: Exam) -> Learnt:
    """Our method as it stands."""
    start = time.perf_counter()
    with _timed_probes() as probing:
        probes, integrated = spin.learn.learn(
            exam.corpus.sites, exam.corpus.task, exam.y, exam.train, exam.valid,
            flops=exam.corpus.flops, metric=METRIC, seed=exam.seed,
        )  # fmt: skip
    return Learnt(probes, integrated, time.perf_counter() - start, probing)


@contextmanager
def _timed_probes() -> Iterator[dict[Site, float]]:
    """The seconds that `learn` spends on the probes of each site."""
    seconds: dict[Site, float] = {}
    fit_probes = spin.learn.fit_probes

    def timed(activations: Mapping[Column, Floats], *args: Any, **kwargs: Any) -> list[Probe]:
        start = time.perf_counter()
        probes = fit_probes(activations, *args, **kwargs)
        seconds[next(iter(activations)).site] = time.perf_counter() - start
        return probes

    with patch.object(spin.learn, "fit_probes", timed):
        yield seconds


def ours(exam: Exam, found: Learnt) -> list[Answer]:
    """Two of the classifiers that one search gives."""
    return [
        _integrated(f"ours, {name}", exam, found.integrated.choices[name], found.seconds)
        for name in ("accuracy", "balanced")
    ]


def lower_half(exam: Exam, found: Learnt) -> Answer:
    """Our method where only the lower half of the blocks is offered: no site's probe depends on another site."""
    start, half = time.perf_counter(), exam.corpus.depth // 2
    probes = [probe for probe in found.probes if probe.column.site.layer <= half]
    integrated = integrate(
        probes, _reader(exam), exam.y, exam.folds, exam.corpus.task,
        metric=METRIC, settings=SearchSettings(), flops=exam.corpus.flops, seed=exam.seed,
    )  # fmt: skip
    seconds = sum(s for site, s in found.probing.items() if site.layer <= half) + time.perf_counter() - start
    return _integrated("ours, lower half", exam, integrated.choices["accuracy"], seconds)


def _integrated(name: str, exam: Exam, integration: Integration, seconds: float) -> Answer:
    logits = integration.logits(_reader(exam)(integration.selection, exam.test))
    facts = integration.facts
    choice = f"eta {facts['eta']}, strength {facts['strength']}, l1 {facts['l1']}, {facts['part']}, {facts['head']}"
    return Answer(
        name, logits, len(integration.selection), facts["depth"], facts["compute"], seconds, choice
    )  # fmt: skip


def _reader(exam: Exam) -> Read:
    def read(selection: Selection, rows: Rows) -> Floats:
        return np.concatenate(
            [exam.corpus.features[c][np.ix_(rows, n)] for c, n in selection.neurons.items()], axis=1
        )

    return read


def best_site(exam: Exam, found: Learnt) -> Answer:
    """The probe that validates best, fitted on all labelled documents at its share of the largest penalty."""
    start = time.perf_counter()
    probe = max(found.probes, key=lambda p: (p.valid_score, -p.column.site.layer, p.column))
    values = exam.corpus.features[probe.column]
    held_out = [probe.of_fold(i).decision(values[fold.valid]) for i, fold in enumerate(exam.folds)]
    whole = probe if probe.folds else _refitted(exam, probe, values, labelled(exam.folds))
    logits = whole.decision(values[exam.test]) / temperature(exam, held_out)
    site = probe.column.site
    seconds = sum(found.probing.values()) + time.perf_counter() - start
    neurons = int((whole.importance > 0).sum())
    return Answer(
        "best single site", logits, neurons, site.layer, exam.corpus.compute(site), seconds, str(probe.column)
    )


def _refitted(exam: Exam, probe: Probe, values: Floats, rows: Rows) -> Probe:
    mean, scale = standardisation(values[rows])
    targets = signs(exam.corpus.task.indicator(exam.y[rows]), exam.corpus.task)
    X = (values[rows].astype(np.float32) - mean) / scale
    paths = LassoPaths([X], targets, balance(targets, "none"))
    share = probe.lam / probe.lam_max
    lams = paths.lam_max * falling(1.0, [share])[:, None]
    coef, intercept = paths.solve(lams)
    return Probe(
        probe.column, coef[-1, 0], intercept[-1, 0], mean, scale, lams[-1, 0], paths.lam_max[0], 0.0, probe.valid_score
    )


def falling(top: float, wanted: Sequence[float]) -> Floats:
    """The wanted penalties, largest first, and before and between them others for a path to start from."""
    found: list[float] = []
    above = top
    for penalty in sorted(wanted, reverse=True):
        while above * _STEP > penalty * 1.0001:
            above *= _STEP
            found.append(above)
        found.append(penalty)
        above = min(above, penalty)
    return np.array(found)


def folds_and_all(exam: Exam) -> list[Fold]:
    """The folds, and last one that trains on all labelled documents."""
    return [*exam.folds, Fold(labelled(exam.folds), exam.test)]
