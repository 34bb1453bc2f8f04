"""Attribute probes: whether stored numbers tell that a text names a person, holds a link, an address and the like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from spin.arrays import Floats
from spin.audit.word_recovery import predict_targets

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
