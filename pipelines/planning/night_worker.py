"""Compute in this process as a worker of a night does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelines.workers.weights_cache import with_engine
from spin.settings import Settings


@contextmanager
def as_night_worker(settings: Settings) -> Iterator[Settings]:
    """Run with the torch threads of a worker; gives the settings with its engine and its device."""
    stage, settings = settings.ray.for_stage("classify"), with_engine(settings, "classify")
    if not stage.gpus_per_worker:
        settings = settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"device": "cpu"})})
    before = torch.get_num_threads()
    torch.set_num_threads(stage.cpus_per_worker)
    try:
        yield settings
    finally:
        torch.set_num_threads(before)
