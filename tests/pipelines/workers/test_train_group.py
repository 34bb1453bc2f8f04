"""Where a group computes: in workers, or in the process of the command where one worker is enough."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pipelines.workers import train_group
from pipelines.workers.train_group import GroupWork, run_group
from spin.settings import RaySettings


@pytest.mark.parametrize(
    ("changes", "most_workers", "here"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({"workers": 0}, 9, True),
        ({"workers": 1}, 1, False),
        ({"address": "auto"}, 1, False),
        ({"gpus_per_worker": 1.0}, 1, False),
    ],
)
def test_a_group_for_which_one_worker_is_enough_is_this_process(
    changes: dict[str, Any], most_workers: int, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the settings name a number of workers, a cluster or a GPU."""
    called: list[str] = []
    monkeypatch.setattr(train_group, "_run_workers", lambda stage, work, most: called.append(f"{most} workers"))
    work = GroupWork(lambda job, device: called.append(f"{job} {device} {os.getpid()}"), "job", RaySettings(**changes))
    run_group("trial", work, most_workers=most_workers, total=1, unit="fits", count_done=lambda: 0)
    assert called == [f"job cpu {os.getpid()}" if here else f"{most_workers} workers"]
