"""The date of a night, as an option gives it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from spin.errors import UserError

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_date(night: str | None, *, option: str = "--date") -> str:
    """Return the date that an option gives as YYYY-MM-DD, today in UTC for None.

    Raises UserError for anything that is not such a date, or is after tomorrow in UTC: a night in the future would make
    all nights until then look late. Tomorrow has begun east of Greenwich.
    """
    today = datetime.now(UTC).date()
    if night is None:
        return today.isoformat()
    try:
        day = date.fromisoformat(night) if _DATE.fullmatch(night) else None
    except ValueError:
        day = None
    if day is None:
        raise UserError(f"{option} {night}: expected a day as YYYY-MM-DD")
    if day > today + timedelta(days=1):
        raise UserError(f"{option} {night} is in the future: expected at latest tomorrow in UTC; today is {today}")
    return day.isoformat()
