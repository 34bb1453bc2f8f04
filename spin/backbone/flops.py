"""The cost of reading a site, in counted floating-point operations."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from spin.backbone.hooks import capture_sites
from spin.backbone.model import Backbone
from spin.sites import Site

_TOKENS = 32
"""length of the text that is counted: attention's share grows with it, but little at the lengths of documents"""


def relative_flops(backbone: Backbone) -> dict[Site, float]:
    """FLOPs per token up to each site, as a share (0 to 1) of the whole backbone's; the model must not be truncated.

    Matrix products with weights are counted as the model runs them. Pooling and head are not, nor the products of
    tokens with tokens where torch does not count fused attention.
    """
    total = _count_flops(backbone, backbone.final_site)
    return {site: _count_flops(backbone, site) / max(total, 1) for site in backbone.sites}


def _count_flops(backbone: Backbone, site: Site) -> int:
    ids = torch.full((1, _TOKENS), backbone.pad_id, device=backbone.device)
    with capture_sites(backbone, [site], lambda *_: None) as forward, FlopCounterMode(display=False) as counter:
        forward(ids, torch.ones_like(ids, dtype=torch.bool))
    return int(counter.get_total_flops())
