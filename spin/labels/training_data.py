"""The targets, folds and metric for fitting and judging every probe and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spin.arrays import Hashes, Rows
from spin.labels.cross_validation import Fold, labelled_rows, make_folds
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.labels.splits import FEW_LABELS, rows_in_split


@dataclass(frozen=True)
class TrainingData:
    """The targets of n documents, the rows that train and validate, and how fits are weighted and judged."""

    y: Targets
    """the targets of all n rows; rows that are in no fold are never looked at"""
    folds: tuple[Fold, ...]
    """one division into training and validation rows, or several where labels are few"""
    label_space: LabelSpace
    metric: str = "macro_f1"
    """the figure by which every choice is made, one of `spin.settings.METRICS`"""
    class_weights: str = "none"
    """none: every row weighs the same; balanced: every class does"""
    seed: int = 0
    device: str = "cpu"
    """where probes and heads are fitted: cpu or cuda"""
    groups: Hashes | None = None
    """(n,) the groups of near-identical or related documents; None if each stands for itself"""

    @classmethod
    def from_splits(
        cls,
        y: Targets,
        splits: Sequence[str],
        label_space: LabelSpace,
        *,
        groups: Hashes | None = None,
        metric: str,
        class_weights: str = "none",
        seed: int = 0,
        device: str = "cpu",
    ) -> TrainingData:
        """Training data of n documents; all but those in the splits `train` and `valid` are in no fold.

        `groups` (n,) are the groups of the documents, which cross-validation does not divide; without them every
        document stands for itself. Raises UserError as `make_folds` does.
        """
        train, valid = rows_in_split(splits, "train"), rows_in_split(splits, "valid")
        folds = make_folds(label_space, y, train, valid, seed, groups)
        return cls(y, folds, label_space, metric, class_weights, seed, device, groups)

    @property
    def rows(self) -> Rows:
        """All rows that train or validate, in order."""
        return labelled_rows(self.folds)

    @property
    def has_few_labels(self) -> bool:
        """Whether the labelled rows are too few to weigh sites or to test an MLP head by them."""
        return len(self.rows) < FEW_LABELS

    @cached_property
    def constant_score(self) -> float:
        """The metric of the best constant prediction: the score of knowing nothing about a document."""
        answers = (False, True) if self.label_space.multilabel else range(len(self.label_space))
        y = self.y[self.rows]
        return max(score(self.metric, y, np.full_like(y, answer)) for answer in answers)
