"""The columns of the predictions: a class for each says its name, its type and its values.

Another column is a subclass of `Column` and a place in `COLUMNS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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


class Column(ABC):
    """A column of the predictions. `data.keep` can carry no input column of its name."""

    name: ClassVar[str]
    type: ClassVar[pa.DataType]

    @abstractmethod
    def fill(self, rows: PredictedRows) -> Any:
        """The values of n rows in any form that `pyarrow.array` takes; None where all of them are null."""


class _Id(Column):
    name, type = "id", pa.string()

    def fill(self, rows: PredictedRows) -> Sequence[str | None]:
        return rows.ids


class _Label(Column):
    """Null without a label, and in a multi-label task."""

    name, type = "label", pa.string()

    def fill(self, rows: PredictedRows) -> Any:
        return None if rows.label_space.multilabel else rows.predictions.labels


class _Labels(Column):
    """Null in a task of one class per document."""

    name, type = "labels", pa.list_(pa.string())

    def fill(self, rows: PredictedRows) -> Any:
        return rows.predictions.labels if rows.label_space.multilabel else None


class _Score(Column):
    name, type = "score", pa.float32()

    def fill(self, rows: PredictedRows) -> np.ndarray:
        return rows.predictions.score


class _Scores(Column):
    """The probability of each class."""

    name, type = "scores", pa.map_(pa.string(), pa.float32())

    def fill(self, rows: PredictedRows) -> pa.Array:
        probabilities, classes = rows.predictions.probabilities.astype(np.float32), rows.label_space.classes
        offsets = pa.array(np.arange(len(probabilities) + 1, dtype=np.int32) * len(classes))
        names = pa.array(list(classes) * len(probabilities), pa.string())
        return pa.MapArray.from_arrays(offsets, names, pa.array(probabilities.ravel()))


class _Depth(Column):
    name, type = "depth", pa.int32()

    def fill(self, rows: PredictedRows) -> np.ndarray:
        return rows.predictions.exit_depth


class _ModelVersion(Column):
    name, type = "model_version", pa.string()

    def fill(self, rows: PredictedRows) -> pa.Array:
        return pa.repeat(rows.model_version, len(rows.ids))


class _UnreadTokens(Column):
    """Null unless `backbone.long_texts` is windows."""

    name, type = "unread_tokens", pa.int32()

    def fill(self, rows: PredictedRows) -> np.ndarray | None:
        return rows.features.unread_tokens


class _ReasonLabel(Column):
    """Null, as the next two are, unless `classify.reasons` is above 0."""

    name, type = "reason_label", pa.string()

    def fill(self, rows: PredictedRows) -> list[str] | None:
        reasons = rows.predictions.reasons
        return None if reasons is None else [rows.label_space.classes[k] for k in reasons.classes.tolist()]


class _ReasonWords(Column):
    name = "reason_words"
    type = pa.list_(
        pa.struct([("word", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("contribution", pa.float32())])
    )

    def fill(self, rows: PredictedRows) -> pa.Array | None:
        if rows.predictions.reasons is None:
            return None
        words = rows.predictions.reasons.words
        return _structs(self.type, words.counts, [words.words, words.starts, words.ends, words.contributions])


class _ReasonNeurons(Column):
    name = "reason_neurons"
    type = pa.list_(pa.struct([("column", pa.string()), ("neuron", pa.int32()), ("contribution", pa.float32())]))

    def fill(self, rows: PredictedRows) -> pa.Array | None:
        if rows.predictions.reasons is None:
            return None
        neurons = rows.predictions.reasons.neurons
        return _structs(self.type, neurons.counts, [neurons.columns, neurons.neurons, neurons.contributions])


COLUMNS: tuple[Column, ...] = (
    _Id(),
    _Label(),
    _Labels(),
    _Score(),
    _Scores(),
    _Depth(),
    _ModelVersion(),
    _UnreadTokens(),
    _ReasonLabel(),
    _ReasonWords(),
    _ReasonNeurons(),
)
"""in the order of the table"""


def predictions_schema() -> pa.Schema:
    """The columns of the predictions, without partition columns and kept ones."""
    return pa.schema([(column.name, column.type) for column in COLUMNS])


def fill_columns(rows: PredictedRows) -> pa.Table:
    """The predictions of n documents; columns all of whose values are null are left out."""
    filled = {column: column.fill(rows) for column in COLUMNS}
    return pa.table({c.name: pa.array(values, c.type) for c, values in filled.items() if values is not None})


def _structs(kind: pa.DataType, counts: np.ndarray, values: Sequence[Any]) -> pa.Array:
    """Lists of structs, by the length of each list and the values of all lists, one sequence per field."""
    fields = [kind.value_type.field(index) for index in range(kind.value_type.num_fields)]
    arrays = [pa.array(each).cast(field.type) for each, field in zip(values, fields, strict=True)]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=fields), type=kind)
