"""When each campaign is due: all at once after a start, then each in its own slot of the interval. Pure.

Times are seconds of a monotonic clock, but for `wall`, the Unix time that slots are counted from.
"""

from __future__ import annotations

import hashlib
import heapq
import math

LONGEST_WAIT_AFTER_FAILURE = 300.0
"""Seconds after which a campaign whose poll failed is asked again, however long the interval is."""


def slot(campaign_id: str, interval: float) -> float:
    """Return where in each interval the campaign's turn is, in seconds: a hash of its id that nothing else moves."""
    digest = hashlib.sha256(campaign_id.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48 * interval


def until_next_slot(campaign_id: str, interval: float, wall: float) -> float:
    """Return the seconds from a Unix time to the campaign's next turn: more than none, at most the interval."""
    return interval - (wall - slot(campaign_id, interval)) % interval


class Schedule:
    """The campaigns that wait for their turn, oldest first; one that is being asked is not among them."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._order = 0

    def add(self, campaign_id: str, due: float) -> None:
        """Let a campaign wait for a time; of several for the same time the first added comes first."""
        self._order += 1
        self._due[campaign_id] = due
        heapq.heappush(self._heap, (due, self._order, campaign_id))

    def remove(self, campaign_id: str) -> None:
        """Forget a campaign, if it waits."""
        self._due.pop(campaign_id, None)

    def next_due(self) -> float:
        """Return when the first turn is, infinity where nothing waits."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def take(self) -> str:
        """Return the campaign whose turn is first; it waits no longer."""
        if self.next_due() == math.inf:
            raise LookupError("no campaign waits")
        campaign_id = heapq.heappop(self._heap)[2]
        del self._due[campaign_id]
        return campaign_id

    def add_next(self, campaign_id: str, *, succeeded: bool, now: float, wall: float) -> None:
        """Let a campaign that was just asked wait for its next slot; slots that have passed meanwhile are skipped."""
        wait = until_next_slot(campaign_id, self._interval, wall)
        self.add(campaign_id, now + (wait if succeeded else min(wait, LONGEST_WAIT_AFTER_FAILURE)))
