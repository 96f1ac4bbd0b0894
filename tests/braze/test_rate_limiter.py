"""Tests of exporter.braze.rate_limiter: permits and pauses as a state machine, and the waits that headers ask for."""

import math
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exporter.braze.errors import BrazeError, RateLimited, Reason
from exporter.braze.rate_limiter import LONGEST_PAUSE, Permit, RateLimiter, requested_wait
from tests.support.servers import ROOT

server = pytest.mark.server

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


def limiter_of(
    requests_per_minute: float = 60_000, *, unauthorized_pause: float = 120.0, jitter: float = 1.0
) -> RateLimiter:
    """Return an open limiter."""
    return RateLimiter(
        requests_per_minute=requests_per_minute, unauthorized_pause=unauthorized_pause, random=Steady(jitter)
    )


def error_of(reason: Reason, wait: float | None = None) -> BrazeError:
    """Return an error as a client raises it."""
    return RateLimited("", wait) if reason is Reason.RATE_LIMITED else BrazeError(reason, "")


def test_requests_are_paced() -> None:
    """At 60 requests a minute the second comes a second after the first, but for what a late wake-up may make good."""
    limiter = limiter_of(60)

    assert limiter.acquire(1000.0) == OPEN
    assert limiter.acquire(1000.0) == pytest.approx(0.98)
    assert limiter.acquire(1000.5) == pytest.approx(0.48)
    assert limiter.acquire(1000.98) == OPEN
    assert limiter.acquire(1000.98) == pytest.approx(1.0)


def test_idle_time_is_not_saved_up() -> None:
    """After any pause the pace is as before: a burst is worth 20 ms."""
    limiter = limiter_of(60_000)
    limiter.acquire(0.0)
    burst = 0
    while isinstance(limiter.acquire(3600.0), Permit):
        burst += 1

    assert burst in {20, 21}  # 20 ms in floats


def test_late_wake_ups_do_not_slow_the_pace() -> None:
    """Who wakes only every 5 ms still gets 1,000 requests a second."""
    limiter = limiter_of(60_000)
    taken = sum(isinstance(limiter.acquire(step * 0.005), Permit) for step in range(1000) for _ in range(50))

    assert taken == pytest.approx(5000, abs=25)


def test_another_pace_holds_from_the_last_request_on() -> None:
    """Who waits for a slow pace does not wait on when it is faster, and the other way round."""
    limiter = limiter_of(1)
    limiter.acquire(1000.0)
    waits = [limiter.acquire(1001.0)]
    for requests_per_minute in (20, 6):
        limiter.change(requests_per_minute=requests_per_minute, unauthorized_pause=120.0)
        waits.append(limiter.acquire(1001.0))

    assert waits == pytest.approx([59.0, 2.0, 9.0], abs=0.02)


@pytest.mark.parametrize("reason", [None, Reason.UNAUTHORIZED, Reason.RATE_LIMITED])
def test_a_probe_at_once(reason: Reason | None) -> None:
    """Only what a 401 closed is probed before its time: a new key changes nothing about a rate limit."""
    limiter = limiter_of()
    if reason is not None:
        limiter.record_failure(OPEN, error_of(reason, 60.0), 1000.0)

    assert limiter.probe_now() == (reason is Reason.UNAUTHORIZED)
    assert limiter.acquire(1001.0) == {None: OPEN, Reason.UNAUTHORIZED: PROBE, Reason.RATE_LIMITED: 59.0}[reason]
    assert limiter.paused is reason


@pytest.mark.parametrize("reason", [*ANSWERS, *NO_ANSWERS])
def test_other_failures_begin_no_pause(reason: Reason) -> None:
    """What is wrong with one campaign or the network pauses no workspace."""
    limiter = limiter_of()

    assert not limiter.record_failure(OPEN, error_of(reason), 0.0)
    assert limiter.paused is None
    assert limiter.acquire(0.0) == OPEN


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
def test_refusals_begin_a_pause(error: BrazeError, pause: float) -> None:
    """A refusal closes the limiter for the time that it names, five minutes at most; then there is one probe."""
    limiter = limiter_of()

    assert limiter.record_failure(OPEN, error, 1000.0)
    assert limiter.paused is error.reason
    assert limiter.paused_for(1000.0) == pause
    if pause:
        assert limiter.acquire(1000.0) == pause
        assert limiter.acquire(1000.0 + pause - 0.5) == 0.5
    assert limiter.acquire(1000.0 + pause) == PROBE
    assert limiter.acquire(9999.0) == math.inf


@pytest.mark.parametrize("reason", [None, *ANSWERS])
def test_probes_that_braze_answers_end_the_pause(reason: Reason | None) -> None:
    """A success opens the limiter, and so does an error about one campaign: key and limit are fine."""
    limiter = paused_limiter(0.0)
    opened = limiter.record_success(PROBE) if reason is None else limiter.record_failure(PROBE, error_of(reason), 10.0)

    assert opened
    assert limiter.paused is None
    assert limiter.acquire(10.1) == OPEN


@pytest.mark.parametrize("reason", NO_ANSWERS)
@pytest.mark.parametrize(("closed", "pause"), [(Reason.RATE_LIMITED, 2.0), (Reason.UNAUTHORIZED, 120.0)])
def test_probes_without_an_answer_decide_nothing(reason: Reason, closed: Reason, pause: float) -> None:
    """When Braze cannot be reached meanwhile the limiter stays closed, and another probe follows."""
    limiter = paused_limiter(1000.0, closed)

    assert not limiter.record_failure(PROBE, error_of(reason), 1000.0)
    assert limiter.paused is closed
    assert limiter.acquire(1000.0) == pause
    assert limiter.acquire(1000.0 + pause) == PROBE


def test_probes_that_are_refused_otherwise() -> None:
    """A key that is taken back during a pause is news, the same refusal again is none."""
    limiter = paused_limiter(1000.0, Reason.RATE_LIMITED)

    assert limiter.record_failure(PROBE, error_of(Reason.UNAUTHORIZED), 1000.0)
    assert limiter.paused is Reason.UNAUTHORIZED
    assert limiter.acquire(1120.0) == PROBE
    assert not limiter.record_failure(PROBE, error_of(Reason.UNAUTHORIZED), 1120.0)
    assert limiter.acquire(1120.0) == 120.0


def test_refusals_in_flight_are_one() -> None:
    """Requests that were on their way when the limiter closed are refused too; that is no second refusal in a row."""
    limiter = limiter_of()
    news = [limiter.record_failure(OPEN, error_of(Reason.RATE_LIMITED, wait), 0.0) for wait in (5.0, 9.0, 3.0)]

    assert news == [True, False, False]
    assert limiter.acquire(0.0) == 9.0
    assert limiter.acquire(9.0) == PROBE
    limiter.record_failure(PROBE, error_of(Reason.RATE_LIMITED), 9.0)
    assert limiter.acquire(9.0) == 2.0


def test_answers_in_flight_end_no_pause() -> None:
    """A request that was answered before or after the refusal of another is no probe."""
    limiter = paused_limiter(1000.0)

    assert not limiter.record_success(OPEN)
    assert not limiter.record_failure(OPEN, error_of(Reason.NOT_FOUND), 1000.0)
    assert limiter.paused
    assert limiter.acquire(1000.0) == math.inf


def test_now_again_and_again_is_not_believed() -> None:
    """Braze may say once that it can be asked at once; from the second refusal in a row the pauses double."""
    limiter = limiter_of()
    pauses = []
    permit, now = OPEN, 1000.0
    for _ in range(11):
        limiter.record_failure(permit, error_of(Reason.RATE_LIMITED, 0.0), now)
        pauses.append(limiter.paused_for(now))
        now += pauses[-1]
        taken = limiter.acquire(now + 1.0)
        assert taken == PROBE
        permit = PROBE

    assert pauses == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]


def test_the_longest_pause_is_the_longest_to_a_bit() -> None:
    """Times of day that are no binary fractions make no pause longer."""
    for tenths in range(7_200, 36_000):
        now = tenths * 0.1
        limiter = limiter_of()
        limiter.record_failure(OPEN, error_of(Reason.RATE_LIMITED, 1e9), now)

        wait = limiter.acquire(now)
        assert isinstance(wait, float)
        assert wait <= LONGEST_PAUSE
        assert limiter.paused_for(now) <= LONGEST_PAUSE


def test_a_success_ends_the_row_of_refusals() -> None:
    """After the limiter was open, a refusal is the first again, whatever those before had named."""
    limiter = paused_limiter(1000.0)
    limiter.record_failure(PROBE, error_of(Reason.RATE_LIMITED), 1000.0)
    limiter.acquire(2000.0)
    limiter.record_failure(OPEN, error_of(Reason.RATE_LIMITED, 100.0), 2000.0)
    limiter.record_success(PROBE)
    limiter.record_failure(OPEN, error_of(Reason.RATE_LIMITED), 2000.0)

    assert limiter.acquire(2000.0) == 1.0


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 0.5), (1.0, 1.0)])
def test_back_off_is_jittered(jitter: float, pause: float) -> None:
    """Where no time is named the pause is between half of the back-off and all of it."""
    limiter = limiter_of(jitter=jitter)
    limiter.record_failure(OPEN, error_of(Reason.RATE_LIMITED), 0.0)

    assert limiter.acquire(0.0) == pause


def paused_limiter(now: float, reason: Reason = Reason.RATE_LIMITED) -> RateLimiter:
    """Return a limiter that is closed and whose probe is under way."""
    limiter = limiter_of()
    limiter.record_failure(OPEN, error_of(reason, 0.0), now - 120.0)
    assert limiter.acquire(now) == PROBE
    return limiter


class RateLimiterMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the promises of the limiter hold."""

    spacing = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.limiter = limiter_of(60 / self.spacing, unauthorized_pause=60.0, jitter=0.0)
        self.now = 1000.0
        self.running: list[Permit] = []
        self.taken: list[float] = []
        self.paused_until = -math.inf

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.1, 1.0, 30.0, 301.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule()
    def wait_as_told(self) -> None:
        """Come back when the limiter said it is worth it."""
        told = self.limiter.acquire(self.now)
        if isinstance(told, Permit):
            self.accept(told)
        elif told < math.inf:
            self.now += told

    @rule(times=st.integers(1, 5))
    def take(self, times: int) -> None:
        """Acquire permits."""
        for _ in range(times):
            taken = self.limiter.acquire(self.now)
            if isinstance(taken, Permit):
                self.accept(taken)
            else:
                assert 0 < taken <= LONGEST_PAUSE or taken == math.inf
                assert (taken == math.inf) == (PROBE in self.running)

    def accept(self, permit: Permit) -> None:
        """Check that a request may be sent now."""
        assert permit.probe == (self.limiter.paused is not None)
        assert PROBE not in self.running
        assert self.limiter.paused is None or self.now >= self.paused_until - 1e-6
        self.running.append(permit)
        self.taken.append(self.now)

    @precondition(lambda self: self.running)
    @rule(
        place=st.integers(0, 9), reason=st.sampled_from([None, *Reason]), wait=st.sampled_from([None, 0.0, 20.0, 1e9])
    )
    def end(self, place: int, reason: Reason | None, wait: float | None) -> None:
        """Let one of the running requests end."""
        permit = self.running.pop(place % len(self.running))
        before = self.limiter.paused
        if reason is None:
            news = self.limiter.record_success(permit)
        else:
            news = self.limiter.record_failure(permit, error_of(reason, wait), self.now)
        if reason in REFUSALS:
            named = 60.0 if reason is Reason.UNAUTHORIZED else min(wait or 0.0, LONGEST_PAUSE)
            self.paused_until = max(self.paused_until, self.now + named)
            assert self.limiter.paused is reason
        elif permit.probe and (reason is None or reason in ANSWERS):
            self.paused_until = -math.inf
            assert self.limiter.paused is None
        else:
            assert self.limiter.paused is before
        assert news == (self.limiter.paused is not before)

    @invariant()
    def the_pace_holds(self) -> None:
        """In no stretch of time are there more requests than it is worth."""
        recent = self.taken[-20:]
        for place, start in enumerate(recent):
            assert len(recent) - place <= (recent[-1] - start + 0.02) / self.spacing + 1 + 1e-6


RateLimiterMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
test_any_order = RateLimiterMachine.TestCase


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
def test_requested_wait(headers: Mapping[str, str], wait: float | None) -> None:
    """Retry-After counts, seconds or a date; else the reset of the limit; by Braze's clock where it tells the time."""
    assert requested_wait(headers, NOON + AHEAD) == wait


@server
@pytest.mark.parametrize("date", ["Thu, 05 Mar 2026 12:01:00 -0000", "Thu Mar  5 12:01:00 2026"])
def test_dates_without_a_zone_are_utc(date: str) -> None:
    """The zone of the machine has nothing to do with it."""
    headers = {"Retry-After": date, "Date": DATE}
    program = f"from exporter.braze.rate_limiter import requested_wait; print(requested_wait({headers!r}, 0))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert done.stdout == "60.0\n"


HEADER = st.text(st.characters(max_codepoint=255)) | st.from_regex(
    r"(Thu, )?[0-9]{1,6} (Mar|Foo) [0-9]{1,12} ([0-9]{1,3}[:.]){0,3} ?(GMT|[+-][0-9]{1,9})?", fullmatch=True
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["Date", "Retry-After", "X-RateLimit-Reset"], HEADER)))
def test_any_header_is_survived(headers: dict[str, str]) -> None:
    """Whatever the headers say, the wait is a time that is not negative, five minutes at most, or none."""
    wait = requested_wait(headers, NOON)

    assert wait is None or 0 <= wait <= LONGEST_PAUSE


@pytest.mark.usefixtures("hectic")
def test_permits_of_many_threads() -> None:
    """However many threads acquire permits at the same moment, one gets a permit, and one a probe."""
    for _ in range(200):
        limiter = limiter_of(60)
        with ThreadPoolExecutor(8) as threads:
            taken = list(threads.map(lambda _, limiter=limiter: limiter.acquire(1000.0), range(8)))
            limiter.record_failure(OPEN, error_of(Reason.RATE_LIMITED, 5.0), 1000.0)
            probes = list(threads.map(lambda _, limiter=limiter: limiter.acquire(1005.0), range(8)))

        assert taken.count(OPEN) == 1
        assert probes.count(PROBE) == 1
