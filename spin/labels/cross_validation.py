"""Folds: on which rows a model is fitted and on which its choices are judged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from spin.arrays import Floats, Hashes, Rows
from spin.errors import UserError
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score_samples
from spin.labels.splits import CROSS_VALIDATION_BELOW, VERY_FEW_LABELS

_SPLITS, _REPEATS = 5, 2
_TRIES = 50
"""random divisions into folds that are tried until each fold trains on every class"""
JACKKNIFE_PARTS, _FEWEST_PARTS = 20, 5
"""parts of the validation rows of a single fold; each is left out once to estimate a standard error"""


@dataclass(frozen=True)
class Fold:
    """Row numbers of the documents that train and of those that validate, both ascending."""

    train: Rows
    valid: Rows


def make_folds(
    label_space: LabelSpace, y: Targets, train: Rows, valid: Rows, seed: int, groups: Hashes | None = None
) -> tuple[Fold, ...]:
    """The given division as a single fold, or below `CROSS_VALIDATION_BELOW` rows cross-validation.

    Cross-validation pools the rows of `train` and `valid` and stratifies by class into five folds, below
    `VERY_FEW_LABELS` rows twice. Each fold trains on every class, but a rare class is not in every validation part:
    fewer folds would take documents of all other classes from training. `y` are the targets of all rows (n, …), and
    `groups` (n,) their groups, which are not divided. Raises UserError if no division into groups lets each fold train
    on every class.
    """
    if len(train) + len(valid) >= CROSS_VALIDATION_BELOW:
        return (Fold(train, valid),)
    pool = np.sort(np.concatenate([train, valid]))
    own = None if groups is None or len(np.unique(groups[pool])) == len(pool) else groups[pool]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class may have fewer documents than there are folds
        parts = _divide(label_space.strata(y[pool]), label_space.indicator(y[pool]), own, seed)
    return tuple(Fold(pool[train_part], pool[valid_part]) for train_part, valid_part in parts)


def _divide(strata: Rows, indicator: NDArray[np.bool_], groups: Hashes | None, seed: int) -> list[tuple[Rows, Rows]]:
    """The positions that train and validate in each fold, with all rows of a group on the same side.

    Stratified as far as groups allow. A random division may leave a class to the validation rows alone. It is drawn
    again then. A single document without a group is no obstacle: its class is not learned in one fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = len(strata) if groups is None else len(np.unique(groups))
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    learned = indicator if groups is not None else indicator[:, indicator.sum(0) > 1]
    draw, repeats = np.random.RandomState(seed), _REPEATS if len(strata) < VERY_FEW_LABELS else 1
    for splits in range(min(_SPLITS, units, int(np.bincount(strata).max())), 1, -1):
        parts: list[tuple[Rows, Rows]] = []
        for _ in range(_TRIES):
            division = list(splitter(splits, shuffle=True, random_state=draw).split(strata, strata, groups))
            if all(len(valid) and learned[train].any(0).all() for train, valid in division):
                parts += division
            if len(parts) == repeats * splits:
                return parts
    raise UserError(
        f"cross-validation: found no division of {len(strata)} documents in {units} groups that lets "
        "every class be learned without any of its groups; label documents of more groups, or change data.group"
    )


def labelled_rows(folds: Sequence[Fold]) -> Rows:
    """All rows that train or validate, in order."""
    return np.sort(np.concatenate([folds[0].train, folds[0].valid]))


def count_repeats(folds: Sequence[Fold]) -> float:
    """How often each document validates: more than once where cross-validation is repeated."""
    valid = np.concatenate([fold.valid for fold in folds])
    return len(valid) / len(np.unique(valid))


def jackknife_rows(count: int, documents: NDArray[np.generic] | None = None) -> Iterator[Rows]:
    """The positions of `count` validation rows without each of 20 parts in turn; all of them if there are too few.

    `documents` (count,) identify rows that are left out together: those of a group, or the predictions of one document
    by repeated cross-validation. Rows of a group are alike, so that parts of it would hide how much groups differ.
    """
    numbers = np.arange(count) if documents is None else np.unique(documents, return_inverse=True)[1]
    parts = min(JACKKNIFE_PARTS, int(numbers.max()) + 1)
    for part in range(parts):
        yield np.flatnonzero(numbers % parts != part) if parts > 1 else np.arange(count)


def score_folds(
    metric: str, y: Targets, predicted: Targets, folds: Sequence[Fold], groups: Hashes | None = None
) -> tuple[float, tuple[float, ...]]:
    """The metric of predictions for the validation rows of all folds, and without each part of `jackknife_rows`.

    `y` and `predicted` are those of all folds, one after the other; `groups` are those of all rows of the data. The
    folds of a repeat are pooled: a mean over folds is biased for F1, which is not linear, and hangs on folds with few
    documents of a class (Forman & Scholz 2010). Of several repeats it is the mean.
    """
    rows = np.concatenate([fold.valid for fold in folds])
    without = list(jackknife_rows(len(rows), rows if groups is None else groups[rows]))
    counted = np.zeros((1 + len(without), len(rows)))
    counted[0] = 1
    for number, kept in enumerate(without, 1):
        counted[number, kept] = 1
    scores = np.mean([score_samples(metric, y[own], predicted[own], counted[:, own]) for own in _repeats_of(rows)], 0)
    return float(scores[0]), tuple(scores[1:].tolist())


def _repeats_of(rows: Rows) -> list[Rows]:
    """The positions of each repeat of cross-validation among the rows that validate: of each row once."""
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], rows[order])
    repeat = np.empty_like(order)
    repeat[order] = np.arange(len(rows)) - starts
    return [np.flatnonzero(repeat == number) for number in range(int(repeat.max()) + 1)]


def standard_error(differences: Floats, folds: Sequence[Fold]) -> NDArray[np.floating]:
    """The standard error (…) of a mean over validation rows, or a difference, from its values (R, …).

    With several folds the values are one per fold, corrected for overlapping training rows (Nadeau & Bengio 2003).
    With a single fold they are one per part that `jackknife_rows` leaves out.
    """
    if len(folds) == 1:
        return jackknife_error(differences)
    valid_share = sum(len(fold.valid) for fold in folds) / sum(len(fold.train) for fold in folds)
    return np.sqrt((1 / len(folds) + valid_share) * differences.var(0, ddof=1))


def confident_margin(differences: Floats) -> float:
    """How far a figure may lie above its true value, with 95 % confidence, by its values (R,) as in `jackknife_error`.

    It is infinite with fewer than five parts, which prove nothing: the groups of so few rows may all be alike. The
    parts tell how much documents vary, not trainings: of 22 trainings on 48 tweets, 21 kept to a limit of 2 points
    that was tested with it, and 19 with the quantile of 90 %.
    """
    if len(differences) < _FEWEST_PARTS:
        return np.inf
    return float(stdtrit(len(differences) - 1, 0.95) * jackknife_error(differences))


def jackknife_error(differences: Floats) -> NDArray[np.floating]:
    """The standard error (…) of a figure, from its values (R, …) without each part that `jackknife_rows` leaves out.

    It is a grouped jackknife (Efron & Tibshirani 1993, chapter 11).
    """
    return np.sqrt((len(differences) - 1) * differences.var(0))
