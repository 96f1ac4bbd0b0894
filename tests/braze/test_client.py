"""Tests of exporter.braze: permits and pauses as a state machine, and what a client makes of each answer."""

import json
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exporter.braze.client import (
    DURATION_BUCKETS,
    LONGEST_PAUSE,
    ApiStatistics,
    BrazeError,
    Client,
    Counters,
    Permit,
    Pool,
    RateLimited,
    Reason,
    _body,
    log_traceback,
    named_wait,
)
from exporter.braze.data_series import SAMPLES, DataSeries
from exporter.braze.decoding import Lanes
from exporter.braze.transport import Reply
from exporter.config import Campaign, Workspace, read_api_key
from exporter.simulator.server import Body, Cut, Fault, Hang, Latency, Simulator, Status
from tests.support.servers import ROOT, eventually

server = pytest.mark.server

LATE = 30.0
SOON = 0.25
OPEN = Permit()
PROBE = Permit(probe=True)
REFUSALS = [Reason.UNAUTHORIZED, Reason.RATE_LIMITED]
ANSWERS = [Reason.FORBIDDEN, Reason.BAD_REQUEST, Reason.NOT_FOUND, Reason.TOO_LARGE, Reason.BAD_PAYLOAD]
NO_ANSWERS = [Reason.TIMEOUT, Reason.CONNECTION, Reason.TLS, Reason.SERVER_ERROR, Reason.REDIRECT]


class Steady(Random):
    """Jitter that is always the same part of its range: 0 is the least, 1 the most."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part

    def uniform(self, a: float, b: float) -> float:
        """Return what is expected."""
        return a + (b - a) * self.part


class Hasty(Random):
    """Jitter that leaves nothing of a back-off."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        """Return no time at all."""
        return 0.0


# -- The pool ----------------------------------------------------------------------------------------------------------


def pool_of(requests_per_minute: float = 60_000, *, unauthorized_pause: float = 120.0, jitter: float = 1.0) -> Pool:
    """Return an open pool."""
    return Pool(requests_per_minute=requests_per_minute, unauthorized_pause=unauthorized_pause, random=Steady(jitter))


def error_of(reason: Reason, wait: float | None = None) -> BrazeError:
    """Return an error as a client raises it."""
    return RateLimited("", wait) if reason is Reason.RATE_LIMITED else BrazeError(reason, "")


def test_requests_are_paced() -> None:
    """At 60 requests a minute the second comes a second after the first, but for what a late wake-up may make good."""
    pool = pool_of(60)

    assert pool.take(1000.0) == OPEN
    assert pool.take(1000.0) == pytest.approx(0.98)
    assert pool.take(1000.5) == pytest.approx(0.48)
    assert pool.take(1000.98) == OPEN
    assert pool.take(1000.98) == pytest.approx(1.0)


def test_idle_time_is_not_saved_up() -> None:
    """After any pause the pace is as before: a burst is worth 20 ms."""
    pool = pool_of(60_000)
    pool.take(0.0)
    burst = 0
    while isinstance(pool.take(3600.0), Permit):
        burst += 1

    assert burst in {20, 21}  # 20 ms in floats


def test_late_wake_ups_do_not_slow_the_pace() -> None:
    """Who wakes only every 5 ms still gets 1,000 requests a second."""
    pool = pool_of(60_000)
    taken = sum(isinstance(pool.take(step * 0.005), Permit) for step in range(1000) for _ in range(50))

    assert taken == pytest.approx(5000, abs=25)


def test_another_pace_holds_from_the_last_request_on() -> None:
    """Who waits for a slow pace does not wait on when it is faster, and the other way round."""
    pool = pool_of(1)
    pool.take(1000.0)
    waits = [pool.take(1001.0)]
    for requests_per_minute in (20, 6):
        pool.change(requests_per_minute=requests_per_minute, unauthorized_pause=120.0)
        waits.append(pool.take(1001.0))

    assert waits == pytest.approx([59.0, 2.0, 9.0], abs=0.02)


@pytest.mark.parametrize("reason", [None, Reason.UNAUTHORIZED, Reason.RATE_LIMITED])
def test_a_probe_at_once(reason: Reason | None) -> None:
    """Only what a 401 closed is probed before its time: a new key changes nothing about a rate limit."""
    pool = pool_of()
    if reason is not None:
        pool.failed(OPEN, error_of(reason, 60.0), 1000.0)

    assert pool.probe_now() == (reason is Reason.UNAUTHORIZED)
    assert pool.take(1001.0) == {None: OPEN, Reason.UNAUTHORIZED: PROBE, Reason.RATE_LIMITED: 59.0}[reason]
    assert pool.closed is reason


@pytest.mark.parametrize("reason", [*ANSWERS, *NO_ANSWERS])
def test_other_failures_leave_an_open_pool_open(reason: Reason) -> None:
    """What is wrong with one campaign or the network pauses no workspace."""
    pool = pool_of()

    assert not pool.failed(OPEN, error_of(reason), 0.0)
    assert pool.closed is None
    assert pool.take(0.0) == OPEN


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (error_of(Reason.UNAUTHORIZED), 120.0),
        (error_of(Reason.RATE_LIMITED, 7.0), 7.0),
        (error_of(Reason.RATE_LIMITED, 0.0), 0.0),
        (error_of(Reason.RATE_LIMITED, 300.5), 300.0),
        (error_of(Reason.RATE_LIMITED, math.inf), 300.0),
        (error_of(Reason.RATE_LIMITED, None), 1.0),
    ],
)
def test_refusals_close_the_pool(error: BrazeError, pause: float) -> None:
    """A refusal closes the pool for the time that it names, five minutes at most; then there is one probe."""
    pool = pool_of()

    assert pool.failed(OPEN, error, 1000.0)
    assert pool.closed is error.reason
    assert pool.closed_for(1000.0) == pause
    if pause:
        assert pool.take(1000.0) == pause
        assert pool.take(1000.0 + pause - 0.5) == 0.5
    assert pool.take(1000.0 + pause) == PROBE
    assert pool.take(9999.0) == math.inf


@pytest.mark.parametrize("reason", [None, *ANSWERS])
def test_probes_that_braze_answers_open_the_pool(reason: Reason | None) -> None:
    """A success opens the pool, and so does an error about one campaign: key and limit are fine."""
    pool = closed_pool(0.0)
    opened = pool.succeeded(PROBE) if reason is None else pool.failed(PROBE, error_of(reason), 10.0)

    assert opened
    assert pool.closed is None
    assert pool.take(10.1) == OPEN


@pytest.mark.parametrize("reason", NO_ANSWERS)
@pytest.mark.parametrize(("closed", "pause"), [(Reason.RATE_LIMITED, 2.0), (Reason.UNAUTHORIZED, 120.0)])
def test_probes_without_an_answer_decide_nothing(reason: Reason, closed: Reason, pause: float) -> None:
    """When Braze cannot be reached meanwhile the pool stays closed, and another probe follows."""
    pool = closed_pool(1000.0, closed)

    assert not pool.failed(PROBE, error_of(reason), 1000.0)
    assert pool.closed is closed
    assert pool.take(1000.0) == pause
    assert pool.take(1000.0 + pause) == PROBE


def test_probes_that_are_refused_otherwise() -> None:
    """A key that is taken back during a pause is news, the same refusal again is none."""
    pool = closed_pool(1000.0, Reason.RATE_LIMITED)

    assert pool.failed(PROBE, error_of(Reason.UNAUTHORIZED), 1000.0)
    assert pool.closed is Reason.UNAUTHORIZED
    assert pool.take(1120.0) == PROBE
    assert not pool.failed(PROBE, error_of(Reason.UNAUTHORIZED), 1120.0)
    assert pool.take(1120.0) == 120.0


def test_refusals_in_flight_are_one() -> None:
    """Requests that were on their way when the pool closed are refused too; that is no second refusal in a row."""
    pool = pool_of()
    news = [pool.failed(OPEN, error_of(Reason.RATE_LIMITED, wait), 0.0) for wait in (5.0, 9.0, 3.0)]

    assert news == [True, False, False]
    assert pool.take(0.0) == 9.0
    assert pool.take(9.0) == PROBE
    pool.failed(PROBE, error_of(Reason.RATE_LIMITED), 9.0)
    assert pool.take(9.0) == 2.0


def test_answers_in_flight_open_nothing() -> None:
    """A request that was answered before or after the refusal of another is no probe."""
    pool = closed_pool(1000.0)

    assert not pool.succeeded(OPEN)
    assert not pool.failed(OPEN, error_of(Reason.NOT_FOUND), 1000.0)
    assert pool.closed
    assert pool.take(1000.0) == math.inf


def test_now_again_and_again_is_not_believed() -> None:
    """Braze may say once that it can be asked at once; from the second refusal in a row the pauses double."""
    pool = pool_of()
    pauses = []
    permit, now = OPEN, 1000.0
    for _ in range(11):
        pool.failed(permit, error_of(Reason.RATE_LIMITED, 0.0), now)
        pauses.append(pool.closed_for(now))
        now += pauses[-1]
        taken = pool.take(now + 1.0)
        assert taken == PROBE
        permit = PROBE

    assert pauses == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]


def test_the_longest_pause_is_the_longest_to_a_bit() -> None:
    """Times of day that are no binary fractions make no pause longer."""
    for tenths in range(7_200, 36_000):
        now = tenths * 0.1
        pool = pool_of()
        pool.failed(OPEN, error_of(Reason.RATE_LIMITED, 1e9), now)

        wait = pool.take(now)
        assert isinstance(wait, float)
        assert wait <= LONGEST_PAUSE
        assert pool.closed_for(now) <= LONGEST_PAUSE


def test_a_success_ends_the_row_of_refusals() -> None:
    """After the pool was open, a refusal is the first again, whatever those before had named."""
    pool = closed_pool(1000.0)
    pool.failed(PROBE, error_of(Reason.RATE_LIMITED), 1000.0)
    pool.take(2000.0)
    pool.failed(OPEN, error_of(Reason.RATE_LIMITED, 100.0), 2000.0)
    pool.succeeded(PROBE)
    pool.failed(OPEN, error_of(Reason.RATE_LIMITED), 2000.0)

    assert pool.take(2000.0) == 1.0


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 0.5), (1.0, 1.0)])
def test_back_off_is_jittered(jitter: float, pause: float) -> None:
    """Where no time is named the pause is between half of the back-off and all of it."""
    pool = pool_of(jitter=jitter)
    pool.failed(OPEN, error_of(Reason.RATE_LIMITED), 0.0)

    assert pool.take(0.0) == pause


def closed_pool(now: float, reason: Reason = Reason.RATE_LIMITED) -> Pool:
    """Return a pool that is closed and whose probe is under way."""
    pool = pool_of()
    pool.failed(OPEN, error_of(reason, 0.0), now - 120.0)
    assert pool.take(now) == PROBE
    return pool


class PoolMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the promises of the pool hold."""

    spacing = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool_of(60 / self.spacing, unauthorized_pause=60.0, jitter=0.0)
        self.now = 1000.0
        self.running: list[Permit] = []
        self.taken: list[float] = []
        self.closed_until = -math.inf

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.1, 1.0, 30.0, 301.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule()
    def wait_as_told(self) -> None:
        """Come back when the pool said it is worth it."""
        told = self.pool.take(self.now)
        if isinstance(told, Permit):
            self.accept(told)
        elif told < math.inf:
            self.now += told

    @rule(times=st.integers(1, 5))
    def take(self, times: int) -> None:
        """Ask for leave."""
        for _ in range(times):
            taken = self.pool.take(self.now)
            if isinstance(taken, Permit):
                self.accept(taken)
            else:
                assert 0 < taken <= LONGEST_PAUSE or taken == math.inf
                assert (taken == math.inf) == (PROBE in self.running)

    def accept(self, permit: Permit) -> None:
        """Check that a request may be sent now."""
        assert permit.probe == (self.pool.closed is not None)
        assert PROBE not in self.running
        assert self.pool.closed is None or self.now >= self.closed_until - 1e-6
        self.running.append(permit)
        self.taken.append(self.now)

    @precondition(lambda self: self.running)
    @rule(
        place=st.integers(0, 9), reason=st.sampled_from([None, *Reason]), wait=st.sampled_from([None, 0.0, 20.0, 1e9])
    )
    def end(self, place: int, reason: Reason | None, wait: float | None) -> None:
        """Let one of the running requests end."""
        permit = self.running.pop(place % len(self.running))
        before = self.pool.closed
        if reason is None:
            news = self.pool.succeeded(permit)
        else:
            news = self.pool.failed(permit, error_of(reason, wait), self.now)
        if reason in REFUSALS:
            named = 60.0 if reason is Reason.UNAUTHORIZED else min(wait or 0.0, LONGEST_PAUSE)
            self.closed_until = max(self.closed_until, self.now + named)
            assert self.pool.closed is reason
        elif permit.probe and (reason is None or reason in ANSWERS):
            self.closed_until = -math.inf
            assert self.pool.closed is None
        else:
            assert self.pool.closed is before
        assert news == (self.pool.closed is not before)

    @invariant()
    def the_pace_holds(self) -> None:
        """In no stretch of time are there more requests than it is worth."""
        recent = self.taken[-20:]
        for place, start in enumerate(recent):
            assert len(recent) - place <= (recent[-1] - start + 0.02) / self.spacing + 1 + 1e-6


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
test_pool_in_any_order = PoolMachine.TestCase


# -- Headers -----------------------------------------------------------------------------------------------------------

DATE = "Thu, 05 Mar 2026 12:00:00 GMT"
NOON = 1772712000
AHEAD = 10.0
"""Seconds by which our own clock goes before Braze's."""


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "299.9"}, 299.9),
        ({"Retry-After": "301"}, 300.0),
        ({"Retry-After": "1" * 30}, 300.0),
        ({"Retry-After": "1" * 5000}, 300.0),
        ({"Retry-After": "-7"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1e3"}, None),
        ({"Retry-After": "1_000"}, None),
        ({"Retry-After": "7, 8"}, None),
        ({"Retry-After": "Thu, 05 Mar 2026 12:01:00 GMT", "Date": DATE}, 60.0),
        ({"Retry-After": "Thu, 05 Mar 2026 12:01:00 -0000", "Date": DATE}, 60.0),
        ({"Retry-After": "Thursday, 05-Mar-26 12:01:00 GMT", "Date": DATE}, 60.0),
        ({"Retry-After": "Thu Mar  5 12:01:00 2026", "Date": DATE}, 60.0),
        ({"Retry-After": "Thu, 05 Mar 2026 13:01:00 +0100", "Date": DATE}, 60.0),
        ({"Retry-After": "Thu, 05 Mar 2026 11:59:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Thu, 99 Mar 2026 11:59:00 GMT", "Date": DATE}, None),
        ({"Retry-After": "Thu, 05 Mar 2026 12:01:00 GMT"}, 60.0 - AHEAD),
        ({"Retry-After": "Thu, 05 Mar 2026 11:59:00 GMT"}, 0.0),
        ({"Retry-After": "Thu, 05 Mar 2026 12:01:00 GMT", "Date": "noon"}, 60.0 - AHEAD),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 300.0),
        ({"Retry-After": "Sat, 01 Jan 0001 00:00:00 +2359"}, 0.0),
        ({"Retry-After": "Sat, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"Retry-After": "Thu, 05 Mar 2026 12:01:00 +99999999999999"}, None),
        ({"Retry-After": "Thu, 05 Mar " + "9" * 5000 + " 12:01:00 GMT"}, None),
        ({"Retry-After": " "}, None),
        ({"X-RateLimit-Reset": "9" * 400}, 300.0),
        ({"X-RateLimit-Reset": f"{NOON + 30}", "Date": DATE}, 30.0),
        ({"X-RateLimit-Reset": f"{NOON - 30}", "Date": DATE}, 0.0),
        ({"X-RateLimit-Reset": "30", "Date": DATE}, 0.0),
        ({"X-RateLimit-Reset": "", "Date": DATE}, None),
        ({"X-RateLimit-Reset": "-1", "Date": DATE}, None),
        ({"X-RateLimit-Reset": "soon", "Date": DATE}, None),
        ({"X-RateLimit-Reset": f"{NOON + 30}"}, 30.0 - AHEAD),
        ({"X-RateLimit-Reset": f"{NOON - 30}"}, 0.0),
        ({"X-RateLimit-Reset": f"{NOON + 3600}"}, 300.0),
        ({"X-RateLimit-Reset": f"{NOON + 30}", "Date": "noon"}, 30.0 - AHEAD),
        ({"Retry-After": "7", "X-RateLimit-Reset": f"{NOON + 30}", "Date": DATE}, 7.0),
        ({"Retry-After": "", "X-RateLimit-Reset": f"{NOON + 30}", "Date": DATE}, 30.0),
        ({"Retry-After": "-7", "X-RateLimit-Reset": f"{NOON + 30}", "Date": DATE}, 30.0),
        ({"Retry-After": "soon", "X-RateLimit-Reset": f"{NOON + 30}", "Date": DATE}, 30.0),
    ],
)
def test_named_wait(headers: Mapping[str, str], wait: float | None) -> None:
    """Retry-After counts, seconds or a date; else the reset of the limit; by Braze's clock where it tells the time."""
    assert named_wait(headers, NOON + AHEAD) == wait


@server
@pytest.mark.parametrize("date", ["Thu, 05 Mar 2026 12:01:00 -0000", "Thu Mar  5 12:01:00 2026"])
def test_dates_without_a_zone_are_utc(date: str) -> None:
    """The zone of the machine has nothing to do with it."""
    headers = {"Retry-After": date, "Date": DATE}
    program = f"from exporter.braze.client import named_wait; print(named_wait({headers!r}, 0))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=True,
        timeout=LATE,
    )

    assert done.stdout == "60.0\n"


HEADER = st.text(st.characters(max_codepoint=255)) | st.from_regex(
    r"(Thu, )?[0-9]{1,6} (Mar|Foo) [0-9]{1,12} ([0-9]{1,3}[:.]){0,3} ?(GMT|[+-][0-9]{1,9})?", fullmatch=True
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["Date", "Retry-After", "X-RateLimit-Reset"], HEADER)))
def test_any_header_is_survived(headers: dict[str, str]) -> None:
    """Whatever the headers say, the wait is a time that is not negative, five minutes at most, or none."""
    wait = named_wait(headers, NOON)

    assert wait is None or 0 <= wait <= LONGEST_PAUSE


# -- Answers -----------------------------------------------------------------------------------------------------------

KEY = "simulated-braze-key"


def error_in(status: int, body: bytes) -> BrazeError:
    """Return the error that an answer to a request with the key is."""
    with pytest.raises(BrazeError) as caught:
        _body(Reply(status, {}, body), (KEY,), NOON)
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
    assert str(error).removesuffix(": too many requests") == f"Braze answered {status}"


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

    assert str(error_in(status, body)) == f"Braze answered {status}{shown}"


@pytest.mark.parametrize("body", [b"", b"No", b"[]", b"\xff", b"[" * 100_000, b'{"message": %s}' % (b"9" * 5000)])
def test_errors_without_a_message(body: bytes) -> None:
    """An error's body may be anything."""
    error = error_in(400, body)

    assert (error.reason, str(error)) == (Reason.BAD_REQUEST, "Braze answered 400")


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
        endpoint: str = "",
        key_file: Path | None = None,
        requests_per_minute: int = 50_000,
        interval: float = 300.0,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        stopped: threading.Event | None = None,
        lanes: Lanes | None = None,
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
            interval=interval,
            environ={"KEY": self.braze.api_key},
            wall=wall,
            monotonic=monotonic,
            random=random or Hasty(),
            stopped=stopped or threading.Event(),
            lanes=lanes,
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
    received = client.data_series(client.workspace.campaigns[0].id, days=3, permit=permit, timeout=timeout)
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
def test_a_response_whose_reading_fails_unexpectedly(
    braze: Simulator, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """It is one response's trouble: counted as its payload's, with a traceback of few lines without its text."""
    received = client.data_series(braze.campaigns[0].id, days=3, permit=OPEN, timeout=LATE)
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
        log_traceback(("main", "id"), error)

    assert vars(caplog.records[0])["traceback"].count("File") == 20
    assert vars(caplog.records[0])["traceback"].rstrip().endswith('raise KeyError("a part of the response")')
    assert vars(caplog.records[0])["error"] == "KeyError"


@server
def test_large_responses_take_turns(braze: Simulator, new_client: NewClient) -> None:
    """A large response that was received has its turn until it is read; one that fails on the way lets go of it."""
    lanes = Lanes()
    client = new_client(lanes=lanes)
    body = b'{"data": [], "text": "%s"}' % (b"x" * (2 << 20))
    for fault, reason in ((Body(body), None), (Body(bytes(20 << 20)), Reason.TOO_LARGE)):
        misbehave(braze, fault)
        assert reason_of(client) is reason
        assert len(lanes.large) == 0
    misbehave(braze, Body(body), Body(body), Body(b'{"data": []}'))
    received = client.data_series(braze.campaigns[0].id, days=3, permit=OPEN, timeout=LATE)
    assert len(lanes.large) == 1
    other = reason_of(client, timeout=SOON)
    small = client.data_series(braze.campaigns[0].id, days=3, permit=OPEN, timeout=LATE)
    assert client.read(small, samples=SAMPLES) == DataSeries(None, None)
    assert len(lanes.large) == 1
    assert client.read(received, samples=SAMPLES) == DataSeries(None, None)

    assert other is Reason.TIMEOUT
    assert received.body == b""
    assert len(lanes.large) == 0


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
    assert isinstance(client.data_series_pool.take(clock()), Permit)
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
    assert isinstance(client.data_series_pool.take(time.monotonic()), Permit)
    braze.misbehave(E500)

    assert reason_of(client, timeout=30.0) is Reason.SERVER_ERROR
    assert len(pauses.seconds) == 1


@server
def test_retries_are_paced(braze: Simulator, new_client: NewClient) -> None:
    """A retry is a request like any other: it waits for its turn."""
    client = new_client(requests_per_minute=200)
    misbehave(braze, E500)
    permit = client.data_series_pool.take(time.monotonic())
    assert isinstance(permit, Permit)
    started = time.monotonic()

    assert reason_of(client, permit=permit) is None
    assert braze.requests[1].time - started >= 0.3 - 0.021


@server
def test_no_retry_while_the_pool_is_closed(braze: Simulator, client: Client) -> None:
    """When another request was refused meanwhile, a retry would be one of the storm."""
    client.data_series_pool.failed(OPEN, RateLimited("", 60.0), time.monotonic())
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
    """A probe that fails is followed by another probe of the pool, not by a retry."""
    pool = client.data_series_pool
    pool.failed(OPEN, RateLimited("", 0.0), time.monotonic())
    misbehave(braze, E500)
    permit = pool.take(time.monotonic())
    assert permit == PROBE

    assert reason_of(client, permit=PROBE) is Reason.SERVER_ERROR
    assert len(braze.requests) == 1
    assert pool.take(time.monotonic()) == PROBE
    assert reason_of(client, permit=PROBE) is None
    assert pool.closed is None


@server
def test_a_rate_limit_pauses_until_its_reset(braze: Simulator, client: Client) -> None:
    """A 429 closes the pool until the minute on Braze's clock is over."""
    braze.misbehave(Status(429, headers={"Date": DATE, "X-RateLimit-Reset": f"{NOON + 30}"}))

    assert reason_of(client) is Reason.RATE_LIMITED
    assert client.data_series_pool.closed is Reason.RATE_LIMITED
    assert 20 < client.data_series_pool.closed_for(time.monotonic()) <= 30


@server
def test_a_rate_limit_without_a_date_goes_by_our_clock(braze: Simulator, new_client: NewClient) -> None:
    """Where a proxy has stripped Braze's Date, the reset of the limit counts all the same."""
    client = new_client(wall=lambda: NOON)
    braze.misbehave(Status(429, headers={"Date": "", "X-RateLimit-Reset": f"{NOON + 200}"}))

    assert reason_of(client) is Reason.RATE_LIMITED
    assert 150 < client.data_series_pool.closed_for(time.monotonic()) <= 200


@server
@pytest.mark.parametrize(("interval", "longest"), [(20.0, 20.0), (3600.0, 300.0)])
def test_a_wrong_key_pauses_for_an_interval(
    braze: Simulator, new_client: NewClient, interval: float, longest: float
) -> None:
    """A 401 closes the pool for an interval, five minutes at most."""
    client = new_client(interval=interval)
    braze.misbehave(Status(401))

    assert reason_of(client) is Reason.UNAUTHORIZED
    assert longest - 10 < client.data_series_pool.closed_for(time.monotonic()) <= longest


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
    assert caplog.messages[1] == "Braze answers again"
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
    client.count_failure("data_series", Reason.BAD_PAYLOAD)

    assert before.requests == 0
    assert sum(before.durations) == sum(before.failures.values()) == 0
    assert failures(client) == {Reason.BAD_PAYLOAD: 1}


@pytest.fixture
def hectic() -> Iterator[None]:
    """Let threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hectic")
def test_counters_of_many_threads() -> None:
    """Nothing is lost of what threads count at the same time, and no copy is of two moments."""
    counters = Counters()
    done = threading.Event()

    def count(_: int) -> None:
        for _ in range(3000):
            counters.observe("data_series", 1.0)
            counters.count_failure("data_series", Reason.TIMEOUT)

    def look() -> bool:
        whole = True
        while not done.is_set():
            copy = counters.copy()["data_series"]
            whole = whole and copy.requests == sum(copy.durations) == copy.duration_sum
        return whole

    with ThreadPoolExecutor(7) as threads:
        looks = threads.submit(look)
        list(threads.map(count, range(6)))
        done.set()
        assert looks.result()
    statistics = counters.copy()["data_series"]
    assert statistics.requests == statistics.failures[Reason.TIMEOUT] == sum(statistics.durations) == 18_000


@pytest.mark.usefixtures("hectic")
def test_permits_of_many_threads() -> None:
    """However many threads ask at the same moment, one gets leave to send a request, and one a probe."""
    for _ in range(200):
        pool = pool_of(60)
        with ThreadPoolExecutor(8) as threads:
            taken = list(threads.map(lambda _, pool=pool: pool.take(1000.0), range(8)))
            pool.failed(OPEN, error_of(Reason.RATE_LIMITED, 5.0), 1000.0)
            probes = list(threads.map(lambda _, pool=pool: pool.take(1005.0), range(8)))

        assert taken.count(OPEN) == 1
        assert probes.count(PROBE) == 1


def test_durations_are_counted_by_bucket() -> None:
    """A duration counts in the first bucket that is large enough, the last holds the rest."""
    statistics = ApiStatistics()
    for seconds in (0.0, 0.05, 0.051, 30.0, 31.0):
        statistics.observe(seconds)

    assert statistics.durations == [2, 1, *[0] * (len(DURATION_BUCKETS) - 3), 1, 1]
    assert statistics.duration_sum == pytest.approx(61.101)


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
    assert client.data_series_pool.closed is None


@server
def test_a_replaced_key_is_not_repeated_either(braze: Simulator, new_client: NewClient, key_file: Path) -> None:
    """An answer that still speaks of the key before is not repeated."""
    client = new_client(key_file=key_file)
    old = key_file.read_text().strip()
    key_file.write_text("quite-another-text")
    braze.api_key = "quite-another-text"
    braze.misbehave(Status(400, json.dumps({"message": f"{old.upper()} has ended"}).encode()))

    with pytest.raises(BrazeError) as raised:
        client.data_series("id", days=3, permit=PROBE, timeout=5)

    assert str(raised.value) == "Braze answered 400"


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
    assert client.data_series_pool.closed is None


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
