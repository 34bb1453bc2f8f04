"""The commit protocol of a night: results in a folder of the run, its manifest, its parts in hive folders, `latest`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import pyarrow.parquet as pq

from pipelines.data.input_files import InputFile
from pipelines.data.readers import Shard
from pipelines.nightly.run_records import (
    FORMAT,
    STAGE,
    ClassifyCounts,
    EarlierNight,
    NightCounts,
    PublishedPart,
    QuarantinedFile,
    RunManifest,
    RunPlan,
)
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from pipelines.storage.shard_log import ShardOutcome
from pipelines.storage.stage_plan import (
    StagePlan,
    find_manifest,
    plan_fingerprint,
    read_plan,
    write_manifest,
    write_plan,
)
from spin.errors import SpinError, UserError
from spin.labels.label_space import Label
from spin.monitor.agreement import ShadowAgreement
from spin.monitor.drift import Drift

KINDS = {
    "predictions.parquet": "predictions",
    "dead.parquet": "dead_letters",
    "disagreements.parquet": "disagreements",
}
"""hive folder of a shard's file, by the ending of its name"""
_WORK = ("parts", "attempts", "ids", "repeats", "model", "shadow")
"""folders of a run that are deleted once its parts are published"""


class PredictionRow(TypedDict):
    """A row of the published predictions."""

    id: str
    """id of the document"""
    label: Label | None
    """class, or list of classes in a multi-label task; None without a label"""
    score: float
    """probability of the label"""
    scores: list[float]
    """probability of each class, in the order of the classes"""
    depth: int
    """block after which the document exited"""
    model_version: str
    """version of the model that classified it"""


@dataclass(frozen=True)
class NightlyRun:
    """One date of an output, under a lease.

    Every run of a date has its own number and its own folder `_runs/DATE-NNN/`, so that a run that has lost its lease
    writes to a folder that nothing reads. `_runs/DATE.json` names the current run. Readers follow `latest` to the
    manifest and the manifest to the parts, so they see a whole night or none.
    """

    out: Store
    """output that collects all nights"""
    date: str
    """YYYY-MM-DD"""
    lease: Lease
    """lease on the output"""

    def begin(
        self,
        metadata: dict[str, object],
        files: list[InputFile],
        derive: Callable[[list[InputFile]], RunPlan],
        *,
        taken: Sequence[InputFile] = (),
        restart: bool,
    ) -> tuple[BatchRun, StagePlan[RunPlan]]:
        """Return the current run and its plan: the stored one, or a new one for the files that are not in `taken`.

        `derive` plans the remaining files. Files that have appeared since the plan was written are left to another
        night. Raises UserError, naming the differences, if the metadata or a file of the plan has changed; with
        `restart`, a new run begins instead. It skips the files that the run before it skipped, because `taken` may by
        now contain the files of this very night.
        """
        number = self._number()
        run = self._run(number)
        stored = read_plan(run.store, RunPlan)
        if stored is not None:
            listed = {file.uri: file for file in files}
            planned = [listed.get(file.uri, replace(file, version="gone")) for file in _planned_files(stored)]
            metadata = {**metadata, "files": to_json(planned)}
            if restart and stored.fingerprint != plan_fingerprint(STAGE, metadata):
                number, taken, stored = number + 1, stored.derived.skipped, None
                run = self._run(number)
        known = {_identity(file) for file in taken}
        skipped = tuple(file for file in files if _identity(file) in known)
        new = [file for file in files if _identity(file) not in known]
        if stored is None:
            metadata = {**metadata, "files": to_json(new)}
        self.lease.check()
        plan = write_plan(
            run.store,
            STAGE,
            metadata,
            RunPlan,
            lambda: replace(derive(new), skipped=skipped),
            restart=restart,
        )
        self.out.write_json(f"_runs/{self.date}.json", {"run": run.name})
        return run, plan

    def publish(self, run: BatchRun, manifest: RunManifest, reports: Mapping[str, bytes] | None = None) -> None:
        """Move the parts of a finished run to the hive folders, then write `latest`. Finished steps are not repeated.

        The parts of an earlier run of the same date are deleted first, and before them `latest` if it names this date,
        so that no reader mixes the two runs. `latest` never goes back to an earlier date. `reports`, by name, are
        written to the folder of the run, and to the output if `latest` names the run. Each step requires the lease.
        """
        if not run.store.exists("published.json"):
            for step in self._steps(run, manifest, reports or {}):
                self.lease.check()
                step()
        for name in _WORK:
            self.lease.check()
            run.store.delete(name)
        for number in range(1, run.number):
            self.lease.check()
            self.out.delete(f"_runs/{self._run(number).name}")

    def _steps(
        self, run: BatchRun, manifest: RunManifest, reports: Mapping[str, bytes]
    ) -> Iterator[Callable[[], None]]:
        latest = self.out.read_json("latest")
        if latest is not None and latest["date"] == self.date and latest["run"] != run.name:
            yield lambda: self.out.delete("latest")
            latest = None
        wanted = {part.key: part for part in manifest.parts}
        for kind in KINDS.values():
            for key in self.out.list(f"{kind}/date={self.date}"):
                if key not in wanted:
                    yield lambda key=key: self.out.delete(key)  # type: ignore[misc]
        for key, part in wanted.items():
            if self.out.size(key) != part.bytes:
                yield lambda key=key, part=part: self.out.move(f"_runs/{run.name}/{part.of}", key)  # type: ignore[misc]
        newest = latest is None or latest["date"] <= self.date
        for store in (run.store, self.out) if newest else (run.store,):
            for name, data in reports.items():
                yield lambda store=store, name=name, data=data: store.write(name, data)  # type: ignore[misc]
        if newest:
            pointer = {"date": self.date, "run": run.name, "manifest": f"_runs/{run.name}/manifest.json"}
            yield lambda: self.out.write_json("latest", pointer)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        yield lambda: run.store.write_json("published.json", {"at": at})

    def _number(self) -> int:
        current = self.out.read_json(f"_runs/{self.date}.json")
        return 1 if current is None else int(current["run"].rpartition("-")[2])

    def _run(self, number: int) -> BatchRun:
        name = f"{self.date}-{number:03d}"
        return BatchRun(self.out / f"_runs/{name}", name, number)


def read_manifest(output: str) -> RunManifest:
    """Return the manifest of the latest night of an output.

    Raises UserError where no night has finished, or where the latest one has another format.
    """
    out = Store(output)
    latest = out.read_json("latest")
    stored = None if latest is None else out.read_json(latest["manifest"])
    if stored is None:
        raise UserError(f"{output} has no finished night; `spin classify` makes one")
    if stored.get("format") != FORMAT:
        raise UserError(
            f"{output}: its latest night has format {stored.get('format')}, expected {FORMAT}; "
            "classify a night with this version of spin first"
        )
    return RunManifest.from_json(stored)


def read_night_before(out: Store, date: str) -> EarlierNight | None:
    """Return the latest night of an output if it is earlier than `date` and has this format, else None."""
    latest = out.read_json("latest")
    stored = out.read_json(latest["manifest"]) if latest and latest["date"] < date else None
    if stored is None or stored.get("format") != FORMAT:
        return None
    return from_json(EarlierNight, stored)


def check_unchanged(plan: StagePlan[RunPlan], files: Sequence[InputFile]) -> None:
    """Raise UserError if a file of the plan has changed: part of it may have been read before the change."""
    unchanged = {_identity(file) for file in files}
    planned = _planned_files(plan)
    changed = [file.uri for file in planned if _identity(file) not in unchanged]
    if changed:
        raise UserError(
            f"classify: {len(changed)} of {len(planned)} files changed while they were read, {changed[0]} "
            "for one; nothing is published. Start over with --restart once they are whole"
        )


def taken_by(manifest: RunManifest) -> list[InputFile]:
    """Return the files that a later night need not read: those that the night read and those that it skipped."""
    return [*manifest.inputs, *manifest.skipped]


def read_predictions(output: str, count: int | None = None) -> list[PredictionRow]:
    """Return the predictions of the latest night, at most `count`, by way of `latest`, its manifest and its parts."""
    out, manifest = Store(output), read_manifest(output)
    rows: list[PredictionRow] = []
    for part in manifest.parts:
        if not part.key.startswith("predictions/"):
            continue
        with out.open(part.key) as file:
            rows += pq.ParquetFile(file).read().to_pylist()
        if count is not None and len(rows) >= count:
            return rows[:count]
    return rows


@dataclass(frozen=True)
class BatchRun:
    """One run of a night."""

    store: Store
    """folder of the run"""
    name: str
    """`DATE-NNN`"""
    number: int
    """number of the run among those of its date, from 1"""

    def finished(self, plan: StagePlan[RunPlan]) -> RunManifest | None:
        """Return the manifest, None while shards are missing."""
        manifest = find_manifest(self.store, plan, dict[str, object])
        return None if manifest is None else RunManifest.from_json(manifest.to_json())

    def finish(
        self,
        plan: StagePlan[RunPlan],
        outcomes: Sequence[ShardOutcome[ClassifyCounts]],
        *,
        date: str,
        output: str,
        model: str,
        model_version: str,
        classes: Sequence[str],
        seconds: float,
        drift: Sequence[Drift],
        before: EarlierNight | None,
        shadow: ShadowAgreement | None,
    ) -> RunManifest:
        """Write the manifest and return it as it is stored. Its parts are those of the files that could be read whole.

        Raises SpinError if a row is not counted exactly once.
        """
        reconcile(plan.derived.shards, outcomes)
        unreadable = _unreadable_files(plan, outcomes)
        readable = readable_outcomes(plan, outcomes)
        manifest = RunManifest(
            fingerprint=plan.fingerprint,
            date=date,
            run=self.name,
            output=output,
            model=model,
            model_version=model_version,
            classes=tuple(classes),
            seconds=seconds,
            drift=tuple(drift),
            before=before,
            shadow=shadow,
            inputs=tuple(file for file in _planned_files(plan) if file.uri not in unreadable),
            skipped=plan.derived.skipped,
            quarantined=tuple(QuarantinedFile(uri, reason) for uri, reason in sorted(unreadable.items())),
            counts=total_counts([outcome.counts for outcome in readable]),
            parts=tuple(part for outcome in readable for part in self._parts(date, outcome)),
            shards=tuple(outcomes),
        )
        return RunManifest.from_json(write_manifest(self.store, plan, manifest.to_json()).to_json())

    def _parts(self, date: str, outcome: ShardOutcome[ClassifyCounts]) -> Iterator[PublishedPart]:
        """Yield the parts that a shard's files become. Their names contain the number of the run."""
        for source, file in outcome.files.items():
            name, _, ending = Path(source).name.partition(".")
            if kind := KINDS.get(ending):
                key = f"{kind}/date={date}/part-{self.number:03d}-{name}.parquet"
                yield PublishedPart(key=key, of=source, bytes=file.bytes, sha256=file.sha256)


def readable_outcomes(
    plan: StagePlan[RunPlan], outcomes: Sequence[ShardOutcome[ClassifyCounts]]
) -> list[ShardOutcome[ClassifyCounts]]:
    """Return the outcomes of the shards whose whole file could be read."""
    unreadable = _unreadable_files(plan, outcomes)
    return [outcome for outcome in outcomes if outcome.counts.uri not in unreadable]


def _unreadable_files(plan: StagePlan[RunPlan], outcomes: Sequence[ShardOutcome[ClassifyCounts]]) -> dict[str, str]:
    """Return the reason for each file that could not be read, by URI."""
    reasons = {o.counts.uri: o.counts.bad for o in outcomes if o.counts.bad is not None}
    return {**plan.derived.bad, **reasons}


def _planned_files(plan: StagePlan[RunPlan]) -> list[InputFile]:
    return [from_json(InputFile, file) for file in plan.metadata["files"]]


def _identity(file: InputFile) -> tuple[str, int, str]:
    """Return what differs between two files, and between two states of one file."""
    return file.uri, file.size, file.version


def total_counts(shards: Sequence[ClassifyCounts]) -> NightCounts:
    """Return the sum of the counts of shards."""
    truncated = sum(shard.truncated for shard in shards)
    predicted = sum(shard.predicted for shard in shards)
    return NightCounts(
        rows=sum(shard.rows for shard in shards),
        predicted=predicted,
        abstained=sum(shard.abstained for shard in shards),
        unlabelled=sum(shard.unlabelled for shard in shards),
        dead=sum(shard.dead for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        truncated=truncated,
        truncated_share=round(truncated / max(1, predicted), 4),
        reasons=_add_counts([shard.reasons for shard in shards]),
        labels=_add_counts([shard.labels for shard in shards]),
        depths=_add_counts([shard.depths for shard in shards]),
    )


def _add_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum((Counter(each) for each in counts), Counter()))


def reconcile(shards: Sequence[Shard], outcomes: Sequence[ShardOutcome[ClassifyCounts]]) -> None:
    """Raise SpinError unless every row of every planned shard is predicted or a dead letter, once."""
    if len(shards) != len(outcomes):
        raise SpinError(f"classify: {len(shards)} shards were planned, {len(outcomes)} are committed; run it again")
    for shard, outcome in zip(shards, outcomes, strict=True):
        counts = outcome.counts
        accounted = counts.predicted + counts.dead
        planned = counts.rows if shard.by_bytes or counts.bad is not None else shard.stop - shard.start
        if not accounted == counts.rows == planned:
            raise SpinError(
                f"classify: {shard.uri} rows {shard.start} to {shard.stop}: {planned} were planned, {counts.rows} "
                f"read, {accounted} predicted or dead; nothing is published. Start over with --restart"
            )
