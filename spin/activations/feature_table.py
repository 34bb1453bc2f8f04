"""The feature shard: one Arrow table a shard, one fixed-size list column a site.pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spin.activations.extract import Features
from spin.labels.label_space import Label
from spin.sites import FeatureColumn

BYTES_A_SHARD = 256 << 20
"""what a feature shard holds at most"""


def document_bytes(widths: Mapping[FeatureColumn, int], dtypes: Mapping[FeatureColumn, type[np.floating]]) -> int:
    """Bytes of features a document."""
    return sum(width * np.dtype(dtypes[column]).itemsize for column, width in widths.items())


def to_table(ids: Sequence[str], labels: Sequence[Label], splits: Sequence[str | None], features: Features) -> pa.Table:
    """A shard of n documents: id, label, split, n_tokens and one column of lists a site.pooling.

    The label is a string, or where labels are lists a list of strings, be they all empty.
    """
    # the first one tells: a corpus has labels of one kind; Arrow would take lists that are all empty for lists of null
    multilabel = len(labels) > 0 and not isinstance(labels[0], str)
    columns = {str(column): to_lists(values) for column, values in features.columns.items()}
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "label": pa.array(labels, pa.list_(pa.string()) if multilabel else pa.string()),
            "split": pa.array(splits, pa.string()),
            "n_tokens": pa.array(features.n_tokens, pa.int32()),
            **columns,
        }
    )


def to_lists(values: NDArray[np.floating]) -> pa.FixedSizeListArray:
    """(n, width) to a column of n lists of `width`."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def from_lists(column: pa.ChunkedArray) -> NDArray[np.floating]:
    """A column of n lists of `width` back to (n, width), of the type it was stored in."""
    width = column.type.list_size
    if not column.num_chunks:
        return np.empty((0, width), column.type.value_type.to_pandas_dtype())
    return np.concatenate([chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks])
