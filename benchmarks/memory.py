"""Resident memory of braze-exporter for each series, and whether it grows with polls.

It is scraped compressed in both formats, each second. Memory for each series is the difference of two exporters, one of
four times the other's series, divided by the difference in series, while each polls three times as many campaigns a
second as 10,000 with the default interval need. Growth is measured while it polls as fast as it can.
"""

import gzip
import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.client import Client
from benchmarks.report import Part, Target, number
from benchmarks.servers import Exporter, Payload, Workspaces, answered, braze_exporter, fake_braze

_FORMATS = ("text/plain;version=0.0.4", "application/openmetrics-text;version=1.0.0")
_RATE = 100  # polls a second
_WORKSPACES = 4  # so that pacing is not what limits
_PAUSE = 0.1  # seconds between two looks at the memory
_FEWER = 4
_LOOKS_A_SCRAPE = 10
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """An exporter's series and its resident bytes, at the usual rate and, if so, before and after many polls."""

    payload: Payload
    campaigns: int
    series: int
    resident: int
    before_polls: int | None = None
    after_polls: int | None = None


def measure(payloads: Sequence[Payload], series: int, polls: int, looks: int) -> Part:
    """Measure exporters with about this number of series and with a quarter of it, each the median of some samples."""
    found = [
        (
            _of(payload, series // payload.series // _FEWER, polls, looks),
            _of(payload, series // payload.series, 0, looks),
        )
        for payload in payloads
    ]
    lines, targets = [], list[Target]()
    for few, many in found:
        of_series = (many.resident - few.resident) / (many.series - few.series)
        before, after = few.before_polls or 0, few.after_polls or 0
        for memory in (few, many):
            cells = (f"{memory.campaigns:,}", f"{memory.series:,}", number(memory.resident / _MIB))
            own = (number((after - before) / _MIB), "") if memory is few else ("", number(of_series))
            lines.append((str(memory.payload), *cells, *own))
        targets += [
            Target(f"{few.payload}: bytes of resident memory for each series", of_series, "at most 700"),
            Target(f"{few.payload}: growth over {polls:,} polls, to all memory", after / before - 1, "about 0"),
        ]
    columns = ("answers", "campaigns", "series", "MiB", f"MiB more after {polls:,} polls", "bytes a series more")
    measurements = [asdict(memory) for pair in found for memory in pair]
    return Part("Memory", columns, lines, targets, measurements)


def _of(payload: Payload, campaigns: int, polls: int, looks: int) -> Memory:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="braze-exporter-bench-")))
        braze = stack.enter_context(fake_braze(folder, payload))
        workspaces = Workspaces(braze, campaigns, min(_WORKSPACES, campaigns))
        exporter = stack.enter_context(braze_exporter(folder, workspaces))
        clients = [Client(exporter.url, "/metrics", gzip=True, accept=accept) for accept in _FORMATS]
        text = gzip.decompress(clients[0].get())
        series = sum(line.startswith(b"braze_") for line in text.splitlines())
        exporter.poll_at(_RATE)
        resident = _resident_after(min(campaigns, polls or campaigns), exporter, clients, looks)
        if not polls:
            return Memory(payload, campaigns, series, resident)
        exporter.poll_at(math.inf)
        before, after = (_resident_after(more, exporter, clients, looks) for more in (polls // 2, polls))
        return Memory(payload, campaigns, series, resident, before, after)


def _resident_after(polls: int, exporter: Exporter, clients: Sequence[Client], looks: int) -> int:
    """Return the resident bytes after a number of further polls, the median of the last samples."""
    braze = exporter.workspaces.braze
    end = answered(braze).polls + polls
    seen = deque[int](maxlen=looks)
    while len(seen) < looks or answered(braze).polls < end:
        for client in clients:
            client.get()
        for _ in range(_LOOKS_A_SCRAPE):
            time.sleep(_PAUSE)
            seen.append(exporter.resident())
    return int(statistics.median(seen))
