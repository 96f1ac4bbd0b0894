"""Run the exporter for half an hour with faults of Braze, reloads, new keys and scrapes, and check that nothing grows.

Run it from the repository's folder: python -m benchmarks.soak --minutes=30. It ends with status 1 and says why when
memory, open files or threads grew, when something went wrong, or when the numbers at the end are not Braze's. Needs
Linux.
"""

import argparse
import gzip
import json
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from exporter.simulator.server import Body, Cut, Drip, Fault, Hang, Latency, Simulator, Status
from tests.support.exporters import Exporter, ask, configure, running_exporter
from tests.support.hostile import attack, crawl
from tests.support.servers import eventually

# What the last quarter of the samples may have more than the second, in the median.
GROWTH = 1.25
# Threads and files that a moment may have more: a request in flight or a connection of each campaign.
MOMENT = 16
CAMPAIGNS = 40
NOW = datetime(2025, 11, 8, 15, tzinfo=UTC).timestamp()
"""Braze's clock stands still, so that its numbers at the end are known."""

_POLL = "interval: 1s, timeout: 2s, stale_after: 10s, concurrency: 8"
_SAMPLES_PER_MINUTE = 60
_FAULTS: tuple[Fault, ...] = (
    Status(500),
    Status(503, b"\0" * 10_000),
    Status(429, headers={"Retry-After": "1"}),
    Status(401),
    Status(400),
    Status(404, b"<html>"),
    Body(b'{"message": "success", "data": ['),
    Body(b'{"message": "success", "data": [{}, 1, null]}'),
    Body(b"[" * 100_000),
    Hang(),
    Cut(),
    Cut(400),
    Drip(0.01),
    Drip(0.05, "headers"),
    Latency(0.3),
)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resources of a process: resident KiB, open files and threads."""

    memory: int
    files: int
    threads: int

    @classmethod
    def of(cls, process: int) -> "Footprint":
        """Measure a process."""
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        fields = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
        files = len([*Path(f"/proc/{process}/fd").iterdir()])
        return cls(int(fields["VmRSS"]), files, int(fields["Threads"]))


@dataclass(frozen=True, slots=True)
class Grown:
    """Growth: the medians of the second and of the last quarter of the samples."""

    what: str
    early: float
    late: float


def grown(samples: Sequence[Footprint], growth: float) -> list[Grown]:
    """Compare the last quarter of the samples with the second: what is more than `growth` times as large has grown."""
    quarter = len(samples) // 4
    medians = [
        [statistics.median(values) for values in zip(*map(astuple, part), strict=True)]
        for part in (samples[quarter : 2 * quarter], samples[-quarter:])
    ]
    compared = zip(("memory (KiB)", "open files", "threads"), *medians, (0, MOMENT, MOMENT), strict=True)
    return [Grown(what, early, late) for what, early, late, more in compared if late > growth * early + more]


def differences(answers: Iterable[tuple[str, bytes]], metrics: str) -> list[str]:
    """Compare Braze's responses, by campaign id, with a scrape: the latest day, for each channel and statistic.

    Raises AssertionError when there is nothing to compare.
    """
    served: Counter[tuple[str, str, str]] = Counter()
    for name, labels, value in re.findall(r"^braze_message_(\w+)\{(.*)\} (\S+)$", metrics, re.MULTILINE):
        pairs = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))
        served[pairs["campaign_id"], pairs["channel"], pairs.get("stat", name)] += int(float(value))
    said: Counter[tuple[str, str, str]] = Counter()
    for campaign_id, body in answers:
        for channel, rows in json.loads(body)["data"][-1]["messages"].items():
            for key, value in ((key, value) for row in rows for key, value in row.items()):
                statistic = re.sub(r"^conversions\d*", "conversions", key)  # all events, which are a label
                if (campaign_id, channel, statistic) in served and isinstance(value, int):
                    said[campaign_id, channel, statistic] += value
    assert len(said) > CAMPAIGNS, "expected statistics of all campaigns"  # noqa: S101 - no proof without them
    return [
        f"{' '.join(key)}: Braze says {value}, served is {served[key]}"
        for key, value in said.items()
        if served[key] != value
    ]


class Soak:
    """An exporter, its Braze, and what is done to them, each in a thread of its own, until it is stopped."""

    def __init__(self, exporter: Exporter, braze: Simulator, folder: Path, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self._exporter = exporter
        self._braze = braze
        self._folder = folder
        self._seed = seed
        self._stopped = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run all disturbances while the context lasts."""
        work: dict[str, tuple[Callable[[random.Random], object], float]] = {
            "faults": (self._trouble, 0.3),
            "reloads": (self._reload, 2),
            "new keys": (self._replace_key, 5),
            "scrapes": (self._scrape, 0.1),
            "pages": (self._look, 0.5),
        }
        threads = [threading.Thread(target=self._repeat, args=(name, *each)) for name, each in work.items()]
        url = urlsplit(self._exporter.url)
        slow = partial(crawl, text=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", pause=0.02)
        with attack((str(url.hostname), url.port or 0), 10, slow, again=True):
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stopped.set()
                for thread in threads:
                    thread.join()

    def _repeat(self, name: str, act: Callable[[random.Random], object], pause: float) -> None:
        chance = random.Random(f"{self._seed} {name}")  # noqa: S311 - no secret
        while not self._stopped.wait(chance.uniform(0, 2 * pause)):
            try:
                act(chance)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                self.problems.append(f"{name}: {error!r}")
            self.done[name] += 1

    def _trouble(self, chance: random.Random) -> None:
        if not chance.randrange(10):
            self._braze.behave()
        one = chance.choice(self._braze.campaigns).id if chance.randrange(20) else None
        self._braze.misbehave(chance.choice(_FAULTS), campaign_id=one, times=chance.randint(1, 20))

    def _reload(self, chance: random.Random) -> None:
        names = {campaign.id: campaign.name for campaign in self._braze.campaigns}
        some = dict(chance.sample(sorted(names.items()), chance.randint(1, len(names))))
        kind = chance.randrange(5)
        if kind == 0:
            (self._folder / "config.yaml").write_text("- nonsense\n", encoding="utf-8")
        else:
            self.configure(
                poll=_POLL.replace("8", str(2**kind)),
                names=some if kind in {1, 2} else {each: f"{name} again" for each, name in names.items()},
            )
        if chance.randrange(2):
            self._exporter.program.process.send_signal(signal.SIGHUP)
            return
        status = self._exporter.ask("/-/reload", method="POST").status_code
        if status not in ({500} if kind == 0 else {200}):
            self.problems.append(f"a reload: status {status}")

    def configure(self, *, poll: str = _POLL, names: Mapping[str, str] | None = None) -> None:
        """Write a configuration, with the key that is in force."""
        configure(self._folder, self._braze, poll=poll, names=names)
        (self._folder / "api-key").write_text(self._braze.api_key, encoding="utf-8")

    def _replace_key(self, chance: random.Random) -> None:
        self._braze.api_key = f"key-{chance.getrandbits(64):x}"
        (self._folder / "api-key").write_text(self._braze.api_key, encoding="utf-8")

    def _scrape(self, chance: random.Random) -> None:
        openmetrics, compressed = chance.choice([True, False]), chance.choice([True, False])
        accept = "application/openmetrics-text;version=1.0.0" if openmetrics else "text/plain"
        answer = self._exporter.ask(Accept=accept, Accept_Encoding="gzip" if compressed else "identity")
        body = gzip.decompress(answer.content) if compressed else answer.content
        if not answer.ok or body.endswith(b"# EOF\n") != openmetrics or b"braze_exporter_" not in body:
            self.problems.append(f"a scrape: status {answer.status_code}, the body ends with {body[-100:]!r}")

    def _look(self, chance: random.Random) -> None:
        path = chance.choice(["/", "/config", "/-/healthy", "/-/ready", "/nowhere"])
        status = self._exporter.ask(path).status_code
        if status != (404 if path == "/nowhere" else 200):
            self.problems.append(f"{path}: status {status}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak an exporter, print its resources each minute, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=30, help="for so long (default: %(default)s)")
    parser.add_argument("--growth", type=float, default=GROWTH, help="ratio that is too much (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what is done when (default: %(default)s)")
    flags = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as name,
        Simulator(campaigns=CAMPAIGNS, clock=lambda: NOW, data_series_per_minute=10**9) as braze,
    ):
        folder = Path(name)
        file = configure(folder, braze, poll=_POLL)
        (folder / "api-key").write_text(braze.api_key, encoding="utf-8")
        with running_exporter(file, "--web.enable-lifecycle", "--web.write-timeout=5s") as exporter:
            soak = Soak(exporter, braze, folder, flags.seed)
            with soak.running():
                samples = list(_watched(exporter, soak, flags.minutes))
            wrong = [*soak.problems[:10], *_wrong_at_the_end(exporter, braze, soak)]
            exporter.program.process.terminate()
            status = exporter.program.process.wait(60)
            output = exporter.program.output()
    grew = [f"{each.what} grew from {each.early:,.0f} to {each.late:,.0f}" for each in grown(samples, flags.growth)]
    traces = ["the log has a traceback"] if "Traceback" in output else []
    ended = [f"it ended with status {status}"] if status else []
    wrong += [*grew, *traces, *ended]
    print("\n".join(wrong) or "Nothing grew, nothing went wrong, and the numbers are Braze's.")
    return 1 if wrong else 0


def _watched(exporter: Exporter, soak: Soak, minutes: float) -> Iterator[Footprint]:
    """Yield the exporter's resources each second, and print them each minute."""
    process = exporter.program.process
    for number in range(1, max(8, round(minutes * _SAMPLES_PER_MINUTE)) + 1):
        time.sleep(60 / _SAMPLES_PER_MINUTE)
        if process.poll() is not None:
            raise SystemExit(
                f"the exporter ended with status {process.returncode}:\n{exporter.program.output()[-5000:]}"
            )
        yield (held := Footprint.of(process.pid))
        if number % _SAMPLES_PER_MINUTE == 0:
            done = ", ".join(f"{count:,} {name}" for name, count in sorted(soak.done.items()))
            holds = f"{held.memory // 1024} MiB, {held.files} open files, {held.threads} threads"
            print(f"minute {number // _SAMPLES_PER_MINUTE} of {minutes:g}: {holds}; {done}", flush=True)


def _wrong_at_the_end(exporter: Exporter, braze: Simulator, soak: Soak) -> list[str]:
    """Let Braze behave, wait until every campaign is polled with success, and compare the numbers."""
    braze.behave()
    soak.configure()
    exporter.ask("/-/reload", method="POST")
    up = [f'braze_campaign_up{{campaign_id="{campaign.id}"' for campaign in braze.campaigns]

    def recovered() -> bool:
        lines = exporter.ask().text.split("\n")
        return all(any(line.startswith(start) and line.endswith(" 1.0") for line in lines) for start in up)

    try:
        eventually(recovered, what="all campaigns polled with success after the trouble", timeout=120)
    except AssertionError as error:
        return [str(error)]
    path = f"{braze.url}/campaigns/data_series?length=1&campaign_id="
    answers = [
        (campaign.id, ask(path + campaign.id, Authorization=f"Bearer {braze.api_key}").content)
        for campaign in braze.campaigns
    ]
    return differences(answers, exporter.ask().text)


if __name__ == "__main__":
    sys.exit(main())
