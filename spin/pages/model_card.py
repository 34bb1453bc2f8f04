"""The model card: what a classifier was made of, how well it does, and for what it was not tested."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.splits import SPLITS
from spin.settings import DecisionSettings
from spin.sites import FeatureColumn

CARD = "MODEL_CARD.md"
"""the file's name"""
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_MARKUP = re.compile(r"([\\`*_\[\]<>|&~$#!])")
_NOT_TESTED = (
    "other domains and other sources of text than the corpus above",
    "other languages than those of the corpus",
    "drift: text that was written later than the corpus",
    "adversarial text, made to be classified wrongly",
    "fairness: error rates across groups of people who write or are written about",
)
_USE = (
    "Classifying text of the kind that it was trained on, in batches, where a person can look at what it decides and "
    "a wrong label can be put right. Every prediction can be divided among neurons and words (`spin explain`)."
)
_LIMITS = (
    "Not for decisions about people without a person who reviews them, nor for text of a kind that is named under "
    "“not tested” before it was evaluated there (`spin evaluate`).",
    "The words that an explanation shades are those on which the selected neurons spoke; they are no proof of what "
    "made the text belong to its class.",
    "A probability is calibrated for documents like the validation documents, in the same mix of classes.",
)


@dataclass(frozen=True)
class CardFacts:
    """What a card tells."""

    name: str
    purpose: str
    """one sentence: what is told apart, in what"""
    data: str
    """URI of the corpus"""
    fingerprint: str
    """of its files and of what was read from them"""
    label_space: LabelSpace
    y: Targets
    """of all documents"""
    splits: Sequence[str]
    """of all documents"""
    backbone: str
    digest: str
    """of the backbone's weights and tokenizer"""
    max_tokens: int
    metric: str
    """that made every choice"""
    table: Sequence[Mapping[str, Any]]
    """the contenders on the test documents, as a report has them; empty without test documents"""
    per_class: Mapping[str, Mapping[str, float]]
    """precision, recall, f1 and support on the test documents"""
    frontier: Sequence[Mapping[str, Any]]
    """`Candidate.describe()`, shallow first"""
    choices: Mapping[str, Mapping[str, Any]]
    """`FittedClassifier.facts` of each choice"""
    choose: str
    """the choice that the rest of the card is about"""
    selection: Selection
    """of that choice"""
    test_ece: float | None
    """expected calibration error on the test documents"""
    decision: DecisionSettings
    versions: Mapping[str, str]
    """of libraries"""


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    sections = {
        "Intended use and limits": [_USE, _list(_LIMITS)],
        "Data": _data(facts),
        "Backbone": [_backbone(facts)],
        "Figures on the test documents": _tested(facts),
        "Accuracy and its cost": _cost(facts),
        "Layers and neurons": [_neurons(facts.selection)],
        "Calibration and decision": _calibration(facts),
        "What was tested, and what was not": _scope(facts),
        "Versions": [_table(("library", "version"), [(_text(k), _text(v)) for k, v in facts.versions.items()])],
    }
    parts = [f"# {_text(facts.name)}", _text(facts.purpose)]
    for heading, content in sections.items():
        parts += [f"## {heading}", *content]
    return "\n\n".join(parts) + "\n"


def _data(facts: CardFacts) -> list[str]:
    has, splits = facts.label_space.indicator(facts.y), list(facts.splits)
    rows = [[index for index, split in enumerate(splits) if split == name] for name in SPLITS]
    lines = [
        (_text(name), *(f"{has[of_split, k].sum():,}" for of_split in rows))
        for k, name in enumerate(facts.label_space.classes)
    ]
    lines.append(("all documents", *(f"{len(of_split):,}" for of_split in rows)))
    several = " A document may have several classes, or none." if facts.label_space.multilabel else ""
    about = f"{_text(facts.data)}, fingerprint {_text(facts.fingerprint)}.{several}"
    return [about, _table(("class", *SPLITS), lines)]


def _backbone(facts: CardFacts) -> str:
    return (
        f"{_text(facts.backbone)}, frozen, digest {_text(facts.digest)}. "
        f"It reads the first {facts.max_tokens:,} tokens of a text."
    )


def _tested(facts: CardFacts) -> list[str]:
    if not facts.table:
        return ["There were no test documents: nothing here says how well it does on text that it has not seen."]
    contenders = [
        (
            _text(row["name"]),
            _percent(row["accuracy"]),
            _percent(row["macro_f1"]),
            f"{row['neurons']:,} of {row['neurons_of']:,}" if row["neurons"] else "–",
            f"{row['depth']} of {row['depth_of']}",
            f"{row['docs_per_s']:,.0f}",
        )
        for row in facts.table
    ]
    classes = [
        (_text(name), *(_percent(of[figure]) for figure in ("precision", "recall", "f1")), f"{of['support']:,.0f}")
        for name, of in facts.per_class.items()
    ]
    return [
        "No choice was made on these documents.",
        _table(("contender", "accuracy", "macro-F1", "neurons", "depth", "documents/s"), contenders),
        _table(("class", "precision", "recall", "F1", "documents"), classes),
    ]


def _cost(facts: CardFacts) -> list[str]:
    """The best candidate of every depth, and what can be chosen of them."""
    columns = ("depth", "compute", "neurons", "eta", _text(facts.metric))
    points = [_point(point) for point in facts.frontier]
    choices = [
        (_text(name) + (" (this card)" if name == facts.choose else ""), *_point(point), point["head"])
        for name, point in facts.choices.items()
    ]
    return [
        f"{_text(facts.metric)} on the validation documents, and the FLOPs a token as a share of the whole backbone's.",
        _table(columns, points),
        "Of these can be chosen:",
        _table(("choice", *columns, "head"), choices),
    ]


def _point(point: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(point["depth"]),
        _percent(point["compute"]),
        f"{point['neurons']:,}",
        f"{point['eta']:g}",
        _percent(point["valid_score"]),
    )


def _neurons(selection: Selection) -> str:
    """How many neurons are read, layers by kind and pooling."""
    places = sorted({(column.site.kind, column.pooling) for column in selection.neurons})
    layers = sorted({column.site.layer for column in selection.neurons})
    counts: dict[FeatureColumn, int] = {column: len(neurons) for column, neurons in selection.neurons.items()}

    def count(layer: int, place: tuple[str, str] | None) -> str:
        found = sum(
            n
            for column, n in counts.items()
            if column.site.layer == layer and place in (None, (column.site.kind, column.pooling))
        )
        return f"{found:,}" if found else "–"

    rows = [(str(layer), *(count(layer, place) for place in places), count(layer, None)) for layer in layers]
    return _table(("layer", *(f"{kind} {pooling}" for kind, pooling in places), "all"), rows)


def _calibration(facts: CardFacts) -> list[str]:
    chosen, decision = facts.choices[facts.choose], facts.decision
    test = "not measured" if facts.test_ece is None else f"{facts.test_ece:.4f}"
    figures = [
        ("temperature", f"{chosen['temperature']:g}"),
        ("expected calibration error on validation, before", f"{chosen['valid_ece_uncalibrated']:.4f}"),
        ("expected calibration error on validation, after", f"{chosen['valid_ece']:.4f}"),
        ("expected calibration error on test", test),
    ]
    given = ", ".join(f"{_text(name)} from {value:g}" for name, value in decision.thresholds.items())
    label = "Every class from one half on." if facts.label_space.multilabel else "The likeliest class."
    band = f" No label within {decision.abstain:g} of the border." if decision.abstain else ""
    return [_table(("figure", "value"), figures), (f"Thresholds: {given}." if given else label) + band]


def _scope(facts: CardFacts) -> list[str]:
    done = ["the probes' optimality: each L1 path ends with a certificate", "the artifact loads and predicts"]
    if facts.table:
        tested = sum(split == "test" for split in facts.splits)
        done.insert(0, f"the figures above on {tested:,} documents of the same corpus that no choice has seen")
    return ["Tested:", _list(done), "Not tested:", _list(_NOT_TESTED)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Names on the left, figures on the right."""
    marks = [":--", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _text(text: str) -> str:
    """Text that is not ours as one line of Markdown in which nothing is markup."""
    line = _CONTROL.sub("\ufffd", " ".join(text.split()))
    return _MARKUP.sub(r"\\\1", line) or "(empty)"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
