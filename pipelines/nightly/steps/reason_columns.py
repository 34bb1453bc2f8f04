"""The columns of the predictions that name the reasons of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipelines.nightly.tables.night_tables import PREDICTIONS, table_schema
from spin.attribution.reasons import Reasons


def reason_columns(reasons: Reasons | None, classes: Sequence[str]) -> Mapping[str, pa.Array]:
    """The columns of the predictions for their reasons, empty where none were asked for."""
    if reasons is None:
        return {}
    words, neurons = reasons.words, reasons.neurons
    of_words = [pa.array(words.words, pa.string()), words.starts, words.ends, words.contributions]
    of_neurons = [pa.array(neurons.columns, pa.string()), neurons.neurons, neurons.contributions]
    return {
        "reason_label": pa.array([classes[k] for k in reasons.classes.tolist()], pa.string()),
        "reason_words": _lists("reason_words", words.counts, of_words),
        "reason_neurons": _lists("reason_neurons", neurons.counts, of_neurons),
    }


def _lists(column: str, counts: np.ndarray, values: Sequence[pa.Array | np.ndarray]) -> pa.Array:
    """Lists of structs, by the length of each list and the values of all lists, one array per field."""
    kind = table_schema(PREDICTIONS).field(column).type
    fields = [kind.value_type.field(index) for index in range(kind.value_type.num_fields)]
    arrays = [pa.array(each).cast(field.type) for each, field in zip(values, fields, strict=True)]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=fields), type=kind)
