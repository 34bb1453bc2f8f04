"""What the standard environment variables of OpenTelemetry and OpenLineage ask for, read without these packages."""

from __future__ import annotations

import os
from pathlib import Path

TRACE_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""variables of which one says where traces are sent"""
_LINEAGE_FILE = "openlineage.yml"


def wants_traces() -> bool:
    """Whether an endpoint for traces is set, and OpenTelemetry is not switched off."""
    if _is_true("OTEL_SDK_DISABLED") or os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(os.environ.get(name) for name in TRACE_ENDPOINTS)


def wants_lineage() -> bool:
    """Whether the OpenLineage client finds a configuration, and is not switched off.

    It reads these variables and files; where there are none it would print events to standard output.
    """
    if _is_true("OPENLINEAGE_DISABLED"):
        return False
    if os.environ.get("OPENLINEAGE_URL") or any(name.startswith("OPENLINEAGE__TRANSPORT") for name in os.environ):
        return True
    files = [Path(_LINEAGE_FILE), Path("~/.openlineage").expanduser() / _LINEAGE_FILE]
    if named := os.environ.get("OPENLINEAGE_CONFIG"):
        files.append(Path(named))
    return any(file.is_file() for file in files)


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() == "true"
