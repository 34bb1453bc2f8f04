"""Compare the labels of a finished night with those computed in float32."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq

from pipelines.data import readers
from pipelines.nightly.run_records import RunManifest, RunPlan
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import read_plan
from pipelines.workers.progress import progress
from spin.errors import UserError
from spin.labels.label_space import Label
from spin.settings import Settings

_BATCH = 1024
"""documents classified at a time"""


def check_precision(settings: Settings, registry: Registry, manifest: RunManifest, count: int) -> tuple[int, int]:
    """Return how many of the first `count` predictions of a night were compared, and how many have the same label.

    Float32 labels are computed by torch in this process, with the same early exits. Raises UserError for a night
    without predictions.
    """
    exact = settings.backbone.model_copy(update={"dtype": "float32", "engine": "torch"})
    spin = registry.load(manifest.model_version, backbone=exact)
    wanted = min(count, manifest.counts.predicted)
    if not wanted:
        raise UserError("--check: the night predicted no documents; there is nothing to compare")
    compared = agreed = 0
    with progress("check", wanted, "documents") as advance:
        for texts, labels in _predicted(settings, manifest):
            texts, labels = texts[: wanted - compared], labels[: wanted - compared]
            agreed += sum(exact_label == label for exact_label, label in zip(spin.predict(texts), labels, strict=True))
            compared += len(texts)
            advance(len(texts))
            if compared == wanted:
                break
    return compared, agreed


def _predicted(settings: Settings, manifest: RunManifest) -> Iterator[tuple[list[str], list[Label | None]]]:
    """Yield the texts and labels of a night's predictions in batches, in the order of the plan."""
    out = Store(manifest.output)
    published = {part.of: part.key for part in manifest.parts}
    plan = read_plan(out / f"_runs/{manifest.run}", RunPlan)
    assert plan is not None
    for shard, outcome in zip(plan.derived.shards, manifest.shards, strict=True):
        key = next((key for key in outcome.files if key.endswith("predictions.parquet")), "")
        if key not in published:
            continue
        with out.open(published[key]) as file:
            rows = pq.ParquetFile(file).read(["id", "label"]).to_pylist()
        documents = readers.read_shard(shard, settings.data)
        texts: list[str] = []
        for id, text in zip(documents.ids, documents.texts, strict=True):  # predictions are in the order of the rows
            if len(texts) < len(rows) and id == rows[len(texts)]["id"] and isinstance(text, str) and text.strip():
                texts.append(text)
        labels = [row["label"] for row in rows]
        for start in range(0, len(texts), _BATCH):
            yield texts[start : start + _BATCH], labels[start : start + _BATCH]
