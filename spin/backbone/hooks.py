"""Read the activations of sites during a forward pass, by hooks that are removed afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spin.backbone.model import Backbone
from spin.sites import Site

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
