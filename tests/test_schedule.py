"""Tests of exporter.schedule: times in, the campaign that is due out."""

import math
import pickle
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exporter.schedule import Schedule, slot, until_next_slot

IDS = st.uuids().map(str)
WALL = st.floats(0, 4e9)
INTERVALS = st.floats(1, 86_400)


def asking(campaign_id: str, interval: float) -> Schedule:
    """Return a schedule of one campaign in flight."""
    schedule = Schedule(interval)
    schedule.add(campaign_id, 0.0)
    schedule.pop()
    return schedule


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
    assert [schedule.pop() for _ in range(4)] == ["d", "b", "c", "a"]
    assert schedule.next_due() == math.inf


def test_removed_campaigns_have_no_turn() -> None:
    """A campaign that is removed is not polled; removing it again does no harm."""
    schedule = Schedule(10)
    schedule.add("a", 1.0)
    schedule.add("b", 2.0)
    schedule.remove("a")
    schedule.remove("a")

    assert schedule.next_due() == 2.0
    assert schedule.pop() == "b"
    with pytest.raises(LookupError):
        schedule.pop()


@given(IDS, st.floats(300, 86_400), WALL)
def test_after_a_failure_five_minutes_at_most(campaign_id: str, interval: float, wall: float) -> None:
    """A campaign whose poll failed is polled again in its slot or after five minutes, whichever is sooner."""
    failed, succeeded = asking(campaign_id, interval), asking(campaign_id, interval)
    failed.end_poll(campaign_id, succeeded=False, now=1000.0, wall=wall)
    succeeded.end_poll(campaign_id, succeeded=True, now=1000.0, wall=wall)

    assert failed.next_due() == min(succeeded.next_due(), 1300.0)


def test_slots_that_pass_during_a_poll_are_skipped() -> None:
    """A poll that takes several intervals is followed by the next slot, not by those it missed."""
    schedule = asking("a", 10)
    started = 1000 + slot("a", 10)
    schedule.end_poll("a", succeeded=True, now=0.0, wall=started + 35)

    assert schedule.next_due() == pytest.approx(5.0)


def test_a_campaign_removed_while_it_is_asked_has_no_turn() -> None:
    """The end of a poll does not bring a removed campaign back."""
    schedule = asking("a", 10)
    schedule.remove("a")
    schedule.end_poll("a", succeeded=True, now=0.0, wall=0.0)

    assert schedule.next_due() == math.inf


def test_nothing_is_asked_twice_at_once() -> None:
    """A campaign that was removed and is back while it is still in flight waits for the end of that."""
    schedule = asking("a", 10)
    schedule.remove("a")
    schedule.add("a", 1.0)

    assert schedule.next_due() == math.inf
    schedule.put_back("a", 2.0)
    assert schedule.next_due() == 2.0


@given(IDS, INTERVALS, INTERVALS, WALL)
def test_another_interval(campaign_id: str, interval: float, other: float, wall: float) -> None:
    """With another interval a campaign waits for its slot in that one, but no longer than it would have."""
    schedule = asking(campaign_id, interval)
    schedule.end_poll(campaign_id, succeeded=True, now=0.0, wall=wall)
    before = schedule.next_due()
    schedule.change_interval(other, now=0.0, wall=wall)

    assert schedule.next_due() == min(before, until_next_slot(campaign_id, other, wall))


def test_the_same_interval_changes_nothing_for_those_that_are_due() -> None:
    """Campaigns that are due keep their order when the interval changes."""
    schedule = Schedule(10)
    for campaign_id in "bca":
        schedule.add(campaign_id, 5.0)
    schedule.change_interval(20, now=6.0, wall=0.0)

    assert [schedule.pop() for _ in range(3)] == ["b", "c", "a"]


def test_expedite() -> None:
    """When expedited, all campaigns are due, and the one that waits longest still comes first."""
    schedule = Schedule(10)
    for campaign_id, due in (("b", 5.0), ("c", 9.0), ("a", 7.0)):
        schedule.add(campaign_id, due)
    schedule.expedite(6.0)

    assert schedule.next_due() == 5.0
    assert [schedule.pop(), schedule.next_due(), schedule.pop(), schedule.pop()] == ["b", 6.0, "a", "c"]


@pytest.mark.parametrize(("succeeded", "expected"), [(False, [7.0, 307.0]), (True, [606.0, 606.0])])
def test_expedite_while_one_is_asked(succeeded: bool, expected: list[float]) -> None:  # noqa: FBT001 - a parameter
    """A campaign in flight is due at once, too, unless its poll succeeds; and that only once."""
    schedule = asking("a", 600)
    schedule.expedite(6.0)
    due = []
    for _ in expected:
        schedule.end_poll("a", succeeded=succeeded, now=7.0, wall=slot("a", 600) + 1)
        due.append(schedule.next_due())
        schedule.pop()

    assert due == expected


class PlainSchedule:
    """What a schedule promises, as plainly as can be: a list of those that wait, in the order in which they came."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.campaigns: set[str] = set()
        self.waiting: list[tuple[str, float]] = []
        self.in_flight: list[str] = []
        self.expedited: set[str] = set()

    def wait(self, campaign_id: str, due: float) -> None:
        """Let a campaign wait behind all others that are due at that time."""
        self.waiting = [*((other, when) for other, when in self.waiting if other != campaign_id), (campaign_id, due)]

    def first(self) -> tuple[str, float]:
        """Return who waits longest."""
        return min(self.waiting, key=lambda entry: entry[1])

    def end(self, campaign_id: str, due: float) -> None:
        """Let a campaign in flight wait, if it is still there."""
        self.in_flight.remove(campaign_id)
        self.expedited.discard(campaign_id)
        if campaign_id in self.campaigns:
            self.wait(campaign_id, due)


class ScheduleMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the schedule does what a plain list does."""

    ids = st.sampled_from([f"{number}" for number in range(12)])

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(600)
        self.plain = PlainSchedule(600)

    @rule(campaign_id=ids, due=st.integers(0, 2000))
    def add(self, campaign_id: str, due: float) -> None:
        """Add a campaign, or one that is there already once more."""
        self.schedule.add(campaign_id, due)
        self.plain.campaigns.add(campaign_id)
        if campaign_id not in self.plain.in_flight:
            self.plain.wait(campaign_id, due)

    @rule(campaign_id=ids)
    def remove(self, campaign_id: str) -> None:
        """Remove a campaign, whatever it is at."""
        self.schedule.remove(campaign_id)
        self.plain.campaigns.discard(campaign_id)
        self.plain.waiting = [entry for entry in self.plain.waiting if entry[0] != campaign_id]

    @precondition(lambda self: self.plain.waiting)
    @rule()
    def take(self) -> None:
        """Ask the first."""
        campaign_id, _ = self.plain.first()
        self.plain.in_flight.append(campaign_id)
        self.plain.waiting = [entry for entry in self.plain.waiting if entry[0] != campaign_id]

        assert self.schedule.pop() == campaign_id

    @precondition(lambda self: self.plain.in_flight)
    @rule(place=st.integers(0, 11), succeeded=st.booleans(), now=st.integers(0, 2000))
    def end(self, place: int, succeeded: bool, now: float) -> None:  # noqa: FBT001 - hypothesis gives it
        """Let a poll end."""
        campaign_id = self.plain.in_flight[place % len(self.plain.in_flight)]
        wait = until_next_slot(campaign_id, self.plain.interval, now + 7)
        if not succeeded:
            wait = 0 if campaign_id in self.plain.expedited else min(wait, 300)
        self.plain.end(campaign_id, now + wait)
        self.schedule.end_poll(campaign_id, succeeded=succeeded, now=now, wall=now + 7)

    @precondition(lambda self: self.plain.in_flight)
    @rule(due=st.integers(0, 2000))
    def put_back(self, due: float) -> None:
        """Let a poll end that does not count."""
        self.schedule.put_back(self.plain.in_flight[0], due)
        self.plain.end(self.plain.in_flight[0], due)

    @rule(now=st.integers(0, 2000))
    def expedite(self, now: float) -> None:
        """Let all be due."""
        self.schedule.expedite(now)
        self.plain.expedited |= set(self.plain.in_flight)
        for campaign_id, due in sorted(self.plain.waiting, key=lambda entry: entry[1]):
            self.plain.wait(campaign_id, min(due, now))

    @rule(interval=st.sampled_from([1.0, 60.0, 600.0]), now=st.integers(0, 2000))
    def change_interval(self, interval: float, now: float) -> None:
        """Change the interval."""
        self.schedule.change_interval(interval, now=now, wall=now + 7)
        self.plain.interval = interval
        for campaign_id, due in sorted(self.plain.waiting, key=lambda entry: entry[1]):
            self.plain.wait(campaign_id, min(due, now + until_next_slot(campaign_id, interval, now + 7)))

    @invariant()
    def the_first_is_the_first(self) -> None:
        """The next that is due is the same."""
        assert self.schedule.next_due() == (self.plain.first()[1] if self.plain.waiting else math.inf)


ScheduleMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
test_schedule_in_any_order = ScheduleMachine.TestCase


def test_a_schedule_that_was_tidied_up() -> None:
    """However often all are added anew, which tidies up, those that wait come in their order."""
    schedule = Schedule(600)
    for entry in range(20):
        for number in range(50):
            schedule.add(f"{number}", (number * 37 + entry * 11) % 50)
    dues = []
    while (due := schedule.next_due()) < math.inf:
        dues.append(due)
        schedule.pop()

    assert dues == sorted(dues)
    assert len(dues) == 50


def test_changes_do_not_pile_up() -> None:
    """However often campaigns come and go or intervals change, no more is kept than a few entries for each."""
    schedule = Schedule(3600)
    campaigns = [f"{number}" for number in range(100)]
    for entry in range(200):
        for campaign_id in campaigns:
            schedule.add(campaign_id, 1000.0)
        schedule.change_interval(3600 + entry % 2, now=0.0, wall=0.0)
        for campaign_id in campaigns:
            schedule.remove(campaign_id)

    assert len(pickle.dumps(schedule)) < 1000 * len(campaigns)
