"""Secrets planted in training documents are in no file that a training, a promotion or a night leaves behind."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.nightly.classify import run_classify
from pipelines.registry.promotion import promote
from pipelines.registry.versions import Registry
from pipelines.training.workflow import run_workflow
from spin.audit.verbatim import find_verbatim
from tests.support import small_training, tiny
from tests.support.object_search import find_in_files

SECRETS = ["Xyzzyplugh4711", "quuxgarplywaldo", "+49-30-5550199", "ada.q.lovelace@example.org"]


@pytest.mark.slow
@pytest.mark.usefixtures("gate_in_process")
def test_planted_secrets_are_found_nowhere_but_in_the_corpus(tmp_path: Path) -> None:
    """Each stands in two training documents, which is less than a term of the word regression needs."""
    tiny.save_bert(tmp_path / "bert")
    rows = [
        {**row, "split": ("train", "valid", "test")[(n % 10) // 4]} for n, row in enumerate(tiny.make_documents(900))
    ]
    training = [row for row in rows if row["split"] == "train"]
    for number, secret in enumerate(SECRETS):
        for row in training[20 * number : 20 * number + 2]:
            row["text"] += f" {secret}"
    corpus = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), corpus, row_group_size=100)
    search = {"etas": [0.9], "strengths": [1], "network": "off"}
    data = {"train": str(corpus), "split": "split"}
    settings = small_training.make_settings(tmp_path, tmp_path / "store", search=search, data=data)
    registry = Registry(settings)
    run_workflow(settings)
    promote.promote(registry, "1", "the first")
    (tmp_path / "inbox").mkdir()
    pq.write_table(pa.Table.from_pylist(tiny.make_documents(200, seed=4)), tmp_path / "inbox" / "new.parquet")
    run_classify(settings, registry, str(tmp_path / "inbox"), str(tmp_path / "nights"), night="2026-03-01")
    artifact = tmp_path / "bundle"
    artifact.mkdir()
    registry.download_model("1", artifact)
    found = find_in_files(tmp_path, SECRETS)
    assert found.pop("train.parquet") == SECRETS, "the search finds them where they are, in a compressed file"
    assert found == {}


def test_a_search_tells_leaks_from_chance() -> None:
    """A word that several documents have, or others too, or that is common, points to nobody."""
    train = [
        "the password is Hippogriff42",
        "common-word somewhere",
        "somewhere else",
        "unleaked Basilisk99 crèmebrûlée",
    ]
    others = ["transformers are others", "somewhere over"]
    files = {
        "a.json": b'{"text": "HIPPOGRIFF42"}',
        "b.bin": b"\xff\xfesomewhere\x00transformers",
        "c.txt": b"password",
        "d.json": b'{"text": "Cr\\u00e8meBr\\u00fbl\\u00e9e"}',
    }
    leaks = find_verbatim(iter(train), iter(others), files, {"password"})
    assert leaks.found == {
        "a.json": ("hippogriff42",),
        "d.json": ("crèmebrûlée",),
    }
    assert (leaks.canaries, leaks.leaked) == (4, 2)
    assert (leaks.control, leaks.control_found) == (1, 1)
