"""The log of the shards of a run that shares its pass with no other one."""

from __future__ import annotations

from pipelines.nightly.steps.classify_job import pass_layout
from pipelines.nightly.tables.passes import Pass
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog


def open_shard_log(output: Store, run: str) -> ShardLog:
    """The log of a run in an output."""
    return ShardLog(output, layout=pass_layout(Pass(name=run, runs=(run,), begun="")))
