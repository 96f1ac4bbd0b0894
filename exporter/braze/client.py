"""Client of Braze's REST API: one workspace's requests, their retries, and the errors that responses mean."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Generic

from exporter import __version__
from exporter.braze.api import Parsed_co
from exporter.braze.api_key import ApiKey
from exporter.braze.counters import Counters
from exporter.braze.decoding import DecodingError, DecodingLocks, TooManyValues, Turn, decoded
from exporter.braze.errors import UNEXPECTED, BrazeError, PayloadError, RateLimited, Reason, log_traceback
from exporter.braze.foreign_body import described
from exporter.braze.rate_limiter import LONGEST_PAUSE, LONGEST_WAIT, Permit, RateLimiter, back_off, requested_wait
from exporter.braze.transport import NotConnected, NotDecoded, NotTrusted, TimedOut, TooLarge, Transport, TransportError
from exporter.config import MOST_CONCURRENCY, read_api_key

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from exporter.braze.api import Api
    from exporter.braze.counters import ApiStatistics
    from exporter.braze.transport import Reply
    from exporter.config import Poll, Workspace

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_MESSAGE_LENGTH = 200


@dataclass(slots=True)
class Received(Generic[Parsed_co]):
    """A successful response that is not decoded yet, and the turn in which it is."""

    api: Api[Parsed_co]
    campaign_id: str
    body: bytes
    content_type: str
    turn: Turn


class Client:
    """Client of one workspace: its API key, connections and rate limiters. Any number of threads may use it.

    The rate limits are divided by `total_shards`. `counters` of a former client go on. `decoding_locks` are shared by
    all clients of the process. `monotonic` includes the time that the machine sleeps, where the system can.
    """

    def __init__(
        self,
        workspace: Workspace,
        apis: Sequence[Api[object]],
        *,
        interval: float,
        environ: Mapping[str, str],
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        random: Random,
        stopped: threading.Event,
        total_shards: int = 1,
        counters: Counters | None = None,
        decoding_locks: DecodingLocks | None = None,
        read_key: Callable[[Workspace, Mapping[str, str]], str] = read_api_key,
    ) -> None:
        self.workspace = workspace
        self.counters = counters or Counters(api.name for api in apis)
        self._total_shards = total_shards
        self._limiters = {
            rate_limit: RateLimiter(
                requests_per_minute=rate_limit.requests_per_minute(workspace) / total_shards,
                unauthorized_pause=min(interval, LONGEST_PAUSE),
                random=random,
            )
            for rate_limit in {api.rate_limit: None for api in apis}
        }
        self._key = ApiKey(workspace, interval=interval, environ=environ, monotonic=monotonic, read_key=read_key)
        self._wall = wall
        self._monotonic = monotonic
        self._decoding_locks = decoding_locks or DecodingLocks()
        self._random = random
        self._stopped = stopped
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
        return self._key.used

    @property
    def paused(self) -> Reason | None:
        """The refusal that pauses a rate limiter, 401 before 429; None while none is paused."""
        reasons = {limiter.paused for limiter in self._limiters.values()} - {None}
        return Reason.UNAUTHORIZED if Reason.UNAUTHORIZED in reasons else next(iter(reasons), None)

    @property
    def statistics(self) -> dict[str, ApiStatistics]:
        """The counters of each API, as a copy."""
        return self.counters.copy()

    def limiter(self, api: Api[object]) -> RateLimiter:
        """Return the rate limiter that an API's requests need permits of."""
        return self._limiters[api.rate_limit]

    def change(self, workspace: Workspace, *, interval: float) -> bool:
        """Apply other settings of the workspace at the same endpoint.

        The key is read again; return whether it replaces one that Braze refused, so that a probe is due.
        """
        self.workspace = workspace
        replaced = self._key.change(workspace, interval=interval)
        for rate_limit, limiter in self._limiters.items():
            limiter.change(
                requests_per_minute=rate_limit.requests_per_minute(workspace) / self._total_shards,
                unauthorized_pause=min(interval, LONGEST_PAUSE),
            )
        return replaced and True in [limiter.probe_now() for limiter in self._limiters.values()]

    def request(self, api: Api[Parsed_co], campaign_id: str, *, poll: Poll, permit: Permit) -> Received[Parsed_co]:
        """Send a request and return its response, which is then read.

        Raises:
            BrazeError: with the reason of the last of at most three attempts within `poll.timeout`.

        """
        reply, turn = self._send(api, api.target(campaign_id, poll), permit, poll.timeout)
        return Received(api, campaign_id, reply.body, reply.headers.get("Content-Type", ""), turn)

    def read(self, received: Received[Parsed_co], *, samples: int) -> Parsed_co:
        """Return the content of a response, at most `samples` samples of it; a response is read once.

        Raises:
            BrazeError: the response is unusable; an unexpected exception is a failure of this response only, too.

        """
        failure: BrazeError
        with received.turn:
            body, received.body = received.body, b""
            try:
                parsed = received.api.parse(decoded(body), samples)
            except TooManyValues as error:
                failure = BrazeError(Reason.TOO_LARGE, str(error))
            except DecodingError:
                found = described(body, received.content_type, partial(_may_be_key, self.secrets))
                failure = BrazeError(Reason.BAD_PAYLOAD, f"expected JSON, got {found}")
            except PayloadError as error:
                failure = BrazeError(Reason.BAD_PAYLOAD, str(error))
            except Exception as error:  # noqa: BLE001 - see above
                log_traceback(self.workspace.name, received.campaign_id, error)
                failure = BrazeError(Reason.BAD_PAYLOAD, UNEXPECTED)
            else:
                return parsed
            finally:
                del body
        self.counters.count_failure(received.api.name, failure.reason)
        raise failure  # here, as an exception that is handled refers to all of the response

    def close(self) -> None:
        """Close idle connections now and the others when their requests end; nothing is retried."""
        self._stopped.set()
        self._transport.close()

    def _send(self, api: Api[object], target: str, permit: Permit, timeout: float) -> tuple[Reply, Turn]:
        """Send a request, at most three times, each time with a permit of the API's rate limiter."""
        limiter = self.limiter(api)
        deadline = self._monotonic() + timeout
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self._attempt(api.name, target, permit, deadline)
            except BrazeError as error:
                if limiter.record_failure(permit, error, self._monotonic()):
                    self._log_pause(limiter)
                if attempt == _ATTEMPTS or error.reason not in _RETRIED:
                    raise
                again = self._retry_permit(limiter, deadline, back_off(attempt, self._random) / 2)
                if again is None:
                    raise
                permit = again
            else:
                if limiter.record_success(permit):
                    self._log_pause(limiter)
                return response
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, api: str, target: str, permit: Permit, deadline: float) -> tuple[Reply, Turn]:
        key = self._key.get(fresh=permit.probe)
        turn = Turn(self._decoding_locks)
        try:
            reply = self._reply(api, target, key, deadline, turn)
            _check_status(reply, self.secrets, self._wall())
        except BrazeError as error:
            turn.end()
            self.counters.count_failure(api, error.reason)
            if error.reason is not Reason.UNAUTHORIZED or key == self._key.used[-1]:
                raise
        else:
            return reply, turn
        return self._attempt(api, target, permit, deadline)  # the key was replaced meanwhile, the new one is untested

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

    def _log_pause(self, limiter: RateLimiter) -> None:
        """Log that requests are paused, or sent again."""
        where = {"workspace": self.workspace.name}
        if (reason := limiter.paused) is None:
            logger.info("Braze accepts requests again", extra=where)
        else:
            logger.log(
                logging.ERROR if reason is Reason.UNAUTHORIZED else logging.WARNING,
                _PAUSED_MESSAGES[reason],
                extra={**where, "next_request_in": f"{limiter.paused_for(self._monotonic()):.1f}s"},
            )

    def _retry_permit(self, limiter: RateLimiter, deadline: float, wait: float) -> Permit | None:
        """Wait for the back-off and for a permit; return None where the deadline comes first or requests are paused."""
        while not limiter.paused and self._monotonic() + wait < deadline and not self._stopped.wait(wait):
            now = self._monotonic()
            if now >= deadline:  # woken late, or the machine slept
                return None
            taken = limiter.acquire(now)
            if isinstance(taken, Permit):
                return taken
            wait = min(taken, LONGEST_WAIT) if now + taken < deadline else math.inf
        return None


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
    Reason.RATE_LIMITED: "Braze's rate limit is reached, requests are paused",
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


def _check_status(reply: Reply, keys: Sequence[str], now: float) -> None:
    """Raise the error that any status code but 200 means, whatever the body."""
    status = reply.status
    if status == HTTPStatus.OK:
        return
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited("Braze responded with 429: too many requests", requested_wait(reply.headers, now))
    detail = f"Braze responded with {status}"
    if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
        detail += _message(reply.body, keys)
    reason = _STATUS_REASONS.get(status) or _CLASS_REASONS.get(status // 100, Reason.BAD_PAYLOAD)
    raise BrazeError(reason, detail)


def _message(body: bytes, keys: Sequence[str]) -> str:
    """Return Braze's error message, unless it may contain a part of a key: error bodies can echo it."""
    try:
        fields: object = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = fields.get("message") if isinstance(fields, dict) else None
    if not isinstance(message, str) or not message or _may_be_key(keys, message):
        return ""
    shown = "".join(character if character.isprintable() else " " for character in message[:_MESSAGE_LENGTH])
    return f": {shown}"


def _may_be_key(keys: Sequence[str], text: str) -> bool:
    """Return whether the text contains any eight characters of a key in a row, in any case."""
    text = text.lower()
    for key in map(str.lower, keys):
        length = min(8, len(key))
        if any(key[start : start + length] in text for start in range(len(key) - length + 1)):
            return True
    return False
