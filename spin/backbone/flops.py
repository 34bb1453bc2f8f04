"""What reading a site costs, counted."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from spin.backbone.hooks import capture
from spin.backbone.model import Backbone
from spin.sites import Site

_TOKENS = 32
"""of the text that is counted: attention's share grows with it, by little at the lengths of documents"""


def relative_compute(backbone: Backbone) -> dict[Site, float]:
    """For every site the FLOPs a token up to it, as a share of the whole backbone's; needs a model that is not cut.

    Matrix products with weights are counted as the model runs them; pooling, head and, where torch counts no fused
    attention, the products of tokens with tokens are left out.
    """
    whole = _count(backbone, backbone.final)
    return {site: _count(backbone, site) / max(whole, 1) for site in backbone.sites}


def _count(backbone: Backbone, site: Site) -> int:
    ids = torch.full((1, _TOKENS), backbone.pad_id, device=backbone.device)
    with capture(backbone, [site], lambda *_: None) as forward, FlopCounterMode(display=False) as counter:
        forward(ids, torch.ones_like(ids, dtype=torch.bool))
    return int(counter.get_total_flops())
