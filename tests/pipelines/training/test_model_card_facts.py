"""The model card of a trained classifier holds the figures of the choice in use."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipelines.training.model_card_facts import describe_artifact
from pipelines.training.neurons import NEURONS, describe_neurons, neurons_to_json
from spin import SpinClassifier
from spin.backbone.loading import load_backbone
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import ClassFigures
from spin.pages.model_card import CARD, ContenderResult
from spin.settings import BackboneSettings, Choice, parse_settings
from tests.pipelines.training.test_neurons import build_random_classifier, write_features

CLASSES = LabelSpace(("a", "b", "c"))


@pytest.mark.parametrize(("choose", "accuracy"), [("accuracy", 0.75), ("balanced", 0.75), ("cheapest", 0.5)])
def test_the_card_holds_the_figures_of_the_choice_in_use(
    backbone_folder: Path, tmp_path: Path, choose: Choice, accuracy: float
) -> None:
    """A choice that selected the same classifier as `accuracy` has the figures of the table's row `spin`."""
    unloaded, labels, values = build_random_classifier(CLASSES)
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
    table = [
        ContenderResult(name, share, share, neurons=3, neurons_of=9, words=0, depth=1, depth_of=4, docs_per_s=10.0)
        for name, share in (("tfidf", 0.25), ("cheapest", 0.5), ("spin", 0.75))
    ]
    per_class = {name: ClassFigures(precision=1, recall=1, f1=1, support=15) for name in spin.classes}
    tree = {"backbone": {"model": "tiny"}, "data": {"train": "corpus.parquet"}, "store": "store", "choose": choose}
    features = write_features(tmp_path, labels, values)
    files = describe_artifact(
        parse_settings(tree),
        spin,
        features,
        labels,
        table=table,
        per_class=per_class,
        test_ece=0.125,
        fingerprint="f" * 64,
    )
    assert set(files) == {NEURONS, CARD}
    assert files[NEURONS] == neurons_to_json(describe_neurons(spin, features, labels))
    card = ModelCard(files[CARD].decode())
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}  # type: ignore[attr-defined]
    assert results == {"accuracy": accuracy, "f1": accuracy}
    assert f"| {choose} (this card) |" in card.text
    assert "| expected calibration error on test | 0.1250 |" in card.text
    assert f"fingerprint {'f' * 64}" in card.text
