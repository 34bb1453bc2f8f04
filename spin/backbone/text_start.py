"""The start of a long text, which is all that the tokenizer must see where the text is cut."""

from __future__ import annotations

from typing import Any

_CHARACTERS_PER_TOKEN = 6
"""characters of a start per token; prose has about four"""
_MARGIN = 16
"""tokens of a start beyond those that are read; the last ones could be others if the text went on"""


def can_tokenize_starts(tokenizer: Any) -> bool:
    """Whether a fast `transformers` tokenizer gives a text the same first tokens as its start alone.

    They are if it divides texts at spaces before it looks for tokens, and cuts them at the end.
    """
    backend = tokenizer.backend_tokenizer
    if backend.pre_tokenizer is None or tokenizer.truncation_side != "right":
        return False
    normalized = "a b" if backend.normalizer is None else backend.normalizer.normalize_str("a b")
    return len(backend.pre_tokenizer.pre_tokenize_str(normalized)) > 1


def find_start(text: str, tokens: int) -> str:
    """The start of a text, up to a space, that is likely to have more than `tokens` tokens; else the whole text."""
    limit = _CHARACTERS_PER_TOKEN * (tokens + _MARGIN)
    if len(text) <= limit:
        return text
    end = max(text.rfind(" ", 0, limit), text.rfind("\n", 0, limit))
    return text[: max(end, 0)].rstrip() or text


def suffices(encoding: Any) -> bool:
    """Whether the encoding of a start, cut to the tokens that are read, is that of the whole text."""
    further = encoding.overflowing
    return bool(further) and further[0].special_tokens_mask.count(0) >= _MARGIN
