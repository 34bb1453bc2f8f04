"""Products in int8 are those of integers, by scales that cover the texts they were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from spin.activations.engines import openvino_engine
from spin.activations.engines.encoder import NeuronEncoder, split_segments
from spin.activations.engines.engine_child import compare_engines
from spin.activations.engines.int8_rounding import linear_maps, measure_scales, round_products
from spin.activations.engines.openvino_engine import OpenVinoEngine
from spin.activations.extract import single_segment
from spin.backbone.engine_choice import EngineChoice
from spin.backbone.int8_scales import InputScale, Int8Scales
from spin.backbone.loading import find_backbone, load_backbone, open_backbone
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn
from tests.spin.activations.engines.test_engines import OPENVINO_SUPPORTED
from tests.spin.backbone.test_model import TEXTS
from tests.support import tiny

TEN = [row["text"] for row in tiny.make_documents(10)]


def test_a_product_is_one_of_integers(model: Backbone) -> None:
    """In NumPy: both factors are rounded to integers, multiplied as these, and scaled."""
    scales, maps = measure_scales(model, TEN), linear_maps(model)
    assert scales.by_map.keys() == maps.keys()
    draw = torch.Generator().manual_seed(0)
    for name, scale in scales.by_map.items():
        module, factors = maps[name], scale.factors.numpy()
        weight = module.weight.numpy().T if isinstance(module, Conv1D) else module.weight.numpy()
        values = torch.randn(3, weight.shape[1], generator=draw)
        integers = np.clip(np.rint(values.numpy() * factors / scale.step) + scale.zero, 0, 255) - scale.zero
        steps = np.abs(weight / factors).max(1) / 127
        products = integers @ np.rint(weight / factors / steps[:, None]).T * scale.step * steps
        bias = 0 if module.bias is None else module.bias.numpy()
        with round_products(model, scales), torch.inference_mode():
            rounded = module(values).numpy()
        np.testing.assert_allclose(rounded, products + bias, atol=2 * scale.step * steps.max() * 127, rtol=1e-4)
        assert np.median(np.abs(rounded - products - bias)) < 1e-5, name


def test_what_the_texts_hold_is_rounded_and_not_cut_off(model: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input differs by half a step at most, whatever texts are beside it in its batch."""
    monkeypatch.setattr(model, "batch_tokens", 32)
    scales, maps = measure_scales(model, TEN), linear_maps(model)
    extremes: dict[str, list[float]] = {name: [] for name in maps}

    def watch(name: str, args: tuple[torch.Tensor, ...]) -> None:
        scale = scales.by_map[name]
        extremes[name] += (args[0] * scale.factors / scale.step + scale.zero).flatten().tolist()

    handles = [
        module.register_forward_pre_hook(lambda _module, args, name=name: watch(name, args))
        for name, module in maps.items()
    ]
    for text in TEN:
        ids, mask = model.pad_batch(model.tokenize([text]).ids)
        with torch.inference_mode():
            model.model(input_ids=ids, attention_mask=mask.long(), **model.forward_options)
    for handle in handles:
        handle.remove()
    for name, values in extremes.items():
        assert min(values) > -0.6, name
        assert max(values) < 255.6, name
        assert min(values) < 0.6 or max(values) > 254.4, "no integers are wasted"


def test_a_backbone_computes_as_before_after_the_context(model: Backbone) -> None:
    columns = [FeatureColumn(site, "mean") for site in model.sites]
    encoder = NeuronEncoder(model, single_segment(columns))
    batch = model.pad_batch(model.tokenize(TEXTS).ids)

    def run() -> Any:
        with torch.inference_mode():
            return encoder(*batch)[0].numpy()

    expected, scales = run(), measure_scales(model, TEN)
    with round_products(model, scales):
        assert not np.array_equal(run(), expected)
    np.testing.assert_array_equal(run(), expected)
    with pytest.raises(RuntimeError, match="while a graph is made"), round_products(model, scales):
        raise RuntimeError("while a graph is made")
    np.testing.assert_array_equal(run(), expected)


def test_a_truncated_backbone_has_scales_for_its_blocks(backbone_folder: Path) -> None:
    """They are those of the whole one."""
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"))
    whole = measure_scales(backbone, TEN)
    backbone.truncate(1)
    first = measure_scales(backbone, TEN)
    assert first.by_map.keys() == {name for name in whole.by_map if name.startswith("1.")}
    for name, scale in first.by_map.items():
        np.testing.assert_allclose(scale.factors, whole.by_map[name].factors, rtol=1e-4)


def test_as_many_windows_as_texts_are_run(backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the starts of texts to their ends."""
    settings = {"model": str(backbone_folder), "max_tokens": 8, "long_texts": "windows", "window_overlap": 1}
    backbone = load_backbone(BackboneSettings.model_validate(settings | {"dtype": "float32", "device": "cpu"}))
    texts, run = [" ".join(TEN)] * 3, list[int]()
    pad_tokens = backbone.pad_tokens

    def pad_and_record(tokens: Any, rows: Sequence[int]) -> Any:
        run.extend(rows)
        return pad_tokens(tokens, rows)

    monkeypatch.setattr(backbone, "pad_tokens", pad_and_record)
    assert measure_scales(backbone, texts).by_map
    windows = len(backbone.tokenize(texts).ids)
    assert windows > 9
    assert len(run) <= len(texts)
    assert max(run) > windows / 2


def test_of_many_texts_some_are_run_from_the_first_to_the_last(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[Sequence[str]] = []
    tokenize = model.tokenize
    monkeypatch.setattr(model, "tokenize", lambda texts: tokenize(run.append(texts) or texts))
    measure_scales(model, [f"a film {number}" for number in range(600)])
    assert run == [[f"a film {number}" for number in range(0, 600, 3)]]


def test_stored_scales_are_those_that_were_measured(model: Backbone) -> None:
    """Bit for bit, under the same digest; other texts have other scales under another digest."""
    scales = measure_scales(model, TEN)
    again = Int8Scales.from_bytes(scales.to_bytes())
    assert again.digest == scales.digest != measure_scales(model, TEN[:3]).digest
    assert again.by_map.keys() == scales.by_map.keys()
    for name, scale in scales.by_map.items():
        stored = again.by_map[name]
        assert (stored.step, stored.zero) == (scale.step, scale.zero)
        torch.testing.assert_close(stored.factors, scale.factors, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("step", None, r"without 1\..*\.step"),
        ("step", [0.0], "that no training writes"),
        ("step", [float("nan")], "that no training writes"),
        ("step", [0.1, 0.2], "that no training writes"),
        ("zero", [256], "that no training writes"),
        ("factors", [[1.0]], "that no training writes"),
        ("factors", [-1.0], "that no training writes"),
        ("factors", [1.0], None),
    ],
)
def test_scales_that_no_training_writes_are_refused(
    model: Backbone, part: str, value: Any, message: str | None
) -> None:
    """When they are read; those of another width when they are applied."""
    tensors = measure_scales(model, TEN[:3]).to_tensors()
    name = f"{min(tensors).rpartition('.')[0]}.{part}"
    if value is None:
        del tensors[name]
    else:
        tensors[name] = np.array(value, tensors[name].dtype)
    if message is not None:
        with pytest.raises(UserError, match=message):
            Int8Scales.from_tensors(tensors)
        return
    scales = Int8Scales.from_tensors(tensors)
    with pytest.raises(UserError, match="in which .* has 1 inputs"), round_products(model, scales):
        pytest.fail("they were applied")
    with round_products(model, measure_scales(model, TEN[:3])):
        pass


def test_int8_without_scales_is_refused(int8_backbone: Backbone) -> None:
    int8_backbone.scales = None
    with pytest.raises(UserError, match="int8 without scales"):
        OpenVinoEngine(int8_backbone, [single_segment([FeatureColumn(int8_backbone.sites[1], "mean")])])


def test_one_large_input_leaves_integers_to_the_others() -> None:
    """Inputs up to 1, beside one up to 1,000, would all be rounded to zero by one step for all."""
    high = torch.ones(64)
    high[5] = 1000.0
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    scale = InputScale.of(-high, high, weight)
    integers = high * scale.factors / scale.step
    assert float(integers[5]) == pytest.approx(127.5)
    assert float(integers.median()) > 10
    assert 1 / (1000 / 127.5) < 0.5, "without factors"


def test_an_input_that_no_text_activates_is_not_cut_to_nothing() -> None:
    high = torch.ones(64)
    high[5] = 0.0
    scale = InputScale.of(torch.zeros(64), high, torch.ones(8, 64))
    assert 255 * scale.step / float(scale.factors[5]) > 0.1


@pytest.fixture
def int8_backbone(backbone_folder: Path) -> Backbone:
    settings = BackboneSettings(model=str(backbone_folder), device="cpu")
    backbone = open_backbone(settings, *find_backbone(settings), "cpu", EngineChoice("openvino", "int8"))
    backbone.scales = measure_scales(backbone, TEN)
    return backbone


@pytest.mark.slow
@pytest.mark.parametrize(("fast", "rest"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_all_linear_maps_of_a_graph_multiply_in_int8(
    int8_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, fast: str, rest: str
) -> None:
    """What int8 leaves alone is computed in the precision that the processor is fast in."""
    compiled: list[Any] = []
    hints: list[str] = []
    compile_graph = openvino_engine._compile
    monkeypatch.setattr(openvino_engine, "fast_precision", lambda device: fast)

    def compile_and_record(*args: Any) -> Any:
        compiled.append(compile_graph(*args))
        hints.append(args[1])
        return compiled[-1]

    monkeypatch.setattr(openvino_engine, "_compile", compile_and_record)
    columns = [FeatureColumn(site, "mean") for site in int8_backbone.sites]
    OpenVinoEngine(int8_backbone, [single_segment(columns)])
    [graph] = compiled
    infos = [op.get_rt_info() for op in graph.get_runtime_model().get_ops()]
    precisions = [i["runtimePrecision"].astype(str) for i in infos if i["layerType"].astype(str) == "FullyConnected"]
    assert len(precisions) == len(linear_maps(int8_backbone))
    assert set(precisions) <= {"u8", "i8"}
    assert hints == [rest]


@pytest.mark.slow
def test_openvino_multiplies_as_torch_does_for_every_supported_family(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a ReLU, where OpenVINO computes another value if inputs are divided before they are rounded.

    The rest is in float32: in bfloat16 it moves some inputs to another of the values to which int8 rounds.
    """
    if model.model.config.model_type not in OPENVINO_SUPPORTED:
        pytest.skip("not run in OpenVINO")
    monkeypatch.setattr(openvino_engine, "fast_precision", lambda device: "float32")
    monkeypatch.setattr(model, "precision", "int8")
    monkeypatch.setattr(model, "engine", "openvino")
    verdict = compare_engines(model)
    assert verdict.outcome == "agrees", verdict.detail
    assert float(verdict.detail.split()[2]) < 0.05


@pytest.mark.slow
def test_int8_of_few_neurons_is_that_of_all(int8_backbone: Backbone) -> None:
    """Those that are read of an FFN come first in its graph, with the factors of its inputs."""
    sites = int8_backbone.sites
    few = {FeatureColumn(site, "mean"): np.arange(2, int8_backbone.width(site), 5) for site in sites}
    ids, mask = int8_backbone.pad_batch(int8_backbone.tokenize(TEXTS).ids)
    every = OpenVinoEngine(int8_backbone, [single_segment(list(few))])
    values = np.array(every.run(0, ids, mask).values)
    parts = every.segments[0].slices(int8_backbone)
    expected = np.concatenate([values[:, parts[column]][:, indices] for column, indices in few.items()], axis=1)
    [segment] = split_segments(few, [])
    np.testing.assert_allclose(
        OpenVinoEngine(int8_backbone, [segment]).run(0, ids, mask).values, expected, rtol=1e-2, atol=1e-2
    )
