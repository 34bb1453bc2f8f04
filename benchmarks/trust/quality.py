"""Is the quality that nights estimate without labels the true one, and is the promised error kept?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.section_page import Part, table
from benchmarks.trust.champion import Champion
from spin.activations.features import Features
from spin.arrays import Floats, Rows
from spin.audit.perturbations import mix_perturbations
from spin.classifier import TrainedClassifier
from spin.fitted.abstention import RISK, choose_band
from spin.fitted.decision import Decision
from spin.fitted.held_out import HeldOutLogits
from spin.labels.label_space import Targets
from spin.labels.metrics import score
from spin.monitor.drift_statistics import list_breaking
from spin.monitor.profile import Profile
from spin.monitor.quality import QualitySums, estimate_quality

SPLITS, LEAST_INSIDE = 200, 180
LEAST_KEPT = 184
"""190 are expected at least, with a standard deviation of 3"""
_PROMISES = (0.2, 0.15, 0.1)
"""errors that are promised"""
_MORE = (1.5, 3.0)
"""how many times as frequent the rarest class becomes"""
_WEAK, _STRONG = 1, 3
"""severities of perturbed texts"""


@dataclass(frozen=True)
class Estimates:
    """Nights of one kind, one per split."""

    kind: str
    accuracy_inside: int
    """nights whose true accuracy lay in the interval"""
    macro_f1_inside: int
    accuracy_gap: float
    """mean of estimated minus true accuracy"""
    macro_f1_gap: float
    width: float
    """mean width of the interval of accuracy"""
    withdrawn: int
    """nights whose estimate drift would have withdrawn"""


@dataclass(frozen=True)
class Promise:
    """A promised error over all splits."""

    max_error: float
    kept: int
    """draws in which at most this share of the labels of all documents was wrong"""
    impossible: int
    """draws in which it could not be promised"""
    coverage: float
    """mean share of all documents that gets a label"""
    error: float
    """mean share of wrong labels among these"""
    naive: int
    """draws in which the narrowest band with this error on the drawn documents kept it on all"""


@dataclass(frozen=True)
class QualityFigures:
    """All that was measured."""

    documents: int
    estimates: tuple[Estimates, ...]
    promises: tuple[Promise, ...]


@dataclass(frozen=True)
class _Read:
    """What the champion makes of some texts."""

    spin: TrainedClassifier
    features: Features
    logits: Floats
    values: NDArray[np.floating]
    """(n, p) features of the head"""

    @classmethod
    def of(cls, spin: TrainedClassifier, texts: Sequence[str]) -> _Read:
        features = spin.features(texts)
        return cls(spin, features, spin.predict_features(features).logits, features.values)

    @property
    def probabilities(self) -> Floats:
        return self.spin.label_space.probabilities(self.logits)

    def profile(self, rows: Rows) -> Profile:
        """The profile of some documents, as a night or a training makes it."""
        whole = self.features
        depth = None if whole.depth is None else whole.depth[rows]
        counts = replace(whole, n_tokens=whole.n_tokens[rows], n_unknown=whole.n_unknown[rows], depth=depth)
        space, fitted = self.spin.label_space, self.spin.fitted
        return Profile.from_outputs(space, fitted, self.logits[rows], self.values[rows], counts)


def measure(champion: Champion, *, quick: bool = False) -> QualityFigures:
    """Estimate nights from random halves of the evaluation set, and promise errors by documents drawn from it."""
    limit = 400 if quick else None
    texts, labels = list(champion.evaluation_set.texts[:limit]), champion.evaluation_set.labels[:limit]
    spin = champion.classifier(exits=True)
    y, clean = spin.label_space.index(labels), _Read.of(spin, texts)
    nights = {"the same kind of documents": (clean, 1.0)}
    nights |= {f"the rarest class {more:g} times as frequent": (clean, more) for more in _MORE}
    for name, severity in (("slightly", _WEAK), ("strongly", _STRONG)):
        perturbed = _Read.of(spin, mix_perturbations(texts, severity, seed=0))
        nights[f"{name} perturbed texts"] = (perturbed, 1.0)
    splits = 10 if quick else SPLITS
    estimates = [_estimate(kind, clean, read, y, more, splits) for kind, (read, more) in nights.items()]
    full = _Read.of(champion.classifier(exits=False), texts)
    held_out = HeldOutLogits(full.logits[None], y)
    promises = [_promise(held_out, spin.decision_rule, max_error, splits) for max_error in _PROMISES]
    return QualityFigures(len(texts), tuple(estimates), tuple(promises))


def section(figures: QualityFigures) -> Part:
    """The page's section: a table of estimates and one of promises."""
    estimates = [
        [
            each.kind, f"{each.accuracy_inside}", f"{100 * each.accuracy_gap:+.1f}", f"{each.macro_f1_inside}",
            f"{100 * each.macro_f1_gap:+.1f}", f"{100 * each.width:.1f}", f"{each.withdrawn}",
        ]
        for each in figures.estimates
    ]  # fmt: skip
    promises = [
        [
            f"{100 * each.max_error:g} %", f"{each.kept}", f"{each.impossible}", f"{100 * each.coverage:.1f} %",
            f"{100 * each.error:.1f} %", f"{each.naive}",
        ]
        for each in figures.promises
    ]  # fmt: skip
    text = (
        f"{SPLITS} random halves of the quickstart's {figures.documents:,} evaluation documents. One half takes the "
        "place of the test documents, 1,000 of the other one that of a night, whose labels are not known. Inside: how "
        "often the true figure lies in the interval of 95 %; gap: estimated minus true, in points; width: of the "
        "interval of accuracy; withdrawn: how often drift would have withdrawn the estimate. As shipped, with "
        "exits.\n\n"
        + table(["night", "accuracy inside", "gap", "macro-F1 inside", "gap", "width", "withdrawn"], estimates)
        + f"\n`decision.max_error`: all documents stand for all that there are. {SPLITS} times half as many test "
        "documents are drawn from them, with replacement; by these the abstention band is chosen, at full depth, and "
        "judged on all. Kept: in how many draws at most the promised share of the labels was wrong; without proof: the "
        "same for the narrowest band that has the error on the drawn documents.\n\n"
        + table(["promised", "kept", "not promised", "coverage", "error", "kept without proof"], promises)
    )
    plain = figures.estimates[0]
    inside = min(plain.accuracy_inside, plain.macro_f1_inside)
    kept = min(each.kept + each.impossible for each in figures.promises)
    return text, [
        (
            inside >= LEAST_INSIDE,
            f"on documents of the same kind the true figures lie inside in {inside} of {SPLITS} splits, expected "
            f"{LEAST_INSIDE}",
        ),
        (
            kept >= LEAST_KEPT,
            f"the promised error is kept or not promised in {kept} of {SPLITS} draws, expected {LEAST_KEPT}: it may be "
            f"broken in {100 * RISK:g} % of them",
        ),
    ]


def _estimate(kind: str, clean: _Read, read: _Read, y: Targets, more: float, splits: int) -> Estimates:
    """Nights of documents as they are read, the rarest class `more` times as frequent as in the evaluation set."""
    draw, decision = np.random.default_rng(0), read.spin.decision_rule
    weights = np.where(y == np.bincount(y).argmin(), more, 1.0)
    inside, gaps, widths, withdrawn = np.zeros(2, int), [], [], 0
    for _ in range(splits):
        shuffled = draw.permutation(len(y))
        known, others = shuffled[: len(y) // 2], shuffled[len(y) // 2 :]
        p = weights[others] / weights[others].sum()
        night = draw.choice(others, min(1000, len(others) // 2), replace=False, p=p)
        given, _ = decision.decide(read.probabilities[night])
        sums = QualitySums.of(decision.label_space, given, read.probabilities[night])
        found = estimate_quality(sums, clean.probabilities[known], y[known], decision)
        assert found is not None
        true = score("accuracy", y[night], given), score("macro_f1", y[night], given)
        pairs = list(zip((found.accuracy, found.macro_f1), true, strict=True))
        inside += [estimate.low <= value <= estimate.high for estimate, value in pairs]
        gaps.append([estimate.value - value for estimate, value in pairs])
        widths.append(found.accuracy.high - found.accuracy.low)
        drift = read.profile(night).drift_from(clean.profile(known), read.spin.fitted.selection, 0.1)
        withdrawn += any(each.drifted and each.name in list_breaking() for each in drift)
    accuracy_gap, f1_gap = np.mean(gaps, axis=0).tolist()
    return Estimates(kind, *inside.tolist(), accuracy_gap, f1_gap, float(np.mean(widths)), withdrawn)


def _promise(held_out: HeldOutLogits, decision: Decision, max_error: float, draws: int) -> Promise:
    """Bands that are chosen by drawn documents, with their errors on all."""
    draw, kept, naive, impossible, coverages, errors = np.random.default_rng(0), 0, 0, 0, [], []
    p, y = held_out.probabilities((), decision), held_out.y
    for _ in range(draws):
        rows = draw.integers(len(y), size=len(y) // 2)
        naive += _wrong_labels(decision, _naive_band(decision, p[rows], y[rows], max_error), p, y).mean() <= max_error
        band = choose_band(HeldOutLogits(held_out.logits[:, rows], y[rows]), (), decision, max_error)
        if band is None:
            impossible += 1
            continue
        wrong = _wrong_labels(decision, band.abstain, p, y)
        coverages.append(len(wrong) / len(y))
        errors.append(wrong.mean())
        kept += errors[-1] <= max_error
    means = [float(np.mean(each)) if each else float("nan") for each in (coverages, errors)]
    return Promise(max_error, kept, impossible, *means, naive)


def _naive_band(decision: Decision, p: Floats, y: Targets, max_error: float) -> float:
    """The narrowest band under which at most a share `max_error` of the labels of documents is wrong."""
    bands = np.tanh(np.linspace(0, 6, 121))
    return float(next((b for b in bands if _wrong_labels(decision, b, p, y).mean() <= max_error), bands[-1]))


def _wrong_labels(decision: Decision, band: float, p: Floats, y: Targets) -> NDArray[np.bool_]:
    """Whether each label that is given under a band is wrong."""
    given, abstains = replace(decision, abstain=float(band)).decide(p)
    return (given != y)[~abstains]
