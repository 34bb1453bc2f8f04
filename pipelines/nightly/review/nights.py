"""Find the night whose labels are checked."""

from __future__ import annotations

from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_tables import NightTables, PublishedRun
from spin.errors import UserError


def find_night(tables: NightTables, *, date: str | None, model: str | None) -> PublishedRun:
    """The published night of a date and model, by default the latest.

    Raises UserError if there is none, or if nights of several models could be meant.
    """
    nights = [night for night in list_nights(tables) if date in (None, night.date) and model in (None, night.model)]
    if not nights:
        wanted = "".join(f" of {each}" for each in (date, model) if each is not None)
        raise UserError(f"{tables.out.uri} has no published night{wanted}; `spin nights list` shows what it holds")
    latest = [night for night in nights if night.date == max(each.date for each in nights)]
    if len(latest) > 1:
        names = ", ".join(night.model for night in latest)
        raise UserError(f"{tables.out.uri} has nights of {latest[0].date} by {names}; choose one with --model")
    return latest[0]
