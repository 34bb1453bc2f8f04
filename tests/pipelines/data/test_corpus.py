"""The texts of a labelled corpus: read once, returned by row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.corpus import Corpus
from pipelines.storage.request_counting import count_input_reads
from spin.errors import UserError
from tests.pipelines.data.files.test_sharding import DATA, build_rows, plan_uri, to_jsonl, write_file

TEXTS = [f"text {n}, 学び" for n in range(30)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Thirty texts in several shards."""
    uri = write_file(tmp_path, "a.jsonl", to_jsonl(build_rows(TEXTS)))
    corpus = Corpus(tuple(plan_uri(uri, 7)), DATA)
    assert len(corpus.shards) > 3
    return corpus


@pytest.mark.parametrize("rows", [[], [0], [29], [0, 1, 13, 29], list(range(30))])
def test_texts_are_returned_by_row(corpus: Corpus, rows: list[int]) -> None:
    assert corpus.read_texts(np.array(rows, np.int64)) == [TEXTS[row] for row in rows]


def test_a_block_holds_the_texts_of_one_shard(corpus: Corpus) -> None:
    blocks = list(corpus.text_blocks(np.arange(30)))
    assert len(blocks) == len(corpus.shards)
    assert [text for block in blocks for text in block] == TEXTS
    assert list(corpus.text_blocks(np.array([29]))) == [[TEXTS[29]]]


def test_the_files_are_read_once(corpus: Corpus, tmp_path: Path) -> None:
    """They are read at the first use; a second use reads nothing."""
    with count_input_reads() as traffic:
        assert corpus.read_texts(np.array([], np.int64)) == []
        assert traffic.read == 0
        corpus.read_texts(np.array([3]))
        # the byte before a range shows whether a line begins with it
        assert traffic.read == (tmp_path / "a.jsonl").stat().st_size + len(corpus.shards) - 1
        bytes_after_first_use = traffic.read
        assert corpus.read_texts(np.array([29])) == [TEXTS[29]]
        assert traffic.read == bytes_after_first_use


def test_the_temporary_file_is_deleted_at_once(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the corpus cannot be read."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    corpus.read_texts(np.array([3]))
    assert os.listdir(tmp_path / "scratch") == []
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError):
        Corpus(corpus.shards, DATA).read_texts(np.array([3]))
    assert os.listdir(tmp_path / "scratch") == []
