"""Rate limiter of requests to Braze: paced, paused after a 401 or 429, resumed by one probe. It knows no clock."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from exporter.braze.counters import header_number
from exporter.braze.errors import RateLimited, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from exporter.braze.errors import BrazeError

LONGEST_PAUSE = 300.0
"""Seconds until a probe is sent at the latest, whatever Braze asks for."""

LONGEST_WAIT = 5.0
"""Seconds after which a waiting thread reads the clock again: waits do not count the time that the machine sleeps."""

_FIRST_BACK_OFF = 1.0
_CATCH_UP = 0.02  # seconds of pacing that a late wake-up may make good, so that rates of 1,000/s are reached


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission to send one request; the outcome of a probe decides whether the rate limiter resumes."""

    probe: bool = False


class RateLimiter:
    """Paces the requests that share one of Braze's rate limits. Any number of threads may use it.

    Times are seconds of a monotonic clock.
    """

    def __init__(self, *, requests_per_minute: float, unauthorized_pause: float, random: Random) -> None:
        self._random = random
        self._lock = threading.Lock()  # a permit is given once
        self._acquired_at = -math.inf
        self.change(requests_per_minute=requests_per_minute, unauthorized_pause=unauthorized_pause)
        self._paused: Reason | None = None
        self._paused_until = -math.inf
        self._refusals = 0
        self._probing = False

    @property
    def paused(self) -> Reason | None:
        """The refusal after which only probes are sent, or None."""
        return self._paused

    def change(self, *, requests_per_minute: float, unauthorized_pause: float) -> None:
        """Set the pace, from the last request on, and the pause after a 401, from the next one on."""
        with self._lock:
            self._spacing = 60.0 / requests_per_minute
            self._unauthorized_pause = unauthorized_pause

    def probe_now(self) -> bool:
        """Make the next probe due at once after a 401; return whether that is the case."""
        with self._lock:
            unauthorized = self._paused is Reason.UNAUTHORIZED
            if unauthorized:
                self._paused_until = -math.inf
            return unauthorized

    def acquire(self, now: float) -> Permit | float:
        """Return a permit to send a request now, or the seconds until the next attempt to acquire one."""
        with self._lock:
            if self._probing:
                return math.inf
            following = self._acquired_at + self._spacing
            wait = max(following, self._paused_until if self._paused else -math.inf) - now
            if wait > 0:
                return min(wait, LONGEST_PAUSE)  # the sum and difference of floats may be a bit longer
            self._acquired_at = max(following, now - _CATCH_UP)
            self._probing = self._paused is not None
            return Permit(probe=self._probing)

    def paused_for(self, now: float) -> float:
        """Return the seconds until the next probe of a paused rate limiter."""
        return min(max(0.0, self._paused_until - now), LONGEST_PAUSE)

    def record_success(self, permit: Permit) -> bool:
        """Record a response; return whether it ended the pause."""
        with self._lock:
            if not permit.probe:
                return False
            self._probing = False
            self._paused = None
            self._paused_until = -math.inf
            self._refusals = 0
            return True

    def record_failure(self, permit: Permit, error: BrazeError, now: float) -> bool:
        """Record a failure; return whether it ended the pause, or began one for another reason than before.

        401 and 429 begin a pause. Any other error response of Braze's API to a probe ends it. A probe without a
        response decides nothing: another one follows.
        """
        refused = error.reason in {Reason.UNAUTHORIZED, Reason.RATE_LIMITED}
        if not refused and (not permit.probe or error.reason in _RESPONDED):
            return self.record_success(permit)
        with self._lock:
            before = self._paused
            if permit.probe:
                self._probing = False
            if permit.probe or before is None:
                self._refusals += 1
            if refused:
                self._paused = error.reason
            self._paused_until = max(self._paused_until, now + self._pause(error))
            return self._paused is not before

    def _pause(self, error: BrazeError) -> float:
        if self._paused is Reason.UNAUTHORIZED:
            return self._unauthorized_pause
        requested = error.wait if isinstance(error, RateLimited) else None
        longest = back_off(self._refusals, self._random)
        if requested is None:
            return longest
        # The first refusal is believed, even if it says "now"; after the second, "now" would keep a storm alive.
        return min(LONGEST_PAUSE, requested if self._refusals <= 1 else max(requested, longest))


_RESPONDED = {Reason.FORBIDDEN, Reason.BAD_REQUEST, Reason.NOT_FOUND, Reason.TOO_LARGE, Reason.BAD_PAYLOAD}
"""Failures in which Braze's API itself accepted the key and the request, and that a pause would not mend."""


def back_off(failures: int, random: Random) -> float:
    """Return the seconds to wait after a number of failures in a row, doubled by each, with jitter."""
    return float(min(LONGEST_PAUSE, _FIRST_BACK_OFF * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0))


def requested_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a 429 asks to wait, at most LONGEST_PAUSE: Retry-After, else X-RateLimit-Reset.

    A time is compared with the response's own `Date`, or with our clock, the Unix time `now`, where it has none; one in
    the past means at once. None where neither header has a value.
    """
    date = _http_date(headers.get("Date"))
    here = now if date is None else date
    retry_after = headers.get("Retry-After")
    wait = header_number(retry_after)
    if wait is None and (until := _http_date(retry_after)) is not None:
        wait = until - here
    if wait is None and (reset := header_number(headers.get("X-RateLimit-Reset"))) is not None:
        wait = reset - here
    return None if wait is None else min(max(0.0, wait), LONGEST_PAUSE)


def _http_date(text: str | None) -> float | None:
    """Return the Unix time of a header's date, which is in UTC even where it names no zone; None for any other text."""
    try:
        date = parsedate_to_datetime(text or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except Exception:  # noqa: BLE001 - for texts that are no dates the parser raises exceptions of any type
        return None
