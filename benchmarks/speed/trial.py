"""The input of all contenders: a model, documents to train on, documents to time, and the peers' head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.method.contenders import STRENGTHS
from benchmarks.method.corpora import Plan
from benchmarks.method.tasks.tweets import TWEETS
from spin.arrays import Floats
from spin.backbone.hub import locate_model
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.labels.label_space import LabelSpace, Targets
from spin.settings import BackboneSettings


@dataclass
class Trial:
    """A model and its documents; the peers' head is fitted once and used in every precision."""

    plan: Plan
    folder: Path
    """of the model's files"""
    train: tuple[list[str], list[str]]
    """texts and labels"""
    texts: list[str]
    """the timed documents, none of them in `train`"""
    y: Targets
    label_space: LabelSpace
    lengths: NDArray[np.integer]
    """(n,) tokens of the timed texts, special tokens included"""
    flops: float
    """FLOPs of the whole model for all timed texts, without padding"""
    causal: bool
    threads: int
    batches: tuple[int, ...]
    """batch sizes to try, in documents"""
    sites: tuple[str, ...] = ("resid", "ffn")
    """sites that SPIN learns from"""
    head: Any = None
    """the peers' head, None until it is fitted"""

    @property
    def pooling(self) -> str:
        """Pooling of the peers' embeddings: the last token of a decoder, which attends to all others, else the mean."""
        return "last" if self.causal else "mean"

    def fit(self, embeddings: Floats) -> None:
        """Fit the linear head of the peers on float32 embeddings (n, width) of the training texts."""
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        search = GridSearchCV(regression, {"logisticregression__C": STRENGTHS}, cv=3)
        self.head = search.fit(embeddings, self.label_space.index(self.train[1]))

    def classes(self, embeddings: Floats) -> NDArray[np.integer]:
        """The classes (n,) that the head predicts for embeddings (n, width)."""
        classes: NDArray[np.integer] = self.head.predict(embeddings)
        return classes


def speed_plans(quick: bool) -> list[Plan]:
    """The corpora to time; the quick ones only show that everything runs."""
    encoder, decoder = TWEETS.plans(quick)
    sizes = [(240, 60), (90, 10)] if quick else [(4000, 4000), (800, 100)]
    return [
        replace(plan, documents=None, train=train, valid=0, test=test, max_tokens=256)
        for plan, (train, test) in zip((encoder, decoder), sizes, strict=True)
    ]


def draw_trial(plan: Plan, threads: int, batches: tuple[int, ...]) -> Trial:
    """Draw a plan's documents in proportion to their classes, and count their tokens and FLOPs."""
    from jobs.quickstart import read_tweets

    tweets = read_tweets()
    train, test = train_test_split(
        tweets, train_size=plan.train, test_size=plan.test, stratify=tweets["label"], random_state=0
    )
    backbone = load_backbone(BackboneSettings(model=plan.model, dtype="float32", max_tokens=plan.max_tokens))
    texts = test["text"].tolist()
    lengths = np.array([len(ids) for ids in backbone.tokenize(texts).ids])
    label_space = LabelSpace(tuple(sorted(set(tweets["label"]))))
    return Trial(
        plan,
        locate_model(plan.model),
        (train["text"].tolist(), train["label"].tolist()),
        texts,
        label_space.index(test["label"].tolist()),
        label_space,
        lengths,
        flops(backbone, lengths),
        backbone.causal,
        threads,
        batches,
    )


def flops(backbone: Backbone, lengths: Sequence[int] | NDArray[np.integer]) -> float:
    """FLOPs of the whole model for documents with these numbers of tokens.

    A token costs 2 FLOPs per weight of the blocks' linear maps (24 d² per block in BERT), and 4 d per block for each
    token that it attends to: queries times keys, attention weights times values.
    """
    maps = [m for block in backbone.blocks for m in block.modules() if isinstance(m, torch.nn.Linear)]
    counts = np.asarray(lengths, np.float64)
    attention = 4 * backbone.model.config.hidden_size * backbone.depth * (counts**2).sum()
    return float(2 * sum(m.weight.numel() for m in maps) * counts.sum() + attention)
