"""The figures of `spin evaluate`: how sure they are where texts repeat."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.training.evaluate import EvaluationReport, run_evaluate
from spin.labels.label_space import LabelSpace
from spin.settings import DecisionSettings, parse_settings


def evaluate(folder: Path, texts: list[str]) -> EvaluationReport:
    """Evaluate a model that is wrong on every tenth text of 50, whatever links and signs are in it."""
    settings = parse_settings({"backbone": {"model": "m"}, "data": {"train": "t"}, "store": str(folder)})
    ids = [f"d{number}" for number in range(len(texts))]
    labels = ["bad" if number % 10 == 0 else "good" for number in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts, "label": labels}), folder / "labelled.parquet")
    spin = SimpleNamespace(
        label_space=LabelSpace(("bad", "good")),
        decision=DecisionSettings(),
        fitted=SimpleNamespace(applied_settings=lambda space, decision: decision),
        predict_all=lambda texts, progress: SimpleNamespace(labels=["good"] * len(texts)),
    )
    registry: Any = SimpleNamespace(resolve=lambda model: "1", load=lambda version: spin)
    return run_evaluate(settings, registry, str(folder / "labelled.parquet"))


def test_near_identical_texts_count_as_one(tmp_path: Path) -> None:
    """Eight copies of 50 texts tell less than 400 texts."""
    distinct = evaluate(tmp_path, [f"text {number}" for number in range(400)])
    copied = evaluate(tmp_path, [f"Text {number % 50}{'!' * (number // 50)}" for number in range(400)])
    assert copied.metrics == distinct.metrics
    widths = [high - low for low, high in (report.intervals["accuracy"] for report in (distinct, copied))]
    assert widths[1] > 2 * widths[0]
