"""The targets, folds and metric for fitting and judging every probe and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spin.arrays import Hashes, Rows
from spin.errors import UserError
from spin.labels.cross_validation import Fold, labelled_rows, make_folds
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.sampling import sample_rows
from spin.labels.splits import FEW_LABELS, rows_in_split

_LEAST_HELD_BACK, _MOST_HELD_BACK = 1_000, 5_000
"""rows on which heads are calibrated that were fitted on more rows than the folds hold"""


@dataclass(frozen=True)
class TrainingData:
    """The targets of n documents, the rows that train and validate, and how fits are weighted and judged."""

    y: Targets
    """the targets of all n rows; rows that are in no fold are never looked at"""
    folds: tuple[Fold, ...]
    """one division into training and validation rows, or several where labels are few; by these, choices are made"""
    label_space: LabelSpace
    metric: str = "macro_f1"
    """the measure of probes, thresholds, exits and heads, one of `spin.settings.METRICS`"""
    class_weights: str = "none"
    """none: every row weighs the same; balanced: every class does"""
    seed: int = 0
    device: str = "cpu"
    """where probes and heads are fitted: cpu or cuda"""
    groups: Hashes | None = None
    """(n,) the groups of near-identical or related documents; None if each stands for itself"""
    not_sampled: Rows | None = None
    """further labelled rows, ascending, on which only the final heads are fitted; None if the folds hold all"""

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
        documents: int | None = None,
        sampled_from: Rows | None = None,
    ) -> TrainingData:
        """Training data of n documents; all but those in the splits `train` and `valid` are in no fold.

        `groups` (n,) are the groups of the documents, which cross-validation does not divide; without them every
        document stands for itself. If more than `documents` train or validate, the folds hold a stratified sample of
        so many, drawn from the rows `sampled_from` if they are given. Raises UserError as `make_folds` does.
        """
        train, valid = rows_in_split(splits, "train"), rows_in_split(splits, "valid")
        labelled = np.concatenate([train, valid])
        if sampled_from is not None:
            train, valid = (rows[np.isin(rows, sampled_from)] for rows in (train, valid))
        sample = np.sort(np.concatenate([train, valid]))
        if documents is not None:  # every class keeps its share in those that train and in those that validate
            sample = sample_rows(sample, 2 * label_space.strata(y[sample]) + np.isin(sample, train), documents, seed)
        rest = np.setdiff1d(labelled, sample, assume_unique=True)
        train, valid = (rows[np.isin(rows, sample)] for rows in (train, valid))
        try:
            folds = make_folds(label_space, y, train, valid, seed, groups)
        except UserError as error:
            hint = f"; or raise search.documents, since these are a sample of {len(labelled):,}" if len(rest) else ""
            raise UserError(f"{error}{hint}") from None
        return cls(
            y, folds, label_space, metric, class_weights, seed, device, groups, np.sort(rest) if len(rest) else None
        )

    @property
    def rows(self) -> Rows:
        """All rows of the folds, in order."""
        return labelled_rows(self.folds)

    @property
    def all_rows(self) -> Rows:
        """All rows that train or validate, in order, those outside the folds included."""
        return self.rows if self.not_sampled is None else np.sort(np.concatenate([self.rows, self.not_sampled]))

    def hold_back(self) -> tuple[TrainingData, Rows]:
        """The data without some of the rows outside the folds, and these rows, on which heads can be calibrated.

        They are at most 5,000 and a tenth of all labelled rows, in the proportions of the classes. No row that is left
        is of the group of one of them. With fewer than 1,000 there are none, and the data is as it was: the validation
        rows of the folds calibrate better.
        """
        outside = np.empty(0, np.int64) if self.not_sampled is None else self.not_sampled
        if self.groups is not None:
            outside = outside[~np.isin(self.groups[outside], self.groups[self.rows])]
        count = min(_MOST_HELD_BACK, len(self.all_rows) // 10, len(outside))
        if self.not_sampled is None or count < _LEAST_HELD_BACK:
            return self, np.empty(0, np.int64)
        held_back = np.sort(sample_rows(outside, self.label_space.strata(self.y[outside]), count, self.seed))
        related = np.isin(self.not_sampled, held_back)
        if self.groups is not None:
            related = np.isin(self.groups[self.not_sampled], self.groups[held_back])
        return replace(self, not_sampled=self.not_sampled[~related]), held_back

    def of_folds(self) -> TrainingData:
        """The same data with the rows of the folds alone, which are numbered anew in the order of `rows`."""
        rows = self.rows
        folds = tuple(Fold(np.searchsorted(rows, f.train), np.searchsorted(rows, f.valid)) for f in self.folds)
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, y=self.y[rows], folds=folds, groups=groups, not_sampled=None)

    @property
    def has_few_labels(self) -> bool:
        """Whether the labelled rows are too few to weigh sites by them."""
        return len(self.rows) < FEW_LABELS
