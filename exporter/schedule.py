"""Schedule of polls: every campaign is due after a start, then each in its own slot of the interval. Pure.

Times are seconds of a monotonic clock, except `wall`, the Unix time that slots are counted from.
"""

from __future__ import annotations

import hashlib
import heapq
import math

LONGEST_WAIT_AFTER_FAILURE = 300.0
"""Seconds after a failed poll until the campaign is polled again, if the interval is longer."""

_FULL = 3  # entries of the heap per campaign at which the outdated ones are removed

_Due = tuple[float, int, str]
"""Time, order among equal times, and campaign."""


def slot(campaign_id: str, interval: float) -> float:
    """Return the campaign's offset in each interval, in seconds: a hash of its id, independent of everything else."""
    digest = hashlib.sha256(campaign_id.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48 * interval


def until_next_slot(campaign_id: str, interval: float, wall: float) -> float:
    """Return the seconds from a Unix time to the campaign's next slot: more than 0, at most the interval."""
    return interval - (wall - slot(campaign_id, interval)) % interval


class Schedule:
    """Campaigns by the time at which they are due. A campaign is waiting or in flight, never both.

    Of several that are due, the one that has waited longest comes first, and of equals the one that was added first.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._campaigns: set[str] = set()
        self._in_flight: set[str] = set()
        self._expedited: set[str] = set()  # of those in flight
        self._waiting: dict[str, _Due] = {}
        self._heap: list[_Due] = []  # those that wait, and outdated entries
        self._order = 0

    def add(self, campaign_id: str, due: float) -> None:
        """Add a campaign that is due at a time.

        One that is still in flight, as it was removed and added again meanwhile, is scheduled when its poll ends.
        """
        self._campaigns.add(campaign_id)
        if campaign_id not in self._in_flight:
            self._wait(campaign_id, due)

    def remove(self, campaign_id: str) -> None:
        """Remove a campaign; one in flight is not scheduled again."""
        self._campaigns.discard(campaign_id)
        self._waiting.pop(campaign_id, None)

    def change_interval(self, interval: float, *, now: float, wall: float) -> None:
        """Change the interval: each campaign is due in its new slot, but not later than before."""
        self._interval = interval
        for due, _, campaign_id in sorted(self._waiting.values()):
            self._wait(campaign_id, min(due, now + until_next_slot(campaign_id, interval, wall)))

    def expedite(self, now: float) -> None:
        """Make every waiting campaign due now, in order. One in flight is due again at once if it fails."""
        self._expedited |= self._in_flight
        for due, _, campaign_id in sorted(self._waiting.values()):
            self._wait(campaign_id, min(due, now))

    def next_due(self) -> float:
        """Return the time at which the first campaign is due, infinity where none waits."""
        while self._heap and self._waiting.get(self._heap[0][2]) != self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop(self) -> str:
        """Return the campaign that is due first; it is in flight from now on."""
        if self.next_due() == math.inf:
            raise LookupError("no campaign waits")
        campaign_id = heapq.heappop(self._heap)[2]
        del self._waiting[campaign_id]
        self._in_flight.add(campaign_id)
        return campaign_id

    def end_poll(self, campaign_id: str, *, succeeded: bool, now: float, wall: float) -> None:
        """Schedule a campaign in flight for its next slot; slots that have passed meanwhile are skipped."""
        wait = until_next_slot(campaign_id, self._interval, wall)
        if not succeeded:
            wait = 0 if campaign_id in self._expedited else min(wait, LONGEST_WAIT_AFTER_FAILURE)
        self.put_back(campaign_id, now + wait)

    def put_back(self, campaign_id: str, due: float) -> None:
        """Schedule a campaign in flight for a time, unless it was removed meanwhile."""
        self._in_flight.remove(campaign_id)
        self._expedited.discard(campaign_id)
        if campaign_id in self._campaigns:
            self._wait(campaign_id, due)

    def _wait(self, campaign_id: str, due: float) -> None:
        self._order += 1
        entry = (due, self._order, campaign_id)
        self._waiting[campaign_id] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > _FULL * len(self._campaigns):
            self._heap = sorted(self._waiting.values())
