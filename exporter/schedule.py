"""When each campaign is due: all at once after a start, then each in its own slot of the interval. Pure.

Times are seconds of a monotonic clock, but for `wall`, the Unix time that slots are counted from.
"""

from __future__ import annotations

import hashlib
import heapq
import math

LONGEST_WAIT_AFTER_FAILURE = 300.0
"""Seconds after which a campaign whose poll failed is asked again, however long the interval is."""

_FULL = 3  # turns in the heap for each campaign, at which those that are no longer meant are cleared away

_Turn = tuple[float, int, str]
"""When, in which order of equals, and whose."""


def slot(campaign_id: str, interval: float) -> float:
    """Return where in each interval the campaign's turn is, in seconds: a hash of its id that nothing else moves."""
    digest = hashlib.sha256(campaign_id.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48 * interval


def until_next_slot(campaign_id: str, interval: float, wall: float) -> float:
    """Return the seconds from a Unix time to the campaign's next turn: more than none, at most the interval."""
    return interval - (wall - slot(campaign_id, interval)) % interval


class Schedule:
    """Whose turn it is when. A campaign waits for its turn or is being asked, never both.

    Of several that are due, the one that waits longest comes first, and of equals the one that was added first.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._campaigns: set[str] = set()
        self._asked: set[str] = set()
        self._hurried: set[str] = set()  # of those that are being asked
        self._turns: dict[str, _Turn] = {}
        self._heap: list[_Turn] = []  # those turns, and some that are no longer meant
        self._order = 0

    def add(self, campaign_id: str, due: float) -> None:
        """Let a new campaign wait for a time.

        One that is being asked, as it was removed and is back before that was over, waits from its end on.
        """
        self._campaigns.add(campaign_id)
        if campaign_id not in self._asked:
            self._wait(campaign_id, due)

    def remove(self, campaign_id: str) -> None:
        """Forget a campaign; if it is being asked, it has no turn afterwards."""
        self._campaigns.discard(campaign_id)
        self._turns.pop(campaign_id, None)

    def change_interval(self, interval: float, *, now: float, wall: float) -> None:
        """Let each campaign wait for its slot in another interval, but no longer than it waits now."""
        self._interval = interval
        for due, _, campaign_id in sorted(self._turns.values()):
            self._wait(campaign_id, min(due, now + until_next_slot(campaign_id, interval, wall)))

    def hurry(self, now: float) -> None:
        """Let all campaigns be due, in the order in which they wait, and of those that are asked all that fail."""
        self._hurried |= self._asked
        for due, _, campaign_id in sorted(self._turns.values()):
            self._wait(campaign_id, min(due, now))

    def next_due(self) -> float:
        """Return when the first turn is, infinity where nothing waits."""
        while self._heap and self._turns.get(self._heap[0][2]) != self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def take(self) -> str:
        """Return the campaign whose turn is first; it waits no longer."""
        if self.next_due() == math.inf:
            raise LookupError("no campaign waits")
        campaign_id = heapq.heappop(self._heap)[2]
        del self._turns[campaign_id]
        self._asked.add(campaign_id)
        return campaign_id

    def add_next(self, campaign_id: str, *, succeeded: bool, now: float, wall: float) -> None:
        """Let a campaign that was just asked wait for its next slot; slots that have passed meanwhile are skipped."""
        wait = until_next_slot(campaign_id, self._interval, wall)
        if not succeeded:
            wait = 0 if campaign_id in self._hurried else min(wait, LONGEST_WAIT_AFTER_FAILURE)
        self.put_back(campaign_id, now + wait)

    def put_back(self, campaign_id: str, due: float) -> None:
        """Let a campaign that was just asked wait for a time, unless it was removed meanwhile."""
        self._asked.remove(campaign_id)
        self._hurried.discard(campaign_id)
        if campaign_id in self._campaigns:
            self._wait(campaign_id, due)

    def _wait(self, campaign_id: str, due: float) -> None:
        self._order += 1
        turn = (due, self._order, campaign_id)
        self._turns[campaign_id] = turn
        heapq.heappush(self._heap, turn)
        if len(self._heap) > _FULL * len(self._campaigns):
            self._heap = sorted(self._turns.values())
