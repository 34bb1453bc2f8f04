"""The input of all contenders: a model, documents to learn from, to choose by and to time, and the peers' head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.method.contenders import STRENGTHS
from benchmarks.method.corpora import Corpus, Exam, Plan
from benchmarks.method.division import divide
from benchmarks.speed.contender import LOSSES
from benchmarks.speed.parts import Parts
from spin.arrays import Floats, Rows
from spin.backbone.hub import locate_model
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.labels.label_space import LabelSpace, Targets
from spin.settings import BackboneSettings


class Sides(NamedTuple):
    """Numbers of documents. Contenders learn from the first two together; some tune themselves on the second."""

    train: int
    tune: int
    valid: int
    """to choose among our settings"""
    test: int


SIDES = {
    "tweets": Sides(6400, 1600, 3000, 3000),
    # as many to learn from as in the benchmark of the method, which has to do with groups and cross-validation there
    "debian": Sides(4120, 1030, 2000, 2000),
    "manuals": Sides(4000, 1000, 1000, 1000),
}
"""of the encoder, by the name of the task"""
DECODER_SIDES = Sides(640, 160, 100, 100)
QUICK_SIDES = Sides(800, 200, 120, 120)
QUICK_DECODER_SIDES = Sides(80, 20, 10, 10)


@dataclass
class Trial:
    """A model and its documents; the peers' head is fitted once and used in every precision."""

    exam: Exam
    """what the contenders learn from; its test documents are the timed ones"""
    valid: Rows
    """the documents by which settings are chosen; no contender learns from them"""
    folder: Path
    """of the model's files"""
    parts: Parts
    lengths: NDArray[np.integer]
    """(n,) tokens of the test texts, special tokens included"""
    flops: float
    """FLOPs of the whole model for all test texts, without padding"""
    causal: bool
    threads: int
    batches: tuple[int, ...]
    """batch sizes to try, in documents"""
    losses: tuple[float, ...] = LOSSES
    """losses that early exits may cost, to choose from; the default one is among them"""
    head: Any = None
    """the peers' head, None until it is fitted or read"""

    @property
    def plan(self) -> Plan:
        return self.exam.corpus.plan

    @property
    def label_space(self) -> LabelSpace:
        return self.exam.corpus.label_space

    @property
    def train_texts(self) -> list[str]:
        """What the contenders learn from, in the order of `exam.data.rows`."""
        return self.texts(self.exam.data.rows)

    @property
    def test(self) -> Rows:
        return self.exam.test

    def texts(self, rows: Rows) -> list[str]:
        """The texts of some rows."""
        return [self.exam.corpus.texts[row] for row in rows]

    def y(self, rows: Rows) -> Targets:
        """The targets of some rows."""
        return self.exam.y[rows]

    @property
    def pooling(self) -> str:
        """Pooling of the peers' embeddings: the last token of a decoder, which attends to all others, else the mean."""
        return "last" if self.causal else "mean"

    def fit_head(self, embed: Callable[[Sequence[str]], Floats]) -> None:
        """Fit the linear head of the peers, or read it; `embed` returns float32 embeddings (n, width) of texts."""

        def train(folder: Path) -> None:
            regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            search = GridSearchCV(regression, {"logisticregression__C": STRENGTHS}, cv=3, scoring="f1_macro")
            search.fit(embed(self.train_texts), self.y(self.exam.data.rows))
            joblib.dump(search.best_estimator_, folder / "head.joblib")

        self.head = joblib.load(self.parts.get("head", train) / "head.joblib")

    def classes(self, embeddings: Floats) -> NDArray[np.integer]:
        """The classes (n,) that the head predicts for embeddings (n, width)."""
        classes: NDArray[np.integer] = self.head.predict(embeddings)
        return classes


def make_trial(
    corpus: Corpus,
    sides: Sides,
    folder: Path,
    threads: int,
    batches: tuple[int, ...],
    *,
    losses: tuple[float, ...] = LOSSES,
    sites: Sequence[str] = (),
) -> Trial:
    """Divide a corpus in proportion to its classes, without dividing a group, and count tokens and FLOPs.

    Trained parts are kept in `folder`. SPIN learns from `sites` alone, such as ffn.05, if there are any.
    """
    if sites:
        features = {column: values for column, values in corpus.features.items() if str(column.site) in sites}
        corpus = replace(corpus, features=features)
    exam, valid = divide_corpus(corpus, sides)
    settings = BackboneSettings(model=corpus.plan.model, dtype="float32", max_tokens=corpus.plan.max_tokens)
    backbone = load_backbone(settings)
    lengths = np.array([len(ids) for ids in backbone.tokenize([corpus.texts[row] for row in exam.test]).ids])
    parts = Parts(folder, [corpus.plan.record(), sides._asdict(), list(sites), corpus.origin])
    cost, model = flops(backbone, lengths), locate_model(corpus.plan.model)
    return Trial(exam, valid, model, parts, lengths, cost, backbone.causal, threads, batches, losses)


def divide_corpus(corpus: Corpus, sides: Sides) -> tuple[Exam, Rows]:
    """What the contenders learn from, with the test documents, and the rows of the validation documents."""
    train, tune, valid, test = divide(corpus.y, corpus.groups, sides, seed=0)
    return Exam.of(corpus, corpus.y, train, tune, test, seed=0), valid


def flops(backbone: Backbone, lengths: Sequence[int] | NDArray[np.integer]) -> float:
    """FLOPs of the whole model for documents with these numbers of tokens.

    A token costs 2 FLOPs per weight of the blocks' linear maps (24 d² per block in BERT), and 4 d per block for each
    token that it attends to: queries times keys, attention weights times values.
    """
    maps = [m for block in backbone.blocks for m in block.modules() if isinstance(m, torch.nn.Linear)]
    counts = np.asarray(lengths, np.float64)
    attention = 4 * backbone.model.config.hidden_size * backbone.depth * (counts**2).sum()
    return float(2 * sum(m.weight.numel() for m in maps) * counts.sum() + attention)
