"""A frozen Hugging Face model: what can be read from it and how text becomes tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spin.backbone.batching import ON_PROCESSOR
from spin.errors import UserError
from spin.sites import Site

DEFAULT_POOLINGS = {False: ("mean", "max"), True: ("last", "mean")}


@dataclass(frozen=True)
class Tokens:
    """Token ids of some texts, special tokens included, cut to the backbone's `max_tokens`."""

    ids: list[list[int]]
    truncated: int
    """how many of the texts were cut"""
    unknown: list[int]
    """of each text, its tokens that stand for what the tokenizer does not know"""


@dataclass
class Backbone:
    """A frozen model with one list of blocks, ready to be read by `capture`. Make one with `load_backbone`."""

    model: Any
    tokenizer: Any
    digest: str
    """sha256 of weights, configuration and tokenizer"""
    max_tokens: int
    batch_tokens: int = ON_PROCESSOR
    pool_special_tokens: bool = False
    engine: str = "torch"
    """what runs it: torch or openvino"""
    precision: str = "float32"
    """what it is computed in: float32, bfloat16 or int8"""
    uncalibrated: str = "float32"
    """what takes the place of int8 where there are no texts to scale it by"""
    compile: bool = False
    """whether a GPU may run a compiled graph of it"""
    forward_options: dict[str, Any] = field(default_factory=dict)
    causal: bool = field(init=False)
    """whether a token sees only those before it: a decoder"""
    gives_tuples: bool = field(init=False, default=False)
    """whether a block gives its hidden states within a tuple"""

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        _ = self.blocks  # refuses other kinds of models
        self.max_tokens = min(self.max_tokens, _position_limit(self.model), self.tokenizer.model_max_length)
        if hasattr(self.model.config, "use_cache"):
            self.forward_options.setdefault("use_cache", False)
        self.causal = self._is_causal()
        self._special = self._special_tokens()

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The one list of `num_hidden_layers` blocks."""
        depth = getattr(self.model.config, "num_hidden_layers", None)
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if not lists or getattr(self.model.config, "is_encoder_decoder", False):
            raise UserError(
                f"backbone: {type(self.model).__name__} is not built from one list of blocks; "
                "expected an encoder or a decoder such as BERT or Llama"
            )
        return lists[0]

    @cached_property
    def embeddings(self) -> nn.Module | None:
        """An encoder's one module from token ids to the residual stream; None where it is not one, as in decoders."""
        whole = getattr(self.model, "embeddings", None)
        if whole is None or self.model.get_input_embeddings().weight.shape[1] != self.model.config.hidden_size:
            return None
        return whole

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def sites(self) -> list[Site]:
        """All that a probe can be offered, in order. A mixture of experts has no `ffn` sites."""
        resid = [Site(layer, "resid") for layer in range(self.depth + 1)]
        ffn = [] if self._has_experts() else [Site(layer, "ffn") for layer in range(1, self.depth + 1)]
        return sorted(resid + ffn)

    @property
    def final(self) -> Site:
        """The last layer after the final norm."""
        return Site(self.depth, "final")

    def width(self, site: Site) -> int:
        if site.kind == "ffn":
            projection = self.ffn_projection(site.layer)
            return int(projection.weight.shape[0] if isinstance(projection, Conv1D) else projection.in_features)
        return int(self.model.config.hidden_size)

    def ffn_projection(self, layer: int) -> Any:
        """The module whose input is the FFN's inner neurons: a block's last linear map back to the hidden size.

        One rule for plain and gated FFNs, because every family registers attention before its FFN.
        """
        hidden = self.model.config.hidden_size
        maps = [m for m in self.blocks[layer - 1].modules() if _width_out(m) == hidden]
        if not maps:
            raise UserError(f"sites: block {layer} of {type(self.model).__name__} has no linear map to read ffn from")
        return maps[-1]

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        if not texts:
            return Tokens([], 0, [])
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, return_attention_mask=False)
        # a text of no tokens at all (a tokenizer without special tokens) still needs one to read
        ids = [row or [self.pad_id] for row in encoded["input_ids"]]
        return Tokens(ids, sum(bool(e.overflowing) for e in encoded.encodings), self._unknown(ids))

    def _unknown(self, ids: Sequence[list[int]]) -> list[int]:
        """Tokenizers of bytes know everything; some of them name a token for unknown that begins or ends a text."""
        unknown, tokenizer = self.tokenizer.unk_token_id, self.tokenizer
        if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            return [0] * len(ids)
        return [row.count(unknown) for row in ids]

    @cached_property
    def pad_id(self) -> int:
        """What fills a batch up; masked, so any id would do but for families that count positions by it."""
        known = (self.tokenizer.pad_token_id, getattr(self.model.config, "pad_token_id", None))
        return next((i for i in known if isinstance(i, int) and 0 <= i < self.model.config.vocab_size), 0)

    def batch(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both (B, T), padded on the right: exact for causal models and for encoders alike."""
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(width) < lengths.unsqueeze(1)
        return ids, mask

    def content(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The mask (B, T) of the tokens that mean and max see.

        Special tokens and a decoder's first position, an attention sink, say nothing of the text and are left out,
        unless nothing else is there.
        """
        if self.pool_special_tokens:
            return mask
        kept = mask & ~self._special[ids]
        if self.causal:
            kept = kept & (mask.long().cumsum(1) > 1)
        return kept | (mask & ~kept.any(1, keepdim=True))

    def _special_tokens(self) -> Tensor:
        """(vocabulary,) whether a token is a special one."""
        found = torch.zeros(max(self.model.config.vocab_size, len(self.tokenizer)), dtype=torch.bool)
        found[torch.tensor(self.tokenizer.all_special_ids, dtype=torch.int64)] = True
        return found.to(self.device)

    def cut(self, depth: int) -> None:
        """Free the blocks above `depth`. Only sites up to there can be read from now on.

        The first block stays: resid.00 is read where it is called, and ModernBERT looks at it for that.
        """
        _ = self.sites  # looks at the whole model
        for layer in range(max(depth, 1), self.depth):
            self.blocks[layer] = nn.Identity()

    def _is_causal(self) -> bool:
        """Whether a token sees only those before it. Observed, not looked up: no list of families can be complete."""
        special = set(self.tokenizer.all_special_ids)
        plain = [i for i in range(self.model.config.vocab_size) if i not in special][:3]
        pair = torch.tensor([[plain[0], plain[1]], [plain[0], plain[2]]], device=self.device)

        def look(_module: Any, _args: Any, output: Any) -> None:
            self.gives_tuples = not isinstance(output, Tensor)

        handle = self.blocks[0].register_forward_hook(look)
        with torch.inference_mode():
            output = self.model(input_ids=pair, attention_mask=torch.ones_like(pair), **self.forward_options)
        handle.remove()
        first, other = output[0][:, 0]
        return bool(torch.allclose(first, other, rtol=1e-3, atol=1e-3))

    def _has_experts(self) -> bool:
        return any("experts" in name.split(".") for name, _ in self.blocks.named_modules())


def _width_out(module: nn.Module) -> int | None:
    if isinstance(module, Conv1D):  # GPT-2's linear map, its weight transposed
        return int(module.nf)
    return module.out_features if isinstance(module, nn.Linear) else None


def _position_limit(model: Any) -> int:
    """Tokens that the position embeddings have room for; RoBERTa's start after the padding index."""
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    words = model.get_input_embeddings()
    others = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    tables = [m for m in others if m.num_embeddings == limit]
    return limit - max((m.padding_idx + 1 for m in tables if m.padding_idx is not None), default=0)
