"""The objects of an output that nothing needs once documents were forgotten, whatever their age."""

from __future__ import annotations

from collections.abc import Collection

from pipelines.nightly.finish import is_work
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import ABANDONED, DELETION, LEASES, RUN, RUNS, find_nights, is_run_of
from pipelines.nightly.tables.night_tables import PREDICTIONS, TABLES, NightTables, named_keys
from pipelines.nightly.tables.passes import find_passes, is_pass_name

_MARKS = (RUN, ABANDONED, DELETION)
"""records that stay of a run that was given up"""


def find_unused(tables: NightTables, models: Collection[str]) -> list[str]:
    """The keys of what is in the folders of runs and passes of some models, and needed by no run that is left.

    These are the files of runs that were given up, files of other runs that neither a table nor the record of the run
    names, what runs and passes have worked with, and temporary files of writes that were interrupted. Files that a
    table names are never among them. Call it while no run of these models is at work.
    """
    out = tables.out
    records = [item.key for item in out.list_objects(RUNS) if item.key.count("/") > 1]
    files = [item.key for table in TABLES for item in out.list_objects(table) if item.key.count("/") > 1]
    runs = {name for name in map(_owner, [*records, *files]) if is_run_of(name, models)}
    named = {night.run for night in list_nights(tables)}
    given_up = {_owner(key) for key in records if key.endswith(f"/{ABANDONED}")} - named
    kept = _named_files(tables, runs - given_up)
    unused = [key for key in files if _owner(key) in runs and key not in kept]
    passes = _passes_of(tables, {_owner(key) for key in records if is_pass_name(_owner(key))}, models)
    for key in records:
        owner, name = _owner(key), key.split("/", 2)[2]
        if owner in passes or (owner in runs and (name not in _MARKS if owner in given_up else is_work(name))):
            unused.append(key)
    return unused + _temporary_files(tables, runs | passes)


def _temporary_files(tables: NightTables, owners: Collection[str]) -> list[str]:
    """The keys of the temporary files of some runs and passes, and of reports and labels; leases are in use."""
    keys = [item.key for item in tables.out.list_temporary() if not item.key.startswith(f"{LEASES}/")]
    owned = (RUNS, *TABLES)
    return [key for key in keys if key.partition("/")[0] not in owned or _owner(key) in owners]


def _named_files(tables: NightTables, runs: Collection[str]) -> set[str]:
    """The keys of the files that the tables consist of, and of those that the records of runs name."""
    recorded = (run.keys() for run in find_nights(tables.out, sorted(runs)).values())
    return named_keys(tables, tables.open(PREDICTIONS)).union(*recorded)


def _passes_of(tables: NightTables, names: Collection[str], models: Collection[str]) -> set[str]:
    """The passes all of whose runs are of some models, and those whose record is missing, with which nobody goes on."""
    records = find_passes(tables.out, sorted(names))
    runs = {name: records[name].runs if name in records else () for name in names}
    # guarded by test_all_models_of_an_output_forget; broken by:
    #   return set()
    return {name for name, each in runs.items() if all(is_run_of(run, models) for run in each)}


def _owner(key: str) -> str:
    """The run or the pass in whose folder an object lies."""
    return key.split("/")[1]
