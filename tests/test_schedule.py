"""Tests of exporter.schedule: times in, whose turn it is out."""

import math
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.schedule import Schedule, slot, until_next_slot

IDS = st.uuids().map(str)
WALL = st.floats(0, 4e9)
INTERVALS = st.floats(1, 86_400)


def test_slots_are_fixed() -> None:
    """The slot of a campaign is the same after every restart and in every version."""
    assert slot("3bbc4555-8fa0-4c9b-a5c0-4505edf3e064", 300) == pytest.approx(50.55986926323435)


def test_slots_are_spread() -> None:
    """A thousand campaigns leave no tenth of the interval empty or crowded."""
    tenths = [int(slot(str(UUID(int=number)), 10)) for number in range(1000)]

    assert all(70 <= tenths.count(tenth) <= 130 for tenth in range(10))


@given(IDS, INTERVALS, WALL)
def test_next_slot_is_within_an_interval(campaign_id: str, interval: float, wall: float) -> None:
    """The next slot is ahead, at most one interval away, and where the hash puts it."""
    wait = until_next_slot(campaign_id, interval, wall)

    assert 0 < wait <= interval
    phase = (wall + wait - slot(campaign_id, interval)) % interval
    assert min(phase, interval - phase) < 1e-5


def test_oldest_first() -> None:
    """Of campaigns that are due, the one that waits longest comes first; at a start, the order of adding counts."""
    schedule = Schedule(10)
    for campaign_id, due in (("b", 5.0), ("c", 5.0), ("a", 7.0), ("d", 1.0)):
        schedule.add(campaign_id, due)

    assert schedule.next_due() == 1.0
    assert [schedule.take() for _ in range(4)] == ["d", "b", "c", "a"]
    assert schedule.next_due() == math.inf


def test_removed_campaigns_have_no_turn() -> None:
    """A campaign that is removed is not asked; removing it again does no harm."""
    schedule = Schedule(10)
    schedule.add("a", 1.0)
    schedule.add("b", 2.0)
    schedule.remove("a")
    schedule.remove("a")

    assert schedule.next_due() == 2.0
    assert schedule.take() == "b"
    with pytest.raises(LookupError):
        schedule.take()


@given(IDS, st.floats(300, 86_400), WALL)
def test_after_a_failure_five_minutes_at_most(campaign_id: str, interval: float, wall: float) -> None:
    """A campaign whose poll failed is asked again in its slot or after five minutes, whichever is sooner."""
    failed, succeeded = Schedule(interval), Schedule(interval)
    failed.add_next(campaign_id, succeeded=False, now=1000.0, wall=wall)
    succeeded.add_next(campaign_id, succeeded=True, now=1000.0, wall=wall)

    assert failed.next_due() == min(succeeded.next_due(), 1300.0)


def test_slots_that_pass_during_a_poll_are_skipped() -> None:
    """A poll that takes several intervals is followed by the next slot, not by those it missed."""
    schedule = Schedule(10)
    started = 1000 + slot("a", 10)
    schedule.add_next("a", succeeded=True, now=0.0, wall=started + 35)

    assert schedule.next_due() == pytest.approx(5.0)
