"""The precision in which a corpus is read: in int8 by scales that are measured here, or taken over from a version."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.data.files.shards import Piece
from pipelines.data.labelled_corpus import LabelledCorpus
from pipelines.data.spool import read_part
from pipelines.registry.versions import Registry
from pipelines.storage.input_opener import InputOpener
from spin.activations.engines.int8_rounding import CALIBRATION_TEXTS, measure_scales
from spin.arrays import Rows
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.model import Backbone
from spin.classifier import load_scales
from spin.errors import UserError
from spin.labels.label_space import LabelSpace, class_names
from spin.labels.splits import rows_in_split
from spin.precision_trial import LabelledTexts, PrecisionTrial, settle_int8
from spin.settings import Settings

_PARTS_READ = 16
"""parts of the spool, from the first to the last, of which texts are read"""


@dataclass(frozen=True)
class LearnedTexts:
    """The texts of a corpus that train or validate, in the parts of its spool."""

    labelled: LabelledCorpus
    splits: Sequence[str]
    """of all documents"""
    pieces: Sequence[Piece]
    """all parts of the spool"""

    @property
    def rows(self) -> Rows:
        """Their numbers in the corpus, ascending."""
        return rows_in_split(self.splits, "train", "valid")

    def read(self, count: int) -> tuple[list[str], Rows]:
        """About `count` of the texts, of few parts from the first to the last, and their numbers in the corpus."""
        borders = np.cumsum([0, *(piece.documents for piece in self.pieces)])
        of_pieces = np.split(self.rows, np.searchsorted(self.rows, borders[1:-1]))
        parts = zip(self.pieces, borders[:-1], of_pieces, strict=True)
        useful = [(piece, first, own) for piece, first, own in parts if len(own)]
        useful = useful[:: -(-len(useful) // _PARTS_READ)]
        texts: list[str] = []
        drawn: list[Rows] = []
        for piece, first, own in useful:
            some = own[:: -(-len(own) * len(useful) // count)]
            texts += read_part(piece, InputOpener(), ["text"])["text"].take(pa.array(some - first)).to_pylist()
            drawn.append(some)
        return texts, np.concatenate(drawn)

    def read_labelled(self, count: int) -> LabelledTexts:
        """About `count` of the texts with their targets and groups."""
        texts, rows = self.read(count)
        labels = [self.labelled.labels[row] for row in rows]
        names = tuple(sorted({name for label in labels for name in class_names(label)}))
        label_space = LabelSpace(names, multilabel=not isinstance(labels[0], str))
        groups = np.asarray(self.labelled.groups, np.uint64)[rows]
        return LabelledTexts(texts, label_space.indicator(label_space.index(labels)), label_space.multilabel, groups)


def settle_precision(
    settings: Settings, backbone: Backbone, learned: LearnedTexts
) -> tuple[Int8Scales | None, PrecisionTrial | None]:
    """The scales by which the corpus is read in int8, None for another precision, and the trial if there was one.

    `backbone` is as the settings load it. Raises UserError as `load_scales` does.
    """

    def measure() -> Int8Scales:
        source = settings.backbone.scales
        if source is not None:
            return _load_version_scales(settings, source, backbone.digest)
        return measure_scales(backbone, learned.read(CALIBRATION_TEXTS)[0])

    return settle_int8(settings.backbone, backbone, len(learned.rows), measure, learned.read_labelled)


def _load_version_scales(settings: Settings, source: str, digest: str) -> Int8Scales:
    """The scales of `models:/NAME/VERSION` or of the classifier in a folder. Raises UserError as `load_scales` does."""
    if not source.startswith("models:/"):
        return load_scales(source, digest)
    name, _, number = source.removeprefix("models:/").rpartition("/")
    if not number.isdecimal():
        raise UserError(f"backbone.scales: found {source}; expected models:/NAME/VERSION, since an alias may move")
    registry = Registry(settings, name)
    with tempfile.TemporaryDirectory() as folder:
        registry.download(registry.resolve(source), Path(folder))
        return load_scales(folder, digest)
