"""The causes of a night's drift: the documents, and their words, that drive the neurons that moved most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipelines.storage.object_store import Store
from spin.heads.selection import Selection
from spin.monitor.document_sample import DocumentSample
from spin.monitor.drift import Drift, NeuronShift
from spin.monitor.drift_statistics import feature_names
from spin.monitor.drift_words import frequent_words
from spin.settings import ClassifySettings

_NEURONS = 5
"""most neurons whose causes are named"""
_WORDS = 8
"""most words named per neuron"""
_DRIVING_SHARE = 0.1
"""share of the sampled documents, the farthest ones, whose words are compared with those of the others"""
_READ_AT_ONCE = 64
"""samples of shards in memory at a time"""


def name_causes(
    drifts: Sequence[Drift], out: Store, samples: Sequence[str], selection: Selection, named: ClassifySettings
) -> list[Drift]:
    """The drifts, in which the neurons that moved most name the documents, and the words, that drive them.

    `samples` are the keys in the output of the sampled documents, `selection` is that of the model. Only neurons that
    moved by more than chance and more than is allowed have causes.
    """
    return [_explain(drift, out, samples, feature_names(selection), named) for drift in drifts]


def _moved(drift: Drift) -> tuple[NeuronShift, ...]:
    """The neurons whose causes are named; `now` of the neurons' drift counts first those that have moved."""
    return drift.moved[: min(_NEURONS, drift.now[0])] if drift.drifted and drift.moved else ()


def _explain(
    drift: Drift, out: Store, samples: Sequence[str], names: Sequence[tuple[str, int]], named: ClassifySettings
) -> Drift:
    """The drift with causes of its neurons; `names` are those of the features, in order."""
    moved = _moved(drift)
    if not moved or not samples:
        return drift
    features = [names.index((shift.column, shift.neuron)) for shift in moved]
    sample = DocumentSample.concatenate(_read_samples(out, samples), features)
    explained = [_with_causes(shift, sample, at, named) for at, shift in enumerate(moved)]
    return replace(drift, moved=(*explained, *drift.moved[len(explained) :]))


def _with_causes(shift: NeuronShift, sample: DocumentSample, feature: int, named: ClassifySettings) -> NeuronShift:
    """The shift of a neuron with the documents that lie farthest in its direction, and the words of these."""
    ranked = sample.rank(feature, 1 if shift.shift > 0 else -1).tolist()
    documents = tuple(sample.ids[row] for row in ranked[: named.drift_documents])
    if not named.drift_words or not sample.words:
        return replace(shift, documents=documents)
    words, driving = [sample.words[row] for row in ranked], round(_DRIVING_SHARE * len(ranked))
    return replace(shift, documents=documents, words=frequent_words(words[:driving], words[driving:], _WORDS))


def _read_samples(out: Store, keys: Sequence[str]) -> Iterator[DocumentSample]:
    """The samples under some keys; those that were deleted, since the night is published, are left out."""
    for start in range(0, len(keys), _READ_AT_ONCE):
        for data in out.read_many(keys[start : start + _READ_AT_ONCE]).values():
            yield DocumentSample.from_bytes(data)
