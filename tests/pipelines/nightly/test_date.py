"""The date of a night, as `--date` gives it."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

import pytest

from pipelines.nightly import night_date
from pipelines.nightly.night_date import parse_date
from spin.errors import UserError


class Midnight(datetime):
    """A clock one minute before midnight."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Midnight:
        assert tz is UTC
        return cls(2026, 2, 28, 23, 59, tzinfo=tz)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_date, "datetime", Midnight)


def test_a_date_until_tomorrow_is_accepted() -> None:
    """The default is today in UTC."""
    assert parse_date(None) == "2026-02-28"
    for day in ("2026-02-28", "2026-03-01", "1999-12-31"):
        assert parse_date(day) == day


@pytest.mark.parametrize("day", ["2026-03-02", "2027-01-01", "9999-12-31"])
def test_a_date_after_tomorrow_is_refused_with_status_2(day: str) -> None:
    with pytest.raises(UserError, match=f"^--date {day} is in the future: .*; today is 2026-02-28$") as error:
        parse_date(day)
    assert error.value.status == 2


@pytest.mark.parametrize("day", ["2026-02-30", "20260228", "2026-2-28", "today", "", "2026-02-28T00:00:00"])
def test_what_is_no_day_is_refused(day: str) -> None:
    with pytest.raises(UserError, match="expected a day as YYYY-MM-DD"):
        parse_date(day)
