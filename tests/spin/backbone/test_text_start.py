"""Tokenise only the start of long texts that are cut; compare with tokenising all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.backbone.text_start import can_tokenize_starts, find_start, suffices
from spin.settings import BackboneSettings
from tests.support import tiny

PROSE = (
    "The quick brown fox jumps over the lazy dog. It's 42 km to Zürich, she said; isn't it?\n\n"
    "Über allen Gipfeln ist Ruh... See https://example.org/a/b?c=d -- or don't!\tKept.\r\n"
)
PIECES = [*PROSE.split(" "), "x", "aaaaaaaaaaaaaaaaaaaaaaaa", "...\n", "日本語の文章", " ", "\n\n", "\u00a0", "🙂", ""]
TOKENS = 24


def _train(tokenizer: Tokenizer, trainer: Any, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator([PROSE] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", truncation_side=options.get("side", "right")
    )


def _byte_level() -> PreTrainedTokenizerFast:
    """As of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(tokenizer, trainers.BpeTrainer(special_tokens=["[UNK]", "[PAD]"], initial_alphabet=alphabet))


def _word_piece() -> PreTrainedTokenizerFast:
    """As of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _train(tokenizer, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[PAD]"]))


def _unigram() -> PreTrainedTokenizerFast:
    """As of XLM-RoBERTa."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _train(
        tokenizer, trainers.UnigramTrainer(vocab_size=200, special_tokens=["[UNK]", "[PAD]"], unk_token="[UNK]")
    )


def _without_spaces() -> PreTrainedTokenizerFast:
    """As of the first Llama: spaces become characters of words before the text is divided, which it never is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return _train(tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=["[UNK]", "[PAD]"]))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tiny.save_bert(tmp_path_factory.mktemp("backbone"))
    return load_backbone(BackboneSettings(model=str(folder), max_tokens=TOKENS, dtype="float32", device="cpu"))


def _random_texts(count: int) -> list[str]:
    """Texts of all lengths: of prose, of words without spaces, of spaces, and of short and long words."""
    draw = random.Random(0)
    mixtures: list[Sequence[str]] = [PIECES, PROSE.split(), ["x", "y", "-"], [" ", "\n", "x"], ["aaaa", "日本語"]]
    mixtures.append([" " * 9, "x"])  # few tokens for their characters
    return [
        draw.choice([" ", " ", "", "\n"]).join(draw.choices(draw.choice(mixtures), k=draw.randrange(1, 300)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("build", [_byte_level, _word_piece, _unigram])
def test_a_start_gives_the_tokens_of_the_whole_text(
    backbone: Backbone, build: Callable[[], PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = build()
    assert can_tokenize_starts(tokenizer)
    of_starts, of_texts = replace(backbone, tokenizer=tokenizer), replace(backbone, tokenizer=tokenizer)
    monkeypatch.setitem(of_texts.__dict__, "encodes_whole_texts", True)
    texts = _random_texts(400)
    assert sum(len(find_start(text, TOKENS)) < len(text) for text in texts) > 100
    read, expected = of_starts.tokenize(texts, places=True), of_texts.tokenize(texts, places=True)
    assert read.ids == expected.ids
    assert (read.cut, read.unknown) == (expected.cut, expected.unknown)
    assert expected.places is not None
    assert read.places is not None
    assert all((own == other).all() for own, other in zip(read.places, expected.places, strict=True))


def test_the_rest_of_a_long_text_is_not_tokenised(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = Backbone.encode_windows

    def count_characters(self: Backbone, texts: Sequence[str]) -> Any:
        seen.append(sum(map(len, texts)))
        return encode(self, texts)

    monkeypatch.setattr(Backbone, "encode_windows", count_characters)
    tokens = backbone.tokenize(["great film . " * 10_000])
    assert len(seen) == 1
    assert seen[0] < 300
    assert len(tokens.ids[0]) == TOKENS
    assert tokens.cut == [True]


def test_a_start_of_few_tokens_is_not_trusted(backbone: Backbone) -> None:
    text = "great" + " " * 1000 + "great " * 50
    assert backbone.tokenize([text]).ids == backbone.tokenize(["great " * 50]).ids
    short, enough = (backbone.encode_windows(["great " * count]).encodings[0] for count in (TOKENS + 13, TOKENS + 14))
    assert len(short.overflowing) == len(enough.overflowing) == 1
    assert not suffices(short)
    assert suffices(enough)


def test_a_tokenizer_that_joins_words_or_reads_the_end_sees_whole_texts() -> None:
    assert not can_tokenize_starts(_without_spaces())
    tokenizer = _word_piece()
    tokenizer.truncation_side = "left"
    assert not can_tokenize_starts(tokenizer)


def test_a_text_without_spaces_is_its_own_start() -> None:
    text = "日本語" * 1000
    assert find_start(text, TOKENS) == text
    assert find_start("short text", TOKENS) == "short text"


def test_a_start_ends_with_a_word() -> None:
    text = "abcd  ef " * 100
    start = find_start(text, 3)
    assert text.startswith(f"{start} ")
    assert not start.endswith(" ")
