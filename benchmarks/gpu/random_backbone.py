"""Backbones of random weights, in any precision and on any device, without files and downloads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModel

from benchmarks.gpu.documents import MAX_TOKENS, Documents, build_tokenizer
from benchmarks.gpu.shapes import Shape
from spin.backbone.batching import bytes_per_token, choose_batch_tokens, tokens_that_fit
from spin.backbone.hub import silence_transformers
from spin.backbone.model import Backbone, Tokens
from spin.backbone.windows import Windows


@dataclass
class LookupBackbone(Backbone):
    """A backbone that looks the token ids of texts up instead of tokenizing them."""

    token_ids: dict[str, list[int]] = field(default_factory=dict)
    """the ids of each text, special ones included"""

    def learn(self, documents: Documents) -> None:
        """Keep the ids of documents."""
        self.token_ids.update(zip(documents.texts, documents.ids, strict=True))

    def tokenize(self, texts: Sequence[str], *, places: bool = False) -> Tokens:
        """The ids of texts that were learned. Texts without token places alone, as classification needs them."""
        assert not places
        count = len(texts)
        windows = Windows([1] * count, [slice(0, 0)] * count, [0] * count)
        return Tokens([self.token_ids[text] for text in texts], [0] * count, windows)


def random_model(shape: Shape) -> Any:
    """A model of random bfloat16 weights on the processor.

    Being bfloat16, they are the same in any precision, so that only the arithmetic differs.
    """
    torch.manual_seed(0)
    with silence_transformers():
        return AutoModel.from_config(shape.config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


def place_model(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A copy of a model with its weights in a precision, on a device.

    Buffers, such as frequencies of positions, keep their type, as in a model that is loaded in that precision.
    """
    placed = copy.deepcopy(model)
    for weights in placed.parameters():
        weights.data = weights.data.to(dtype)
    return placed.to(device)


def open_random_backbone(shape: Shape, model: Any, *, lookup: bool = True) -> Backbone:
    """The backbone of a model that is already on its device; with `lookup` one that looks token ids up.

    Batches are the product's, but no larger than half of the memory that is free now has room for.
    """
    kind = LookupBackbone if lookup else Backbone
    with silence_transformers():
        backbone = kind(
            model,
            build_tokenizer(shape),
            digest="",
            max_tokens=MAX_TOKENS,
            precision=str(model.dtype).removeprefix("torch."),
        )
    backbone.batch_tokens = _batch_tokens(backbone)
    return backbone


def _batch_tokens(backbone: Backbone) -> int:
    widest = max(map(backbone.width, backbone.sites))
    chosen = choose_batch_tokens(backbone.model, widest, backbone.max_tokens)
    if backbone.device.type != "cuda":
        return chosen
    free, _ = torch.cuda.mem_get_info(backbone.device)
    free += torch.cuda.memory_reserved(backbone.device) - torch.cuda.memory_allocated(backbone.device)
    config, weights = backbone.model.config, next(backbone.model.parameters())
    token_bytes = bytes_per_token(
        config.hidden_size, widest, config.num_attention_heads, backbone.max_tokens, weights.element_size()
    )
    return min(chosen, tokens_that_fit(free, token_bytes))
