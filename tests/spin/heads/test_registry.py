"""Every head keeps the contract of `Head`; one from outside the product is trained, explained and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pytest
import torch

from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.estimator import SpinClassifier
from spin.export import export
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.heads.head import FitTask, Head
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.registry import HEADS, other_heads
from spin.integrate.fit_linear import fit_linear
from spin.process_group import ProcessGroup
from spin.settings import BackboneSettings, ProbeSettings
from spin.settings.training_settings import HEAD_NAMES
from tests.spin.test_export import check_scores
from tests.support.tiny import make_documents


@dataclass(frozen=True)
class CentroidHead(LinearHead):
    """The class whose mean is nearest: |x - c|^2 is linear in x but for |x|^2, which all classes share."""

    name: ClassVar[str] = "centroid"

    @classmethod
    def fit(cls, task: FitTask) -> tuple[Self, int]:
        design = task.design
        features = torch.from_numpy(np.concatenate(list(design.features.blocks())))
        has = torch.from_numpy(design.has).float()
        sums, counts = (design.group.all_reduce(each) for each in (has.T @ features, has.sum(0)))
        centroids = (sums / counts[:, None]).numpy()
        return cls(centroids, -(centroids**2).sum(1) / 2), 0


@pytest.fixture(params=[*HEADS, CentroidHead], ids=lambda kind: kind.name)
def head(request: pytest.FixtureRequest) -> Head:
    """A fitted head of each kind: three classes, six features."""
    draw = np.random.default_rng(0)
    y = draw.integers(3, size=200)
    X = (draw.normal(size=(200, 6)) + np.eye(3, 6)[y]).astype(np.float32)
    design = Design(
        FeatureRows(X), np.eye(3)[y] > 0, np.full((200, 1), 1 / 200, np.float32), np.ones(6, np.float32), True,
        ProcessGroup(),
    )  # fmt: skip
    [linear] = fit_linear(design, [Penalty(1.0)])
    fitted, steps = request.param.fit(FitTask(linear, design, 1.0, seed=0, steps=20))
    assert type(fitted) is request.param
    assert steps in (0, 20)
    return fitted


X = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)


def test_logits_are_the_bias_and_what_each_feature_adds(head: Head) -> None:
    classes = np.arange(30) % 3
    slopes = head.slopes_of(X, classes)
    of_class = head.logits(X)[np.arange(30), classes]
    np.testing.assert_allclose(head.bias[classes] + (X * slopes).sum(1), of_class, atol=1e-4)
    np.testing.assert_allclose(head.slopes(X[1])[1], slopes[1], atol=1e-6)
    np.testing.assert_allclose(head.logits(np.zeros((1, 6), np.float32))[0], head.bias, atol=1e-6)


def test_logits_are_calibrated_and_joined_with_those_of_words(head: Head) -> None:
    logits, bias = head.logits(X), np.array([0.5, -1, 2], np.float32)
    np.testing.assert_allclose(head.with_temperature(2.5).logits(X), logits / 2.5, atol=1e-5)
    np.testing.assert_allclose(head.with_bias(bias).logits(X), logits + bias, atol=1e-5)
    words, weights = X[:, :3], np.array([1, 2, 3], np.float32)
    joined = head.join_words(np.float32(0.5), weights)
    np.testing.assert_allclose(joined.logits(np.concatenate([words, X], 1)), 0.5 * logits + words * weights, atol=1e-5)


def test_features_that_are_zero_can_be_left_out(head: Head) -> None:
    kept = np.array([True, False, True, True, False, True])
    np.testing.assert_allclose(head.keep(kept).logits(X[:, kept]), head.logits(X * kept), atol=1e-5)
    assert head.used.tolist() == [True] * 6


def test_a_stored_head_and_its_graph_give_the_same_logits(head: Head) -> None:
    stored = type(head).from_tensors(head.to_tensors())
    np.testing.assert_array_equal(stored.logits(X), head.logits(X))
    assert all(values.dtype == np.float32 for values in head.to_tensors().values())
    with torch.inference_mode():
        np.testing.assert_allclose(head.graph()(torch.from_numpy(X)).numpy(), head.logits(X), atol=1e-5)


def test_the_setting_names_the_heads_that_are_compared_with_the_linear_one() -> None:
    assert other_heads("auto") == [*HEADS[1:]]
    assert other_heads(HEADS[1].name) == [HEADS[1]]
    assert other_heads("linear") == []
    assert [head.name for head in HEADS] == [*HEAD_NAMES]
    with pytest.raises(UserError, match="'search.head' is 'tree': expected one of auto, linear, mlp"):
        SpinClassifier("none", search={"head": "tree"})


@pytest.fixture(scope="module")
def centroids(backbone_folder: Path) -> TrainedClassifier:
    """A classifier whose head the product does not know, with early exits."""
    rows = make_documents(400)
    backbone = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", engine="torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spin.heads.registry.HEADS", (*HEADS, CentroidHead))
        patch.setattr("spin.settings.training_settings.HEAD_NAMES", (*HEAD_NAMES, "centroid"))
        search = {"head": "centroid", "words": "off", "etas": (0.5,), "strengths": (1.0,), "l1": ()}
        cascade = {"max_loss": 0.5, "depths": (0.4, 0.7)}
        spin = SpinClassifier(backbone, sites=["ffn"], search=search, cascade=cascade, probe=ProbeSettings(penalties=3))
        return spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).trained_


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line that registers the head."""
    monkeypatch.setattr("spin.heads.registry.HEADS", (*HEADS, CentroidHead))


TEXTS = [row["text"] for row in make_documents(60)]


def test_a_head_from_outside_the_product_is_trained_and_exits_early(centroids: TrainedClassifier) -> None:
    assert type(centroids.fitted.head) is CentroidHead
    assert centroids.fitted.summary.head == "centroid"
    labels = [row["label"] for row in make_documents(60)]
    assert np.mean([a == b for a, b in zip(centroids.predict(TEXTS), labels, strict=True)]) > 0.65
    early = centroids.choosing("accuracy", early=True).predict_all(TEXTS)
    assert early.exit_depth.min() < centroids.depth
    assert set(early.labels) == set(labels)


def test_it_is_explained_with_reasons(centroids: TrainedClassifier, registered: None, tmp_path: Path) -> None:
    explanation = centroids.explain(TEXTS[0])
    np.testing.assert_allclose(explanation.logits, centroids.predict_logits(TEXTS[:1])[0], atol=1e-3)
    by_word = explanation.word_contributions.sum(0) + explanation.bias
    np.testing.assert_allclose(by_word, explanation.logits, atol=1e-3)
    centroids.save(tmp_path)
    predictions = TrainedClassifier.load(tmp_path, reasons=3).predict_all(TEXTS)
    assert predictions.reasons is not None
    assert predictions.labels == centroids.predict(TEXTS)


def test_it_is_saved_and_loaded_where_it_is_registered(
    centroids: TrainedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centroids.save(tmp_path)
    with pytest.raises(UserError, match="is not a whole classifier: head 'centroid': expected one of linear, mlp"):
        TrainedClassifier.load(tmp_path)
    monkeypatch.setattr("spin.heads.registry.HEADS", (*HEADS, CentroidHead))
    loaded = TrainedClassifier.load(tmp_path)
    assert type(loaded.fitted.head) is CentroidHead
    np.testing.assert_array_equal(loaded.predict_logits(TEXTS), centroids.predict_logits(TEXTS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_it_is_exported(centroids: TrainedClassifier, kind: str, tmp_path: Path) -> None:
    export(centroids, tmp_path / "exported", kind)
    check_scores(centroids, tmp_path / "exported", tuple(TEXTS[:5]))
