"""Attention pooling: in each layer, a learned query per class weighs the tokens of the residual stream.

In place of the mean over the tokens, each class and layer has a weighted mean, by a softmax of the products of tokens
and query; the weighted means of all layers are added up to the logits. It reads every token of every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import process_time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.method.contenders import Answer, calibrate, temperature
from benchmarks.method.corpora import Exam, Plan
from spin.arrays import Floats, Rows
from spin.backbone.batching import token_batches
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.heads.calibration import log_loss
from spin.settings import BackboneSettings
from spin.sites import Site

RATE, DROPOUT, SMOOTHING = 1e-3, 0.2, 0.05
BATCH, MOST_EPOCHS, PATIENCE = 64, 30, 3
"""an end after three epochs without a smaller log loss on the validation documents"""
_POOL = 16
"""batches that are made of documents of similar length together"""


@dataclass(frozen=True)
class TokenStates:
    """The residual stream of every token in every layer."""

    values: NDArray[np.float16]
    """(tokens, layers, width) the tokens of one document after those of another"""
    starts: NDArray[np.int64]
    """(n + 1,) where the tokens of each document begin"""
    places: dict[int, int]
    """the place of each row of the corpus among the documents"""

    def batch(self, rows: Rows, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The standardised states (m, longest, layers, width) of some rows, and which are tokens (m, longest)."""
        tokens = [torch.from_numpy(values) for values in self.documents(rows)]
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(each), dtype=torch.bool) for each in tokens], True)
        return (nn.utils.rnn.pad_sequence(tokens, True).float() - mean) / scale, mask

    def documents(self, rows: Rows) -> list[NDArray[np.float16]]:
        """The states (tokens, layers, width) of each of some rows."""
        at = [self.places[row] for row in rows.tolist()]
        return [self.values[self.starts[i] : self.starts[i + 1]] for i in at]

    def lengths(self, rows: Rows) -> list[int]:
        """The number of tokens of each of some rows."""
        return list(map(len, self.documents(rows)))

    def measure(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (layers, width) over the tokens of some rows."""
        of_rows = self.documents(rows)
        count = sum(map(len, of_rows))
        mean = sum(part.sum(0, dtype=np.float64) for part in of_rows) / count
        square = sum(np.square(part, dtype=np.float64).sum(0) for part in of_rows) / count
        scale = np.sqrt(np.maximum(square - mean**2, 1e-12))
        return torch.from_numpy(mean).float(), torch.from_numpy(scale).float()


def read_tokens(exam: Exam) -> TokenStates:
    """Run the backbone over all documents of an exam."""
    plan, rows = exam.corpus.plan, np.sort(np.concatenate([exam.data.rows, exam.test]))
    backbone = load_exact(plan)
    ids = backbone.tokenize([exam.corpus.texts[row] for row in rows]).ids
    lengths = [len(tokens) for tokens in ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values: NDArray[np.float16] | None = None
    with torch.no_grad():
        for batch in token_batches(lengths, backbone.batch_tokens):
            tokens, mask = backbone.pad_batch([ids[place] for place in batch])
            found = backbone.model(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True)
            states = torch.stack(found.hidden_states, 2).half().numpy()
            if values is None:
                values = np.empty((starts[-1], *states.shape[2:]), np.float16)
            for place, of_document in zip(batch, states, strict=True):
                values[starts[place] : starts[place + 1]] = of_document[: lengths[place]]
    assert values is not None
    return TokenStates(values, starts, {int(row): place for place, row in enumerate(rows)})


class AttentionHead(nn.Module):
    """The sum over layers of each class's weighted mean of the tokens times its weights, plus a bias."""

    def __init__(self, layers: int, classes: int, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(layers, classes, width))
        """zeros weigh all tokens the same: the first weighted mean is the mean"""
        self.weight = nn.Parameter(torch.zeros(layers, classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Logits (n, K) of states (n, tokens, layers, width)."""
        products = torch.einsum("ntld,lkd->ntlk", states, self.query) / states.shape[3] ** 0.5
        shares = products.masked_fill(~mask[:, :, None, None], -torch.inf).softmax(1)
        pooled = self.dropout(torch.einsum("ntlk,ntld->nlkd", shares, states))
        logits: Tensor = torch.einsum("nlkd,lkd->nk", pooled, self.weight) + self.bias
        return logits


def attention_pooling(exam: Exam) -> Answer:
    """A head with attention over the tokens of every layer; validation chooses its epochs."""
    [fold] = exam.folds
    states = read_tokens(exam)
    start = process_time()
    held_out, epochs = _fit(exam, states, fold.train, fold.valid, exam.y[fold.valid])
    logits, _ = _fit(exam, states, exam.data.rows, exam.test, epochs=epochs)
    seconds, deepest = process_time() - start, Site(exam.corpus.depth, "final")
    read = states.values.shape[1] * states.values.shape[2]
    return calibrate(exam, "attention pooling", logits, [held_out], seconds, f"{epochs} epochs", read, deepest)


def _fit(
    exam: Exam, states: TokenStates, rows: Rows, out: Rows, y: Rows | None = None, *, epochs: int = MOST_EPOCHS
) -> tuple[Floats, int]:
    """The logits of other rows, and the epochs: those with the least log loss on them if their targets are given."""
    mean, scale = states.measure(rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(exam.seed)
        head = AttentionHead(len(mean), len(exam.corpus.label_space), mean.shape[1])
        optimiser = torch.optim.Adam(head.parameters(), lr=RATE)
        targets, best, best_loss, best_epoch = torch.from_numpy(exam.y), None, np.inf, epochs
        for epoch in range(1, epochs + 1):
            head.train()
            for places in draw_batches(states.lengths(rows), BATCH, _POOL):
                optimiser.zero_grad()
                logits = head(*states.batch(rows[places], mean, scale))
                nn.functional.cross_entropy(logits, targets[rows[places]], label_smoothing=SMOOTHING).backward()
                optimiser.step()
            if y is None:
                continue
            found = _predict(head, states, out, mean, scale)
            loss = log_loss(found / temperature(exam, [found]), y, exam.corpus.label_space)
            if loss < best_loss:
                best, best_loss, best_epoch = found, loss, epoch
            elif epoch - best_epoch >= PATIENCE:
                break
    return _predict(head, states, out, mean, scale) if best is None else best, best_epoch


def _predict(head: AttentionHead, states: TokenStates, rows: Rows, mean: Tensor, scale: Tensor) -> Floats:
    head.eval()
    logits = np.empty((len(rows), len(head.bias)), np.float32)
    with torch.no_grad():
        by_length = np.argsort(states.lengths(rows), kind="stable")  # so that batches have little padding
        for places in np.array_split(by_length, 1 + len(rows) // BATCH):
            logits[places] = head(*states.batch(rows[places], mean, scale)).numpy()
    return logits


def load_exact(plan: Plan) -> Backbone:
    """The backbone of a plan in PyTorch and float32."""
    return load_backbone(
        BackboneSettings(model=plan.model, device="cpu", engine="torch", dtype="float32", max_tokens=plan.max_tokens)
    )


def draw_batches(lengths: Sequence[int], batch: int, pool: int) -> list[list[int]]:
    """The places of n documents in batches: drawn at random, then sorted by length within every `pool` batches.

    So there is little padding.
    """
    order = torch.randperm(len(lengths)).tolist()
    pools = (order[start : start + pool * batch] for start in range(0, len(order), pool * batch))
    ordered = [place for places in pools for place in sorted(places, key=lambda place: lengths[place])]
    batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]
