"""Texts that are read in windows have the values of a plain loop over windows that are cut by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import spin.activations.portions
from spin.activations.engines.encoder import NeuronEncoder, split_segments
from spin.activations.engines.engine import TorchEngine
from spin.activations.engines.openvino_engine import OpenVinoEngine
from spin.activations.engines.torch_compile import compile_encoder
from spin.activations.extract import count_tokens, extract, read_activations
from spin.activations.features import Features
from spin.activations.merge_windows import WindowShares
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.backbone.windows import split_windows
from spin.errors import UserError
from spin.poolings.mean import Mean
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn, Site
from tests.spin.backbone.test_model import FAMILIES, Family
from tests.support import tiny

TEXTS = (
    "fine",
    "the film was late and the crew was lovely",
    "",
    "a day of great films and broken tables on it the crew walks under the awful paper . " * 2,
    "[SEP] " * 15,  # no content at all, in several windows
    "[SEP] " * 9 + "bright and warm " + "[PAD] " * 7 + "dull ! " * 9,  # windows without content between others
    "seven " * 31,
    "under the table " * 12,
)
ENCODER = next(family for family in FAMILIES if family.name == "bert")
DECODERS = tuple(family for family in FAMILIES if family.name in ("gpt2", "llama"))


def save(family: Family, folder: Path) -> Path:
    return tiny.save_backbone(folder, family.config(), tiny.build_tokenizer(special=not family.causal))


def load(folder: Path, **settings: Any) -> Backbone:
    given = {"dtype": "float32", "device": "cpu", "batch_tokens": 48, "max_tokens": 10, "long_texts": "windows"}
    return load_backbone(BackboneSettings(model=str(folder), **{**given, "window_overlap": 3, **settings}))


@pytest.fixture(scope="module", params=(ENCODER, *DECODERS), ids=lambda family: family.name)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(ENCODER, tmp_path_factory.mktemp("bert"))


def list_columns(backbone: Backbone) -> list[FeatureColumn]:
    sites = [*backbone.sites, backbone.final_site]
    return [FeatureColumn(site, pooling) for site in sites for pooling in ("first", "last", "max", "mean")]


@dataclass(frozen=True)
class Window:
    """A window as the plain loop makes it."""

    ids: list[int]
    own: list[bool]
    content: list[bool]


def cut_by_hand(backbone: Backbone, text: str) -> tuple[list[Window], int]:
    """The windows of a text and the number of tokens beyond them."""
    tokenizer, overlap = backbone.tokenizer, backbone.window_overlap
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    before, after = ([2], [3]) if tokenizer.num_special_tokens_to_add() == 2 else ([2], [])
    room, start, windows = backbone.max_tokens - len(before) - len(after), 0, []
    while True:
        inner = tokens[start : start + room]
        context = overlap if start else 0
        ids = [*before, *inner, *after]
        own = [True] * len(before) + [index >= context for index in range(len(inner))] + [True] * len(after)
        special = [token in tokenizer.all_special_ids for token in ids]
        sinks = [backbone.causal and index == 0 for index in range(len(ids))]
        plain = [not (s or sink) for s, sink in zip(special, sinks, strict=True)]
        content = own if backbone.pool_special_tokens else [o and p for o, p in zip(own, plain, strict=True)]
        windows.append(Window(ids, own, content))
        if start + room >= len(tokens) or len(windows) == backbone.max_windows:
            return windows, max(0, len(tokens) - start - room)
        start += room - overlap


def read_by_hand(backbone: Backbone, text: str) -> dict[FeatureColumn, np.ndarray]:
    """The value of every column of `resid` and `final`, from the hidden states of one window after another."""
    windows, _ = cut_by_hand(backbone, text)
    states = []
    for window in windows:
        ids = torch.tensor([window.ids])
        with torch.inference_mode():
            out = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        states.append([*out.hidden_states[:-1], out.last_hidden_state])
    has_content = any(any(window.content) for window in windows)
    values = {}
    for column in list_columns(backbone):
        if column.site.kind == "ffn" or (column.site.kind == "resid" and column.site.layer == backbone.depth):
            continue  # not among the hidden states; a decoder's last ones are normed
        layer = -1 if column.site.kind == "final" else column.site.layer
        rows = [state[layer][0].double().numpy() for state in states]
        if column.pooling in ("first", "last"):
            values[column] = rows[0][0] if column.pooling == "first" else rows[-1][-1]
            continue
        if column.site.kind == "final":
            pooled = [row[window.own] for row, window in zip(rows, windows, strict=True)]
        elif has_content:
            pooled = [row[window.content] for row, window in zip(rows, windows, strict=True)]
        else:
            pooled = [rows[0]]  # as a text that is cut
        tokens = np.concatenate(pooled)
        values[column] = tokens.mean(0) if column.pooling == "mean" else tokens.max(0)
    return values


def check_by_hand(backbone: Backbone, features: Features, texts: Sequence[str], *, abs: float = 1e-5) -> None:
    """Compare every column that hidden states show, and every count."""
    for row, text in enumerate(texts):
        for column, expected in read_by_hand(backbone, text).items():
            assert features.columns[column][row] == pytest.approx(expected, rel=1e-4, abs=abs), (column, text)
        windows, unread = cut_by_hand(backbone, text)
        assert features.windows is not None
        assert features.unread_tokens is not None
        assert (features.windows[row], features.unread_tokens[row]) == (len(windows), unread)
        assert features.n_tokens[row] == sum(len(window.ids) for window in windows)
    assert features.truncated == sum(cut_by_hand(backbone, text)[1] > 0 for text in texts)


@pytest.mark.parametrize("overlap", [0, 1, 3, 7])
@pytest.mark.parametrize("pool_special_tokens", [False, True])
def test_every_pooling_has_the_value_of_a_plain_loop(folder: Path, overlap: int, pool_special_tokens: bool) -> None:
    backbone = load(folder, window_overlap=overlap, pool_special_tokens=pool_special_tokens)
    features = extract(backbone, TEXTS, list_columns(backbone))
    check_by_hand(backbone, features, TEXTS)
    assert features.windows is not None
    assert features.windows.max() > 3


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_what_lies_beyond_the_last_window_is_counted_and_not_read(folder: Path, limit: int) -> None:
    backbone = load(folder, max_windows=limit)
    features = extract(backbone, TEXTS, list_columns(backbone))
    check_by_hand(backbone, features, TEXTS)
    assert features.truncated > 0


def test_pooled_ffn_neurons_are_merged_from_those_of_the_windows(folder: Path) -> None:
    """The neurons of the FFN, which hidden states do not show, are read window by window from a backbone that cuts."""
    backbone, cut = load(folder, window_overlap=0), load(folder, long_texts="cut")
    text = "the film was late and the crew was lovely on a day of great paper under it"
    words, room = text.split(), 10 - backbone.tokenizer.num_special_tokens_to_add()
    windows = [" ".join(words[start : start + room]) for start in range(0, len(words), room)]
    weights = np.array([len(window.split()) for window in windows], float)
    columns = [column for column in list_columns(backbone) if column.site.kind == "ffn"]
    whole, parts = extract(backbone, [text], columns).columns, extract(cut, windows, columns).columns
    assert len(windows) > 1
    for column in columns:
        values = parts[column]
        expected = {
            "first": values[0],
            "last": values[-1],
            "max": values.max(0),
            "mean": weights @ values / weights.sum(),
        }[column.pooling]
        assert whole[column][0] == pytest.approx(expected, rel=1e-4, abs=1e-5), column


def test_texts_of_one_window_have_exactly_the_values_of_texts_that_are_cut(folder: Path) -> None:
    texts = ["fine", "", *("fine " * (row % 8) + "late" for row in range(40))]
    cut, windows = load(folder, long_texts="cut"), load(folder)
    columns = list_columns(cut)
    expected, actual = extract(cut, texts, columns), extract(windows, texts, columns)
    for column in columns:
        assert np.array_equal(expected.columns[column], actual.columns[column]), column
    assert np.array_equal(expected.n_tokens, actual.n_tokens)
    assert (expected.windows, expected.unread_tokens) == (None, None)
    assert actual.windows is not None
    assert set(actual.windows) == {1}


def test_a_text_without_content_has_the_values_of_one_that_is_cut(folder: Path) -> None:
    texts = ["", "[SEP] " * 40]
    cut, windows = load(folder, long_texts="cut"), load(folder)
    columns = [column for column in list_columns(cut) if column.site.kind != "final" and column.pooling != "last"]
    expected, actual = extract(cut, texts, columns), extract(windows, texts, columns)
    for column in columns:
        assert actual.columns[column] == pytest.approx(expected.columns[column], rel=1e-4, abs=1e-5), column


def test_values_do_not_depend_on_the_order_of_texts(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on the portions that are tokenised at once."""
    backbone = load(bert)
    expected = extract(backbone, TEXTS, list_columns(backbone))
    order = np.random.default_rng(0).permutation(len(TEXTS))
    monkeypatch.setattr(spin.activations.portions, "_FIRST_PORTION", 2)
    monkeypatch.setattr(spin.activations.portions, "_LARGEST_PORTION", 3)
    actual = extract(backbone, [TEXTS[row] for row in order], list_columns(backbone))
    assert actual.values == pytest.approx(expected.values[order], rel=1e-5, abs=1e-5)


def test_portions_count_what_is_encoded(bert: Path) -> None:
    """All of a text that is read in windows, even if few of them are read; otherwise its start."""
    lengths = [400_000] * 6
    cut, windows = load(bert, long_texts="cut"), load(bert, max_windows=2)
    divide = spin.activations.portions.divide_texts
    assert [len(portion) for portion in divide(cut, lengths)] == [6]
    assert max(len(portion) for portion in divide(windows, lengths)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TorchEngine, OpenVinoEngine])
def test_the_windows_of_a_text_exit_together(bert: Path, engine: Any) -> None:
    """An exit sees the merged values of whole texts, and those of texts that go on are as without exits."""
    backbone = load(bert)
    columns = list_columns(backbone)[:-4]
    neurons = {column: np.arange(1, backbone.width(column.site), 4) for column in columns}
    segments = split_segments(neurons, [1, 2])
    texts = [*TEXTS, *(f"{text} lovely" for text in TEXTS)] * 3
    whole = read_activations(TorchEngine(backbone, split_segments(neurons, [])), texts)
    ends = np.cumsum([sum(segment.widths(backbone)) for segment in segments])
    seen: dict[int, set[int]] = {0: set(), 1: set()}

    def keep_mask(index: int, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        assert values == pytest.approx(whole.values[rows, : ends[index]], rel=1e-3, abs=1e-3)
        assert len(set(rows)) == len(rows)
        seen[index] |= set(rows.tolist())
        return np.asarray(rows % 3 > index)

    progress: list[int] = []
    features = read_activations(engine(backbone, segments), texts, keep_mask=keep_mask, progress=progress.append)
    assert features.depth is not None
    assert features.depth.tolist() == [(1, 2, backbone.depth)[row % 3] for row in range(len(texts))]
    assert (seen[0], sum(progress)) == (set(range(len(texts))), len(texts))
    assert seen[1] == {row for row in seen[0] if row % 3}
    for row in range(len(texts)):
        end = ends[row % 3]
        assert features.values[row, :end] == pytest.approx(whole.values[row, :end], rel=1e-3, abs=1e-3)
        assert np.isnan(features.values[row, end:]).all()


def test_all_texts_may_exit_at_the_first_exit(bert: Path) -> None:
    backbone = load(bert)
    segments = split_segments({column: np.arange(3) for column in list_columns(backbone)[:-4]}, [1])
    features = read_activations(
        TorchEngine(backbone, segments), TEXTS, keep_mask=lambda _index, rows, _values: np.zeros(len(rows), bool)
    )
    assert features.depth is not None
    assert set(features.depth) == {1}


@pytest.mark.slow
def test_openvino_agrees_with_a_plain_loop(folder: Path) -> None:
    backbone = load(folder)
    columns = list_columns(backbone)
    some = {column: np.arange(backbone.width(column.site)) for column in columns}
    check_by_hand(
        backbone, read_activations(OpenVinoEngine(backbone, split_segments(some, [])), TEXTS), TEXTS, abs=1e-3
    )


@pytest.mark.slow
def test_a_compiled_encoder_agrees(bert: Path) -> None:
    """torch.compile's graph, here run by its reference backend, knows the tokens that a window reads as context."""
    backbone = load(bert)
    segment = split_segments({column: np.arange(5) for column in list_columns(backbone)}, [])[0]
    encoder = NeuronEncoder(backbone, segment)
    compiled = compile_encoder(encoder, backend="eager")
    tokens = backbone.tokenize(TEXTS)
    ids, mask = backbone.pad_tokens(tokens, range(len(tokens.ids)))
    with torch.inference_mode():
        assert torch.allclose(compiled(ids, mask)[0], encoder(ids, mask)[0], atol=1e-5)
        assert not torch.allclose(encoder(ids, (mask > 0).long())[0], encoder(ids, mask)[0], atol=1e-2)


def test_count_tokens_counts_windows(bert: Path) -> None:
    backbone = load(bert, max_windows=2)
    counted, read = count_tokens(backbone, TEXTS), extract(backbone, TEXTS, list_columns(backbone)[:1])
    for name in ("n_tokens", "n_unknown", "windows", "unread_tokens"):
        assert np.array_equal(getattr(counted, name), getattr(read, name)), name
    assert counted.truncated == read.truncated
    both = Features.concatenate([counted, read])
    assert both.unread_tokens is not None
    assert np.array_equal(both.unread_tokens, np.tile(counted.unread_tokens, 2))


def test_windows_begin_at_the_start_where_the_tokenizer_truncates_on_the_left(bert: Path) -> None:
    backbone = load(bert)
    expected = extract(backbone, TEXTS, list_columns(backbone)).values
    backbone.tokenizer.truncation_side = "left"
    again = Backbone(
        model=backbone.model, tokenizer=backbone.tokenizer, digest="", max_tokens=10, batch_tokens=48,
        long_texts="windows", window_overlap=3, max_windows=16,
    )  # fmt: skip
    assert np.array_equal(extract(again, TEXTS, list_columns(again)).values, expected)


def test_an_overlap_that_fills_a_window_is_refused(bert: Path) -> None:
    with pytest.raises(UserError, match=r"window_overlap 8: a window of this backbone has room for 8 tokens besides 2"):
        load(bert, window_overlap=8)
    load(bert, window_overlap=7)
    load(bert, window_overlap=8, long_texts="cut")


@pytest.mark.parametrize(
    "post_processor",
    [
        processors.ByteLevel(trim_offsets=True),
        processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
            ]
        ),
        processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
    ],
    ids=["no special tokens", "a first token, as Llama", "both ends, as RoBERTa"],
)
@pytest.mark.parametrize("overlap", [0, 4])
def test_the_own_tokens_of_windows_are_those_of_the_text(post_processor: Any, overlap: int) -> None:
    """By tokenizers of bytes with each kind of special tokens."""
    text = "It wasn't “late”: 9:45, naïve — so what? The crew and 😀 were lovely. " * 4
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.train_from_iterator([text], trainers.BpeTrainer(vocab_size=290, special_tokens=["<s>", "</s>"]))
    core.post_processor = post_processor
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    encodings = tokenizer([text], truncation=True, max_length=12, stride=overlap).encodings
    read, windows = split_windows(encodings, overlap, 1000)
    ids, own = [window.ids for window in read], []
    for row, context in zip(ids, windows.contexts, strict=True):
        positions = [index for index in range(len(row)) if not context.start <= index < context.stop]
        own += [row[index] for index in positions if row[index] > 1]
    assert own == expected
    assert (windows.unread, windows.counts) == ([0], [len(ids)])
    room = 12 - tokenizer.num_special_tokens_to_add()
    _, some = split_windows(encodings, overlap, 3)
    assert (some.unread, some.counts) == ([len(expected) - room - 2 * (room - overlap)], [3])


def test_the_columns_of_a_pooling_are_merged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are two per text, for mean and maximum, and the values of each column stay in its place."""
    columns = [FeatureColumn(Site(layer, "ffn"), pooling) for layer in (1, 2, 3) for pooling in ("mean", "max")]
    shares = WindowShares.from_counts(np.array([0, 0, 1]), np.array([4, 4, 4]), np.array([3, 1, 4]))
    values = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    merged, calls = Mean.merge, []
    monkeypatch.setattr(Mean, "merge", lambda *args: calls.append(0) or merged(*args))
    of_texts = shares.merge(values, [(column, slice(2 * i, 2 * i + 2)) for i, column in enumerate(columns)])
    assert len(calls) == 2
    for start in (0, 4, 8):
        mean, largest = values[:, start : start + 2], values[:, start + 2 : start + 4]
        np.testing.assert_allclose(
            of_texts[:, start : start + 2], [0.75 * mean[0] + 0.25 * mean[1], mean[2]], atol=1e-6
        )
        np.testing.assert_array_equal(of_texts[:, start + 2 : start + 4], [largest[:2].max(0), largest[2]])
