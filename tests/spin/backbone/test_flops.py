"""The FLOPs needed to reach each site, compared with counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from spin.backbone.flops import relative_flops
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.settings import BackboneSettings
from spin.sites import Site
from tests.support import tiny

TOKENS, HIDDEN, INNER, BLOCKS = 32, 16, 24, 3


def load(folder: Path) -> Backbone:
    return load_backbone(BackboneSettings(model=str(folder), dtype="float32", device="cpu"))


PROJECTION, FFN_MAP, TOKEN_PRODUCTS = 2 * TOKENS * HIDDEN**2, 2 * TOKENS * HIDDEN * INNER, 4 * TOKENS**2 * HIDDEN
"""FLOPs of one projection of attention, of one map of the FFN, and of the products of tokens with tokens"""


def count_by_hand(attention: int, inner: int, outer: int, after: int) -> dict[Site, float]:
    """Return shares of the total, from the FLOPs of attention, of the two maps of the FFN, and after the last block."""
    block = attention + inner + outer
    total = BLOCKS * block + after
    shares = {Site(0, "resid"): 0.0}
    for layer in range(1, BLOCKS + 1):
        shares[Site(layer, "ffn")] = ((layer - 1) * block + attention + inner) / total
        shares[Site(layer, "resid")] = layer * block / total
    return shares


def check_flops(flops: dict[Site, float], projections: int, inner: int, outer: int, after: int) -> None:
    """Compare each site with the count by hand; every site costs more than the one before.

    The products of tokens with tokens may be missing: torch has no formula for the fused attention of a CPU.
    """
    assert list(flops) == sorted(flops)
    counts = [count_by_hand(projections + products, inner, outer, after) for products in (0, TOKEN_PRODUCTS)]
    assert flops in [pytest.approx(expected, rel=1e-6) for expected in counts]
    costs = list(flops.values())
    assert costs == sorted(set(costs))
    assert costs[0] == 0
    for layer in range(1, BLOCKS + 1):
        assert flops[Site(layer - 1, "resid")] < flops[Site(layer, "ffn")] < flops[Site(layer, "resid")]


def test_flops_of_an_encoder_equal_counts_by_hand(backbone_folder: Path) -> None:
    """An encoder has four projections of attention, the FFN, and a pooler of one token at the end."""
    backbone = load(backbone_folder)
    flops = relative_flops(backbone)
    pooler = 2 * HIDDEN**2 if getattr(backbone.model, "pooler", None) is not None else 0
    check_flops(flops, 4 * PROJECTION, FFN_MAP, FFN_MAP, pooler)
    assert flops[Site(BLOCKS, "resid")] == pytest.approx(1, abs=0.02)


def test_flops_of_a_decoder_equal_counts_by_hand(tmp_path: Path) -> None:
    """The decoder has keys and values for half of the heads, a gated FFN, and only a norm after the last block."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=INNER,
        max_position_embeddings=64,
    )
    backbone = load(tiny.save_backbone(tmp_path, config, tiny.build_tokenizer(special=False)))
    flops = relative_flops(backbone)
    check_flops(flops, 3 * PROJECTION, 2 * FFN_MAP, FFN_MAP, 0)
    assert flops[Site(BLOCKS, "resid")] == 1
