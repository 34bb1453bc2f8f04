"""The names of data in OpenLineage: a namespace for where it is, and a name within it, as its naming spec says."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from itertools import takewhile
from urllib.parse import unquote, urlsplit

from pipelines.telemetry.run_events import DataUse

MODELS = "mlflow"
"""namespace of registered models, for which the spec has none"""


@dataclass(frozen=True)
class DatasetName:
    """The name of a dataset."""

    namespace: str
    name: str


def name_dataset(use: DataUse) -> DatasetName:
    """The name of what a run reads or writes: of a glob, the folder below which it matches; never its credentials.

    >>> name_dataset(DataUse(uri="s3://bucket/in/2026-*/*.jsonl", kind="files"))
    DatasetName(namespace='s3://bucket', name='in')
    >>> name_dataset(DataUse(uri="/srv/out/predictions", kind="table"))
    DatasetName(namespace='file', name='/srv/out/predictions')
    """
    if use.kind == "model":
        return DatasetName(MODELS, use.uri)
    if "://" not in use.uri:
        return DatasetName("file", _folder_of(use.uri) or "/")
    parts = urlsplit(use.uri.replace("?", "%3F").replace("#", "%23"))  # in an object's key they are plain characters
    path = unquote(parts.path) if "%3F" in parts.path or "%23" in parts.path else parts.path
    if parts.scheme == "file":
        return DatasetName("file", _folder_of(path) or "/")
    return DatasetName(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", _folder_of(path).strip("/") or "/")


def _folder_of(path: str) -> str:
    """The part of a path before the first folder or file name that is a pattern."""
    return "/".join(takewhile(lambda part: not glob.has_magic(part), path.rstrip("/").split("/")))
