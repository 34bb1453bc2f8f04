"""Without test documents nights are compared with documents that validated, by predictions that did not know them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.registry.packaging import REFERENCE
from pipelines.storage.object_store import Store
from pipelines.training.drift_reference import choose_reference
from pipelines.training.workflow import run_workflow
from spin.integrate.fit_words import WordFit
from spin.labels.cross_validation import Fold
from spin.monitor.profile import Profile
from spin.words.word_regression import WordRegression
from tests.support import small_training

NO_ROWS = np.empty(0, np.int64)


def test_a_row_that_validates_twice_counts_once_with_held_out_logits() -> None:
    """In ascending order, as a feature store is read, each with the logits of its first fold."""
    folds = [
        Fold(np.array([0, 1, 2]), np.array([9, 4])),
        Fold(np.array([4, 9]), np.array([2, 0, 1])),
        Fold(np.array([0, 1]), np.array([4, 2, 9])),
    ]
    held_out = tuple(fold.valid[:, None] + np.array([0.1, 0.2]) + 100 * index for index, fold in enumerate(folds))
    regression = WordRegression((), np.zeros((2, 0), np.float32), np.zeros(2, np.float32))
    words = WordFit(regression, held_out, 1.0)
    reference = choose_reference(NO_ROWS, np.empty((0, 2)), words, folds)
    assert reference.rows.tolist() == [0, 1, 2, 4, 9]
    assert reference.learned
    expected = reference.rows[:, None] + np.array([0.1, 0.2]) + np.array([100, 100, 100, 0, 0])[:, None]
    assert reference.words is not None
    np.testing.assert_allclose(reference.words, expected)
    assert choose_reference(NO_ROWS, None, None, folds).words is None
    test, of_test = np.array([3, 5]), np.ones((2, 2))
    reference = choose_reference(test, of_test, words, folds)
    assert reference.rows is test
    assert reference.words is of_test
    assert not reference.learned


@pytest.mark.slow
@pytest.mark.parametrize("test_fraction", [0.0, 0.2])
def test_predictions_are_compared_with_those_for_test_documents_alone(tmp_path: Path, test_fraction: float) -> None:
    """Without test documents the reference holds what was read of documents, and no predictions for them."""
    small_training.write_corpus(tmp_path, 200, ("good", "bad"))
    settings = small_training.make_settings(
        tmp_path,
        tmp_path / "store",
        data={"train": str(tmp_path / "train.parquet"), "test_fraction": test_fraction},
        search={"etas": [0.9], "strengths": [1], "network": "off"},
        train={"baselines": False},
    )
    run_workflow(settings)
    data = (Store(settings.store.uri) / "model").read(REFERENCE)
    assert data is not None
    sums = Profile.from_bytes(data, "accuracy.").sums.keys()
    assert {"documents", "lengths"} <= sums
    assert ({"labels", "scores"} <= sums) is (test_fraction > 0)
