"""The table of tokens: what it returns does not depend on what it has kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.words.token_table import Entry, TokenTable


def analyze(token: str) -> list[Entry]:
    """An entry for each letter but x."""
    return [(ord(letter), at, at + 1) for at, letter in enumerate(token) if letter != "x"]


@settings(deadline=None)
@given(st.lists(st.lists(st.text("abx", max_size=3), max_size=8), max_size=6), st.integers(0, 6))
def test_entries_are_those_of_a_loop(calls: list[list[str]], kept: int) -> None:
    """In every call of a sequence of them, whether the table begins anew in between or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spin.words.token_table.CHARACTERS_KEPT", kept)
        table = TokenTable(analyze)
        for tokens in calls:
            entries, at = table.look_up(tokens)
            expected = [(index, *entry) for index, token in enumerate(tokens) for entry in analyze(token)]
            assert [(index, *entry) for index, entry in zip(at.tolist(), entries.tolist(), strict=True)] == expected
            assert len(table) <= 1 + kept + len(set(tokens))  # one token may be empty


def test_a_token_is_analysed_once() -> None:
    analysed: list[str] = []

    def record(token: str) -> list[Entry]:
        analysed.append(token)
        return analyze(token)

    table = TokenTable(record)
    for tokens in (["ab", "x", "ab"], ["x", "b", "ab"]):
        table.look_up(tokens)
    assert sorted(analysed) == ["ab", "b", "x"]


def test_a_table_is_bounded_by_the_characters_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of minified JSON are tokens of many kilobytes, each with thousands of words."""
    monkeypatch.setattr("spin.words.token_table.CHARACTERS_KEPT", 1000)
    table = TokenTable(analyze)
    for number in range(20):
        table.look_up([f"{number}" * 400])
        assert len(table) <= 3


def test_threads_share_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spin.words.token_table.CHARACTERS_KEPT", 200)
    table = TokenTable(analyze)
    calls = [[f"{'ab'[n % 2] * (1 + n % 7)}{chr(97 + m % 26)}" for m in range(n, n + 40)] for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(table.look_up, calls))
    for tokens, (entries, _) in zip(calls, results, strict=True):
        expected = [entry for token in tokens for entry in analyze(token)]
        np.testing.assert_array_equal(entries, np.array(expected, np.int64).reshape(-1, 3))
