"""How many workers a stage has: as set, as the cluster holds, as there is work for."""

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
    """Of 6 CPUs and 2 GPUs."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 2.0})
    monkeypatch.setattr(os, "cpu_count", lambda: 3)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("settings", "work", "least", "most", "first"),
    [
        ({}, 50, 3, 3, 3),  # this machine, of a fixed size
        ({"cpus_per_worker": 2}, 50, 1, 1, 1),
        ({"workers": 8}, 50, 8, 8, 8),
        ({"workers": 8}, 5, 5, 5, 5),
        ({"workers": 8, "min_workers": 2}, 50, 2, 8, 8),
        ({"address": "auto", "workers": 8}, 50, 8, 8, 8),
        ({"address": "auto"}, 50, 1, 50, 6),  # a cluster, as it grows and shrinks
        ({"address": "auto"}, 4, 1, 4, 4),
        ({"address": "auto", "min_workers": 3}, 50, 3, 50, 6),
        ({"address": "auto", "min_workers": 30}, 50, 30, 50, 30),
        ({"address": "auto", "workers": 8, "min_workers": 2}, 50, 2, 8, 8),
        ({"address": "auto", "gpus_per_worker": 0.5}, 50, 1, 50, 4),
        ({"address": "auto", "gpus_per_worker": 1}, 50, 1, 50, 2),
    ],
)
def test_a_pool(settings: dict[str, Any], work: int, least: int, most: int, first: int) -> None:
    pool = _pool(RaySettings(**settings), work)
    assert (pool.min_size, pool.max_size, pool.initial_size) == (least, most, first)


@pytest.mark.usefixtures("cluster")
def test_a_group_shrinks_on_an_open_cluster_alone() -> None:
    """It starts with what is there; where nodes are lost it goes on with one."""
    open_cluster, fixed = RaySettings(address="auto"), RaySettings(address="auto", workers=4)
    assert worker_count(open_cluster, 50) == 6
    assert least_workers(open_cluster, 6) == 1
    assert least_workers(fixed, 4) == 4
    assert least_workers(RaySettings(), 3) == 3
