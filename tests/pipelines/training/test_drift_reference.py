"""Without test documents nights are compared with documents that validated, by predictions that did not know them."""

from __future__ import annotations

import numpy as np

from pipelines.training.drift_reference import choose_reference
from spin.integrate.fit_words import WordFit
from spin.labels.cross_validation import Fold
from spin.words.word_regression import WordRegression

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
    rows, logits = choose_reference(NO_ROWS, np.empty((0, 2)), words, folds)
    assert rows.tolist() == [0, 1, 2, 4, 9]
    expected = rows[:, None] + np.array([0.1, 0.2]) + np.array([100, 100, 100, 0, 0])[:, None]
    assert logits is not None
    np.testing.assert_allclose(logits, expected)
    assert choose_reference(NO_ROWS, None, None, folds)[1] is None
    test, of_test = np.array([3, 5]), np.ones((2, 2))
    rows, logits = choose_reference(test, of_test, words, folds)
    assert rows is test
    assert logits is of_test
