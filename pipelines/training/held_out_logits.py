"""The logits of the test documents, which a version carries: nights estimate and promise their quality by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from spin.arrays import Floats, Rows
from spin.classifier import TrainedClassifier
from spin.fitted.abstention import ErrorPromise, choose_band, describe_failure
from spin.fitted.fitted_classifier import FittedClassifier
from spin.fitted.held_out import HeldOutLogits
from spin.labels.sampling import one_per_group
from spin.labels.splits import certifies
from spin.settings import Choice, Settings

_MOST_VALUES = 2_000_000
"""logits of a classifier that are kept, which are 8 MB, unless these are of fewer than `_LEAST_DOCUMENTS`"""
_LEAST_DOCUMENTS = 1_000


def collect_test_logits(
    spin: TrainedClassifier, features: FeatureShards, labels: Labels, words: Floats | None
) -> dict[Choice, HeldOutLogits]:
    """The logits of the test documents that may prove something, by each of the three classifiers.

    `words` (m, K) are the words' logits of all test documents, if there is a word regression. Of very many documents
    a part is kept.
    """
    rows, y = labels.part("test")
    kept = choose_proving(labels, rows)
    stops = max(len(fitted.exits) + 1 for fitted in spin.training_result.choices.values())
    most = max(_LEAST_DOCUMENTS, _MOST_VALUES // (stops * len(spin.classes)))
    kept = kept[:: max(1, -(-len(kept) // most))]
    rows, y, words = rows[kept], y[kept], None if words is None else words[kept]
    return {
        choice: HeldOutLogits(_logits_at_stops(fitted, features, rows, words, len(spin.classes)), y)
        for choice, fitted in spin.training_result.choices.items()
    }


def choose_proving(labels: Labels, rows: Rows) -> Rows:
    """The positions of the test documents among `rows` that may prove something, ascending.

    The half by which the gate compares versions is left out. Of near-identical documents, or with `data.group` of
    those of a group, one is kept, since what is proven by them takes them to be independent. It is any of them: the
    first document of a thread may be easier than the others.
    """
    groups = labels.groups[rows]
    # guarded by test_the_gate_reads_no_document_that_proves_a_promise; broken by:
    #   kept = np.arange(len(rows))
    kept = np.flatnonzero([certifies(group) for group in groups.tolist()])
    kept = np.random.default_rng(0).permutation(kept)
    return one_per_group(kept, groups[kept])


def write_test_logits(collected: Mapping[Choice, HeldOutLogits]) -> bytes:
    """The logits as the file `HELD_OUT` of an artifact."""
    tensors: dict[str, NDArray[Any]] = {}
    for choice, held_out in collected.items():
        tensors |= held_out.to_tensors(choice)
    return bytes(save_tensors(tensors))


def promise_error(settings: Settings, spin: TrainedClassifier, held_out: HeldOutLogits) -> ErrorPromise | None:
    """The certificate of `decision.max_error` by test documents, for the classifier in use; None if not set."""
    max_error = settings.decision.max_error
    if max_error is None:
        return None
    exits = spin.fitted.exits if settings.classify.cascade else ()
    return ErrorPromise(max_error, len(held_out), choose_band(held_out, exits, spin.decision_rule, max_error))


def describe_promise(promise: ErrorPromise | None) -> tuple[str, ...]:
    """A note on what a promise costs, or that the error cannot be promised; none without a promise."""
    if promise is None:
        return ()
    band = promise.band
    if band is None:
        return (describe_failure(promise.documents, promise.max_error),)
    return (
        f"decision.max_error {promise.max_error:g}: {100 * band.coverage:.1f} % of the test documents get a label, of "
        f"which {100 * band.error:.1f} % are wrong; the others are within an abstention band of {band.abstain:.3f}",
    )


def _logits_at_stops(
    fitted: FittedClassifier, features: FeatureShards, rows: Rows, words: Floats | None, classes: int
) -> Floats:
    """(E + 1, m, K) at every exit and at full depth. The documents of one shard are in memory at a time."""
    stops = range(len(fitted.exits) + 1)
    blocks, done = [np.empty((len(stops), 0, classes), np.float32)], 0
    for values in features.selection_blocks(fitted.selection, rows, words):
        of_words = None if words is None else words[done : done + len(values)]
        done += len(values)
        blocks.append(np.stack([fitted.at(at).logits(fitted.read_at(at, values, of_words)) for at in stops]))
    return np.concatenate(blocks, axis=1)
