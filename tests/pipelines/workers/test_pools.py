"""The number of workers of a stage, from the settings, the size of the cluster and the amount of work."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray

from pipelines.workers.map_shards import _pool
from pipelines.workers.ray_cluster import least_workers, worker_count
from spin.settings import RaySettings


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reports 6 CPUs and 2 GPUs; this machine has 3 CPUs."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 2.0})
    monkeypatch.setattr(os, "cpu_count", lambda: 3)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("settings", "shards", "smallest", "largest", "initial"),
    [
        ({}, 50, 3, 3, 3),  # without a cluster: the CPUs of this machine
        ({"cpus_per_worker": 2}, 50, 1, 1, 1),
        ({"workers": 8}, 50, 8, 8, 8),
        ({"workers": 8}, 5, 5, 5, 5),
        ({"workers": 8, "min_workers": 2}, 50, 2, 8, 8),
        ({"address": "auto", "workers": 8}, 50, 8, 8, 8),
        ({"address": "auto"}, 50, 1, 50, 6),  # a cluster without a number of workers: grows and shrinks with its nodes
        ({"address": "auto"}, 4, 1, 4, 4),
        ({"address": "auto", "min_workers": 3}, 50, 3, 50, 6),
        ({"address": "auto", "min_workers": 30}, 50, 30, 50, 30),
        ({"address": "auto", "workers": 8, "min_workers": 2}, 50, 2, 8, 8),
        ({"address": "auto", "gpus_per_worker": 0.5}, 50, 1, 50, 4),
        ({"address": "auto", "gpus_per_worker": 1}, 50, 1, 50, 2),
    ],
)
def test_a_pool_is_sized_by_settings_cluster_and_shards(
    settings: dict[str, Any], shards: int, smallest: int, largest: int, initial: int
) -> None:
    """It has at most one worker per shard, and its size varies only if the settings leave it open."""
    pool = _pool(RaySettings(**settings), shards)
    assert (pool.min_size, pool.max_size, pool.initial_size) == (smallest, largest, initial)


@pytest.mark.usefixtures("cluster")
def test_a_training_group_may_shrink_only_if_its_size_is_not_set() -> None:
    """On a cluster without a number of workers it starts with all CPUs and may go on with one worker."""
    elastic, fixed = RaySettings(address="auto"), RaySettings(address="auto", workers=4)
    assert worker_count(elastic, 50) == 6
    assert least_workers(elastic, 6) == 1
    assert least_workers(fixed, 4) == 4
    assert least_workers(RaySettings(), 3) == 3
