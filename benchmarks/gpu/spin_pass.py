"""SPIN's pass over documents: blocks, pooled neurons, heads, early exits; by the product's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu.documents import TOPICS, Documents
from spin.activations.engines.encoder import SegmentOutput, split_segments
from spin.activations.engines.engine import Engine, open_engine
from spin.activations.extract import read_activations, single_segment
from spin.arrays import Floats
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.fitted.decision import Decision
from spin.fitted.early_exit import confidence, should_exit
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.heads.linear_head import LinearHead
from spin.integrate.fit_linear import fit_linear
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.process_group import ProcessGroup
from spin.sites import FeatureColumn

SELECTED = 0.02
"""share of the neurons of every site that are read"""
LABEL_SPACE = LabelSpace(tuple(f"topic {topic}" for topic in range(TOPICS)))
DECISION = Decision(LABEL_SPACE, np.full(TOPICS, 1 / TOPICS), abstain=0.0)
_STRENGTH = 1.0
Neurons = Mapping[FeatureColumn, NDArray[np.int64]]


def list_columns(backbone: Backbone) -> list[FeatureColumn]:
    """All sites of a backbone under the poolings that the product takes by default."""
    return [FeatureColumn(site, pooling) for site in backbone.sites for pooling in DEFAULT_POOLINGS[backbone.causal]]


def choose_neurons(backbone: Backbone, random: np.random.Generator) -> Neurons:
    """Random neurons of every column, ascending: a share `SELECTED` of all."""
    widths = {column: backbone.width(column.site) for column in list_columns(backbone)}
    return {
        column: np.sort(random.choice(width, max(1, round(SELECTED * width)), replace=False))
        for column, width in widths.items()
    }


@dataclass(frozen=True)
class TopicHead:
    """A head that names the topics of documents by the first of their features."""

    standardizer: Standardizer
    head: LinearHead

    @classmethod
    def fit(cls, features: Floats, topics: NDArray[np.int64], device: str) -> TopicHead:
        """The head that features (n, p) and topics (n,) give on a device."""
        standardizer = Standardizer.fit(features)
        [head] = fit_linear(topic_design(standardizer.transform(features), topics, device), [_STRENGTH])
        return cls(standardizer, head)

    def logits(self, features: Floats) -> Floats:
        """Logits (n, K) of features (n, p or more)."""
        return self.head.logits(self.standardizer.transform(features[:, : len(self.standardizer.mean)]))


def topic_design(standardized: Floats, topics: NDArray[np.int64], device: str) -> Design:
    """The problem of a head on standardised features (n, p)."""
    n = len(standardized)
    return Design(
        FeatureRows(standardized),
        LABEL_SPACE.indicator(topics),
        np.full((n, 1), 1 / n, np.float32),
        exclusive=True,
        group=ProcessGroup(),
        device=device,
    )


@dataclass(frozen=True)
class TopicHeads:
    """The heads of a classifier with an early exit."""

    full: TopicHead
    """on all neurons"""
    early: TopicHead
    """on those of the blocks before the exit"""
    threshold: float
    """confidence of `early` that half of some other documents reach"""


class CountingEngine:
    """An engine that counts its batches."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.backbone, self.segments = engine, engine.backbone, engine.segments
        self.streams = engine.streams
        self.batches = self.padded_tokens = 0

    def run(self, index: int, ids: Tensor, mask: Tensor, hidden: Any = None) -> SegmentOutput:
        self.batches += 1
        self.padded_tokens += ids.numel()
        return self.engine.run(index, ids, mask, hidden)


class SpinPass:
    """Classifies documents by the selected neurons of a backbone, with or without an exit after a third of it."""

    def __init__(self, backbone: Backbone, neurons: Neurons, exit_depth: int) -> None:
        self.backbone, self.neurons, self.exit_depth = backbone, neurons, exit_depth
        self.full = open_engine(backbone, split_segments(neurons, []))
        self.divided = open_engine(backbone, split_segments(neurons, [exit_depth]))

    def features(self, texts: Sequence[str]) -> Floats:
        """The values (n, p) of all selected neurons."""
        return read_activations(self.full, texts).values

    def fit_heads(self, documents: Documents) -> TopicHeads:
        """The heads that one half of documents of known topics gives, and the threshold that the other half does."""
        values, device, half = self.features(documents.texts), str(self.backbone.device), len(documents.texts) // 2
        before_exit = sum(len(n) for column, n in self.neurons.items() if column.site.layer <= self.exit_depth)
        full, early = (
            TopicHead.fit(values[:half, :width], documents.topics[:half], device)
            for width in (values.shape[1], before_exit)
        )
        probabilities = LABEL_SPACE.probabilities(early.logits(values[half:]))
        return TopicHeads(full, early, float(np.median(confidence(DECISION, probabilities))))

    def label(self, texts: Sequence[str], heads: TopicHeads) -> NDArray[np.int64]:
        """(n,) the topics of documents, all of which go through all blocks."""
        return heads.full.logits(self.features(texts)).argmax(1)

    def label_with_exits(self, texts: Sequence[str], heads: TopicHeads) -> tuple[NDArray[np.int64], float]:
        """(n,) the topics of documents, of which confident ones exit early, and the share that does."""

        def keep_mask(_index: int, _rows: NDArray[np.int64], values: Floats) -> NDArray[np.bool_]:
            return ~should_exit(DECISION, heads.threshold, heads.early.logits(values))

        features = read_activations(self.divided, texts, keep_mask=keep_mask)
        assert features.depth is not None
        values, exited = features.values, np.equal(features.depth, self.exit_depth)
        logits = np.empty((len(texts), TOPICS), np.float32)
        logits[exited], logits[~exited] = heads.early.logits(values[exited]), heads.full.logits(values[~exited])
        return logits.argmax(1), float(exited.mean())

    def extract(self, texts: Sequence[str]) -> None:
        """Read all neurons of all sites, as training does."""
        columns = list_columns(self.backbone)
        read_activations(
            open_engine(self.backbone, [single_segment(columns)]), texts, types=dict.fromkeys(columns, np.float16)
        )

    def count_batches(self, texts: Sequence[str]) -> tuple[int, int]:
        """The number of batches of a pass, and of their tokens with padding."""
        counting = CountingEngine(self.full)
        read_activations(counting, texts)
        return counting.batches, counting.padded_tokens
