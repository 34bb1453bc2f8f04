"""The model card of a trained classifier has the figures of the choice in use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipelines.training.model_card_facts import describe_artifact
from pipelines.training.neurons import NEURONS, describe_neurons
from spin import SpinClassifier
from spin.backbone.loading import load_backbone
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import ClassFigures
from spin.pages.model_card import CARD
from spin.settings import BackboneSettings, Choice, parse_settings
from tests.pipelines.training.test_neurons import made, publish

CLASSES = LabelSpace(("a", "b", "c"))


@pytest.mark.parametrize(("choose", "accuracy"), [("accuracy", 0.75), ("balanced", 0.75), ("cheapest", 0.5)])
def test_the_card_is_about_the_choice_in_use(
    backbone_folder: Path, tmp_path: Path, choose: Choice, accuracy: float
) -> None:
    """A choice that is the same classifier as `accuracy` has the row `spin` of the table."""
    unloaded, labels, values = made(CLASSES)
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    backbone = load_backbone(settings)
    spin = SpinClassifier.assemble(
        settings,
        backbone.digest,
        CLASSES,
        unloaded.training_result,
        "accuracy",
        backbone=backbone,
        choose=choose,
    )
    figures = {"neurons": 3, "neurons_of": 9, "depth": 1, "depth_of": 4, "docs_per_s": 10.0}
    manifest = {
        "table": [
            {"name": "tfidf", "accuracy": 0.25, "macro_f1": 0.25, **figures},
            {"name": "cheapest", "accuracy": 0.5, "macro_f1": 0.5, **figures},
            {"name": "spin", "accuracy": 0.75, "macro_f1": 0.75, **figures},
        ],
        "per_class": {
            name: ClassFigures(precision=1, recall=1, f1=1, support=15).model_dump() for name in spin.classes
        },
        "test_ece": 0.125,
    }
    tree = {"backbone": {"model": "tiny"}, "data": {"train": "corpus.parquet"}, "store": "store", "choose": choose}
    features = publish(tmp_path, labels, values)
    files = describe_artifact(parse_settings(tree), spin, features, labels, manifest, "f" * 64)
    assert set(files) == {NEURONS, CARD}
    assert json.loads(files[NEURONS]) == describe_neurons(spin, features, labels)
    card = ModelCard(files[CARD].decode())
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"accuracy": accuracy, "f1": accuracy}
    assert f"| {choose} (this card) |" in card.text
    assert "| expected calibration error on test | 0.1250 |" in card.text
    assert f"fingerprint {'f' * 64}" in card.text
