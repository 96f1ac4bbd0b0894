"""Duration of a start with few and with many campaigns, and the cost of a poll with each.

Braze takes 200 ms for an answer and has a core of its own, the exporters another. There is one workspace, so its pacing
alone takes 12 s for 10,000 campaigns. Afterwards the exporters poll as often as pacing allows, in turns: while one
runs, the others do not.
"""

import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.polls import CONCURRENCY, LIMIT, polls_of, settle
from benchmarks.report import Part, Target, number, times
from benchmarks.servers import CORES, EMAIL, Exporter, Workspaces, answered, braze_exporter, fake_braze

_LATENCY = 0.2


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the process's start until it is ready, and those of the polls in it; CPU of a later poll."""

    campaigns: int
    ready: float
    polls: float
    cpu: float

    def pacing(self) -> float:
        """Return the seconds that the rate limit needs for that number of polls."""
        return self.campaigns / LIMIT


def measure(sizes: Sequence[int], rounds: int, seconds: float) -> Part:
    """Measure exporters of these numbers of campaigns, then their polls in rounds of some seconds."""
    with ExitStack() as stack:
        exporters, polled_in = [], []
        for campaigns in sizes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="braze-exporter-bench-")))
            braze = stack.enter_context(fake_braze(folder, EMAIL, latency=_LATENCY, core=CORES[-1]))
            workspaces = Workspaces(braze, campaigns, concurrency=CONCURRENCY)
            exporters.append(stack.enter_context(braze_exporter(folder, workspaces, core=CORES[0])))
            polled_in.append(answered(braze).seconds + _LATENCY)
        found = [
            Start(exporter.workspaces.campaigns, exporter.started_in, polls, cpu)
            for exporter, polls, cpu in zip(exporters, polled_in, _cpu(exporters, rounds, seconds), strict=True)
        ]
    columns = ("campaigns", "ready after s", "polls s", "to pacing", "CPU of a later poll, ms")
    return Part(
        "Starts, on one core", columns, list(map(_line, found)), list(_targets(found)), list(map(asdict, found))
    )


def _cpu(exporters: Sequence[Exporter], rounds: int, seconds: float) -> Sequence[float]:
    """Return the seconds of CPU of a poll of each exporter."""
    for exporter in exporters:
        exporter.poll_at(math.inf)
    found: dict[int, list[float]] = {exporter.pid: [] for exporter in exporters}
    for _ in range(rounds):
        for exporter in exporters:
            with ExitStack() as others:
                for other in exporters:
                    if other is not exporter:
                        others.enter_context(other.paused())
                settle(seconds)
                found[exporter.pid].append(polls_of(exporter, seconds).cpu)
    return [statistics.median(cpus) for cpus in found.values()]


def _line(start: Start) -> Sequence[str]:
    pacing = times(start.polls / start.pacing())
    return (f"{start.campaigns:,}", number(start.ready), number(start.polls), pacing, number(1000 * start.cpu))


def _targets(found: Sequence[Start]) -> Iterator[Target]:
    *_, before, most = found
    name = f"{most.campaigns:,} campaigns once, {1000 * _LATENCY:.0f} ms: seconds to those of the pacing"
    yield Target(name, most.polls / most.pacing(), "at most 1.6 at 10,000")
    name = f"CPU of a poll, {most.campaigns:,} to {before.campaigns:,} campaigns"
    yield Target(name, most.cpu / before.cpu, "about 1: it does not grow")
