"""The section `metrics`: where the figures of nights go that outlive a command."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from spin.settings.credentials import Uri
from spin.settings.section import Section

_LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")
_TAKEN = ("bound", "instance", "job", "model", "output", "property", "reason", "run", "version")
"""labels that the figures have already"""


class MetricsSettings(Section):
    """The figures of the last night, for Prometheus: its date, its documents, its drift, and whether it failed."""

    pushgateway: Uri | None = Field(
        None,
        description="Address of a Prometheus Pushgateway, such as http://pushgateway:9091, that gets the figures at "
        "the end of every night. Default: none.",
    )
    textfile: str | None = Field(
        None,
        description="Folder of the textfile collector of a node_exporter, in which the figures of each model are "
        "written to spin_night_MODEL-DIGEST.prom at the end of every night. Default: none.",
    )
    labels: dict[str, str] = Field(
        {},
        description="Labels that distinguish the figures of several projects, such as {environment: staging}: "
        "figures with the same labels, model and output replace each other.",
    )

    @field_validator("labels")
    @classmethod
    def _check_names(cls, labels: dict[str, str]) -> dict[str, str]:
        """Raise ValueError for a name that Prometheus does not take, or that the figures have themselves."""
        for name in labels:
            if not _LABEL.fullmatch(name) or name in _TAKEN:
                raise ValueError(
                    f"'{name}' is no label; expected letters, digits and _, not beginning with a digit or __, and none "
                    f"of {', '.join(_TAKEN)}"
                )
        return labels
