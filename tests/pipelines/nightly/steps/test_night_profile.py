"""The profiles of all shards of a night are summed, or the one that is missing is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.nightly.steps import night_profile
from pipelines.nightly.steps.night_profile import NightProfile, sum_profiles
from pipelines.storage.object_store import Store
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.monitor.profile import Profile
from spin.monitor.quality import QualitySums

KEYS = [f"parts/{number}.profile" for number in range(5)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The profiles of five shards with ten documents each, which are read in three batches."""
    monkeypatch.setattr(night_profile, "_READ_AT_ONCE", 2)
    quality = QualitySums.of(LabelSpace(("a", "b")), np.zeros(10, int), np.full((10, 2), 0.5))
    store = Store(str(tmp_path))
    for key in KEYS:
        store.write(key, NightProfile(Profile({"documents": np.array(10)}), quality).to_bytes())
    return store


def test_the_profiles_of_all_shards_add_up(store: Store) -> None:
    total = sum_profiles(store, KEYS)
    assert total is not None
    assert (total.documents.documents, total.quality.labelled) == (50, 50)
    assert sum_profiles(store, []) is None


@pytest.mark.parametrize("lost", [KEYS[2:], KEYS[4:], KEYS])
def test_the_first_profile_that_is_missing_is_named_with_what_to_do(store: Store, lost: Sequence[str]) -> None:
    """Drift and quality are never those of the other shards alone."""
    store.delete_many(lost)
    with pytest.raises(UserError, match=rf"/{lost[0]} is missing, so the run cannot go on; start over with --restart"):
        sum_profiles(store, KEYS)
