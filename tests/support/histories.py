"""What a history of nights must leave in an output, computed without the product: input files, logs and rows.

The logs of the tables are read as the JSON that they are, and the rows with pyarrow.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from pipelines.nightly.tables.night_records import LEASES, model_slug
from tests.support.gates import Driver
from tests.support.nightly_driver import Deletion, Forgetting
from tests.support.object_search import find_in_files

State = tuple[str, int, str]
"""URI, size and version of an input file, as the product lists it"""


@dataclass(frozen=True)
class Content:
    """What an input file holds."""

    predicted: tuple[str, ...]
    """ids of the documents that can be classified"""
    dead: tuple[str, ...]
    """ids of those that become dead letters"""
    broken: bool
    """whether the file is cut in the middle of a line"""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the documents in the order of the file."""
        return self.predicted + self.dead


class Inputs:
    """Input files of several sources, which come, change, break and go. Every id belongs to one state of one file."""

    def __init__(self, folder: Path, sources: Iterable[str]) -> None:
        self.folder = folder
        self.contents: dict[State, Content] = {}
        """every state that any file ever had"""
        self._written: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self.replaced: set[State] = set()
        """states that a file had and lost, even if it has them again"""
        for source in sources:
            (folder / source).mkdir(parents=True)

    def source(self, name: str) -> str:
        """The URI of a source."""
        return str(self.folder / name)

    def write(self, source: str, name: str, version: int, *, documents: int, dead: int, broken: bool) -> None:
        """Write a version of a file that it never had."""
        ids = [f"{source}-{name}-{version}-{row}" for row in range(documents + dead)]
        lines = [json.dumps({"id": id, "text": "" if row >= documents else "fine"}) for row, id in enumerate(ids)]
        text = "\n".join([*lines, '{"id": "cut'] if broken else lines)
        state = self._put(source, name, version, text)
        self.contents[state] = Content(tuple(ids[:documents]), tuple(ids[documents:]), broken)
        self._written.setdefault((source, name), []).append((version, text))

    def put_back(self, source: str, name: str) -> None:
        """Write what a file held before it was changed last, if it was; it has the state again that it had then."""
        written = self._written.get((source, name), [])
        if len(written) > 1:
            written.append(written[-2])
            self._put(source, name, *written[-1])

    def _put(self, source: str, name: str, version: int, text: str) -> State:
        path = self.folder / source / f"{name}.jsonl"
        self.remove(source, name)
        path.write_text(text, encoding="utf-8")
        os.utime(path, (1_700_000_000 + version, 1_700_000_000 + version))
        return _state(path)

    def remove(self, source: str, name: str) -> None:
        """Delete a file if there is one."""
        path = self.folder / source / f"{name}.jsonl"
        if path.exists():
            self.replaced.add(_state(path))
            path.unlink()

    def present(self, source: str) -> set[State]:
        """The states of the files of a source that are there now."""
        return {_state(path) for path in Path(source).glob("*.jsonl")}


def _listed(driver: Driver) -> frozenset[State]:
    """The files that a driver has listed; none before it has."""
    return frozenset((file.uri, file.size, file.version) for file in driver.listed or ())


def _same_documents(one: Night, other: Night) -> bool:
    """Whether two runs have read the same files and hold the same documents."""
    return (one.taken, one.quarantined, one.rows) == (other.taken, other.quarantined, other.rows)


def _state(path: Path) -> State:
    return str(path), path.stat().st_size, str(path.stat().st_mtime)


@dataclass
class Table:
    """A table as its log describes it."""

    folder: Path
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """partition values by path, of the files that the table consists of"""
    commits: list[list[dict[str, Any]]] = field(default_factory=list)
    """actions by version"""

    def read_log(self) -> list[int]:
        """Read what was committed since the last call; return the new versions."""
        new = []
        while (path := self.folder / "_delta_log" / f"{len(self.commits):020d}.json").exists():
            actions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            new.append(len(self.commits))
            self.commits.append(actions)
        return new

    def apply(self, version: int) -> None:
        """Go on to a version."""
        for action in self.commits[version]:
            if "remove" in action:
                del self.files[unquote(action["remove"]["path"])]
        for action in self.commits[version]:
            if "add" in action:
                path = unquote(action["add"]["path"])
                assert path not in self.files, f"{path} is added twice"
                self.files[path] = action["add"]["partitionValues"]

    def partition(self, **values: str) -> list[str]:
        """The paths of the files with some partition values."""
        return sorted(path for path, has in self.files.items() if values.items() <= has.items())


@dataclass(frozen=True)
class Rows:
    """The documents of a night."""

    predicted: frozenset[str]
    """ids of the predictions"""
    dead: frozenset[str]
    """ids of the dead letters that name one"""
    left_out: frozenset[str]
    """ids of the documents whose dead letters say that they are forgotten, and nothing else"""

    def without(self, ids: frozenset[str]) -> Rows:
        """The rows after documents were forgotten."""
        return replace(self, predicted=self.predicted - ids, dead=self.dead - ids)


@dataclass(frozen=True)
class Night:
    """What the tables show of a night."""

    run: str
    model: str
    taken: frozenset[State]
    quarantined: frozenset[State]
    incremental: bool
    """whether the command that published it left out what other dates have taken"""
    order: int
    """version of the predictions with which it became visible"""
    source: str
    """name of the source that the command was given"""
    rows: Rows
    """its documents"""


class Violation(AssertionError):
    """The output breaks a guarantee."""


class Output:
    """The tables of an output, read after every step and compared with what must be in them."""

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        self.folder, self.inputs = folder, inputs
        self.predictions, self.inputs_table, self.dead_letters = (
            Table(folder / name) for name in ("predictions", "inputs", "dead_letters")
        )
        self.nights: dict[tuple[str, str], Night] = {}
        """by model and date"""
        self.deleted: dict[tuple[str, str], Night] = {}
        """nights that were deleted and whose files stay taken, by model and date"""
        self.runs: dict[str, Night] = {}
        """every run that was ever published"""
        self.lost: set[str] = set()
        """keys that were deleted from outside at some time"""
        self.announced: set[str] = set()
        """ids that some command was asked to forget"""
        self.forgotten: set[str] = set()
        """those that a command has forgotten and ended with status 0"""
        self._leases: dict[str, int] = {}
        self._claims: dict[str, int] = {}
        self._claimants: dict[tuple[str, int], Driver] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._digests: dict[str, int] = {}

    def observe(self, drivers: Mapping[int, Driver]) -> None:
        """Read what was committed since the last call, and check it; `drivers` are those of each new commit."""
        for table in (self.inputs_table, self.dead_letters):
            for version in table.read_log():
                table.apply(version)
        for version in self.predictions.read_log():
            self.predictions.apply(version)
            self._check_claims(version, drivers)
            changed = self._changed_nights(version)
            driver = drivers.get(version)  # the creation of the table has none
            if driver is not None and isinstance(driver.request, Deletion):
                self._check_deletion(driver, changed)
                continue
            if len(changed) > 1:
                raise Violation(f"version {version} changes several nights: {changed}")
            for model, date in changed:
                self._check_night(model, date, drivers[version], version)
        self._forget_freed()
        self._check_visible()
        self._check_forgotten()
        self._check_files()

    def delete(self, key: str) -> None:
        """Delete an object from outside. The rows of a file are remembered, in case that it is published."""
        table = next((each for each in self._tables if key.startswith(f"{each.folder.name}/")), None)
        if table is not None and key.endswith(".parquet"):
            self._read(table, key.removeprefix(f"{table.folder.name}/"))
        self.lost.add(key)
        (self.folder / key).unlink()

    @property
    def _tables(self) -> tuple[Table, ...]:
        return self.predictions, self.inputs_table, self.dead_letters

    def damaged_nights(self) -> list[tuple[str, str]]:
        """Model and date of the nights that lack an object which was deleted from outside, also of deleted nights."""
        return sorted(
            (model, date)
            for (model, date), night in (self.deleted | self.nights).items()
            if not all((table.folder / path).exists() for table, path in self._paths(model, date, night.run))
        )

    def _paths(self, model: str, date: str, run: str) -> list[tuple[Table, str]]:
        return [
            (table, path)
            for table in self._tables
            for path in table.partition(model=model, date=date)
            if path.startswith(f"{run}/")
        ]

    def _check_claims(self, version: int, drivers: Mapping[int, Driver]) -> None:
        """Claims only grow, and rows change only under the last claim of their model."""
        actions = self.predictions.commits[version]
        numbers = {action["txn"]["appId"]: action["txn"]["version"] for action in actions if "txn" in action}
        claims = {app.removeprefix("spin:"): number for app, number in numbers.items() if app.startswith("spin:")}
        changes = [action[kind] for action in actions for kind in ("add", "remove") if kind in action]
        for model in {change["partitionValues"]["model"] for change in changes}:
            if claims.get(model) != self._claims.get(model):
                raise Violation(f"version {version}: {model} changes under claim {claims} after {self._claims}")
        for model, number in claims.items():
            if not changes and number <= self._claims.get(model, 0):
                raise Violation(f"version {version}: claim {number} of {model} after {self._claims[model]}")
            self._claims[model] = number
            self._claimants.setdefault((model, number), drivers[version])
            if not changes:
                self._check_lease(model, drivers[version])

    def _check_lease(self, model: str, driver: Driver) -> None:
        """Commands claim a model in the order in which they have taken its lease."""
        lease = driver.leases[f"{self.folder}/{LEASES}/{model_slug(model)}"]
        if lease < self._leases.get(model, 0):
            raise Violation(f"{driver.name} claims {model}, and one that has overtaken it has claimed it before")
        self._leases[model] = lease

    def _changed_nights(self, version: int) -> set[tuple[str, str]]:
        actions = self.predictions.commits[version]
        values = [action[kind]["partitionValues"] for action in actions for kind in ("add", "remove") if kind in action]
        return {(each["model"], each["date"]) for each in values}

    def _check_deletion(self, driver: Driver, changed: set[tuple[str, str]]) -> None:
        """A commit of a deletion is a claim, or it deletes all nights before its date of the models it has claimed."""
        if not changed:
            return
        request: Any = driver.request
        claimed = {model for (model, _), claimant in self._claimants.items() if claimant is driver}
        expected = {night for night in self.nights if night[0] in claimed and night[1] < request.before}
        if changed != expected:
            raise Violation(f"{driver.name} deletes {changed}, expected {expected}")
        self.deleted |= {night: self.nights.pop(night) for night in expected}

    def _forget_freed(self) -> None:
        """Leave out the deleted nights whose files are no longer taken, because a deletion was asked to free them."""
        requests = [(model, driver.request) for (model, _), driver in self._claimants.items()]
        freeing = [(model, each.before) for model, each in requests if isinstance(each, Deletion) and each.forget_files]
        for (model, date), night in list(self.deleted.items()):
            if not self.inputs_table.partition(model=model, date=date, run=f"{night.run}.deleted") and any(
                model == other and date < before for other, before in freeing
            ):
                del self.deleted[model, date]

    def _check_night(self, model: str, date: str, driver: Driver, version: int) -> None:
        """Check a night that has just become visible against what its driver was asked for and had seen."""
        runs = {path.split("/")[0] for path in self.predictions.partition(model=model, date=date)}
        if len(runs) != 1:
            raise Violation(f"the night {date} of {model} has the runs {runs}")
        [run] = runs
        states = self._input_states(model, date, run)
        taken = frozenset(state for state, status in states if status == "taken")
        quarantined = frozenset(state for state, status in states if status == "quarantined")
        if len(states) != len(taken | quarantined):
            raise Violation(f"{run} lists a file twice")
        others = self._taken_elsewhere(model, date)
        request: Any = driver.request
        night = Night(run, model, taken, quarantined, False, version, "", self._read_night(model, date, run, taken))
        begun_by = self._claimants.get((model, int(run[-6:])))
        if request is None:
            night = self._check_restored(night)
        elif isinstance(request, Forgetting):
            night = self._check_rewritten(night, request, [self.nights[model, date]])
            others = frozenset()  # it takes nothing anew: nights without `--incremental` may have taken its files since
        elif begun_by is not None and isinstance(begun_by.request, Forgetting):
            former = [each for each in self.runs.values() if each.model == model and each.run.startswith(date)]
            night = replace(self._check_rewritten(night, begun_by.request, former), order=version)
        else:
            night = replace(night, incremental=request.incremental, source=Path(request.source).name)
            self._check_listed(driver, night, others if night.incremental else frozenset())
            self._check_quarantined(night)
            self._check_rows(night)
        if night.incremental and taken & others:
            raise Violation(f"{run} and nights of other dates have taken {sorted(taken & others)}")
        self.nights[model, date] = self.runs[run] = night
        self.deleted.pop((model, date), None)

    def _check_restored(self, night: Night) -> Night:
        """A restored run is what it was when it was published before."""
        before = self.runs.get(night.run)
        if before is None or not _same_documents(before, night):
            raise Violation(f"{night.run} was restored with other files or rows")
        return replace(before, order=night.order)

    def _check_rewritten(self, night: Night, forgetting: Forgetting, former: list[Night]) -> Night:
        """A run of a command that forgets is a former one without the documents, and nothing else is different."""
        for each in former:
            rewritten = replace(each, run=night.run, rows=each.rows.without(forgetting.ids))
            if _same_documents(rewritten, night):
                return rewritten
        raise Violation(f"{night} is none of {former} without {set(forgetting.ids)}")

    def _check_listed(self, driver: Driver, night: Night, others: frozenset[State]) -> None:
        """The files of a run are those that were new to the driver that began it, in the listing that it made.

        Its own driver has left out what other dates hold now. A run that an earlier driver began may lack what another
        date has given up since: the next night takes it.
        """
        files = night.taken | night.quarantined
        begun_by = self._claimants.get((night.model, int(night.run[-6:])))
        if begun_by is driver and files != _listed(driver) - others:
            raise Violation(f"{driver.name}: expected the files {_listed(driver) - others}, got {files}")
        if not any(files <= _listed(each) for each in self._claimants.values()):
            raise Violation(f"{driver.name} has published {files}, which nobody has listed together")

    def _check_quarantined(self, night: Night) -> None:
        """Broken files are quarantined, and others only if they were replaced or removed at some time."""
        for state in night.taken | night.quarantined:
            broken = self.inputs.contents[state].broken
            if state in night.taken and broken:
                raise Violation(f"{night.run} has taken the broken file {state}")
            if state in night.quarantined and not broken and state not in self.inputs.replaced:
                raise Violation(f"{night.run} has quarantined the sound file {state}")

    def _taken_elsewhere(self, model: str, date: str) -> frozenset[State]:
        """What the nights of other dates hold, deleted ones included."""
        return frozenset(
            state
            for (other, day), night in (self.deleted | self.nights).items()
            if other == model and day != date
            for state in night.taken
        )

    def _input_states(self, model: str, date: str, run: str) -> list[tuple[State, str]]:
        paths = self.inputs_table.partition(model=model, date=date, run=run)
        if not paths:
            raise Violation(f"{run} is published without its input files")
        rows = [row for path in paths for row in self._read(self.inputs_table, path)]
        return [((row["uri"], row["size"], row["version"]), row["status"]) for row in rows]

    def _check_rows(self, night: Night) -> None:
        """The rows of a night are those of the files that it has taken; it leaves out only what is to be forgotten."""
        contents = [self.inputs.contents[state] for state in night.taken]
        expected = {
            "predictions": {id for content in contents for id in content.predicted},
            "dead_letters": {id for content in contents for id in content.dead},
        }
        found = {"predictions": night.rows.predicted, "dead_letters": night.rows.dead}
        for table, ids in expected.items():
            if found[table] != ids - night.rows.left_out:
                lacking, more = ids - night.rows.left_out - found[table], found[table] - ids
                raise Violation(f"{night.run}: {table} lacks {lacking} and has too many {more}")
        if wrong := night.rows.left_out - self.announced:
            raise Violation(f"{night.run} leaves out {set(wrong)}, which nobody has asked to forget")

    def _read_night(self, model: str, date: str, run: str, taken: frozenset[State]) -> Rows:
        """The documents in the tables of a run that has taken some files, each once."""
        predictions, dead_letters = (
            [
                row
                for path in table.partition(model=model, date=date)
                if path.startswith(f"{run}/")
                for row in self._read(table, path)
            ]
            for table in (self.predictions, self.dead_letters)
        )
        contents = {uri: self.inputs.contents[uri, size, version] for uri, size, version in taken}
        left_out = [
            contents[row["file"]].ids[row["row"]]
            for row in dead_letters
            if row["reason"] == "forgotten" and row["id"] is row["text"] is None
        ]
        predicted = [row["id"] for row in predictions]
        dead = [row["id"] for row in dead_letters if row["reason"] != "forgotten"]
        if twice := {id for id, times in Counter(predicted + dead + left_out).items() if times > 1}:
            raise Violation(f"{run} has {twice} more than once")
        return Rows(frozenset(predicted), frozenset(dead), frozenset(left_out))

    def _check_forgotten(self) -> None:
        """No table names a row of a document that is forgotten."""
        for table in (self.predictions, self.dead_letters) if self.forgotten else ():
            for path in table.files:
                if held := {row["id"] for row in self._read(table, path)} & self.forgotten:
                    raise Violation(f"{table.folder.name}/{path} holds {held}, which are forgotten")

    def check_objects(self, ids: frozenset[str]) -> None:
        """No object of the output names a document that was forgotten."""
        if found := find_in_files(self.folder, sorted(ids)):
            raise Violation(f"forgotten documents are in {found}")

    def _check_files(self) -> None:
        """No table names a file that is not there, unless it was deleted from outside."""
        for table in self._tables:
            name = table.folder.name
            missing = [path for path in table.files if not (table.folder / path).exists()]
            if missing := [path for path in missing if f"{name}/{path}" not in self.lost]:
                raise Violation(f"{name} names files that are not there: {missing}")

    def _check_visible(self) -> None:
        """What readers see now is what was checked when it became visible."""
        visible = {(values["model"], values["date"]) for values in self.predictions.files.values()}
        if visible != set(self.nights):
            raise Violation(f"nights {visible}, expected {set(self.nights)}")
        for (model, date), night in self.nights.items():
            if self._read_night(model, date, night.run, night.taken) != night.rows:
                raise Violation(f"the rows of {night.run} are others than when it was published")
            taken = {state for state, status in self._input_states(model, date, night.run) if status == "taken"}
            if taken != night.taken:
                raise Violation(f"the input files of {night.run} are others than when it was published")
            later = [other for other in self._others(model, date) if other.order < night.order]
            shared = {state for other in later for state in other.taken & night.taken}
            if night.incremental and shared:
                raise Violation(f"{shared} are in two nights of {model}")
        for (model, date), night in self.deleted.items():
            states = self._input_states(model, date, f"{night.run}.deleted")
            taken = {state for state, status in states if status == "taken"}
            if taken != night.taken:
                raise Violation(f"{night.run} was deleted, and its files are no longer taken")

    def _others(self, model: str, date: str) -> list[Night]:
        return [night for (other, day), night in self.nights.items() if other == model and day != date]

    def _read(self, table: Table, path: str) -> list[dict[str, Any]]:
        """The rows of a file. What was read once is remembered, since it may be deleted from outside."""
        key, file = f"{table.folder.name}/{path}", table.folder / path
        if not file.exists():
            if key not in self.lost:
                raise Violation(f"{key} is published and missing")
        else:
            data = file.read_bytes()
            if self._digests.setdefault(key, hash(data)) != hash(data) and key not in self.lost:
                raise Violation(f"{key} was replaced")
            if key not in self._rows:
                self._rows[key] = pq.ParquetFile(io.BytesIO(data)).read().to_pylist()
        return self._rows[key]
