"""The calendar: when the machines are worked on, by the clock on the wall of the plant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from sentinel.records import Maintenance

DATED, UNDATED = 1e8, 2.5e11  # seconds; event times outside are row numbers or the like, and have no clock


def local(time: float, timezone: str) -> datetime:
    """A time between `DATED` and `UNDATED` as the clocks of a place show it; UTC where Python cannot reckon with it."""
    return datetime.fromtimestamp(time, UTC if timezone == "UTC" else _zone(timezone))


def ends(windows: Sequence[Maintenance], timezone: str, now: float) -> float | None:
    """When the maintenance that `now` lies in is over; None: it lies in none.

    Where clocks are set in between, a window begins and ends when they show its times, the first time that they do.
    """
    if not windows or not DATED < now < UNDATED:
        return None
    found = [end for window in windows if (end := _end(window, timezone, now)) is not None]
    return max(found, default=None)


def _end(window: Maintenance, timezone: str, now: float) -> float | None:
    if not window.days:
        return window.end if window.begin <= now < window.end else None
    today = local(now, timezone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    over_midnight = window.end <= window.begin
    for day in (today, today - timedelta(days=1)) if over_midnight else (today,):
        begin, end = (
            (day + timedelta(days=days, seconds=seconds)).timestamp()
            for days, seconds in ((0, window.begin), (over_midnight, window.end))
        )
        if day.weekday() in window.days and begin <= now < end:
            return end
    return None


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
