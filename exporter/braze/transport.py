"""One GET over urllib3's connections that is over by its deadline, whatever the other side does.

requests reads the environment and sets up proxies and trust, and urllib3 pools the connections (exporter.connection).
What both do for each call (cookies, redirects, retries, any coding of a body) is not needed here.

    TransportError
    ├── TimedOut        the deadline passed
    ├── NotConnected    no connection, no name, no thread, or it was cut
    ├── NotTrusted      TLS failed
    ├── NotDecoded      the body is not what its Content-Encoding says
    └── TooLarge        the body is over BODY_LIMIT
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import re
import ssl
import time
import zlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy

from exporter.braze.connection import Connection, Resolver, TlsConnection
from exporter.braze.deadlines import Watchdog
from exporter.config import is_loopback
from exporter.system import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from urllib3.connectionpool import HTTPConnectionPool

    from exporter.braze.connection import Response
    from exporter.braze.deadlines import Watch
    from exporter.system.threads import Start

BODY_LIMIT = 16 * 1024 * 1024
"""Bytes of a decoded body; Braze's largest responses are a hundredth of it."""

LARGE = 1024 * 1024
"""Bytes of a body that are read and decompressed before it waits for its turn."""

_ERROR_BODY_LIMIT = 64 * 1024
"""Bytes that are read of the body of an error, so that its connection can be kept."""

_ERROR_BODY_SECONDS = 1.0
"""Seconds that the body of an error may take: its status is known and decides."""

_GZIP_WINDOW_BITS = 31

_GZIP_MEMBERS = 1024
"""Maximum number of gzip members of a body: to decompress one costs time and memory, even if it is empty."""

_GZIP_SLICE = 1 << 16
"""Bytes that a decompressor is given at once: it copies those that it does not need."""

_CODINGS = {"br", "compress", "deflate", "gzip", "x-compress", "x-gzip", "zstd"}
"""Content codings that exist. Any other value of Content-Encoding is a mistake, and the body is plain."""


class TransportError(Exception):
    """A request without a usable response; the text contains nothing of the request or the response."""


class TimedOut(TransportError):
    """The deadline passed before the last byte arrived."""


class NotConnected(TransportError):
    """There was no connection, or it ended before the response did."""


class NotTrusted(TransportError):
    """The TLS handshake failed, for instance because a certificate is not trusted."""


class NotDecoded(TransportError):
    """The body cannot be decompressed."""


class TooLarge(TransportError):
    """The body has more than BODY_LIMIT bytes."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A status, the headers under any case of their names, and the decoded body (cut, unless the status is 200)."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _DeadConnectionError(Exception):
    """The other side had ended a kept connection when a request was sent on it."""


_RESOLVER = Resolver()
"""Shared by all transports, so that a look-up that hangs is one thread and not one for each workspace."""


class Transport:
    """Connections to one host, kept between requests; any number of threads may make requests at once.

    Up to `connections` of them are kept. Proxies and CA bundles come from the environment, as requests reads it, once;
    a loopback host never goes through a proxy. Redirects are not followed, cookies and netrc files not used.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str],
        connections: int,
        monotonic: Callable[[], float] = time.monotonic,
        resolver: Resolver = _RESOLVER,
        start: Start = threads.start,
    ) -> None:
        self._headers = dict(headers)
        self._adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections)
        self._endpoint = requests.Request("GET", endpoint).prepare()
        self._proxies, self._verify = _environment(endpoint)
        self._monotonic = monotonic
        self._resolver = resolver
        self._pool: HTTPConnectionPool | None = None
        self._watchdog = Watchdog(start)

    def get(self, target: str, *, authorization: str, timeout: float, before_large: Callable[[float], None]) -> Reply:
        """Send a request for a path with its query; return the response if it is complete within `timeout` seconds.

        `before_large` is called with the seconds left, once, before more than LARGE bytes of a body are read or
        decompressed. It returns when it is this body's turn, and raises TimedOut when that does not come in time. Of a
        response whose status is not 200 the body is optional: whatever fails while it is read, there is a reply.

        Raises:
            TransportError: one of its kinds, when there is no complete response by then.

        """
        headers = {**self._headers, "Authorization": authorization}
        outcome = self._outcome(target, headers, time.monotonic() + timeout, before_large)
        if isinstance(outcome, TransportError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Close the connections that are not in use, and the others when their requests end; no more are made."""
        self._watchdog.close()  # first: what begins later fails, and opens no pool that nobody would close
        if self._pool is not None:
            self._pool.close()

    def _outcome(
        self, target: str, headers: Mapping[str, str], deadline: float, before_large: Callable[[float], None]
    ) -> Reply | TransportError:
        """Return the reply or the error; raised here, it would refer to errors of libraries, and they to the key.

        The request is sent again, once, when a kept connection was dead before a byte of a response came.
        """
        try:
            with contextlib.suppress(_DeadConnectionError):
                return self._attempt(target, headers, deadline, before_large, fresh_only=False)
            return self._attempt(target, headers, deadline, before_large, fresh_only=True)
        except TransportError as error:
            return type(error)(*error.args)
        except _EXPECTED as error:
            # A socket that is shut under a running request ends it in many ways.
            if time.monotonic() >= deadline or _is(error, TimeoutError):
                return TimedOut("no complete response within the timeout")
            return _translated(error)

    def _attempt(
        self,
        target: str,
        headers: Mapping[str, str],
        deadline: float,
        before_large: Callable[[float], None],
        *,
        fresh_only: bool,
    ) -> Reply:
        """Make the request; raise _DeadConnectionError where a connection that was kept turns out to be dead."""
        pool = self._pool or self._connect_pool()
        with self._watchdog.watch(deadline, fresh_only=fresh_only) as watch:
            try:
                reply = self._exchange(pool, target, headers, watch, before_large)
            except _EXPECTED:
                if watch.connected or watch.responding or fresh_only or watch.remaining() <= 0:
                    raise
                raise _DeadConnectionError from None
        # A server that closes an idle connection may say so with a 408, which is no response to this request.
        if reply.status == HTTPStatus.REQUEST_TIMEOUT and not watch.connected:
            raise _DeadConnectionError
        return reply

    def _exchange(
        self,
        pool: HTTPConnectionPool,
        target: str,
        headers: Mapping[str, str],
        watch: Watch,
        before_large: Callable[[float], None],
    ) -> Reply:
        """Make the request on one connection, and keep that if the exchange is proven to be over."""
        outer = pool.urlopen(
            "GET",
            target,
            headers=headers,
            retries=False,
            redirect=False,
            timeout=max(watch.remaining(), 0.001),
            preload_content=False,
            decode_content=False,
        )
        response = cast("Response", watch.response)  # what urllib3's wraps
        is_success = response.status == HTTPStatus.OK
        body = b""
        with contextlib.closing(outer):
            if not is_success:
                self._watchdog.shorten(watch, _ERROR_BODY_SECONDS)
            try:
                body = _body(response, watch, before_large)
            except (*_EXPECTED, TransportError):
                if is_success:
                    raise
            else:
                if response.is_over:
                    cast("Connection", outer.connection).idle_since = self._monotonic()
                    outer.release_conn()
        if is_success and watch.remaining() <= 0:  # a socket that was shut looks like the end of the response
            raise TimedOut("no complete response within the timeout")
        return Reply(response.status, outer.headers, body)

    def _connect_pool(self) -> HTTPConnectionPool:
        """Return urllib3's pool as requests sets it up, with connections of our own."""
        if (select_proxy(self._endpoint.url or "", self._proxies) or "").lower().startswith("socks"):
            raise NotConnected("expected an HTTP proxy, got a SOCKS proxy")
        pool = cast(
            "HTTPConnectionPool",
            self._adapter.get_connection_with_tls_context(self._endpoint, self._verify, proxies=self._proxies),
        )
        try:
            self._adapter.cert_verify(pool, self._endpoint.url or "", self._verify, None)  # type: ignore[no-untyped-call]
        except OSError:
            raise NotTrusted(f"expected a CA bundle at {self._verify}, got nothing there") from None
        pool.ConnectionCls = functools.partial(  # type: ignore[assignment]
            TlsConnection if pool.scheme == "https" else Connection,
            monotonic=self._monotonic,
            resolver=self._resolver,
        )
        self._pool = pool
        return pool


def _body(response: Response, watch: Watch, before_large: Callable[[float], None]) -> bytes:
    """Read a body to its end and decode it; cut it at the limit where the status is not 200."""
    limit = BODY_LIMIT if response.status == HTTPStatus.OK else _ERROR_BODY_LIMIT
    wait_for_turn = functools.cache(lambda: before_large(watch.remaining()))
    if not response.is_framed:
        raise http.client.IncompleteRead(b"")  # its end is unknown
    body = response.read(min(limit, LARGE) + 1)
    if len(body) > LARGE:
        wait_for_turn()
        body += response.read(limit - LARGE)
    if response.length and len(body) <= limit:
        raise http.client.IncompleteRead(b"", response.length)
    _check_size(body, limit)
    codings = [coding.strip().lower() for coding in (response.headers.get("Content-Encoding") or "").split(",")]
    if codings in (["gzip"], ["x-gzip"]):
        body = _unzipped(body, limit, wait_for_turn)
    elif not _CODINGS.isdisjoint(codings):
        raise NotDecoded("expected gzip or no Content-Encoding, got another")
    _check_size(body, limit)
    return body


def _check_size(body: bytes, limit: int) -> None:
    """Refuse a body over BODY_LIMIT, as the smaller limit only cuts."""
    if limit == BODY_LIMIT < len(body):
        raise TooLarge(f"the response has more than {BODY_LIMIT} bytes")


def _unzipped(body: bytes, limit: int, wait_for_turn: Callable[[], None]) -> bytes:
    """Return the decompressed body, one byte over the limit at most; a compressed body over the limit is cut.

    Zeros behind a member are padding.
    """
    cut = len(body) > limit
    text = bytearray()
    members = 0
    rest = memoryview(body)
    while rest and len(text) <= limit:
        members += 1
        if members > _GZIP_MEMBERS:
            raise zlib.error(f"expected at most {_GZIP_MEMBERS} members")
        member = zlib.decompressobj(wbits=_GZIP_WINDOW_BITS)
        while rest and not member.eof and len(text) <= limit:
            if len(text) > LARGE:
                wait_for_turn()
            part = rest[:_GZIP_SLICE]
            text += member.decompress(part, (limit if len(text) > LARGE else min(limit, LARGE)) + 1 - len(text))
            rest = rest[len(part) - len(member.unconsumed_tail) - len(member.unused_data) :]
        if not member.eof and not cut and len(text) <= limit:
            raise zlib.error("the end is missing")
        rest = _behind_zeros(rest)
    return bytes(text)


def _behind_zeros(rest: memoryview) -> memoryview:
    """Return the bytes behind leading zeros, which are looked for in one slice after the other."""
    while rest and (zeros := len(part := bytes(rest[:_GZIP_SLICE])) - len(part.lstrip(b"\0"))):
        rest = rest[zeros:]
    return rest


_EXPECTED = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
    zlib.error,
)
"""Exceptions of requests and of the libraries below it, whatever the other side does."""

_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: (\d+)")
"""Text of http.client's error when a proxy does not connect; the proxy's own text follows."""


def _environment(endpoint: str) -> tuple[dict[str, str], bool | str]:
    """Return the proxies and the CA bundle that requests would use."""
    with requests.Session() as session:
        settings = session.merge_environment_settings(endpoint, {}, None, None, None)
    proxies = {} if is_loopback(urlsplit(endpoint).hostname or "") else dict(settings["proxies"])
    verify = settings["verify"]
    return proxies, verify if isinstance(verify, str) else True


def _translated(error: Exception) -> TransportError:
    """Return the TransportError that an exception of a library means, with a text that is ours or the system's."""
    innermost = list(_chain(error))[-1]
    if isinstance(error, zlib.error):
        return NotDecoded("the body is not what its Content-Encoding says")
    if _is(error, ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return NotConnected("the connection was closed")
    if _is(error, ssl.SSLError, urllib3.exceptions.SSLError):
        return NotTrusted(getattr(innermost, "verify_message", "") or getattr(innermost, "reason", "") or "TLS failed")
    if isinstance(innermost, OSError) and innermost.strerror:
        return NotConnected(innermost.strerror)
    if refusal := _TUNNEL_REFUSED.match(str(innermost)):
        return NotConnected(f"the proxy responded with {refusal[1]}")
    return NotConnected(type(innermost).__name__)


def _is(error: BaseException, *kinds: type[BaseException]) -> bool:
    return any(isinstance(link, kinds) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those it wraps; requests and urllib3 put them into arguments, `reason` and context."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        inner = [getattr(link, "reason", None), *reversed(link.args), link.__cause__, link.__context__]
        link = next((other for other in inner if isinstance(other, BaseException) and id(other) not in seen), None)
