"""Tests of exporter.reload: two configurations in, what is different out; and a poller that goes on by another file."""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from zoneinfo import ZoneInfo

import pytest

from exporter import config
from exporter.config import Campaign, Config, ConfigError, Limits, Poll, Workspace
from exporter.exposition import Exposition, Format
from exporter.poller import Poller
from exporter.publisher import Publisher
from exporter.reload import Changes, CurrentConfig, Reloads, Requests, compare, pause_before_look
from exporter.shards import WHOLE
from exporter.simulator.server import Cut, Hang, Latency, Simulator, Status
from exporter.state import CampaignState, Clock
from exporter.system.files import Budget, Files, Watch, digests
from exporter.system.threads import NoThreadError
from tests.support.servers import eventually
from tests.support.system import Volume, no_new_threads

KEY = "9f1b-secret-c0ffee-4d5e-api-key"
OTHER_KEY = "17ab-another-secret-5678"
ONCE = "interval: 1h"
QUICK = "interval: 1s, timeout: 1s, stale_after: 1h"
NOTHING = Changes(*[frozenset()] * 8)
WELCOME = Campaign(id="3bbc4555-8fa0-4c9b-a5c0-4505edf3e064", name="Welcome")
GOODBYE = Campaign(id="5a0de3a5-8b5d-4f0c-9a3b-0d3c1a3cf2b1", name="Goodbye")
MAIN = Workspace(name="main", endpoint="https://rest.iad-01.braze.com", api_key_env="KEY", campaigns=(WELCOME, GOODBYE))
OTHER = MAIN.model_copy(update={"name": "other", "campaigns": (WELCOME,)})


def with_main(**changed: object) -> Config:
    """Return a configuration of two workspaces, the first with these settings."""
    return Config(workspaces=(MAIN.model_copy(update=changed), OTHER))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (with_main(), {}),
        (Config(workspaces=(OTHER, MAIN.model_copy(update={"campaigns": (GOODBYE, WELCOME)}))), {}),
        (with_main(instance="US-01"), {}),
        (with_main(campaigns=(WELCOME,)), {"removed_campaigns": {("main", GOODBYE.id)}}),
        (
            with_main(campaigns=(WELCOME, GOODBYE.model_copy(update={"name": "Farewell"}))),
            {"changed_campaigns": {("main", GOODBYE.id)}},
        ),
        (with_main(timezone=ZoneInfo("Asia/Tokyo")), {"changed_workspaces": {"main"}}),
        (with_main(requests_per_minute=7), {"changed_workspaces": {"main"}}),
        (with_main(api_key_env=None, api_key_file=Path("key")), {"changed_workspaces": {"main"}}),
        (
            with_main(endpoint="https://rest.iad-02.braze.com"),
            {"changed_workspaces": {"main"}, "reconnected_workspaces": {"main"}},
        ),
        (
            Config(workspaces=(MAIN,)),
            {"removed_workspaces": {"other"}, "removed_campaigns": {("other", WELCOME.id)}},
        ),
        (
            with_main(name="renamed"),
            {
                "added_workspaces": {"renamed"},
                "removed_workspaces": {"main"},
                "added_campaigns": {("renamed", WELCOME.id), ("renamed", GOODBYE.id)},
                "removed_campaigns": {("main", WELCOME.id), ("main", GOODBYE.id)},
            },
        ),
        (
            Config(
                poll=Poll(interval=60.0, stale_after=1200.0, days=5),
                limits=Limits(series=7),
                workspaces=(MAIN, OTHER),
            ),
            {"settings": {"poll.interval", "poll.days", "limits.series"}},
        ),
    ],
)
def test_compare(after: Config, expected: Mapping[str, set[object]]) -> None:
    """Each kind of change is found, and nothing else; an order is no change."""
    changes = compare(with_main(), after)

    assert expected == {name: set(getattr(changes, name)) for name in NOTHING.__slots__ if getattr(changes, name)}


@dataclass(slots=True)
class Clockwork:
    """A configuration whose reading and applying are told what to do."""

    loaded: Config | ConfigError
    refusal: Exception | None = None
    applied: int = 0
    now: float = 1000.0

    def read(self) -> Config:
        """Read what is to be read."""
        if isinstance(self.loaded, ConfigError):
            raise self.loaded
        return self.loaded

    def apply(self, _: Config, __: Changes) -> None:
        """Count, or refuse."""
        if self.refusal:
            raise self.refusal
        self.applied += 1

    def configuration(self) -> CurrentConfig:
        """Return the configuration in force."""
        return CurrentConfig(self.read(), shard=WHOLE, read=self.read, apply=self.apply, wall=lambda: self.now)


@pytest.mark.parametrize("where", ["loaded", "refusal"])
def test_what_cannot_be_used_changes_nothing(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bad file, or a key that is gone, is told and logged; the old configuration stays until a good one comes."""
    clockwork = Clockwork(with_main())
    configuration = clockwork.configuration()
    started = (configuration.successful, configuration.succeeded_at)
    good = clockwork.loaded
    setattr(clockwork, where, ConfigError(["config.yaml:1: one", "config.yaml:2: two"]))
    clockwork.now = 2000.0
    problem = configuration.reload()
    refused = (configuration.current, configuration.successful, configuration.succeeded_at, clockwork.applied)
    clockwork.loaded, clockwork.refusal = with_main(requests_per_minute=9), None

    assert problem == "config.yaml:1: one\nconfig.yaml:2: two"
    assert started == (True, 1000.0)
    assert refused == (good, False, 1000.0, 0)
    assert [vars(record)["error"] for record in caplog.records if record.levelname == "ERROR"] == [problem]
    assert configuration.reload() is None
    assert (configuration.current, configuration.successful) == (clockwork.loaded, True)
    assert (configuration.succeeded_at, clockwork.applied) == (2000.0, 1)


def test_warnings_are_logged_when_they_are_new(caplog: pytest.LogCaptureFixture) -> None:
    """A warning of the start is not repeated by reloads; a new one is logged once."""
    clockwork = Clockwork(with_main(endpoint="https://example.com"))
    configuration = clockwork.configuration()
    told = [warnings_in(caplog)]
    for endpoint in ("https://example.com", "https://example.org", "https://example.org", "https://example.com"):
        clockwork.loaded = with_main(endpoint=endpoint)
        configuration.reload()
        told.append(warnings_in(caplog))

    assert [len(warnings) for warnings in told] == [1, 0, 1, 0, 1]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was warned of since the last time."""
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return found


def test_a_reload_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A reload logs one line with how much was added, removed and changed."""
    caplog.set_level("INFO", "exporter")
    clockwork = Clockwork(with_main())
    configuration = clockwork.configuration()
    clockwork.loaded = with_main(campaigns=(WELCOME.model_copy(update={"name": "Hello"}),), requests_per_minute=9)
    configuration.reload()
    (line,) = caplog.records

    assert line.getMessage() == "the configuration was reloaded"
    assert {name: value for name, value in vars(line).items() if name.endswith(("_added", "_removed", "_changed"))} == {
        "workspaces_added": 0,
        "workspaces_removed": 0,
        "workspaces_changed": 1,
        "campaigns_added": 0,
        "campaigns_removed": 1,
        "campaigns_changed": 1,
        "settings_changed": 0,
    }


@dataclass(slots=True)
class Gate:
    """A reload that waits until it is let; counts what goes through."""

    clockwork: Clockwork
    entered: int = 0
    inside: int = 0
    crowd: int = 0
    opened: threading.Event = field(default_factory=threading.Event)
    crashes: list[BaseException] = field(default_factory=list)

    def read(self) -> Config:
        """Wait, then read."""
        self.entered += 1
        self.inside += 1
        self.crowd = max(self.crowd, self.inside)
        assert self.opened.wait(30)
        self.inside -= 1
        return self.clockwork.read()

    def reloads(self, requests: Requests, watch: Watch | None = None, interval: float | None = None) -> Reloads:
        """Return reloads that go through the gate, started."""
        configuration = CurrentConfig(
            with_main(), shard=WHOLE, read=self.read, apply=self.clockwork.apply, wall=lambda: 0.0
        )
        reloads = Reloads(configuration, requests, watch=watch, interval=interval, fatal=self.crashes.append)
        reloads.start()
        return reloads


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open when the test ends."""
    gate = Gate(Clockwork(with_main()))
    yield gate
    gate.opened.set()


def test_requests_share_a_reload(gate: Gate) -> None:
    """Whoever asks while a reload runs gets the next one, all together; one runs at a time."""
    requests: Requests = SimpleQueue()
    reloads = gate.reloads(requests)
    first = reloads.request()
    eventually(lambda: gate.entered == 1, what="the first reload")
    later = [reloads.request() for _ in range(8)]
    for _ in range(8):
        requests.put(None)  # as a signal's handler does
    gate.clockwork.loaded = ConfigError(["wrong"])
    gate.opened.set()

    assert [request.result(10) for request in (first, *later)] == ["wrong"] * 9
    assert (gate.entered, gate.crowd) == (2, 1)


def test_a_request_that_was_given_up(gate: Gate) -> None:
    """A client that is gone before its reload keeps nobody else from theirs."""
    reloads = gate.reloads(SimpleQueue())
    first = reloads.request()
    eventually(lambda: gate.entered == 1, what="the first reload")
    gone, other = reloads.request(), reloads.request()
    gone.cancel()
    gate.opened.set()

    assert (first.result(10), other.result(10)) == (None, None)
    assert not gate.crashes


def test_a_signal_reloads(gate: Gate) -> None:
    """What a handler of a signal puts into the queue is a reload, also before the thread starts."""
    requests: Requests = SimpleQueue()
    requests.put(None)
    gate.opened.set()
    reloads = gate.reloads(requests)
    eventually(lambda: gate.clockwork.applied == 1, what="a reload")
    requests.put(None)

    eventually(lambda: gate.clockwork.applied == 2, what="another reload")
    assert reloads.request().result(10) is None


def test_a_change_of_the_file_reloads(gate: Gate, tmp_path: Path) -> None:
    """A file that changed is loaded once, when two looks find the same; nothing else makes a reload."""
    file = tmp_path / "config.yaml"
    file.write_text("first", encoding="utf-8")
    gate.opened.set()
    watch = Watch(digests([file]))
    gate.reloads(SimpleQueue(), watch, interval=0.01)
    for number, text in enumerate(("second", "third"), 1):
        (tmp_path / text).write_text(text, encoding="utf-8")
        (tmp_path / text).replace(file)
        eventually(lambda expected=number: gate.entered == expected, what="a reload")  # type: ignore[misc]
    looked = Looks(watch)
    eventually(lambda: looked.more() > 3, what="further looks")

    assert gate.entered == 2


@pytest.mark.parametrize(
    ("interval", "changed", "expected"),
    [(30.0, False, 30.0), (30.0, True, 1.0), (0.5, True, 0.5), (None, True, None), (None, False, None)],
)
def test_a_second_look_comes_soon(interval: float | None, changed: bool, expected: float | None) -> None:  # noqa: FBT001 - a parameter
    """A file that was found changed is looked at again after a second, however long the interval is."""
    assert pause_before_look(interval, changed=changed) == expected


@dataclass(slots=True)
class Looks:
    """Counts looks by what they leave behind."""

    watch: Watch
    count: int = 0
    last: object = None

    def more(self) -> int:
        """Return how many looks were noticed so far."""
        self.count += self.watch.seen is not self.last
        self.last = self.watch.seen
        return self.count


def test_an_exception_that_nobody_expected_is_fatal(gate: Gate) -> None:
    """A reload that raises what is no ConfigError ends the process instead of the thread alone."""
    gate.opened.set()
    gate.clockwork.refusal = ZeroDivisionError()
    gate.reloads(SimpleQueue()).request()

    eventually(lambda: gate.crashes, what="a crash")
    assert [type(crash) for crash in gate.crashes] == [ZeroDivisionError]


def test_no_thread_for_reloads(gate: Gate) -> None:
    """A thread that cannot be started is an error at the start."""
    with no_new_threads(), pytest.raises(NoThreadError, match="reload"):
        gate.reloads(SimpleQueue())


def test_a_file_that_hangs(tmp_path: Path, volume: Volume, caplog: pytest.LogCaptureFixture) -> None:
    """A reload of a file whose volume hangs fails after the timeout, and the next works when the volume answers."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "workspaces: [{name: main, instance: US-01, api_key_env: KEY, campaigns: "
        f"[{{id: {WELCOME.id}, name: Welcome}}]}}]",
        encoding="utf-8",
    )
    reader = Files(volume.open)

    def read() -> Config:
        return config.load(file, {"KEY": KEY}, budget=Budget(0.05, files=reader))

    configuration = CurrentConfig(with_main(), shard=WHOLE, read=read, apply=lambda *_: None, wall=time.time)
    reloads = Reloads(configuration, SimpleQueue(), fatal=lambda error: pytest.fail(repr(error)))
    reloads.start()
    volume.hung = {file}
    hung = reloads.request().result(10)
    in_force, successful = configuration.current, configuration.successful
    volume.answer()

    assert hung == f"{file}: expected a file that can be read, got 'the file system does not respond within 0.05 s'"
    assert (in_force, successful) == (with_main(), False)
    assert [record.message for record in caplog.records] == ["reload failed, keeping the previous configuration"]
    assert reloads.request().result(10) is None


@dataclass(slots=True)
class Running:
    """A poller that runs by a file which can be written again."""

    folder: Path
    poller: Poller
    exposition: Exposition
    configuration: CurrentConfig
    crashes: list[BaseException]

    def change(self, text: str) -> None:
        """Write the file again and reload it."""
        (self.folder / "config.yaml").write_text(text, encoding="utf-8")

        assert self.configuration.reload() is None

    def text(self) -> str:
        """Return what a scrape would get of the campaigns."""
        return b"".join(self.exposition.snapshot().pieces(Format.TEXT)).decode()

    def lines(self, campaign_id: str, pattern: str = "") -> list[str]:
        """Return the sample lines of one campaign that begin like a pattern."""
        return [line for line in self.text().splitlines() if campaign_id in line and re.match(pattern, line)]

    def numbers(self, campaign_id: str) -> list[str]:
        """Return the sample lines of one campaign that are Braze's numbers."""
        return self.lines(campaign_id, "braze_(message|campaign_(unique|revenue|conv|other|day)|previous)")

    def state(self, campaign_id: str) -> CampaignState:
        """Return what is known of a campaign."""
        return next(state for state in self.poller.campaigns if state.campaign_id == campaign_id)

    def known(self) -> list[str]:
        """Return the ids of the campaigns that have a state, in their order."""
        return [state.campaign_id for state in self.poller.campaigns]

    def ready(self) -> bool:
        """Say whether the first round is over."""
        return self.poller.ready


@contextmanager
def running(folder: Path, text: str, *, ready: bool = True) -> Iterator[Running]:
    """Poll by a file; an exception that ends a thread fails the test."""
    (folder / "api-key").write_text(KEY, encoding="utf-8")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    loaded = config.load(folder / "config.yaml", {"KEY": KEY})
    publisher = Publisher(loaded.limits)
    crashes: list[BaseException] = []
    clock = Clock(time.time, time.monotonic)
    poller = Poller(loaded, environ={"KEY": KEY}, clock=clock, publisher=publisher, fatal=crashes.append)
    configuration = CurrentConfig(
        loaded,
        shard=WHOLE,
        read=lambda: config.load(folder / "config.yaml", {"KEY": KEY}),
        apply=poller.apply,
        wall=time.time,
    )
    run = Running(folder, poller, publisher.exposition, configuration, crashes)
    poller.start()
    try:
        if ready:
            eventually(run.ready, what="the end of the first round")
        yield run
    finally:
        poller.stop()
    assert not crashes


def written(
    *workspaces: tuple[str, Simulator, Mapping[str, str]], poll: str = ONCE, limits: str = "", settings: str = ""
) -> str:
    """Return a file; each workspace has a name, its Braze and the names of its campaigns by id."""
    lines = [f"poll: {{{poll}}}", f"limits: {{{limits}}}", "workspaces:"]
    for name, braze, campaigns in workspaces:
        key = "" if "api_key" in settings else "api_key_file: api-key, "
        lines.append(f"  - {{name: {name}, endpoint: '{braze.url}', {key}{settings}campaigns: [")
        lines += [f"      {{id: {campaign_id}, name: {name}}}," for campaign_id, name in campaigns.items()]
        lines.append("    ]}")
    return "\n".join(lines)


def names_of(braze: Simulator) -> dict[str, str]:
    """Return a name for each campaign of a simulated Braze."""
    return {campaign.id: f"Campaign {number}" for number, campaign in enumerate(braze.campaigns)}


def asked(braze: Simulator) -> Counter[str | None]:
    """Count the requests for each campaign."""
    return Counter(request.campaign_id for request in braze.requests)


@pytest.fixture
def braze() -> Iterator[Simulator]:
    """A simulated Braze with a handful of campaigns."""
    with Simulator(api_key=KEY, campaigns=6) as simulator:
        yield simulator


@pytest.mark.server
def test_campaigns_come_and_go(tmp_path: Path, braze: Simulator) -> None:
    """A new campaign is asked at once, a removed one is gone at once, and the others are not touched."""
    names = names_of(braze)
    first, *middle, last = names
    with running(tmp_path, written(("main", braze, {name: names[name] for name in (first, *middle)}))) as run:
        before = {name: (run.lines(name), run.state(name)) for name in middle}
        run.change(written(("main", braze, {name: names[name] for name in (*middle, last)})))
        gone = run.lines(first)
        eventually(lambda: run.numbers(last), what="numbers of the new campaign")

        assert gone == []
        assert before == {name: (run.lines(name), run.state(name)) for name in middle}
        assert run.known() == [*middle, last]
        assert run.poller.ready
    assert asked(braze) == Counter(list(names))


@pytest.mark.server
def test_an_order_is_no_change(tmp_path: Path, braze: Simulator) -> None:
    """Campaigns that only stand in another order are not asked, and look the same."""
    names = names_of(braze)
    with running(tmp_path, written(("main", braze, names))) as run:
        before = run.text()
        run.change(written(("main", braze, dict(reversed(names.items())))))

        assert before == run.text()
        assert run.known() == list(reversed(names))
        assert run.poller.workspaces[0].apis["data_series"].requests == len(names)
    assert asked(braze) == Counter(list(names))


@pytest.mark.server
def test_a_new_name_takes_everything_along(tmp_path: Path, braze: Simulator) -> None:
    """Numbers and counters of a renamed campaign are under the new name at once, and nothing is under the old one."""
    names = names_of(braze)
    renamed = next(iter(names))
    braze.misbehave(Status(404), campaign_id=renamed, times=1)
    with running(tmp_path, written(("main", braze, names), poll=QUICK)) as run:
        eventually(lambda: run.state(renamed).up, what="a success after a failure")
        run.change(written(("main", braze, names | {renamed: "Renamed"}), poll=ONCE))
        eventually(lambda: not asking(run, "main"), what="the end of the polls under way")
        lines = run.lines(renamed)
        (failures,) = run.lines(renamed, "braze_campaign_poll_failures_total")

        assert run.numbers(renamed)
        assert [line for line in lines if "Campaign 0" in line] == []
        assert 'campaign_name="Renamed"' in failures
        assert failures.endswith("} 1.0")
        assert run.state(renamed).polls >= 2


def asking(run: Running, workspace: str) -> bool:
    """Say whether the threads of a workspace are at anything else than waiting."""
    poller = run.poller._workspaces[workspace]  # noqa: SLF001 - no other way to see it
    return poller._idle < poller._threads  # noqa: SLF001


@pytest.mark.server
def test_an_answer_under_way_does_not_bring_a_campaign_back(tmp_path: Path, braze: Simulator) -> None:
    """What was asked for before a campaign was removed is dropped when it comes: success or failure."""
    names = names_of(braze)
    good, bad, *others = names
    braze.misbehave(Latency(0.4), campaign_id=good)
    braze.misbehave(Latency(0.4), campaign_id=bad)
    braze.misbehave(Status(404), campaign_id=bad)
    with running(tmp_path, written(("main", braze, names)), ready=False) as run:
        eventually(lambda: len(braze.requests) == len(names), what="all requests")
        run.change(written(("main", braze, {name: names[name] for name in others})))
        eventually(run.ready, what="a poller that does not wait for what is gone")
        eventually(lambda: not asking(run, "main"), what="the end of the polls under way")

        assert run.lines(good) + run.lines(bad) == []
        assert run.known() == others


@pytest.mark.server
def test_a_campaign_that_is_back_is_not_asked_twice_at_once(tmp_path: Path, braze: Simulator) -> None:
    """An answer that was under way all the time counts for the campaign that was away meanwhile."""
    names = names_of(braze)
    back, *others = names
    braze.misbehave(Latency(0.4), campaign_id=back)
    with running(tmp_path, written(("main", braze, names)), ready=False) as run:
        eventually(lambda: len(braze.requests) == len(names), what="all requests")
        run.change(written(("main", braze, {name: names[name] for name in others})))
        run.change(written(("main", braze, names)))
        eventually(lambda: run.numbers(back), what="numbers of the campaign that is back")

        assert asked(braze)[back] == 1


@pytest.mark.server
def test_workspaces_come_and_go(tmp_path: Path, braze: Simulator) -> None:
    """A new workspace is polled at once; a removed one leaves nothing: no series, no thread, no connection."""
    names = names_of(braze)
    with Simulator(api_key=KEY, campaigns=3) as second:
        other = ("other", second, names_of(second))
        with running(tmp_path, written(("main", braze, names))) as run:
            run.change(written(("main", braze, names), other))
            eventually(lambda: all(map(run.numbers, names_of(second))), what="numbers of the new workspace")
            begun = threads_of("other")
            run.change(written(("main", braze, names)))
            gone = 'workspace="other"' not in run.text()
            eventually(lambda: not threads_of("other"), what="threads that have ended")
            eventually(lambda: not connected_to(second), what="connections that are closed")

            assert begun
            assert gone
            assert [state.workspace for state in run.poller.workspaces] == ["main"]
            assert asked(braze) == Counter(list(names))


def threads_of(workspace: str) -> list[str]:
    """Return the names of the threads that poll a workspace."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"poll {workspace} ")]


def connected_to(braze: Simulator) -> int:
    """Count the connections of this machine whose other end is a simulator and that are open at this end."""
    port = f":{int(braze.url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(row[2].endswith(port) and row[3] in {"01", "08"} for row in rows)


@pytest.mark.server
def test_another_endpoint(tmp_path: Path, braze: Simulator) -> None:
    """Numbers and counters stay; the new Braze is asked at once; what the old one still says counts no more."""
    names = names_of(braze)
    slow = next(iter(names))
    with (
        Simulator(api_key=KEY, campaigns=6) as second,
        running(tmp_path, written(("main", braze, names), poll=QUICK)) as run,
    ):
        braze.misbehave(Status(404))
        braze.misbehave(Latency(0.7), campaign_id=slow)
        told = asked(braze)[slow]
        eventually(lambda: asked(braze)[slow] > told, what="a slow request")
        requests = run.poller.workspaces[0].apis["data_series"].requests
        run.change(written(("main", second, names), poll=QUICK))
        kept = all(map(run.numbers, names))
        failures = {name: sum(run.state(name).failures.values()) for name in names}
        eventually(lambda: asked(second).keys() == names.keys(), what="requests to the new Braze")
        eventually(lambda: not connected_to(braze), what="connections to the old one that are closed")

        assert kept
        assert failures == {name: sum(run.state(name).failures.values()) for name in names}
        assert run.poller.workspaces[0].apis["data_series"].requests > requests
        assert not [request for request in second.requests if request.status != 200]


@pytest.mark.server
@pytest.mark.parametrize("source", ["the same file", "another file", "a variable"])
def test_another_key(source: str, tmp_path: Path, braze: Simulator) -> None:
    """After a 401 a reload with another key asks at once, wherever the key is."""
    names = names_of(braze)
    good = KEY
    if source == "a variable":
        (tmp_path / "wrong-key").write_text(OTHER_KEY, encoding="utf-8")
        before, after = "api_key_file: wrong-key, ", "api_key_env: KEY, "
    else:
        good = OTHER_KEY
        (tmp_path / "good-key").write_text(OTHER_KEY, encoding="utf-8")
        before, after = "api_key_file: api-key, ", "api_key_file: good-key, "
    braze.api_key = good
    with running(tmp_path, written(("main", braze, names), settings=before)) as run:
        closed = run.poller.workspaces[0].paused
        if source == "the same file":
            (tmp_path / "api-key").write_text(OTHER_KEY, encoding="utf-8")
            after = before
        run.change(written(("main", braze, names), settings=after))
        eventually(lambda: all(state.up for state in run.poller.campaigns), what="a workspace that is up")

        assert closed == "unauthorized"
        assert {KEY, OTHER_KEY} <= set(run.poller.secrets)
        assert run.poller.workspaces[0].up


@pytest.mark.server
def test_the_previous_day_can_be_switched(tmp_path: Path, braze: Simulator) -> None:
    """Its numbers go at once, and come back with the next polls."""
    names = names_of(braze)
    with running(tmp_path, written(("main", braze, names), poll=QUICK)) as run:
        shown = run.text().count("braze_previous_day_")
        run.change(written(("main", braze, names), poll=f"{QUICK}, previous_day: false"))
        gone = run.text()
        run.change(written(("main", braze, names), poll=QUICK))
        eventually(lambda: run.text().count("braze_previous_day_") == shown, what="the previous day")

        assert "braze_previous_day_" not in gone
        assert "braze_message_sent{" in gone


@pytest.mark.server
def test_another_time_zone(tmp_path: Path, braze: Simulator) -> None:
    """The time stamps of days move at once, and nobody is asked for that."""
    names = names_of(braze)
    with running(tmp_path, written(("main", braze, names))) as run:
        before = stamps(run)
        run.change(written(("main", braze, names), settings="timezone: Asia/Tokyo, "))

        assert len(before) == 2 * len(names)
        assert {series: stamp - 9 * 3600 for series, stamp in before.items()} == stamps(run)
        assert run.poller.workspaces[0].timezone == "Asia/Tokyo"
    assert asked(braze) == Counter(list(names))


def stamps(run: Running) -> dict[str, float]:
    """Return the time stamps of the days that are shown."""
    lines = (line.rpartition(" ") for line in run.text().splitlines() if "_day_timestamp_seconds{" in line)
    return {series: float(value) for series, _, value in lines}


@pytest.mark.server
def test_other_limits(tmp_path: Path, braze: Simulator) -> None:
    """Lower limits drop the last campaigns' rows at once, higher ones bring them back at once."""
    names = names_of(braze)
    with running(tmp_path, written(("main", braze, names))) as run:
        whole = run.text()
        sizes = [run.exposition.shown(("main", "data_series", name)) for name in names]
        run.change(written(("main", braze, names), limits=f"series: {sum(sizes[:3])}"))
        fewer = [run.exposition.shown(("main", "data_series", name)) for name in names]
        run.change(written(("main", braze, names), limits="series_per_campaign: 10"))
        least = [run.exposition.shown(("main", "data_series", name)) for name in names]
        run.change(written(("main", braze, names)))

        assert fewer[:3] == sizes[:3]
        assert fewer[4:] == [0, 0]
        assert 0 < max(least) <= 10
        assert sorted(run.text().splitlines()) == sorted(whole.splitlines())
    assert asked(braze) == Counter(list(names))


@pytest.mark.server
def test_room_of_a_removed_campaign(tmp_path: Path, braze: Simulator) -> None:
    """What a removed campaign leaves goes at once to those that had no place, not to newcomers."""
    names = names_of(braze)
    first, second, third, *_ = names
    two = {name: names[name] for name in (first, second)}
    with running(tmp_path, written(("main", braze, two))) as run:
        limits = f"series: {max(run.exposition.shown(('main', 'data_series', name)) for name in two)}"
        run.change(written(("main", braze, two), limits=limits))
        run.change(written(("main", braze, {second: names[second], third: names[third]}), limits=limits))
        eventually(lambda: run.state(third).up, what="a poll of the newcomer")

        assert len(run.numbers(second)) > len(run.numbers(third))


@pytest.mark.server
def test_stale_numbers_go_at_once(tmp_path: Path, braze: Simulator) -> None:
    """A shorter stale_after takes away what is older, without waiting for the time that the old one had left."""
    names = names_of(braze)
    with running(tmp_path, written(("main", braze, names), poll="interval: 1s, timeout: 1s, stale_after: 1h")) as run:
        braze.misbehave(Status(404))
        eventually(lambda: all(state.failure for state in run.poller.campaigns), what="failures")
        run.change(written(("main", braze, names), poll="interval: 1s, timeout: 1s, stale_after: 2s"))
        eventually(lambda: "braze_message_sent" not in run.text(), what="no numbers")

        assert 'braze_campaign_up{campaign_id="' in run.text()


@pytest.mark.server
def test_another_interval(tmp_path: Path, braze: Simulator) -> None:
    """A shorter interval holds at once, for the schedule and for what is shown of it."""
    names = names_of(braze)
    with running(tmp_path, written(("main", braze, names))) as run:
        run.change(written(("main", braze, names), poll="interval: 1s, timeout: 1s, stale_after: 1h"))
        lines = [line for line in run.text().splitlines() if line.startswith("braze_campaign_poll_interval_seconds{")]
        eventually(lambda: min(asked(braze).values()) >= 3, what="polls every second")

        assert {line.rpartition(" ")[2] for line in lines} == {"1.0"}


@pytest.mark.server
def test_another_pace_and_concurrency(tmp_path: Path, braze: Simulator) -> None:
    """A higher pace is not held up by the old one, and threads grow and shrink to the concurrency."""
    names = names_of(braze)
    braze.misbehave(Latency(0.2))
    slow = written(("main", braze, names), poll=f"{QUICK}, concurrency: 1", settings="requests_per_minute: 1, ")
    with running(tmp_path, slow, ready=False) as run:
        eventually(lambda: braze.requests, what="the first request")
        run.change(written(("main", braze, names), poll=QUICK, settings="requests_per_minute: 50000, "))
        eventually(run.ready, what="the end of the first round")
        eventually(lambda: len(threads_of("main")) > 1, what="more threads")
        run.change(written(("main", braze, names), poll=f"{QUICK}, concurrency: 1"))
        eventually(lambda: len(threads_of("main")) == 1, what="one thread")
        polls = len(braze.requests)
        eventually(lambda: len(braze.requests) >= polls + 3, what="polls that go on")


@pytest.mark.server
def test_ready_stays(tmp_path: Path, braze: Simulator) -> None:
    """A poller that is ready stays so whatever comes; one that waits for a campaign does not wait when it is gone."""
    names = names_of(braze)
    hanging, *others = names
    braze.misbehave(Hang(), campaign_id=hanging)
    with running(tmp_path, written(("main", braze, names)), ready=False) as run:
        eventually(lambda: sum(bool(state.up) for state in run.poller.campaigns) == len(others), what="the others")
        before = run.ready()
        run.change(written(("main", braze, {name: names[name] for name in others})))
        without = run.ready()
        run.change(written(("main", braze, names)))

        assert (before, without, run.ready()) == (False, True, True)


@pytest.mark.server
def test_a_key_that_is_gone_refuses_all(tmp_path: Path, braze: Simulator) -> None:
    """A file whose keys cannot all be read changes nothing, and leaves no thread and no connection behind."""
    names = names_of(braze)
    with running(tmp_path, written(("main", braze, names))) as run:
        before, threads = run.text(), threading.active_count()
        loaded = config.load(tmp_path / "config.yaml", {"KEY": KEY})
        good = loaded.workspaces[0].model_copy(update={"name": "good", "campaigns": ()})
        gone = good.model_copy(update={"name": "gone", "api_key_file": tmp_path / "nothing"})
        main = loaded.workspaces[0].model_copy(update={"campaigns": loaded.workspaces[0].campaigns[1:]})
        other = loaded.model_copy(update={"workspaces": (main, good, gone)})
        with pytest.raises(ConfigError, match="gone"):
            run.poller.apply(other, compare(loaded, other))
        eventually(lambda: threading.active_count() <= threads, what="no thread of what was refused")

        assert before == run.text()
        assert run.known() == list(names)
        assert [state.workspace for state in run.poller.workspaces] == ["main"]


@pytest.mark.server
def test_many_reloads_while_polls_fail_and_hang(tmp_path: Path, braze: Simulator) -> None:
    """In the thick of polls, cuts and hangs, campaigns and workspaces that come and go leave nothing behind."""
    names = names_of(braze)
    first, second, *others = names
    poll = "interval: 1s, timeout: 1s, stale_after: 2s"
    braze.misbehave(Latency(0.02))
    braze.misbehave(Cut(), campaign_id=first)
    braze.misbehave(Hang(), campaign_id=second)
    with running(tmp_path, written(("main", braze, names), poll=poll)) as run:
        threads = threading.active_count()
        for number in range(60):
            mine = {name: names[name] for place, name in enumerate(names) if (place + number) % 3}
            run.change(written(("main", braze, mine), ("other", braze, {second: "x"}), poll=poll))
            run.change(written(("main", braze, names), poll=poll))
        eventually(lambda: not threads_of("other"), what="threads that have ended")
        eventually(lambda: threading.active_count() <= threads + 8, what="as many threads as before")
        run.change(written(("main", braze, {name: names[name] for name in others}), poll=poll))
        polls = {name: run.state(name).polls for name in others}
        eventually(lambda: all(run.state(name).polls > polls[name] for name in others), what="polls that go on")

        assert set(run.known()) == set(others)
        assert not run.lines(first) + run.lines(second)
