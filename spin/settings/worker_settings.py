"""The section `ray`: the workers of every stage."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from spin.settings.section import Section

Stage = Literal["extract", "probe", "train", "classify"]


class StageSettings(Section):
    """Workers of a single stage, for example GPUs for extract alone. null: as set above for all stages."""

    workers: int | None = Field(
        None, ge=0, description="Like ray.workers, but for this stage alone. Default: ray.workers."
    )
    min_workers: int | None = Field(
        None, ge=1, description="Like ray.min_workers, but for this stage alone. Default: ray.min_workers."
    )
    cpus_per_worker: int | None = Field(
        None, ge=1, description="Like ray.cpus_per_worker, but for this stage alone. Default: ray.cpus_per_worker."
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Like ray.gpus_per_worker, but for this stage alone. Default: ray.gpus_per_worker.",
    )


class RaySettings(Section):
    """The workers: processes that Ray starts, on this machine or on the nodes of a cluster."""

    address: str | None = Field(
        None,
        description="Address of a running Ray cluster; auto finds the one that this machine is part of. Default: Ray "
        "starts on this machine.",
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="Largest number of workers per stage. 0: a stage runs in the process of the command, without Ray, "
        "which is quicker for trials and small corpora; a document that kills this process is not found. Default: as "
        "many as the CPUs and GPUs allow. Without a cluster or a GPU, fewer than 20,000 documents are then read for a "
        "training in the process of the command, by workers only if that has ended before it was done, and probes of "
        "fewer than 10,000 documents and heads of fewer than 20,000 are fitted there.",
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Smallest number of workers with which a stage goes on when nodes are lost. Default: `workers`, "
        "or 1 where that is not set.",
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs, and PyTorch threads, per worker.")
    gpus_per_worker: float = Field(
        0,
        ge=0,
        le=1,
        description="GPUs per worker. 0: no GPU is used, even if there is one. 0.5: two workers share one, so that "
        "one reads text while the other computes.",
    )
    retry_seconds: float = Field(
        120, ge=0, description="Seconds for which a shard is tried again while its object store does not answer."
    )
    stall_seconds: float = Field(
        3600, gt=0, description="Seconds without any finished shard after which a stage ends with an error."
    )
    shard_documents: int = Field(
        8192,
        ge=1,
        description="Documents per shard, the unit of work that a worker takes; fewer where there are few in all, so "
        "that every worker has some, where the activations of a document are large, or where they hold more than 64 MB "
        "of text.",
    )
    metrics_port: int | None = Field(
        None,
        ge=1024,
        le=65535,
        description="Port on which a Ray that starts on this machine serves the metrics of a command while it runs, "
        "for Prometheus. Default: any free port. On a cluster `ray start --metrics-export-port` sets it.",
    )
    extract: StageSettings = Field(default_factory=StageSettings)
    probe: StageSettings = Field(default_factory=StageSettings)
    train: StageSettings = Field(default_factory=StageSettings)
    classify: StageSettings = Field(default_factory=StageSettings)

    def for_stage(self, stage: Stage) -> RaySettings:
        """The settings of one stage: its own, and the general ones where it has none."""
        own: StageSettings = getattr(self, stage)
        return self.model_copy(update=own.model_dump(exclude_none=True))

    @model_validator(mode="after")
    def _min_workers_at_most_workers(self) -> RaySettings:
        for stage in get_args(Stage):
            ray = self.for_stage(stage)
            if ray.workers is not None and ray.min_workers is not None and ray.min_workers > ray.workers:
                raise ValueError(
                    f"min_workers of {stage} is {ray.min_workers}, workers {ray.workers}; expected at least min_workers"
                )
        return self
