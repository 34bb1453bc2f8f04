"""Documents in mixed formats: large and small files of Parquet, JSONL, CSV and gzip, with bad rows and a bad file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.object_store import Store
from tests.support import tiny

Row = dict[str, str]
_SMALL = 50
"""documents per small file"""
_REPEAT = 12
"""times that a text is repeated within a document: the large files are then larger than what is spooled whole"""
_EMPTY_EVERY, _REPEATED_EVERY = 97, 501
_SHARES = {"large.parquet": 0.3, "large.jsonl": 0.25, "large.csv": 0.15, "packed.jsonl.gz": 0.1}
"""share of the documents by file; the rest is in small files"""


@dataclass(frozen=True)
class Corpus:
    """What must be in a night of all documents."""

    predicted: Counter[str]
    """ids that have a prediction, each once"""
    dead: Counter[str]
    """ids of the dead letters: of documents without text, and of rows whose id an earlier row has"""


def write_corpus(store: Store, documents: int) -> Corpus:
    """Write so many documents, and some rows more that repeat an id."""
    texts = [row["text"] for row in tiny.make_documents(1000)]
    rows = [
        {"id": f"d{n:07d}", "text": "" if n % _EMPTY_EVERY == 0 else f"{texts[n % len(texts)]} " * _REPEAT}
        for n in range(documents)
    ]
    start = 0
    for name, share in _SHARES.items():
        stop = start + int(share * documents)
        store.write(name, _to_bytes(name, rows[start:stop]))
        start = stop
    for number, first in enumerate(range(start, documents, _SMALL)):
        name = f"small/{number:05d}.{('parquet', 'jsonl', 'csv')[number % 3]}"
        store.write(name, _to_bytes(name, rows[first : first + _SMALL]))
    repeated = [row for row in rows[::_REPEATED_EVERY] if row["text"]]
    store.write("z-repeated.jsonl", _to_bytes("z.jsonl", repeated))
    store.write("z-broken.jsonl", b'{"id": "broken", "text": "cut he')
    return Corpus(
        Counter(row["id"] for row in rows if row["text"]),
        Counter(row["id"] for row in rows if not row["text"]) + Counter(row["id"] for row in repeated),
    )


def _to_bytes(name: str, rows: Sequence[Row]) -> bytes:
    """Rows as a file of the format that its name ends in."""
    if name.endswith(".parquet"):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=1000, compression="none")
        return sink.getvalue()
    if name.endswith(".csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(lines, 1) if name.endswith(".gz") else lines
