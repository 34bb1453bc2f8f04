"""The commit protocol of a night: a run of its own, a manifest, whole parts into the hive folders, `latest` last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.data.input_files import InputFile
from pipelines.data.readers import Shard
from pipelines.nightly.run_records import ClassifyCounts, RunPlan
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

KINDS = {
    "predictions.parquet": "predictions",
    "dead.parquet": "dead_letters",
    "disagreements.parquet": "disagreements",
}
"""the hive folder of a shard's file, by its ending"""
_WORK = ("parts", "attempts", "ids", "repeats", "model", "shadow")
"""folders of a run that nobody needs once its parts are published"""


@dataclass(frozen=True)
class NightlyRun:
    """One date of an output, held by a lease.

    Every run of a date has a number and a folder `_runs/DATE-NNN/` of its own, so that what an overtaken run still
    writes lands where nobody looks. `_runs/DATE.json` names the run that counts. The readers' contract is `latest`,
    the manifest that it names, the parts that this names: whoever follows it sees all of a night or none.
    """

    out: Store
    date: str
    lease: Lease

    def begin(
        self,
        metadata: dict[str, Any],
        files: list[InputFile],
        derive: Callable[[list[InputFile]], RunPlan],
        *,
        taken: Sequence[InputFile] = (),
        restart: bool,
    ) -> tuple[BatchRun, StagePlan[RunPlan]]:
        """The run that counts and its plan: the one that is there, else a new one of the files not `taken`.

        `derive` plans the files that are left. Files that have appeared since a plan was written wait for another
        night. Raises UserError, naming the differences, if the metadata or a file of the plan have changed; `restart`
        begins another run instead, which skips the files that the run before it skipped: by now the night itself may
        be among those that have taken files.
        """
        number = self._number()
        run = self._run(number)
        stored = read_plan(run.store, RunPlan)
        if stored is not None:
            now = {file.uri: file for file in files}
            planned = [now.get(file.uri, replace(file, version="gone")) for file in _planned_files(stored)]
            metadata = {**metadata, "files": to_json(planned)}
            if restart and stored.fingerprint != plan_fingerprint("classify", metadata):
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
            "classify",
            metadata,
            RunPlan,
            lambda: replace(derive(new), skipped=skipped),
            restart=restart,
        )
        self.out.write_json(f"_runs/{self.date}.json", {"run": run.name})
        return run, plan

    def publish(self, run: BatchRun, manifest: dict[str, Any], reports: Mapping[str, bytes] | None = None) -> None:
        """Put the parts of a finished run where readers look, then move `latest`; what is done already stays done.

        An earlier run of the same date goes first, and `latest` before its parts if it names this date, so that no
        reader takes half of each for a night. `latest` never goes back to an earlier date. `reports`, by name, lie
        with the run, and beside `latest` where that names it. Each step is taken only while the lease holds.
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
        self, run: BatchRun, manifest: dict[str, Any], reports: Mapping[str, bytes]
    ) -> Iterator[Callable[[], None]]:
        latest = self.out.read_json("latest")
        if latest is not None and latest["date"] == self.date and latest["run"] != run.name:
            yield lambda: self.out.delete("latest")
            latest = None
        wanted = {part["key"]: part for part in manifest["parts"]}
        for kind in KINDS.values():
            for key in self.out.list(f"{kind}/date={self.date}"):
                if key not in wanted:
                    yield lambda key=key: self.out.delete(key)  # type: ignore[misc]
        for key, part in wanted.items():
            if self.out.size(key) != part["bytes"]:
                yield lambda key=key, part=part: self.out.move(f"_runs/{run.name}/{part['of']}", key)  # type: ignore[misc]
        newest = latest is None or latest["date"] <= self.date
        for place in (run.store, self.out) if newest else (run.store,):
            for name, data in reports.items():
                yield lambda place=place, name=name, data=data: place.write(name, data)  # type: ignore[misc]
        if newest:
            named = {"date": self.date, "run": run.name, "manifest": f"_runs/{run.name}/manifest.json"}
            yield lambda: self.out.write_json("latest", named)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        yield lambda: run.store.write_json("published.json", {"at": at})

    def _number(self) -> int:
        current = self.out.read_json(f"_runs/{self.date}.json")
        return 1 if current is None else int(current["run"].rpartition("-")[2])

    def _run(self, number: int) -> BatchRun:
        name = f"{self.date}-{number:03d}"
        return BatchRun(self.out / f"_runs/{name}", name, number)


def read_manifest(output: str) -> dict[str, Any]:
    """What `latest` names in an output. Raises UserError where no night has finished."""
    out = Store(output)
    latest = out.read_json("latest")
    manifest: dict[str, Any] | None = None if latest is None else out.read_json(latest["manifest"])
    if manifest is None:
        raise UserError(f"{output} has no finished night; `spin classify` makes one")
    return manifest


def check_unchanged(plan: StagePlan[RunPlan], files: Sequence[InputFile]) -> None:
    """Raise UserError where a file of the plan is another one now: it may have been read half before, half after."""
    now = {_identity(file) for file in files}
    planned = _planned_files(plan)
    changed = [file.uri for file in planned if _identity(file) not in now]
    if changed:
        raise UserError(
            f"classify: {len(changed)} of {len(planned)} files changed while they were read, {changed[0]} "
            "for one; nothing is published. Start over with --restart once they are whole"
        )


def taken_by(manifest: dict[str, Any]) -> list[InputFile]:
    """The files that a night has seen to: those it read, and those that it skipped since nights before it had."""
    return [from_json(InputFile, file) for file in (*manifest["inputs"], *manifest["skipped"])]


def read_predictions(output: str, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of the latest night, by the readers' contract: `latest`, its manifest, the parts."""
    out, manifest = Store(output), read_manifest(output)
    rows: list[dict[str, Any]] = []
    for part in manifest["parts"]:
        if not part["key"].startswith("predictions/"):
            continue
        with out.open(part["key"]) as file:
            rows += pq.ParquetFile(file).read().to_pylist()
        if count is not None and len(rows) >= count:
            return rows[:count]
    return rows


@dataclass(frozen=True)
class BatchRun:
    """One try at a night."""

    store: Store
    name: str
    number: int

    def finished(self, plan: StagePlan[RunPlan]) -> dict[str, Any] | None:
        """The manifest, or None while shards are missing."""
        manifest = find_manifest(self.store, plan, dict[str, Any])
        return None if manifest is None else manifest.to_json()

    def finish(
        self, plan: StagePlan[RunPlan], outcomes: Sequence[ShardOutcome[ClassifyCounts]], date: str, **facts: Any
    ) -> dict[str, Any]:
        """Write the manifest, with the parts that are to be published: those of files that could be read whole.

        Raises SpinError where counts do not add up.
        """
        reconcile(plan.derived.shards, outcomes)
        bad = _bad_files(plan, outcomes)
        taken = taken_of(plan, outcomes)
        results = {
            "date": date,
            "run": self.name,
            **facts,
            "inputs": to_json([file for file in _planned_files(plan) if file.uri not in bad]),
            "skipped": to_json(plan.derived.skipped),
            "quarantined": [{"uri": uri, "reason": reason} for uri, reason in sorted(bad.items())],
            "counts": count([outcome.counts for outcome in taken]),
            "parts": [part for outcome in taken for part in self._parts(date, outcome)],
            "shards": [outcome.to_json() for outcome in outcomes],
        }
        return write_manifest(self.store, plan, results).to_json()

    def _parts(self, date: str, outcome: ShardOutcome[ClassifyCounts]) -> Iterator[dict[str, Any]]:
        """Where a shard's files are published; the run's number keeps a reader of an earlier one from taking them."""
        for key, file in outcome.files.items():
            name, _, ending = Path(key).name.partition(".")
            if kind := KINDS.get(ending):
                yield {"key": f"{kind}/date={date}/part-{self.number:03d}-{name}.parquet", "of": key, **to_json(file)}


def taken_of(
    plan: StagePlan[RunPlan], outcomes: Sequence[ShardOutcome[ClassifyCounts]]
) -> list[ShardOutcome[ClassifyCounts]]:
    """The outcomes of the files that could be read whole."""
    bad = _bad_files(plan, outcomes)
    return [outcome for outcome in outcomes if outcome.counts.uri not in bad]


def _bad_files(plan: StagePlan[RunPlan], outcomes: Sequence[ShardOutcome[ClassifyCounts]]) -> dict[str, str]:
    """The files that could not be read, each with the reason."""
    unreadable = {o.counts.uri: o.counts.bad for o in outcomes if o.counts.bad is not None}
    return {**plan.derived.bad, **unreadable}


def _planned_files(plan: StagePlan[RunPlan]) -> list[InputFile]:
    return [from_json(InputFile, file) for file in plan.metadata["files"]]


def _identity(file: InputFile) -> tuple[str, int, str]:
    """What tells a file from others and from itself when it has changed."""
    return file.uri, file.size, file.version


def count(shards: Sequence[ClassifyCounts]) -> dict[str, Any]:
    """The counts of a night over the shards that it takes."""
    names = ("rows", "predicted", "abstained", "unlabelled", "dead", "tokens", "truncated")
    counts: dict[str, Any] = {name: sum(getattr(shard, name) for shard in shards) for name in names}
    counts["truncated_share"] = round(counts["truncated"] / max(1, counts["predicted"]), 4)
    for name in ("reasons", "labels", "depths"):
        counts[name] = dict(sum((Counter(getattr(shard, name)) for shard in shards), Counter()))
    return counts


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
