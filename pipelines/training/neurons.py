"""The selected neurons of a classifier: the class that each raises and the documents that activate it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from pipelines.data.corpus import Corpus
from pipelines.data.feature_store import FeatureShards
from pipelines.data.files.input_files import list_files
from pipelines.data.files.reader import ID_AND_TEXT
from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.data.intake import find_documents, read_files
from pipelines.data.training_labels import Labels
from pipelines.registry.versions import Registry
from pipelines.storage.records import from_json, to_json
from spin.arrays import Floats, Rows
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.heads.selection import Selection
from spin.labels.label_space import Label
from spin.labels.standardizer import Standardizer
from spin.pages.explanation_page import Driver, Drivers
from spin.settings import Choice, Settings
from spin.sites import FeatureColumn

NEURONS = "neurons.json"


@dataclass(frozen=True)
class NeuronRole:
    """The part that a neuron plays in the head of one classifier."""

    class_name: Annotated[str, Field(alias="class")]
    """class whose logit the neuron raises most, `class` in JSON"""
    slope: float
    """change of that class's logit per standard deviation of the neuron, at the training mean"""
    importance: float
    """share of the importance of all neurons of the model"""


@dataclass(frozen=True)
class TopDocument:
    """A training document that activates a neuron strongly."""

    id: str
    label: Label
    value: float
    """activation in standard deviations above the training mean"""
    text: str | None = None
    """only with `train.keep_texts`"""


@dataclass(frozen=True)
class NeuronRow:
    """A neuron that at least one of the classifiers reads."""

    column: str
    """its feature column, such as `ffn.05.mean`"""
    neuron: int
    """its index in the site"""
    heads: Mapping[Choice, NeuronRole]
    """by the choices that read it"""
    top: tuple[TopDocument, ...]
    """training documents on which its activation is highest, falling"""


@dataclass(frozen=True)
class ChosenNeuron:
    """A neuron that the classifier in use reads."""

    row: NeuronRow
    head: NeuronRole
    """of the classifier in use"""

    @property
    def influence(self) -> float:
        """Importance times the size of the slope in the head."""
        return self.head.importance * abs(self.head.slope)

    def to_json(self) -> dict[str, object]:
        """The entry of `neurons.json` with `class`, `slope` and `importance` of the classifier in use."""
        entry: dict[str, object] = to_json(self.row) | to_json(self.head)
        return entry


def neurons_to_json(rows: Sequence[NeuronRow]) -> bytes:
    """The content of `neurons.json`."""
    return json.dumps(to_json(rows), indent=1).encode()


def neurons_from_json(content: bytes) -> list[NeuronRow]:
    """The rows in the content of `neurons.json`. Raises ValueError for another content."""
    return [from_json(NeuronRow, entry) for entry in json.loads(content)]


def without_named_documents(content: bytes, forgotten: ForgottenIds) -> bytes | None:
    """The content of `neurons.json` without forgotten documents; None if it names none. Raises UserError if damaged."""
    try:
        rows = neurons_from_json(content)
    except (ValueError, TypeError) as error:
        raise UserError(f"{NEURONS} is damaged or of another version ({error!r}); delete the version") from None
    named = [document.id for row in rows for document in row.top]
    gone = {named[at] for at in forgotten.find(named)}
    if not gone:
        return None
    return neurons_to_json([replace(row, top=tuple(each for each in row.top if each.id not in gone)) for row in rows])


def describe_neurons(
    spin: TrainedClassifier,
    features: FeatureShards,
    labels: Labels,
    count: int = 5,
    *,
    texts: Corpus | None = None,
) -> list[NeuronRow]:
    """A row for each neuron that any of the classifiers reads, in order of feature column and neuron.

    `count` is the number of training documents per neuron. Their texts are stored beside the ids if `texts` is the
    corpus that they are in. The features of one shard are in memory at a time.
    """
    heads: dict[tuple[FeatureColumn, int], dict[Choice, NeuronRole]] = {}
    for choice, fitted in spin.training_result.choices.items():
        slopes = fitted.head.slopes(np.zeros(len(fitted.selection), np.float32))
        for i, (column, neuron, share) in enumerate(fitted.selection.rows(), fitted.selection.word_logits):
            k = int(slopes[:, i].argmax())
            heads.setdefault((column, neuron), {})[choice] = NeuronRole(
                spin.classes[k], _round(slopes[k, i]), _round(share)
            )
    selection = Selection.merge(fitted.selection for fitted in spin.training_result.choices.values())
    top = _find_top_documents(spin, selection, features, labels, count, texts)
    return [
        NeuronRow(str(column), neuron, heads[column, neuron], tuple(documents))
        for (column, neuron, _), documents in zip(selection.rows(), top, strict=True)
    ]


def _find_top_documents(
    spin: TrainedClassifier,
    selection: Selection,
    features: FeatureShards,
    labels: Labels,
    count: int,
    texts: Corpus | None,
) -> list[list[TopDocument]]:
    """For each neuron of a selection the `count` training documents that activate it most; of equal ones the first."""
    if not selection.neurons:
        return []
    scalers = {
        (column, neuron): (fitted.standardizer.mean[i], fitted.standardizer.scale[i])
        for fitted in spin.training_result.choices.values()
        for i, (column, neuron, _) in enumerate(fitted.selection.rows(), fitted.selection.word_logits)
    }
    standardizer = Standardizer(*np.array([scalers[column, n] for column, n, _ in selection.rows()], np.float32).T)
    train, _ = labels.part("train")
    values = np.full((count, len(selection)), -np.inf, np.float32)
    rows = np.zeros((count, len(selection)), np.int64)
    done = 0
    for block in features.selection_blocks(selection, train):
        _keep_highest(values, rows, standardizer.transform(block), train[done : done + len(block)])
        done += len(block)
    used = np.unique(rows)
    names = dict(zip(used.tolist(), labels.label_space.names(labels.y[used]), strict=True))
    kept: dict[int, str] = {} if texts is None else dict(zip(used.tolist(), texts.read_texts(used), strict=True))
    return [
        [
            TopDocument(labels.ids[row], names[row], _round(v), kept.get(row))
            for v, row in zip(*pair, strict=True)
            if np.isfinite(v)
        ]
        for pair in zip(values.T.tolist(), rows.T.tolist(), strict=True)
    ]


def _keep_highest(values: Floats, rows: Rows, block: Floats, block_rows: Rows) -> None:
    """Merge a block (m, p) of further rows into the highest values (count, p) so far, falling, and their rows."""
    better = np.flatnonzero((block > values[-1]).any(0))
    pool = np.concatenate([values[:, better], block[:, better]])
    of_pool = np.concatenate([rows[:, better], np.broadcast_to(block_rows[:, None], (len(block), len(better)))])
    order = np.argsort(-pool, axis=0, kind="stable")[: len(values)]
    values[:, better] = np.take_along_axis(pool, order, axis=0)
    rows[:, better] = np.take_along_axis(of_pool, order, axis=0)


def load_neurons(registry: Registry, number: str, choose: Choice) -> list[ChosenNeuron]:
    """The neurons that one choice of a version reads, the most influential first.

    Raises UserError for a version without descriptions of neurons.
    """
    with tempfile.TemporaryDirectory() as folder:
        registry.download(number, Path(folder))
        try:
            rows = neurons_from_json((Path(folder) / NEURONS).read_bytes())
        except FileNotFoundError:
            raise UserError(
                f"version {number} of {registry.name} holds no {NEURONS}; `spin run` trains and registers one that does"
            ) from None
    chosen = [ChosenNeuron(row, row.heads[choose]) for row in rows if choose in row.heads]
    return sorted(chosen, key=lambda neuron: -neuron.influence)


def read_drivers(rows: Collection[NeuronRow], settings: Settings) -> Drivers:
    """The documents that activate the neurons of these rows most, with their texts.

    Texts that a row holds are taken from there, the others from the corpus at `data.train`, which is read up to the
    last text that is needed; a document that no longer exists is left out. Raises UserError for a corpus that is needed
    and cannot be read.
    """
    documents = [document for row in rows for document in row.top]
    texts = {document.id: document.text for document in documents if document.text is not None}
    missing = {document.id for document in documents} - texts.keys()
    if missing:
        corpus = read_files(list_files(settings.data.train), settings.data, ID_AND_TEXT)
        texts |= {id: text for id, text, _ in find_documents(corpus, missing)}
    return {
        (FeatureColumn.parse(row.column), row.neuron): [
            Driver(document.id, _name(document.label), texts[document.id], document.value)
            for document in row.top
            if document.id in texts
        ]
        for row in rows
    }


def _name(label: Label) -> str:
    """A label for a page."""
    return label if isinstance(label, str) else ", ".join(label) or "no class"


def _round(value: float) -> float:
    """A number with four significant digits."""
    return float(f"{value:.4g}")
