"""One forward pass over texts, for one classifier or for several that read the same backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment, split_segments
from spin.activations.engines.engine import Engine, open_engine
from spin.activations.extract import Progress, count_tokens, read_activations
from spin.activations.features import Features
from spin.arrays import Floats
from spin.backbone.model import Backbone
from spin.heads.selection import Selection
from spin.passes.pass_member import PassMember
from spin.passes.reason_finder import ReasonSink
from spin.sites import BY_WORDS
from spin.words.word_regression import predict_with_each


class ForwardPass:
    """Reads texts for its members on the backbone that they share. A member that gives reasons is the only one."""

    def __init__(self, members: Sequence[PassMember], backbone: Backbone) -> None:
        self.members, self.backbone = members, backbone
        readers = [member for member in members if member.fitted.selection.neurons]
        """the members that read neurons, and not words alone"""
        neurons = Selection.merge(member.fitted.selection for member in readers).neurons
        self.segments = split_segments(neurons, _exit_depths(readers))
        for member in readers:
            if member.reasons:
                self.segments = member.add_directions(self.segments)
        self.engine: Engine | None = open_engine(backbone, self.segments) if readers else None

    def features(
        self, texts: Sequence[str], progress: Progress = lambda documents: None, *, read_all: bool = False
    ) -> list[Features]:
        """The features of each member. With `read_all` the backbone reads also the texts that words decide."""
        shares = [_Share(member, self.segments, texts, self.backbone) for member in self.members]
        readers = [share for share in shares if share.columns] or shares
        to_count = np.zeros(len(texts), np.bool_)
        """the texts that a member counts, which reads words alone, and that the backbone does not read"""
        unread: list[int] = []
        """numbers of texts that the backbone does not read, of portions that were not yet reported"""

        def choose_rows(rows: list[int]) -> list[int]:
            part = [texts[row] for row in rows]
            for share, logits in zip(shares, _word_logits(self.members, part), strict=True):
                if logits is not None:
                    share.take_words(np.array(rows), logits, read_all)
            read = np.logical_or.reduce([share.undecided[rows] for share in readers])
            to_count[rows] = np.logical_or.reduce([share.undecided[rows] for share in shares]) & ~read
            unread.append(len(rows) if self.engine is None else len(rows) - int(read.sum()))
            return np.array(rows)[read].tolist()

        def store(index: int, rows: NDArray[np.int64], values: Floats) -> None:
            for share in readers:
                share.store(index, rows, values)

        def keep_mask(_index: int, rows: NDArray[np.int64], _values: Floats) -> NDArray[np.bool_]:
            return np.logical_or.reduce([share.undecided[rows] for share in readers])

        def advance(documents: int) -> None:
            progress(documents + sum(unread.pop() for _ in range(len(unread))))

        if self.engine is None:
            counts = count_tokens(self.backbone, texts, choose_rows)
        else:
            counts = read_activations(
                self.engine,
                texts,
                keep_mask=keep_mask if len(self.segments) > 1 else None,
                store=store,
                choose_rows=choose_rows,
                word_sink=shares[0].sink,
                progress=advance,
            )
        if to_count.any():
            more = count_tokens(self.backbone, texts, lambda rows: [row for row in rows if to_count[row]])
            counts = counts.add_counts(more)
        advance(0)
        return [share.features(counts) for share in shares]


class _Share:
    """One member's share of a pass: its features, filled batch by batch, and which texts it has not decided."""

    def __init__(
        self, member: PassMember, segments: Sequence[BlockSegment], texts: Sequence[str], backbone: Backbone
    ) -> None:
        self.member, self.segments, count = member, segments, len(texts)
        neurons = member.fitted.selection.neurons
        # row by row, as the engine returns them: the last bits of a matrix product depend on the layout
        self.columns = {c: np.full((count, len(n)), np.nan, np.float32) for c, n in neurons.items()}
        self.positions = [
            {
                column: part.start + np.searchsorted(read, neurons[column])
                for (column, part), read in zip(segment.slices(backbone).items(), segment.neurons.values(), strict=True)
                if read is not None and column in neurons
            }
            for segment in segments
        ]
        """the positions of its neurons among the values of each segment, by column"""
        self.depth = np.full(count, member.fitted.selection.depth, np.int32)
        self.undecided = np.ones(count, np.bool_)
        self.words: Floats | None = None
        """(n, K) the words' logits"""
        if member.words is not None:
            self.words = np.empty((count, len(member.words.intercept)), np.float32)
        self.sink = ReasonSink(member, backbone, texts, self.words) if member.reasons else None

    def take_words(self, rows: NDArray[np.int64], logits: Floats, read_all: bool) -> None:
        """Take the words' logits (m, K) of the texts `rows`, and decide what they can unless all are to be read."""
        assert self.words is not None
        self.words[rows] = logits
        decided = rows[:0] if read_all else rows[self.member.decided_by_words(logits)]
        self.depth[decided], self.undecided[decided] = BY_WORDS, False
        if self.sink is not None:
            self.sink.store_unread(decided, by_words=True)

    def store(self, index: int, rows: NDArray[np.int64], values: Floats) -> None:
        """Store its part of the values (B, p) of segment `index` for the texts `rows` (B,), and decide what it can."""
        segment, fitted = self.segments[index], self.member.fitted
        for column, positions in self.positions[index].items():
            self.columns[column][rows] = values.take(positions, axis=1)
        for number, exit in enumerate(fitted.block_exits):
            if segment.start < exit.depth <= segment.stop:
                self._decide(number, exit.depth, rows[self.undecided[rows]])
        if fitted.selection.depth <= segment.stop:
            self.undecided[rows] = False

    def _decide(self, number: int, depth: int, rows: NDArray[np.int64]) -> None:
        """Let the texts `rows` that are confident stop at an exit after `depth` blocks, given by its index."""
        if not len(rows):
            return
        values = [values[rows] for column, values in self.columns.items() if column.site.layer <= depth]
        exiting = rows[self.member.decided_after(self.words, number, rows, np.concatenate(values, axis=1))]
        self.depth[exiting], self.undecided[exiting] = depth, False

    def features(self, counts: Features) -> Features:
        """All that was stored, with the counts of tokens; NaN where a text exited before, no tokens if by words."""
        fitted, decided = self.member.fitted, self.depth == BY_WORDS
        if self.sink is not None and not self.columns:
            self.sink.store_unread(np.flatnonzero(~decided), by_words=False)
        for column, values in self.columns.items():
            values[self.depth < column.site.layer] = np.nan
        return replace(
            counts.count_only(~decided),
            columns=self.columns,
            depth=self.depth if fitted.exits else None,
            words=self.words,
            head_reads_words=fitted.selection.word_logits > 0,
            reasons=None if self.sink is None else self.sink.reasons(),
        )


def _exit_depths(readers: Sequence[PassMember]) -> list[int]:
    """The depths, ascending, at which all members may have decided a text, except for the deepest.

    Before the first of them no text can leave the pass, whatever exits some members have there, and so the pass is not
    divided. Nor is it after the embeddings, where only a member that reads nothing else is at its full depth.
    """
    depths = [[*(exit.depth for exit in each.fitted.exits), each.fitted.selection.depth] for each in readers]
    first, deepest = max(map(min, depths), default=0), max(map(max, depths), default=0)
    return sorted({depth for of_one in depths for depth in of_one if max(first, 1) <= depth < deepest})


def _word_logits(members: Sequence[PassMember], texts: Sequence[str]) -> list[Floats | None]:
    """The (n, K) logits of each member's word regression; None where it has none."""
    regressions = [member.words for member in members]
    logits = iter(predict_with_each([each for each in regressions if each is not None], texts))
    return [None if each is None else next(logits) for each in regressions]
