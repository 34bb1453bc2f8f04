"""Groups of documents that the division of the benchmark keeps together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.method import corpora, groups
from benchmarks.method.corpora import Documents, Plan, draw_exam, load
from benchmarks.method.groups import group_similar, join_groups


def made_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 40 words out of 50, of which a third are another one with a tenth of its words changed."""
    draw = np.random.default_rng(seed)
    texts = [draw.integers(0, 50, 40) for _ in range(count)]
    for row in range(0, count, 3):
        changed = texts[row + 1].copy()
        changed[draw.random(40) < 0.1] = 99
        texts[row] = changed
    return [" ".join(f"Word{number}." for number in text) for text in texts]


def test_similar_texts_are_those_that_a_plain_loop_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also across the blocks in which texts are compared."""
    monkeypatch.setattr(groups, "_BLOCK", 7)
    texts = made_texts(60)
    found = group_similar(texts)
    shingles = []
    for text in texts:
        words = text.lower().replace(".", "").split()
        shingles.append({tuple(words[i : i + 4]) for i in range(len(words) - 3)})
    pairs = 0
    for i, first in enumerate(shingles):
        for j, second in enumerate(shingles[:i]):
            similar = len(first & second) >= 0.5 * len(first | second)
            assert similar == (found[i] == found[j])
            pairs += similar
    assert 5 < pairs <= 20


def test_texts_without_a_sequence_of_four_words_are_similar_to_none() -> None:
    assert len(set(group_similar(["one two three", "one two three", "a b c d", "A b, c d!"]))) == 3


def test_names_and_equal_texts_join_documents_also_through_others() -> None:
    texts = ["a", "b", "A!", "c", "d"]
    joined = join_groups(texts, ["x", "y", "y", "z", "z"]).tolist()
    assert joined[0] == joined[1] == joined[2] != joined[3] == joined[4]
    alone = join_groups(texts).tolist()
    assert alone[0] == alone[2]
    assert len(set(alone)) == 4


def test_no_exam_divides_documents_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are stored with the documents of a corpus; without them only equal texts count."""
    draw = np.random.default_rng(0)
    labels = [["a", "b"][k] for k in draw.integers(0, 2, 400)]
    names = [f"source {number}" for number in draw.integers(0, 150, 400)]
    documents = Documents([f"text {row}" for row in range(400)], labels, groups=names)
    plan = Plan("tiny", "tiny", "none", 300, 120, 40, 80)
    drawn = corpora._draw(documents, plan)
    drawn.to_parquet(tmp_path / "documents.parquet")
    (tmp_path / "corpus.json").write_text('{"columns": [], "flops": {}, "depth": 1}')
    corpus = load(plan, tmp_path)
    of_row = drawn["group"].tolist()
    assert of_row == [names[int(text.split()[1])] for text in corpus.texts]
    for setting in ("full", "few16"):
        exam = draw_exam(corpus, setting, 1)
        sides = [{of_row[row] for row in rows} for rows in (exam.train, exam.valid, exam.test)]
        assert not (sides[0] | sides[1]) & sides[2]
        assert not sides[0] & sides[1]
    corpora._draw(replace(documents, groups=()), plan).to_parquet(tmp_path / "documents.parquet")
    assert "group" not in pd.read_parquet(tmp_path / "documents.parquet")
    assert len(set(load(plan, tmp_path).groups.tolist())) == 300
