"""The columns of the predictions: their names, their types, and the functions that fill them.

Another column is an entry of `COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from spin.activations.features import Features
from spin.labels.label_space import LabelSpace
from spin.predictions import Predictions


@dataclass(frozen=True)
class PredictedRows:
    """n documents of a shard that a model has predicted, in the order of the shard."""

    ids: Sequence[str | None]
    predictions: Predictions
    features: Features
    label_space: LabelSpace
    model_version: str


@dataclass(frozen=True)
class Column:
    """A column of the predictions. `data.keep` can carry no input column of its name."""

    name: str
    type: pa.DataType
    fill: Callable[[PredictedRows], Any]
    """returns the values of n rows in any form that `pyarrow.array` takes; None where all of them are null"""


_WORDS = pa.list_(
    pa.struct([("word", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("contribution", pa.float32())])
)
_NEURONS = pa.list_(pa.struct([("column", pa.string()), ("neuron", pa.int32()), ("contribution", pa.float32())]))


def _fill_scores(rows: PredictedRows) -> pa.Array:
    """The probability of each class."""
    probabilities, classes = rows.predictions.probabilities.astype(np.float32), rows.label_space.classes
    offsets = pa.array(np.arange(len(probabilities) + 1, dtype=np.int32) * len(classes))
    names = pa.array(list(classes) * len(probabilities), pa.string())
    return pa.MapArray.from_arrays(offsets, names, pa.array(probabilities.ravel()))


def _fill_reason_labels(rows: PredictedRows) -> list[str | None] | None:
    reasons = rows.predictions.reasons
    if reasons is None:
        return None
    return [rows.label_space.classes[k] if k >= 0 else None for k in reasons.classes.tolist()]


def _fill_reason_words(rows: PredictedRows) -> pa.Array | None:
    if rows.predictions.reasons is None:
        return None
    words, missing = rows.predictions.reasons.words, rows.predictions.reasons.classes < 0
    return _structs(_WORDS, words.counts, [words.words, words.starts, words.ends, words.contributions], missing)


def _fill_reason_neurons(rows: PredictedRows) -> pa.Array | None:
    if rows.predictions.reasons is None:
        return None
    neurons, missing = rows.predictions.reasons.neurons, rows.predictions.reasons.classes < 0
    return _structs(_NEURONS, neurons.counts, [neurons.columns, neurons.neurons, neurons.contributions], missing)


def _structs(kind: pa.DataType, counts: np.ndarray, values: Sequence[Any], missing: np.ndarray) -> pa.Array:
    """Lists of structs, by the length of each list and the values of all lists, one sequence per field.

    Those that are `missing` (n,) are null.
    """
    fields = [kind.value_type.field(index) for index in range(kind.value_type.num_fields)]
    arrays = [pa.array(each).cast(field.type) for each, field in zip(values, fields, strict=True)]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    structs = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(offsets, structs, type=kind, mask=pa.array(missing))


COLUMNS: tuple[Column, ...] = (
    Column("id", pa.string(), lambda rows: rows.ids),
    # null without a label, and in a multi-label task, which fills `labels` instead
    Column("label", pa.string(), lambda rows: None if rows.label_space.multilabel else rows.predictions.labels),
    Column(
        "labels", pa.list_(pa.string()), lambda rows: rows.predictions.labels if rows.label_space.multilabel else None
    ),
    Column("score", pa.float32(), lambda rows: rows.predictions.score),
    Column("scores", pa.map_(pa.string(), pa.float32()), _fill_scores),
    Column("depth", pa.int32(), lambda rows: rows.predictions.exit_depth),
    Column("model_version", pa.string(), lambda rows: pa.repeat(rows.model_version, len(rows.ids))),
    # null unless `backbone.long_texts` is windows
    Column("unread_tokens", pa.int32(), lambda rows: rows.features.unread_tokens),
    # null unless `classify.reasons` is above 0, and with `classify.reasons_for: unsure` where an early exit was sure
    Column("reason_label", pa.string(), _fill_reason_labels),
    Column("reason_words", _WORDS, _fill_reason_words),
    Column("reason_neurons", _NEURONS, _fill_reason_neurons),
)
"""in the order of the table"""


def predictions_schema() -> pa.Schema:
    """The columns of the predictions, without partition columns and kept ones."""
    return pa.schema([(column.name, column.type) for column in COLUMNS])


def fill_columns(rows: PredictedRows) -> pa.Table:
    """The predictions of n documents; columns all of whose values are null are left out."""
    filled = {column: column.fill(rows) for column in COLUMNS}
    return pa.table({c.name: pa.array(values, c.type) for c, values in filled.items() if values is not None})
