"""Texts with words that do not depend on their class, and a tiny backbone whose tokenizer knows these words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support import tiny

WORDS = [f"{a}{b}{c}ord" for a in "bdfg" for b in "aeiou" for c in "rstz"]


def save_bert(folder: Path) -> Path:
    """Save an encoder of 3 blocks that tells the words apart."""
    from transformers import BertConfig

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "FILLER", [*tiny.FILLER, *WORDS])
        tokenizer = tiny.build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=64,
        initializer_range=0.6,
    )
    return tiny.save_backbone(folder, config, tokenizer)


def add_words(texts: Sequence[str]) -> list[str]:
    """The texts, each with four of the words on average."""
    draw, words = np.random.default_rng(0), np.array(WORDS)
    return [f"{text} {' '.join(words[draw.random(len(words)) < 4 / len(words)])}" for text in texts]
