"""Splits: which documents train, which validate and which test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from spin.arrays import Rows

SPLITS = ("train", "valid", "test")
DROPPED = "dropped"
"""in place of a split: the document serves for nothing, because its text is in a frozen evaluation set"""
CROSS_VALIDATION_BELOW = 5_000
"""number of labelled documents to train and validate below which cross-validation makes the choices"""
FEW_LABELS = 1_000
"""number of them below which cross-validation is repeated, and what needs many labels is left out"""


def assign_split(group: object, seed: int, valid_fraction: float, test_fraction: float) -> str:
    """The split of a document by a hash of its group alone, so that more data never moves a document.

    The documents of a group stay together; see `split_groups`. Every class is divided in the same proportions in
    expectation, because the hash does not depend on the class.
    """
    digest = hashlib.blake2b(f"{seed}:{group}".encode(errors="surrogatepass"), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    if share < test_fraction:
        return "test"
    return "valid" if share < test_fraction + valid_fraction else "train"


def rows_in_split(splits: Iterable[str], split: str) -> Rows:
    """The row numbers of the documents in a split."""
    return np.flatnonzero(np.array([own == split for own in splits], bool))


def needs_cross_validation(splits: Sequence[str]) -> bool:
    """Whether so few documents train and validate that they form one pool for cross-validation."""
    return sum(split in ("train", "valid") for split in splits) < CROSS_VALIDATION_BELOW
