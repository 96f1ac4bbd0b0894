"""Polls of braze-exporter beside loops that only send requests, all to the same fast Braze.

Braze has a core of its own; exporter and loops have another, in turns: while one runs, the others do not. The exporter
decodes and renders each answer, and keeps a compressed exposition ready, as for a Prometheus. Without latency a loop
has one thread, else as many as it takes to ask as often as Braze allows.
"""

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.client import Client
from benchmarks.loops import LOOPS, PREPARED
from benchmarks.report import Part, Target, number, times
from benchmarks.servers import (
    CORES,
    EMAIL,
    PUSH,
    Exporter,
    Payload,
    Server,
    Workspaces,
    answered,
    braze_exporter,
    fake_braze,
    pin,
)
from tests.support.servers import running

LIMIT = 50_000 / 60
"""Polls a second that Braze allows a workspace."""

CONCURRENCY = 256
"""Requests in flight, for slow responses."""

_OURS = "braze-exporter"
_WORKSPACES = 4  # without latency, so that pacing is not what limits
_SETTLING = 1.0  # seconds after a pause or a change of the rate, at most


@dataclass(frozen=True, slots=True)
class Case:
    """Braze's response, and its latency in seconds."""

    payload: Payload
    latency: float

    def about(self) -> str:
        """Return it as text for people."""
        return f"{self.payload}, {1000 * self.latency:.0f} ms"


@dataclass(frozen=True, slots=True)
class Polls:
    """Result of one round: polls, or requests of a loop, each second, and the seconds of CPU of each."""

    client: str
    per_second: float
    cpu: float


CASES = (Case(EMAIL, 0), Case(PUSH, 0), Case(EMAIL, 0.05), Case(EMAIL, 0.2))


def measure(cases: Sequence[Case], campaigns: int, rounds: int, seconds: float) -> Part:
    """Measure in rounds; in each of them the exporter and every loop run for the same number of seconds."""
    lines, targets, measurements = [], list[Target](), []
    for case in cases:
        found = list(_of_case(case, campaigns, rounds, seconds))
        measurements += [{**asdict(case), **asdict(polls)} for polls in found]
        medians = {client: _median(found, client) for client in (_OURS, *LOOPS)}
        lines += [_line(case, polls, medians[_OURS]) for polls in medians.values()]
        targets += _targets(case, found)
    columns = ("answers, latency", "", "a second", "ours to it", "CPU ms", "ours to it")
    return Part("Polls, on one core", columns, lines, targets, measurements)


def _of_case(case: Case, campaigns: int, rounds: int, seconds: float) -> Iterator[Polls]:
    threads = math.ceil(case.latency * LIMIT) + 1
    workspaces, concurrency = (1, CONCURRENCY) if case.latency else (_WORKSPACES, 32)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="braze-exporter-bench-")))
        braze = stack.enter_context(fake_braze(folder, case.payload, latency=case.latency, core=CORES[-1]))
        polled = Workspaces(braze, campaigns, workspaces, concurrency)
        exporter = stack.enter_context(braze_exporter(folder, polled, core=CORES[0]))
        Client(exporter.url, "/metrics", gzip=True).get()
        exporter.poll_at(math.inf)
        for _ in range(rounds):
            settle(seconds)
            yield polls_of(exporter, seconds)
            with exporter.paused():
                for loop in LOOPS:
                    yield _requests(loop, folder, braze, threads, seconds)


def settle(seconds: float) -> None:
    """Wait until a resumed exporter polls at its usual rate, but not longer than the measurement takes."""
    time.sleep(min(_SETTLING, seconds))


def polls_of(exporter: Exporter, seconds: float) -> Polls:
    """Measure an exporter for a number of seconds."""
    braze = exporter.workspaces.braze
    count, cpu, started = answered(braze).polls, exporter.cpu(), time.monotonic()
    time.sleep(seconds)
    polls, cpu, passed = answered(braze).polls - count, exporter.cpu() - cpu, time.monotonic() - started
    return Polls(_OURS, polls / passed, cpu / max(polls, 1))


def _requests(loop: str, folder: Path, braze: Server, threads: int, seconds: float) -> Polls:
    flags = (f"--url={braze.url}", f"--threads={threads}", f"--seconds={seconds}")
    with running((sys.executable, "benchmarks/loops.py", loop, *flags), log=folder / "loop.log") as program:
        pin(program, CORES[0])
        count, cpu, passed = program.logged(r"^(\d+) (\S+) (\S+)\n", timeout=60 + seconds).groups()
        return Polls(loop, int(count) / float(passed), float(cpu) / max(int(count), 1))


def _median(found: Sequence[Polls], client: str) -> Polls:
    rates, cpus = zip(*((polls.per_second, polls.cpu) for polls in found if polls.client == client), strict=True)
    return Polls(client, statistics.median(rates), statistics.median(cpus))


def _line(case: Case, polls: Polls, ours: Polls) -> Sequence[str]:
    ratios = ("", "") if polls is ours else (times(ours.per_second / polls.per_second), times(ours.cpu / polls.cpu))
    return (
        case.about(),
        polls.client,
        number(polls.per_second),
        ratios[0],
        number(1000 * polls.cpu),
        ratios[1],
    )


def _targets(case: Case, found: Sequence[Polls]) -> Iterator[Target]:
    """Yield the targets; a ratio is the median of the rounds' ratios, in which both ran one after the other."""
    ours = _median(found, _OURS)
    if case.latency:
        yield Target(f"{case.about()}: polls/s to Braze's limit", ours.per_second / LIMIT, "")
        return
    if case.payload == EMAIL:
        yield Target(f"{case.about()}: polls/s", ours.per_second, "at least 900")
        yield Target(f"{case.about()}: polls for a second of CPU", 1 / ours.cpu, "as polls/s, unless others run")
    by_client = {
        client: [polls.per_second for polls in found if polls.client == client] for client in (_OURS, PREPARED)
    }
    ratios = [one / other for one, other in zip(by_client[_OURS], by_client[PREPARED], strict=True)]
    wanted = "at least 0.5" if case.payload == PUSH else ""
    yield Target(f"{case.about()}: polls/s to prepared requests", statistics.median(ratios), wanted)
