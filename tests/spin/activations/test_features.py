"""Features of parts of some texts are those of all texts, one part after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spin.activations.features import Features
from spin.sites import FeatureColumn

COLUMN = FeatureColumn.parse("ffn.01.mean")


def draw_features(n: int) -> Features:
    """Random features of n texts that are read in windows and may exit early."""
    draw = np.random.default_rng(n)
    counts = draw.integers(0, 9, (5, n)).astype(np.int32)
    return Features(
        {COLUMN: draw.normal(size=(n, 3)).astype(np.float32)},
        counts[0],
        counts[1],
        counts[2] > 4,
        depth=counts[3],
        windows=counts[4],
    )


def test_parts_are_joined_text_by_text() -> None:
    """Also a part without texts; what no part has, the whole has neither."""
    parts = [draw_features(n) for n in (5, 0, 8)]
    whole = Features.concatenate(parts)
    for name in ("n_tokens", "n_unknown", "cut", "depth", "windows"):
        assert getattr(whole, name).tolist() == [value for part in parts for value in getattr(part, name).tolist()]
    assert whole.columns[COLUMN].tolist() == [row for part in parts for row in part.columns[COLUMN].tolist()]
    assert (whole.words, whole.unread_tokens, whole.reasons) == (None, None, None)
    assert whole.truncated == sum(bool(cut) for part in parts for cut in part.cut) > 0


@pytest.mark.parametrize("name", ["depth", "windows"])
def test_parts_of_different_classifiers_are_refused(name: str) -> None:
    parts = [draw_features(5), replace(draw_features(8), **{name: None})]
    with pytest.raises(ValueError, match=f"found parts with and without {name}; expected parts of one classifier"):
        Features.concatenate(parts)


def test_counts_of_two_parts_of_the_texts_are_added() -> None:
    """Every text has the counts of the one that counted it, and none if neither did."""
    features, mask = draw_features(8), np.array([True, False, False, True, True, False, True, False])
    first, second = features.count_only(mask), features.count_only(~mask)
    assert (first.truncated, second.truncated) == (features.cut[mask].sum(), features.cut[~mask].sum())
    for name in ("n_tokens", "n_unknown", "cut", "windows"):
        whole = getattr(features, name).tolist()
        assert getattr(first, name).tolist() == [value if own else 0 for value, own in zip(whole, mask, strict=True)]
        assert getattr(first.add_counts(second), name).tolist() == whole
    assert first.columns is features.columns
    assert first.add_counts(second).unread_tokens is None
