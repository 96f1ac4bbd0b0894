"""Client of Braze's REST API: one workspace's requests, their retries, and the errors that responses mean."""

from __future__ import annotations

import json
import logging
import math
import threading
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from exporter import __version__
from exporter.braze.counters import Counters
from exporter.braze.data_series import PayloadError, parse_data_series
from exporter.braze.decoding import DecodingError, Lanes, TooManyValues, Turn, decoded
from exporter.braze.errors import UNEXPECTED, BrazeError, RateLimited, Reason, log_traceback
from exporter.braze.rate_limiter import LONGEST_PAUSE, LONGEST_WAIT, Permit, RateLimiter, back_off, requested_wait
from exporter.braze.transport import NotConnected, NotDecoded, NotTrusted, TimedOut, TooLarge, Transport, TransportError
from exporter.config import MOST_CONCURRENCY, ConfigError, read_api_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from exporter.braze.counters import ApiStatistics
    from exporter.braze.data_series import DataSeries
    from exporter.braze.transport import Reply
    from exporter.config import Workspace

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_MESSAGE_LENGTH = 200


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
        self.counters = counters or Counters(["data_series"])
        self._total_shards = total_shards
        self.data_series_limiter = RateLimiter(
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
        self.data_series_limiter.change(
            requests_per_minute=workspace.requests_per_minute / self._total_shards,
            unauthorized_pause=min(interval, LONGEST_PAUSE),
        )
        return replaced and self.data_series_limiter.probe_now()

    def data_series(self, campaign_id: str, *, days: int, permit: Permit, timeout: float) -> Received:
        """Request a campaign's last days; return the response, which is to be read.

        Raises:
            BrazeError: with the reason of the last try that ended; there are three at most, within `timeout` seconds.

        """
        target = f"/campaigns/data_series?campaign_id={campaign_id}&length={days}"
        body, turn = self._ask("data_series", self.data_series_limiter, target, permit, timeout)
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

    def _ask(self, api: str, limiter: RateLimiter, target: str, permit: Permit, timeout: float) -> tuple[bytes, Turn]:
        """Make up to three tries of one request, each with leave of the limiter."""
        deadline = self._monotonic() + timeout
        for tries in range(1, _ATTEMPTS + 1):
            try:
                answer = self._try(api, target, permit, deadline)
            except BrazeError as error:
                if limiter.record_failure(permit, error, self._monotonic()):
                    self._tell(limiter)
                if tries == _ATTEMPTS or error.reason not in _RETRIED:
                    raise
                again = self._retry_permit(limiter, deadline, back_off(tries, self._random) / 2)
                if again is None:
                    raise
                permit = again
            else:
                if limiter.record_success(permit):
                    self._tell(limiter)
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

    def _tell(self, limiter: RateLimiter) -> None:
        """Log that the limiter has closed or opened."""
        where = {"workspace": self.workspace.name}
        if (reason := limiter.paused) is None:
            logger.info("Braze answers again", extra=where)
        else:
            logger.log(
                logging.ERROR if reason is Reason.UNAUTHORIZED else logging.WARNING,
                _PAUSED_MESSAGES[reason],
                extra={**where, "next_request_in": f"{limiter.paused_for(self._monotonic()):.1f}s"},
            )

    def _retry_permit(self, limiter: RateLimiter, deadline: float, back_off: float) -> Permit | None:
        """Wait for the back-off and the pace; return None where a retry does not fit in or the limiter closes."""
        wait = back_off
        while not limiter.paused and self._monotonic() + wait < deadline and not self._stopped.wait(wait):
            now = self._monotonic()
            if now >= deadline:  # woken late, or the machine slept
                return None
            taken = limiter.acquire(now)
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

_PAUSED_MESSAGES = {
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


def _body(reply: Reply, keys: Sequence[str], now: float) -> bytes:
    """Return the body of a success; raise what any other status means, whatever its body is."""
    status = reply.status
    if status == HTTPStatus.OK:
        return reply.body
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited("Braze answered 429: too many requests", requested_wait(reply.headers, now))
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
