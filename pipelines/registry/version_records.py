"""Records of registered versions: what a training or a night has read, what is registered, listed and audited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.packaging import DESCRIPTION_LIMIT, cut_card
from spin.settings import mask_credentials

_CONTEXT = "mlflow.data.context"
"""tag of MLflow for what the data is used for"""
_DIGEST = 16
"""characters of a digest; MLflow takes at most 36"""
_HEADING, _SECTION = "\n\n## Audits\n", "\n### "
"""of the audits in the description of a version, and of each"""


@dataclass(frozen=True, kw_only=True)
class LoggedData:
    """Documents that a run of MLflow has read: where they are and what they hold. None is read for it."""

    name: str
    """of the data"""
    source: str
    """file, folder or glob"""
    digest: str
    """changes with the data; hexadecimal digits"""
    profile: Mapping[str, object]
    """numbers that describe the data, as JSON values"""
    columns: Mapping[str, str] = field(default_factory=dict)
    """types of MLflow by column, such as `string`"""

    def to_input(self, context: Literal["training", "inference"]) -> Any:
        """The data as a `DatasetInput` of a run. `mlflow.data.get_source` returns the source of what is logged."""
        # an entity of MLflow: what `mlflow.data` makes of data computes digests and profiles by reading it
        from mlflow.entities import Dataset, DatasetInput, InputTag

        scheme, separator, _ = self.source.partition("://")
        columns = [{"name": name, "type": kind, "required": True} for name, kind in self.columns.items()]
        dataset = Dataset(
            name=self.name,
            digest=self.digest[:_DIGEST],
            source_type=scheme if separator and scheme != "file" else "local",
            source=json.dumps({"uri": mask_credentials(self.source)}),
            schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
            profile=json.dumps(self.profile),
        )
        return DatasetInput(dataset, [InputTag(_CONTEXT, context)])


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
    data: LoggedData
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
    aliases: tuple[str, ...]
    """`champion`, `challenger` and any other, sorted"""
    fingerprint: str
    """of the training's plan"""
    created: str
    """ISO 8601, UTC, seconds"""
    metrics: Mapping[str, float]
    """of the training's MLflow run; empty if that no longer exists"""


@dataclass(frozen=True)
class AuditRecord:
    """The outcome of an audit of one version."""

    kind: str
    """`robustness`; a later audit of the same kind replaces its section"""
    summary: str
    """some sentences with the main figures, in Markdown"""
    metrics: Mapping[str, float]
    """of the MLflow run, by name"""
    content: Mapping[str, object]
    """the report as JSON values"""
    page: str
    """the report as an HTML page"""

    @property
    def files(self) -> dict[str, str]:
        """The files of the MLflow run: text by file name."""
        return {f"{self.kind}.json": json.dumps(self.content, indent=2), f"{self.kind}.html": self.page}

    def add_to(self, description: str) -> str:
        """The description of a version with the summary under the heading `Audits`, within MLflow's limit.

        The card before it is cut where there is no room for both.
        """
        card, _, sections = description.partition(_HEADING)
        audits = dict(section.split("\n", 1) for section in sections.split(_SECTION) if "\n" in section.strip())
        audits[self.kind] = self.summary
        listed = "\n".join(f"{_SECTION}{kind}\n\n{text.strip()}" for kind, text in sorted(audits.items()))
        return cut_card(card, DESCRIPTION_LIMIT - len(_HEADING + listed)) + _HEADING + listed
