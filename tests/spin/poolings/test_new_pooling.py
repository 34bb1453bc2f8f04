"""A pooling that the product does not have needs one class and its registration, from training to explanations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from spin import SpinClassifier, TrainedClassifier
from spin.activations.features import Features
from spin.backbone.loading import load_backbone
from spin.export import export
from spin.pages.explanation import Explanation
from spin.pages.layer_map import layer_map
from spin.poolings import registry
from spin.poolings.pooling import Pooling
from spin.settings import BackboneSettings
from tests.support import tiny
from tests.support.attribution_loop import read_tokens
from tests.support.reason_rows import neurons_of, words_of

DOCUMENTS = tiny.make_documents(40)
LONG_TEXTS = [
    " ".join(row["text"] for row in DOCUMENTS[start : start + 4]) for start in range(0, 12, 4)
] + ["bad", "[SEP] " * 14 + "a lovely day"]  # fmt: skip


class Minimum(Pooling):
    """The smallest value over the tokens."""

    name = "min"
    description = "minimum over the tokens"
    shares = "one by value"

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        return self.locate(values, mask)[0]

    def locate(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        smallest, at = values.masked_fill(~mask.unsqueeze(-1), float("inf")).min(1)
        return smallest.float(), at

    def merge(self, values: Tensor, shares: Tensor) -> Tensor:
        return torch.where(shares > 0, values, torch.inf).amin(0, keepdim=True)


class Lowest(Minimum):
    """The smallest value over all tokens, special ones included."""

    name = "lowest"
    description = "minimum over all tokens"
    content_only = False


class RootMeanSquare(Pooling):
    """The root of the mean square over the tokens, in which no token has a share."""

    name = "rms"
    description = "root of the mean square over the tokens"

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        squares = (values.float() ** 2) * mask.unsqueeze(-1)
        return (squares.sum(1) / mask.sum(1, keepdim=True)) ** 0.5

    def merge(self, values: Tensor, shares: Tensor) -> Tensor:
        return (values**2 * shares).sum(0, keepdim=True) ** 0.5


EXPECTED = {
    "min": lambda values: values.min(0),
    "lowest": lambda values: values.min(0),
    "rms": lambda values: np.sqrt((values**2).mean(0)),
}


@pytest.fixture(scope="module", params=[Minimum(), Lowest(), RootMeanSquare()], ids=lambda pooling: pooling.name)
def pooling(request: pytest.FixtureRequest) -> Iterator[Pooling]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "POOLINGS", (*registry.POOLINGS, request.param))
        yield request.param


@pytest.fixture(scope="module")
def saved(pooling: Pooling, backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier that was trained on windows of texts under the new pooling alone."""
    backbone = BackboneSettings(
        model=str(backbone_folder), dtype="float32", device="cpu", engine="torch", max_tokens=12,
        long_texts="windows", window_overlap=3 if pooling.content_only else 0, max_windows=8,
    )  # fmt: skip
    search: Any = {"etas": [0.5], "max_share": 1, "strengths": [1], "network": "off", "words": "off"}
    probe: Any = {"penalties": 2, "max_extra": 0}
    spin = SpinClassifier(backbone, sites=["resid"], poolings=[pooling.name], probe=probe, search=search)
    spin.fit([row["text"] for row in DOCUMENTS], [row["label"] for row in DOCUMENTS])
    folder = tmp_path_factory.mktemp(pooling.name) / "saved"
    spin.save(folder)
    return folder


def open_classifier(folder: Path, engine: str) -> TrainedClassifier:
    spin = TrainedClassifier.load(folder, reasons=3)
    changed = spin.settings.model_copy(update={"engine": engine})
    return TrainedClassifier.load(folder, backbone=changed, reasons=3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_new_pooling_works_from_training_to_explanations(
    pooling: Pooling, saved: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    spin = open_classifier(saved, engine)
    features = spin.features(LONG_TEXTS)
    check_values(spin, features, pooling)
    assert features.reasons is not None
    predictions = spin.predict_all(LONG_TEXTS)
    for row, text in enumerate(LONG_TEXTS):
        explanation = spin.explain(text)
        np.testing.assert_allclose(explanation.logits, predictions.logits[row], atol=1e-4)
        k = explanation.classes.index(explanation.label)
        assert [each.description for each in layer_map(explanation, k).rows] == [
            f"residual stream, {pooling.description}"
        ]
        words, neurons = words_of(features.reasons, row), neurons_of(features.reasons, row)
        assert len(neurons) == 3
        assert {neuron.column.rpartition(".")[2] for neuron in neurons} == {pooling.name}
        if pooling.shares == "none":
            assert words == []
            assert not explanation.word_contributions.any()
            assert {top.word for top in explanation.top(3)} == {"(no word)"}
        else:
            np.testing.assert_allclose(
                explanation.word_contributions.sum(0) + explanation.bias, explanation.logits, atol=1e-4
            )
            check_loudest(spin, text, pooling, explanation)
            assert 0 < len(words) <= 3
    told = [record.getMessage() for record in caplog.records if "no token has a share" in record.getMessage()]
    assert len(told) == (1 + len(LONG_TEXTS) if pooling.shares == "none" else 0)


def check_values(spin: TrainedClassifier, features: Features, pooling: Pooling) -> None:
    """The values of texts are those of a loop over the tokens of all windows, each token once."""
    assert features.windows is not None
    assert max(features.windows) > 2
    for row, text in enumerate(LONG_TEXTS):
        tokens = pooled_tokens(spin, text, pooling)
        for column, neurons in spin.fitted.selection.neurons.items():
            values = np.stack([token.activations[str(column.site)][neurons] for token in tokens])
            np.testing.assert_allclose(features.columns[column][row], EXPECTED[pooling.name](values), atol=1e-4)


def pooled_tokens(spin: TrainedClassifier, text: str, pooling: Pooling) -> list[Any]:
    """The tokens of a text that count under a pooling, with their activations."""
    whole: Any = SimpleNamespace(backbone=load_backbone(spin.settings))
    return [token for token in read_tokens(whole, text) if token.is_pooled or not pooling.content_only]


def check_loudest(spin: TrainedClassifier, text: str, pooling: Pooling, explanation: Explanation) -> None:
    """The word of each neuron has the token with its smallest value."""
    tokens, words = pooled_tokens(spin, text, pooling), explanation.words
    for (column, neuron, _), word in zip(spin.fitted.selection.rows(), explanation.loudest.tolist(), strict=True):
        values = [token.activations[str(column.site)][neuron] for token in tokens]
        mine = [value for token, value in zip(tokens, values, strict=True) if contains(words[word], token.span)]
        assert min(mine) == pytest.approx(min(values), abs=1e-5)


def contains(word: tuple[int, int], token: tuple[int, int]) -> bool:
    return word[0] <= token[0] and token[1] <= word[1]


@pytest.mark.slow
def test_a_new_pooling_is_exported(pooling: Pooling, saved: Path, tmp_path: Path) -> None:
    """The graph merges the windows of a text as the classifier does."""
    spin = open_classifier(saved, "torch")
    export(spin, tmp_path / "exported", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "model.onnx")
    expected = spin.predict_proba(LONG_TEXTS)
    for row, text in enumerate(LONG_TEXTS):
        tokens = spin.backbone.tokenize([text])
        ids, mask = spin.backbone.pad_tokens(tokens, range(len(tokens.ids)))
        [scores] = session.run(["scores"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(scores[0], expected[row], atol=1e-3)


def test_a_pooling_whose_shares_it_does_not_allow_is_refused() -> None:
    """As its class is written, not when the first explanation is wrong."""
    for attributes, message in (
        ({"shares": "every token", "content_only": False}, "'every token', so it must pool content only"),
        ({"shares": "one by value"}, "'one by value', so it must define locate"),
        ({"shares": "one by place"}, "'one by place', so it must define find_place"),
    ):
        with pytest.raises(TypeError, match=f"the pooling median has shares {message}"):
            type("Median", (Pooling,), {"name": "median", **attributes})


def test_no_two_poolings_have_one_name() -> None:
    names = [pooling.name for pooling in registry.POOLINGS]
    assert len(set(names)) == len(names)
