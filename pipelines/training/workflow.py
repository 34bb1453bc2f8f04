"""The stages in a row, each skipped where it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.training.extract_features import run_extract
from pipelines.training.fit_probes import run_probe
from pipelines.training.train import run_train
from pipelines.workers.ray_cluster import shared_ray_session
from spin.settings import Settings

STAGES = {"extract": "features", "probe": "probes", "train": "model"}
"""each stage and its folder in the store"""
Say = Callable[[str, dict[str, Any], float, bool], None]


def run_road(settings: Settings, *, restart: bool = False, say: Say = lambda *_: None) -> dict[str, Any]:
    """extract → probe → train, and register; the manifest of the last."""
    return run_stages(settings, list(STAGES), restart=restart, say=say)


def run_stages(
    settings: Settings, stages: Sequence[str], *, restart: bool = False, say: Say = lambda *_: None
) -> dict[str, Any]:
    """Run the named stages in order; `say` is told each one's name, manifest, seconds and whether it had ended before.

    The registry is asked for the frozen evaluation set before any fit, so that no document of it is trained on.
    """
    registry = Registry(settings) if set(stages) - {"extract"} else None
    evaluation_set = None if registry is None else registry.evaluation_set()
    frozen = frozenset() if evaluation_set is None else evaluation_set.ids
    manifest: dict[str, Any] = {}
    with shared_ray_session():
        for stage in stages:
            start = time.perf_counter()
            before = Store(settings.store).read_json(f"{STAGES[stage]}/manifest.json")
            if stage == "extract":
                manifest = run_extract(settings, restart=restart)[1].to_json()
            elif stage == "probe":
                manifest = run_probe(settings, frozen=frozen, restart=restart)[1].to_json()
            else:
                assert registry is not None
                _, manifest = run_train(settings, registry, frozen=frozen, restart=restart)
            resumed = before is not None and before["fingerprint"] == manifest["fingerprint"]
            say(stage, manifest, time.perf_counter() - start, resumed)
    return manifest
