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

        They are a tenth of the rows outside, at most 5,000, in whole groups at random; no row that is left is of the
        group of one of them. With fewer than 1,000 there are none, and the data is as it was: the validation rows of
        the folds calibrate better.
        """
        nothing = np.empty(0, np.int64)
        if self.not_sampled is None:
            return self, nothing
        most = min(_MOST_HELD_BACK, len(self.not_sampled) // 10)
        if most < _LEAST_HELD_BACK:
            return self, nothing
        groups = np.arange(len(self.y), dtype=np.uint64) if self.groups is None else self.groups
        of_folds = np.unique(groups[self.rows])
        own = groups[self.not_sampled]
        apart = of_folds[np.searchsorted(of_folds, own).clip(max=len(of_folds) - 1)] != own
        names, places, sizes = np.unique(own[apart], return_inverse=True, return_counts=True)
        order = np.random.default_rng(self.seed).permutation(len(names))
        order = order[sizes[order] <= max(1, most // 100)]  # a large group would be most of what calibrates
        is_held = np.zeros(len(names), bool)
        is_held[order[np.cumsum(sizes[order]) <= most]] = True
        held_back = self.not_sampled[apart][is_held[places]]
        if len(held_back) < _LEAST_HELD_BACK:
            return self, nothing
        return replace(self, not_sampled=np.setdiff1d(self.not_sampled, held_back, assume_unique=True)), held_back

    def of_folds(self) -> TrainingData:
        """The same data with the rows of the folds alone, which are numbered anew in the order of `rows`."""
        rows = self.rows
        folds = tuple(Fold(np.searchsorted(rows, f.train), np.searchsorted(rows, f.valid)) for f in self.folds)
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, y=self.y[rows], folds=folds, groups=groups, not_sampled=None)

    @property
    def has_few_labels(self) -> bool:
        """Whether the labelled rows are too few to tell strengths of regularisation apart at every depth."""
        return len(self.rows) < FEW_LABELS
