"""Fit a network head on the selected neurons: three small networks with dropout, whose mean is one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spin.arrays import Rows
from spin.heads.design import Design
from spin.heads.network_head import NetworkHead

NETWORKS, WIDTH = 3, 96
"""networks that are averaged, and hidden units of each"""
_INPUT_DROPOUT, _HIDDEN_DROPOUT, _SMOOTHING = 0.2, 0.4, 0.05
_LEARNING_RATE = 6e-4
_BATCH, _SMALLEST_BATCH, _LARGEST_BATCH = 128, 32, 1024
_FEWEST_BATCHES, _MOST_BATCHES = 50, 200
"""an epoch has from 50 to 200 batches, so that few rows have smaller ones than 128 and many larger ones, within the
smallest and the largest size; the largest bounds the memory"""
_MOST_EPOCHS, _PATIENCE = 40, 4
"""epochs at most, and epochs without a smaller loss after which fitting stops"""


def fit_network(
    design: Design, seed: int, *, epochs: int | None = None, judge: Callable[[NetworkHead], float] | None = None
) -> tuple[NetworkHead, int]:
    """A network head without a linear part, and its number of epochs.

    `judge` returns the loss of a head on other rows: the head with the least is returned, four epochs after it at the
    latest. Without it there are `epochs`. The members of the group hold different rows; all get the same head, and all
    call `judge`. One random order of all rows and one set of dropout masks make the head independent of their number,
    up to rounding.
    """
    networks = _Networks(design, seed)
    best, best_loss, best_epoch = networks.head(), np.inf, 0
    for epoch in range(1, (epochs or _MOST_EPOCHS) + 1):
        networks.run_epoch()
        if judge is None:
            continue
        head = networks.head()
        loss = design.group.broadcast_object(judge(head))
        if loss < best_loss:
            best, best_loss, best_epoch = head, loss, epoch
        elif epoch - best_epoch >= _PATIENCE:
            break
    return (networks.head(), epochs or _MOST_EPOCHS) if judge is None else (best, best_epoch)


class _Networks:
    """M networks of H hidden units while they are fitted side by side."""

    def __init__(self, design: Design, seed: int) -> None:
        self.design, self.count = design, design.count
        self.draw = torch.Generator().manual_seed(seed)
        width, classes = design.features.shape[1], design.has.shape[1]
        # weights for ReLU units (He et al. 2015)
        drawn = torch.randn(NETWORKS * WIDTH, width, generator=self.draw) * (2 / width) ** 0.5
        self.inner = drawn.to(design.device).requires_grad_()
        self.inner_bias = torch.zeros(NETWORKS * WIDTH, device=design.device, requires_grad=True)
        self.outer = torch.zeros(NETWORKS, WIDTH, classes, device=design.device, requires_grad=True)
        self.outer_bias = torch.zeros(NETWORKS, classes, device=design.device, requires_grad=True)
        self.parameters = [self.inner, self.inner_bias, self.outer, self.outer_bias]
        self.optimiser = torch.optim.Adam(self.parameters, lr=_LEARNING_RATE, fused=True)
        self.own = np.full(self.count, -1)
        """(N,) of each row of the group its place among those of this process, or -1"""
        self.own[np.arange(self.count) if design.positions is None else design.positions] = np.arange(len(design.has))
        has = design.tensor(design.has)
        self.targets = has * (1 - _SMOOTHING) + _SMOOTHING / (classes if design.exclusive else 2)
        self.weights = design.tensor(design.weights)

    def run_epoch(self) -> None:
        """One step of Adam for each batch of all rows in random order."""
        for rows, kept, kept_hidden in self._batches():
            self.optimiser.zero_grad()
            if len(rows):
                self._loss(rows, kept, kept_hidden).backward()
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.design.group.all_reduce(parameter.grad)
            self.optimiser.step()

    def _batches(self) -> Iterator[tuple[Rows, Tensor, Tensor]]:
        """The rows (m,) of this process in each batch, and which of their features and hidden units are kept."""
        order = torch.randperm(self.count, generator=self.draw)
        size = int(np.clip(_BATCH, self.count / _MOST_BATCHES, self.count / _FEWEST_BATCHES))
        for batch in order.split(min(max(_SMALLEST_BATCH, size), _LARGEST_BATCH)):
            places = self.own[batch.numpy()]
            here = places >= 0
            kept = self._draw_mask(len(batch), self.inner.shape[1], _INPUT_DROPOUT)[here]
            kept_hidden = self._draw_mask(len(batch), NETWORKS * WIDTH, _HIDDEN_DROPOUT)[here]
            yield places[here], kept.to(self.design.device), kept_hidden.to(self.design.device)

    def _draw_mask(self, rows: int, width: int, dropout: float) -> Tensor:
        """(rows, width) 0 for about a share `dropout` of the values, and for the others what keeps their mean.

        A random byte decides each, which takes a seventh of the time of `bernoulli_`.
        """
        kept = round(256 * (1 - dropout))
        words = torch.empty(-(-rows * width // 8), dtype=torch.int64).random_(-(2**63), None, generator=self.draw)
        drawn = words.view(torch.uint8)[: rows * width].view(rows, width)
        return (drawn < kept).float() * (256 / kept)

    def _loss(self, rows: Rows, kept: Tensor, kept_hidden: Tensor) -> Tensor:
        """The weighted loss of all networks over some rows, with dropout."""
        x = self.design.tensor(self.design.features.pick(rows)) * kept
        hidden = torch.relu(x @ self.inner.T + self.inner_bias) * kept_hidden
        logits = torch.einsum("nmh,mhk->nmk", hidden.unflatten(1, (NETWORKS, WIDTH)), self.outer) + self.outer_bias
        targets = self.targets[rows][:, None].expand_as(logits)
        if self.design.exclusive:
            losses = cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none")
            losses = losses.unflatten(0, logits.shape[:2])[..., None]
        else:
            losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (self.weights[rows][:, None] * losses).sum() * self.count

    def head(self) -> NetworkHead:
        """The mean of the networks, as one network on standardised features: for all members that of the first."""
        for parameter in self.parameters:
            self.design.group.broadcast(parameter.data)
        inner, inner_bias, outer, outer_bias = (p.detach().cpu() for p in self.parameters)
        classes, width = outer_bias.shape[1], inner.shape[1]
        return NetworkHead(
            coef=np.zeros((classes, width), np.float32),
            intercept=outer_bias.mean(0).numpy(),
            inner=inner.numpy().copy(),
            inner_bias=inner_bias.numpy().copy(),
            outer=(outer.flatten(0, 1).T / NETWORKS).numpy(),
        )
