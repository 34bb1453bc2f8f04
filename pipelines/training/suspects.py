"""The documents whose label the selected neurons contradict: `suspects.parquet`, to be looked at and labelled again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipelines.data.corpus import Corpus
from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from spin.arrays import Floats, Rows
from spin.heads.fitted import FittedClassifier
from spin.labels.label_errors import LabelCheck
from spin.labels.metrics import score
from spin.labels.sampling import one_per_group
from spin.labels.splits import rows_in_split
from spin.sparsify.ridge import PENALTIES
from spin.sparsify.solvers.ridge_regression import predict_left_out

SUSPECTS = "suspects.parquet"
MOST_VALUES = 100_000_000
"""features of all checked documents together, at most; they are in memory at once, in float32 and about three times"""


def check_labels(
    features: FeatureShards, fitted: FittedClassifier, labels: Labels, seed: int, texts: Corpus | None = None
) -> pa.Table:
    """The suspect documents among those that train and validate, the clearest first: id, label, prediction, margin.

    Each document is predicted by a ridge regression on the selected neurons of all other documents. `margin` is the
    probability of the predicted class minus that of the given one. One document of each group is checked, as
    near-identical ones would vouch for each other, and where the features of all exceed `MOST_VALUES`, a random part.
    If `texts` is the corpus that they are in, their texts are a further column.
    """
    rows = rows_in_split(labels.splits, "train", "valid")
    fitted = _without_words(fitted)
    if labels.groups is not None:
        rows = one_per_group(rows, labels.groups[rows])
    most = MOST_VALUES // max(1, len(fitted.selection))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    y, label_space = labels.y[rows], labels.label_space
    if not fitted.selection.neurons:  # nothing that has not seen the labels
        rows, y = rows[:0], y[:0]
    probabilities = _predict(features, fitted, labels, rows) if len(rows) else np.zeros((0, len(label_space)))
    check = LabelCheck.of(probabilities, y, label_space)
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


def _read_texts(corpus: Corpus, rows: Rows) -> pa.Array:
    """The texts of rows in any order, each of which occurs once."""
    ascending = np.sort(rows)
    return pa.array(corpus.read_texts(ascending), pa.large_string()).take(np.searchsorted(ascending, rows))


def _without_words(fitted: FittedClassifier) -> FittedClassifier:
    """The classifier with its neurons alone: the word regression knows the labels of the rows that it was fitted on."""
    selection = fitted.selection.without_words()
    return replace(
        fitted, selection=selection, standardizer=fitted.standardizer.keep(slice(fitted.selection.words, None))
    )


def _predict(features: FeatureShards, fitted: FittedClassifier, labels: Labels, rows: Rows) -> Floats:
    """(n, K) the probability of each class by the regressions without the row, at the penalty that scores best."""
    X = fitted.standardizer.transform(features.read_selection(fitted.selection, rows))
    y, label_space = labels.y[rows], labels.label_space
    border = 0.5 if label_space.multilabel else 0.0
    tried = predict_left_out(X, label_space.indicator(y), PENALTIES)
    best = max(tried, key=lambda left_out: score("macro_f1", y, label_space.predict(left_out - border)))
    return np.clip(best, 0, 1)
