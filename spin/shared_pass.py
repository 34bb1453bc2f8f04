"""One forward pass for several classifiers that read the same backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment, split_segments
from spin.activations.engines.engine import Engine
from spin.activations.extract import Progress, count_tokens, read_activations
from spin.activations.features import Features
from spin.activations.portions import ChooseRows
from spin.arrays import Floats
from spin.classifier import TrainedClassifier, checked_texts, open_calibrated
from spin.heads.selection import Selection
from spin.predictions import Predictions
from spin.sites import BY_WORDS, FeatureColumn
from spin.words.word_regression import predict_with_each
from spin.words_first import DecideByWords, WordsFirst, decide_none

Neurons = Mapping[FeatureColumn, NDArray[np.int64]]
_SOURCE = frozenset({"model", "revision", "trust_remote_code"})
"""settings of a backbone that say where it comes from: what it computes is in its digest"""
_OF_WINDOWS = frozenset({"window_overlap", "max_windows"})
"""settings of a backbone that count only where long texts are read in windows"""


def classify_many(classifiers: Sequence[TrainedClassifier], texts: Sequence[str]) -> list[Predictions]:
    """The predictions of several classifiers for n texts, one for each classifier, in order.

    Classifiers with the same backbone and settings of it share a forward pass, as in `SharedPass`. To classify again
    and again, keep a `SharedPass`, which opens its engines once. Raises UserError for texts that are not text, and
    NotFiniteError for all if one classifier's activations are not finite.
    """
    return SharedPass(classifiers).predict_all(texts)


class SharedPass:
    """Reads the activations that several classifiers need, in a single forward pass for all that can share one.

    Those can whose backbones have the same weights and the same settings, except for where they were loaded from. They
    then share one loaded backbone, truncated at the largest depth. A text leaves the pass when every classifier has
    decided it: by words, at one of its own exits, or at its own full depth. Full depth of the embeddings alone is the
    end of the first segment. A classifier that gives reasons shares the loaded backbone, but has a pass of its own, in
    which its head weighs the tokens. In int8 values are scaled by the `calibration` of the first classifier of a group
    that has such texts.
    """

    groups: list[list[int]]
    """the indices of the classifiers that share a pass"""

    def __init__(self, classifiers: Sequence[TrainedClassifier]) -> None:
        self.classifiers = tuple(classifiers)
        backbones: dict[tuple[str | None, str], list[int]] = {}
        for index, spin in enumerate(self.classifiers):
            backbones.setdefault(_backbone_key(spin), []).append(index)
        self._of_backbone = [[self.classifiers[index] for index in indices] for indices in backbones.values()]
        """the classifiers of each backbone"""
        self._is_prepared = False
        self.groups = []
        for indices in backbones.values():
            together = [index for index in indices if not self.classifiers[index].reasons]
            alone = [[index] for index in indices if self.classifiers[index].reasons]
            self.groups += sorted([*alone, *([together] if together else [])])
        self._passes = [_GroupPass([self.classifiers[index] for index in group]) for group in self.groups]

    def prepare(self) -> None:
        """Load the backbones and open their engines now rather than at the first text. Raises as `engine` does."""
        if self._is_prepared:
            return
        self.share_backbones()
        for group_pass in self._passes:
            group_pass.prepare()
        self._is_prepared = True

    def share_backbones(self) -> None:
        """Load each backbone for all classifiers that read it, without opening an engine for these together."""
        for classifiers in self._of_backbone:
            deepest = max(classifiers, key=lambda spin: spin.depth)
            for spin in classifiers if len(classifiers) > 1 else ():
                spin.share_backbone(deepest)

    def features(self, texts: Sequence[str], *, progress: Progress = lambda documents: None) -> list[Features]:
        """The features of each classifier, in order, with the values of `TrainedClassifier.features`.

        In torch in float32 without exits the values are the same bit for bit. Batches depend on the texts alone, and no
        block depends on the blocks above it. Otherwise they are the same up to rounding. The documents that go on after
        an exit are other ones, and in OpenVINO a value's last bits depend on what else its graph outputs. Raises
        NotFiniteError for all if one classifier's activations are not finite. `progress` takes the documents that the
        last group has read.
        """
        texts = checked_texts(texts)
        self.prepare()
        features: dict[int, Features] = {}
        for group, group_pass in zip(self.groups, self._passes, strict=True):
            is_last = group_pass is self._passes[-1]
            of_group = group_pass.features(texts, progress if is_last else lambda documents: None)
            features.update(zip(group, of_group, strict=True))
        return [features[index] for index in range(len(self.classifiers))]

    def run_backbones(self, texts: Sequence[str]) -> None:
        """Run every backbone on texts, also on those that words decide. Raises what that raises."""
        self.prepare()
        for group_pass in self._passes:
            group_pass.run_backbone(texts)

    def predict_all(self, texts: Sequence[str]) -> list[Predictions]:
        """The predictions of each classifier for n texts, in order."""
        features = self.features(texts)
        return [spin.predict_features(own) for spin, own in zip(self.classifiers, features, strict=True)]


class _GroupPass:
    """The pass of the classifiers of one group; one that is alone has its own."""

    def __init__(self, classifiers: Sequence[TrainedClassifier]) -> None:
        self.classifiers = classifiers
        self.readers = [spin for spin in classifiers if spin.fitted.selection.neurons]
        """the classifiers that read neurons, and not words alone"""
        neurons = Selection.merge(spin.fitted.selection for spin in self.readers).neurons
        self.segments = split_segments(neurons, _exit_depths(self.readers))
        self._engine: Engine | None = None

    def prepare(self) -> None:
        """Open the engine on the backbone that the classifiers share."""
        if len(self.classifiers) == 1:
            self.classifiers[0].prepare()
        elif self.readers:
            calibration = next((spin.calibration for spin in self.classifiers if spin.calibration), ())
            self._engine = open_calibrated(self.classifiers[0].backbone, self.segments, calibration)

    def features(self, texts: Sequence[str], progress: Progress) -> list[Features]:
        """The features of each classifier."""
        if len(self.classifiers) == 1:
            return [self.classifiers[0].features(texts, progress=progress)]
        shares = [_Share(spin, self.segments, texts, spin.decided_by_words) for spin in self.classifiers]
        counts = self._read(texts, shares, progress)
        return [share.features(counts) for share in shares]

    def run_backbone(self, texts: Sequence[str]) -> None:
        """Run the backbone on texts, also on those that words decide."""
        if len(self.classifiers) == 1:
            self.classifiers[0].run_backbone(texts)
            return
        shares = [_Share(spin, self.segments, texts, decide_none) for spin in self.classifiers]
        self._read(texts, shares, lambda documents: None)

    def _read(self, texts: Sequence[str], shares: Sequence[_Share], progress: Progress) -> Features:
        """Run the pass, which fills the shares; return the counts of tokens of all texts that any classifier counts."""
        to_count = np.zeros(len(texts), np.bool_)
        """the texts that a classifier counts, which reads words alone, and that the backbone does not read"""

        def choose_rows(rows: list[int]) -> list[int]:
            part = [texts[row] for row in rows]
            for share, logits in zip(shares, _word_logits(self.classifiers, part), strict=True):
                share.take_words(rows, logits)
            read = _any([share.undecided[rows] for share in shares if share.reads_neurons], len(rows))
            to_count[rows] = _any([~share.words.decided[rows] for share in shares], len(rows)) & ~read
            return np.array(rows)[read].tolist()

        backbone = self.classifiers[0].backbone
        if self._engine is not None:
            counts = _read_shares(self._engine, texts, shares, choose_rows, progress)
        else:
            counts = count_tokens(backbone, texts, choose_rows)
        if to_count.any():
            more = count_tokens(backbone, texts, lambda rows: [row for row in rows if to_count[row]])
            counts = counts.add_counts(more)
        return counts


class _Share:
    """One classifier's share of a pass: its features, filled batch by batch, and which texts it has not decided.

    `decide` returns a mask (m,) of the texts that words decide, by their logits (m, K).
    """

    def __init__(
        self, spin: TrainedClassifier, segments: Sequence[BlockSegment], texts: Sequence[str], decide: DecideByWords
    ) -> None:
        self.spin, self.segments, count = spin, segments, len(texts)
        self.words = WordsFirst(texts, spin.word_regression, decide)
        neurons = spin.fitted.selection.neurons
        self.reads_neurons = len(neurons) > 0
        # row by row, as in a pass of its own: the last bits of a matrix product depend on the layout
        self.columns = {c: np.full((count, len(n)), np.nan, np.float32) for c, n in neurons.items()}
        self.positions = [_positions(neurons, segment) for segment in segments]
        self.depth = np.full(count, spin.depth, np.int32)
        self.undecided = np.ones(count, np.bool_)

    def take_words(self, rows: list[int], logits: Floats | None) -> None:
        """Take the words' logits (m, K) of some texts, given by their indices, and decide what they can."""
        if logits is not None:
            self.words.store(rows, logits)
            self.undecided[rows] = ~self.words.decided[rows]

    def store(self, index: int, rows: NDArray[np.int64], values: Floats) -> None:
        """Store its part of the values (B, p) of segment `index` for the texts `rows` (B,), and decide what it can."""
        segment = self.segments[index]
        for column, positions in self.positions[index].items():
            self.columns[column][rows] = values.take(positions, axis=1)
        for number, exit in enumerate(self.spin.fitted.block_exits if self.spin.exits_early else ()):
            if segment.start < exit.depth <= segment.stop:
                self._decide(number, exit.depth, rows[self.undecided[rows]])
        if self.spin.depth <= segment.stop:
            self.undecided[rows] = False

    def _decide(self, number: int, depth: int, rows: NDArray[np.int64]) -> None:
        """Let the texts `rows` that are confident stop at an exit after `depth` blocks, given by its index."""
        if not len(rows):
            return
        values = [values[rows] for column, values in self.columns.items() if column.site.layer <= depth]
        exiting = rows[~self.spin.keep_mask(self.words.logits, number, rows, np.concatenate(values, axis=1))]
        self.depth[exiting], self.undecided[exiting] = depth, False

    def features(self, counts: Features) -> Features:
        """All that was stored, with the counts of tokens; NaN where a text exited before, no tokens if by words."""
        self.depth[self.words.decided] = BY_WORDS
        if self.spin.exits_early:
            for column, values in self.columns.items():
                values[self.depth < column.site.layer] = np.nan
        return replace(
            counts.count_only(~self.words.decided),
            columns=self.columns,
            depth=self.depth if self.spin.exits_early else None,
            words=self.words.logits,
            head_reads_words=self.spin.fitted.selection.words > 0,
        )


def _backbone_key(spin: TrainedClassifier) -> tuple[str | None, str]:
    """A key that is equal for classifiers that can share a pass: the weights, and all settings that change values."""
    unused = frozenset() if spin.settings.long_texts == "windows" else _OF_WINDOWS
    return spin.backbone_digest, spin.settings.model_dump_json(exclude=set(_SOURCE | unused))


def _read_shares(
    engine: Engine, texts: Sequence[str], shares: Sequence[_Share], choose_rows: ChooseRows, progress: Progress
) -> Features:
    """Fill the shares with what the engine reads of the texts that are chosen; return the counts of their tokens."""
    readers = [share for share in shares if share.reads_neurons]

    def store(index: int, rows: NDArray[np.int64], values: Floats) -> None:
        for share in readers:
            share.store(index, rows, values)

    def keep_mask(_index: int, rows: NDArray[np.int64], _values: Floats) -> NDArray[np.bool_]:
        return _any([share.undecided[rows] for share in readers], len(rows))

    may_leave = len(engine.segments) > 1
    features = read_activations(
        engine,
        texts,
        keep_mask=keep_mask if may_leave else None,
        store=store,
        choose_rows=choose_rows,
        progress=progress,
    )
    return replace(features, depth=None)


def _any(masks: Sequence[NDArray[np.bool_]], count: int) -> NDArray[np.bool_]:
    """(n,) the texts that are in any of the masks (n,)."""
    return np.logical_or.reduce(masks, axis=0) if masks else np.zeros(count, np.bool_)


def _exit_depths(readers: Sequence[TrainedClassifier]) -> list[int]:
    """The depths, ascending, at which all classifiers may have decided a text, except for the deepest.

    Before the first of them no text can leave the pass, whatever exits some classifiers have there, and so the pass is
    not divided. Nor is it after the embeddings, where only a classifier that reads nothing else is at its full depth.
    """
    depths = [[*(exit.depth for exit in spin.fitted.exits if spin.exits_early), spin.depth] for spin in readers]
    first, deepest = max(map(min, depths), default=0), max(map(max, depths), default=0)
    return sorted({depth for of_one in depths for depth in of_one if max(first, 1) <= depth < deepest})


def _positions(neurons: Neurons, segment: BlockSegment) -> dict[FeatureColumn, NDArray[np.int64]]:
    """The positions of some neurons among the values of a segment, for each column that it reads."""
    positions, offset = {}, 0
    for column, union in segment.neurons.items():
        assert union is not None
        if column in neurons:
            positions[column] = offset + np.searchsorted(union, neurons[column])
        offset += len(union)
    return positions


def _word_logits(classifiers: Sequence[TrainedClassifier], texts: Sequence[str]) -> list[Floats | None]:
    """The (n, K) logits of each classifier's word regression; None where it has none."""
    regressions = [spin.word_regression for spin in classifiers]
    logits = iter(predict_with_each([each for each in regressions if each is not None], texts))
    return [None if each is None else next(logits) for each in regressions]
