"""The cut backbone, the choice of neurons and the pooling as one module: token ids in, pooled activations out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spin.backbone.hooks import capture
from spin.backbone.model import Backbone
from spin.backbone.pooling import pool
from spin.sites import FeatureColumn, Site

_FEW = 0.5
"""share of a site's neurons up to which picking them before pooling costs less than pooling all"""


@dataclass(frozen=True)
class BlockSegment:
    """Blocks that run together, and what is read of them."""

    start: int
    """blocks that ran before: the residual stream after them comes in"""
    stop: int
    """the last block; where the forward pass may go on above it, the residual stream after it goes out"""
    neurons: Mapping[FeatureColumn, NDArray[np.int64] | None]
    """wanted of each site.pooling, ascending, in order of the columns; None: all of them"""

    def widths(self, backbone: Backbone) -> list[int]:
        """Values of each column."""
        return [backbone.width(c.site) if kept is None else len(kept) for c, kept in self.neurons.items()]


def divide(neurons: Mapping[FeatureColumn, NDArray[np.int64]], stops: Sequence[int]) -> list[BlockSegment]:
    """Groups that end at some depths, ascending, and at the deepest column."""
    deepest = max((column.site.layer for column in neurons), default=0)
    edges = [0, *stops, deepest]
    return [
        BlockSegment(start, stop, {c: n for c, n in neurons.items() if (start or -1) < c.site.layer <= stop})
        for start, stop in pairwise(edges)
    ]


class NeuronEncoder(nn.Module):
    """Gives (B, p) float32, the wanted values of a group's columns in order, and the residual stream that goes out.

    Takes token ids and mask (B, T) and, where blocks ran before, the residual stream after them (B, T, hidden size).
    It is plain torch, so that what runs here and what is compiled or exported is the same.
    """

    def __init__(self, backbone: Backbone, segment: BlockSegment, *, carry: bool = False) -> None:
        super().__init__()
        self.model, self.backbone, self.segment, self.carry = backbone.model, backbone, segment, carry
        columns: dict[Site, list[FeatureColumn]] = {}
        for column in segment.neurons:
            columns.setdefault(column.site, []).append(column)
        picks = [_NeuronGather(backbone, site, {c: segment.neurons[c] for c in of}) for site, of in columns.items()]
        self.picks = nn.ModuleList(picks).to(backbone.device)
        self.sites = {pick.site: pick for pick in picks}

    def example(self, documents: int = 2, tokens: int = 3) -> tuple[Tensor, ...]:
        """Inputs to trace or to time it by: documents of so many tokens, the last one short of one."""
        config, weights = self.backbone.model.config, next(self.backbone.model.parameters())
        ids = torch.arange(documents * tokens, device=weights.device).view(documents, tokens) % config.vocab_size
        mask = torch.ones_like(ids)
        mask[-1, -1] = 0
        hidden = [weights.new_ones(documents, tokens, config.hidden_size)] if self.segment.start else []
        return ids, mask, *hidden

    def forward(self, ids: Tensor, mask: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, ...]:
        seen = mask.bool()
        content = self.backbone.content(ids, seen)
        found: dict[FeatureColumn, Tensor] = {}
        out: list[Tensor] = []
        last = Site(self.segment.stop, "resid")

        def read(site: Site, values: Tensor) -> None:
            if site in self.sites:
                found.update(self.sites[site](values, seen, content))
            if site == last and self.carry:
                out.append(values)

        wanted = {*self.sites, *([last] if self.carry else [])}
        with _resumed(self.backbone, self.segment.start, hidden), capture(self.backbone, sorted(wanted), read) as run:
            run(ids, seen)
        values = [found[column] for column in self.segment.neurons]
        return torch.cat(values, 1) if values else out[0].new_empty(ids.shape[0], 0, dtype=torch.float32), *out


class _NeuronGather(nn.Module):
    """The wanted neurons of a site under its poolings."""

    def __init__(
        self, backbone: Backbone, site: Site, wanted: Mapping[FeatureColumn, NDArray[np.int64] | None]
    ) -> None:
        super().__init__()
        self.site, width = site, backbone.width(site)
        every = np.unique(np.concatenate([np.arange(width) if kept is None else kept for kept in wanted.values()]))
        self.early = len(every) <= _FEW * width
        self.compiled = backbone.engine == "openvino"
        dtype, self.picked = next(backbone.model.parameters()).dtype, torch.from_numpy(every).to(backbone.device)
        one_hot = torch.zeros(width, len(every), dtype=dtype)
        one_hot[torch.from_numpy(every), torch.arange(len(every))] = 1
        self.product: Tensor
        self.register_buffer(
            "product", None if not self.early else torch.eye(len(every)) if self.compiled else one_hot, persistent=False
        )
        self.places: dict[FeatureColumn, Tensor | None] = {}
        for column, kept in wanted.items():
            place = kept if not self.early else np.searchsorted(every, np.arange(width) if kept is None else kept)
            whole = place is None or (self.early and np.array_equal(place, np.arange(len(every))))
            self.places[column] = None if whole else torch.from_numpy(place).to(backbone.device)

    def forward(self, values: Tensor, seen: Tensor, content: Tensor) -> dict[FeatureColumn, Tensor]:
        if self.early:
            values = self._few(values)
        found = {}
        for column, place in self.places.items():
            pooled = pool(values, pooling_mask(column, seen, content), column.pooling)
            if self.early and self.compiled and column.pooling == "max":
                # OpenVINO computes in float32 what no product follows, and would turn all of a site into it
                pooled = pooled @ self.product
            found[column] = pooled if place is None else pooled[:, place]
        return found

    def _few(self, values: Tensor) -> Tensor:
        """The picked neurons; torch gathers in a row of many far slower than it multiplies by ones and zeros."""
        return values.index_select(-1, self.picked) if self.compiled else values @ self.product


def pooling_mask(column: FeatureColumn, mask: Tensor, content: Tensor) -> Tensor:
    """Mean and max see the content; `first`, `last` and a sentence embedding's mean see all tokens."""
    return content if column.pooling in ("mean", "max") and column.site.kind != "final" else mask


@contextmanager
def _resumed(backbone: Backbone, start: int, hidden: Tensor | None) -> Iterator[None]:
    """Within the context the forward pass takes `hidden` after block `start`; the blocks up to there do not run.

    Masks and positions are made by the model itself as ever, which is what lets this hold for all families.
    """
    if hidden is None:
        yield
        return

    def replace(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def skip(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states,) if backbone.gives_tuples else hidden_states

    def embedded(*_args: Any, **_kwargs: Any) -> Tensor:
        return hidden

    skipped: dict[nn.Module, Any] = dict.fromkeys(backbone.blocks[:start], skip)
    if backbone.embeddings is not None:  # the model asks nothing of what they give but its shape
        skipped[backbone.embeddings] = embedded
    handle = backbone.blocks[start].register_forward_pre_hook(replace, with_kwargs=True, prepend=True)
    try:
        for module, instead in skipped.items():
            module.forward = instead
        yield
    finally:
        handle.remove()
        for module in skipped:
            del module.forward
