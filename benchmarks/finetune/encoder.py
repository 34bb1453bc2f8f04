"""The backbone with all of its weights fine-tuned: a linear head on the mean over the tokens, by AdamW.

Validation chooses the number of epochs; then the encoder is fine-tuned anew on all labelled documents for as many. So
it learns from the same documents as the rows of `make bench-method`, which are refitted on all of them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.method.attention import draw_batches, load_exact
from benchmarks.method.contenders import Answer, calibrate
from benchmarks.method.corpora import METRIC, Corpus, Exam
from benchmarks.method.paper import ROUND
from spin.arrays import Floats
from spin.backbone.batching import token_batches
from spin.labels.cross_validation import Fold
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.labels.splits import VERY_FEW_LABELS
from spin.sites import Site

NAME = "fine-tuned"
BATCH = 16
HEAD_RATE = 1e-3
"""learning rate of the head, whose weights are random at first"""
WEIGHT_DECAY, LARGEST_GRADIENT = 0.01, 1.0
EPOCHS, PATIENCE = 10, 2
"""epochs at most, and without a better one until the end"""
STEPS, PATIENT_STEPS = 100, 20
"""the same in batches, of which few documents have only some per epoch; whichever is more"""
_POOL = 32
"""batches that are made of documents of similar length together"""


@dataclass(frozen=True)
class BestEpoch:
    """The epoch with the best validation score."""

    number: int
    score: float
    logits: Floats
    """(m, K) of the validation documents after it"""


class Encoder:
    """A pretrained encoder with a linear head."""

    def __init__(self, corpus: Corpus) -> None:
        self.backbone = load_exact(corpus.plan)
        self.model: Any = self.backbone.model.requires_grad_(True)
        self.head = nn.Linear(self.model.config.hidden_size, len(corpus.label_space))

    def fit(self, texts: Sequence[str], y: Targets, rate: float) -> Iterator[float]:
        """Train for one epoch after the other, without end, and yield the mean loss of each."""
        ids, targets = self.backbone.tokenize(texts).ids, torch.from_numpy(y)
        multilabel = y.ndim == 2
        loss_of = nn.functional.binary_cross_entropy_with_logits if multilabel else nn.functional.cross_entropy
        targets = targets.float() if multilabel else targets
        weights = [*self.model.parameters(), *self.head.parameters()]
        groups = [{"params": self.model.parameters()}, {"params": self.head.parameters(), "lr": HEAD_RATE}]
        # fused: the step of the default takes several times as long on a processor
        optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=WEIGHT_DECAY, fused=True)
        while True:
            self.model.train()
            total = 0.0
            for rows in draw_batches([len(row) for row in ids], BATCH, _POOL):
                optimiser.zero_grad()
                loss = loss_of(self._logits([ids[row] for row in rows]), targets[rows])
                loss.backward()
                nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
                optimiser.step()
                total += len(rows) * float(loss.detach())
            yield total / len(ids)

    def logits(self, texts: Sequence[str]) -> Floats:
        """Logits (n, K) of texts, without dropout."""
        self.model.eval()
        ids = self.backbone.tokenize(texts).ids
        found = np.empty((len(texts), self.head.out_features), np.float32)
        with torch.no_grad():
            for rows in token_batches([len(row) for row in ids], self.backbone.batch_tokens):
                found[rows] = self._logits([ids[row] for row in rows]).numpy()
        return found

    def _logits(self, ids: Sequence[list[int]]) -> Tensor:
        tokens, mask = self.backbone.pad_batch(ids)
        hidden = self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        mean = (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        logits: Tensor = self.head(mean)
        return logits


def find_best_epoch(corpus: Corpus, y: Targets, fold: Fold, rate: float, seed: int) -> BestEpoch:
    """Fine-tune on the training documents of a fold until its validation documents find no better epoch."""
    texts, valid_texts = ([corpus.texts[row] for row in rows] for rows in (fold.train, fold.valid))
    steps = ceil(len(texts) / BATCH)
    epochs, patience = max(EPOCHS, ceil(STEPS / steps)), max(PATIENCE, ceil(PATIENT_STEPS / steps))
    best = BestEpoch(0, -1.0, np.empty(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(corpus)
        for number, _ in zip(range(1, epochs + 1), encoder.fit(texts, y[fold.train], rate), strict=False):
            logits = encoder.logits(valid_texts)
            valid_score = judge(corpus.label_space, y[fold.valid], logits)
            if valid_score > best.score:
                best = BestEpoch(number, valid_score, logits)
            elif number - best.number >= patience:
                break
    return best


def judge(label_space: LabelSpace, y: Targets, logits: Floats) -> float:
    """The validation score of logits (m, K).

    In a multi-label task every class is given to as many documents as have it: thresholds are chosen after the last
    epoch, and without them an encoder that has seen few documents of a class gives it to none.
    """
    if not label_space.multilabel:
        return score(METRIC, y, label_space.predict(logits))
    ranks = (-logits).argsort(0, kind="stable").argsort(0, kind="stable")
    return score(METRIC, y, ranks < y.sum(0))


def fine_tune(exam: Exam, rate: float) -> tuple[Answer, int]:
    """The answer of the fine-tuned encoder, and its number of epochs.

    Below 300 labelled documents it is the mean over one round of the cross-validation, else that of the first fold.
    """
    start = process_time()
    corpus = exam.corpus
    folds = exam.folds[: ROUND if len(exam.data.rows) < VERY_FEW_LABELS else 1]
    best = [find_best_epoch(corpus, exam.y, fold, rate, exam.seed) for fold in folds]
    epochs, held_out = round(float(np.mean([each.number for each in best]))), [each.logits for each in best]
    encoder = _refit(exam, rate, epochs)
    seconds, choice = process_time() - start, f"learning rate {rate:g}, {epochs} epochs"
    logits = encoder.logits([corpus.texts[row] for row in exam.test])
    deepest = Site(corpus.depth, "final")
    return calibrate(exam, NAME, logits, held_out, seconds, choice, site=deepest), epochs


def _refit(exam: Exam, rate: float, epochs: int) -> Encoder:
    """The encoder after so many epochs on all labelled documents."""
    rows = exam.data.rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(exam.seed)
        encoder = Encoder(exam.corpus)
        texts = [exam.corpus.texts[row] for row in rows]
        for _ in zip(range(epochs), encoder.fit(texts, exam.y[rows], rate), strict=False):
            pass
    return encoder
