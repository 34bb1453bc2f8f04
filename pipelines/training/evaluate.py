"""A registered version on any labelled file: figures over all and per class."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.data import input_files, readers, sharding, training_labels
from pipelines.registry.versions import Registry
from pipelines.training.train import per_class_figures
from pipelines.workers.progress import progress
from spin.errors import UserError
from spin.labels.metrics import score
from spin.settings import METRICS, Settings


def run_evaluate(settings: Settings, registry: Registry, source: str, *, model: str | None = None) -> dict[str, Any]:
    """Every metric of a version, the champion by default, and precision, recall and F1 of every class.

    Raises UserError for no rows, a row without id, text or label, or a label that the model does not know.
    """
    version = registry.resolve(model)
    shards = sharding.plan_shards(input_files.list_files(source), settings.ray.shard_documents, settings.data)
    data = settings.data.model_copy(update={"split": None})
    labels = training_labels.read_labelled(shards, data).labels
    spin = registry.load(version)
    if not labels:
        raise UserError(f"{source}: found no documents; expected labelled ones to evaluate on")
    try:
        y = spin.label_space.index(labels)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    parts: list[Any] = []
    with progress("evaluate", len(labels), "documents") as advance:
        for shard in shards:
            texts = readers.read_shard(shard, data).texts
            parts.append(spin.label_space.predict(spin.predict_logits(texts, progress=advance)))
    predicted: Any = np.concatenate(parts)
    return {
        "model_version": version,
        "documents": len(labels),
        "metrics": {name: score(name, y, predicted) for name in METRICS},
        "per_class": per_class_figures(y, predicted, spin.label_space.classes),
    }
