"""HTTP server of the simulated Braze, on loopback: Braze's endpoints, rate limits and errors, and faults on request."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import parse_qsl

from exporter.simulator.world import campaign_models, data_series, details, listing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date, tzinfo
    from typing import Self

    from exporter.simulator.world import CampaignModel

PAGE_SIZE = 100
"""Number of campaigns on one page of `/campaigns/list`."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Fault: the usual response, delayed by `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """Fault: a response with this status code; body and headers are Braze's own unless given."""

    code: int
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """Fault: a response with status code 200 and this body."""

    content: bytes
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Hang:
    """Fault: the request is read and never gets a response."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Fault: the connection is closed after `after` bytes of the response, counted from its status line."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Drip:
    """Fault: one byte of the response each `interval` seconds, from the status line or from the body on."""

    interval: float
    part: Literal["headers", "body"] = "body"


Fault: TypeAlias = Latency | Status | Body | Hang | Cut | Drip
"""One way to misbehave."""


@dataclass(frozen=True, slots=True)
class Request:
    """Record of a received request: `time` is monotonic, `status` that of the response or None without one."""

    time: float
    path: str
    query: str
    campaign_id: str | None
    status: int | None
    authorized: bool


class Simulator:
    """Braze workspace that listens on a loopback address from `start` (or `with`) to `close`."""

    def __init__(
        self,
        *,
        seed: int = 1,
        campaigns: int | Sequence[CampaignModel] = 12,
        timezone: tzinfo = UTC,
        newest_day: Literal["today", "yesterday"] = "today",
        api_key: str = "simulated-braze-key",
        clock: Callable[[], float] = time.time,
        address: tuple[str, int] = ("127.0.0.1", 0),
        data_series_per_minute: int = 50_000,
        other_requests_per_hour: int = 250_000,
    ) -> None:
        """Create the workspace without listening yet.

        `campaigns` are campaigns, or the number of them to invent from the seed. `newest_day` says whether a response
        ends with the running day or with yesterday when the request has no `ending_at`. `clock` returns Unix seconds.
        The days, their numbers (each whole second), the rate limits and the Date header follow it. Raises ValueError if
        the address is not a loopback address.
        """
        if not _is_loopback(address[0]):
            raise ValueError(f"expected a loopback address such as 127.0.0.1, got {address[0]!r}")
        self.api_key = api_key
        self.campaigns = campaign_models(campaigns, seed) if isinstance(campaigns, int) else tuple(campaigns)
        self._by_id = {campaign.id.lower(): campaign for campaign in self.campaigns}
        self._zone = timezone
        self._newest_day = newest_day
        self._clock = clock
        self._address = address
        self._series = lru_cache(maxsize=4096)(self._encoded_series)  # the numbers move once a second
        self._lock = threading.Lock()
        self._data_series_limit = _RateLimit(data_series_per_minute, 60)
        self._other_limit = _RateLimit(other_requests_per_hour, 3600)
        self._rules: list[_Rule] = []
        self._requests: deque[Request] = deque(maxlen=100_000)
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Return the URL for `endpoint` in a client's configuration."""
        host, port = self._running().server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    @property
    def requests(self) -> list[Request]:
        """Return the latest requests, at most 100,000, in the order of their responses."""
        with self._lock:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """Return how many TCP connections have been accepted."""
        return self._running().accepted

    def start(self) -> None:
        """Listen and serve requests in threads; raises OSError if it cannot listen on the address."""
        self._server = _Server(self._address, self._deliver)
        threading.Thread(target=partial(self._server.serve_forever, poll_interval=0.05), daemon=True).start()

    def close(self) -> None:
        """Stop listening and end every connection and thread at once."""
        if self._server is not None:
            self._server.close()

    def misbehave(self, fault: Fault, *, campaign_id: str | None = None, times: int | None = None) -> None:
        """Apply a fault to requests for one campaign or to all: to the next `times` requests, or until `behave`.

        The newest matching fault applies; when it ends, the previous one applies again. Latency is added to any other.
        """
        with self._lock:
            self._rules.insert(0, _Rule(fault, campaign_id and campaign_id.lower(), times))

    def behave(self, campaign_id: str | None = None) -> None:
        """Remove the faults of one campaign, or all faults."""
        with self._lock:
            self._rules = [
                rule for rule in self._rules if campaign_id is not None and rule.campaign_id != campaign_id.lower()
            ]

    def _running(self) -> _Server:
        if self._server is None:
            raise RuntimeError("expected a started simulator, got one that does not listen yet")
        return self._server

    def _deliver(self, method: str, target: str, authorization: str) -> _Delivery:
        """Record a request, and return its response and how to send it."""
        arrived, now = time.monotonic(), self._clock()
        path, _, query = target.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        campaign_id = parameters.get("campaign_id")
        authorized = authorization == f"Bearer {self.api_key}"
        limit = self._data_series_limit if path == "/campaigns/data_series" else self._other_limit
        with self._lock:
            rate = limit.count(now) if authorized else _NO_RATE
            seconds, fault = self._faults((campaign_id or "").lower())

        response = self._respond(method, path, parameters, authorization=authorization, rate=rate, now=now)
        if isinstance(fault, Status):
            response = _failure(fault, authorization, rate)
        elif isinstance(fault, Body):
            response = _Response(200, rate.headers | {"Content-Type": fault.content_type}, fault.content)
        without_response = isinstance(fault, Hang) or (isinstance(fault, Cut) and fault.after == 0)
        request = Request(arrived, path, query, campaign_id, None if without_response else response.status, authorized)
        with self._lock:
            self._requests.append(request)
        return _Delivery(_head(response, now), response.body, seconds, fault)

    def _faults(self, campaign_id: str) -> tuple[float, Fault | None]:
        """Return the latency in seconds and the other fault that apply, and count one use of each."""
        fitting = [rule for rule in self._rules if rule.campaign_id in (None, campaign_id)]
        late = next((rule for rule in fitting if isinstance(rule.fault, Latency)), None)
        wrong = next((rule for rule in fitting if not isinstance(rule.fault, Latency)), None)
        for rule in (late, wrong):
            if rule is not None and rule.times is not None:
                rule.times -= 1
        self._rules = [rule for rule in self._rules if rule.times != 0]
        seconds = late.fault.seconds if late is not None and isinstance(late.fault, Latency) else 0.0
        return seconds, None if wrong is None else wrong.fault

    def _respond(
        self, method: str, path: str, parameters: Mapping[str, str], *, authorization: str, rate: _Rate, now: float
    ) -> _Response:
        endpoint = {
            "/campaigns/data_series": self._data_series,
            "/campaigns/list": self._list,
            "/campaigns/details": self._details,
        }.get(path)
        if rate is _NO_RATE:
            return _failure(Status(401), authorization, rate)
        if rate.exceeded:
            return _failure(Status(429), authorization, rate)
        if endpoint is None:
            return _failure(Status(404), authorization, rate)
        if method != "GET":
            return _failure(Status(405, headers={"Allow": "GET", "Connection": "close"}), authorization, rate)
        try:
            return _Response(200, rate.headers | _JSON, endpoint(parameters, now))
        except _BadParameter as error:
            return _failure(Status(400, _message_body(str(error))), authorization, rate)

    def _data_series(self, parameters: Mapping[str, str], now: float) -> bytes:
        campaign = self._campaign(parameters)
        length = parameters.get("length", "")
        if not re.fullmatch("[1-9][0-9]?|100", length):
            raise _BadParameter("length must be an integer from 1 to 100")
        last = self._last_day(parameters.get("ending_at"), now)
        return self._series(campaign.id.lower(), last, int(length), math.floor(now))

    def _list(self, parameters: Mapping[str, str], _now: float) -> bytes:
        page = parameters.get("page", "0")
        if not re.fullmatch("[0-9]{1,9}", page):
            raise _BadParameter("page must be an integer from 0 on")
        newest_first = _choice(parameters, "sort_direction", ("asc", "desc")) == "desc"
        archived_too = _choice(parameters, "include_archived", ("false", "true")) == "true"
        edited_after = parameters.get("last_edit.time[gt]")
        campaigns = [campaign for campaign in self.campaigns if archived_too or not campaign.archived]
        if edited_after is not None:
            since = _moment("last_edit.time[gt]", edited_after, UTC)
            campaigns = [campaign for campaign in campaigns if campaign.edited > since]
        campaigns.sort(key=attrgetter("started"), reverse=newest_first)
        return _encode(listing(campaigns[int(page) * PAGE_SIZE :][:PAGE_SIZE]))

    def _details(self, parameters: Mapping[str, str], now: float) -> bytes:
        return _encode(details(self._campaign(parameters), now=now, zone=self._zone))

    def _encoded_series(self, campaign_id: str, last: date, length: int, second: int) -> bytes:
        return _encode(data_series(self._by_id[campaign_id], last, length, now=second, zone=self._zone))

    def _campaign(self, parameters: Mapping[str, str]) -> CampaignModel:
        campaign = self._by_id.get(parameters.get("campaign_id", "").lower())
        if campaign is None:
            raise _BadParameter("campaign_id must be a string of the campaign api identifier")
        return campaign

    def _last_day(self, ending_at: str | None, now: float) -> date:
        """Return the last day of a response: today at the latest, and the day before for an `ending_at` at midnight."""
        today = datetime.fromtimestamp(now, self._zone).date()
        if ending_at is None:
            return today if self._newest_day == "today" else today - timedelta(days=1)
        end = _moment("ending_at", ending_at, self._zone)
        return min(today, (end - timedelta(microseconds=1)).date())


@dataclass(frozen=True, slots=True)
class _Response:
    """Response before it is encoded."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Encoded response, and how to send it: after `seconds`, and with the fault."""

    head: bytes
    body: bytes
    seconds: float
    fault: Fault | None


@dataclass(slots=True)
class _Rule:
    """Fault that applies to one campaign or to all, for the next `times` requests or until it is removed."""

    fault: Fault
    campaign_id: str | None
    times: int | None


@dataclass(frozen=True, slots=True)
class _Rate:
    """State of the rate limit for one request: the response headers, and whether the limit is exceeded."""

    headers: dict[str, str]
    exceeded: bool = False


class _RateLimit:
    """Fixed-window rate limit: at most `limit` requests in each `period` seconds of the clock."""

    def __init__(self, limit: int, period: int) -> None:
        self._limit = limit
        self._period = period
        self._window = -1
        self._used = 0

    def count(self, now: float) -> _Rate:
        window = int(now // self._period)
        if window != self._window:
            self._window, self._used = window, 0
        self._used += 1
        remaining = max(0, self._limit - self._used)
        return _Rate(_rate_headers(self._limit, remaining, (window + 1) * self._period), self._used > self._limit)


class _BadParameter(ValueError):
    """Error: a parameter is missing or wrong; the text is Braze's message."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _rate_headers(limit: int | str, remaining: int | str, reset: int | str) -> dict[str, str]:
    return {"X-RateLimit-Limit": f"{limit}", "X-RateLimit-Remaining": f"{remaining}", "X-RateLimit-Reset": f"{reset}"}


_NO_RATE = _Rate(_rate_headers("", "", ""))  # Braze sends the headers empty with a 401
_FIRST_YEAR = 1970
_JSON = {"Content-Type": "application/json"}
_MESSAGES = {
    400: "campaign_id must be a string of the campaign api identifier",
    403: "The API key lacks the permission for this endpoint",
    404: "No such URL",
    429: "The rate limit is used up",
}


def _failure(status: Status, authorization: str, rate: _Rate) -> _Response:
    """Return Braze's error response; headers and body of `status` replace the usual ones."""
    code = status.code
    headers = (_NO_RATE if code == HTTPStatus.UNAUTHORIZED else rate).headers | _JSON
    replaced = {name.lower() for name in status.headers}
    headers = {name: value for name, value in headers.items() if name.lower() not in replaced} | dict(status.headers)
    if status.body is not None:
        return _Response(code, headers, status.body)
    if code == HTTPStatus.UNAUTHORIZED:  # Braze repeats the key
        return _Response(code, headers, _message_body(f"Invalid API key: {authorization.removeprefix('Bearer ')}"))
    if code in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return _Response(code, headers, b"")
    return _Response(code, headers, _message_body(_MESSAGES.get(code) or responses.get(code, "Unknown")))


def _message_body(message: str) -> bytes:
    return _encode({"message": message})


def _encode(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _head(response: _Response, now: float) -> bytes:
    """Encode the status line and the headers; Date follows the simulator's clock."""
    headers = {"Date": formatdate(now, usegmt=True), "Content-Length": str(len(response.body)), **response.headers}
    lines = [
        f"HTTP/1.1 {response.status} {responses.get(response.status, 'Unknown')}",
        *(f"{name}: {headers[name]}" for name in headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _choice(parameters: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """Return a parameter that must be one of the choices; the first is the default."""
    value = parameters.get(name, choices[0])
    if value not in choices:
        raise _BadParameter(f"{name} must be {' or '.join(choices)}")
    return value


def _moment(name: str, text: str, zone: tzinfo) -> datetime:
    """Parse ISO 8601, by default in `zone`; the offset may have one digit, as in Braze's examples."""
    try:
        moment = datetime.fromisoformat(re.sub(r"([+-])(\d:\d\d)$", r"\g<1>0\2", text))
        moment = moment.astimezone(zone) if moment.tzinfo else moment.replace(tzinfo=zone)
    except (ValueError, OverflowError):
        moment = datetime.min.replace(tzinfo=zone)
    if moment.year < _FIRST_YEAR:
        raise _BadParameter(f"{name} must be an ISO 8601 date and time from {_FIRST_YEAR} on")
    return moment


class _Server(ThreadingHTTPServer):
    """Listening socket and its connections, with one thread for each connection."""

    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], deliver: Callable[[str, str, str], _Delivery]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.deliver = deliver
        self.closing = threading.Event()
        self.accepted = 0
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the DNS look-up of HTTPServer."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Start and register the thread of a connection."""
        assert isinstance(request, socket.socket)  # noqa: S101 - TCP has no other requests; for the type checker
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._lock:
            self.accepted += 1
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close and unregister a connection."""
        with self._lock:
            if isinstance(request, socket.socket):
                self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Print a traceback, but not when a client has disconnected."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop accepting, shut down every connection so that its thread ends, and join the threads."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            still_open = dict(self._open)
        for connection in still_open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in still_open.values():
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, and writes their responses with the chosen faults."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        """Log nothing: the simulator records its requests."""

    def _serve(self) -> None:
        delivery = self.server.deliver(self.command, self.path, self.headers.get("Authorization", ""))
        if self.command != "GET":
            self.close_connection = True  # its body may follow, and is not read
        if delivery.seconds and not self._wait(delivery.seconds):
            return
        body = b"" if self.command == "HEAD" else delivery.body
        match delivery.fault:
            case Hang():
                self._hang()
            case Cut(after):
                self.wfile.write((delivery.head + body)[:after])
                self.close_connection = True
            case Drip(interval, "headers"):
                self._drip(delivery.head + body, interval)
            case Drip(interval, _):
                self.wfile.write(delivery.head)
                self._drip(body, interval)
            case _:
                self.wfile.write(delivery.head + body)  # in one segment, as long as it is small

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815 - the names count

    def _hang(self) -> None:
        """Wait until the client or the simulator ends the connection."""
        self.close_connection = True
        while self.connection.recv(65_536):
            pass

    def _drip(self, content: bytes, interval: float) -> None:
        for place in range(len(content)):
            self.wfile.write(content[place : place + 1])
            if not self._wait(interval):
                return

    def _wait(self, seconds: float) -> bool:
        """Wait, and return whether the simulator still runs; close the connection if not."""
        closing = self.server.closing.wait(seconds)
        self.close_connection = self.close_connection or closing
        return not closing
