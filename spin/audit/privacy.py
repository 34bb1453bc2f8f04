"""Privacy: what an attacker reads back about texts from the numbers that are stored about them, and its page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from spin.arrays import Floats
from spin.audit.verbatim import VerbatimLeaks
from spin.audit.word_recovery import BANDS, Recovery, WordAttack, predict_targets
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.split_groups import hash_text
from spin.pages.rendering import render_report

FREQUENCY = "word frequency alone"
ATTRIBUTES: Mapping[str, re.Pattern[str]] = {
    "name": re.compile(r"\b[A-Z][a-z]+ (?:[A-Z]\. )?[A-Z][a-z]+\b"),
    "e-mail": re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]+\b"),
    "link": re.compile(r"https?://\S+|\bwww\.\S+"),
    "mention": re.compile(r"(?<![\w.])@\w+"),
    "number": re.compile(r"\d"),
}
"""patterns of attributes; two capitalised words in a row count as a name"""
LEAST_TEXTS = 20
"""texts with and without an attribute, among the attacker's and the judged ones, that a probe needs"""


@dataclass(frozen=True)
class Membership:
    """The success of an attack that tells training documents from others by their losses (Yeom et al. 2018)."""

    auroc: float
    """probability that a training document has a lower loss than another one; 0.5 tells nothing"""
    train_loss: float
    """mean log loss of the training documents"""
    test_loss: float
    """mean log loss of documents that nothing was learned from"""
    train_documents: int
    test_documents: int

    @classmethod
    def of(cls, train: Floats, test: Floats) -> Membership:
        """The success by the losses (n,) of training documents and (m,) of others."""
        truth = np.repeat([True, False], [len(train), len(test)])
        auroc = float(roc_auc_score(truth, -np.concatenate([train, test])))
        return cls(auroc, float(train.mean()), float(test.mean()), len(train), len(test))


@dataclass(frozen=True)
class LeakFigures:
    """The leakage of one kind of stored numbers."""

    name: str
    numbers: int
    """stored numbers per document; 0 for the attack that knows none"""
    recovery: Recovery
    attributes: Mapping[str, float]
    """area under the ROC curve by attribute, 0.5 by chance; attributes that too few texts have are left out"""


@dataclass(frozen=True)
class PrivacyReport:
    """Attacks on the stored numbers of texts that the attacker does not know."""

    known: int
    """texts that the attacker knows, with their numbers"""
    judged: int
    """texts that are attacked, all others"""
    vocabulary: int
    """words that are looked for"""
    figures: tuple[LeakFigures, ...]
    """the figures of each kind of numbers, those of the word frequency first"""
    membership: Membership | None
    """success of the attack on membership; None where the training documents are not at hand"""
    verbatim: VerbatimLeaks | None
    """words of training texts in the files; None where the training documents are not at hand"""

    @property
    def attributes(self) -> list[str]:
        """The attributes that enough texts have, in their order."""
        return [name for name in ATTRIBUTES if any(name in figure.attributes for figure in self.figures)]


def measure_privacy(
    texts: Sequence[str],
    y: Targets,
    label_space: LabelSpace,
    stored: Mapping[str, Floats],
    *,
    membership: Membership | None = None,
    verbatim: VerbatimLeaks | None = None,
    seed: int = 0,
    progress: Callable[[int], object] = lambda steps: None,
) -> PrivacyReport:
    """Attack kinds of stored numbers (n, d), by name, of n texts with targets `y`.

    The attacker knows a random half of the texts with their numbers, and attacks the other half; near-identical texts
    are on the same side, and the attacker needs one of them: by copies, left-out texts would vouch for each other in
    the choice of the penalty. `progress` is called after each kind. Raises UserError where too few words can be looked
    for.
    """
    _, group = np.unique([hash_text(text) for text in texts], return_inverse=True)
    is_known = np.random.default_rng(seed).permutation(group.max() + 1) < (group.max() + 1) / 2
    known, judged = np.flatnonzero(is_known[group]), np.flatnonzero(~is_known[group])
    known = known[np.sort(np.unique(group[known], return_index=True)[1])]
    known_texts, judged_texts = ([texts[row] for row in rows.tolist()] for rows in (known, judged))
    attack = WordAttack.of(known_texts, y[known], judged_texts, label_space)
    attributes = [attribute_presence(part) for part in (known_texts, judged_texts)]
    figures = [LeakFigures(FREQUENCY, 0, attack.recover_by_frequency(), {})]
    for name, values in stored.items():
        found = probe_attributes((values[known], attributes[0]), (values[judged], attributes[1]))
        figures.append(LeakFigures(name, values.shape[1], attack.recover(values[known], values[judged]), found))
        progress(1)
    return PrivacyReport(len(known), len(judged), len(attack.words), tuple(figures), membership, verbatim)


def attribute_presence(texts: Sequence[str]) -> NDArray[np.bool_]:
    """(n, a) which of `ATTRIBUTES` each text has."""
    return np.array([[bool(pattern.search(text)) for pattern in ATTRIBUTES.values()] for text in texts], bool)


def probe_attributes(
    known: tuple[Floats, NDArray[np.bool_]], judged: tuple[Floats, NDArray[np.bool_]]
) -> dict[str, float]:
    """The area under the ROC curve, 0.5 by chance, by which a probe finds the judged texts with each attribute.

    The probe is a ridge regression on numbers (n, d) of the attacker's texts, whose attributes (n, a) are known.
    Attributes that too few texts have, or nearly all, are left out.
    """
    predicted = predict_targets(known[0], known[1].astype(np.float32), judged[0])
    counts = np.stack([part.sum(axis=0) for has in (known[1], judged[1]) for part in (has, ~has)])
    usable = counts.min(axis=0) >= LEAST_TEXTS
    return {
        name: float(roc_auc_score(judged[1][:, k], predicted[:, k])) for k, name in enumerate(ATTRIBUTES) if usable[k]
    }


def privacy_page(report: PrivacyReport, title: str) -> str:
    """The HTML of a report: recovered words, attributes and membership."""
    return render_report(
        "spin.audit/privacy.html.j2",
        title,
        report=report,
        bands=list(BANDS),
        headings=["numbers per text", "all words", *(f"{n}, {_documents(*span)}" for n, span in BANDS.items())],
        frequency=report.figures[0],
        worst=max(report.figures[1:], key=lambda figure: figure.recovery.every),
    )


def _documents(low: int, high: int | None) -> str:
    """A range of numbers of documents."""
    return f"{low} or more" if high is None else f"{low} to {high}"
