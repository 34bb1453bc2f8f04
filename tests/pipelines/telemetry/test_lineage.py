"""Datasets are named as OpenLineage's naming spec says."""

from __future__ import annotations

import pytest

from pipelines.telemetry.lineage import name_dataset
from pipelines.telemetry.run_record import DataUse


@pytest.mark.parametrize(
    ("uri", "namespace", "name"),
    [
        ("s3://bucket/in/day", "s3://bucket", "in/day"),
        ("s3://bucket/in/day/", "s3://bucket", "in/day"),
        ("s3://bucket", "s3://bucket", "/"),
        ("s3://bucket/in/2026-*/x-[0-9].jsonl", "s3://bucket", "in"),
        ("s3://bucket/*.jsonl", "s3://bucket", "/"),
        ("s3://user:secret@bucket/in", "s3://bucket", "in"),
        ("s3://bucket/a#b", "s3://bucket", "a#b"),
        ("/srv/in/**/*.csv", "file", "/srv/in"),
        ("file:///srv/in", "file", "/srv/in"),
        ("/*.csv", "file", "/"),
    ],
)
def test_files_are_named_by_the_place_in_which_they_are_looked_for(uri: str, namespace: str, name: str) -> None:
    assert name_dataset(DataUse(uri=uri, kind="files")) == (namespace, name)


def test_a_model_is_named_by_its_registered_name() -> None:
    assert name_dataset(DataUse(uri="topics", kind="model", version="3")) == ("mlflow", "topics")
