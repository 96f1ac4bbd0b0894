"""Measure the effect of responses of 16 MiB on another workspace's numbers, on scrapes and on memory. Needs Linux.

Run it from the repository's folder: python -m benchmarks.large_responses [--checkout=ANOTHER VERSION'S FOLDER]
"""

import argparse
import contextlib
import gzip
import http.client
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date
from pathlib import Path
from urllib.parse import urlsplit

from exporter.simulator.server import Simulator, Status
from exporter.simulator.world import campaign_models, data_series
from tests.support.exporters import KEY
from tests.support.servers import ROOT, Program, eventually, running

_SIZE = 16 * 2**20
_POLL = "interval: 2s, timeout: 8s, stale_after: 10s, concurrency: 32"
_LATEST = b'{"data":[{"time":"2026-03-03","messages":{"email":['
_END = b"]}}]}"
_AGE = re.compile(r'^braze_campaign_last_success_timestamp_seconds\{.*workspace="healthy"\} (.*)$', re.MULTILINE)


def filled(head: bytes, part: Callable[[int], bytes], tail: bytes) -> bytes:
    """Return a body of 16 MiB: a head, numbered parts with commas between them, and a tail."""
    pieces, size, number = [head, part(0)], len(head) + len(part(0)) + len(tail), 1
    while size + len(piece := b"," + part(number)) <= _SIZE:
        pieces.append(piece)
        size += len(piece)
        number += 1
    return b"".join([*pieces, tail])


def rows_of_braze() -> bytes:
    """Return a body of rows as the simulated Braze sends them."""
    answer = data_series(campaign_models(1)[0], date(2026, 3, 3), 1, now=1.8e9, zone=UTC)
    (row,) = re.findall(r'{"variation_[^}]*}', json.dumps(answer, separators=(",", ":")))[:1]
    return filled(_LATEST, lambda number: f'{{"variation_name":"{number}",{row[1:]}'.encode(), _END)


SHAPES: dict[str, Callable[[], bytes]] = {
    "an empty list": lambda: b'{"data":[]}',
    "rows of Braze": rows_of_braze,
    "entries without anything": lambda: filled(b'{"data":[', lambda _: b"{}", b"]}"),
    "rows that are long numbers": lambda: filled(_LATEST, lambda _: b"5" * 40, _END),
    "rows with one number": lambda: filled(_LATEST, lambda n: b'{"variation_name":"%d","sent":1}' % n, _END),
    "one row of 500,000 numbers": lambda: filled(
        _LATEST + b"{", lambda n: b'"the statistic of %d":%d' % (n, n), b"}" + _END
    ),
    "numbers of 4,300 digits": lambda: filled(b'{"data":[],"x":[', lambda _: b"7" * 4300, b"]}"),
    "one text": lambda: b'{"data":[],"text":"' + b"x" * (_SIZE - 22) + b'"}',
    "more than 16 MiB": lambda: b'{"data":[],"text":"' + b"x" * _SIZE + b'"}',
}


def main() -> None:
    """Measure one form of response after another and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--campaigns", type=int, default=32, help="with large responses (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="for each shape (default: %(default)s)")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the folder of the exporter (default: this one)")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="measure this one (default: all)")
    flags = parser.parse_args()
    print(f"{'responses':30}{'MiB':>6}{'oldest numbers':>16}{'slowest scrape':>16}{'most memory':>13}")
    for name in flags.shape or SHAPES:
        body = SHAPES[name]()
        with _running(body, flags.campaigns, flags.checkout) as (program, url), ProcessPoolExecutor(1) as pool:
            age, slowest = pool.submit(_observe, url, flags.seconds).result()
            status = Path(f"/proc/{program.process.pid}/status").read_text(encoding="ascii")
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        print(f"{name:30}{len(body) / 2**20:6.1f}{age:14.1f} s{slowest:14.2f} s{peak:9.0f} MiB", flush=True)


@contextmanager
def _running(body: bytes, campaigns: int, checkout: Path) -> Iterator[tuple[Program, str]]:
    """Run an exporter with a healthy workspace and one whose every response has this body, after its first poll."""
    with (
        tempfile.TemporaryDirectory(prefix="braze-exporter-bench-") as name,
        Simulator(api_key=KEY, campaigns=1) as healthy,
        Simulator(api_key=KEY, campaigns=campaigns) as large,
    ):
        large.misbehave(Status(200, gzip.compress(body, 1), {"Content-Encoding": "gzip"}))
        folder = Path(name)
        (folder / "api-key").write_text(KEY, encoding="utf-8")
        lines = [f"poll: {{{_POLL}}}", "workspaces:"]
        for workspace, braze in (("healthy", healthy), ("large", large)):
            ids = ", ".join(f"{{id: {campaign.id}}}" for campaign in braze.campaigns)
            lines.append(
                f"  - {{name: {workspace}, endpoint: '{braze.url}', api_key_file: api-key, campaigns: [{ids}]}}"
            )
        file = folder / "config.yaml"
        file.write_text("\n".join(lines), encoding="utf-8")
        command = ["env", f"--chdir={checkout}", sys.executable, "-m", "exporter", f"--config.file={file}"]
        with running([*command, "--web.listen-address=127.0.0.1:0"], log=folder / "log") as program:
            url = program.logged(r'\burl"?[=:] ?"?(https?://[^"\s]+)')[1]
            eventually(lambda: _AGE.search(_scrape(url)), what="a first success of the healthy workspace")
            yield program, url


def _observe(url: str, seconds: float) -> tuple[float, float]:
    """Scrape at most ten times a second; return the greatest age of the healthy numbers and the slowest scrape."""
    age = slowest = 0.0
    end = time.monotonic() + seconds
    while (started := time.monotonic()) < end:
        found = _AGE.search(_scrape(url))
        took = time.monotonic() - started
        age, slowest = max(age, time.time() - float(found[1]) if found else 0.0), max(slowest, took)
        time.sleep(max(0.1 - took, 0))
    return age, slowest


def _scrape(url: str) -> str:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


if __name__ == "__main__":
    main()
