"""Export gauges that outlive their process: to a Pushgateway, or to a file that a node_exporter reads."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock
from prometheus_client import CollectorRegistry, Gauge, push_to_gateway, pushadd_to_gateway, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from spin.settings import MetricsSettings, mask_credentials

_log = logging.getLogger(__name__)
JOB = "spin_night"
"""value of the label `job` of all figures on a Pushgateway"""
EXPORT_SECONDS = 10.0
"""for which a command waits for a Pushgateway or a file"""


@dataclass(frozen=True)
class GaugeValue:
    """The value of a gauge under some labels."""

    name: str
    """in Prometheus, such as `spin_night_documents`"""
    help: str
    """its description for readers of a scrape, in a line"""
    value: float
    labels: dict[str, str] = field(default_factory=dict)
    """beside those that all gauges of an export have"""


def export_gauges(
    settings: MetricsSettings, model: str, output: str, values: Sequence[GaugeValue], *, replace: bool
) -> None:
    """Export gauges of a model in an output wherever the settings say, for at most `EXPORT_SECONDS` each.

    With `replace`, these are all gauges of the model from then on; else the others keep the values of earlier exports.
    What cannot be written is logged as a warning: nothing depends on it.
    """
    labels = {**settings.labels, "model": model, "output": mask_credentials(output)}
    if settings.pushgateway is not None:
        push = partial(_push, settings.pushgateway, labels, values, replace=replace)
        _try_export(f"metrics.pushgateway {mask_credentials(settings.pushgateway)}", push)
    if settings.textfile is not None:
        write = partial(_write_file, Path(settings.textfile), labels, values, replace=replace)
        _try_export(f"metrics.textfile {settings.textfile}", write)


def _try_export(target: str, export: Callable[[], None]) -> None:
    """Call a function in a thread, which a server that answers slowly keeps from ending, but not the caller."""

    def run() -> None:
        try:
            export()
        except Exception as error:
            _log.warning("%s: %s; the figures of the night are not there", target, mask_credentials(str(error)))
            _log.debug("the figures of the night could not be exported", exc_info=True)

    thread = threading.Thread(target=run, daemon=True, name="gauges")
    thread.start()
    thread.join(EXPORT_SECONDS)
    if thread.is_alive():
        _log.warning("%s: no answer for %g s; the figures of the night may not be there", target, EXPORT_SECONDS)


def _push(gateway: str, labels: dict[str, str], values: Sequence[GaugeValue], *, replace: bool) -> None:
    push = push_to_gateway if replace else pushadd_to_gateway
    push(gateway, job=JOB, registry=_make_registry(values, {}), grouping_key=labels, timeout=EXPORT_SECONDS)


def _write_file(folder: Path, labels: dict[str, str], values: Sequence[GaugeValue], *, replace: bool) -> None:
    path = folder / f"{JOB}_{_slug(labels)}.prom"
    if not folder.is_dir():
        raise FileNotFoundError("there is no such folder")
    with FileLock(f"{path}.lock", timeout=EXPORT_SECONDS):  # another command of the model may end at the same time
        kept = [] if replace or not path.exists() else _read_gauges(path.read_text(encoding="utf-8"), values)
        write_to_textfile(str(path), _make_registry([*kept, *values], labels))


def _read_gauges(text: str, later: Sequence[GaugeValue]) -> list[GaugeValue]:
    """The gauges of an earlier export, without those that a later one writes."""
    written = {value.name for value in later}
    return [
        GaugeValue(sample.name, family.documentation, sample.value, dict(sample.labels))
        for family in text_string_to_metric_families(text)
        if family.name not in written
        for sample in family.samples
    ]


def _make_registry(values: Sequence[GaugeValue], labels: dict[str, str]) -> CollectorRegistry:
    registry, gauges = CollectorRegistry(), dict[str, Gauge]()
    for value in values:
        own = labels | value.labels
        if value.name not in gauges:
            gauges[value.name] = Gauge(value.name, value.help, list(own), registry=registry)
        (gauges[value.name].labels(**own) if own else gauges[value.name]).set(value.value)
    return registry


def _slug(labels: dict[str, str]) -> str:
    """A part of a file name for labels: the model, and a digest of all labels."""
    slug = re.sub(r"[^A-Za-z0-9_.-]", "_", labels["model"])
    return f"{slug}-{hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:16]}"
