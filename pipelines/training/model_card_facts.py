"""What describes an artifact and lies beside it: its neurons and its model card."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from pipelines.training.neurons import NEURONS, describe_neurons
from spin.classifier import SpinClassifier
from spin.heads import persistence
from spin.pages.model_card import CARD, CardFacts, model_card
from spin.settings import Settings


def describe_artifact(
    settings: Settings,
    spin: SpinClassifier,
    features: FeatureShards,
    labels: Labels,
    manifest: dict[str, Any],
    fingerprint: str,
) -> dict[str, bytes]:
    """`neurons.json` and `MODEL_CARD.md`; no text of a document is in them.

    `manifest` is what the train stage is about to write, `fingerprint` that of the features.
    """
    neurons = describe_neurons(spin, features, labels)
    facts = CardFacts(
        name=settings.mlflow.model,
        purpose=f"Tells {len(labels.label_space)} classes apart in text: {', '.join(labels.classes)}.",
        data=settings.data.train,
        fingerprint=fingerprint,
        label_space=labels.label_space,
        y=labels.y,
        splits=labels.splits,
        backbone=settings.backbone.model,
        digest=str(spin.backbone_digest),
        max_tokens=spin.backbone.max_tokens,
        metric=settings.metric,
        table=manifest["table"],
        per_class=manifest["per_class"],
        frontier=manifest["choice"]["frontier"],
        choices=manifest["choice"]["choices"],
        choose=settings.choose,
        selection=spin.fitted.selection,
        test_ece=manifest["test_ece"],
        decision=settings.decision,
        versions={name: version(name) for name in persistence.LIBRARIES},
    )
    return {NEURONS: json.dumps(neurons, indent=1).encode(), CARD: model_card(facts).encode()}
