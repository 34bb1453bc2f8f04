"""FFNs have the wanted neurons first within the context, compute the same, and are as they were afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spin.activations.engines import openvino_engine
from spin.activations.engines.encoder import BlockSegment, NeuronEncoder, split_segments
from spin.activations.engines.neuron_order import order_wanted_first
from spin.activations.engines.openvino_engine import OpenVinoEngine
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn, Site
from tests.spin.backbone.test_model import TEXTS


def make_segment(backbone: Backbone) -> BlockSegment:
    """Return all blocks as one segment, of which few neurons are read, other ones under each pooling."""
    neurons = {
        FeatureColumn(site, pooling): np.arange(start, backbone.width(site), 5)
        for site in backbone.sites
        for start, pooling in ((2, "mean"), (3, "max"))
    }
    [segment] = split_segments(neurons, [])
    return segment


def run(backbone: Backbone, segment: BlockSegment) -> list[np.ndarray]:
    """Return the values of a segment and the residual stream after it, of some texts with padding."""
    ids, mask = backbone.pad_batch(backbone.tokenize(TEXTS).ids)
    with torch.inference_mode():
        return [output.numpy() for output in NeuronEncoder(backbone, segment, carry=True)(ids, mask)]


def copy_weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in backbone.model.state_dict().items()}


def addresses(backbone: Backbone) -> list[int]:
    return [parameter.data_ptr() for parameter in backbone.model.parameters()]


def test_the_order_changes_no_value_and_no_weight_for_good(model: Backbone) -> None:
    segment, weights, memory = make_segment(model), copy_weights(model), addresses(model)
    expected = run(model, segment)
    with order_wanted_first(model, segment) as (ordered, orders):
        moved = {column.site.layer for column in ordered.neurons if column.site.kind == "ffn"}
        assert orders.keys() == {layer for layer in moved if model.ffn_inputs(layer)}
        for actual, before in zip(run(model, ordered), expected, strict=True):
            np.testing.assert_allclose(actual, before, rtol=1e-4, atol=1e-4)
        for column, indices in ordered.neurons.items():
            moves = column.site.kind == "ffn" and len(model.ffn_inputs(column.site.layer)) > 0
            union = np.unique(np.concatenate([n for c, n in segment.neurons.items() if c.site == column.site]))  # type: ignore[misc]
            assert np.array_equal(indices, np.searchsorted(union, segment.neurons[column])) == moves  # type: ignore[arg-type]
    for name, weight in copy_weights(model).items():
        assert torch.equal(weight, weights[name]), name
    assert addresses(model) == memory, "weights that are mapped from a file stay so"


def test_the_weights_are_restored_after_an_error(model: Backbone) -> None:
    weights = copy_weights(model)
    with pytest.raises(RuntimeError, match="while the graph was made"), order_wanted_first(model, make_segment(model)):
        raise RuntimeError("while the graph was made")
    assert all(torch.equal(weight, weights[name]) for name, weight in copy_weights(model).items())


def test_an_order_that_would_change_what_is_computed_is_not_used(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where other maps than those that lead to the FFN are taken for them."""
    others = {layer: torch.nn.Linear(1, model.width(Site(layer, "ffn"))) for layer in range(1, model.depth + 1)}
    monkeypatch.setattr(Backbone, "ffn_inputs", lambda _self, layer: [others[layer]])
    segment, weights = make_segment(model), copy_weights(model)
    with order_wanted_first(model, segment) as (ordered, orders):
        assert ordered is segment
        assert not orders
        assert all(torch.equal(weight, weights[name]) for name, weight in copy_weights(model).items())


@pytest.mark.slow
def test_a_graph_gathers_no_neurons_of_ffns(backbone_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are slices; neurons of the residual stream, whose order is the model's, are gathered."""
    graphs: list[Any] = []
    compile_graph = openvino_engine._compile

    def record_and_compile(graph: Any, *args: Any) -> Any:
        graphs.append(graph)
        return compile_graph(graph, *args)

    monkeypatch.setattr(openvino_engine, "_compile", record_and_compile)
    settings = {"model": str(backbone_folder), "dtype": "float32", "device": "cpu", "engine": "openvino"}
    backbone = load_backbone(BackboneSettings.model_validate(settings))
    OpenVinoEngine(backbone, [make_segment(backbone)])
    named = [op.get_friendly_name() for op in graphs[0].get_ops() if op.get_type_name() == "Gather"]
    gathers = [name for name in named if "neuron_gathers" in name and "index_select" in name]  # of every token
    assert len(gathers) == sum(site.kind == "resid" for site in backbone.sites)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_leaves_the_backbone_as_it_was(backbone_folder: Any, dtype: str) -> None:
    settings = {"model": str(backbone_folder), "dtype": dtype, "device": "cpu", "engine": "openvino"}
    backbone = load_backbone(BackboneSettings.model_validate(settings))
    weights = copy_weights(backbone)
    engine = OpenVinoEngine(backbone, [make_segment(backbone)])
    assert all(torch.equal(weight, weights[name]) for name, weight in copy_weights(backbone).items())
    ids, mask = backbone.pad_batch(backbone.tokenize(TEXTS).ids)
    tolerance = 1e-3 if dtype == "float32" else 0.05
    [expected, _] = run(backbone, make_segment(backbone))
    np.testing.assert_allclose(engine.run(0, ids, mask).values, expected, rtol=tolerance, atol=tolerance)
