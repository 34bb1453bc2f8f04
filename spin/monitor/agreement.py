"""The agreement between the labels of a model and of its shadow, by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spin.labels.label_space import Label, class_names

Confusion = dict[str, dict[str, int]]
"""documents by the label of the model and the label of the shadow; "" stands for no label, in a multi-label task for a
class that is not given"""


@dataclass(frozen=True)
class AgreementCounts:
    """Counts of documents that a model and its shadow have labelled."""

    compared: int
    """documents with a label of both"""
    agreed: int
    """documents with the same label of both"""
    confusion: Confusion
    """documents per pair of labels, sorted; in a multi-label task per class that either gives"""
    failed: int = 0
    """documents that only the shadow could not score"""


@dataclass(frozen=True)
class ClassAgreement:
    """The numbers of documents to which a model and its shadow give a class."""

    label: str
    """the class; "" for no label"""
    model: int
    """documents to which the model gives it"""
    shadow: int
    """documents to which the shadow gives it"""
    both: int
    """documents to which both give it"""


@dataclass(frozen=True)
class Disagreement:
    """The number of documents to which a model and its shadow give two different labels."""

    model_label: str
    """"" for no label, in a multi-label task for a class that is not given"""
    shadow_label: str
    """"" for no label, in a multi-label task for a class that is not given"""
    documents: int


@dataclass(frozen=True, kw_only=True)
class ShadowAgreement(AgreementCounts):
    """The agreement of a nightly run with its shadow, over all shards."""

    version: str
    """version of the shadow"""
    multilabel: bool
    agreement: float | None = None
    """the share of the compared documents with the same label, to four digits; None without documents"""

    def by_class(self) -> list[ClassAgreement]:
        """The counts per class, the class with the most disagreement first.

        In a task of one class per document, no label counts as a class.
        """
        confusion = self.confusion
        labels = {label for model, row in confusion.items() for label in (model, *row)}
        rows = [
            ClassAgreement(
                label=label,
                model=sum(confusion.get(label, {}).values()),
                shadow=sum(row.get(label, 0) for row in confusion.values()),
                both=confusion.get(label, {}).get(label, 0),
            )
            for label in labels
            if label or not self.multilabel
        ]
        return sorted(rows, key=lambda row: (2 * row.both - row.model - row.shadow, row.label))

    def disagreements(self) -> list[Disagreement]:
        """The pairs of different labels, the most frequent first."""
        pairs = [
            Disagreement(model, shadow, documents)
            for model, row in self.confusion.items()
            for shadow, documents in row.items()
            if model != shadow
        ]
        return sorted(pairs, key=lambda pair: (-pair.documents, pair.model_label, pair.shadow_label))


def count_agreement(
    model: Sequence[Label | None], shadow: Sequence[Label | None], multilabel: bool, *, failed: int = 0
) -> AgreementCounts:
    """The counts of n documents, given the labels of the model (n,) and of the shadow (n,)."""
    pairs = list(zip(model, shadow, strict=True))
    cells = Counter(cell for pair in pairs for cell in _cells(*pair, multilabel))
    return AgreementCounts(len(model), sum(a == b for a, b in pairs), _nested(cells), failed)


def total_agreement(version: str, multilabel: bool, shards: Sequence[AgreementCounts]) -> ShadowAgreement:
    """The agreement with the shadow `version` over all shards."""
    cells: Counter[tuple[str, str]] = Counter()
    for counts in shards:
        cells.update({(model, shadow): n for model, row in counts.confusion.items() for shadow, n in row.items()})
    compared, agreed = sum(counts.compared for counts in shards), sum(counts.agreed for counts in shards)
    return ShadowAgreement(
        version=version,
        multilabel=multilabel,
        compared=compared,
        agreed=agreed,
        agreement=round(agreed / compared, 4) if compared else None,
        confusion=_nested(cells),
        failed=sum(counts.failed for counts in shards),
    )


def _cells(model: Label | None, shadow: Label | None, multilabel: bool) -> list[tuple[str, str]]:
    """The pairs of labels that a document counts for: one, or one per class in a multi-label task."""
    if not multilabel:
        return [(str(model or ""), str(shadow or ""))]
    in_model, in_shadow = class_names(model), class_names(shadow)
    return [(name if name in in_model else "", name if name in in_shadow else "") for name in {*in_model, *in_shadow}]


def _nested(cells: Mapping[tuple[str, str], int]) -> Confusion:
    """The counts in an order that does not depend on the documents' order."""
    nested: Confusion = {}
    for (model, shadow), documents in sorted(cells.items()):
        nested.setdefault(model, {})[shadow] = documents
    return nested
