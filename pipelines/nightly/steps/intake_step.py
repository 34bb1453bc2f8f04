"""The intake step of a night: the files of a task in, parts of the spool and the digests of their ids out."""

from __future__ import annotations

import uuid
from functools import partial

from pipelines.data.files.shards import Shard
from pipelines.data.forgotten_ids import NOTHING_FORGOTTEN, ForgottenIds
from pipelines.data.intake import take_in
from pipelines.data.spool import SPOOL, PartSize, SpoolPart
from pipelines.nightly.steps.counts import IntakeCounts
from pipelines.nightly.steps.dedup import IdDigests
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, StepResult
from spin.settings import DataSettings

IDS = "ids"
"""ending of the file with the digests of the ids of a task"""


class IntakeStep:
    """Reads and checks the files of a task, and writes them to the spool in the folder of the run.

    Every call writes its parts under names of its own. The outcome of the task names the parts that count.
    """

    def __init__(
        self, run: Store, data: DataSettings, size: PartSize, claim: int, forgotten: ForgottenIds = NOTHING_FORGOTTEN
    ) -> None:
        self.run, self.data, self.size, self.claim = run, data, size, claim
        self.spool = run.as_private()  # it holds the texts
        self.forgotten = forgotten

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[IntakeCounts]:
        digests = IdDigests()
        stem = f"{SPOOL}/{shard.name}-{self.claim:06d}-{uuid.uuid4().hex[:8]}"
        report = take_in(shard, self.data, self.size, partial(self._save, digests, stem), self.forgotten)
        digests.keep_parts({ready.part for ready in report.pieces})
        counts = IntakeCounts(
            rows=sum(file.rows for file in report.files), report=report, repeated=digests.count_repeated()
        )
        files = {IDS: digests.to_bytes()} if self.data.ids == "checked" else {}
        return StepResult(files, counts)

    def _save(self, digests: IdDigests, stem: str, part: SpoolPart) -> str:
        """Digest the ids of a part, write its content, and return the URI of the content."""
        if self.data.ids == "checked":
            digests.add(part.number, part.ids)
        key = f"{stem}-{part.number}.parquet"
        self.spool.create(key, part.parquet)
        return f"{self.run.uri}/{key}"
