"""A registered version on any labelled file: figures over all and per class."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines import corpus
from pipelines.progress import progress
from pipelines.registry import Registry
from pipelines.train import per_class_figures
from spin.errors import UserError
from spin.metric import METRICS, score
from spin.settings import Settings


def run_evaluate(settings: Settings, registry: Registry, source: str, *, model: str | None = None) -> dict[str, Any]:
    """Every metric of a version, the champion by default, and precision, recall and F1 of every class.

    Raises UserError for a row without id, text or label, or a label that the model does not know.
    """
    version = registry.resolve(model)
    shards = corpus.plan_shards(corpus.list_files(source), settings.ray.shard_documents, settings.data)
    data = settings.data.model_copy(update={"split": None})
    labels = corpus.read_labelled(shards, data).labels
    spin = registry.load(version)
    unknown = sorted(set(labels) - set(spin.classes))
    if unknown:
        raise UserError(f"{source}: label '{unknown[0]}' is not one of the model's: {', '.join(spin.classes)}")
    predicted: list[int] = []
    with progress("evaluate", len(labels), "documents") as advance:
        for shard in shards:
            texts = corpus.read_shard(shard, data).texts
            predicted += spin.predict_logits(texts, progress=advance).argmax(1).tolist()
    y = np.array([spin.classes.index(label) for label in labels])
    return {
        "model_version": version,
        "documents": len(labels),
        "metrics": {name: score(name, y, np.array(predicted)) for name in METRICS},
        "per_class": per_class_figures(y, np.array(predicted), spin.classes),
    }
