"""A sample of documents: the same however a night is divided, and ranked as by a plain loop over all documents."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin.arrays import Floats
from spin.monitor.document_sample import DocumentSample, is_sampled, sample_share

WORDS = ("fine", "cold", "seven")


def draw_values(documents: int, features: int, seed: int = 0) -> Floats:
    """Return values with many ties, and with documents of which some features were not read."""
    draw = np.random.default_rng(seed)
    values = draw.integers(-4, 5, (documents, features)).astype(np.float32)
    values[draw.random(values.shape) < 0.2] = np.nan
    return values


@pytest.mark.slow
@given(st.lists(st.integers(0, 60), max_size=4), st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_sample_of_shards_in_any_order_is_that_of_all_documents(cuts: list[int], random: Random, seed: int) -> None:
    """Each document has its own values and words, and features are ranked as by a plain loop."""
    values, borders = draw_values(60, 4, seed), [0, *sorted(cuts), 60]
    ids, texts = [f"{17 * n % 60}" for n in range(60)], [f"{WORDS[n % 3]} {n}" for n in range(60)]
    parts = [
        DocumentSample.from_bytes(DocumentSample.of_texts(ids[a:b], values[a:b], texts[a:b]).to_bytes())
        for a, b in pairwise(borders)
    ]
    random.shuffle(parts)
    sample = DocumentSample.concatenate(iter(parts), [3, 1])
    assert list(sample.ids) == sorted(ids)
    for row, id in enumerate(sample.ids):
        place = ids.index(id)
        np.testing.assert_array_equal(sample.values[row], values[place, [3, 1]])
        assert sample.words[row] == tuple(texts[place].split())
    for at, feature in enumerate((3, 1)):
        for sign in (-1, 1):
            read = [(-sign * v, id) for v, id in zip(values[:, feature].tolist(), ids, strict=True) if v == v]
            assert [sample.ids[row] for row in sample.rank(at, sign)] == [id for _, id in sorted(read)]


@pytest.mark.slow
def test_about_a_thousand_documents_are_sampled_by_their_ids_alone() -> None:
    """All of a night of fewer; in any other night the same share, whatever the ids look like."""
    assert sample_share(0) == sample_share(1000) == 1
    for name in ("d{:06d}", "https://example.org/{}", "{}"):
        ids = [name.format(n) for n in range(50_000)]
        assert all(is_sampled(id, 1) for id in ids)
        chosen = [id for id in ids if is_sampled(id, sample_share(len(ids)))]
        assert 850 < len(chosen) < 1150
        assert not set(chosen) - {id for id in ids if is_sampled(id, 0.03)}
        assert not any(is_sampled(id, 0) for id in ids)


def test_words_are_left_out_unless_all_parts_have_them() -> None:
    values = np.zeros((1, 1), np.float32)
    with_words, without = DocumentSample.of_texts(["a"], values, ["Fine"]), DocumentSample.of_texts(["b"], values, [])
    assert DocumentSample.concatenate([with_words], [0]).words == (("fine",),)
    assert DocumentSample.concatenate([with_words, without], [0]).words == ()


def test_values_that_differ_in_their_last_bits_are_equal() -> None:
    """As those of one text in two batches; values that are too large stay finite."""
    values = np.array([[1.5000001], [1.5], [1e9], [-1e9], [0.0]], np.float32)
    sample = DocumentSample.concatenate([DocumentSample.of_texts(["b", "a", "c", "d", "e"], values, [])], [0])
    assert [sample.ids[row] for row in sample.rank(0, 1)] == ["c", "a", "b", "e", "d"]
    assert np.isfinite(sample.values).all()


def test_nothing_was_sampled() -> None:
    sample = DocumentSample.concatenate([], [0, 1])
    assert (sample.ids, sample.words, sample.values.shape) == ((), (), (0, 2))
    assert sample.rank(1, 1).tolist() == []


@pytest.mark.parametrize(("silent", "named"), [(4, True), (6, False)])
def test_no_document_stands_out_where_half_have_the_farthest_value(silent: int, named: bool) -> None:
    """A neuron that is silent on most documents moves down where it fires less often."""
    values = np.array([0.0] * silent + [3.0] * (10 - silent), np.float32)[:, None]
    sample = DocumentSample.of_texts([str(n) for n in range(10)], values, [])
    assert (len(sample.rank(0, -1)) == 10) == named
    assert len(sample.rank(0, 1)) == (10 if silent == 6 else 0)
