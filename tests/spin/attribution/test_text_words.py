"""Words and stretches of tokens, against loops over single tokens and words."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from spin.attribution.text_words import find_stretches, group_tokens, token_places
from spin.pages.explanation import stretches
from tests.support import tiny

Token = tuple[int, int, int]


def words_in_a_loop(tokens: list[Token]) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the spans of the words of one text, and the word of every token."""
    spans: list[tuple[int, int]] = []
    index_of: dict[int, int] = {}
    word_of = []
    for word, start, end in tokens:
        if word >= 0 and word in index_of:
            spans[index_of[word]] = (spans[index_of[word]][0], end)
        else:
            if word >= 0:
                index_of[word] = len(spans)
            spans.append((start, end))
        word_of.append(index_of[word] if word >= 0 else len(spans) - 1)
    return spans, word_of


@st.composite
def texts_of_tokens(draw: st.DrawFn) -> list[list[Token]]:
    """Texts of tokens whose words ascend, with special tokens anywhere; some overlap, none begins before its word."""
    texts = []
    for _ in range(draw(st.integers(0, 4))):
        word, word_start, position, tokens = 0, 0, 0, []
        for _ in range(draw(st.integers(0, 8))):
            if draw(st.booleans()):
                tokens.append((-1, 0, 0))
            start = position + draw(st.integers(-1, 1)) * (position > 0)
            if draw(st.booleans()):
                word, word_start = word + 1, start
            start = max(start, word_start)
            position = start + draw(st.integers(0, 3))
            tokens.append((word, start, position))
        texts.append(tokens)
    return texts


@given(texts_of_tokens())
def test_tokens_are_grouped_as_in_a_loop(texts: list[list[Token]]) -> None:
    owners = np.repeat(np.arange(len(texts)), list(map(len, texts)))
    places = np.array([token for tokens in texts for token in tokens], np.int32).reshape(-1, 3)
    words = group_tokens(owners, places)
    offset, spans, word_of, text_of = 0, [], [], []
    for number, tokens in enumerate(texts):
        own, indices = words_in_a_loop(tokens)
        spans += own
        text_of += [number] * len(own)
        word_of += [offset + index for index in indices]
        offset += len(own)
    assert list(zip(words.starts.tolist(), words.ends.tolist(), strict=True)) == spans
    assert (words.owners.tolist(), words.word_of.tolist()) == (text_of, word_of)

    found = find_stretches(words.owners, words.starts, words.ends)
    expected = [
        (number, start, end, sorted(index + text_of.index(number) for index in indices))
        for number in sorted(set(text_of))
        for start, end, indices in stretches([spans[i] for i in range(len(spans)) if text_of[i] == number])
    ]
    actual = [
        (owner, start, end, np.flatnonzero(found[3] == index).tolist())
        for index, (owner, start, end) in enumerate(zip(*(each.tolist() for each in found[:3]), strict=True))
    ]
    assert actual == expected


@pytest.mark.parametrize("kind", ["metaspace", "normalizer", "bytes"])
def test_words_stand_between_white_space_where_a_tokenizer_does_not_tell_them_apart(kind: str) -> None:
    """As those of Llama, Mistral and Gemma; the white space before a word is no part of it."""
    pieces = ["▁good", "▁film", "▁b", "ad", "▁"] if kind != "bytes" else ["good", "Ġfilm", "Ġb", "ad", "Ġ"]
    characters = {character for piece in pieces for character in piece}
    vocabulary = {piece: number for number, piece in enumerate(sorted(characters) + pieces)}
    merges = [(piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece))]
    known = [(a, b) for a, b in merges if a in vocabulary and b in vocabulary]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, known))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
    elif kind == "normalizer":
        parts = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(parts)
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    text = "good film  bad"
    places = token_places(tokenizer.encode(text), text)
    words = group_tokens(np.zeros(len(places), np.int64), places)
    found = [text[start:end] for start, end in zip(words.starts, words.ends, strict=True)]
    assert [word for word in found if word.strip()] == ["good", "film", "bad"]
    trailing = token_places(tokenizer.encode(text + " "), text + " ")
    assert trailing[trailing[:, 0] == places[-1, 0]][:, 2].max() == len(text)
    assert token_places(tokenizer.encode("good"), "good")[:, 0].tolist() == [0] * len(tokenizer.encode("good"))


def test_places_are_those_of_the_tokenizer() -> None:
    text = "the crew was late!"
    encoding = tiny.build_tokenizer()(text).encodings[0]
    assert token_places(encoding, text).tolist() == [
        [-1, 0, 0], [0, 0, 3], [1, 4, 8], [2, 9, 12], [3, 13, 17], [4, 17, 18], [-1, 0, 0],
    ]  # fmt: skip
