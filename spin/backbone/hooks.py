"""Read the activations of sites during a forward pass, by hooks that are removed afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.arrays import Floats
from spin.backbone.model import Backbone
from spin.sites import FeatureColumn, Site

OnValues = Callable[[Site, Tensor], None]
"""takes a site and its values (B, T, width)"""
Forward = Callable[[Tensor, Tensor], None]
"""takes token ids and mask, both (B, T)"""
HOOK_LOCK = threading.Lock()
"""to be held while a model runs under `capture_sites`, whose hooks see the forward passes of all threads"""


class _DeepestSiteRead(Exception):
    """Raised to end a forward pass once the deepest wanted site was read."""


@contextmanager
def capture_sites(backbone: Backbone, sites: Sequence[Site], on_values: OnValues) -> Iterator[Forward]:
    """Yield a `forward(input_ids, mask)` that calls `on_values(site, values)` once for each site.

    `values` (B, T, width) are as the model computed them and valid only during the call. Outside the context no values
    are delivered. The forward pass ends at the deepest site: the blocks above it are not computed and may have been
    freed by `Backbone.truncate`.
    """
    deepest = None if any(s.kind == "final" for s in sites) else max(sites, key=lambda s: (s.layer, s.kind == "resid"))

    def deliver(site: Site, values: Tensor) -> None:
        # OPT flattens the tokens of a batch before its FFN
        on_values(site, values.reshape(*shape, -1))
        if site == deepest:
            raise _DeepestSiteRead

    shape: tuple[int, ...] = ()

    def forward(input_ids: Tensor, mask: Tensor) -> None:
        nonlocal shape
        shape = tuple(mask.shape)
        with suppress(_DeepestSiteRead):
            backbone.model(input_ids=input_ids, attention_mask=mask.long(), **backbone.forward_options)

    with ExitStack() as hooks, torch.inference_mode():
        for site in sites:
            hooks.callback(_hook(backbone, site, partial(deliver, site)).remove)
        yield forward


def _hook(backbone: Backbone, site: Site, on_values: Callable[[Tensor], None]) -> Any:
    """Register the hook that passes on the values of a site, without changing them; return its handle."""

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        on_values(args[0] if args else kwargs["hidden_states"])

    def after(_module: Any, _args: Any, output: Any) -> None:
        on_values(output if isinstance(output, Tensor) else output[0])

    if site.kind == "ffn":
        return backbone.ffn_projection(site.layer).register_forward_pre_hook(before, with_kwargs=True)
    if site.kind == "final":
        return backbone.model.register_forward_hook(after)
    if site.layer == 0:
        return backbone.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    return backbone.blocks[site.layer - 1].register_forward_hook(after)


def read_token_values(
    backbone: Backbone, ids: Tensor, mask: Tensor, neurons: Mapping[FeatureColumn, NDArray[np.int64]]
) -> dict[FeatureColumn, Floats]:
    """The activations (w, T, m) float32 of the neurons of each column in every token of w windows, 0 for padding.

    `ids` and `mask` (w, T) are those of `Backbone.pad_tokens`. The windows are read in torch, one after another and
    without padding, so that the activations of whole sites are in memory of one window only.
    """
    values: dict[FeatureColumn, Floats] = {c: np.zeros((*ids.shape, len(n)), np.float32) for c, n in neurons.items()}
    if not neurons:
        return values
    window, length = 0, 0

    def store(site: Site, of_site: Tensor) -> None:
        for column, indices in neurons.items():
            if column.site == site:
                chosen = of_site[0][:, torch.from_numpy(indices).to(of_site.device)]
                values[column][window, :length] = chosen.float().cpu().numpy()

    read = mask > 0
    with HOOK_LOCK, capture_sites(backbone, sorted({column.site for column in neurons}), store) as forward:
        for window, length in enumerate(read.sum(1).tolist()):
            each = slice(window, window + 1), slice(length)
            forward(ids[each].to(backbone.device), read[each].to(backbone.device))
    return values
