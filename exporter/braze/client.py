"""Braze's REST API: what is asked, how fast, and what its answers and refusals mean.

BrazeError          a request failed; `reason` says how, one of Reason
└── RateLimited     429; `wait` is how long Braze asks to wait, where it says so
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import traceback
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING

from exporter import __version__
from exporter.braze.data_series import PayloadError, parse_data_series
from exporter.braze.decoding import DecodingError, Lanes, TooManyValues, Turn, decoded
from exporter.braze.transport import NotConnected, NotDecoded, NotTrusted, TimedOut, TooLarge, Transport, TransportError
from exporter.config import MOST_CONCURRENCY, ConfigError, read_api_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from exporter.braze.data_series import DataSeries
    from exporter.braze.transport import Reply
    from exporter.config import Workspace

logger = logging.getLogger(__name__)

DURATION_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper bounds in seconds; Braze answers in 0.2 to 0.5 as a rule."""

LONGEST_PAUSE = 300.0
"""Seconds; whatever Braze names, after so long one request finds out."""

LONGEST_WAIT = 5.0
"""Seconds after which whoever waits looks at the clock again: waits do not count the time that the machine sleeps."""

UNEXPECTED = "the response cannot be read or shown, see the traceback"

_TRIES = 3
_FRAMES = 20
_FIRST_BACK_OFF = 1.0
_CATCH_UP = 0.02  # seconds of pacing that a late wake-up may make good, so that rates of 1,000/s are reached
_MESSAGE_LENGTH = 200
_LARGEST_HEADER = 2.0**53
_DIGITS = re.compile(r"\d+(\.\d+)?", re.ASCII)


class Reason(StrEnum):
    """Why a request or a poll failed: the closed list of the label `reason`."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    TLS = "tls"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    BAD_REQUEST = "bad_request"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    REDIRECT = "redirect"
    TOO_LARGE = "too_large"
    BAD_PAYLOAD = "bad_payload"


class BrazeError(Exception):
    """A request that brought nothing usable; the text is safe to log."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class RateLimited(BrazeError):
    """Braze refuses requests for a while; `wait` in seconds, None where it does not say how long."""

    def __init__(self, detail: str, wait: float | None) -> None:
        super().__init__(Reason.RATE_LIMITED, detail)
        self.wait = wait


@dataclass(slots=True)
class ApiStatistics:
    """What happened on one of Braze's endpoints so far; `durations` counts by bucket, not cumulated."""

    requests: int = 0
    failures: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    durations: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BUCKETS) + 1))
    duration_sum: float = 0.0
    rate_limit: float | None = None
    rate_limit_remaining: float | None = None
    rate_limit_reset: float | None = None

    def observe(self, seconds: float) -> None:
        """Count one request that took so long."""
        self.requests += 1
        self.durations[bisect_left(DURATION_BUCKETS, seconds)] += 1
        self.duration_sum += seconds


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one request; a probe's outcome decides whether the pool opens again."""

    probe: bool = False


class Pool:
    """Leave to ask endpoints that share one of Braze's rate limits: paced, closed after a refusal, opened by one probe.

    It knows no clock: times are seconds of a monotonic clock and arguments. Any number of threads may use it.
    """

    def __init__(self, *, requests_per_minute: float, unauthorized_pause: float, random: Random) -> None:
        self._random = random
        self._lock = threading.Lock()  # a permit is given once
        self._taken = -math.inf
        self.change(requests_per_minute=requests_per_minute, unauthorized_pause=unauthorized_pause)
        self._closed: Reason | None = None
        self._closed_until = -math.inf
        self._refusals = 0
        self._probing = False

    @property
    def closed(self) -> Reason | None:
        """Why nothing but a probe may be asked, or None."""
        return self._closed

    def change(self, *, requests_per_minute: float, unauthorized_pause: float) -> None:
        """Let another pace hold, from the last request on, and another pause, from the next refusal on."""
        with self._lock:
            self._spacing = 60.0 / requests_per_minute
            self._unauthorized_pause = unauthorized_pause

    def probe_now(self) -> bool:
        """Let a pool that a 401 closed send its next probe at once; return whether it is such a one."""
        with self._lock:
            unauthorized = self._closed is Reason.UNAUTHORIZED
            if unauthorized:
                self._closed_until = -math.inf
            return unauthorized

    def take(self, now: float) -> Permit | float:
        """Return leave to send a request now, or the seconds until it is worth asking again."""
        with self._lock:
            if self._probing:
                return math.inf
            following = self._taken + self._spacing
            wait = max(following, self._closed_until if self._closed else -math.inf) - now
            if wait > 0:
                return min(wait, LONGEST_PAUSE)  # the sum and difference of floats may be a bit longer
            self._taken = max(following, now - _CATCH_UP)
            self._probing = self._closed is not None
            return Permit(probe=self._probing)

    def closed_for(self, now: float) -> float:
        """Return the seconds until a closed pool sends its next probe."""
        return min(max(0.0, self._closed_until - now), LONGEST_PAUSE)

    def succeeded(self, permit: Permit) -> bool:
        """Take note of an answer; return whether it opened the pool."""
        with self._lock:
            if not permit.probe:
                return False
            self._probing = False
            self._closed = None
            self._closed_until = -math.inf
            self._refusals = 0
            return True

    def failed(self, permit: Permit, error: BrazeError, now: float) -> bool:
        """Take note of a failure; return whether it opened the pool, or closed it for another reason than before.

        401 and 429 close it. A probe that gets neither of them, but no answer of Braze's API either, decides nothing:
        another follows. Other refusals show that the API is open again.
        """
        refused = error.reason in {Reason.UNAUTHORIZED, Reason.RATE_LIMITED}
        if not refused and (not permit.probe or error.reason in _ANSWERED):
            return self.succeeded(permit)
        with self._lock:
            before = self._closed
            if permit.probe:
                self._probing = False
            if permit.probe or before is None:
                self._refusals += 1
            if refused:
                self._closed = error.reason
            self._closed_until = max(self._closed_until, now + self._pause(error))
            return self._closed is not before

    def _pause(self, error: BrazeError) -> float:
        if self._closed is Reason.UNAUTHORIZED:
            return self._unauthorized_pause
        named = error.wait if isinstance(error, RateLimited) else None
        back_off = _back_off(self._refusals, self._random)
        if named is None:
            return back_off
        # The first refusal is believed, even if it says "now"; after the second, "now" would keep a storm alive.
        return min(LONGEST_PAUSE, named if self._refusals <= 1 else max(named, back_off))


_ANSWERED = {Reason.FORBIDDEN, Reason.BAD_REQUEST, Reason.NOT_FOUND, Reason.TOO_LARGE, Reason.BAD_PAYLOAD}
"""Failures in which Braze's API itself took the key and the request, and that a pause would not mend."""


class Counters:
    """What happened on each of a workspace's endpoints so far. Any number of threads may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # adding is reading and writing
        self._apis = {"data_series": ApiStatistics()}

    def observe(self, api: str, seconds: float) -> None:
        """Count a request that took so long."""
        with self._lock:
            self._apis[api].observe(seconds)

    def count_failure(self, api: str, reason: Reason) -> None:
        """Count a request that brought nothing usable."""
        with self._lock:
            self._apis[api].failures[reason] += 1

    def read_rate_headers(self, api: str, headers: Mapping[str, str]) -> None:
        """Keep what an answer says of the rate limit."""
        with self._lock:
            _read_rate_headers(self._apis[api], headers)

    def copy(self) -> dict[str, ApiStatistics]:
        """Return what was counted until now."""
        with self._lock:
            return {
                api: replace(own, failures=dict(own.failures), durations=list(own.durations))
                for api, own in self._apis.items()
            }


@dataclass(slots=True)
class Received:
    """A successful response that is still to be read, and perhaps the turn of a large one, which reading ends."""

    campaign_id: str
    body: bytes
    turn: Turn


class Client:
    """One workspace's way to Braze: its key, its connections, its pace. Any number of threads may use it.

    It is one of `total_shards` that share the pace. With `counters` it goes on counting where another stopped. `lanes`
    are those of all clients of the process. `monotonic` counts the time that the machine sleeps, where it can.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        interval: float,
        environ: Mapping[str, str],
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        random: Random,
        stopped: threading.Event,
        total_shards: int = 1,
        counters: Counters | None = None,
        lanes: Lanes | None = None,
        read_key: Callable[[Workspace, Mapping[str, str]], str] = read_api_key,
    ) -> None:
        self.workspace = workspace
        self.counters = counters or Counters()
        self._total_shards = total_shards
        self.data_series_pool = Pool(
            requests_per_minute=workspace.requests_per_minute / total_shards,
            unauthorized_pause=min(interval, LONGEST_PAUSE),
            random=random,
        )
        self._interval = interval
        self._environ = environ
        self._wall = wall
        self._monotonic = monotonic
        self._lanes = lanes or Lanes()
        self._random = random
        self._stopped = stopped
        self._key_lock = threading.Lock()  # one thread decides to read the key, and none mixes two workspaces' settings
        self._key_reader = read_key
        self._keys = [read_key(workspace, environ)]
        self._key_read_at = monotonic()
        self._key_being_read = False
        self._key_readable = True
        self._transport = Transport(
            workspace.endpoint,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": f"braze-exporter/{__version__}",
            },
            connections=MOST_CONCURRENCY,
            monotonic=monotonic,
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The keys that were used so far, for the logs to hide."""
        return tuple(self._keys)

    @property
    def statistics(self) -> dict[str, ApiStatistics]:
        """What happened so far on each endpoint, as a copy."""
        return self.counters.copy()

    def change(self, workspace: Workspace, *, interval: float) -> bool:
        """Go on with other settings of the workspace at the same endpoint.

        The key is read again; return whether it takes the place of one that was refused, so that a probe may be sent.
        """
        with self._key_lock:
            self.workspace = workspace
            self._interval = interval
            before = self._keys[-1]
        self._read_key(workspace)
        replaced = self._keys[-1] != before
        self.data_series_pool.change(
            requests_per_minute=workspace.requests_per_minute / self._total_shards,
            unauthorized_pause=min(interval, LONGEST_PAUSE),
        )
        return replaced and self.data_series_pool.probe_now()

    def data_series(self, campaign_id: str, *, days: int, permit: Permit, timeout: float) -> Received:
        """Request a campaign's last days; return the response, which is to be read.

        Raises:
            BrazeError: with the reason of the last try that ended; there are three at most, within `timeout` seconds.

        """
        target = f"/campaigns/data_series?campaign_id={campaign_id}&length={days}"
        body, turn = self._ask("data_series", self.data_series_pool, target, permit, timeout)
        return Received(campaign_id, body, turn)

    def read(self, received: Received, *, samples: int) -> DataSeries:
        """Return what a response says, at most so many samples of it; a response is read once.

        Raises:
            BrazeError: it says nothing. An exception that nobody expects is one response's trouble, too.

        """
        failure: BrazeError
        with received.turn:
            body, received.body = received.body, b""
            try:
                series = parse_data_series(decoded(body), samples=samples)
            except TooManyValues as error:
                failure = BrazeError(Reason.TOO_LARGE, str(error))
            except (DecodingError, PayloadError) as error:
                failure = BrazeError(Reason.BAD_PAYLOAD, str(error))
            except Exception as error:  # noqa: BLE001 - see above
                log_traceback((self.workspace.name, received.campaign_id), error)
                failure = BrazeError(Reason.BAD_PAYLOAD, UNEXPECTED)
            else:
                return series
            finally:
                del body
        self.count_failure("data_series", failure.reason)
        raise failure  # here, as an exception that is handled refers to all of the response

    def count_failure(self, api: str, reason: Reason) -> None:
        """Count an answer that arrived whole and turned out to be none."""
        self.counters.count_failure(api, reason)

    def close(self) -> None:
        """Close the connections that are not in use, and the others when their requests end; nothing is retried."""
        self._stopped.set()
        self._transport.close()

    def _ask(self, api: str, pool: Pool, target: str, permit: Permit, timeout: float) -> tuple[bytes, Turn]:
        """Make up to three tries of one request, each with leave of the pool."""
        deadline = self._monotonic() + timeout
        for tries in range(1, _TRIES + 1):
            try:
                answer = self._try(api, target, permit, deadline)
            except BrazeError as error:
                if pool.failed(permit, error, self._monotonic()):
                    self._tell(pool)
                if tries == _TRIES or error.reason not in _RETRIED:
                    raise
                again = self._retry_permit(pool, deadline, _back_off(tries, self._random) / 2)
                if again is None:
                    raise
                permit = again
            else:
                if pool.succeeded(permit):
                    self._tell(pool)
                return answer
        raise AssertionError("the last try returns or raises")

    def _try(self, api: str, target: str, permit: Permit, deadline: float) -> tuple[bytes, Turn]:
        key = self._api_key(fresh=permit.probe)
        turn = Turn(self._lanes)
        try:
            return _body(self._reply(api, target, key, deadline, turn), self.secrets, self._wall()), turn
        except BrazeError as error:
            turn.end()
            self.count_failure(api, error.reason)
            if error.reason is not Reason.UNAUTHORIZED or key == self._keys[-1]:
                raise
        return self._try(api, target, permit, deadline)  # the key was replaced meanwhile, the new one is not refused

    def _reply(self, api: str, target: str, key: str, deadline: float, turn: Turn) -> Reply:
        started = self._monotonic()
        try:
            reply = self._transport.get(
                target, authorization=f"Bearer {key}", timeout=deadline - started, before_large=turn.wait
            )
        except TransportError as error:
            raise BrazeError(_TRANSPORT_REASONS[type(error)], str(error)) from None
        finally:
            self.counters.observe(api, self._monotonic() - started)
        self.counters.read_rate_headers(api, reply.headers)
        return reply

    def _tell(self, pool: Pool) -> None:
        """Log that the pool has closed or opened."""
        where = {"workspace": self.workspace.name}
        if (reason := pool.closed) is None:
            logger.info("Braze answers again", extra=where)
        else:
            logger.log(
                logging.ERROR if reason is Reason.UNAUTHORIZED else logging.WARNING,
                _CLOSED_MESSAGES[reason],
                extra={**where, "next_request_in": f"{pool.closed_for(self._monotonic()):.1f}s"},
            )

    def _retry_permit(self, pool: Pool, deadline: float, back_off: float) -> Permit | None:
        """Wait for the back-off and the pace; return None where a retry does not fit in or the pool closes."""
        wait = back_off
        while not pool.closed and self._monotonic() + wait < deadline and not self._stopped.wait(wait):
            now = self._monotonic()
            if now >= deadline:  # woken late, or the machine slept
                return None
            taken = pool.take(now)
            if isinstance(taken, Permit):
                return taken
            wait = min(taken, LONGEST_WAIT) if now + taken < deadline else math.inf
        return None

    def _api_key(self, *, fresh: bool) -> str:
        """Return the key, read again once an interval and for `fresh`; an unusable one changes nothing.

        One thread reads it, and not under the lock, as a file may be on a volume that hangs: the others go on with the
        old one.
        """
        with self._key_lock:
            now = self._monotonic()
            due = not self._key_being_read and (fresh or now - self._key_read_at >= self._interval)
            if due:
                self._key_read_at = now
                self._key_being_read = True
            workspace = self.workspace
        if due:
            try:
                self._read_key(workspace)
            finally:
                self._key_being_read = False
        return self._keys[-1]

    def _read_key(self, workspace: Workspace) -> None:
        key, problem = "", ""
        try:
            key = self._key_reader(workspace, self._environ)
        except ConfigError as error:
            problem = str(error)
        with self._key_lock:
            if workspace is not self.workspace:  # a reload brought other settings meanwhile, and reads their key
                return
            news = self._key_readable if problem else key != self._keys[-1]
            self._key_readable = not problem
            if news and not problem:
                self._keys = [*(old for old in self._keys if old != key), key]
        where = {"workspace": workspace.name}
        if news and problem:
            logger.warning("the API key cannot be read again, the old one stays", extra={**where, "error": problem})
        elif news:
            logger.info("the API key was replaced", extra=where)


_RETRIED = {Reason.CONNECTION, Reason.SERVER_ERROR}

_TRANSPORT_REASONS = {
    TimedOut: Reason.TIMEOUT,
    NotConnected: Reason.CONNECTION,
    NotTrusted: Reason.TLS,
    NotDecoded: Reason.BAD_PAYLOAD,
    TooLarge: Reason.TOO_LARGE,
}

_CLOSED_MESSAGES = {
    Reason.UNAUTHORIZED: "Braze refuses the API key: it is invalid, or belongs to another instance than the endpoint",
    Reason.RATE_LIMITED: "Braze's rate limit is reached, the workspace pauses",
}

_STATUS_REASONS: dict[int, Reason] = {
    HTTPStatus.UNAUTHORIZED: Reason.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN: Reason.FORBIDDEN,
    HTTPStatus.NOT_FOUND: Reason.NOT_FOUND,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: Reason.CONNECTION,
    HTTPStatus.REQUEST_TIMEOUT: Reason.CONNECTION,
    HTTPStatus.TOO_EARLY: Reason.CONNECTION,
}

_CLASS_REASONS = {3: Reason.REDIRECT, 4: Reason.BAD_REQUEST, 5: Reason.SERVER_ERROR}
"""By the hundreds of the status, for those that have no reason of their own."""


def _back_off(times: int, random: Random) -> float:
    """Return seconds that double with each time in a row, with jitter, up to the longest pause."""
    return float(min(LONGEST_PAUSE, _FIRST_BACK_OFF * 2.0 ** min(times - 1, 16)) * random.uniform(0.5, 1.0))


def _body(reply: Reply, keys: Sequence[str], now: float) -> bytes:
    """Return the body of a success; raise what any other status means, whatever its body is."""
    status = reply.status
    if status == HTTPStatus.OK:
        return reply.body
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited("Braze answered 429: too many requests", named_wait(reply.headers, now))
    detail = f"Braze answered {status}"
    if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
        detail += _message(reply.body, keys)
    reason = _STATUS_REASONS.get(status) or _CLASS_REASONS.get(status // 100, Reason.BAD_PAYLOAD)
    raise BrazeError(reason, detail)


def _message(body: bytes, keys: Sequence[str]) -> str:
    """Return what Braze says of the error, unless it might hold a part of a key: error bodies can echo it."""
    try:
        fields: object = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = fields.get("message") if isinstance(fields, dict) else None
    if not isinstance(message, str) or not message or any(_holds_part_of(key, message) for key in keys):
        return ""
    shown = "".join(character if character.isprintable() else " " for character in message[:_MESSAGE_LENGTH])
    return f": {shown}"


def _holds_part_of(key: str, text: str) -> bool:
    """Tell whether any eight characters of the key in a row stand in the text, in any case."""
    key, text, length = key.lower(), text.lower(), min(8, len(key))
    return any(key[start : start + length] in text for start in range(len(key) - length + 1))


def named_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds a 429 asks to wait, at most the longest pause: Retry-After, else X-RateLimit-Reset.

    A time is compared with the response's own `Date`, or with our clock, the Unix time `now`, where it has none; one in
    the past means at once. None where neither header says anything.
    """
    date = _http_date(headers.get("Date"))
    here = now if date is None else date
    retry_after = headers.get("Retry-After")
    wait = _number(retry_after)
    if wait is None and (until := _http_date(retry_after)) is not None:
        wait = until - here
    if wait is None and (reset := _number(headers.get("X-RateLimit-Reset"))) is not None:
        wait = reset - here
    return None if wait is None else min(max(0.0, wait), LONGEST_PAUSE)


def _read_rate_headers(statistics: ApiStatistics, headers: Mapping[str, str]) -> None:
    """Keep what the headers say of the rate limit; one that is empty or absurd leaves the value before."""

    def read(name: str, before: float | None) -> float | None:
        number = _number(headers.get(name))
        return before if number is None or number > _LARGEST_HEADER else number

    statistics.rate_limit = read("X-RateLimit-Limit", statistics.rate_limit)
    statistics.rate_limit_remaining = read("X-RateLimit-Remaining", statistics.rate_limit_remaining)
    statistics.rate_limit_reset = read("X-RateLimit-Reset", statistics.rate_limit_reset)


def _number(text: str | None) -> float | None:
    """Return a header's number, None where it is absent, empty or anything else than digits."""
    return float(text) if text and _DIGITS.fullmatch(text.strip()) else None


def _http_date(text: str | None) -> float | None:
    """Return the Unix time of a header's date, which is in UTC even where it names no zone; None for any other text."""
    try:
        date = parsedate_to_datetime(text or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except Exception:  # noqa: BLE001 - the parser raises what comes along for texts that are no dates
        return None


def log_traceback(campaign: tuple[str, str], error: Exception) -> None:
    """Log where an unexpected exception was raised, without its text, which may hold parts of the response."""
    places = "".join(traceback.format_tb(error.__traceback__, -_FRAMES))
    logger.error(
        "a response cannot be read or shown",
        extra={
            "workspace": campaign[0],
            "campaign_id": campaign[1],
            "error": type(error).__name__,
            "traceback": places,
        },
    )
