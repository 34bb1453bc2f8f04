"""Forward hooks on, values out, hooks off."""

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

Read = Callable[[Site, Tensor], None]
Forward = Callable[[Tensor, Tensor], None]
HOOK_LOCK = threading.Lock()
"""held by who runs a model under `capture`: its hooks see the pass of any thread"""


class _DeepestRead(Exception):
    """The deepest wanted site was read: the rest of the model need not run."""


@contextmanager
def capture(backbone: Backbone, sites: Sequence[Site], read: Read) -> Iterator[Forward]:
    """Within the context, the yielded `forward(input_ids, mask)` calls `read(site, values)` once for each site.

    `values` are (B, T, width), as the model computed them and valid only during the call. The forward pass ends
    at the deepest site, so what lies above is never computed, and blocks that `Backbone.cut` freed are not missed.
    """
    deepest = None if any(s.kind == "final" for s in sites) else max(sites, key=lambda s: (s.layer, s.kind == "resid"))

    def deliver(site: Site, values: Tensor) -> None:
        # OPT flattens the tokens of a batch before its FFN
        read(site, values.reshape(*shape, -1))
        if site == deepest:
            raise _DeepestRead

    shape: tuple[int, ...] = ()

    def forward(input_ids: Tensor, mask: Tensor) -> None:
        nonlocal shape
        shape = tuple(mask.shape)
        with suppress(_DeepestRead):
            backbone.model(input_ids=input_ids, attention_mask=mask.long(), **backbone.forward_options)

    with ExitStack() as hooks, torch.inference_mode():
        for site in sites:
            hooks.callback(_hook(backbone, site, partial(deliver, site)).remove)
        yield forward


def _hook(backbone: Backbone, site: Site, found: Callable[[Tensor], None]) -> Any:
    """Register the hook that sees the values of a site; it never changes them."""

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        found(args[0] if args else kwargs["hidden_states"])

    def after(_module: Any, _args: Any, output: Any) -> None:
        found(output if isinstance(output, Tensor) else output[0])

    if site.kind == "ffn":
        return backbone.ffn_projection(site.layer).register_forward_pre_hook(before, with_kwargs=True)
    if site.kind == "final":
        return backbone.model.register_forward_hook(after)
    if site.layer == 0:
        return backbone.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    return backbone.blocks[site.layer - 1].register_forward_hook(after)
