"""The shapes of the models that are measured: those of real models, and tiny ones of the same architectures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import BertConfig, LlamaConfig, ModernBertConfig

PAD, UNKNOWN, START, END = range(4)
"""ids of the special tokens"""
_SPECIAL = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
_OF_ENCODER = _SPECIAL | {"cls_token_id": START, "sep_token_id": END}


@dataclass(frozen=True)
class Shape:
    """A model's architecture and sizes; its weights will be random."""

    name: str
    config: Any
    """a `transformers` configuration"""
    causal: bool
    """whether a token attends only to those before it, as in a decoder"""

    @property
    def exit_depth(self) -> int:
        """The number of blocks, a third of all, after which documents may exit."""
        return max(1, self.config.num_hidden_layers // 3)


def full_shapes() -> list[Shape]:
    """BERT-base, ModernBERT-base and a decoder of a billion parameters."""
    llama = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        **_SPECIAL,
    )
    return [
        Shape("BERT-base", BertConfig(**_OF_ENCODER), causal=False),
        Shape("ModernBERT-base", ModernBertConfig(**_OF_ENCODER), causal=False),
        Shape("Llama, 1 billion", llama, causal=True),
    ]


def tiny_shapes() -> list[Shape]:
    """The same architectures with a few thousand parameters each, for a run on a processor."""
    sizes: dict[str, Any] = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }
    return [
        Shape("tiny BERT", BertConfig(**sizes, **_OF_ENCODER, num_hidden_layers=3, intermediate_size=64), causal=False),
        Shape(
            "tiny ModernBERT",
            ModernBertConfig(**sizes, **_OF_ENCODER, num_hidden_layers=4, intermediate_size=48, local_attention=16),
            causal=False,
        ),
        Shape(
            "tiny Llama",
            LlamaConfig(**sizes, **_SPECIAL, num_hidden_layers=3, intermediate_size=96, num_key_value_heads=2),
            causal=True,
        ),
    ]
