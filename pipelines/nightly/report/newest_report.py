"""The report at the top of an output: that of the newest night."""

from __future__ import annotations

from pipelines.nightly.report.night_report import REPORT
from pipelines.nightly.report.run_report import PAGE
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import NightTables


def show_newest_report(tables: NightTables) -> None:
    """Copy the reports of the newest night, as far as there are any, to the top of the output."""
    newest = find_newest_night(list_nights(tables))
    if newest is None:
        return
    folder = f"{RUNS}/{newest.run}/"
    for key, report in tables.out.read_many([f"{folder}{name}" for name in (REPORT, PAGE)]).items():
        tables.out.write(key.removeprefix(folder), report)


def hide_report(tables: NightTables) -> None:
    """Delete the reports at the top of the output."""
    tables.out.delete_many([REPORT, PAGE])
