"""The files that describe an artifact and lie next to it: its neurons and its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from pipelines.training.neurons import NEURONS, describe_neurons
from spin.classifier import SpinClassifier
from spin.heads import persistence
from spin.pages.model_card import CARD, CardFacts, ChoicePoint, ClassResult, ContenderResult, CostPoint, model_card
from spin.settings import Settings


def describe_artifact(
    settings: Settings,
    spin: SpinClassifier,
    features: FeatureShards,
    labels: Labels,
    manifest: Mapping[str, Any],
    fingerprint: str,
) -> dict[str, bytes]:
    """Return `neurons.json` and `MODEL_CARD.md` by name; neither contains the text of a document.

    `manifest` is what the train stage is about to write, `fingerprint` that of the features.
    """
    neurons = describe_neurons(spin, features, labels)
    table = [ContenderResult(**row) for row in manifest["table"]]
    choices = manifest["choice"]["choices"]
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
        table=table,
        tested=_tested(spin, table),
        per_class={name: ClassResult(**row) for name, row in manifest["per_class"].items()},
        frontier=[CostPoint(**_fields(CostPoint, point)) for point in manifest["choice"]["frontier"]],
        choices={name: ChoicePoint(**_fields(ChoicePoint, point)) for name, point in choices.items()},
        choose=settings.choose,
        selection=spin.fitted.selection,
        test_ece=manifest["test_ece"],
        decision=settings.decision,
        versions={name: version(name) for name in persistence.LIBRARIES},
    )
    return {NEURONS: json.dumps(neurons, indent=1).encode(), CARD: model_card(facts).encode()}


def _tested(spin: SpinClassifier, table: list[ContenderResult]) -> ContenderResult | None:
    """Return the row of the classifier in use; one that is several choices has the name of the first."""
    first = next(name for name, fitted in spin.training_result.choices.items() if fitted is spin.fitted)
    name = "spin" if first == "accuracy" else first
    return next((row for row in table if row.name == name), None)


def _fields(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a record that are fields of a dataclass."""
    return {field.name: record[field.name] for field in fields(kind)}
