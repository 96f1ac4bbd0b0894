"""Start of a new day in Braze's responses, which proves a workspace's `timezone` or shows how wrong it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date
    from zoneinfo import ZoneInfo

_DAY = 86_400
_HALF_HOUR = 1800
_INTERVALS = 2
_SLACK = 900


@dataclass(frozen=True, slots=True)
class Rollover:
    """The newest day seen in a workspace; `day` is the last one whose start was seen, first in a response at `moment`.

    `day` is None until then, and older than `newest` if it is not known when that began.
    """

    newest: date
    day: date | None = None
    moment: float = 0.0

    def offset(self, timezone: ZoneInfo) -> float | None:
        """Return the seconds from the start of the day in the zone until its first response; negative before it."""
        return None if self.day is None else self.moment - midnight(self.day, timezone)


def observe(
    before: Rollover | None, newest: date, *, moment: float, last_success: float | None, interval: float
) -> Rollover:
    """Return what is known after a response at `moment` with this newest day, of a campaign polled at the interval.

    The start of a day was seen if it follows the newest one so far, and `last_success`, the same campaign's, is at most
    two intervals ago.
    """
    if before is None:
        return Rollover(newest)
    if newest <= before.newest:
        return before
    recent = last_success is not None and moment - last_success <= _INTERVALS * interval
    if recent and (newest - before.newest).days == 1:
        return Rollover(newest, newest, moment)
    return replace(before, newest=newest)


def hours_off(offset: float, interval: float) -> float:
    """Return by how many hours, to the half, the zone is too far east; 0 if polling explains the offset.

    As the recording rule workspace:braze_timezone:hours_off.
    """
    distance = offset - _DAY if _ends_with_yesterday(offset) else offset
    return round(distance / _HALF_HOUR) / 2 if abs(distance) > _INTERVALS * interval + _SLACK else 0.0


def meaning(offset: float, interval: float) -> str:
    """Return what an offset says about the zone."""
    if hours := hours_off(offset, interval):
        direction = "east" if hours > 0 else "west"
        return f"timezone is too far {direction} by {abs(hours):g} {'hour' if abs(hours) == 1 else 'hours'}"
    return "timezone is right" + ("; Braze's responses end with yesterday" if _ends_with_yesterday(offset) else "")


def _ends_with_yesterday(offset: float) -> bool:
    return offset >= _DAY / 2


@lru_cache(maxsize=1024)  # few days are shown at a time, of many campaigns
def midnight(day: date, timezone: ZoneInfo) -> float:
    """Return the Unix time in seconds at which the day begins in the zone."""
    return (datetime.combine(day, time.min, timezone) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
