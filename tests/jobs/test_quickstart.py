"""The documents of the quickstart, and what it prints of a night whose labels were kept aside."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import quickstart
from spin.monitor.quality import Estimate, QualityEstimate


@pytest.mark.parametrize("full", [False, True])
def test_the_night_holds_other_documents_than_training_and_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Without labels, which are in a file of their own."""
    words = [f"tweet number {chr(97 + n % 26)}{chr(97 + n // 26)} x{n}" for n in range(200)]
    tweets = pd.DataFrame({"id": [f"t{n}" for n in range(200)], "text": words, "label": ["good", "bad"] * 100})
    monkeypatch.setattr(quickstart, "read_tweets", lambda: tweets)
    for name, size in (("_TRAINED", 80), ("_TESTED", 40), ("_NIGHT", 30)):
        monkeypatch.setattr(quickstart, name, size)
    quickstart._prepare(tmp_path, full)
    learned, test, night, truth = (
        pq.read_table(tmp_path / name).to_pandas()
        for name in ("tweets.parquet", "test.parquet", "tonight.parquet", "tonight-labels.parquet")
    )
    assert [len(learned), len(test), len(night)] == ([180, 20, 20] if full else [120, 40, 30])
    assert set(night["id"]).isdisjoint(learned["id"])
    assert set(test["id"]) == set(learned.loc[learned["split"] == "test", "id"])
    assert list(night.columns) == ["id", "text"]
    expected = tweets.set_index("id").loc[night["id"], "label"]
    assert truth["id"].tolist() == night["id"].tolist()
    assert truth["label"].tolist() == expected.tolist()
    assert expected.value_counts().tolist() == [len(night) // 2] * 2


def test_estimate_and_truth_are_printed_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = tmp_path / "truth.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c", "d"], "label": ["x", "y", "x", "y"]}), truth)
    given = [{"id": id, "label": label} for id, label in zip("dcba", ("y", "x", "x", "x"), strict=True)]
    monkeypatch.setattr(quickstart, "read_predictions", lambda output: given)
    quality = QualityEstimate(4, Estimate(0.7, 0.6, 0.8), Estimate(0.65, 0.5, 0.9), ())
    line = quickstart._compare_with_truth(quality, truth, tmp_path)
    assert line.endswith(": accuracy 70.0 [60.0–80.0], true 75.0, macro-F1 65.0 [50.0–90.0], true 73.3")
    assert "accuracy –, true 75.0" in quickstart._compare_with_truth(None, truth, tmp_path)
