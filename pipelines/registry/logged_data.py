"""The data of a training or a night as an input of its MLflow run: where it is and what it holds; none is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from spin.settings import mask_credentials

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_CONTEXT = "mlflow.data.context"
"""tag of MLflow for what the data is used for"""
_DIGEST = 16
"""characters of a digest; MLflow takes at most 36"""


@dataclass(frozen=True, kw_only=True)
class LoggedData:
    """Documents that a run of MLflow has read."""

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

    def to_input(self, context: Literal["training", "inference"]) -> DatasetInput:
        """The data as an input of a run. `mlflow.data.get_source` returns the source of what is logged."""
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
