"""Does conflict among layers find perturbed and foreign texts, or errors, better than probability or drift do?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.method.tasks.debian import read as read_packages
from benchmarks.section_page import Part, table
from benchmarks.trust.champion import Champion
from spin.arrays import Floats
from spin.audit.perturbations import SEVERITIES, mix_perturbations
from spin.classifier import TrainedClassifier
from spin.fitted.fitted_classifier import FittedClassifier
from spin.labels.metrics import score

SCORES = ("1 − probability", "conflict", "drift")
_PACKAGES = Path("runs/bench/trust/packages")
_BINS = 10
"""bins of equal probability, each with as many of all texts"""
_WORDS = -1
"""the place of the words' logits, which count as one more layer"""


@dataclass(frozen=True)
class Detection:
    """How well the scores separate some texts from others: areas under the ROC curve, 0.5 by chance."""

    auroc: Mapping[str, float]
    """by score"""
    at_equal_probability: Mapping[str, float]
    """the same among texts whose probabilities are about equal; of the probability about 0.5 by construction"""
    documents: int
    """of both kinds"""


@dataclass(frozen=True)
class _Scored:
    """The scores of some texts by name, and the predicted classes."""

    scores: Mapping[str, NDArray[np.floating]]
    predicted: NDArray[np.int64]


def measure(champion: Champion, *, quick: bool = False) -> dict[str, Detection]:
    """Errors on clean texts, and perturbed and foreign texts among clean ones, at full depth."""
    spin = champion.classifier(exits=False)
    limit = 300 if quick else None
    texts = list(champion.evaluation_set.texts[:limit])
    y = spin.label_space.index(champion.evaluation_set.labels[:limit])
    clean = _score(spin, texts)
    right = clean.predicted == y
    print(f"conflict: {score('accuracy', y, clean.predicted):.3f} accuracy on {len(texts)} texts", flush=True)
    detections = {"errors among clean texts": _detect(clean, clean, np.flatnonzero(right), np.flatnonzero(~right))}
    everything = np.arange(len(texts))
    for severity, name in zip(SEVERITIES, ("slightly", "moderately", "strongly"), strict=True):
        perturbed = _score(spin, mix_perturbations(texts, severity))
        detections[f"{name} perturbed texts"] = _detect(clean, perturbed, everything, everything)
    packages = read_packages(_PACKAGES).texts
    draw = np.random.default_rng(0).choice(len(packages), len(texts), replace=False)
    foreign = _score(spin, [packages[row] for row in draw])
    detections["foreign texts (Debian packages)"] = _detect(clean, foreign, everything, everything)
    return detections


def section(detections: Mapping[str, Detection]) -> Part:
    """The page's section: a row per kind of text, and what follows for the product."""
    heads = ["found", *SCORES, *(f"{name}, at equal probability" for name in SCORES[1:]), "documents"]
    rows = [
        [
            name,
            *(f"{found.auroc[score]:.3f}" for score in SCORES),
            *(f"{found.at_equal_probability[score]:.3f}" for score in SCORES[1:]),
            f"{found.documents:,}",
        ]
        for name, found in detections.items()
    ]
    beaten = [
        name
        for name, found in detections.items()
        if found.auroc["conflict"] > max(found.auroc["1 − probability"], found.auroc["drift"])
    ]
    text = (
        "Areas under the ROC curve by which a score finds texts, for the champion of the quickstart at full depth. "
        "Conflict: the share of the layers' sums that speaks against the predicted class. Drift: the mean of the "
        "squared standardised activations. At equal probability: the mean over ten bins of equal size of the largest "
        "probability, weighted by the pairs of texts in them.\n\n" + table(heads, rows)
    )
    verdict = (
        f"conflict finds more than both others: {', '.join(beaten) or 'nowhere'}; a column for it would be worth its "
        "place where it did so everywhere"
    )
    return text, [(len(beaten) == len(detections), verdict)]


def _score(spin: TrainedClassifier, texts: Sequence[str]) -> _Scored:
    features = spin.features(texts)
    predictions = spin.predict_features(features)
    values = spin.fitted.standardizer.transform(features.values)[:, spin.fitted.selection.word_logits :]
    scores = (
        1 - predictions.probabilities.max(axis=1),
        layer_conflict(spin.fitted, features.values),
        np.square(values).mean(axis=1),
    )
    return _Scored(dict(zip(SCORES, scores, strict=True)), predictions.probabilities.argmax(axis=1))


def layer_conflict(fitted: FittedClassifier, features: Floats) -> Floats:
    """(n,) the share, from 0 to 1, of the layers' sums that speaks against the predicted class of n documents.

    `features` (n, p) are raw, of documents that ran to full depth. The margin of the best class over the second best is
    the bias plus a sum per layer of what its neurons contribute; with s the sums of the layers, the conflict is
    sum(max(-s, 0)) / sum(|s|). Under a network head the contributions are integrated gradients.
    """
    values = fitted.standardizer.transform(features)
    second, first = np.argsort(fitted.head.logits(values), axis=1)[:, -2:].T
    slopes = fitted.head.slopes_of(values, first) - fitted.head.slopes_of(values, second)
    layers = _layers(fitted)
    sums = np.stack([(values * slopes)[:, layers == layer].sum(axis=1) for layer in np.unique(layers)], axis=1)
    against = np.maximum(-sums, 0).sum(axis=1)
    conflict: Floats = against / np.maximum(np.abs(sums).sum(axis=1), 1e-12)
    return conflict


def _layers(fitted: FittedClassifier) -> Floats:
    """(p,) the layer of every feature."""
    columns = fitted.selection.neurons.items()
    counts = [fitted.selection.word_logits, *(len(neurons) for _, neurons in columns)]
    return np.repeat([_WORDS, *(column.site.layer for column, _ in columns)], counts)


def _detect(common: _Scored, sought: _Scored, common_rows: NDArray[np.int64], rows: NDArray[np.int64]) -> Detection:
    """How well scores tell the texts `rows` of `sought` from the texts `common_rows` of `common`."""
    truth = np.repeat([False, True], [len(common_rows), len(rows)])
    scores = {name: np.concatenate([common.scores[name][common_rows], sought.scores[name][rows]]) for name in SCORES}
    order = np.argsort(scores[SCORES[0]], kind="stable")
    bins = np.array_split(order, _BINS)
    equal = {}
    for name in SCORES:
        areas = [
            (truth[part].sum() * (~truth[part]).sum(), roc_auc_score(truth[part], scores[name][part]))
            for part in bins
            if 0 < truth[part].sum() < len(part)
        ]
        pairs, values = np.array(areas).T
        equal[name] = float(np.average(values, weights=pairs))
    return Detection({name: float(roc_auc_score(truth, scores[name])) for name in SCORES}, equal, len(truth))
