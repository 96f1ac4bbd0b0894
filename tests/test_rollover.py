"""Tests of exporter.rollover: when the start of a day counts as seen, and what it says about the zone."""

from datetime import date
from zoneinfo import ZoneInfo

import pytest

from exporter.rollover import Rollover, hours_off, meaning, observe

MONDAY, TUESDAY, WEDNESDAY, THURSDAY = (date(2026, 3, day) for day in range(2, 6))
MIDNIGHT = 1772582400.0
"""4 March 2026, 00:00 UTC, the start of Wednesday."""

NOW = MIDNIGHT + 120
SEEN = Rollover(TUESDAY, TUESDAY, MIDNIGHT - 86_300)


@pytest.mark.parametrize(
    ("before", "newest", "last_success", "expected"),
    [
        pytest.param(None, WEDNESDAY, None, Rollover(WEDNESDAY), id="first response of all"),
        pytest.param(None, WEDNESDAY, NOW - 300, Rollover(WEDNESDAY), id="first day, after a response without any"),
        pytest.param(Rollover(TUESDAY), WEDNESDAY, NOW - 300, Rollover(WEDNESDAY, WEDNESDAY, NOW), id="seen"),
        pytest.param(SEEN, WEDNESDAY, NOW - 300, Rollover(WEDNESDAY, WEDNESDAY, NOW), id="seen again"),
        pytest.param(SEEN, WEDNESDAY, NOW - 600, Rollover(WEDNESDAY, WEDNESDAY, NOW), id="two intervals before"),
        pytest.param(SEEN, WEDNESDAY, NOW - 601, Rollover(WEDNESDAY, TUESDAY, SEEN.moment), id="too long before"),
        pytest.param(SEEN, WEDNESDAY, None, Rollover(WEDNESDAY, TUESDAY, SEEN.moment), id="a new campaign"),
        pytest.param(SEEN, THURSDAY, NOW - 300, Rollover(THURSDAY, TUESDAY, SEEN.moment), id="a day was left out"),
        pytest.param(SEEN, TUESDAY, NOW - 300, SEEN, id="the same day"),
        pytest.param(SEEN, MONDAY, NOW - 300, SEEN, id="a day before"),
        pytest.param(Rollover(date.max), date.max, NOW - 300, Rollover(date.max), id="the last day of the calendar"),
    ],
)
def test_observe(before: Rollover | None, newest: date, last_success: float | None, expected: Rollover) -> None:
    """A start counts if the day follows the newest one and the campaign was polled within two intervals before."""
    assert observe(before, newest, moment=NOW, last_success=last_success, interval=300) == expected


def test_a_later_day_after_one_that_went_back() -> None:
    """A campaign whose days end earlier neither takes the newest day back nor starts it a second time."""
    rollover = observe(SEEN, WEDNESDAY, moment=NOW, last_success=NOW - 300, interval=300)
    back = observe(rollover, TUESDAY, moment=NOW + 1, last_success=NOW - 299, interval=300)

    assert observe(back, WEDNESDAY, moment=NOW + 300, last_success=NOW, interval=300) == rollover


@pytest.mark.parametrize(
    ("zone", "expected"),
    [("UTC", 120), ("Europe/Berlin", 3720), ("America/New_York", -17_880), ("Asia/Kolkata", 19_920)],
)
def test_offset(zone: str, expected: float) -> None:
    """The offset is that from the start of the day in the zone in force, so that another zone gives another one."""
    assert Rollover(WEDNESDAY, WEDNESDAY, NOW).offset(ZoneInfo(zone)) == expected
    assert Rollover(THURSDAY, WEDNESDAY, NOW).offset(ZoneInfo(zone)) == expected
    assert Rollover(WEDNESDAY).offset(ZoneInfo(zone)) is None


@pytest.mark.parametrize(
    ("offset", "interval", "expected"),
    [
        (0, 300, "timezone is right"),
        (1500, 300, "timezone is right"),
        (1501, 300, "timezone is too far east by 0.5 hours"),
        (-1500, 300, "timezone is right"),
        (-3500, 300, "timezone is too far west by 1 hour"),
        (-18_000, 300, "timezone is too far west by 5 hours"),
        (19_900, 300, "timezone is too far east by 5.5 hours"),
        (43_199, 300, "timezone is too far east by 12 hours"),
        (43_200, 300, "timezone is too far west by 12 hours"),
        (86_500, 300, "timezone is right; Braze's responses end with yesterday"),
        (86_400 - 7100, 300, "timezone is too far west by 2 hours"),
        (86_400 + 7300, 300, "timezone is too far east by 2 hours"),
        (8000, 3600, "timezone is right"),
        (-8101, 3600, "timezone is too far west by 2.5 hours"),
    ],
)
def test_meaning(offset: float, interval: float, expected: str) -> None:
    """What polling does not explain is the zone; about a day means that responses lack the running day."""
    assert meaning(offset, interval) == expected
    assert bool(hours_off(offset, interval)) == ("too far" in expected)
