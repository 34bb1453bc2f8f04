"""Export gauges that outlive their process: to a Pushgateway, or to a file that a node_exporter reads."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway, pushadd_to_gateway, write_to_textfile
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from spin.settings import MetricsSettings, mask_credentials

_log = logging.getLogger(__name__)
JOB = "spin_night"
"""value of the label `job` of all figures on a Pushgateway"""
_TIMEOUT = 10.0
"""seconds for a Pushgateway to answer"""


@dataclass(frozen=True)
class GaugeValue:
    """The value of a gauge under some labels."""

    name: str
    """in Prometheus, such as `spin_night_documents`"""
    help: str
    """what it measures, in a line"""
    value: float
    labels: dict[str, str] = field(default_factory=dict)
    """beside those that all gauges of an export have"""


def export_gauges(settings: MetricsSettings, model: str, values: Sequence[GaugeValue], *, replace: bool) -> None:
    """Export gauges of a model wherever the settings say; what cannot be written is logged as a warning.

    With `replace`, these are all gauges of the model from then on; else the others keep the values of earlier exports.
    """
    labels = {**settings.labels, "model": model}
    if settings.pushgateway is not None:
        try:
            _push(settings.pushgateway, labels, values, replace=replace)
        except (OSError, ValueError) as error:
            _log.warning("metrics.pushgateway %s: %s", mask_credentials(settings.pushgateway), error)
            _log.debug("the figures of the night could not be pushed", exc_info=True)
    if settings.textfile is not None:
        try:
            _write_file(Path(settings.textfile), labels, values, replace=replace)
        except (OSError, ValueError) as error:
            _log.warning("metrics.textfile %s: %s", settings.textfile, error)
            _log.debug("the figures of the night could not be written", exc_info=True)


def _push(gateway: str, labels: dict[str, str], values: Sequence[GaugeValue], *, replace: bool) -> None:
    registry = CollectorRegistry()
    _set_gauges(registry, values, {})
    push = push_to_gateway if replace else pushadd_to_gateway
    push(gateway, job=JOB, registry=registry, grouping_key=labels, timeout=_TIMEOUT)


def _write_file(folder: Path, labels: dict[str, str], values: Sequence[GaugeValue], *, replace: bool) -> None:
    path = folder / f"{JOB}_{_slug(labels)}.prom"
    registry = CollectorRegistry()
    if not replace and path.exists():
        written = {value.name for value in values}
        families = text_string_to_metric_families(path.read_text(encoding="utf-8"))
        registry.register(_Kept([family for family in families if family.name not in written]))
    _set_gauges(registry, values, labels)
    write_to_textfile(str(path), registry)


class _Kept:
    """Gauges of an earlier export."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self.families = families

    def collect(self) -> Sequence[Metric]:
        return self.families


def _set_gauges(registry: CollectorRegistry, values: Sequence[GaugeValue], labels: dict[str, str]) -> None:
    gauges: dict[str, Gauge] = {}
    for value in values:
        own = labels | value.labels
        if value.name not in gauges:
            gauges[value.name] = Gauge(value.name, value.help, list(own), registry=registry)
        (gauges[value.name].labels(**own) if own else gauges[value.name]).set(value.value)


def _slug(labels: dict[str, str]) -> str:
    """A part of a file name for labels, for no two the same: the model, and a digest where that does not tell all."""
    model = labels["model"]
    slug = re.sub(r"[^A-Za-z0-9_.-]", "_", model)
    if labels == {"model": slug}:
        return slug
    return f"{slug}-{hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:6]}"
