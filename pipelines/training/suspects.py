"""The documents whose label all others contradict: `suspects.parquet`, to be looked at and labelled again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.data.corpus import Corpus
from pipelines.data.training_labels import Labels
from spin.arrays import Rows
from spin.labels.label_errors import LabelCheck
from spin.labels.training_data import TrainingData
from spin.sparsify.ridge import LeftOutPredictions

SUSPECTS = "suspects.parquet"


def check_labels(left_out: LeftOutPredictions, labels: Labels, texts: Corpus | None = None) -> pa.Table:
    """The suspect documents among those that are predicted, the clearest first: id, label, prediction, margin.

    Each document is predicted by the ridge regression on all neurons of all other documents. Neurons that were selected
    would not do: the label of the document has taken part in their selection, and they repeat it. `margin` is the
    probability of the predicted class minus that of the given one. If `texts` is the corpus that they are in, their
    texts are a further column.
    """
    rows, label_space = left_out.rows, labels.label_space
    y = labels.y[rows]
    check = LabelCheck.of(np.clip(left_out.values, 0, 1), y, label_space)
    order = np.flatnonzero(check.suspect)
    order = order[np.argsort(-check.margin[order], kind="stable")]
    names = pa.list_(pa.string()) if label_space.multilabel else pa.string()
    table = pa.table(
        {
            "id": pa.array([labels.ids[rows[row]] for row in order], pa.string()),
            "label": pa.array(label_space.names(y[order]), names),
            "prediction": pa.array(label_space.names(check.predicted[order]), names),
            "margin": pa.array(check.margin[order], pa.float32()),
        }
    )
    return table if texts is None else table.append_column("text", _read_texts(texts, rows[order]))


def note_unchecked(left_out: LeftOutPredictions, data: TrainingData) -> list[str]:
    """A note if not all labels were checked, else nothing.

    Those outside the sample that makes the choices are not, nor are those of a group others of which were learnt from.
    """
    checked, labelled = len(left_out.rows), len(data.all_rows)
    if checked == labelled:
        return []
    of_sample = "" if data.not_sampled is None else ", of the sample that makes the choices (search.documents)"
    return [f"labels of {checked:,} of {labelled:,} documents to train and validate were checked{of_sample}"]


def _read_texts(corpus: Corpus, rows: Rows) -> pa.Array:
    """The texts of rows in any order, each of which occurs once."""
    ascending = np.sort(rows)
    return pa.array(corpus.read_texts(ascending), pa.large_string()).take(np.searchsorted(ascending, rows))
