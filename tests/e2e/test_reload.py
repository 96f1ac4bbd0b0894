"""Reloads of a running exporter: by signal and over HTTP, good files and bad ones, and two hundred in a row."""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.simulator.server import Hang, Latency, Simulator
from tests.support.exporters import KEY, Exporter, config_check, configure, running_exporter
from tests.support.servers import eventually
from tests.support.system import hung_file, reads

pytestmark = pytest.mark.server

RELOADED = "the configuration was reloaded"
SUCCESSFUL = "braze_exporter_config_last_reload_successful"
SUCCEEDED_AT = "braze_exporter_config_last_reload_success_timestamp_seconds"
BUSY = "interval: 1s, timeout: 2s, stale_after: 10s, concurrency: 8"
RELOADS = 200


@pytest.fixture
def braze() -> Iterator[Simulator]:
    """A simulated Braze."""
    with Simulator(api_key=KEY, campaigns=20) as simulator:
        yield simulator


def names_of(braze: Simulator) -> dict[str, str]:
    """Return the names of the campaigns by id."""
    return {campaign.id: campaign.name for campaign in braze.campaigns}


def reload(exporter: Exporter) -> tuple[int, str]:
    """Request a reload; return status and text of the response."""
    answer = exporter.ask("/-/reload", method="POST")
    return answer.status_code, answer.text


def shown(exporter: Exporter) -> set[str]:
    """Return the ids of the campaigns that /metrics knows."""
    return {series.split('"')[1] for series in exporter.samples("braze_campaign_polls_total")}


def test_over_http(tmp_path: Path, braze: Simulator) -> None:
    """When POST /-/reload returns 200 the new file is in force; with a bad file only the metrics of reloads change."""
    names = names_of(braze)
    others = list(names)[1:]
    file = configure(tmp_path, braze)
    with running_exporter(file, "--web.enable-lifecycle") as exporter:
        started = exporter.samples("braze_exporter_config")
        configure(tmp_path, braze, names={name: names[name] for name in others})
        good = reload(exporter)
        after = shown(exporter)
        times = exporter.samples("braze_exporter_config")
        file.write_text(f"{file.read_text()}      - {{id: nonsense}}\nunknown: 1\n", encoding="utf-8")
        bad = reload(exporter)
        refused = exporter.samples("braze_exporter_config")
        kept = shown(exporter)
        check = config_check(file)
        wrong = [exporter.ask("/-/reload", method=method) for method in ("GET", "PUT", "DELETE")]
        configure(tmp_path, braze)
        again = reload(exporter)
        repaired = exporter.samples("braze_exporter_config")
        ready = exporter.ready()

    assert (good, again) == ((200, "The configuration was reloaded.\n"),) * 2
    assert bad == (500, check.stderr)
    assert "nonsense" in bad[1]
    assert "unknown" in bad[1]
    assert after == kept == set(others)
    assert [samples[SUCCESSFUL] for samples in (started, times, refused, repaired)] == ["1.0", "1.0", "0.0", "1.0"]
    assert float(started[SUCCEEDED_AT]) < float(times[SUCCEEDED_AT]) < float(repaired[SUCCEEDED_AT])
    assert times[SUCCEEDED_AT] == refused[SUCCEEDED_AT]
    assert [(answer.status_code, answer.headers["Allow"]) for answer in wrong] == [(405, "POST")] * 3
    assert ready


def test_only_if_it_is_allowed(tmp_path: Path, braze: Simulator) -> None:
    """Without --web.enable-lifecycle a POST is refused in words that name the flag, and reads nothing."""
    file = configure(tmp_path, braze)
    with running_exporter(file) as exporter:
        file.write_text("nonsense", encoding="utf-8")
        status, text = reload(exporter)
        samples = exporter.samples(SUCCESSFUL)

    assert status == 403
    assert "--web.enable-lifecycle" in text
    assert samples == {SUCCESSFUL: "1.0"}


def test_by_signal(tmp_path: Path, braze: Simulator) -> None:
    """SIGHUP reloads: a good file is in force soon, and a bad one is told in the log and in a metric."""
    names = names_of(braze)
    others = list(names)[1:]
    file = configure(tmp_path, braze)
    with running_exporter(file) as exporter:
        configure(tmp_path, braze, names={name: names[name] for name in others})
        exporter.program.process.send_signal(signal.SIGHUP)
        eventually(lambda: shown(exporter) == set(others), what="a campaign less")
        file.write_text("nonsense", encoding="utf-8")
        exporter.program.process.send_signal(signal.SIGHUP)
        exporter.program.logged("reload failed, keeping the previous configuration")
        refused = exporter.samples(SUCCESSFUL)
        configure(tmp_path, braze)
        for _ in range(50):  # a crowd of signals is a reload or a few, and no deadlock
            exporter.program.process.send_signal(signal.SIGHUP)
        eventually(lambda: shown(exporter) == set(names), what="all campaigns")
        ended = exporter.program.process.poll()
        output = exporter.program.output()

    assert refused == {SUCCESSFUL: "0.0"}
    assert ended is None
    assert re.findall(r"campaigns_added=(\d+) campaigns_removed=(\d+)", output)[0] == ("0", "1")
    assert KEY not in output


def test_by_a_change_of_the_file(tmp_path: Path, braze: Simulator) -> None:
    """With --config.auto-reload-interval a changed file is in force soon; an unchanged one is not read again."""
    others = dict(list(names_of(braze).items())[1:])
    with running_exporter(configure(tmp_path, braze), "--config.auto-reload-interval=1s") as exporter:
        configure(tmp_path, braze, names=others)
        eventually(lambda: shown(exporter) == set(others), what="a campaign less")
        output = exporter.program.output()

    assert output.count(RELOADED) == 1


def test_a_file_that_hangs(tmp_path: Path, braze: Simulator) -> None:
    """A file that is read without an end delays no scrape; its reload fails, and a stop does not wait for it."""
    file = configure(tmp_path, braze)
    with (
        running_exporter(file, "--web.enable-lifecycle") as exporter,
        ThreadPoolExecutor() as pool,
        hung_file(file),
    ):
        reloading = pool.submit(reload, exporter)
        eventually(lambda: reads(exporter.program.process.pid, file), what="a read that hangs")
        scrapes = [exporter.ask().ok for _ in range(5)]
        while_scraped = not reloading.done()
        status, text = reloading.result()
        samples = exporter.samples(SUCCESSFUL)
        stopped = pool.submit(exporter.ask, "/-/reload", method="POST")
        eventually(stopped.running, what="another reload")
        exporter.program.process.send_signal(signal.SIGTERM)
        ended = exporter.program.process.wait(20)
        assert isinstance(stopped.exception(), requests.RequestException)

    assert scrapes == [True] * 5
    assert while_scraped
    assert (status, "does not respond within 5 s" in text) == (500, True)
    assert samples == {SUCCESSFUL: "0.0"}
    assert ended == 0


def test_a_signal_before_the_first_round(tmp_path: Path, braze: Simulator) -> None:
    """A signal during the first poll of the campaigns also reloads."""
    names = names_of(braze)
    hanging, *others = names
    braze.misbehave(Hang(), campaign_id=hanging)
    file = configure(tmp_path, braze)
    with running_exporter(file, ready=False) as exporter:
        eventually(lambda: len(braze.requests) == len(names), what="all requests")
        configure(tmp_path, braze, names={name: names[name] for name in others})
        exporter.program.process.send_signal(signal.SIGHUP)
        eventually(exporter.ready, what="an exporter that does not wait for what is gone")

        assert shown(exporter) == set(others)


def test_of_a_shard(tmp_path: Path, braze: Simulator) -> None:
    """A shard stays the shard that it is."""
    names = names_of(braze)
    with running_exporter(configure(tmp_path, braze), "--web.enable-lifecycle", "--total-shards=2") as exporter:
        before = shown(exporter)
        configure(tmp_path, braze, names=dict(list(names.items())[10:]))
        status = reload(exporter)[0]

        assert status == 200
        assert shown(exporter) == before & set(list(names)[10:])


def test_warnings(tmp_path: Path, braze: Simulator) -> None:
    """What is warned of at the start is not repeated with each reload."""
    file = configure(tmp_path, braze, poll="interval: 1s, timeout: 1s")
    file.write_text(file.read_text().replace("    campaigns:", "    requests_per_minute: 600\n    campaigns:"))
    with running_exporter(file, "--web.enable-lifecycle") as exporter:
        for _ in range(3):
            assert reload(exporter)[0] == 200
        output = exporter.program.output()

    assert output.count(RELOADED) == 3
    assert output.count("requests a minute are polled every") == 1


@dataclass(slots=True)
class Footprint:
    """Resources of a process: threads, open files, and resident KiB."""

    threads: int
    files: int
    memory: int

    @classmethod
    def of(cls, process: int) -> "Footprint":
        """Look at a process."""
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        fields = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
        return cls(int(fields["Threads"]), len(list(Path(f"/proc/{process}/fd").iterdir())), int(fields["VmRSS"]))


@dataclass(slots=True)
class Scraper:
    """Errors of scrapes, and the number of scrapes."""

    exporter: Exporter
    scrapes: int = 0
    problems: list[str] = field(default_factory=list)

    def run(self, stopped: threading.Event) -> None:
        """Scrape until stopped; each response must be complete, with each label set once."""
        while not stopped.is_set():
            try:
                answer = self.exporter.ask()
                answer.raise_for_status()
                samples = [
                    (sample.name, *sorted(sample.labels.items()))
                    for found in parse_text(answer.text)
                    for sample in found.samples
                ]
                if len(samples) != len(set(samples)):
                    self.problems.append("a label set twice")
                if not self.exporter.ready():
                    self.problems.append("not ready any more")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed scrape
                self.problems.append(repr(error))
            self.scrapes += 1


@contextmanager
def scraping(exporter: Exporter) -> Iterator[Scraper]:
    """Scrape all the time while the context lasts."""
    scraper, stopped = Scraper(exporter), threading.Event()
    thread = threading.Thread(target=scraper.run, args=(stopped,))
    thread.start()
    try:
        yield scraper
    finally:
        stopped.set()
        thread.join()


def within(footprint: Footprint, before: Footprint) -> bool:
    """Return whether threads and open files are as before, but for a thread and a connection of each poll."""
    return footprint.threads <= before.threads + 8 and footprint.files <= before.files + 2 * 8


def variants(braze: Simulator, other: Simulator) -> list[Callable[[Path], object]]:
    """Return a function that writes files that differ in every way."""
    names = names_of(braze)
    half = dict(list(names.items())[::2])
    renamed = {name: f"{text} again" for name, text in names.items()}

    def second_workspace(folder: Path) -> None:
        file = configure(folder, braze, poll=BUSY)
        more = configure(folder / "more", other, workspace="second").read_text(encoding="utf-8")
        key = f"api_key_file: {folder / 'api-key'}"
        file.write_text(file.read_text() + more.partition("workspaces:\n")[2].replace("api_key_file: api-key", key))

    def without_key(folder: Path) -> None:
        file = configure(folder, braze, poll=BUSY)
        file.write_text(file.read_text().replace("api_key_file: api-key", "api_key_file: nowhere"))

    return [
        lambda folder: configure(folder, braze, poll=BUSY),
        lambda folder: configure(folder, braze, poll=BUSY, names=half),
        lambda folder: configure(folder, braze, poll=BUSY, names=renamed),
        lambda folder: configure(folder, other, poll=BUSY, names=names),
        lambda folder: configure(folder, braze, poll=f"{BUSY}, previous_day: false"),
        lambda folder: configure(folder, braze, poll=BUSY.replace("1s", "2s", 1).replace("8", "2")),
        second_workspace,
        without_key,
        lambda folder: (folder / "config.yaml").write_text("- nonsense\n", encoding="utf-8"),
        lambda folder: configure(folder, braze, workspace="renamed", poll=BUSY),
    ]


def test_two_hundred_in_a_row(tmp_path: Path, braze: Simulator) -> None:
    """Whatever changes, while polls and scrapes run: no scrape fails, and threads, files and memory come back."""
    (tmp_path / "more").mkdir()
    braze.misbehave(Latency(0.05))
    with Simulator(api_key=KEY, campaigns=20) as other:
        writers = variants(braze, other)
        writers[0](tmp_path)
        with running_exporter(tmp_path / "config.yaml", "--web.enable-lifecycle") as exporter:
            process = exporter.program.process.pid
            eventually(lambda: len(braze.requests) > 60, what="some rounds")
            first = Footprint.of(process)
            with scraping(exporter) as scraper:
                statuses: dict[int, set[int]] = {}
                for turn in range(RELOADS):
                    place = turn % len(writers)
                    writers[place](tmp_path)
                    statuses.setdefault(place, set()).add(reload(exporter)[0])
                    if turn == RELOADS // 4:
                        early = Footprint.of(process)
            writers[0](tmp_path)
            last = reload(exporter)
            late = Footprint.of(process)
            eventually(
                lambda: within(Footprint.of(process), first),
                what="threads and open files that come back",
            )
            polls = exporter.samples("braze_api_requests_total")
            eventually(lambda: exporter.samples("braze_api_requests_total") != polls, what="polls that go on")

            assert shown(exporter) == set(names_of(braze))
            output = exporter.program.output()

    assert last[0] == 200
    assert statuses == {place: {500 if place in {7, 8} else 200} for place in range(len(writers))}
    assert scraper.problems == []
    assert scraper.scrapes > 20
    assert late.memory < 1.3 * early.memory + 8 * 1024
    assert "traceback" not in output.lower()
