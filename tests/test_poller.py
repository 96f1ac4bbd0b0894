"""Tests of exporter.poller: a simulated Braze over real HTTP on one side, what a scrape would get on the other.

`data/goldens/*.yaml` are configurations that name an example answer; the text beside them is what is served then.
"""

import gzip
import itertools
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter import config
from exporter.braze.errors import Reason
from exporter.config import Config
from exporter.exposition import Exposition, Format
from exporter.poller import Poller
from exporter.publisher import Publisher
from exporter.reload import compare
from exporter.schedule import slot
from exporter.simulator.server import Body, Cut, Drip, Fault, Hang, Latency, Simulator, Status
from exporter.state import CampaignState, Clock
from exporter.system import threads
from exporter.system.threads import NoThreadError, Start
from tests.support.servers import eventually

pytestmark = pytest.mark.server

DATA = Path(__file__).parent / "data"
GOLDENS = DATA / "goldens"
KEY = "9f1b-secret-c0ffee-4d5e-api-key"
NOON = 1772539200.0
"""3 March 2026, 12:00 UTC."""


@dataclass(slots=True)
class Polling:
    """A poller that runs, and what it publishes."""

    poller: Poller
    exposition: Exposition
    crashes: list[BaseException] = field(default_factory=list)

    def text(self, form: Format = Format.TEXT) -> str:
        """Return what a scrape would get of the campaigns."""
        return b"".join(self.exposition.snapshot().pieces(form)).decode()

    def state(self, campaign_id: str) -> CampaignState:
        """Return what is known of a campaign."""
        return next(state for state in self.poller.campaigns if state.campaign_id == campaign_id)

    def samples(self, campaign_id: str) -> dict[str, str]:
        """Return the series and values of one campaign that are Braze's numbers."""
        lines = (line.rpartition(" ") for line in self.text().splitlines() if campaign_id in line)
        numbers = re.compile("braze_(message|campaign_(unique|revenue|conv|other|day)|previous)")
        return {series: value for series, _, value in lines if numbers.match(series)}

    def failed(self, campaign_id: str) -> bool:
        """Say whether a campaign's last poll failed."""
        return self.state(campaign_id).failure is not None

    def empty(self, campaign_id: str) -> bool:
        """Say whether nothing of a campaign's numbers is shown."""
        return not self.samples(campaign_id)

    def ready(self) -> bool:
        """Say whether the first round is over."""
        return self.poller.ready


@dataclass(slots=True)
class SleepingClock:
    """A clock that can be put forward, as it is when the machine has slept; it counts how often it is looked at."""

    asleep: float = 0.0
    looks: int = 0

    def __call__(self) -> float:
        """Return seconds."""
        self.looks += 1
        return time.monotonic() + self.asleep


class FewThreads:
    """Starts threads, but only so many."""

    def __init__(self, allowed: float) -> None:
        self.allowed = allowed
        self.refused = 0

    def __call__(self, run: Callable[[], object], name: str) -> None:
        """Start a thread, or raise what the system raises where it allows no more."""
        if self.allowed < 1:
            self.refused += 1
            raise NoThreadError(name, "can't start new thread")
        self.allowed -= 1
        threads.start(run, name)


@contextmanager
def polling(
    loaded: Config,
    *,
    wall: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    start_thread: Start = threads.start,
) -> Iterator[Polling]:
    """Poll by a configuration; an exception that ends a thread fails the test."""
    publisher = Publisher(loaded.limits)
    crashes: list[BaseException] = []
    poller = Poller(
        loaded,
        environ={},
        clock=Clock(wall, monotonic),
        publisher=publisher,
        fatal=crashes.append,
        start_thread=start_thread,
    )
    poller.start()
    try:
        yield Polling(poller, publisher.exposition, crashes)
    finally:
        poller.stop()
    assert not crashes


def configured(
    folder: Path, braze: Simulator, *, poll: str = "", workspace: str = "", campaigns: Mapping[str, str] | None = None
) -> Config:
    """Load a configuration that polls campaigns of a simulated Braze; all of them where none are given."""
    (folder / "api-key").write_text(KEY, encoding="utf-8")
    ids = campaigns or {campaign.id: f"Campaign {number}" for number, campaign in enumerate(braze.campaigns)}
    lines = "".join(f"      - {{id: {campaign_id}, name: {name}}}\n" for campaign_id, name in ids.items())
    (folder / "config.yaml").write_text(
        f"poll: {{{poll}}}\nworkspaces:\n  - name: main\n    endpoint: {braze.url}\n    api_key_file: api-key\n"
        f"    {workspace}\n    campaigns:\n{lines}",
        encoding="utf-8",
    )
    return config.load(folder / "config.yaml", {})


@pytest.fixture
def braze() -> Iterator[Simulator]:
    """A simulated Braze with a dozen campaigns."""
    with Simulator(api_key=KEY) as simulator:
        yield simulator


QUICK = "interval: 1s, timeout: 1s, stale_after: 3s"
PATIENT = "interval: 1s, timeout: 30s, stale_after: 1h"


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDENS.glob("*.yaml")))
def test_golden(name: str, tmp_path: Path, update_goldens: bool) -> None:  # noqa: FBT001 - a fixture
    """A configuration and an answer of Braze lead to exactly this exposition, and parsers read it in both formats."""
    text = (GOLDENS / f"{name}.yaml").read_text(encoding="utf-8")
    payload = (DATA / "payloads" / re.findall("^# payload: (.*)$", text, re.MULTILINE)[0]).read_bytes()
    status = re.findall("^# status: (.*)$", text, re.MULTILINE)
    with Simulator(api_key=KEY) as braze:
        braze.misbehave(Status(int(status[0]), payload) if status else Body(payload))
        (tmp_path / "api-key").write_text(KEY, encoding="utf-8")
        (tmp_path / "config.yaml").write_text(text.replace("ENDPOINT", braze.url), encoding="utf-8")
        with polling(config.load(tmp_path / "config.yaml", {}), wall=lambda: NOON) as run:
            eventually(run.ready, what="the end of the first round")
            actual = {".txt": run.text(), ".openmetrics.txt": run.text(Format.OPENMETRICS) + "# EOF\n"}

    assert list(parse_text(actual[".txt"]))
    assert list(parse_openmetrics(actual[".openmetrics.txt"]))  # type: ignore[no-untyped-call]
    for ending, exposition in actual.items():
        golden = GOLDENS / f"{name}{ending}"
        if update_goldens:
            golden.write_text(exposition, encoding="utf-8")

        assert golden.read_text(encoding="utf-8") == exposition


FAULTS: dict[str, tuple[Fault, str]] = {
    "bad_request": (Status(400), "bad_request"),
    "payment required": (Status(402), "bad_request"),
    "forbidden": (Status(403), "forbidden"),
    "not_found": (Status(404), "not_found"),
    "server_error": (Status(500), "server_error"),
    "redirect": (Status(302, headers={"Location": "http://127.0.0.1:1/"}), "redirect"),
    "no content": (Status(204, b""), "bad_payload"),
    "broken JSON": (Body(b'{"message": "success", "data": ['), "bad_payload"),
    "HTML": (Body(b"<html>maintenance</html>", "text/html"), "bad_payload"),
    "wrong shape": (Body(b'{"message": "success", "data": {"time": "2026-03-03"}}'), "bad_payload"),
    "too many brackets": (Body(b"[" * 100_000), "bad_payload"),
    "too many digits": (Body(b'{"data": [' + b"1" * 5000 + b"]}"), "bad_payload"),
    "20 MiB": (Body(b" " * (20 * 1024 * 1024)), "too_large"),
    "hang": (Hang(), "timeout"),
    "late": (Latency(10), "timeout"),
    "dripping headers": (Drip(0.05, "headers"), "timeout"),
    "dripping body": (Drip(0.05, "body"), "timeout"),
    "cut before the answer": (Cut(0), "connection"),
    "cut in the headers": (Cut(20), "connection"),
    "cut in the body": (Cut(400), "connection"),
}


def test_a_failing_campaign_keeps_its_numbers_until_they_are_stale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of failure counts its reason once a poll, keeps old numbers for a while, and touches nobody else."""
    caplog.set_level("DEBUG", "exporter")
    with Simulator(api_key=KEY, campaigns=len(FAULTS) + 1) as braze:
        ids = dict(zip(FAULTS, (campaign.id for campaign in braze.campaigns), strict=False))
        healthy = braze.campaigns[-1].id
        with polling(configured(tmp_path, braze, poll="interval: 2s, timeout: 2s, stale_after: 6s")) as run:
            eventually(run.ready, what="the end of the first round")
            good = {name: set(run.samples(campaign_id)) for name, campaign_id in ids.items()}
            begins = {}
            for name, (fault, _) in FAULTS.items():
                braze.misbehave(fault, campaign_id=ids[name])
                begins[name] = time.monotonic()
            for name, campaign_id in ids.items():
                eventually(partial(run.failed, campaign_id), what=f"a failure of {name}")
                kept = set(run.samples(campaign_id))

                assert (name, list(run.state(campaign_id).failures)) == (name, [FAULTS[name][1]])
                assert good[name] == kept
            for campaign_id in ids.values():
                eventually(partial(run.empty, campaign_id), what="stale numbers to go")
            states = {campaign_id: run.state(campaign_id) for campaign_id in (*ids.values(), healthy)}
            text = run.text()

            assert run.samples(healthy)
            assert states[healthy].failures == {}
            assert states[healthy].up
        for name, campaign_id in ids.items():
            state = states[campaign_id]
            asked = [request for request in braze.requests if request.campaign_id == campaign_id]
            failures = sum(state.failures.values())
            before = sum(request.time < begins[name] for request in asked)  # the last of them may have met the fault

            assert f'braze_campaign_up{{campaign_id="{campaign_id}"' in text
            assert state.up is False
            assert state.last_success is not None
            assert before - 1 <= state.polls - failures <= before
            if FAULTS[name][1] not in {"server_error", "connection"}:  # these are retried
                assert 0 <= len(asked) - state.polls <= 1, "one failure for each request, but for one still under way"
        assert KEY not in text
        assert KEY not in caplog.text


def test_recovery(tmp_path: Path, braze: Simulator) -> None:
    """After a failure the next good answer puts everything right; the counters go on."""
    victim = braze.campaigns[0].id
    with polling(configured(tmp_path, braze, poll=QUICK)) as run:
        eventually(run.ready, what="the end of the first round")
        braze.misbehave(Status(404), campaign_id=victim)
        eventually(lambda: not run.samples(victim), what="stale numbers to go")
        braze.behave()
        eventually(lambda: run.samples(victim), what="the numbers to be back")
        state = run.state(victim)

    assert state.up
    assert state.failure is None
    assert list(state.failures) == ["not_found"]


def test_a_retry_saves_the_poll(tmp_path: Path, braze: Simulator) -> None:
    """A single 5xx or cut connection is retried within the poll and fails nothing."""
    braze.misbehave(Status(503), times=1, campaign_id=braze.campaigns[0].id)
    braze.misbehave(Cut(), times=2, campaign_id=braze.campaigns[1].id)
    with polling(configured(tmp_path, braze)) as run:
        eventually(run.ready, what="the end of the first round")
        states = run.poller.campaigns

    assert all(state.up and not state.failures for state in states)
    assert len(braze.requests) == len(states) + 3


def test_unauthorized(tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """After a 401 one request an interval is made, the numbers stay a while, and a replaced key file ends it."""
    caplog.set_level("DEBUG", "exporter")
    with polling(configured(tmp_path, braze, poll="interval: 2s, timeout: 1s, stale_after: 20s")) as run:
        eventually(run.ready, what="the end of the first round")
        braze.api_key = "the-new-key-that-braze-wants"
        eventually(lambda: run.poller.workspaces[0].paused, what="the workspace to pause")
        settled = len(refused(braze))
        eventually(lambda: len(refused(braze)) >= settled + 2, what="two probes")
        times = refused(braze)[settled:]
        shown = [run.samples(campaign.id) for campaign in braze.campaigns]
        up = run.poller.workspaces[0].up
        text = run.text()
        (tmp_path / "api-key").write_text("the-new-key-that-braze-wants\n", encoding="utf-8")
        eventually(lambda: run.poller.workspaces[0].up, what="the workspace to be up again")
        polled = len(braze.requests)
        eventually(lambda: len(braze.requests) >= polled + 12, what="everybody's polls to go on")

    assert all(later - earlier > 1.9 for earlier, later in itertools.pairwise(times))
    assert all(shown)
    assert not up
    for secret in (KEY, "the-new-key-that-braze-wants"):
        assert secret not in text + caplog.text
    assert "Braze refuses the API key" in caplog.text


def refused(braze: Simulator) -> list[float]:
    """Return when requests came that were answered 401."""
    return [request.time for request in braze.requests if request.status == 401]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [({"Retry-After": "2"}, 2.0), ({"X-RateLimit-Reset": str(int(NOON) + 2)}, 2.0), ({"X-RateLimit-Reset": ""}, 0.4)],
)
def test_rate_limited(headers: dict[str, str], wait: float, tmp_path: Path) -> None:
    """After a 429 nothing is asked until the time it names, then one probe, then what is overdue, paced."""
    with Simulator(api_key=KEY, clock=lambda: NOON) as braze:
        braze.misbehave(Status(429, headers=headers), times=1)
        braze.misbehave(Latency(0.3))
        with polling(configured(tmp_path, braze, workspace="requests_per_minute: 600")) as run:
            eventually(lambda: sum(state.up or 0 for state in run.poller.campaigns) >= 11, what="the others' polls")
        requests = braze.requests
    limited = next(place for place, request in enumerate(requests) if request.status == 429)
    closed = requests[limited].time + 0.3
    later = [request.time for request in requests if request.time > closed]

    assert later[0] - closed >= wait - 0.05
    assert later[1] - later[0] >= 0.29, "a second request while the probe was under way"
    # A tenth of a second apart; one that a busy machine delays comes close to the next.
    assert later[-1] - later[1] >= 0.05 * (len(later) - 2) > 0, "faster than paced"


def test_rate_limited_again_and_again(tmp_path: Path, braze: Simulator) -> None:
    """A 429 that names the past is no reason for a storm: probes come ever later."""
    braze.misbehave(Status(429, headers={"Retry-After": "0"}))
    with polling(configured(tmp_path, braze, workspace="requests_per_minute: 600")) as run:
        eventually(lambda: len(braze.requests) >= 4, what="probes")
        ready = run.ready()
    times = [request.time for request in braze.requests]

    assert ready, "a paused workspace does not keep the exporter from being ready"
    assert times[-1] - times[0] > 3


def test_two_workspaces(tmp_path: Path) -> None:
    """Each workspace has its own key, pause and numbers, even for the same campaign."""
    with Simulator(api_key=KEY) as one, Simulator(api_key="another-key", seed=1) as other:
        first = configured(tmp_path, one).workspaces[0]
        (tmp_path / "api-key").write_text("another-key", encoding="utf-8")
        (tmp_path / "other").mkdir()
        second = configured(tmp_path / "other", other).workspaces[0].model_copy(update={"name": "other"})
        (tmp_path / "api-key").write_text(KEY, encoding="utf-8")
        loaded = configured(tmp_path, one, poll=QUICK).model_copy(update={"workspaces": (first, second)})
        with polling(loaded) as run:
            eventually(lambda: [workspace.up for workspace in run.poller.workspaces] == [True, False], what="one up")
            shown = {state.workspace for state in run.poller.campaigns if state.latest}
            (tmp_path / "other" / "api-key").write_text("another-key", encoding="utf-8")
            eventually(lambda: [workspace.up for workspace in run.poller.workspaces] == [True, True], what="both up")

    assert shown == {"main"}


@pytest.mark.alone
def test_polls_are_spread_and_in_time(tmp_path: Path) -> None:
    """200 campaigns at 200 ms latency are polled once an interval of 10 s, each in its slot, without bursts."""
    with Simulator(api_key=KEY, campaigns=200) as braze:
        braze.misbehave(Latency(0.2))
        offset = time.time() - time.monotonic()
        with polling(configured(tmp_path, braze, poll="interval: 10s, timeout: 5s")) as run:
            eventually(run.ready, what="the end of the first round")
            begin = time.monotonic()
            eventually(lambda: time.monotonic() > begin + 20, what="two intervals", timeout=30)
            states = run.poller.campaigns
        requests = [request for request in braze.requests if begin < request.time <= begin + 20]
    late = [
        (request.time + offset - slot(request.campaign_id or "", 10) + 5) % 10 - 5
        for request in requests
        if request.time > begin + 0.5  # by then what was overdue at the end of the first round has been asked
    ]
    by_second = [
        sum(begin + second < request.time <= begin + second + 1 for request in requests) for second in range(20)
    ]

    assert all(state.up and state.polls >= 2 for state in states)
    assert len(requests) == pytest.approx(400, abs=5)
    assert max(by_second) <= 40
    assert sorted(late)[len(late) // 2] < 0.1
    assert max(map(abs, late)) < 1


def test_threads_grow_with_need_only(tmp_path: Path, braze: Simulator) -> None:
    """Connections, one a busy thread, stay as few as latency times rate needs, and within the concurrency."""
    braze.misbehave(Latency(0.5))
    loaded = configured(tmp_path, braze, poll="concurrency: 4", workspace="requests_per_minute: 50000")
    with polling(loaded) as run:
        eventually(run.ready, what="the end of the first round")
        busy = braze.connections
    with (
        Simulator(api_key=KEY) as idle,
        polling(configured(tmp_path, idle, workspace="requests_per_minute: 600")) as run,
    ):
        eventually(run.ready, what="the end of the first round")
        quiet = idle.connections

    assert busy == 4
    assert quiet <= 2


def test_previous_day_can_be_switched_off(tmp_path: Path, braze: Simulator) -> None:
    """With poll.previous_day false there is no sample of the previous day."""
    with polling(configured(tmp_path, braze, poll="previous_day: false")) as run:
        eventually(run.ready, what="the end of the first round")

        assert "braze_message_sent{" in run.text()
        assert "braze_previous_day_" not in run.text()


@pytest.mark.parametrize(("newest_day", "expected"), [("today", "2026-03-03"), ("yesterday", "2026-03-02")])
def test_running_day_or_not(newest_day: Literal["today", "yesterday"], expected: str, tmp_path: Path) -> None:
    """Whether Braze's newest day is the running one or the one before, it is shown as the latest."""
    with (
        Simulator(api_key=KEY, newest_day=newest_day, clock=lambda: NOON) as braze,
        polling(configured(tmp_path, braze)) as run,
    ):
        eventually(run.ready, what="the end of the first round")

        assert {str(state.latest.date) for state in run.poller.campaigns if state.latest} == {expected}


def test_the_start_of_a_day_proves_the_zone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first response with a new day gives the offset, a reload of `timezone` another one, a day back none."""
    caplog.set_level(logging.INFO)
    midnight = NOON + 12 * 3600
    moment = midnight - 0.5
    with Simulator(api_key=KEY, campaigns=2, clock=lambda: moment) as braze:
        loaded = configured(tmp_path, braze, poll=PATIENT, workspace="timezone: Europe/Berlin")
        right = configured(tmp_path, braze, poll=PATIENT)
        with polling(loaded, wall=lambda: moment) as run:
            eventually(lambda: fewest_polls(run) >= 2, what="two polls of each campaign")
            before = run.poller.workspaces[0].rollover_offset
            moment = midnight + 0.5
            eventually(lambda: run.poller.workspaces[0].rollover_offset is not None, what="the new day")
            wrong = run.poller.workspaces[0].rollover_offset
            run.poller.apply(right, compare(loaded, right))
            corrected = run.poller.workspaces[0].rollover_offset
            moment, polls = midnight - 0.5, fewest_polls(run)
            eventually(lambda: fewest_polls(run) >= polls + 2, what="polls of a day that goes back")
            moment, polls = midnight + 1.5, fewest_polls(run)
            eventually(lambda: fewest_polls(run) >= polls + 2, what="polls of the day after")

            assert (before, wrong, corrected) == (None, 3600.5, 0.5)
            assert run.poller.workspaces[0].rollover_offset == 0.5
    begun = [record for record in caplog.records if record.message == "a new day began"]
    assert [(record.levelname, record.__dict__["meaning"]) for record in begun] == [
        ("WARNING", "timezone is too far east by 1 hour")
    ]


def fewest_polls(run: Polling) -> int:
    """Return how often the campaign with the fewest polls was polled."""
    return min(state.polls for state in run.poller.campaigns)


def test_a_day_that_disappears(tmp_path: Path, braze: Simulator) -> None:
    """An answer without days is a success: the counts go, the campaign is up."""
    campaign_id = braze.campaigns[0].id
    with polling(configured(tmp_path, braze, poll=QUICK)) as run:
        eventually(lambda: run.samples(campaign_id), what="numbers")
        braze.misbehave(Body(b'{"message": "success", "data": []}'), campaign_id=campaign_id)
        eventually(lambda: not run.samples(campaign_id), what="the numbers to go")

        assert run.state(campaign_id).up
        assert run.state(campaign_id).failures == {}


def test_skipped_parts_are_told_once(tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """A broken row is logged once for its campaign, and the rest of the answer is shown."""
    body = b'{"data": [{"time": "2026-03-03", "messages": {"email": [5, {"variation_api_id": "1", "sent": 3}]}}]}'
    braze.misbehave(Body(body))
    campaign_id = braze.campaigns[0].id
    with polling(configured(tmp_path, braze, poll=QUICK, campaigns={campaign_id: "Broken"})) as run:
        eventually(lambda: run.state(campaign_id).polls >= 3, what="three polls")

        assert any(series.startswith("braze_message_sent") for series in run.samples(campaign_id))
    assert caplog.text.count("parts of the response are not of the documented form") == 1


def test_an_answer_that_cannot_be_shown(tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception while an answer is shown fails that poll alone, with a traceback without its text."""
    loaded = configured(tmp_path, braze, poll=QUICK)
    victim = loaded.workspaces[0].campaigns[0].id

    class Picky(Publisher):
        def publish(self, state: CampaignState) -> None:
            if state.campaign_id == victim and state.up:
                raise KeyError("a part of the answer")
            super().publish(state)

    crashes: list[BaseException] = []
    clock = Clock(time.time, time.monotonic)
    poller = Poller(loaded, environ={}, clock=clock, publisher=Picky(loaded.limits), fatal=crashes.append)
    poller.start()
    eventually(lambda: poller.ready, what="the end of the first round")
    states = {state.campaign_id: state for state in poller.campaigns}
    poller.stop()

    assert not crashes
    assert states[victim].failures.keys() == {"bad_payload"}
    counted = poller.workspaces[0].apis["data_series"].failures[Reason.BAD_PAYLOAD]
    assert counted >= states[victim].failures[Reason.BAD_PAYLOAD] >= 1
    assert [campaign_id for campaign_id, state in states.items() if not state.up] == [victim]
    assert "a part of the answer" not in caplog.text
    assert any("publish" in str(vars(record).get("traceback")) for record in caplog.records)


def stale_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return of which campaigns the log says that their numbers are stale."""
    return [vars(record)["campaign_id"] for record in caplog.records if "are stale" in record.message]


def test_numbers_of_a_machine_that_slept(tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers that grew too old while the machine slept go within seconds, once, even when no poll ever ends."""
    clock = SleepingClock()
    hanging, back = braze.campaigns[0].id, braze.campaigns[1].id
    loaded = configured(tmp_path, braze, poll="interval: 1h, timeout: 1h, stale_after: 2h")
    with polling(loaded, monotonic=clock) as run:
        eventually(run.ready, what="the end of the first round")
        braze.misbehave(Hang())
        braze.behave(back)
        before = run.samples(hanging)
        clock.asleep = 7200.0 + 60.0
        eventually(partial(run.empty, hanging), what="stale numbers to go")
        eventually(lambda: len(stale_lines(caplog)) == len(braze.campaigns), what="all of them to go")
        looks = clock.looks
        state = run.state(hanging)
        braze.behave()
        eventually(lambda: clock.looks > looks + 1, what="the threads to look at the clock again")

        assert clock.looks < looks + 100, "a thread spins"
    assert before
    assert (state.up, state.latest, state.previous, state.polls, state.failures) == (False, None, None, 1, {})
    assert state.last_success is not None
    assert sorted(stale_lines(caplog)) == sorted(campaign.id for campaign in braze.campaigns)


def test_campaigns_of_a_machine_that_slept(tmp_path: Path, braze: Simulator) -> None:
    """Whoever had a slot while the machine slept is polled once at once, as fast as pacing allows."""
    clock = SleepingClock()
    loaded = configured(tmp_path, braze, poll="interval: 1h", workspace="requests_per_minute: 1200")
    with polling(loaded, monotonic=clock) as run:
        eventually(run.ready, what="the end of the first round")
        polled = len(braze.requests)
        clock.asleep = 3600.0
        eventually(lambda: all(state.polls == 2 for state in run.poller.campaigns), what="a second poll of each")
        times = [request.time for request in braze.requests[polled:]]

        assert len(times) == len(braze.campaigns)
        assert times[-1] - times[0] >= (len(times) - 1) * 0.05 - 0.1


def test_a_crash_of_the_expiry_is_fatal(tmp_path: Path, braze: Simulator) -> None:
    """Where numbers can no longer be taken away the process is to end."""
    clock = SleepingClock()
    loaded = configured(tmp_path, braze, poll="interval: 1h")

    class Broken(Publisher):
        def publish(self, state: CampaignState) -> None:
            if state.up is False:
                raise MemoryError
            super().publish(state)

    crashes: list[BaseException] = []
    poller = Poller(
        loaded, environ={}, clock=Clock(time.time, clock), publisher=Broken(loaded.limits), fatal=crashes.append
    )
    poller.start()
    eventually(lambda: poller.ready, what="the end of the first round")
    braze.misbehave(Hang())
    clock.asleep = 4 * 3600.0 + 1
    eventually(lambda: crashes, what="a fatal exception")
    poller.stop()

    assert isinstance(crashes[0], MemoryError)


def test_threads_that_cannot_be_started(tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """Where the system allows two threads these poll everybody, and the log says so once until there are more."""
    threads = FewThreads(1 + 2)
    braze.misbehave(Latency(0.1))
    loaded = configured(tmp_path, braze, poll=QUICK, workspace="requests_per_minute: 50000")
    with polling(loaded, start_thread=threads) as run:
        eventually(lambda: all(state.polls > 2 for state in run.poller.campaigns), what="three polls of each")
        refused = threads.refused
        connections = braze.connections
        few = [record.message for record in caplog.records]
        threads.allowed = 2
        eventually(lambda: threads.allowed == 0, what="the other threads to be started")
        eventually(lambda: threads.refused > refused + 1, what="two more wishes")

        assert all(state.up for state in run.poller.campaigns)
    assert refused > 1
    assert connections <= 2
    assert few == ["a thread cannot be started, polling continues with fewer"]
    assert len(caplog.records) == 2


def test_a_workspace_without_any_thread(tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """Where not even one thread can be started at first, one is started within seconds when that is possible."""
    threads = FewThreads(1)
    with polling(configured(tmp_path, braze), start_thread=threads) as run:
        eventually(lambda: threads.refused > 1, what="a second try")
        polls = [state.polls for state in run.poller.campaigns]
        threads.allowed = math.inf
        eventually(run.ready, what="the end of the first round")

        assert all(state.up for state in run.poller.campaigns)
    assert not any(polls)
    assert [record.message for record in caplog.records] == ["a thread cannot be started, polling continues with fewer"]


def test_failures_are_told_once(tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """The first failure of a kind in a row is a warning, the others are for debugging, and so are successes but one."""
    caplog.set_level("DEBUG", "exporter.campaigns")
    victim = braze.campaigns[0].id

    def polls(count: int) -> None:
        before = run.state(victim).polls
        eventually(lambda: run.state(victim).polls >= before + count, what="polls")

    with polling(configured(tmp_path, braze, poll=PATIENT, campaigns={victim: "Victim"})) as run:
        polls(2)
        braze.misbehave(Status(404))
        polls(3)
        braze.misbehave(Status(403))
        polls(3)
        braze.behave()
        polls(3)
    records = [record for record in caplog.records if record.message.startswith("poll ")]
    told = [(record.levelname, record.message, vars(record).get("reason")) for record in records]

    assert list(dict.fromkeys(told)) == [
        ("DEBUG", "poll succeeded", None),
        ("WARNING", "poll failed", "not_found"),
        ("DEBUG", "poll failed", "not_found"),
        ("WARNING", "poll failed", "forbidden"),
        ("DEBUG", "poll failed", "forbidden"),
        ("INFO", "poll succeeded again", None),
    ]
    assert sum(level in {"WARNING", "INFO"} for level, *_ in told) == 3
    for record in records:
        assert (vars(record)["campaign_id"], vars(record)["campaign_name"]) == (victim, "Victim")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>Busy</html>", "bad_payload"),
        (b'{"message": "success"}', "bad_payload"),
        (b'{"message": "an internal error", "data": []}', "bad_payload"),
        (b"[%s]" % b",".join([b"1"] * 1_000_002), "too_large"),
    ],
)
def test_a_response_that_says_nothing_is_counted(body: bytes, reason: str, tmp_path: Path, braze: Simulator) -> None:
    """A success that is none counts as a failed request and as a failed poll, and leaves the numbers as they were."""
    campaign_id = braze.campaigns[0].id
    with polling(configured(tmp_path, braze, poll=PATIENT, campaigns={campaign_id: "Broken"})) as run:
        eventually(run.ready, what="the end of the first round")
        before = run.samples(campaign_id)
        braze.misbehave(Body(body))
        eventually(lambda: sum(run.state(campaign_id).failures.values()) >= 2, what="two failures")
        run.poller.stop()
        eventually(lambda: settled(run.poller), what="what was counted")
        failures = {str(kind): count for kind, count in run.poller.workspaces[0].apis["data_series"].failures.items()}

        assert run.state(campaign_id).failures == {reason: failures[reason]}
        assert sum(failures.values()) == failures[reason]
        assert run.state(campaign_id).up is False
        assert run.samples(campaign_id) == before


def settled(poller: Poller) -> bool:
    """Say whether failures of polls are as many as failures of requests."""
    counted = sum(poller.workspaces[0].apis["data_series"].failures.values())
    return counted == sum(count for state in poller.campaigns for count in state.failures.values())


def test_statistics_that_are_no_numbers_are_told_once(
    tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A number that comes as text is absent, and the log says once for a campaign which fields that concerns."""
    body = b'{"data": [{"time": "2026-03-03", "messages": {"email": [{"sent": "123", "opens": 3, "new": "1.5"}]}}]}'
    braze.misbehave(Body(body))
    campaign_id = braze.campaigns[0].id
    with polling(configured(tmp_path, braze, poll=QUICK, campaigns={campaign_id: "Broken"})) as run:
        eventually(lambda: run.state(campaign_id).polls >= 3, what="three polls")

        assert {name.partition("{")[0] for name in run.samples(campaign_id)} == {
            "braze_message_opens",
            "braze_campaign_day_timestamp_seconds",
        }
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert vars(record)["statistics"] == "sent, new"


def test_a_removed_campaign_is_polled_no_more(
    tmp_path: Path, braze: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A campaign that a reload removes has no slot any more, also when it was just being polled."""
    waits, polled, stays = (campaign.id for campaign in braze.campaigns[:3])
    loaded = configured(tmp_path, braze, poll=PATIENT, campaigns={waits: "A", polled: "B", stays: "C"})
    left = configured(tmp_path, braze, poll=PATIENT, campaigns={stays: "C"})
    with polling(loaded) as run:
        eventually(run.ready, what="the end of the first round")
        braze.misbehave(Latency(1.5), campaign_id=polled)
        under_way = run.state(polled).polls
        eventually(lambda: asked(braze, polled) > under_way, what="a poll that takes a while")
        run.poller.apply(left, compare(loaded, left))
        eventually(lambda: run.state(stays).polls >= 1, what="a poll")
        braze.behave()
        counts = asked(braze, waits), asked(braze, polled)
        polls = run.state(stays).polls
        eventually(lambda: run.state(stays).polls >= polls + 4, what="four intervals")

        assert asked(braze, waits) <= counts[0] + 1, "one may have been on its way"
        assert asked(braze, polled) <= counts[1]
        assert not run.samples(polled)
        assert [state.campaign_id for state in run.poller.campaigns] == [stays]
        assert not sum(run.poller.workspaces[0].apis["data_series"].failures.values())
    assert "cannot be" not in caplog.text


def asked(braze: Simulator, campaign_id: str) -> int:
    """Return how many requests there were for a campaign."""
    return sum(request.campaign_id == campaign_id for request in braze.requests)


def test_names_of_the_configuration_are_cut(tmp_path: Path, braze: Simulator) -> None:
    """A campaign's configured name is a label value like any other."""
    campaign_id = braze.campaigns[0].id
    with polling(configured(tmp_path, braze, campaigns={campaign_id: "\N{SHOPPING TROLLEY}" * 300})) as run:
        eventually(run.ready, what="the end of the first round")

        assert set(re.findall('campaign_name="(.*?)"', run.text())) == {"\N{SHOPPING TROLLEY}" * 249 + "…"}


def test_what_is_decoded_holds_up_no_other_news(tmp_path: Path, braze: Simulator) -> None:
    """While a response is decoded, other campaigns' failures are published and stale numbers go."""
    clock = SleepingClock()
    failing, decoded, hanging = (campaign.id for campaign in braze.campaigns[:3])
    campaigns = {failing: "A", decoded: "B", hanging: "C"}
    loaded = configured(tmp_path, braze, poll="interval: 1h, timeout: 1h, stale_after: 3h", campaigns=campaigns)
    with polling(loaded, monotonic=clock) as run:
        eventually(run.ready, what="the end of the first round")
        braze.misbehave(Status(404), campaign_id=failing)
        braze.misbehave(Hang(), campaign_id=hanging)
        with run.poller._decoding_locks.small:  # noqa: SLF001 - whoever decodes has it
            clock.asleep = 3601.0
            eventually(partial(run.failed, failing), what="a failure")
            eventually(lambda: asked(braze, decoded) == 2, what="another response")
            clock.asleep = 3 * 3600.0 + 60.0
            eventually(partial(run.empty, hanging), what="stale numbers to go")

            assert run.state(decoded).polls == 1
        eventually(lambda: run.state(decoded).polls >= 2, what="the response to be read")
        assert run.state(decoded).up


def test_large_responses_hold_up_nobody(tmp_path: Path) -> None:
    """While large responses come one at a time, other campaigns are polled; each large one is read in the end."""
    rows = b",".join(b'{"variation_name":"%d","sent":1}' % number for number in range(100_000))
    body = b'{"data": [{"time": "2026-03-03", "messages": {"email": [%s]}}]}' % rows
    with Simulator(api_key=KEY, campaigns=5) as braze:
        *large, small = (campaign.id for campaign in braze.campaigns)
        for campaign_id in large:
            braze.misbehave(Status(200, gzip.compress(body), {"Content-Encoding": "gzip"}), campaign_id=campaign_id)
        loaded = configured(tmp_path, braze, poll=PATIENT)
        with polling(loaded) as run:
            eventually(run.ready, what="the end of the first round", timeout=60)
            polls = run.state(small).polls
            eventually(lambda: run.state(small).polls >= polls + 2, what="polls of the small one")
            states = {state.campaign_id: state for state in run.poller.campaigns}

    assert states[small].up
    assert not states[small].failures
    for campaign_id in large:
        state = states[campaign_id]
        assert state.up
        assert state.latest is not None
        assert len(state.latest.variations) + state.dropped == 100_000
        assert len(state.latest.variations) < 20_000


def test_large_responses_of_all_workspaces_wait_in_one_line(tmp_path: Path, braze: Simulator) -> None:
    """While one is read no other is, of whatever workspace; small ones are."""
    large, small = (campaign.id for campaign in braze.campaigns[:2])
    loaded = configured(tmp_path, braze, poll=PATIENT, campaigns={large: "A", small: "B"})
    other = loaded.workspaces[0].model_copy(update={"name": "other"})
    body = b'{"data": [{"time": "2026-03-03", "revenue": 1}], "text": "%s"}' % (b"x" * (2 << 20))
    with polling(loaded.model_copy(update={"workspaces": (*loaded.workspaces, other)})) as run:
        eventually(run.ready, what="the end of the first round")
        lock = run.poller._decoding_locks.large  # noqa: SLF001 - whoever reads a large one is its first
        assert lock.acquire(0)
        braze.misbehave(Body(body), campaign_id=large)
        eventually(lambda: len(lock) == 3, what="two that wait")
        before = {state.key: state.polls for state in run.poller.campaigns}
        eventually(
            lambda: all(
                state.polls >= before[state.key] + 2 for state in run.poller.campaigns if state.campaign_id == small
            ),
            what="polls of the small ones",
        )
        waited = [state.polls - before[state.key] for state in run.poller.campaigns if state.campaign_id == large]
        lock.release()
        eventually(
            lambda: all(state.polls > before[state.key] for state in run.poller.campaigns),
            what="the large ones to be read",
        )

        assert waited == [0, 0]
        assert all(state.up for state in run.poller.campaigns)


def test_an_exception_elsewhere_is_fatal(tmp_path: Path, braze: Simulator) -> None:
    """An exception that is not of one answer is handed on, to end the process."""
    loaded = configured(tmp_path, braze)

    class Broken(Publisher):
        def settle(self, _: object) -> None:
            raise MemoryError

    crashes: list[BaseException] = []
    clock = Clock(time.time, time.monotonic)
    poller = Poller(loaded, environ={}, clock=clock, publisher=Broken(loaded.limits), fatal=crashes.append)
    braze.misbehave(Status(404))
    poller.start()
    eventually(lambda: crashes, what="a fatal exception")
    poller.stop()

    assert isinstance(crashes[0], MemoryError)
