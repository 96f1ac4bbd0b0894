"""Tests of exporter.state: the clock of the system."""

import time

from exporter.state import system_clock


def test_the_system_clock_counts_the_time_asleep() -> None:
    """The clock that only goes forward is the one that goes on while the machine sleeps."""
    clock = system_clock()
    expected = time.clock_gettime(time.CLOCK_BOOTTIME)

    assert expected <= clock.monotonic() <= expected + 60
    assert abs(clock.wall() - time.time()) < 60
