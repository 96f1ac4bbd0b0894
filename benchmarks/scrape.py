"""Scrapes of braze-exporter, of nginx with the same bytes as a file, and of a plain exporter with the same samples.

braze-exporter is asked while it polls nothing and while it polls; nginx is asked in turns with it, block by block. The
plain exporter polls nothing, so it is at its best, and is asked less often where a scrape takes it seconds: twice in
each encoding at 100,000 series, and once, compressed, beyond.
"""

import gzip
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from benchmarks.client import Client
from benchmarks.report import Part, Target, number, times
from benchmarks.servers import (
    EMAIL,
    PUSH,
    Exporter,
    Server,
    Workspaces,
    answered,
    braze_exporter,
    fake_braze,
    nginx,
    plain_exporter,
)

RATES = (0, 10, 400)
"""Polls a second, of which each campaign has one at most."""

_OURS, _NGINX, _PLAIN = "braze-exporter", "nginx", "prometheus_client"
_ROUNDS = 6  # of blocks
_WARM_UP = 3  # scrapes that do not count
_SETTLING = 1.0  # seconds after a change of the rate, at most
_LONGEST_PAUSE = 0.01  # seconds between scrapes, so that they come at any moment of what goes on besides
_CAMPAIGNS_OF_A_WORKSPACE = 500  # so that pacing does not hold up the start
_SMALL = 10_000  # series at most for small answers, so that here there are enough campaigns for the highest rate
_FEW_FROM, _ONE_FROM = 50_000, 200_000  # series from which the plain exporter is asked twice and once


@dataclass(frozen=True, slots=True)
class Setting:
    """Case: the number of series wanted and present, the encoding, and the polls a second wanted."""

    wanted_series: int
    series: int
    gzip: bool
    rate: int


@dataclass(frozen=True, slots=True)
class Scrapes:
    """Scrapes of one server: times and its CPU for each in seconds, sizes in bytes, its memory after them.

    `polls_per_second` are those that there were meanwhile.
    """

    server: str
    setting: Setting
    polls_per_second: float
    scrapes: int
    p50: float
    p99: float
    cpu: float
    size: int
    resident: int


def measure(sizes: Sequence[int], seconds: float) -> Part:
    """Measure exporters of about a number of series: each server, encoding and rate for a number of seconds."""
    found = [scrapes for size in sizes for scrapes in _of_size(size, seconds)]
    columns = ("series", "", "polls/s", "KiB", "p50 ms", "p99 ms", "CPU ms")
    ratios = ("p50 to nginx", "CPU to nginx", "prometheus_client's p50 to ours", "its CPU", "its memory")
    lines = [_line(servers) for servers in _together(found)]
    return Part("Scrapes", (*columns, *ratios), lines, list(_targets(found)), [asdict(scrapes) for scrapes in found])


@dataclass(slots=True)
class _Contestant:
    """A server that is scraped in blocks, and the measurements so far."""

    name: str
    server: Server
    client: Client
    rounds: int = _ROUNDS
    seconds: list[float] = field(default_factory=list)
    size: int = 0
    _cpu: float = 0
    _time: float = 0
    _cpu_between: float = 0
    _time_between: float = 0
    _ended: tuple[float, float] | None = None

    def block(self, seconds: float) -> None:
        """Scrape for a number of seconds, at least once; CPU between two blocks is the server's other work."""
        cpu, started = self.server.cpu(), time.perf_counter()
        if self._ended:
            self._cpu_between += cpu - self._ended[0]
            self._time_between += started - self._ended[1]
        while True:
            before = time.perf_counter()
            self.size = len(self.client.get())
            after = time.perf_counter()
            self.seconds.append(after - before)
            time.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311 - a pause
            if after - started > seconds:
                break
        self._ended = self.server.cpu(), time.perf_counter()
        self._cpu += self._ended[0] - cpu
        self._time += self._ended[1] - started

    def cpu(self) -> float:
        """Return the seconds of CPU of a scrape, without the server's other work."""
        besides = self._cpu_between / self._time_between * self._time if self._time_between else 0
        return max(self._cpu - besides, 0) / len(self.seconds)

    def p99(self) -> float:
        """Return the 99th percentile of the times."""
        return sorted(self.seconds)[math.ceil(0.99 * len(self.seconds)) - 1]


def _of_size(series: int, seconds: float) -> Iterator[Scrapes]:
    payload = EMAIL if series <= _SMALL else PUSH
    campaigns = max(math.ceil(series / payload.series), RATES[-1] if series == _SMALL else 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="braze-exporter-bench-")))
        braze = stack.enter_context(fake_braze(folder, payload))
        polled = Workspaces(braze, campaigns, math.ceil(campaigns / _CAMPAIGNS_OF_A_WORKSPACE))
        exporter = stack.enter_context(braze_exporter(folder, polled))
        compressed = bytes(Client(exporter.url, "/metrics", gzip=True).get())
        text = gzip.decompress(compressed)
        there = sum(line.startswith(b"braze_") for line in text.splitlines())
        beside = stack.enter_context(nginx(folder, {"gzip": compressed, "plain": text}))
        for rate in RATES:
            if rate:
                exporter.poll_at(rate)
                time.sleep(min(_SETTLING, seconds))
            with _plain(folder, text, asked=not rate) as plain:
                for encoded in (False, True):
                    yield from _in_turns(exporter, beside, plain, Setting(series, there, encoded, rate), seconds)


@contextmanager
def _plain(folder: Path, exposition: bytes, *, asked: bool) -> Iterator[Server | None]:
    """Run the plain exporter if it is measured."""
    if not asked:
        yield None
        return
    with plain_exporter(folder, exposition) as plain:
        yield plain


def _in_turns(
    exporter: Exporter, beside: Server, plain: Server | None, setting: Setting, seconds: float
) -> Iterator[Scrapes]:
    """Scrape all servers, each for a number of seconds."""
    path = "/gzip" if setting.gzip else "/plain"
    contestants = [
        _Contestant(_OURS, exporter, Client(exporter.url, "/metrics", gzip=setting.gzip)),
        _Contestant(_NGINX, beside, Client(beside.url, path, gzip=setting.gzip)),
    ]
    for contestant in contestants:
        for _ in range(_WARM_UP):
            contestant.client.get()
    if plain and (setting.gzip or setting.series < _ONE_FROM):
        rounds = _ROUNDS if setting.series < _FEW_FROM else 2 if setting.series < _ONE_FROM else 1
        contestants.append(_Contestant(_PLAIN, plain, Client(plain.url, "/metrics", gzip=setting.gzip), rounds))
    answers, started = answered(exporter.workspaces.braze).polls, time.monotonic()
    for turn in range(_ROUNDS):
        for contestant in contestants:
            if turn < contestant.rounds:
                contestant.block(seconds / _ROUNDS)
    polls = (answered(exporter.workspaces.braze).polls - answers) / (time.monotonic() - started)
    for contestant in contestants:
        contestant.client.close()
        yield Scrapes(
            server=contestant.name,
            setting=setting,
            polls_per_second=polls,
            scrapes=len(contestant.seconds),
            p50=statistics.median(contestant.seconds),
            p99=contestant.p99(),
            cpu=contestant.cpu(),
            size=contestant.size,
            resident=contestant.server.resident(),
        )


def _together(found: Sequence[Scrapes]) -> Iterator[Mapping[str, Scrapes]]:
    """Yield the alternating measurements, by the name of the server."""
    for setting in dict.fromkeys(scrapes.setting for scrapes in found):
        yield {scrapes.server: scrapes for scrapes in found if scrapes.setting == setting}


def _line(servers: Mapping[str, Scrapes]) -> Sequence[str]:
    ours, beside, plain = servers[_OURS], servers[_NGINX], servers.get(_PLAIN)
    return (
        f"{ours.setting.series:,}",
        _encoding(ours.setting),
        number(ours.polls_per_second),
        number(ours.size / 1024),
        number(1e3 * ours.p50),
        number(1e3 * ours.p99),
        number(1e3 * ours.cpu),
        times(ours.p50 / beside.p50),
        times(ours.cpu / beside.cpu),
        times(plain.p50 / ours.p50) if plain else "",
        times(plain.cpu / ours.cpu) if plain else "",
        times(plain.resident / ours.resident) if plain else "",
    )


def _targets(found: Sequence[Scrapes]) -> Iterator[Target]:
    for servers in _together(found):
        ours, beside, plain = servers[_OURS], servers[_NGINX], servers.get(_PLAIN)
        setting = ours.setting
        name = f"{setting.wanted_series:,} series, {_encoding(setting)}, {setting.rate} polls/s"
        match setting:
            case Setting(wanted_series=100_000, gzip=True, rate=0 | 10):
                yield Target(f"{name}: p50 to nginx", ours.p50 / beside.p50, f"at most {4 if setting.rate else 2}")
                if plain:
                    yield Target(f"{name}: prometheus_client's p50 to ours", plain.p50 / ours.p50, "at least 500")
            case Setting(wanted_series=500_000, gzip=True):
                yield Target(f"{name}: p50, ms", 1e3 * ours.p50, "below 100")
            case Setting(wanted_series=10_000, rate=400):
                yield Target(f"{name}: p99, ms", 1e3 * ours.p99, "at most 50")
    for encoded in (False, True):
        ours_idle = (_OURS, encoded, 0)
        idle = [one for one in found if (one.server, one.setting.gzip, one.setting.rate) == ours_idle]
        for fewer, more in pairwise(idle):
            counts = f"{more.setting.series:,} to {fewer.setting.series:,} series"
            wanted = f"at most {number(more.size / fewer.size)}, as the bytes"
            yield Target(f"{counts}, {_encoding(more.setting)}: CPU of a scrape", more.cpu / fewer.cpu, wanted)


def _encoding(setting: Setting) -> str:
    return "gzip" if setting.gzip else "plain"
