"""Which documents train, which choose and which test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from spin.errors import UserError

SPLITS = ("train", "valid", "test")


def split_of(id: str, seed: int, valid_fraction: float, test_fraction: float) -> str:
    """The split of a document by a hash of its id alone, so that more data never moves a document.

    Every class is divided in the same proportions in expectation, because the hash knows nothing of it.
    """
    digest = hashlib.blake2b(f"{seed}:{id}".encode(errors="surrogatepass"), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    if share < test_fraction:
        return "test"
    return "valid" if share < test_fraction + valid_fraction else "train"


def index_classes(labels: Sequence[str], splits: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The sorted classes and each label's index (n,).

    Raises UserError unless there are two classes or more and each has a document to train and one to validate.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        found = f"one class only, '{classes[0]}'" if classes else "no documents"
        raise UserError(f"labels: found {found}; expected at least two classes")
    counts = Counter(labels)
    lonely = [c for c in classes if counts[c] == 1]
    if lonely:
        raise UserError(f"labels: class {_quote(lonely)} has 1 document; label more of it or leave it out")
    for split in ("train", "valid"):
        present = {label for label, of in zip(labels, splits, strict=True) if of == split}
        absent = [c for c in classes if c not in present]
        if absent:
            raise UserError(
                f"labels: class {_quote(absent)} has no document in the {split} split; "
                "label more of it, or name a split column that gives it one"
            )
    index = {c: k for k, c in enumerate(classes)}
    return classes, np.array([index[label] for label in labels], np.int64)


def rows_of(splits: Iterable[str], split: str) -> NDArray[np.int64]:
    """Row numbers of a split."""
    return np.flatnonzero(np.array([of == split for of in splits], bool))


def _quote(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
