"""Groups of documents that are never divided between training and test, where the words alone do not show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, vstack
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import HashingVectorizer

from spin.arrays import Hashes
from spin.labels.split_groups import hash_text, normalize_text

SHINGLE = 4
"""words"""
LEAST_SHARED = 0.5
"""of the shingles that two texts have together; at 0.5, few readers would call them different pages"""
_BLOCK = 500
_BITS = 22


def join_groups(texts: Sequence[str], names: Sequence[str] = ()) -> Hashes:
    """(n,) equal for documents that near-identical texts or equal names connect, also through others."""
    links = [np.array([hash_text(text) for text in texts], np.uint64)]
    if names:
        links.append(np.asarray(names))
    documents, nodes, count = [], [], len(texts)
    for values in links:
        numbers = np.unique(values, return_inverse=True)[1]
        documents.append(np.arange(len(texts)))
        nodes.append(count + numbers)
        count += numbers.max() + 1
    return _components(np.concatenate(documents), np.concatenate(nodes), count)[: len(texts)]


def group_similar(texts: Sequence[str]) -> list[str]:
    """A group for each of n texts: equal where two have at least half of their sequences of four words in common.

    Manuals often have a page for each of some functions that differ by a few words.
    """
    shingles = _shingles(texts)
    sizes = np.diff(shingles.indptr)
    firsts, seconds = [], []
    for start in range(0, len(texts), _BLOCK):
        shared = coo_array(shingles[start : start + _BLOCK] @ shingles.T)
        first, second = shared.row + start, shared.col
        similar = shared.data >= LEAST_SHARED * (sizes[first] + sizes[second] - shared.data)
        firsts.append(first[similar])
        seconds.append(second[similar])
    groups = _components(np.concatenate(firsts), np.concatenate(seconds), len(texts))
    return [str(group) for group in groups]


def _shingles(texts: Sequence[str]) -> csr_array:
    """(n, 2^22) 1 for each sequence of words that a text has; shorter texts have those of their words."""
    vectorizer = HashingVectorizer(
        ngram_range=(SHINGLE, SHINGLE), n_features=2**_BITS, norm=None, binary=True, alternate_sign=False,
        token_pattern=r"\S+", lowercase=False, dtype=np.float32,
    )  # fmt: skip
    blocks = [vectorizer.transform(map(normalize_text, texts[i : i + _BLOCK])) for i in range(0, len(texts), _BLOCK)]
    return csr_array(vstack(blocks))


def _components(first: NDArray[np.int64], second: NDArray[np.int64], count: int) -> Hashes:
    """The number of the connected component of each of `count` nodes."""
    edges = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(edges, directed=False)[1].astype(np.uint64)
