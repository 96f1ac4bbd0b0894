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
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING

from exporter import __version__
from exporter.config import ConfigError, read_api_key
from exporter.transport import NotConnected, NotDecoded, NotTrusted, TimedOut, TooLarge, Transport, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from exporter.config import Workspace
    from exporter.transport import Reply

logger = logging.getLogger(__name__)

DURATION_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper bounds in seconds; Braze answers in 0.2 to 0.5 as a rule."""

LONGEST_PAUSE = 300.0
"""Seconds; whatever Braze names, after so long one request finds out."""

_TRIES = 3
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
        self._lock = threading.Lock()
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
        self._lock = threading.Lock()
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


class Client:
    """One workspace's way to Braze: its key, its connections, its pace. Any number of threads may use it.

    It is one of `total_shards` that share the pace. With `counters` it goes on counting where another stopped.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        interval: float,
        environ: Mapping[str, str],
        monotonic: Callable[[], float],
        random: Random,
        stopped: threading.Event,
        total_shards: int = 1,
        counters: Counters | None = None,
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
        self._monotonic = monotonic
        self._random = random
        self._stopped = stopped
        self._key_lock = threading.Lock()
        self._keys = [read_api_key(workspace, environ)]
        self._key_read_at = monotonic()
        self._key_readable = True
        self._transport = Transport(
            workspace.endpoint,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": f"braze-exporter/{__version__}",
            },
            connections=32,
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
            self._read_key()
            replaced = self._keys[-1] != before
        self.data_series_pool.change(
            requests_per_minute=workspace.requests_per_minute / self._total_shards,
            unauthorized_pause=min(interval, LONGEST_PAUSE),
        )
        return replaced and self.data_series_pool.probe_now()

    def data_series(self, campaign_id: str, *, days: int, permit: Permit, timeout: float) -> object:
        """Ask for a campaign's last days; return the decoded answer.

        Raises:
            BrazeError: with the reason of the last try that ended; there are three at most, within `timeout` seconds.

        """
        target = f"/campaigns/data_series?campaign_id={campaign_id}&length={days}"
        return self._ask("data_series", self.data_series_pool, target, permit, timeout)

    def count_failure(self, api: str, reason: Reason) -> None:
        """Count an answer that arrived whole and turned out to be none."""
        self.counters.count_failure(api, reason)

    def close(self) -> None:
        """Close the connections that are not in use, and the others when their requests end; nothing is retried."""
        self._stopped.set()
        self._transport.close()

    def _ask(self, api: str, pool: Pool, target: str, permit: Permit, timeout: float) -> object:
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

    def _try(self, api: str, target: str, permit: Permit, deadline: float) -> object:
        key = self._api_key(fresh=permit.probe)
        try:
            return _answer(self._reply(api, target, key, deadline), self.secrets)
        except BrazeError as error:
            self.count_failure(api, error.reason)
            if error.reason is not Reason.UNAUTHORIZED or key == self._keys[-1]:
                raise
        return self._try(api, target, permit, deadline)  # the key was replaced meanwhile, the new one is not refused

    def _reply(self, api: str, target: str, key: str, deadline: float) -> Reply:
        started = self._monotonic()
        try:
            reply = self._transport.get(
                target, authorization=f"Bearer {key}", timeout=deadline - started, before_large=lambda _: None
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
            taken = pool.take(self._monotonic())
            if isinstance(taken, Permit):
                return taken
            wait = taken
        return None

    def _api_key(self, *, fresh: bool) -> str:
        """Return the key, read again once an interval and for `fresh`; an unusable one changes nothing."""
        with self._key_lock:
            now = self._monotonic()
            if fresh or now - self._key_read_at >= self._interval:
                self._key_read_at = now
                self._read_key()
            return self._keys[-1]

    def _read_key(self) -> None:
        where = {"workspace": self.workspace.name}
        try:
            key = read_api_key(self.workspace, self._environ)
        except ConfigError as error:
            if self._key_readable:
                logger.warning(
                    "the API key cannot be read again, the old one stays", extra={**where, "error": str(error)}
                )
            self._key_readable = False
            return
        self._key_readable = True
        if key != self._keys[-1]:
            logger.info("the API key was replaced", extra=where)
            self._keys = [*(old for old in self._keys if old != key), key]


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
}

_CLASS_REASONS = {3: Reason.REDIRECT, 4: Reason.BAD_REQUEST, 5: Reason.SERVER_ERROR}
"""By the hundreds of the status, for those that have no reason of their own."""


def _back_off(times: int, random: Random) -> float:
    """Return seconds that double with each time in a row, with jitter, up to the longest pause."""
    return float(min(LONGEST_PAUSE, _FIRST_BACK_OFF * 2.0 ** min(times - 1, 16)) * random.uniform(0.5, 1.0))


def _answer(reply: Reply, keys: Sequence[str]) -> object:
    """Return the decoded body of a success; raise what any other status means."""
    status = reply.status
    if status == HTTPStatus.OK:
        return _decoded(reply.body)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited("Braze answered 429: too many requests", named_wait(reply.headers))
    detail = f"Braze answered {status}"
    if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
        detail += _message(reply.body, keys)
    reason = _STATUS_REASONS.get(status) or _CLASS_REASONS.get(status // 100, Reason.BAD_PAYLOAD)
    raise BrazeError(reason, detail)


def _decoded(body: bytes) -> object:
    try:
        answer: object = json.loads(body)
    except (ValueError, RecursionError):  # 4,300 digits and 100,000 brackets end here too
        raise BrazeError(Reason.BAD_PAYLOAD, f"expected JSON, got {len(body)} bytes of something else") from None
    return answer


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


def named_wait(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a 429 asks to wait: Retry-After, else X-RateLimit-Reset less the answer's own Date.

    None where neither says it. A time in the past means now.
    """
    date = _http_date(headers.get("Date"))
    retry_after = headers.get("Retry-After")
    wait = _number(retry_after)
    if wait is None and date is not None and (until := _http_date(retry_after)) is not None:
        wait = until - date
    if wait is None and date is not None and (reset := _number(headers.get("X-RateLimit-Reset"))) is not None:
        wait = reset - date
    return None if wait is None else max(0.0, wait)


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
    """Return the Unix time of a header's date, which is in UTC even where it names no zone."""
    try:
        date = parsedate_to_datetime(text or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
