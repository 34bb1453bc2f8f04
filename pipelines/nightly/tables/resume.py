"""Choose the runs of a night: those that are there, if they can be continued, or new ones; list their files once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipelines.data.files.input_files import InputFile
from pipelines.nightly.tables.listing import Listing, ListingPlan
from pipelines.nightly.tables.night_history import FileState, list_nights, recorded_files
from pipelines.nightly.tables.night_records import (
    FORMAT,
    RUN,
    RUNS,
    Run,
    begin_run,
    find_night,
    find_runs,
    is_abandoned,
    is_run_of,
    list_run_names,
    run_name,
)
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, was_published
from pipelines.nightly.tables.passes import begin_pass, find_pass, open_runs
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import StagePlan, create_plan, fingerprint, read_plan
from spin.errors import UserError

_log = logging.getLogger(__name__)
STAGE = "classify"
"""name of the stage in the plan"""


@dataclass(frozen=True)
class NightRequest:
    """The night of a model that a command asks for."""

    date: str
    """YYYY-MM-DD"""
    model: str
    """name of the registered model"""
    claim: int
    """number of the claim of the model"""
    model_version: str
    """version of the model that classifies"""
    artifact: str
    """digest of the classifier"""
    backbone: str
    """digest of its backbone; new runs of several models with the same one share a pass"""
    metadata: Mapping[str, object]
    """JSON values of all else that changes predictions"""
    files: Sequence[InputFile]
    """files of the input, as they are now"""
    rejected: Mapping[str, str]
    """reasons by URI of the files that cannot be read by their names"""
    incremental: bool
    """whether files that other nights have classified are skipped"""
    restart: bool
    """whether a new run begins even if there is one"""


@dataclass(frozen=True)
class ChosenRun:
    """The run of a night, and what it reads."""

    record: Run
    """its beginning"""
    store: Store
    """its folder"""
    plan: StagePlan[ListingPlan]
    listing: Listing
    published: bool
    """whether readers see it as the night of its date"""
    late: tuple[str, ...] = ()
    """URIs of the files that have come into the input since, if it is published"""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.record.name

    @property
    def fingerprint(self) -> str:
        """Digest of the settings, the model and the input files."""
        return fingerprint({"plan": self.plan.fingerprint, "files": self.plan.derived.sha256})


@dataclass(frozen=True)
class RefusedRun:
    """The run of a night with which the command cannot go on, for example because it is one of another version."""

    name: str
    error: UserError
    """why the command cannot go on with it, and what to do"""


def choose_runs(tables: NightTables, requests: Sequence[NightRequest]) -> list[ChosenRun | RefusedRun]:
    """For each request the run of its date and model that goes on under its claim, or a new one.

    A run goes on if its plan has the same metadata; its files are those that were listed when it began. An incremental
    run some of whose files have been classified by another night since is not continued: a new run leaves them out.
    A run goes on in the pass in which it began, together with all runs of that pass that are not finished; where one of
    them is missing here, new runs begin. New runs whose models read the same backbone share a new pass.

    A run whose metadata has changed is refused, with the differences, and holds back no other model. Raises UserError
    if the run of another model is waiting for it in the same pass.
    """
    found = [_find_run(tables, request) for request in requests]
    _require_whole_passes(tables, found)
    found = _leave_divided_passes(tables, found)
    beginning = [request for request, run in zip(requests, found, strict=True) if run is None]
    begun = iter(_begin_runs(tables, beginning))
    return [next(begun) if run is None else run for run in found]


def _find_run(tables: NightTables, request: NightRequest) -> ChosenRun | RefusedRun | None:
    """The run that goes on or that is refused, None if there is none."""
    # guarded by test_a_restart_computes_everything_anew; broken by:
    #   name, published = _find_current(tables, request.date, request.model)
    name, published = (None, False) if request.restart else _find_current(tables, request.date, request.model)
    if name is None:
        return None
    try:
        run = _open_run(tables, name, request, published=published)
        # guarded by test_a_failed_night_that_is_resumed_after_its_successor_takes_no_file_twice; broken by:
        #   if run is not None:
        if run is not None and (published or not _taken(tables, request, run.listing.files)):
            return replace(run, late=_late_files(tables, run, request)) if published else run
    except UserError as error:
        return RefusedRun(name, error)
    why = (
        "it has no plan that this command could go on with"
        if run is None
        else "other nights have classified files of it since"
    )
    _warn_of_new_run(tables, name, why)
    return None


def _require_whole_passes(tables: NightTables, runs: Sequence[ChosenRun | RefusedRun | None]) -> None:
    """Raise UserError if a run that is refused is not finished, and a run that goes on shares its pass.

    A new run for the other model instead would leave what the pass has computed, which nobody asked for.
    """
    refused = {run.name: run.error for run in runs if isinstance(run, RefusedRun)}
    for run in runs:
        if not refused or not isinstance(run, ChosenRun) or run.published:
            continue
        shared = find_pass(tables.out, run.record)
        waiting = [] if shared is None else open_runs(tables, shared.runs)
        missing = [name for name in waiting if name in refused]
        if run.name not in waiting or not missing:
            continue
        lacking, error = find_runs(tables.out, missing[:1])[missing[0]], refused[missing[0]]
        model, other = run.record.model, lacking.model
        raise UserError(
            f"model {other}: {error}. Model {model} shares the unfinished pass {run.record.pass_name} with this run; "
            f"to resume both, name the version with which it began (--model models:/{other}/{lacking.model_version}); "
            f"to begin a new run of {model}, leave {other} out"
        ) from error


def _leave_divided_passes(
    tables: NightTables, runs: Sequence[ChosenRun | RefusedRun | None]
) -> list[ChosenRun | RefusedRun | None]:
    """The runs, with None in place of those whose pass cannot go on, because other unfinished runs of it do not.

    What a pass computes for a shard is one entry of one log, with the files of all of its runs that are not finished.
    """
    chosen = [run for run in runs if isinstance(run, ChosenRun)]
    going_on = [run.name for run in chosen]
    waiting = [run.record for run in chosen if not run.published and not run.record.is_alone]
    lacking: dict[str, str] = {}
    for name, record in {record.pass_name: record for record in waiting}.items():
        shared = find_pass(tables.out, record)
        if shared is None:
            lacking[name] = f"the record of its pass {name} is missing"
        # guarded by test_a_command_for_other_models_begins_what_it_cannot_resume; broken by:
        #   elif others := []:
        elif others := [run for run in open_runs(tables, shared.runs) if run not in going_on]:
            lacking[name] = f"it shares the pass {name} with {', '.join(others)}, which this command does not continue"
    divided = {each.name for each in waiting if each.pass_name in lacking and find_night(tables.out, each.name) is None}
    for record in waiting:
        if record.name in divided:
            _warn_of_new_run(tables, record.name, lacking[record.pass_name])
    return [None if isinstance(run, ChosenRun) and run.name in divided else run for run in runs]


def _warn_of_new_run(tables: NightTables, name: str, why: str) -> None:
    _log.warning("%s: run %s is not continued, because %s; a new run begins", tables.out.uri, name, why)


def _begin_runs(tables: NightTables, requests: Sequence[NightRequest]) -> list[ChosenRun]:
    """New runs. Those whose models read the same backbone share a pass, whose record is written first."""
    passes: dict[str, str] = {}
    for backbone in dict.fromkeys(request.backbone for request in requests):
        together = [request for request in requests if request.backbone == backbone]
        if len(together) > 1:
            runs = [run_name(request.date, request.model, request.claim) for request in together]
            shared = begin_pass(tables.out, together[0].date, runs).name
            passes |= {request.model: shared for request in together}
    return [_begin_run(tables, request, passes.get(request.model)) for request in requests]


def _begin_run(tables: NightTables, request: NightRequest, pass_name: str | None) -> ChosenRun:
    run = begin_run(
        tables.out,
        date=request.date,
        model=request.model,
        model_version=request.model_version,
        claim=request.claim,
        incremental=request.incremental,
        pass_name=pass_name,
        artifact=request.artifact,
    )
    return _plan_run(tables, run, request)


def find_unfinished(tables: NightTables, model: str, date: str) -> list[Run]:
    """The runs of a model that were begun for nights before a date and never published, where no other run was."""
    predictions = tables.open(PREDICTIONS)
    nights = {night.date for night in list_nights(tables) if night.model == model}
    names = [name for name in list_run_names(tables.out) if is_run_of(name, [model]) and name[:10] < date]
    names = [name for name in names if name[:10] not in nights]
    deleted = {name[:10] for name in names if was_published(predictions, name)}
    waiting = [name for name in names if name[:10] not in deleted]
    runs = [run for run in find_runs(tables.out, waiting).values() if run.model == model]
    return [run for run in runs if not is_abandoned(tables.out, run.name)]


def _find_current(tables: NightTables, date: str, model: str) -> tuple[str | None, bool]:
    """The name of the run that a command without --restart goes on with, and whether it is published.

    It is the last one that was begun, unless that was published and replaced by a restored one since.
    """
    predictions = tables.open(PREDICTIONS)
    named = next((night.run for night in list_nights(tables) if (night.date, night.model) == (date, model)), None)
    claims = {name: int(name.rpartition("-")[2]) for name in list_run_names(tables.out)}
    names = [name for name, number in claims.items() if name == run_name(date, model, number)]
    for name in sorted(names, key=lambda name: -claims[name]):
        if was_published(predictions, name):
            break
        if not is_abandoned(tables.out, name):
            return name, False
    return named, named is not None


def _open_run(tables: NightTables, name: str, request: NightRequest, *, published: bool) -> ChosenRun | None:
    """The run of a name, None if too little of it is left to continue it.

    A run that was begun and not planned goes on under the version and the options with which it was begun, unless it
    shares a pass: all runs of a pass have the files of one listing.
    """
    store = tables.out / f"{RUNS}/{name}"
    run = find_runs(tables.out, [name]).get(name)
    if run is not None and run.format != FORMAT:
        raise UserError(
            f"run {name} in {tables.out.uri} has format {run.format}, expected {FORMAT}: another version of spin has "
            "begun it. Go on with that version, or start over with --restart"
        )
    if read_plan(store, ListingPlan) is not None and run is not None:
        return _plan_run(tables, run, request, published=published)
    if published:
        raise UserError(
            f"{store.uri} holds no plan: files of the run were deleted. So it cannot be compared with this command; "
            "leave it as it is, or classify it again with --restart"
        )
    if run is None or not run.is_alone or [item.key for item in store.list_objects()] != [RUN]:
        return None
    if (run.model_version, run.incremental) != (request.model_version, request.incremental):
        return None
    return _plan_run(tables, run, request)


def _plan_run(tables: NightTables, run: Run, request: NightRequest, *, published: bool = False) -> ChosenRun:
    """The run with its plan and its files; both are written if they are not there."""
    store = tables.out / f"{RUNS}/{run.name}"
    facts = {
        "format": FORMAT,
        **request.metadata,
        # guarded by test_a_version_of_another_registry_with_the_same_name_and_number_is_refused
        "artifact": request.artifact,
        "incremental": request.incremental,
    }
    plan = create_plan(store, STAGE, facts, ListingPlan, partial(_list_files, tables, store, request))
    return ChosenRun(run, store, plan, Listing.from_rows(plan.derived.read(store)), published)


def _list_files(tables: NightTables, store: Store, request: NightRequest) -> ListingPlan:
    """Write the list of files of a new run and return what its plan says about it."""
    taken = _taken(tables, request, request.files)
    files = tuple(file for file in request.files if _state(file) not in taken)
    rows = Listing(files, request.rejected).to_rows()
    return ListingPlan.write(store, request.claim, rows, skipped=len(request.files) - len(files))


def _late_files(tables: NightTables, run: ChosenRun, request: NightRequest) -> tuple[str, ...]:
    """The files of the input that neither a published run nor, if it is incremental, another night has read."""
    read = set(run.listing.files)
    others = [file for file in request.files if file not in read]
    if not others:
        return ()
    try:
        taken = _taken(tables, request, others)
    except UserError:  # of another night, which does not concern this one
        _log.debug("it is not known which files came later", exc_info=True)
        return ()
    return tuple(file.uri for file in others if _state(file) not in taken)


def _taken(tables: NightTables, request: NightRequest, files: Sequence[InputFile]) -> set[FileState]:
    """Those of some files that other nights have classified; none for a night that takes them all the same."""
    if not request.incremental:
        return set()
    return recorded_files(tables, model=request.model, date=request.date, files=[_state(file) for file in files])


def _state(file: InputFile) -> FileState:
    return FileState(file.uri, file.size, file.version)
