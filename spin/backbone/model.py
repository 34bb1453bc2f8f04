"""A frozen Hugging Face model: its sites, and how its tokenizer turns texts into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spin.attribution.text_words import TokenPlaces, token_places
from spin.backbone.batching import choose_batch_tokens
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.text_start import can_tokenize_starts, find_start, suffices
from spin.backbone.windows import CONTEXT, OWN, Windows, split_windows
from spin.errors import UserError
from spin.sites import Site

DEFAULT_POOLINGS = {False: ("mean", "max"), True: ("last", "mean")}
"""the poolings if the settings name none, by whether the backbone is causal"""


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, special tokens included, cut to the backbone's `max_tokens` or in windows of as many."""

    ids: list[list[int]]
    """one list per window, each of one token or more; a text that is cut is one window"""
    unknown: list[int]
    """n counts: the unknown tokens of each text, in all of its windows"""
    windows: Windows
    """which texts the windows are from; where texts are cut, `unread` is above 0 if something was cut off, and counts
    perhaps only a part of it"""
    places: list[TokenPlaces] | None = None
    """places of the tokens of each list of `ids` in its text, if they were asked for"""

    @property
    def cut(self) -> list[bool]:
        """n flags: whether something of each text is not read."""
        return [unread > 0 for unread in self.windows.unread]

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each text that are read, in all of its windows: those of overlaps count twice."""
        return self.windows.sum_by_text(list(map(len, self.ids)))


@dataclass
class Backbone:
    """A frozen model with one list of blocks, from which `capture_sites` reads. `load_backbone` returns one.

    Raises UserError for a model that is not built from one list of blocks.
    """

    model: Any
    """a `transformers` model, on its device"""
    tokenizer: Any
    """a fast `transformers` tokenizer"""
    digest: str
    """sha256 of weights, configuration and tokenizer"""
    max_tokens: int
    """tokens per text, longer ones are truncated; lowered to the number that the model has positions for"""
    batch_tokens: int = 0
    """tokens per batch, padding included; 0: as many as suit the device"""
    pool_special_tokens: bool = False
    """whether mean and max pool special tokens too"""
    long_texts: str = "cut"
    """cut: a text of more than `max_tokens` is truncated; windows: it is read in windows of as many tokens"""
    window_overlap: int = 0
    """the tokens at the end of a window that the next one reads again as context; 0 where texts are cut"""
    max_windows: int = 1
    """the number of windows of a text that are read; 1 where texts are cut"""
    engine: str = "torch"
    """engine that runs the model: torch or openvino"""
    precision: str = "float32"
    """precision that the model is computed in: float32, bfloat16 or int8"""
    scales: Int8Scales | None = None
    """by which int8 rounds; without them it cannot be computed"""
    compile: bool = False
    """whether a GPU may run a compiled graph of the model"""
    forward_options: dict[str, Any] = field(default_factory=dict)
    """keywords of every call of the model"""
    causal: bool = field(init=False)
    """whether a token attends only to those before it, as in a decoder"""
    blocks_return_tuples: bool = field(init=False, default=False)
    """whether a block returns its hidden states within a tuple"""

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        _ = self.blocks  # raises for unsupported kinds of models
        self.max_tokens = min(self.max_tokens, _position_limit(self.model), self.tokenizer.model_max_length)
        if hasattr(self.model.config, "use_cache"):
            self.forward_options.setdefault("use_cache", False)
        if self.reads_windows:
            self._check_windows()
        else:
            self.window_overlap, self.max_windows = 0, 1
        self.causal = self._is_causal()
        self._special = self._special_tokens()
        self._special_on_cpu = self._special.cpu()
        if not self.batch_tokens:
            self.batch_tokens = choose_batch_tokens(self.model, max(map(self.width, self.sites)), self.max_tokens)

    @property
    def reads_windows(self) -> bool:
        """Whether a text of more than `max_tokens` is read in windows."""
        return self.long_texts == "windows"

    def _check_windows(self) -> None:
        """Raise UserError if a window has no room for new tokens; let windows begin at the start of a text."""
        added = self.tokenizer.num_special_tokens_to_add()
        if self.window_overlap >= self.max_tokens - added:
            raise UserError(
                f"backbone.window_overlap {self.window_overlap}: a window of this backbone has room for "
                f"{self.max_tokens - added} tokens besides {added} special ones; set less than that, or raise "
                "backbone.max_tokens"
            )
        self.tokenizer.truncation_side = "right"

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The one list of `num_hidden_layers` blocks. Raises UserError if the model has none."""
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
        """An encoder's module from token ids to the residual stream; None if there is no single one, as in decoders."""
        module = getattr(self.model, "embeddings", None)
        if module is None or self.model.get_input_embeddings().weight.shape[1] != self.model.config.hidden_size:
            return None
        return module

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return next(self.model.parameters()).device

    @cached_property
    def sites(self) -> list[Site]:
        """The sites that a probe can be offered, sorted. A mixture of experts has no `ffn` sites."""
        resid = [Site(layer, "resid") for layer in range(self.depth + 1)]
        ffn = [] if self._has_experts() else [Site(layer, "ffn") for layer in range(1, self.depth + 1)]
        return sorted(resid + ffn)

    @property
    def final_site(self) -> Site:
        """The site of the last layer after the final norm."""
        return Site(self.depth, "final")

    def width(self, site: Site) -> int:
        """The number of neurons at a site. Raises UserError if its block has no linear map to read `ffn` from."""
        if site.kind == "ffn":
            projection = self.ffn_projection(site.layer)
            return int(projection.weight.shape[0] if isinstance(projection, Conv1D) else projection.in_features)
        return int(self.model.config.hidden_size)

    def ffn_projection(self, layer: int) -> Any:
        """The module whose input is the FFN's inner neurons: a block's last linear map back to the hidden size.

        The rule holds for plain and gated FFNs, because every family registers attention before its FFN.
        Raises UserError if the block has no such map.
        """
        hidden = self.model.config.hidden_size
        maps = [m for m in self.blocks[layer - 1].modules() if _output_width(m) == hidden]
        if not maps:
            raise UserError(f"sites: block {layer} of {type(self.model).__name__} has no linear map to read ffn from")
        return maps[-1]

    def ffn_inputs(self, layer: int) -> list[Any]:
        """The linear maps that lead straight to the FFN's inner neurons: one, or two of a gated FFN.

        None where there is no map of that width, as where one map computes both parts of a gated FFN.
        """
        projection, width = self.ffn_projection(layer), self.width(Site(layer, "ffn"))
        maps = [m for m in self.blocks[layer - 1].modules() if _output_width(m) is not None]
        before = takewhile(lambda m: m is not projection, maps)
        return list(takewhile(lambda m: _output_width(m) == width, reversed(list(before))))

    def tokenize(self, texts: Sequence[str], *, places: bool = False) -> Tokens:
        """Token ids of texts, with `places` also where they stand. A text of no tokens gets the padding token."""
        read, windows = split_windows(self._encode(texts), self.window_overlap, self.max_windows)
        # where the tokenizer adds no special tokens, an empty text has no token to read
        ids = [window.ids or [self.pad_id] for window in read]
        found = None
        if places:
            texts_of = [text for text, count in zip(texts, windows.counts, strict=True) for _ in range(count)]
            found = _find_places(read, texts_of)
        return Tokens(ids, windows.sum_by_text(self._count_unknown(ids)), windows, found)

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        """The encodings of texts, from their starts where these suffice."""
        starts = list(texts) if self.encodes_whole_texts else [find_start(text, self.max_tokens) for text in texts]
        encodings: list[Any] = self.encode_windows(starts).encodings if starts else []
        longer = [row for row, text in enumerate(texts) if len(starts[row]) < len(text)]
        if whole := [row for row in longer if not suffices(encodings[row])]:
            again = self.encode_windows([texts[row] for row in whole]).encodings
            for row, encoding in zip(whole, again, strict=True):
                encodings[row] = encoding
        return encodings

    @cached_property
    def encodes_whole_texts(self) -> bool:
        """Whether `tokenize` encodes the whole of a text, whatever part of it is read."""
        return self.reads_windows or not can_tokenize_starts(self.tokenizer)

    def encode_windows(self, text: str | Sequence[str]) -> Any:
        """The tokenizer's encoding of a text or of several, each with further windows as its `overflowing`."""
        return self.tokenizer(
            text,
            truncation=True,
            max_length=self.max_tokens,
            stride=self.window_overlap,
            return_attention_mask=False,
        )

    def _count_unknown(self, ids: Sequence[list[int]]) -> list[int]:
        """The unknown tokens of each window.

        A tokenizer of bytes knows everything; some name as unknown the token that begins or ends a text: those have 0.
        """
        unknown, tokenizer = self.tokenizer.unk_token_id, self.tokenizer
        if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            return [0] * len(ids)
        return [row.count(unknown) for row in ids]

    @cached_property
    def pad_id(self) -> int:
        """The token id of padding. It is masked, so any would do, except in families that count positions by it."""
        candidates = (self.tokenizer.pad_token_id, getattr(self.model.config, "pad_token_id", None))
        return next((i for i in candidates if isinstance(i, int) and 0 <= i < self.model.config.vocab_size), 0)

    def pad_batch(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both (B, T), of B texts padded on the right, which is exact for decoders and encoders."""
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        # a tensor of lists takes twelve times as long, for which a GPU would wait
        tokens = torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64))
        # guarded by test_labels_do_not_depend_on_the_shard_size; broken by:
        #   return torch.full(mask.shape, self.pad_id).masked_scatter_(mask, tokens), torch.ones_like(mask)
        return torch.full(mask.shape, self.pad_id).masked_scatter_(mask, tokens), mask

    def pad_tokens(self, tokens: Tokens, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both (B, T), of some rows of `tokens.ids`, padded as `pad_batch` does.

        The mask of windows is `OWN` where a token is the window's own, `CONTEXT` where the window before pools it, and
        0 for padding.
        """
        ids, mask = self.pad_batch([tokens.ids[row] for row in rows])
        if not self.reads_windows:
            return ids, mask
        mask = mask.long() * OWN
        for index, row in enumerate(rows):
            mask[index, tokens.windows.contexts[row]] = CONTEXT
        return ids, mask

    def content_mask(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The mask (B, T) of the tokens that mean and max pool, from token ids and mask (B, T).

        Special tokens and a decoder's first position, an attention sink, carry nothing of the text and are left out,
        unless a text has no other tokens.
        """
        if self.pool_special_tokens:
            return mask
        content = self._tokens_of_text(ids, mask, self._special)
        return content | (mask & ~content.any(1, keepdim=True))

    def _tokens_of_text(self, ids: Tensor, mask: Tensor, special: Tensor) -> Tensor:
        content = mask & ~special[ids]
        if self.causal:
            content = content & (mask.long().cumsum(1) > 1)
        return content

    def find_content(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The mask (B, T) of the content, as `content_mask`, but empty where there is none. Runs on the processor."""
        return mask if self.pool_special_tokens else self._tokens_of_text(ids, mask, self._special_on_cpu)

    def count_own(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The number of own tokens of each window (B,), and of those that are content, which may be none.

        Takes the results of `pad_tokens` for windows.
        """
        own = mask == OWN
        return own.sum(1), (own & self.find_content(ids, mask > 0)).sum(1)

    def _special_tokens(self) -> Tensor:
        """Mask of the special tokens, over the ids of the vocabulary."""
        special = torch.zeros(max(self.model.config.vocab_size, len(self.tokenizer)), dtype=torch.bool)
        special[torch.tensor(self.tokenizer.all_special_ids, dtype=torch.int64)] = True
        return special.to(self.device)

    def truncate(self, depth: int) -> None:
        """Free the blocks above `depth`; from then on only sites up to this depth can be read.

        The first block always stays: resid.00 is the input of its call, and ModernBERT looks at it beforehand.
        """
        _ = self.sites  # cached now, from the whole model
        for layer in range(max(depth, 1), self.depth):
            self.blocks[layer] = nn.Identity()

    def reaches(self, depth: int) -> bool:
        """Whether no block up to `depth` was freed by `truncate`."""
        return not any(isinstance(block, nn.Identity) for block in self.blocks[:depth])

    def _is_causal(self) -> bool:
        """Whether a token attends only to those before it, by a test: no list of families can be complete."""
        special = set(self.tokenizer.all_special_ids)
        plain = [i for i in range(self.model.config.vocab_size) if i not in special][:3]
        pair = torch.tensor([[plain[0], plain[1]], [plain[0], plain[2]]], device=self.device)

        def inspect(_module: Any, _args: Any, output: Any) -> None:
            self.blocks_return_tuples = not isinstance(output, Tensor)

        handle = self.blocks[0].register_forward_hook(inspect)
        with torch.inference_mode():
            output = self.model(input_ids=pair, attention_mask=torch.ones_like(pair), **self.forward_options)
        handle.remove()
        first, other = output[0][:, 0]
        return bool(torch.allclose(first, other, rtol=1e-3, atol=1e-3))

    def _has_experts(self) -> bool:
        return any("experts" in name.split(".") for name, _ in self.blocks.named_modules())


def _find_places(encodings: Sequence[Any], texts: Sequence[str]) -> list[TokenPlaces]:
    """The places of the tokens of texts; the padding token of a text of no tokens stands nowhere."""
    nowhere = np.array([[-1, 0, 0]], np.int32)
    return [token_places(e, text) if len(e) else nowhere for e, text in zip(encodings, texts, strict=True)]


def _output_width(module: nn.Module) -> int | None:
    """The number of outputs of a linear map; None for another module."""
    if isinstance(module, Conv1D):  # GPT-2's linear map, its weight transposed
        return int(module.nf)
    return module.out_features if isinstance(module, nn.Linear) else None


def _position_limit(model: Any) -> int:
    """The tokens per text that the position embeddings have room for; RoBERTa's start after the padding index."""
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    words = model.get_input_embeddings()
    others = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    positions = [m for m in others if m.num_embeddings == limit]
    return limit - max((m.padding_idx + 1 for m in positions if m.padding_idx is not None), default=0)
