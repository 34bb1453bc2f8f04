"""The label space: the classes, and whether a document has exactly one of them or any number."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Hashes
from spin.errors import UserError
from spin.labels.label_types import PARSERS, LabelType, LabelValue
from spin.labels.splits import needs_cross_validation, rows_in_split

Label = str | Sequence[str]
"""the class of a document, or in a multi-label corpus its list of classes, which may be empty"""
Targets = NDArray[np.int64] | NDArray[np.bool_]
"""class indices (n,), or in a multi-label task which classes each document has (n, K)"""


@dataclass(frozen=True)
class LabelSpace:
    """The classes in the order of every array that has one axis for them."""

    classes: tuple[str, ...]
    multilabel: bool = False
    label_type: LabelType = "str"
    """the type of the labels that the names of the classes stand for"""

    @classmethod
    def of(
        cls,
        labels: Sequence[Label],
        splits: Sequence[str],
        groups: Sequence[int] | Hashes | None = None,
        label_type: LabelType = "str",
    ) -> LabelSpace:
        """The label space of labels that are all strings, or all lists of strings; classes are sorted by value.

        Raises UserError unless there are at least two classes, none of them on every document that trains. Each class
        also needs a document to train and one to validate. Where labels are few, it needs two in all, which are in two
        of the `groups` that cross-validation does not divide.
        """
        kinds = {isinstance(label, str) for label in labels}
        if len(kinds) > 1:
            raise UserError("labels: found strings and lists; expected one class per document, or a list for each")
        multilabel = kinds == {False}
        of_split: dict[str, Counter[str]] = {}
        for label, split in zip(labels, splits, strict=True):
            of_split.setdefault(split, Counter()).update(class_names(label))
        counts = sum(of_split.values(), Counter())
        classes = sorted(counts, key=PARSERS[label_type])
        if len(classes) < 2:
            nothing = "no class in any list" if len(labels) else "no documents"
            actual = f"one class only, '{classes[0]}'" if classes else nothing
            raise UserError(f"labels: found {actual}; expected at least two classes")
        lonely = [c for c in classes if counts[c] == 1]
        if lonely:
            raise UserError(f"labels: class {_quote(lonely)} has 1 document; label more of it or leave it out")
        few = needs_cross_validation(splits)  # then train and valid are one pool, for cross-validation
        for part in [("train", "valid")] if few else [("train",), ("valid",)]:
            held = sum((of_split.get(split, Counter()) for split in part), Counter())
            absent = [c for c in classes if held[c] < 1 + few]
            if absent:
                what = "fewer than 2 documents" if few else "no document"
                raise UserError(
                    f"labels: class {_quote(absent)} has {what} in the {' and '.join(part)} split; "
                    "label more of it, or name a split column that gives it one"
                )
            undivided = [] if not few or groups is None else _classes_of_one_group(labels, splits, groups)
            if undivided:
                raise UserError(
                    f"labels: all documents of class {_quote(undivided)} to train and validate are of one group: their "
                    "texts are near-identical, or they share a value of data.group; label documents of another group"
                )
            everywhere = [c for c in classes if held[c] == sum(split in part for split in splits)]
            if everywhere and "train" in part:
                raise UserError(
                    f"labels: class {_quote(everywhere)} is in every list of the {' and '.join(part)} split; "
                    "leave it out, or add documents without it"
                )
        return cls(tuple(classes), multilabel, label_type)

    def __len__(self) -> int:
        return len(self.classes)

    def value(self, name: str) -> LabelValue:
        """The label that the name of a class stands for."""
        return PARSERS[self.label_type](name)

    def index(self, labels: Sequence[Label]) -> Targets:
        """The targets of labels: class indices (n,), or booleans (n, K) in a multi-label task.

        In a multi-label task a string counts as a list of one. Raises UserError for an unknown class, or for a list
        where each document has exactly one class.
        """
        if not self.multilabel and not all(isinstance(label, str) for label in labels):
            raise UserError(
                "labels: found a list of classes; the model gives each document one class, expected a string"
            )
        known = {name: k for k, name in enumerate(self.classes)}
        unknown = sorted({name for label in labels for name in class_names(label)} - known.keys())
        if unknown:
            raise UserError(f"label '{unknown[0]}' is not one of the model's: {', '.join(self.classes)}")
        if not self.multilabel:
            return np.array([known[str(label)] for label in labels], np.int64)
        targets = np.zeros((len(labels), len(self)), bool)
        for row, label in enumerate(labels):
            targets[row, [known[name] for name in class_names(label)]] = True
        return targets

    def indicator(self, y: Targets) -> NDArray[np.bool_]:
        """Boolean matrix (n, K) of the classes of each document, for targets of either kind."""
        return y.astype(bool) if y.ndim == 2 else y[:, None] == np.arange(len(self))

    def probabilities(self, logits: Floats) -> Floats:
        """The probabilities (n, K) of logits (n, K); rows sum to 1, except in a multi-label task."""
        if self.multilabel:
            from scipy.special import expit  # the other tasks do without SciPy, which a bare GPU machine may lack

            return expit(logits)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def predict(self, logits: Floats) -> Targets:
        """The targets that logits (n, K) predict without thresholds."""
        return logits > 0 if self.multilabel else logits.argmax(1)

    def names(self, y: Targets) -> list[str | list[str]]:
        """The labels of targets: one class per document, or a list of classes per document."""
        if y.ndim == 1:
            return [self.classes[k] for k in y]
        return [[self.classes[k] for k in np.flatnonzero(row)] for row in y]

    def strata(self, y: Targets) -> NDArray[np.int64]:
        """(n,) a single class per document to stratify by: its own, or the rarest of its list (K for an empty list)."""
        if y.ndim == 1:
            return y.astype(np.int64, copy=False)
        counts = y.sum(0)
        ranked = np.argsort(counts, kind="stable")
        first = y[:, ranked].argmax(1)
        return np.where(y.any(1), ranked[first], len(self)).astype(np.int64)


def differ(one: Targets, other: Targets) -> NDArray[np.bool_]:
    """(n,) the documents whose targets are not the same."""
    different = one != other
    return different if different.ndim == 1 else different.any(axis=1)


def class_names(label: Label | None) -> Collection[str]:
    """The classes in a label: one for a string, those of a list, none for None."""
    if label is None:
        return ()
    return (label,) if isinstance(label, str) else set(label)


def divide_rare_classes(labels: Sequence[Label], splits: Sequence[str], groups: Sequence[int] | Hashes) -> list[str]:
    """The splits of documents, changed so that each class has some that train and some that validate.

    A hash may give all documents of a rare class to one of the two. If they are of several groups, one of them changes
    sides: the smallest of those that leave other documents of all their classes behind, or of all if none does.
    Nothing changes where cross-validation joins the two, or where one of them is empty.
    """
    divided, sides = list(splits), ("train", "valid")
    if needs_cross_validation(splits) or not set(sides) <= set(splits):
        return divided
    used = rows_in_split(splits, *sides)
    groups_used = np.asarray(groups, np.uint64)[used]
    of_side = {side: Counter[str]() for side in sides}
    for row in used:
        of_side[splits[row]].update(class_names(labels[row]))
    one_sided = of_side["train"].keys() ^ of_side["valid"].keys()
    rows_of_class = defaultdict[str, list[int]](list)
    for row in used:
        for name in one_sided.intersection(class_names(labels[row])):
            rows_of_class[name].append(row)
    for rows in rows_of_class.values():
        own_groups = {int(groups[row]) for row in rows}
        if len(own_groups) == 1 or len({divided[row] for row in rows}) > 1:
            continue
        side = divided[rows[0]]
        other = "valid" if side == "train" else "train"
        choices = []
        for group in own_groups:
            moved = used[groups_used == group]
            leaving = Counter(name for row in moved for name in class_names(labels[row]))
            last = any(of_side[side][name] == count for name, count in leaving.items())
            choices.append((last, len(moved), group, moved, leaving))
        *_, moved, leaving = min(choices, key=lambda choice: choice[:3])
        for row in moved:
            divided[row] = other
        of_side[side].subtract(leaving)
        of_side[other].update(leaving)
    return divided


def _classes_of_one_group(labels: Sequence[Label], splits: Sequence[str], groups: Sequence[int] | Hashes) -> list[str]:
    """The classes whose documents in `train` and `valid` are all in one group, sorted."""
    groups_of: dict[str, set[int]] = {}
    for label, split, group in zip(labels, splits, groups, strict=True):
        if split in ("train", "valid"):
            for name in class_names(label):
                groups_of.setdefault(name, set()).add(int(group))
    return sorted(name for name, own in groups_of.items() if len(own) == 1)


def _quote(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
