"""Tests of exporter.braze.client: a simulated Braze over real HTTP, and what a client makes of each response."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from exporter.braze.api import Api, RateLimit
from exporter.braze.client import Client, _check_status
from exporter.braze.data_series import SAMPLES, DataSeries
from exporter.braze.decoding import DecodingLocks
from exporter.braze.errors import BrazeError, RateLimited, Reason, log_traceback
from exporter.braze.rate_limiter import Permit
from exporter.braze.transport import Reply
from exporter.config import Campaign, Poll, Workspace, read_api_key
from exporter.polled import DATA_SERIES
from exporter.simulator.server import Body, Cut, Fault, Hang, Latency, Simulator, Status
from tests.braze.test_rate_limiter import Steady
from tests.support.servers import eventually

server = pytest.mark.server

API = DATA_SERIES.api
LATE = 30.0
DATE = "Thu, 05 Mar 2026 12:00:00 GMT"
NOON = 1772712000
SOON = 0.25
OPEN = Permit()
PROBE = Permit(probe=True)


class Hasty(Random):
    """Jitter that leaves nothing of a back-off."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        """Return no time at all."""
        return 0.0


# -- Answers -----------------------------------------------------------------------------------------------------------

KEY = "simulated-braze-key"


def error_in(status: int, body: bytes) -> BrazeError:
    """Return the error that an answer to a request with the key is."""
    with pytest.raises(BrazeError) as caught:
        _check_status(Reply(status, {}, body), (KEY,), NOON)
    return caught.value


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (201, Reason.BAD_PAYLOAD),
        (204, Reason.BAD_PAYLOAD),
        (206, Reason.BAD_PAYLOAD),
        (301, Reason.REDIRECT),
        (304, Reason.REDIRECT),
        (307, Reason.REDIRECT),
        (400, Reason.BAD_REQUEST),
        (401, Reason.UNAUTHORIZED),
        (402, Reason.BAD_REQUEST),
        (403, Reason.FORBIDDEN),
        (404, Reason.NOT_FOUND),
        (405, Reason.BAD_REQUEST),
        (407, Reason.CONNECTION),
        (408, Reason.CONNECTION),
        (410, Reason.BAD_REQUEST),
        (418, Reason.BAD_REQUEST),
        (425, Reason.CONNECTION),
        (429, Reason.RATE_LIMITED),
        (500, Reason.SERVER_ERROR),
        (501, Reason.SERVER_ERROR),
        (502, Reason.SERVER_ERROR),
        (503, Reason.SERVER_ERROR),
        (504, Reason.SERVER_ERROR),
        (599, Reason.SERVER_ERROR),
        (600, Reason.BAD_PAYLOAD),
        (999, Reason.BAD_PAYLOAD),
    ],
)
def test_reasons_of_statuses(status: int, reason: Reason) -> None:
    """Every status but 200 is a failure with a reason; its text is the status."""
    error = error_in(status, b"{}")

    assert error.reason is reason
    assert str(error).removesuffix(": too many requests") == f"Braze responded with {status}"


@pytest.mark.parametrize(
    ("status", "message", "shown"),
    [
        (400, "campaign_id is wrong", ": campaign_id is wrong"),
        (403, "The plan is inactive", ": The plan is inactive"),
        (404, "No such URL", ": No such URL"),
        (400, "", ""),
        (400, "x" * 1000, ": " + "x" * 200),
        (400, "two\nlines \ud800\x1b[31m \u202e \N{SNOWMAN}", ": two lines   [31m   \N{SNOWMAN}"),
        (400, None, ""),
        (400, 7, ""),
        (400, ["No"], ""),
        (400, "Invalid: simulated-braze-key", ""),
        (403, "x" * 500 + "LATED-BR", ""),
        (404, "not simulate-braze-key: ulated-b", ""),
        (400, "not simulat-ed", ": not simulat-ed"),
        (401, "Invalid API key: simulated-braze-key", ""),
        (401, "Expired", ""),
        (402, "Pay", ""),
        (429, "Slow down", ": too many requests"),
        (500, "Broken", ""),
    ],
)
def test_braze_own_words(status: int, message: object, shown: str) -> None:
    """The message of an error that a person can mend is shown, short and printable, unless it holds part of the key."""
    body = json.dumps({"message": message}).encode()

    assert str(error_in(status, body)) == f"Braze responded with {status}{shown}"


@pytest.mark.parametrize("body", [b"", b"No", b"[]", b"\xff", b"[" * 100_000, b'{"message": %s}' % (b"9" * 5000)])
def test_errors_without_a_message(body: bytes) -> None:
    """An error's body may be anything."""
    error = error_in(400, body)

    assert (error.reason, str(error)) == (Reason.BAD_REQUEST, "Braze responded with 400")


# -- The client --------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """A monotonic clock that can be put forward."""

    ahead: float = 0.0

    def __call__(self) -> float:
        """Return seconds."""
        return time.monotonic() + self.ahead


class Pauses(threading.Event):
    """Takes note of how long it is waited for, and lets no time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.before: Callable[[], object] = lambda: None

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once."""
        self.before()
        self.seconds.append(timeout or 0.0)
        return self.is_set()


@pytest.fixture
def braze() -> Iterator[Simulator]:
    """Run a simulated Braze."""
    with Simulator(campaigns=1) as simulator:
        yield simulator


class NewClient:
    """Makes clients of the simulated Braze, with any of their arguments otherwise."""

    def __init__(self, braze: Simulator) -> None:
        self.braze = braze
        self.clients: list[Client] = []

    def __call__(
        self,
        *,
        apis: Sequence[Api[object]] = (API,),
        endpoint: str = "",
        key_file: Path | None = None,
        requests_per_minute: int = 50_000,
        interval: float = 300.0,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        stopped: threading.Event | None = None,
        decoding_locks: DecodingLocks | None = None,
        read_key: Callable[[Workspace, Mapping[str, str]], str] = read_api_key,
    ) -> Client:
        """Return a client."""
        workspace = Workspace(
            name="main",
            endpoint=endpoint or self.braze.url,
            api_key_file=key_file,
            api_key_env="KEY",
            requests_per_minute=requests_per_minute,
            campaigns=(Campaign(id=self.braze.campaigns[0].id),),
        )
        client = Client(
            workspace,
            apis,
            interval=interval,
            environ={"KEY": self.braze.api_key},
            wall=wall,
            monotonic=monotonic,
            random=random or Hasty(),
            stopped=stopped or threading.Event(),
            decoding_locks=decoding_locks,
            read_key=read_key,
        )
        self.clients.append(client)
        return client


@pytest.fixture
def new_client(braze: Simulator) -> Iterator[NewClient]:
    """Make clients, which are closed after the test."""
    new_client = NewClient(braze)
    yield new_client
    for client in new_client.clients:
        client.close()


@pytest.fixture
def client(new_client: NewClient) -> Client:
    """Return a client whose back-offs take no time."""
    return new_client()


def ask(client: Client, *, permit: Permit = OPEN, timeout: float = LATE) -> DataSeries:
    """Ask for the only campaign and read the answer."""
    received = client.request(API, client.workspace.campaigns[0].id, poll=Poll(timeout=timeout), permit=permit)
    return client.read(received, samples=SAMPLES)


def reason_of(client: Client, *, permit: Permit = OPEN, timeout: float = LATE) -> Reason | None:
    """Ask for the only campaign; return how that failed, None where it succeeded."""
    try:
        ask(client, permit=permit, timeout=timeout)
    except BrazeError as error:
        return error.reason
    return None


def misbehave(braze: Simulator, *faults: Fault) -> None:
    """Answer the next requests with these faults, one each."""
    for fault in reversed(faults):
        braze.misbehave(fault, times=1)


def failures(client: Client) -> dict[Reason, int]:
    """Return the failures that were counted."""
    return {reason: count for reason, count in client.statistics["data_series"].failures.items() if count}


@server
def test_a_success(braze: Simulator, client: Client) -> None:
    """The answer is decoded, the request is what Braze documents, and all of it is counted."""
    answer = ask(client)
    statistics = client.statistics["data_series"]

    assert answer.latest is not None
    assert answer.previous is not None
    assert answer.latest.date - answer.previous.date == timedelta(days=1)
    (request,) = braze.requests
    assert (request.path, request.query) == (
        "/campaigns/data_series",
        f"campaign_id={braze.campaigns[0].id}&length=3",
    )
    assert request.authorized
    assert (statistics.requests, sum(statistics.durations)) == (1, 1)
    assert 0 < statistics.duration_sum < LATE
    assert (statistics.rate_limit, statistics.rate_limit_remaining) == (50_000, 49_999)
    assert time.time() - 1 < (statistics.rate_limit_reset or 0) < time.time() + 61
    assert failures(client) == {}


@server
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(Hang(), Reason.TIMEOUT, id="hang"),
        pytest.param(Cut(0), Reason.CONNECTION, id="cut"),
        pytest.param(Body(bytes(20 << 20)), Reason.TOO_LARGE, id="20 MiB"),
        pytest.param(Body(b"<html>Busy</html>"), Reason.BAD_PAYLOAD, id="HTML"),
        pytest.param(Status(200, b"{}", {"Content-Encoding": "gzip"}), Reason.BAD_PAYLOAD, id="not gzip"),
    ],
)
def test_reasons_of_broken_answers(braze: Simulator, client: Client, fault: Fault, reason: Reason) -> None:
    """An answer that does not arrive, or is not what it says it is, has a reason too, and its text none of it."""
    braze.misbehave(fault)
    with pytest.raises(BrazeError) as caught:
        ask(client, timeout=SOON if isinstance(fault, Hang) else LATE)

    assert caught.value.reason is reason
    assert len(str(caught.value)) < 80
    assert "Busy" not in str(caught.value)


@server
@pytest.mark.parametrize(
    ("body", "content_type", "received"),
    [
        pytest.param(
            b"<html><title>Access denied</title>",
            "text/html; charset=utf-8",
            "34 bytes of text/html with the title 'Access denied'",
            id="a page",
        ),
        pytest.param(
            f"<title>No {KEY}</title>".encode(), "text/html", "37 bytes of text/html", id="a key in the title"
        ),
        pytest.param(b"", f"text/{KEY}", "an empty body", id="a key in the type"),
    ],
)
def test_a_body_that_is_not_json_is_described(
    braze: Simulator, client: Client, body: bytes, content_type: str, received: str
) -> None:
    """The error names type, size and a page's title, and never a part of the key."""
    braze.misbehave(Body(body, content_type))
    with pytest.raises(BrazeError) as caught:
        ask(client)

    assert str(caught.value) == f"expected JSON, got {received}"


@server
def test_a_response_whose_reading_fails_unexpectedly(
    braze: Simulator, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """It is one response's trouble: counted as its payload's, with a traceback of few lines without its text."""
    received = client.request(API, braze.campaigns[0].id, poll=Poll(), permit=OPEN)
    received.body = None  # type: ignore[assignment]
    with pytest.raises(BrazeError) as caught:
        client.read(received, samples=SAMPLES)

    assert caught.value.reason is Reason.BAD_PAYLOAD
    assert str(caught.value) == "the response cannot be read or shown, see the traceback"
    assert caught.value.__context__ is None
    assert failures(client) == {Reason.BAD_PAYLOAD: 1}
    (record,) = caplog.records
    assert vars(record)["campaign_id"] == braze.campaigns[0].id
    assert "in decoded" in vars(record)["traceback"]
    assert "NoneType" not in str(vars(record))


def test_a_deep_traceback_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """Of an exception deep inside, the innermost twenty places are logged."""

    def descend(depth: int) -> None:
        if depth:
            descend_again(depth)
        raise KeyError("a part of the response")

    def descend_again(depth: int) -> None:
        descend(depth - 1)

    try:
        descend(100)
    except KeyError as error:
        log_traceback("main", "id", error)

    assert vars(caplog.records[0])["traceback"].count("File") == 20
    assert vars(caplog.records[0])["traceback"].rstrip().endswith('raise KeyError("a part of the response")')
    assert vars(caplog.records[0])["error"] == "KeyError"


@server
def test_large_responses_take_turns(braze: Simulator, new_client: NewClient) -> None:
    """A large response that was received has its turn until it is read; one that fails on the way lets go of it."""
    locks = DecodingLocks()
    client = new_client(decoding_locks=locks)
    body = b'{"data": [], "text": "%s"}' % (b"x" * (2 << 20))
    for fault, reason in ((Body(body), None), (Body(bytes(20 << 20)), Reason.TOO_LARGE)):
        misbehave(braze, fault)
        assert reason_of(client) is reason
        assert len(locks.large) == 0
    misbehave(braze, Body(body), Body(body), Body(b'{"data": []}'))
    received = client.request(API, braze.campaigns[0].id, poll=Poll(), permit=OPEN)
    assert len(locks.large) == 1
    other = reason_of(client, timeout=SOON)
    small = client.request(API, braze.campaigns[0].id, poll=Poll(), permit=OPEN)
    assert client.read(small, samples=SAMPLES) == DataSeries(None, None)
    assert len(locks.large) == 1
    assert client.read(received, samples=SAMPLES) == DataSeries(None, None)

    assert other is Reason.TIMEOUT
    assert received.body == b""
    assert len(locks.large) == 0


@server
def test_reason_of_tls(braze: Simulator, new_client: NewClient) -> None:
    """Where there is no TLS but should be, the reason is that, and there is no second try."""
    client = new_client(endpoint=braze.url.replace("http:", "https:"))

    assert reason_of(client) is Reason.TLS
    assert failures(client) == {Reason.TLS: 1}


E500, E503 = Status(500), Status(503)


@server
@pytest.mark.parametrize(
    ("faults", "tries", "reason"),
    [
        ([E500], 2, None),
        ([Cut(0), E503], 3, None),
        ([Cut(300), Cut(30)], 3, None),
        ([E500, E500, E503], 3, Reason.SERVER_ERROR),
        ([E500, E500, Cut(30)], 3, Reason.CONNECTION),
        ([Status(407)] * 3, 3, Reason.CONNECTION),
        ([Status(408), Status(425)], 3, None),
        ([Status(425), Status(408), Status(408)], 3, Reason.CONNECTION),
        ([E500, Status(404)], 2, Reason.NOT_FOUND),
        ([E500, Status(429)], 2, Reason.RATE_LIMITED),
        ([E500, Hang()], 2, Reason.TIMEOUT),
        ([Hang()], 1, Reason.TIMEOUT),
        ([Status(400)], 1, Reason.BAD_REQUEST),
        ([Status(401)], 1, Reason.UNAUTHORIZED),
        ([Status(403)], 1, Reason.FORBIDDEN),
        ([Status(404)], 1, Reason.NOT_FOUND),
        ([Status(429)], 1, Reason.RATE_LIMITED),
        ([Status(301)], 1, Reason.REDIRECT),
        ([Body(b"?")], 1, Reason.BAD_PAYLOAD),
        ([Body(bytes(20 << 20))], 1, Reason.TOO_LARGE),
    ],
)
def test_retries(braze: Simulator, client: Client, faults: list[Fault], tries: int, reason: Reason | None) -> None:
    """What may pass by itself is tried three times in all, everything else once; the last try's reason counts."""
    if reason is not None:
        braze.misbehave(faults[-1])
    misbehave(braze, *faults)

    assert reason_of(client, timeout=0.5 if Hang() in faults else LATE) is reason
    assert len(braze.requests) >= tries  # one on a connection that turns out to be closed is sent once more
    statistics = client.statistics["data_series"]
    assert (statistics.requests, sum(statistics.durations)) == (tries, tries)
    assert sum(statistics.failures.values()) == tries - (reason is None)


@server
def test_retries_that_do_not_fit(braze: Simulator, new_client: NewClient) -> None:
    """No retry is made for which there is no time, and none is waited for: the reason is the first try's."""
    pauses = Pauses()
    client = new_client(random=Steady(1.0), stopped=pauses)
    braze.misbehave(E500)

    assert reason_of(client, timeout=0.45) is Reason.SERVER_ERROR
    assert len(braze.requests) == 1
    assert pauses.seconds == []


@server
@pytest.mark.parametrize(("jitter", "expected"), [(0.0, [0.25, 0.5]), (1.0, [0.5, 1.0])])
def test_back_off_of_retries(braze: Simulator, new_client: NewClient, jitter: float, expected: list[float]) -> None:
    """Retries wait a while with jitter, the second longer than the first."""
    pauses = Pauses()
    braze.misbehave(E500)

    assert reason_of(new_client(random=Steady(jitter), stopped=pauses)) is Reason.SERVER_ERROR
    assert [seconds for seconds in pauses.seconds if seconds > 0.1] == expected


class Woken(threading.Event):
    """Whoever waits wakes much later than it wanted to."""

    def __init__(self, clock: "Clock") -> None:
        super().__init__()
        self.clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        """Return when a minute has passed."""
        assert timeout is not None
        self.clock.ahead += 60.0
        return self.is_set()


@server
def test_no_retry_after_the_deadline(braze: Simulator, new_client: NewClient) -> None:
    """A back-off that ends behind the deadline, as the machine slept, is no time-out: the first try's reason stays."""
    clock = Clock()
    client = new_client(monotonic=clock, stopped=Woken(clock))
    braze.misbehave(E500)

    assert reason_of(client, timeout=30.0) is Reason.SERVER_ERROR
    assert len(braze.requests) == 1
    assert failures(client) == {Reason.SERVER_ERROR: 1}


@server
def test_a_wait_for_the_pace_is_in_short_steps(braze: Simulator, new_client: NewClient) -> None:
    """Whoever waits looks at the clock every five seconds at least, and sends nothing before its time."""
    pauses = Pauses()
    clock = Clock()
    client = new_client(requests_per_minute=1, monotonic=clock, stopped=pauses, random=Steady(0.0))
    assert isinstance(client.limiter(API).acquire(clock()), Permit)
    misbehave(braze, E500)
    pauses.before = lambda: setattr(clock, "ahead", clock.ahead + 5.0)

    assert reason_of(client, timeout=300.0) is None
    assert max(pauses.seconds) <= 5.0
    assert clock.ahead >= 55.0
    assert len(braze.requests) == 2


@server
def test_a_retry_that_would_wait_too_long_for_the_pace(braze: Simulator, new_client: NewClient) -> None:
    """Where the pace allows a retry only behind the deadline, none is waited for."""
    pauses = Pauses()
    client = new_client(requests_per_minute=1, stopped=pauses, random=Steady(0.0))
    assert isinstance(client.limiter(API).acquire(time.monotonic()), Permit)
    braze.misbehave(E500)

    assert reason_of(client, timeout=30.0) is Reason.SERVER_ERROR
    assert len(pauses.seconds) == 1


@server
def test_retries_are_paced(braze: Simulator, new_client: NewClient) -> None:
    """A retry is a request like any other: it waits for its turn."""
    client = new_client(requests_per_minute=200)
    misbehave(braze, E500)
    permit = client.limiter(API).acquire(time.monotonic())
    assert isinstance(permit, Permit)
    started = time.monotonic()

    assert reason_of(client, permit=permit) is None
    assert braze.requests[1].time - started >= 0.3 - 0.021


@server
def test_no_retry_during_a_pause(braze: Simulator, client: Client) -> None:
    """When another request was refused meanwhile, a retry would be one of the storm."""
    client.limiter(API).record_failure(OPEN, RateLimited("", 60.0), time.monotonic())
    misbehave(braze, E500)

    assert reason_of(client) is Reason.SERVER_ERROR
    assert len(braze.requests) == 1


@server
def test_no_retry_after_the_stop(braze: Simulator, new_client: NewClient) -> None:
    """When the exporter stops, nothing is tried again."""
    stopped = threading.Event()
    stopped.set()
    misbehave(braze, E500)

    assert reason_of(new_client(stopped=stopped)) is Reason.SERVER_ERROR
    assert len(braze.requests) == 1


@server
def test_probes_are_single_requests(braze: Simulator, client: Client) -> None:
    """A probe that fails is followed by another probe of the limiter, not by a retry."""
    limiter = client.limiter(API)
    limiter.record_failure(OPEN, RateLimited("", 0.0), time.monotonic())
    misbehave(braze, E500)
    permit = limiter.acquire(time.monotonic())
    assert permit == PROBE

    assert reason_of(client, permit=PROBE) is Reason.SERVER_ERROR
    assert len(braze.requests) == 1
    assert limiter.acquire(time.monotonic()) == PROBE
    assert reason_of(client, permit=PROBE) is None
    assert limiter.paused is None


@server
def test_a_rate_limit_pauses_until_its_reset(braze: Simulator, client: Client) -> None:
    """A 429 pauses the rate limiter until the minute on Braze's clock is over."""
    braze.misbehave(Status(429, headers={"Date": DATE, "X-RateLimit-Reset": f"{NOON + 30}"}))

    assert reason_of(client) is Reason.RATE_LIMITED
    assert client.limiter(API).paused is Reason.RATE_LIMITED
    assert 20 < client.limiter(API).paused_for(time.monotonic()) <= 30


@server
def test_a_rate_limit_without_a_date_goes_by_our_clock(braze: Simulator, new_client: NewClient) -> None:
    """Where a proxy has stripped Braze's Date, the reset of the limit counts all the same."""
    client = new_client(wall=lambda: NOON)
    braze.misbehave(Status(429, headers={"Date": "", "X-RateLimit-Reset": f"{NOON + 200}"}))

    assert reason_of(client) is Reason.RATE_LIMITED
    assert 150 < client.limiter(API).paused_for(time.monotonic()) <= 200


@server
def test_rate_limits_of_apis(new_client: NewClient) -> None:
    """APIs with one rate limit share its rate limiter; a 401 of any is what pauses the client, before a 429."""
    other = RateLimit("other", lambda _: 60.0)
    lists, details = (replace(API, name=name, rate_limit=other) for name in ("list", "details"))
    client = new_client(apis=(API, lists, details))
    paused = [client.paused]
    client.limiter(lists).record_failure(OPEN, RateLimited("", 60.0), time.monotonic())
    paused.append(client.paused)
    client.limiter(API).record_failure(OPEN, BrazeError(Reason.UNAUTHORIZED, ""), time.monotonic())
    paused.append(client.paused)

    assert client.limiter(details) is client.limiter(lists)
    assert client.limiter(API) is not client.limiter(lists)
    assert paused == [None, Reason.RATE_LIMITED, Reason.UNAUTHORIZED]
    assert client.statistics.keys() == {"data_series", "list", "details"}


@server
@pytest.mark.parametrize(("interval", "longest"), [(20.0, 20.0), (3600.0, 300.0)])
def test_a_wrong_key_pauses_for_an_interval(
    braze: Simulator, new_client: NewClient, interval: float, longest: float
) -> None:
    """A 401 pauses the rate limiter for an interval, five minutes at most."""
    client = new_client(interval=interval)
    braze.misbehave(Status(401))

    assert reason_of(client) is Reason.UNAUTHORIZED
    assert longest - 10 < client.limiter(API).paused_for(time.monotonic()) <= longest


@server
@pytest.mark.parametrize("status", [401, 429])
def test_pauses_are_logged_once(
    braze: Simulator, client: Client, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """However many requests in flight are refused, the log says once that and how long the workspace pauses."""
    caplog.set_level(logging.INFO)
    braze.misbehave(Latency(0.1))
    braze.misbehave(Status(status, headers={"Retry-After": "60"}))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: reason_of(client), range(8)))
    reason_of(client, permit=PROBE)
    braze.behave()
    ask(client, permit=PROBE)

    assert [record.levelname for record in caplog.records] == ["ERROR" if status == 401 else "WARNING", "INFO"]
    assert vars(caplog.records[0])["workspace"] == "main"
    assert float(vars(caplog.records[0])["next_request_in"].removesuffix("s")) > 50
    assert caplog.messages[1] == "Braze accepts requests again"
    assert braze.api_key not in str([vars(record) for record in caplog.records])


LARGE = f"{2**60}"


@server
@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "expected"),
    [
        ("100", "7", "1772712000", (100, 7, 1772712000)),
        ("100", "0", "5", (100, 0, 5)),
        ("", "", "", (50_000, 49_999, None)),
        ("many", "-7", LARGE, (50_000, 49_999, None)),
        ("nan", "inf", "1e5", (50_000, 49_999, None)),
        ("9" * 5000, "7", "", (50_000, 7, None)),
    ],
)
def test_rate_headers(
    braze: Simulator,
    client: Client,
    limit: str,
    remaining: str,
    reset: str,
    expected: tuple[float, float, float | None],
) -> None:
    """The rate limit is kept as the last answer said it; what is empty or absurd leaves the value before."""
    ask(client)
    before = client.statistics["data_series"].rate_limit_reset
    headers = {"x-ratelimit-limit": limit, "X-RateLimit-Remaining": remaining, "X-RATELIMIT-RESET": reset}
    braze.misbehave(Status(401, headers=headers))
    reason_of(client)
    statistics = client.statistics["data_series"]
    reset_now = statistics.rate_limit_reset

    assert (statistics.rate_limit, statistics.rate_limit_remaining) == expected[:2]
    assert reset_now == (expected[2] or before)


@server
def test_statistics_are_copies(client: Client) -> None:
    """What was read once does not change when more happens."""
    before = client.statistics["data_series"]
    ask(client)
    client.counters.count_failure("data_series", Reason.BAD_PAYLOAD)

    assert before.requests == 0
    assert sum(before.durations) == sum(before.failures.values()) == 0
    assert failures(client) == {Reason.BAD_PAYLOAD: 1}


# -- The key -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path, braze: Simulator) -> Path:
    """Return a file with the key."""
    path = tmp_path / "key"
    path.write_text(f"{braze.api_key}\n")
    return path


@server
def test_a_new_key_is_used_with_the_next_interval(braze: Simulator, new_client: NewClient, key_file: Path) -> None:
    """The key is read again once an interval, not for every request."""
    clock = Clock()
    client = new_client(key_file=key_file, interval=300.0, monotonic=clock)
    key_file.write_text("another-braze-key")
    braze.api_key, old = "another-braze-key", braze.api_key

    assert reason_of(client) is Reason.UNAUTHORIZED
    clock.ahead = 299.0
    assert reason_of(client) is Reason.UNAUTHORIZED
    clock.ahead = 300.0
    assert reason_of(client) is None
    key_file.write_text("third-braze-key")
    assert reason_of(client) is None
    assert client.secrets == (old, "another-braze-key")


@server
def test_a_new_key_is_used_with_the_next_probe(braze: Simulator, new_client: NewClient, key_file: Path) -> None:
    """After a 401 each probe reads the key first, so that a replaced key ends the pause."""
    client = new_client(key_file=key_file)
    key_file.write_text("another-braze-key")
    braze.api_key = "another-braze-key"

    assert reason_of(client) is Reason.UNAUTHORIZED
    assert reason_of(client, permit=PROBE) is None
    assert client.limiter(API).paused is None


@server
def test_a_replaced_key_is_not_repeated_either(braze: Simulator, new_client: NewClient, key_file: Path) -> None:
    """An answer that still speaks of the key before is not repeated."""
    client = new_client(key_file=key_file)
    old = key_file.read_text().strip()
    key_file.write_text("quite-another-text")
    braze.api_key = "quite-another-text"
    braze.misbehave(Status(400, json.dumps({"message": f"{old.upper()} has ended"}).encode()))

    with pytest.raises(BrazeError) as raised:
        client.request(API, "id", poll=Poll(timeout=5), permit=PROBE)

    assert str(raised.value) == "Braze responded with 400"


@server
def test_a_refusal_of_a_replaced_key_is_none(braze: Simulator, new_client: NewClient, key_file: Path) -> None:
    """A 401 that comes when the key has been replaced already closes nothing: the same poll tries the new one."""
    client = new_client(key_file=key_file)
    braze.api_key = "another-braze-key"
    braze.misbehave(Latency(0.3), times=1)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(reason_of, client)
        eventually(lambda: braze.requests, what="a request with the old key")
        key_file.write_text("another-braze-key")
        client.change(client.workspace, interval=300.0)

        assert asked.result() is None
    assert [request.status for request in braze.requests] == [401, 200]
    assert client.limiter(API).paused is None


class HangingVolume:
    """Reads keys, but for the first, only when it is told to go on."""

    def __init__(self) -> None:
        self.reading = 0
        self.go_on = threading.Event()

    def __call__(self, workspace: Workspace, environ: Mapping[str, str]) -> str:
        """Return the key of a workspace."""
        self.reading += 1
        if self.reading > 1 and "hangs" in str(workspace.api_key_file):
            assert self.go_on.wait(LATE)
        return read_api_key(workspace, environ)


@server
def test_a_key_file_that_hangs(braze: Simulator, new_client: NewClient, tmp_path: Path) -> None:
    """While a file on a volume that hangs is read, all other requests go on with the old key, also as probes."""
    volume, file = HangingVolume(), tmp_path / "hangs"
    file.write_text(braze.api_key)
    client = new_client(key_file=file, interval=0.001, read_key=volume)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(reason_of, client, permit=PROBE)
        eventually(lambda: volume.reading == 2, what="the file to be read")
        others = [reason_of(client), reason_of(client, permit=PROBE)]
        before = reading.done()
        volume.go_on.set()

        assert reading.result(LATE) is None
    assert others == [None, None]
    assert not before
    assert volume.reading == 2
    assert reason_of(client) is None
    assert volume.reading == 3


@server
@pytest.mark.parametrize("late", ["late-braze-key", ""])
def test_a_reload_while_a_key_file_hangs(
    braze: Simulator, new_client: NewClient, tmp_path: Path, caplog: pytest.LogCaptureFixture, late: str
) -> None:
    """What was being read when a reload brought another file changes and tells nothing any more."""
    volume, file, other = HangingVolume(), tmp_path / "hangs", tmp_path / "other"
    file.write_text(braze.api_key)
    other.write_text("another-braze-key")
    client = new_client(key_file=file, read_key=volume)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(reason_of, client, permit=PROBE)
        eventually(lambda: volume.reading == 2, what="the file to be read")
        client.change(client.workspace.model_copy(update={"api_key_file": other}), interval=300.0)
        file.write_text(late)
        volume.go_on.set()
        reading.result(LATE)

    assert client.secrets == (braze.api_key, "another-braze-key")
    assert "cannot be read" not in caplog.text
    assert caplog.messages.count("the API key was replaced") <= 1


def remove(path: Path) -> None:
    """Delete the key file."""
    path.unlink()


def replace_by_a_folder(path: Path) -> None:
    """Put a folder in the key file's place."""
    path.unlink()
    path.mkdir()


def contents(text: str) -> Callable[[Path], None]:
    """Write another text into the key file."""

    def write(path: Path) -> None:
        path.write_text(text)

    return write


@server
@pytest.mark.parametrize(
    "spoil",
    [
        remove,
        replace_by_a_folder,
        contents(""),
        contents(" \n"),
        contents("two braze-keys"),
        contents("schl\u00fcssel-braze-key"),
        contents("braze-key" * 1000),
    ],
)
def test_a_key_file_that_is_unusable(
    braze: Simulator,
    new_client: NewClient,
    key_file: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    """The old key stays in use; the log says so once, without what is in the file."""
    client = new_client(key_file=key_file)
    spoil(key_file)
    for _ in range(3):
        assert reason_of(client, permit=PROBE) is None

    assert [request.authorized for request in braze.requests] == [True] * 3
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "braze-key" not in str(vars(record)).replace(str(key_file), "")
    assert client.secrets == (braze.api_key,)


@server
def test_a_key_file_that_is_unusable_again(
    new_client: NewClient, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that was mended and breaks once more is worth another line."""
    client = new_client(key_file=key_file)
    good = key_file.read_text()
    for text in ("", good, ""):
        key_file.write_text(text)
        assert reason_of(client, permit=PROBE) is None

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
