"""A feature shard as Arrow tables: what is known of its documents, and lists of values per feature column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spin.activations.features import Features
from spin.labels.label_space import Label
from spin.sites import FeatureColumn

MAX_SHARD_BYTES = 256 << 20
"""bytes of features in a shard, at most"""


def bytes_per_document(widths: Mapping[FeatureColumn, int], dtypes: Mapping[FeatureColumn, type[np.floating]]) -> int:
    """Bytes of features per document, from the width and type of each column."""
    return sum(width * np.dtype(dtypes[column]).itemsize for column, width in widths.items())


def documents_table(
    ids: Sequence[str],
    labels: Sequence[Label],
    splits: Sequence[str | None],
    *,
    text_hashes: Sequence[int],
    groups: Sequence[int],
) -> pa.Table:
    """The table of n documents: id, label, split, text_hash and group.

    Labels are strings, or lists of strings even if all lists are empty. `text_hashes` and `groups` are those of
    `spin.labels.split_groups`, in place of the texts, which no feature store holds.
    """
    # a corpus has labels of one kind, so the first decides; Arrow would infer lists of null from empty lists
    multilabel = len(labels) > 0 and not isinstance(labels[0], str)
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "label": pa.array(labels, pa.list_(pa.string()) if multilabel else pa.string()),
            "split": pa.array(splits, pa.string()),
            "text_hash": pa.array(text_hashes, pa.uint64()),
            "group": pa.array(groups, pa.uint64()),
        }
    )


def features_table(features: Features) -> pa.Table:
    """The table of the features of n documents: n_tokens, and lists of values per feature column."""
    columns = {str(column): to_lists(values) for column, values in features.columns.items()}
    return pa.table({"n_tokens": pa.array(features.n_tokens, pa.int32()), **columns})


def to_lists(values: NDArray[np.floating]) -> pa.FixedSizeListArray:
    """Values (n, width) as an Arrow column of n lists of `width` values."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def from_lists(column: pa.ChunkedArray) -> NDArray[np.floating]:
    """An Arrow column of n lists of `width` values as an array (n, width) of the stored type."""
    width = column.type.list_size
    if not column.num_chunks:
        return np.empty((0, width), column.type.value_type.to_pandas_dtype())
    return np.concatenate([chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks])
