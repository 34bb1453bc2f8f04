"""The texts of a corpus: read once from the spool, and from the files where it is gone, returned by row."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.data.corpus import Corpus, divide_parts
from pipelines.data.files.shards import Piece
from pipelines.data.spool import LostPartError, ReadyPiece, read_texts
from pipelines.service_errors import HeldError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from spin.errors import UserError
from tests.pipelines.data.files.test_readers import DATA, build_rows, to_jsonl, write_file
from tests.support.corpora import spool_corpus
from tests.support.input_reads import count_input_reads
from tests.support.leases import expire_lease

TEXTS = [f"text {n}, 学び" for n in range(30)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Thirty texts in several parts."""
    uri = write_file(tmp_path, "a.jsonl", to_jsonl(build_rows(TEXTS)))
    corpus = spool_corpus(uri, Store(str(tmp_path / "store")), 7, DATA)
    assert len(corpus.parts) == 5
    return corpus


def delete_spool(corpus: Corpus) -> None:
    with Lease(corpus.spool.store / "features") as lease:
        corpus.spool.delete(lease)
    assert corpus.spool.store.list("spool") == []


@pytest.mark.parametrize("spooled", [True, False])
@pytest.mark.parametrize("rows", [[], [0], [29], [0, 1, 13, 29], list(range(30))])
def test_texts_are_returned_by_row(
    corpus: Corpus, rows: list[int], spooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a spool the files are read, whose rows are neither checked nor spooled once more."""
    monkeypatch.setattr("pipelines.data.spool.SpoolWriter.add", lambda *_: pytest.fail("it is spooled again"))
    if not spooled:
        delete_spool(corpus)
    assert corpus.read_texts(np.array(rows, np.int64)) == [TEXTS[row] for row in rows]


def test_a_block_holds_the_texts_of_one_shard(corpus: Corpus) -> None:
    """As a block of features does: shards begin and end within parts."""
    shards = divide_parts([ReadyPiece(part, n, part.size) for n, part in enumerate(corpus.parts)], 12)
    corpus = replace(corpus, shards=tuple(shards))
    blocks = list(corpus.text_blocks(np.arange(30)))
    assert [len(block) for block in blocks] == [12, 12, 6]
    assert [text for block in blocks for text in block] == TEXTS
    assert list(corpus.text_blocks(np.array([0, 29]))) == [[TEXTS[0]], [TEXTS[29]]]


def test_the_spool_is_read_once(corpus: Corpus) -> None:
    """It is read at the first use; a second use reads nothing."""
    with count_input_reads() as reads:
        assert corpus.read_texts(np.array([], np.int64)) == []
        assert reads.bytes == 0
        corpus.read_texts(np.array([3]))
        assert reads.bytes == sum(part.size for part in corpus.parts)
        assert corpus.read_texts(np.array([29])) == [TEXTS[29]]
        assert reads.bytes == sum(part.size for part in corpus.parts)


def test_a_process_that_is_killed_leaves_no_file_of_texts(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file never has a name, not even while the texts are written to it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    seen = []

    def read_spool(self: Corpus) -> Iterator[pa.Array]:
        for texts in original(self):
            seen.append(list(scratch.iterdir()))
            yield texts

    original = Corpus._read_spool
    monkeypatch.setattr(Corpus, "_read_spool", read_spool)
    assert corpus.read_texts(np.arange(30)) == TEXTS
    assert seen == [[]] * 5


@pytest.mark.slow
def test_a_spool_of_which_a_part_is_lost_is_replaced_by_the_files(corpus: Corpus) -> None:
    """Also if it is lost while the spool is read."""
    Path(corpus.parts[2].uri).unlink()
    assert corpus.read_texts(np.arange(30)) == TEXTS
    with pytest.raises(LostPartError, match="is missing.*; run the command again"):
        read_texts(corpus.shards[2])
    before = [Path(part.uri).read_bytes() for part in corpus.parts if Path(part.uri).exists()]
    with Lease(corpus.spool.store / "features") as lease:
        corpus.restore(lease)
    after = [Path(part.uri).read_bytes() for part in corpus.parts]
    assert len(after) == 5
    assert [data for n, data in enumerate(after) if n != 2] == before


def test_the_spool_of_another_corpus_is_not_deleted(corpus: Corpus) -> None:
    store = corpus.spool.store
    store.write("spool/other/000000.parquet", b"")
    with Lease(store / "features") as lease:
        corpus.spool.delete(lease)
        assert store.list("spool") == ["spool/other/000000.parquet"]
        corpus.restore(lease)
        corpus.spool.delete(lease, others=True)
    assert store.list("spool") == [f"spool/corpus/{n:06d}.parquet" for n in range(5)]


def test_an_intake_that_is_overtaken_writes_no_further_part(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.data.corpus.LEASE_CHECK_SECONDS", 0.0)
    delete_spool(corpus)
    with Lease(corpus.spool.store / "features") as lease:
        expire_lease(lease.store)
        with Lease(lease.store), pytest.raises(HeldError):
            corpus.restore(lease)
    assert corpus.spool.store.list("spool") == []


def make_part(number: int, documents: int, size: int) -> ReadyPiece:
    piece = Piece(f"{number:06d}.parquet", "spool", 0, documents, documents=documents, size=1)
    return ReadyPiece(piece, number, size)


@pytest.mark.parametrize(
    ("parts", "documents", "expected"),
    [
        ([(10, 1), (10, 1)], 8, [[(0, 0, 8)], [(0, 8, 10), (1, 0, 6)], [(1, 6, 10)]]),
        ([(10, 1), (10, 1)], 20, [[(0, 0, 10), (1, 0, 10)]]),
        ([(10, 40 << 20), (10, 40 << 20)], 20, [[(0, 0, 10)], [(1, 0, 10)]]),
        ([(1, 100 << 20), (3, 1)], 2, [[(0, 0, 1)], [(1, 0, 2)], [(1, 2, 3)]]),
    ],
    ids=["cut", "joined", "not joined above 64 MB", "a large row alone"],
)
def test_shards_hold_the_rows_of_all_parts_in_order(
    corpus: Corpus, parts: list[tuple[int, int]], documents: int, expected: list[list[tuple[int, int, int]]]
) -> None:
    """The parts of a corpus are whole, however its shards divide them."""
    ready = [make_part(number, *part) for number, part in enumerate(parts)]
    shards = divide_parts(ready, documents)
    found = [[(int(piece.uri[:6]), piece.start, piece.stop) for piece in shard.pieces] for shard in shards]
    assert found == expected
    assert [shard.documents for shard in shards] == [sum(stop - start for _, start, stop in e) for e in expected]
    divided = replace(corpus, shards=tuple(shards))
    assert [(p.uri, p.start, p.stop, p.documents) for p in divided.parts] == [
        (p.piece.uri, 0, p.piece.documents, p.piece.documents) for p in ready
    ]


def test_the_temporary_file_is_deleted_at_once(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the corpus cannot be read."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    corpus.read_texts(np.array([3]))
    assert os.listdir(tmp_path / "scratch") == []
    (tmp_path / "a.jsonl").unlink()
    delete_spool(corpus)
    with pytest.raises(UserError):
        Corpus(corpus.files, corpus.shards, corpus.spool, DATA).read_texts(np.array([3]))
    assert os.listdir(tmp_path / "scratch") == []
