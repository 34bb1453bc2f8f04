"""Columns of the predictions: one that is added outside the product is in every night from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.nightly.tables import prediction_columns
from pipelines.nightly.tables.prediction_columns import COLUMNS, Column, PredictedRows
from spin.errors import UserError
from spin.settings import BackboneSettings
from tests.pipelines.nightly.test_drift import save_version
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import NightProject

ROWS: list[dict[str, Any]] = [{name: row[name] for name in ("id", "text")} for row in tiny.make_documents(30)]


def second_scores(rows: PredictedRows) -> list[float]:
    """The second largest probability of each document."""
    return [sorted(row)[-2] for row in rows.predictions.probabilities.tolist()]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    folder = tmp_path_factory.mktemp("registry")
    save_version(folder / "1", BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"))
    return FolderRegistry(folder)


@pytest.mark.slow
def test_a_column_that_is_added_is_in_every_night_from_then_on(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("a.jsonl", ROWS)
    project.run_night(date="2026-03-01")
    monkeypatch.setattr(prediction_columns, "COLUMNS", (*COLUMNS, Column("second_score", pa.float32(), second_scores)))
    project.run_night(date="2026-03-02")
    before, after = (project.read_rows(date=date) for date in ("2026-03-01", "2026-03-02"))
    assert [row["second_score"] for row in before] == [None] * len(ROWS)
    assert [row["second_score"] for row in after] == [min(score for _, score in row["scores"]) for row in after]
    with pytest.raises(UserError, match="the output has a column 'Second_Score' of its own"):
        project.run_night(date="2026-03-03", set=("data.keep=[Second_Score]",))
