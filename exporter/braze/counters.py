"""Counters of the requests to each of Braze's APIs, and the rate limits that its responses state."""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from exporter.braze.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DURATION_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper bounds in seconds; Braze responds in 0.2 to 0.5 as a rule."""

_LARGEST_HEADER = 2.0**53
_DIGITS = re.compile(r"\d+(\.\d+)?", re.ASCII)


@dataclass(slots=True)
class ApiStatistics:
    """Requests to one of Braze's APIs so far; `durations` counts by bucket, not cumulated."""

    requests: int = 0
    failures: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    durations: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BUCKETS) + 1))
    duration_sum: float = 0.0
    rate_limit: float | None = None
    rate_limit_remaining: float | None = None
    rate_limit_reset: float | None = None

    def observe(self, seconds: float) -> None:
        """Count one request and its duration."""
        self.requests += 1
        self.durations[bisect_left(DURATION_BUCKETS, seconds)] += 1
        self.duration_sum += seconds


class Counters:
    """Counters of one workspace's requests, by API. Any number of threads may count."""

    def __init__(self, apis: Iterable[str]) -> None:
        self._lock = threading.Lock()  # adding is reading and writing
        self._apis = {api: ApiStatistics() for api in apis}

    def observe(self, api: str, seconds: float) -> None:
        """Count one request and its duration."""
        with self._lock:
            self._apis[api].observe(seconds)

    def count_failure(self, api: str, reason: Reason) -> None:
        """Count a request that failed, also one whose response turned out to be unusable."""
        with self._lock:
            self._apis[api].failures[reason] += 1

    def read_rate_headers(self, api: str, headers: Mapping[str, str]) -> None:
        """Store the rate limit that a response states; a header that is empty or absurd leaves the value before."""
        with self._lock:
            statistics = self._apis[api]
            for name, header in _RATE_HEADERS.items():
                number = header_number(headers.get(header))
                if number is not None and number <= _LARGEST_HEADER:
                    setattr(statistics, name, number)

    def copy(self) -> dict[str, ApiStatistics]:
        """Return the counters as they are now."""
        with self._lock:
            return {
                api: replace(own, failures=dict(own.failures), durations=list(own.durations))
                for api, own in self._apis.items()
            }


_RATE_HEADERS = {
    "rate_limit": "X-RateLimit-Limit",
    "rate_limit_remaining": "X-RateLimit-Remaining",
    "rate_limit_reset": "X-RateLimit-Reset",
}


def header_number(text: str | None) -> float | None:
    """Return a header's number, None where it is absent, empty or anything else than digits."""
    return float(text) if text and _DIGITS.fullmatch(text.strip()) else None
