"""Compare the memory and the scrapes of braze-exporter with those of a plain prometheus_client exporter.

Both serve the same samples, each in a process of its own on loopback: braze-exporter those that it polled from a
simulated Braze, the other one a copy of them in labelled Gauges (plain_exporter.py). Needs Linux.
"""

import argparse
import contextlib
import http.client
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

ROOT = Path(__file__).parents[1]

_SERIES_PER_CAMPAIGN = 75  # the average of the simulated campaigns is a little higher
_SCRAPES_TO_WARM_UP = 3
_STARTING = 600.0  # seconds at most until all campaigns have been polled
_PAUSE = 0.1  # seconds between two looks
_MIB = 1024.0


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves metrics at an address."""

    pid: int
    url: str


@dataclass(frozen=True, slots=True)
class Scrapes:
    """What scrapes in one encoding cost: CPU of the server and time until the last byte, in milliseconds a scrape."""

    cpu: float
    median: float
    p99: float
    size: int


def main() -> None:
    """Measure both and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--series", type=int, default=10_000, help="about so many (default: %(default)s)")
    parser.add_argument("--scrapes", type=int, default=50, help="so many of each kind (default: %(default)s)")
    flags = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="braze-exporter-bench-")))
        configuration = stack.enter_context(_simulated_braze(-(-flags.series // _SERIES_PER_CAMPAIGN), folder))
        ours = stack.enter_context(_braze_exporter(configuration, folder))
        samples = _samples(ours)
        plain = stack.enter_context(_plain_exporter(samples, folder))
        if len(_samples(plain)) != len(samples):
            raise SystemExit("expected both exporters to serve the same samples")
        _print_about(series=len(samples), scrapes=flags.scrapes)
        rows: list[tuple[str, float, float]] = []
        for name, encoding in (("uncompressed", "identity"), ("gzip", "gzip")):
            one, other = (_scrape(server, encoding, flags.scrapes) for server in (ours, plain))
            rows += [
                (f"{name}: CPU a scrape, ms", one.cpu, other.cpu),
                (f"{name}: median time, ms", one.median, other.median),
                (f"{name}: 99th percentile, ms", one.p99, other.p99),
                (f"{name}: size, KiB", one.size / 1024, other.size / 1024),
            ]
        rows.append(("resident memory after that, MiB", _resident(ours), _resident(plain)))
        _print_table(rows)


@contextmanager
def _simulated_braze(campaigns: int, folder: Path) -> Iterator[str]:
    """Run a simulated Braze; yield the configuration that polls it."""
    key = folder / "api-key"
    key.write_text("key-of-the-benchmark", encoding="utf-8")
    flags = (f"--campaigns={campaigns}", f"--api-key-file={key}", "--web.listen-address=127.0.0.1:0")
    with _process("-m", "exporter", "simulate", *flags) as braze:
        yield "".join(takewhile(str.strip, _lines(braze)))  # an empty line ends it


@contextmanager
def _braze_exporter(configuration: str, folder: Path) -> Iterator[Server]:
    """Run braze-exporter until it has polled every campaign."""
    file, log = folder / "config.yaml", folder / "log"
    file.write_text(configuration, encoding="utf-8")
    command = ("-m", "exporter", f"--config.file={file}", "--web.listen-address=127.0.0.1:0")
    with log.open("w", encoding="utf-8") as output, _process(*command, stderr=output) as process:
        deadline = time.monotonic() + _STARTING
        while not (url := _url_when_ready(log)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"expected every campaign to be polled, got:\n{log.read_text(encoding='utf-8')}")
            time.sleep(_PAUSE)
        yield Server(process.pid, url)


def _url_when_ready(log: Path) -> str | None:
    """Return where braze-exporter answers, by its log, once it says that it is ready."""
    found = re.search(r"\bhttp://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8"))
    if found is None:
        return None
    connection = http.client.HTTPConnection(urlsplit(found[0]).netloc, timeout=_STARTING)
    connection.request("GET", "/-/ready")
    with contextlib.closing(connection):
        return found[0] if connection.getresponse().status == http.client.OK else None


@contextmanager
def _plain_exporter(samples: Sequence[Sample], folder: Path) -> Iterator[Server]:
    """Run an exporter of prometheus_client that serves the samples."""
    file = folder / "samples"
    lines = (json.dumps((sample.name, sample.labels, sample.value)) + "\n" for sample in samples)
    file.write_text("".join(lines), encoding="utf-8")
    with file.open(encoding="utf-8") as given, _process("benchmarks/plain_exporter.py", stdin=given) as process:
        yield Server(process.pid, _lines(process).readline().strip())


@contextmanager
def _process(
    *arguments: str, stdin: IO[str] | int = subprocess.DEVNULL, stderr: IO[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run this Python with the arguments, and end it."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _lines(process: subprocess.Popen[str]) -> IO[str]:
    if process.stdout is None:
        raise ValueError("expected a process with its output in a pipe")
    return process.stdout


def _samples(server: Server) -> list[Sample]:
    """Return the samples that both exporters serve: all but those of prometheus_client about the process."""
    _, body = _get(_connection(server), "identity")
    families = text_string_to_metric_families(body.decode())
    return [sample for family in families for sample in family.samples if sample.name.startswith("braze_")]


def _scrape(server: Server, encoding: str, times: int) -> Scrapes:
    """Scrape one time after another, over one connection where the server keeps it, as Prometheus does."""
    connection = _connection(server)
    for _ in range(_SCRAPES_TO_WARM_UP):
        _get(connection, encoding)
    cpu = _cpu_seconds(server)
    seconds, body = zip(*(_get(connection, encoding) for _ in range(times)), strict=True)
    cpu = _cpu_seconds(server) - cpu
    p99 = sorted(seconds)[math.ceil(0.99 * times) - 1]
    return Scrapes(1e3 * cpu / times, 1e3 * statistics.median(seconds), 1e3 * p99, len(body[-1]))


def _connection(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)


def _get(connection: http.client.HTTPConnection, encoding: str) -> tuple[float, bytes]:
    """Return the seconds that one scrape took, and its body as it came."""
    started = time.perf_counter()
    headers = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": encoding}
    connection.request("GET", "/metrics", headers=headers)
    response = connection.getresponse()
    body = response.read()
    seconds = time.perf_counter() - started
    if response.status != http.client.OK or response.headers.get("Content-Encoding", "identity") != encoding:
        raise SystemExit(f"expected status 200 and {encoding}, got {response.status} and {response.headers}")
    return seconds, body


def _cpu_seconds(server: Server) -> float:
    """Return the CPU time of a process, its ended threads included, to the nanosecond: see clock_getcpuclockid(3)."""
    return time.clock_gettime(~server.pid << 3 | 2)


def _resident(server: Server) -> float:
    """Return the resident memory of a process in MiB."""
    (kib,) = re.findall(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{server.pid}/status").read_text("utf-8"), re.MULTILINE)
    return int(kib) / _MIB


def _print_about(*, series: int, scrapes: int) -> None:
    models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    processor = models[0] if models else platform.machine()
    print(f"{series:,} series, {scrapes} scrapes of each kind, in text format 0.0.4, over loopback")
    print(f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs ({processor})\n")


def _print_table(rows: Sequence[tuple[str, float, float]]) -> None:
    print(f"{'':34}{'braze-exporter':>16}{'prometheus_client':>20}{'ratio':>9}")
    for name, ours, plain in rows:
        print(f"{name:34}{ours:16.2f}{plain:20.2f}{plain / ours:9.2f}")


if __name__ == "__main__":
    main()
