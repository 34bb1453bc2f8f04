"""A sample of the documents of a night with their features, from which the causes of drift are named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.arrays import Floats
from spin.monitor.drift_words import different_words

_SIZE = 1000
"""documents of a sample, about"""
_HASHES = 1 << 64


def sample_share(documents: int) -> float:
    """The share of so many documents that makes a sample of about a thousand, 1 for fewer."""
    return min(1.0, _SIZE / max(1, documents))


def is_sampled(id: str, share: float) -> bool:
    """Whether a document belongs to a sample of a share of all documents; its id alone decides."""
    return int.from_bytes(blake2b(id.encode(), digest_size=8).digest()) < share * _HASHES


@dataclass(frozen=True)
class DocumentSample:
    """Some documents with the values of p features, and with their words where these may be kept.

    The sample of a night consists of those of its shards, and does not depend on how documents are divided over them.
    """

    ids: tuple[str, ...]
    """(n) ids"""
    values: NDArray[np.float16]
    """(n, p) standardised values, NaN where a feature of a document was not read. They are so coarse that equal texts
    have equal values, which differ in their last bits between batches"""
    words: tuple[tuple[str, ...], ...]
    """(n) the different words of each document; empty where they are not kept"""

    @classmethod
    def of_texts(cls, ids: Sequence[str], values: Floats, texts: Sequence[str]) -> DocumentSample:
        """A sample of documents with the words of their texts; without texts it holds no words."""
        largest = np.finfo(np.float16).max
        coarse = np.clip(values, -largest, largest).astype(np.float16)
        return cls(tuple(ids), coarse, tuple(map(different_words, texts)))

    @classmethod
    def concatenate(cls, parts: Iterable[DocumentSample], features: Sequence[int]) -> DocumentSample:
        """The sample of several shards, in order of id, with some of the features; parts are taken one by one.

        Words are kept if all parts have them.
        """
        ids: list[str] = []
        values = [np.empty((0, len(features)), np.float16)]
        words: list[tuple[str, ...]] = []
        for part in parts:
            ids += part.ids
            values.append(part.values[:, list(features)])
            words += part.words
        order = sorted(range(len(ids)), key=ids.__getitem__)
        kept = tuple(words[row] for row in order) if len(words) == len(ids) else ()
        return cls(tuple(ids[row] for row in order), np.concatenate(values)[np.array(order, np.int64)], kept)

    def rank(self, feature: int, sign: int) -> NDArray[np.int64]:
        """The documents of which a feature was read, the farthest in the direction of the sign first.

        Of equal values the smallest id comes first. Empty where the farthest value is that of half of the documents:
        none of them stands out. So it is where a neuron that is mostly silent fires less often.
        """
        values = sign * self.values[:, feature]
        read = np.flatnonzero(~np.isnan(values))
        ranked = read[np.argsort(-values[read], kind="stable")]
        stands_out = len(ranked) > 0 and values[ranked[0]] > values[ranked[len(ranked) // 2]]
        return ranked if stands_out else ranked[:0]

    def to_bytes(self) -> bytes:
        """The sample as safetensors."""
        texts = {name: np.frombuffer(json.dumps(getattr(self, name)).encode(), np.uint8) for name in ("ids", "words")}
        return bytes(save_tensors({"values": np.ascontiguousarray(self.values), **texts}))

    @classmethod
    def from_bytes(cls, data: bytes) -> DocumentSample:
        """The sample that `to_bytes` wrote."""
        tensors = load_tensors(data)
        ids, words = (json.loads(tensors[name].tobytes()) for name in ("ids", "words"))
        return cls(tuple(ids), tensors["values"], tuple(map(tuple, words)))
