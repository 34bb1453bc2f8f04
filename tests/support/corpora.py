"""A corpus in a spool, as the extract stage leaves it."""

from __future__ import annotations

from pipelines.data.corpus import Corpus, CorpusSpool
from pipelines.data.files.input_files import list_files
from pipelines.data.files.shards import Shard
from pipelines.data.labelled_corpus import read_labelled
from pipelines.data.spool import PartSize
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from spin.settings import DataSettings


def spool_corpus(uri: str, store: Store, documents: int, data: DataSettings) -> Corpus:
    """Take the files of a URI in, in parts of so many documents, each of which is a shard."""
    files, spool = tuple(list_files(uri)), CorpusSpool(store, "corpus", PartSize(documents))
    with Lease(store / "features") as lease:
        writer = spool.open_writer(lease)
        read_labelled(files, data, spool=writer)
    shards = tuple(Shard(n, (part.piece,)) for n, part in enumerate(writer.ready))
    return Corpus(files, spool.locate(shards), spool, data)
