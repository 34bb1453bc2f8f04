"""The extraction of a corpus whose texts are read in windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.training.extract_features import load_features, run_extract
from spin.activations.extract import extract
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.sites import FeatureColumn
from tests.support.small_training import make_settings, write_corpus

pytestmark = pytest.mark.slow

COLUMN = FeatureColumn.parse("ffn.02.mean")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 120, ("good", "bad"))
    return folder


def test_features_of_a_corpus_are_merged_and_windows_counted(folder: Path, tmp_path: Path) -> None:
    """A store that was extracted in windows is of no use to a training that cuts."""
    windows = {"max_tokens": 7, "long_texts": "windows", "window_overlap": 2, "max_windows": 2}
    backbone = {"model": str(folder / "bert"), "dtype": "float32", "device": "cpu"}
    settings = make_settings(folder, tmp_path / "store", backbone={**backbone, **windows})
    manifest = run_extract(settings)
    texts = pq.read_table(folder / "train.parquet")["text"].to_pylist()
    lengths = [len(text.split()) for text in texts]
    counts = manifest.results.counts
    assert counts.windows == sum(1 + (length > 5) for length in lengths) > len(texts)
    assert counts.truncated == sum(length > 5 + 3 for length in lengths) > 0
    stored = load_features(settings)[2].read_rows(COLUMN, np.arange(len(texts)))
    expected = extract(load_backbone(settings.backbone), texts, [COLUMN]).columns[COLUMN]
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=2e-3)  # stored as float16
    with pytest.raises(UserError, match=r"backbone\.max_windows is 3, was 2"):
        run_extract(make_settings(folder, tmp_path / "store", backbone={**backbone, **windows, "max_windows": 3}))
    with pytest.raises(UserError, match=r"long_texts"):
        run_extract(make_settings(folder, tmp_path / "store", backbone={**backbone, "max_tokens": 7}))
