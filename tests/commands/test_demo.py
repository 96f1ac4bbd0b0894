"""Tests of exporter.commands.demo: the zone of its days. Its servers are tested as a whole by tests of cli."""

from datetime import UTC, datetime, timedelta

import pytest

from exporter.commands.demo import zone_of_noon


@pytest.mark.parametrize("hour", range(24))
def test_the_day_began_twelve_hours_ago(hour: int) -> None:
    """Whatever the time, the demo's day is half over."""
    now = datetime(2026, 3, 4, hour, 30, tzinfo=UTC)

    local = now.astimezone(zone_of_noon(now))

    assert timedelta(hours=local.hour, minutes=local.minute) == timedelta(hours=12, minutes=30)
