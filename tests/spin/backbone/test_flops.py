"""The FLOPs of a site, against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from spin.backbone.flops import relative_flops
from spin.backbone.loading import load_backbone
from spin.settings import BackboneSettings
from spin.sites import Site
from tests.support import tiny

TOKENS, HIDDEN, INNER, BLOCKS = 32, 16, 24, 3


def settings(folder: Path) -> BackboneSettings:
    return BackboneSettings(model=str(folder), dtype="float32", device="cpu")


SQUARE, WIDE, PRODUCTS = 2 * TOKENS * HIDDEN**2, 2 * TOKENS * HIDDEN * INNER, 4 * TOKENS**2 * HIDDEN


def by_hand(attention: int, inner: int, outer: int, after: int) -> dict[Site, float]:
    """Shares of the total, from the products of attention, of the two maps of the FFN, and after the last block."""
    block = attention + inner + outer
    whole = BLOCKS * block + after
    found = {Site(0, "resid"): 0.0}
    for layer in range(1, BLOCKS + 1):
        found[Site(layer, "ffn")] = ((layer - 1) * block + attention + inner) / whole
        found[Site(layer, "resid")] = layer * block / whole
    return found


def check(found: dict[Site, float], projections: int, inner: int, outer: int, after: int) -> None:
    """Site by site, in order: each costs more than the one before, the FFN less than the block that it lies in.

    The products of tokens with tokens are counted or not: torch has no formula for the fused attention of a CPU.
    """
    assert list(found) == sorted(found)
    counts = [by_hand(projections + products, inner, outer, after) for products in (0, PRODUCTS)]
    assert found in [pytest.approx(expected, rel=1e-6) for expected in counts]
    costs = list(found.values())
    assert costs == sorted(set(costs))
    assert costs[0] == 0
    for layer in range(1, BLOCKS + 1):
        assert found[Site(layer - 1, "resid")] < found[Site(layer, "ffn")] < found[Site(layer, "resid")]


def test_flops_of_an_encoder(backbone_folder: Path) -> None:
    """Four projections of attention, then the FFN; a pooler of one token at the end."""
    backbone = load_backbone(settings(backbone_folder))
    found = relative_flops(backbone)
    pooler = 2 * HIDDEN**2 if getattr(backbone.model, "pooler", None) is not None else 0
    check(found, 4 * SQUARE, WIDE, WIDE, pooler)
    assert found[Site(BLOCKS, "resid")] == pytest.approx(1, abs=0.02)


def test_flops_of_a_decoder(tmp_path: Path) -> None:
    """Keys and values of half the heads, a gated FFN; nothing comes after the last block but a norm."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=INNER,
        max_position_embeddings=64,
    )
    backbone = load_backbone(settings(tiny.save_backbone(tmp_path, config, tiny.tokenizer(special=False))))
    found = relative_flops(backbone)
    check(found, 3 * SQUARE, 2 * WIDE, WIDE, 0)
    assert found[Site(BLOCKS, "resid")] == 1
