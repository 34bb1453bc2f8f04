"""The blocks, the choice of neurons and the pooling as one module: token ids in, pooled activations out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spin.arrays import Floats
from spin.attribution.token_sums import TokenDirections, TokenReadings
from spin.backbone.hooks import capture_sites
from spin.backbone.model import Backbone
from spin.backbone.windows import OWN
from spin.poolings.registry import find_pooling
from spin.sites import FeatureColumn, Site

_DIGIT = 256
"""a base in which positions below 65,536 have two digits: bfloat16 is exact up to 256"""
GATHER_FIRST_UP_TO = 0.5
"""share of a site's neurons up to which gathering them before pooling costs less than pooling all neurons"""


@dataclass(frozen=True)
class BlockSegment:
    """Consecutive blocks that run together, and the neurons that are read from them."""

    start: int
    """the number of blocks before the segment; if there are any, the residual stream after them is its input"""
    stop: int
    """the last block of the segment, counted from 1"""
    neurons: Mapping[FeatureColumn, NDArray[np.int64] | None]
    """the indices of the neurons to read for each feature column, ascending; None: all neurons of the site"""
    directions: TokenDirections | None = None
    """directions that tokens are projected on, where their shares in the pooled values are wanted too"""

    @property
    def projects(self) -> bool:
        """Whether there is an output of the projections of tokens."""
        return self.directions is not None and len(self.directions.by_column) > 0

    @cached_property
    def located(self) -> NDArray[np.bool_]:
        """(p,) which of the neurons have positions, of a segment whose neurons are all given by their indices."""
        parts = [np.full(len(n), is_located(c)) for c, n in self.neurons.items() if n is not None]
        return np.concatenate(parts) if parts else np.empty(0, bool)

    def widths(self, backbone: Backbone) -> list[int]:
        """The number of values of each column, in order."""
        return [backbone.width(c.site) if indices is None else len(indices) for c, indices in self.neurons.items()]

    def slices(self, backbone: Backbone, start: int = 0) -> dict[FeatureColumn, slice]:
        """Where the values of each column stand, in order, if the first one stands at `start`."""
        ends = np.cumsum([start, *self.widths(backbone)]).tolist()
        return {column: slice(*pair) for column, pair in zip(self.neurons, pairwise(ends), strict=True)}


def split_segments(neurons: Mapping[FeatureColumn, NDArray[np.int64]], stops: Sequence[int]) -> list[BlockSegment]:
    """Segments that end after the blocks `stops`, ascending, and a last one that ends at the deepest column."""
    deepest = max((column.site.layer for column in neurons), default=0)
    edges = [0, *stops, deepest]
    return [
        BlockSegment(start, stop, {c: n for c, n in neurons.items() if first <= c.site.layer <= stop})
        for first, (start, stop) in zip([0, *(edge + 1 for edge in edges[1:])], pairwise(edges), strict=False)
    ]


class NeuronEncoder(nn.Module):
    """A module that runs a segment of blocks and returns the pooled activations of its neurons.

    Takes token ids and mask (B, T), as `Backbone.pad_tokens` returns them. If the segment has blocks before it, it also
    takes the residual stream after those (B, T, hidden size). Returns the values (B, p) float32 of the segment's
    columns side by side. With `carry`, it also returns the residual stream after its last block (B, T, hidden size).
    Where shares of tokens are wanted, more tensors stand between them. For columns of which every token has a share,
    these are the projections (B, T, R) of the tokens onto the segment's directions. For its m neurons that take the
    value of one token, found by value, these are the positions (B, m) of the tokens. It is plain torch, so that the
    same module is run, compiled and exported. Not safe for threads: hold `HOOK_LOCK`.
    """

    def __init__(self, backbone: Backbone, segment: BlockSegment, *, carry: bool = False) -> None:
        super().__init__()
        self.model, self.backbone, self.segment, self.carry = backbone.model, backbone, segment, carry
        columns: dict[Site, list[FeatureColumn]] = {}
        for column in segment.neurons:
            columns.setdefault(column.site, []).append(column)
        neuron_gathers = [
            _NeuronGather(backbone, site, {c: segment.neurons[c] for c in of}, segment.directions)
            for site, of in columns.items()
        ]
        self.neuron_gathers = nn.ModuleList(neuron_gathers).to(backbone.device)
        self.sites = {gather.site: gather for gather in neuron_gathers}

    def example_inputs(self, documents: int = 2, tokens: int = 3) -> tuple[Tensor, ...]:
        """Inputs to trace or time the module with: documents of `tokens` tokens each, the last of one token less."""
        config, weights = self.backbone.model.config, next(self.backbone.model.parameters())
        ids = torch.arange(documents * tokens, device=weights.device).view(documents, tokens) % config.vocab_size
        mask = torch.ones_like(ids)
        mask[-1, -1] = 0
        hidden = [weights.new_ones(documents, tokens, config.hidden_size)] if self.segment.start else []
        return ids, mask, *hidden

    def forward(self, ids: Tensor, mask: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, ...]:
        own = mask == OWN if self.backbone.reads_windows else None
        mask = mask.bool()
        content = self.backbone.content_mask(ids, mask)
        if own is not None:
            content = _own_content(content, own)
        pooled: dict[FeatureColumn, Tensor] = {}
        positions: dict[FeatureColumn, Tensor] = {}
        projections: list[Tensor] = []
        carried: list[Tensor] = []
        last = Site(self.segment.stop, "resid")

        def on_values(site: Site, values: Tensor) -> None:
            if site in self.sites:
                read = self.sites[site](values, mask, content, own)
                pooled.update(read.pooled)
                positions.update(read.positions)
                projections.extend(read.projections)
            if site == last and self.carry:
                carried.append(values)

        wanted = sorted({*self.sites, *([last] if self.carry else [])})
        with (
            _resume_after(self.backbone, self.segment.start, hidden),
            capture_sites(self.backbone, wanted, on_values) as run,
        ):
            run(ids, mask)
        values = [pooled[column] for column in self.segment.neurons]
        return (
            torch.cat(values, 1) if values else carried[0].new_empty(ids.shape[0], 0, dtype=torch.float32),
            *([torch.stack(projections).sum(0)] if self.segment.projects else []),
            *([torch.cat([positions[c] for c in self.segment.neurons if c in positions], 1)] if positions else []),
            *carried,
        )


class _SiteReading(NamedTuple):
    """Outputs of a forward pass at one site."""

    pooled: dict[FeatureColumn, Tensor]
    """(B, n neurons) pooled values of each column"""
    positions: dict[FeatureColumn, Tensor]
    """(B, n neurons) positions of the tokens whose values are taken, of each located column, if wanted"""
    projections: list[Tensor]
    """(B, T, R) if they are wanted and every token has a share in a column"""


class _NeuronGather(nn.Module):
    """A module that gathers the wanted neurons of a site and pools them.

    Where few neurons are wanted they are gathered before pooling, else after it. Before pooling, torch multiplies by
    a one-hot matrix, which is far faster than gathering values that lie in rows; OpenVINO gathers by index, or takes a
    slice if the wanted neurons are the first ones.

    A mean in float32 in torch is that of all neurons, of which the wanted ones are taken. Its last bits depend on the
    number of neurons that are pooled together. They are to be the same whatever other neurons are read with them.
    """

    def __init__(
        self,
        backbone: Backbone,
        site: Site,
        neurons: Mapping[FeatureColumn, NDArray[np.int64] | None],
        directions: TokenDirections | None,
    ) -> None:
        super().__init__()
        self.site, width = site, backbone.width(site)
        self.for_openvino = backbone.engine == "openvino"
        dtype = next(backbone.model.parameters()).dtype
        gathered = {
            column: np.arange(width) if indices is None else indices
            for column, indices in neurons.items()
            if self.for_openvino or dtype != torch.float32 or find_pooling(column.pooling).takes_one_value
        }
        union = np.unique(np.concatenate([*gathered.values(), np.empty(0, np.int64)])).astype(np.int64)
        self.gather_first = 0 < len(union) <= GATHER_FIRST_UP_TO * width
        self.union = torch.from_numpy(union).to(backbone.device)
        self.are_first = np.array_equal(union, np.arange(len(union)))
        """whether the union's neurons are the first of the site, as `order_wanted_first` makes them"""
        one_hot = torch.zeros(width, len(union), dtype=dtype)
        one_hot[torch.from_numpy(union), torch.arange(len(union))] = 1
        factor = torch.eye(len(union)) if self.for_openvino else one_hot
        self.factor: Tensor
        self.register_buffer("factor", factor if self.gather_first else None, persistent=False)
        self.gathered = frozenset(gathered if self.gather_first else ())
        """the columns whose neurons are gathered before pooling"""
        self.positions: dict[FeatureColumn, Tensor | None] = {}
        """for each column the positions of its neurons in the union, or, if pooled first, in the site; None: all"""
        for column, indices in neurons.items():
            if column in self.gathered:
                indices = np.searchsorted(union, gathered[column])
            is_all = indices is None or (column in self.gathered and np.array_equal(indices, np.arange(len(union))))
            self.positions[column] = None if is_all else torch.from_numpy(indices).to(backbone.device)
        self.located = {
            column: torch.eye(width if indices is None else len(indices))
            for column, indices in neurons.items()
            if directions is not None and is_located(column)
        }
        """for each column whose tokens' positions are wanted the unit matrix of its neurons"""
        self.projected = [c for c in neurons if directions is not None and c in directions.by_column]
        """the columns whose tokens are projected"""
        self.projection = nn.ModuleList()
        for column in self.projected:
            assert directions is not None
            read = len(union) if column in self.gathered else width
            self.projection.append(self._projection(column, directions, read))
        self.projection.to(device=backbone.device, dtype=dtype)

    def _projection(self, column: FeatureColumn, directions: TokenDirections, width: int) -> nn.Linear:
        """The map from `width` values of a token to its projections, less those of the training means.

        The means are a bias: it is subtracted before rounding.
        """
        linear, weights = nn.Linear(width, directions.width), torch.from_numpy(directions.by_column[column]).float()
        positions = self.positions[column]
        with torch.no_grad():
            linear.weight.zero_()
            linear.weight[:, slice(None) if positions is None else positions.cpu()] = weights
            linear.bias.copy_(-weights @ torch.from_numpy(directions.means[column]).float())
        return linear.requires_grad_(False)

    def forward(self, values: Tensor, mask: Tensor, content: Tensor, own: Tensor | None = None) -> _SiteReading:
        """The pooled values of each column, and readings of its tokens, by values (B, T, width) and masks (B, T)."""
        gathered = values
        if self.gather_first:
            gathered = self._gather(values)
        sources = {column: gathered if column in self.gathered else values for column in self.positions}
        columns: dict[FeatureColumn, Tensor] = {}
        located: dict[FeatureColumn, Tensor] = {}
        for column, positions in self.positions.items():
            source, seen = sources[column], pooling_mask(column, mask, content, own)
            if column in self.located:
                wanted = source if positions is None else source.index_select(-1, positions)
                columns[column], located[column] = self._locate(column, wanted, seen)
                continue
            pooling = find_pooling(column.pooling)
            pooled = pooling.pool(source, seen)
            if self.for_openvino and self.gather_first and pooling.takes_one_value:
                # a product with a unit matrix, without which OpenVINO would compute the whole site in float32
                pooled = pooled @ self.factor
            columns[column] = pooled if positions is None else pooled[:, positions]
        pairs = zip(self.projected, self.projection, strict=True)
        return _SiteReading(columns, located, [project(sources[column]).float() for column, project in pairs])

    def _gather(self, values: Tensor) -> Tensor:
        """The union's neurons of every token."""
        if not self.for_openvino:
            return values @ self.factor
        return values[..., : len(self.union)] if self.are_first else values.index_select(-1, self.union)

    def _locate(self, column: FeatureColumn, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled of values (B, T, m) in a mask (B, T), and the positions of the tokens they are of, both (B, m)."""
        if not self.for_openvino:
            pooled, at = find_pooling(column.pooling).locate(values, mask)
            return pooled, at.to(torch.int32)
        pooled, at = find_pooling(column.pooling).locate_in_openvino(values, mask)
        at, unit = at.to(torch.int32), self.located[column]
        # a product follows both, or else OpenVINO would compute the whole site in float32
        high = torch.div(at, _DIGIT, rounding_mode="floor")
        digits = torch.stack([high, at - _DIGIT * high]).float() @ unit
        return pooled @ unit, _DIGIT * digits[0] + digits[1]


class SegmentOutput(NamedTuple):
    """The output of a segment of blocks for a batch of documents."""

    values: Floats
    """(B, p) float32 of the segment's columns side by side"""
    hidden: Any
    """the hidden states for the next segment, None after the last; `hidden[rows]` are those of some documents"""
    tokens: TokenReadings | None
    """readings of single tokens; None unless the segment has directions"""


def read_tokens(segment: BlockSegment, outputs: Sequence[NDArray[Any]], width: int) -> TokenReadings | None:
    """The readings of `width` tokens per text in the outputs of a segment's `NeuronEncoder`, without hidden states."""
    if segment.directions is None:
        return None
    values, *others = outputs
    nothing = np.zeros((len(values), width, segment.directions.width), np.float32)
    projections = others.pop(0) if segment.projects else nothing
    located = values[:, segment.located]
    positions = others.pop(0).astype(np.int64) if others else np.empty(located.shape, np.int64)
    return TokenReadings(projections, positions, located)


def is_located(column: FeatureColumn) -> bool:
    """Whether a neuron of the column takes the value of a token that is found by its value."""
    return find_pooling(column.pooling).shares == "one by value"


def pools_content(column: FeatureColumn) -> bool:
    """Whether only the content of a text counts in a column."""
    return find_pooling(column.pooling).content_only and column.site.kind != "final"


def pooling_mask(column: FeatureColumn, mask: Tensor, content: Tensor, own: Tensor | None = None) -> Tensor:
    """The mask (B, T) that a column is pooled over, from the masks of all tokens and of the content.

    Poolings of content pool, as sentence embeddings do, all tokens of `final`, in windows all of the window's `own`.
    The content of windows is that among their own tokens.
    """
    if pools_content(column):
        return content
    return mask if own is None or not find_pooling(column.pooling).content_only else own


def _own_content(content: Tensor, own: Tensor) -> Tensor:
    """The content (B, T) among a window's own tokens; all of these if there is none, so that pooling has a token.

    Merging ignores the values of such a window.
    """
    content = content & own
    return content | (own & ~content.any(1, keepdim=True))


@contextmanager
def _resume_after(backbone: Backbone, start: int, hidden: Tensor | None) -> Iterator[None]:
    """Let forward passes within the context skip the first `start` blocks and begin at `hidden` (B, T, hidden size).

    Without `hidden` nothing is skipped. The model itself makes masks and positions as ever, so this holds for all
    families.
    """
    if hidden is None:
        yield
        return

    def replace_input(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def return_input(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states,) if backbone.blocks_return_tuples else hidden_states

    def return_hidden(*_args: Any, **_kwargs: Any) -> Tensor:
        return hidden

    replaced: dict[nn.Module, Any] = dict.fromkeys(backbone.blocks[:start], return_input)
    if backbone.embeddings is not None:  # the model uses nothing of their output but its shape
        replaced[backbone.embeddings] = return_hidden
    handle = backbone.blocks[start].register_forward_pre_hook(replace_input, with_kwargs=True, prepend=True)
    try:
        for module, forward in replaced.items():
            module.forward = forward
        yield
    finally:
        handle.remove()
        for module in replaced:
            del module.forward
