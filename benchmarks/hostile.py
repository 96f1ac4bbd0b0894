"""Measure scrapes while hostile clients are connected, and their cost in memory and open files. Needs Linux.

Run it from the repository's folder: python -m benchmarks.hostile
"""

import argparse
import contextlib
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from exporter.simulator.server import Simulator
from tests.support.exporters import KEY, Exporter, configure, running_exporter
from tests.support.hostile import Behaviour, attack, crawl, drip, handshake, hold

_LARGE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
_ATTACKS: dict[str, tuple[int, Behaviour]] = {
    "none": (0, hold),
    "500 of one byte a second": (500, drip),
    "500 handshakes without an end": (500, handshake),
    "headers of a megabyte, 50 at once": (50, partial(hold, text=b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000)),
    "500 that read a kilobyte a second": (500, partial(crawl, text=_LARGE)),
    "500 that read nothing, 20 requests each": (500, partial(crawl, text=20 * _LARGE, pause=3600)),
    "2000 connections that do nothing": (2000, hold),
}


def main() -> None:
    """Measure one attack after another and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--campaigns", type=int, default=130, help="so many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of each attack (default: %(default)s)")
    flags = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="braze-exporter-bench-") as folder,
        Simulator(api_key=KEY, campaigns=flags.campaigns) as braze,
        running_exporter(configure(Path(folder), braze)) as exporter,
        ProcessPoolExecutor(1) as pool,
    ):
        print(f"{len(exporter.ask().content) / 2**20:.1f} MiB, median and greatest time of a scrape in ms\n")
        print(f"{'attack':42}{'scrapes':>8}{'median':>8}{'most':>8}{'MiB':>8}{'files':>8}{'MiB after':>11}")
        for name, (clients, behaviour) in _ATTACKS.items():
            address = urlsplit(exporter.url)
            with attack((str(address.hostname), address.port or 0), clients, behaviour, again=True):
                times = pool.submit(_scrapes, exporter.url, flags.seconds).result()  # apart: attackers are busy
                during = _resident(exporter), _open_files(exporter)
            time.sleep(1)
            print(
                f"{name:42}{len(times):8}{1e3 * statistics.median(times):8.1f}{1e3 * max(times):8.1f}"
                f"{during[0]:8.0f}{during[1]:8}{_resident(exporter):11.0f}",
                flush=True,
            )


def _scrapes(url: str, seconds: float) -> Sequence[float]:
    """Return the seconds of scrapes, each over a new connection, at most ten a second."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
            connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
            connection.getresponse().read()
        times.append(time.perf_counter() - started)
        time.sleep(max(0.1 - times[-1], 0))
    return times


def _resident(exporter: Exporter) -> float:
    status = Path(f"/proc/{exporter.program.process.pid}/statm").read_text(encoding="ascii")
    return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _open_files(exporter: Exporter) -> int:
    return sum(1 for _ in Path(f"/proc/{exporter.program.process.pid}/fd").iterdir())


if __name__ == "__main__":
    main()
