"""Tests of exporter.braze.counters: what threads count at the same time, and durations by bucket."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from exporter.braze.counters import DURATION_BUCKETS, ApiStatistics, Counters
from exporter.braze.errors import Reason


@pytest.mark.usefixtures("hectic")
def test_counters_of_many_threads() -> None:
    """Nothing is lost of what threads count at the same time, and no copy is of two moments."""
    counters = Counters(["data_series"])
    done = threading.Event()

    def count(_: int) -> None:
        for _ in range(3000):
            counters.observe("data_series", 1.0)
            counters.count_failure("data_series", Reason.TIMEOUT)

    def look() -> bool:
        whole = True
        while not done.is_set():
            copy = counters.copy()["data_series"]
            whole = whole and copy.requests == sum(copy.durations) == copy.duration_sum
        return whole

    with ThreadPoolExecutor(7) as threads:
        looks = threads.submit(look)
        list(threads.map(count, range(6)))
        done.set()
        assert looks.result()
    statistics = counters.copy()["data_series"]
    assert statistics.requests == statistics.failures[Reason.TIMEOUT] == sum(statistics.durations) == 18_000


def test_durations_are_counted_by_bucket() -> None:
    """A duration counts in the first bucket that is large enough, the last holds the rest."""
    statistics = ApiStatistics()
    for seconds in (0.0, 0.05, 0.051, 30.0, 31.0):
        statistics.observe(seconds)

    assert statistics.durations == [2, 1, *[0] * (len(DURATION_BUCKETS) - 3), 1, 1]
    assert statistics.duration_sum == pytest.approx(61.101)
