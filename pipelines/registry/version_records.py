"""Records of registered versions: what a training registers, the version that it became, and a listed version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.logged_data import LoggedData


@dataclass(frozen=True)
class TrainingRecord:
    """The parameters, metrics and files that are logged for a training and registered with its artifact."""

    params: Mapping[str, str | float | None]
    """MLflow parameters"""
    metrics: Mapping[str, float]
    """MLflow metrics"""
    report: str
    """report.json of the MLflow run"""
    evaluation_set: EvaluationSet
    """the test rows; the first version of a model freezes them for all later ones"""
    fingerprint: str
    """of the training's plan"""
    data: LoggedData | None = None
    """what it was trained, validated and tested on"""


@dataclass(frozen=True)
class RegisteredVersion:
    """The version that a training was registered as."""

    model: str
    """name of the registered model"""
    version: str
    """its number"""
    run_id: str
    """the MLflow run of the training"""


@dataclass(frozen=True)
class Version:
    """One version of the registered model."""

    number: str
    run_id: str
    """the MLflow run of the training"""
    aliases: tuple[str, ...]
    """`champion`, `challenger` and any other, sorted"""
    fingerprint: str
    """of the training's plan"""
    created: str
    """ISO 8601, UTC, seconds"""
    metrics: Mapping[str, float]
    """of the run"""
