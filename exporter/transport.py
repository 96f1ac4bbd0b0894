"""One GET over requests' connections that is over by its deadline, whatever the other side does.

requests reads the environment and sets up proxies and trust, and urllib3 makes the connections. What both do for each
call (cookies, redirects, retries, any coding of a body) is not needed here and would take a third of a poll's time.

The timeouts of requests and urllib3 are for each read: a server that sends a byte now and then keeps a request open for
ever, and name resolution has no timeout at all. Here one thread shuts the sockets of requests whose time is up.

    TransportError
    ├── TimedOut        the deadline passed
    ├── NotConnected    no connection, no name, or it was cut
    ├── NotTrusted      TLS failed
    ├── NotDecoded      the body is not what its Content-Encoding says
    └── TooLarge        the body is over BODY_LIMIT
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import math
import queue
import re
import socket
import ssl
import threading
import time
import zlib
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.connection import allowed_gai_family, create_connection

from exporter.config import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_GZIP_WINDOW_BITS = 31

BODY_LIMIT = 16 * 1024 * 1024
"""Bytes of a decoded body; Braze's largest answers are a hundredth of it."""

LARGE = 1024 * 1024
"""Bytes of a body, before or after it is decompressed, above which it has to wait for its turn."""

_ERROR_BODY_LIMIT = 64 * 1024
"""Bytes that are read of the body of an error, so that its connection can be kept."""


class TransportError(Exception):
    """A request got no usable answer; the text says why and holds nothing of the request or the answer."""


class TimedOut(TransportError):
    """The deadline passed before the last byte."""


class NotConnected(TransportError):
    """There was no connection, or it ended before the answer did."""


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


class Transport:
    """Connections to one host, kept between requests; any number of threads may ask at once.

    Proxies and CA bundles come from the environment, as requests reads it, once; a loopback host never goes through a
    proxy. Redirects are not followed, cookies and netrc files not used.
    """

    def __init__(self, endpoint: str, *, headers: Mapping[str, str], connections: int = 1) -> None:  # noqa: ARG002
        self._headers = dict(headers)
        self._adapter = _Adapter()
        self._endpoint = requests.Request("GET", endpoint).prepare()
        self._proxies, self._verify = _environment(endpoint)
        self._pool: HTTPConnectionPool | None = None
        self._idle: list[_WatchedConnection] = []
        self._closed = False
        self._watchdog = _Watchdog()

    def get(self, target: str, *, authorization: str, timeout: float, before_large: Callable[[float], None]) -> Reply:
        """Ask for a path with its query, within `timeout` seconds.

        `before_large` is called with the seconds left, once, before more than LARGE bytes of a body are read or
        decompressed; it returns when it is this response's turn to.

        Raises:
            TransportError: one of its kinds, when there is no complete answer by then.

        """
        headers = {**self._headers, "Authorization": authorization}
        with self._watchdog.watch(time.monotonic() + timeout) as watch:
            turn = functools.cache(lambda: before_large(watch.remaining()))
            outcome = self._outcome(target, headers, watch, turn)
        if isinstance(outcome, TransportError):
            raise outcome.with_traceback(None)
        return outcome

    def close(self) -> None:
        """Close the connections that are not in use, and the others when their requests end; no more are made."""
        self._closed = True
        self._watchdog.close()
        while connection := self._kept_connection():
            connection.close()

    def _outcome(
        self, target: str, headers: Mapping[str, str], watch: _Watch, turn: Callable[[], None]
    ) -> Reply | TransportError:
        """Return the reply or what became of it; raised here, it would refer to errors below, and they to the key."""
        try:
            reply = self._reply(target, headers, watch, turn)
        except Exception as error:
            # A socket that is shut under a running request ends it in many ways.
            if watch.remaining() <= 0 or _is(error, TimeoutError):
                return TimedOut("no complete answer within the timeout")
            if isinstance(error, TransportError):
                return error
            if not isinstance(error, _EXPECTED):
                raise
            return _translated(error)
        if watch.remaining() <= 0:  # and one of the ways looks like the end of the answer
            return TimedOut("no complete answer within the timeout")
        return reply

    def _reply(self, target: str, headers: Mapping[str, str], watch: _Watch, turn: Callable[[], None]) -> Reply:
        pool = self._pool or self._connect_pool()
        # urllib3 has no other names for what makes connections and leads them through a proxy.
        connection = self._kept_connection() or cast("_WatchedConnection", pool._new_conn())  # noqa: SLF001
        try:
            connection.timeout = max(watch.remaining(), 0.001)
            if connection.is_closed and pool.proxy is not None:
                pool._prepare_proxy(connection)  # noqa: SLF001
            connection.request("GET", target, headers=headers)
            with connection.answer() as answer:
                reply = _read(answer, turn)
                whole = answer.isclosed()
        except BaseException:
            connection.close()
            raise
        if whole:
            self._idle.append(connection)
        if not whole or self._closed:  # close() may have come before this connection was among the idle ones
            connection.close()
        return reply

    def _kept_connection(self) -> _WatchedConnection | None:
        """Return the connection that was used last and that the other side has not closed since."""
        with contextlib.suppress(IndexError):  # there is none, or another thread was faster
            while not (connection := self._idle.pop()).is_connected:
                connection.close()
            return connection
        return None

    def _connect_pool(self) -> HTTPConnectionPool:
        """Return where requests would get connections from, asked for once: it takes as long as a request otherwise."""
        pool = cast(
            "HTTPConnectionPool",
            self._adapter.get_connection_with_tls_context(self._endpoint, self._verify, proxies=self._proxies),
        )
        self._adapter.cert_verify(pool, self._endpoint.url or "", self._verify, None)
        self._pool = pool
        return pool


def _read(answer: http.client.HTTPResponse, turn: Callable[[], None]) -> Reply:
    """Read an answer to its end, or to the limit of what is read of an error."""
    limit = BODY_LIMIT if answer.status == http.client.OK else _ERROR_BODY_LIMIT
    headers = urllib3.HTTPHeaderDict(answer.headers.items())
    if len({length.strip() for length in headers.get("Content-Length", "").split(",")}) > 1:
        raise http.client.IncompleteRead(b"")  # nobody knows where it ends
    body = answer.read(min(limit, LARGE) + 1)
    if LARGE < len(body) <= limit:
        turn()
        body += answer.read(limit + 1 - len(body))
    if answer.length and len(body) <= limit:
        raise http.client.IncompleteRead(b"", answer.length)
    if headers.get("Content-Encoding", "").lower() == "gzip":
        body = _unzipped(body, limit, turn)
    if len(body) > BODY_LIMIT:
        raise TooLarge(f"the answer has more than {BODY_LIMIT} bytes")
    if answer.status == http.client.OK and not body and answer.length is None and not answer.chunked:
        raise http.client.RemoteDisconnected("")  # cut headers, which http.client takes for whole ones
    return Reply(answer.status, headers, body)


def _unzipped(body: bytes, limit: int, turn: Callable[[], None]) -> bytes:
    """Return what gzip made a body of, and of what is over the limit one byte more; a body over the limit is cut."""
    cut = len(body) > limit
    text = bytearray()
    while body and len(text) <= limit:
        member = zlib.decompressobj(wbits=_GZIP_WINDOW_BITS)
        text += member.decompress(body, min(limit, LARGE) + 1 - len(text)) if len(text) <= LARGE else b""
        if len(text) > LARGE:
            turn()
            text += member.decompress(member.unconsumed_tail, limit + 1 - len(text)) if len(text) <= limit else b""
        if not member.eof and not cut and len(text) <= limit:
            raise zlib.error("the end is missing")
        body = member.unused_data
    return bytes(text)


_EXPECTED = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
    zlib.error,
)
"""What requests and the libraries below it raise when the other side does anything at all."""

_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: (\d+)")
"""How http.client words that a proxy does not connect; what follows is the proxy's own text."""


def _environment(endpoint: str) -> tuple[dict[str, str], bool | str]:
    """Return the proxies and the CA bundle that requests would use."""
    with requests.Session() as session:
        settings = session.merge_environment_settings(endpoint, {}, None, None, None)
    proxies = {} if is_loopback(urlsplit(endpoint).hostname or "") else dict(settings["proxies"])
    verify = settings["verify"]
    return proxies, verify if isinstance(verify, str) else True


def _translated(error: Exception) -> TransportError:
    """Name an exception of the libraries below by what happened, in words that are ours or the system's."""
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
        return NotConnected(f"the proxy answered {refusal[1]}")
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


class _Line:
    """A second handle on a connection's socket: shutting it ends whatever reads or writes, TLS handshakes too.

    It is open until its connection is closed, and while a request is watched on it even if that was closed before.
    A connection serves its next request while the one before still ends: only the last watch counts.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._lock = threading.Lock()
        self._handle = sock.dup()
        self._watch: _Watch | None = None
        self._closing = False

    def begin(self, watch: _Watch) -> None:
        with self._lock:
            self._watch = watch

    def end(self, watch: _Watch) -> None:
        with self._lock:
            if self._watch is watch:
                self._watch = None
            self._close_if_done()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._close_if_done()

    def shut(self, watch: _Watch) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._watch is watch:
                self._handle.shutdown(socket.SHUT_RDWR)

    def _close_if_done(self) -> None:
        if self._closing and self._watch is None:
            self._handle.close()


class _Watch:
    """The deadline of one running request."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.expired = False
        self._lock = threading.Lock()
        self._line: _Line | None = None

    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def attach(self, line: _Line | None) -> None:
        """Watch this connection, and the one before no longer."""
        with self._lock:
            if line is self._line:
                return
            if self._line is not None:
                self._line.end(self)
            self._line = line
            if line is not None:
                line.begin(self)
                if self.expired:
                    line.shut(self)

    def expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._line is not None:
                self._line.shut(self)


_current_watch: ContextVar[_Watch] = ContextVar("_current_watch")
"""The watch of the request that this thread makes: urllib3 opens connections deep inside a call."""


class _Watchdog:
    """A daemon thread that expires the watches whose deadline has passed; it sleeps until the earliest.

    It ends when it is closed and nothing is left to watch.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[_Watch] = set()
        self._wakes_at = math.inf
        self._closed = False
        threading.Thread(target=self._run, name="deadlines", daemon=True).start()

    @contextlib.contextmanager
    def watch(self, deadline: float) -> Iterator[_Watch]:
        watch = _Watch(deadline)
        with self._changed:
            if self._closed:
                raise NotConnected("the exporter closes its connections")
            self._watches.add(watch)
            if deadline < self._wakes_at:
                self._changed.notify()
        token = _current_watch.set(watch)
        try:
            yield watch
        finally:
            _current_watch.reset(token)
            with self._changed:
                self._watches.discard(watch)
                if self._is_over():
                    self._changed.notify()
            watch.attach(None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _is_over(self) -> bool:
        return self._closed and not self._watches

    def _run(self) -> None:
        with self._changed:
            while not self._is_over():
                now = time.monotonic()
                due = [watch for watch in self._watches if watch.deadline <= now]
                self._watches.difference_update(due)
                for watch in due:
                    watch.expire()
                self._wakes_at = min((watch.deadline for watch in self._watches), default=math.inf)
                self._changed.wait(None if self._wakes_at == math.inf else self._wakes_at - now)


class _Response(http.client.HTTPResponse):
    """A response whose chunks have no negative length: the standard library takes -1 as "all", past every limit."""

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError("expected a chunk's length, got a negative number")
        return size


class _WatchedConnection(HTTPConnection):
    """A connection that tells the watch of the request it serves which socket to shut."""

    response_class = _Response
    _line: _Line | None = None

    def answer(self) -> http.client.HTTPResponse:
        """Return the answer to what was asked, without what urllib3 would put around it."""
        return http.client.HTTPConnection.getresponse(self)

    def _new_conn(self) -> socket.socket:
        watch = _current_watch.get()
        port = self.port or self.default_port
        sock = _connect(_resolve(self._dns_host, port, watch.remaining()), port, watch, self.socket_options)
        self._line = _Line(sock)
        watch.attach(self._line)
        return sock

    def request(self, *arguments: object, **options: object) -> None:
        if self._line is not None:
            _current_watch.get().attach(self._line)
        super().request(*arguments, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        super().close()
        if self._line is not None:
            self._line.close()
            self._line = None


class _WatchedTlsConnection(_WatchedConnection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _WatchedConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTlsConnection


class _Adapter(HTTPAdapter):
    """requests' adapter with watched connections, direct or through an HTTP proxy."""

    def init_poolmanager(self, *arguments: object, **options: object) -> None:
        super().init_poolmanager(*arguments, **options)  # type: ignore[arg-type]
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, proxy: str, **options: object) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options)
        if proxy.lower().startswith("http"):
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager

    def cert_verify(self, conn: object, url: str, verify: object, cert: object) -> None:
        try:
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        except OSError:
            raise NotTrusted(f"expected a CA bundle at {verify}, got nothing there") from None


_LookUp: TypeAlias = "Callable[[str, int, int, int], Sequence[tuple[int, int, int, str, tuple[object, ...]]]]"


def _resolve(host: str, port: int, timeout: float, look_up: _LookUp = socket.getaddrinfo) -> list[str]:
    """Look a name up in a thread of its own: the system's resolver cannot be told when to give up."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            found = look_up(host, port, allowed_gai_family(), socket.SOCK_STREAM)
            answers.put([str(address[0]) for *_, address in found])
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=run, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=max(timeout, 0.001))
    except queue.Empty:
        raise TimeoutError("the name was not resolved in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _connect(
    addresses: Sequence[str], port: int, watch: _Watch, options: list[tuple[int, int, int | bytes]] | None
) -> socket.socket:
    """Connect to the first address that answers; each is tried for an equal share of the time left: one may hang."""
    failure = OSError("the name has no address")
    for place, address in enumerate(addresses):
        share = watch.remaining() / (len(addresses) - place)
        try:
            sock = create_connection((address, port), max(share, 0.001), socket_options=options)
        except OSError as error:
            failure = error
        else:
            sock.settimeout(max(watch.remaining(), 0.001))
            return sock
    raise failure
