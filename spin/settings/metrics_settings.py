"""The section `metrics`: where the figures of nights go that outlive a command."""

from __future__ import annotations

from pydantic import Field

from spin.settings.credentials import Uri
from spin.settings.section import Section


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
        "written to spin_night_MODEL.prom at the end of every night. Default: none.",
    )
    labels: dict[str, str] = Field(
        {},
        description="Labels by which the figures of several projects are told apart, such as {environment: staging}: "
        "figures with the same labels and the same model replace each other.",
    )
