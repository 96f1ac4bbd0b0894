"""Connection to Braze: shut down at its request's deadline, reused only if nothing is left of the request before.

This module subclasses the connection of urllib3 and the response of http.client, and is the only one that uses names of
both that they do not document.
"""

from __future__ import annotations

import copy
import http.client
import io
import math
import re
import socket
import ssl
import threading
from concurrent.futures import Future
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.connection import allowed_gai_family, create_connection

from exporter.braze.deadlines import SocketHandle, current_watch
from exporter.system import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporter.braze.deadlines import Watch
    from exporter.system.threads import Start

OLDEST = 300.0
"""Seconds after which a connection serves no further request, so that a changed address of the name is followed."""

LONGEST_IDLE = 60.0
"""Seconds without a request after which a connection is not trusted: a NAT may have forgotten it."""

PATIENCE = 2.0
"""Seconds for an address that does not respond, while others remain."""

_NOTHING_KEPT = {
    HTTPStatus.SWITCHING_PROTOCOLS,
    HTTPStatus.NO_CONTENT,
    HTTPStatus.NOT_MODIFIED,
    HTTPStatus.REQUEST_TIMEOUT,
}
"""Statuses after which the connection is closed: servers and proxies disagree on their end, or they announce it."""

_HTTP_1_1 = 11

_LINES = 1 << 16
"""Maximum number of lines of a response: status, headers, sizes of chunks and trailers, those of interim ones too."""

_LINE_LENGTH = 1 << 16

_LINE = re.compile(rb"(?:[^\0\t\r\n ][^\0\r\n]*)?\r\n")
"""A line that all programs split alike: it ends in CRLF, has no other CR or LF, and continues no other line."""

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?\r\n")

_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
"""Socket options of every connection; seconds and probes, where the system has names for them."""


class _Source(io.BufferedReader):
    """Bytes of a response, and the evidence about its end.

    `exact`: all programs split every line so far alike. `cut`: the connection ended within the last line. `last`: the
    last two bytes of the last read. `left_over`, known when it is closed: more bytes have arrived.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        super().__init__(raw)
        self.exact = True
        self.cut = False
        self.last = b""
        self.left_over = False
        self._socket = sock
        self._lines = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        self._lines += 1
        if self._lines > _LINES:
            raise http.client.HTTPException(f"expected at most {_LINES} lines, got more")
        line = super().readline(size)
        self.exact = self.exact and _LINE.fullmatch(line) is not None
        self.cut = not line.endswith(b"\n")
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.last = data[-2:]
        return data

    def close(self) -> None:
        if not self.closed:
            self.left_over = self._has_more()
        super().close()

    def _has_more(self) -> bool:
        """Look for bytes that have arrived and were not read: here, inside TLS, or in the socket."""
        try:
            timeout = self._socket.gettimeout()
            self._socket.settimeout(0)
            try:
                return bool(self.peek(1))
            finally:
                self._socket.settimeout(timeout)
        except ssl.SSLWantReadError:
            return False
        except (OSError, ValueError):  # the connection is closed or broken
            return True


class Response(http.client.HTTPResponse):
    """The final response to one request, and the proof that nothing of it is left on the connection.

    `is_framed`: its headers agree on where its body ends.
    """

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
        *,
        watch: Watch,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._watch = watch
        self._source = _Source(self.fp.detach(), sock)
        self.fp = self._source
        self.is_framed = self._has_clear_end = False

    @property
    def is_over(self) -> bool:
        """Whether the response was read to a certain end and nothing came behind it, so that the connection is kept."""
        return (
            self.isclosed()
            and not self.will_close
            and self.is_framed
            and self._has_clear_end
            and self.version == _HTTP_1_1
            and self.status not in _NOTHING_KEPT
            and self._source.exact
            and not self._source.left_over
        )

    def begin(self) -> None:
        """Read the head of the final response, past interim ones, and find out how certain the end of its body is."""
        if not self._source.peek(1):
            raise http.client.RemoteDisconnected("")
        self._watch.responding = True
        super().begin()
        while HTTPStatus.SWITCHING_PROTOCOLS < self.status < HTTPStatus.OK:  # http.client reads past 100 itself
            self.headers = None  # type: ignore[assignment] # so that begin() begins again
            super().begin()
        if self._source.cut:
            raise http.client.RemoteDisconnected("")
        lengths = _values(self.headers.get_all("Content-Length", []))
        codings = self.headers.get_all("Transfer-Encoding", [])
        self.is_framed = self.chunked and len(codings) == 1 if codings else len(lengths) <= 1
        self._has_clear_end = not lengths if codings else all(length.isdecimal() for length in lengths)
        if codings or len(lengths) > 1:
            del self.headers["Content-Length"]  # urllib3 refuses different ones, whatever the status

    def _read_next_chunk_size(self) -> int:
        """Read the line before a chunk as the standard says it: http.client takes -1, +1, 0x1 and 1_0 for numbers."""
        if self.chunk_left is not None and self._source.last != b"\r\n":
            raise ValueError("expected a line break behind a chunk")
        match = _CHUNK.fullmatch(self._source.readline(_LINE_LENGTH))
        if match is None:
            raise ValueError("expected the size of a chunk")
        return int(match[1], 16)


def _values(fields: Sequence[str]) -> set[str]:
    """Return the different values of a header's fields, which may be lists."""
    return {value.strip() for field in fields for value in field.split(",")}


class Connection(HTTPConnection):
    """A connection that the watch of its request can shut, and that urllib3 reuses only while it can be trusted.

    `idle_since` is the time of `monotonic` at which it was put back.
    """

    _socket_handle: SocketHandle | None = None
    _connected_at = -math.inf
    idle_since = -math.inf

    def __init__(
        self, *arguments: object, monotonic: Callable[[], float], resolver: Resolver, **options: object
    ) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._monotonic = monotonic
        self._resolver = resolver

    @property
    def is_connected(self) -> bool:
        """Whether it may serve the request of this thread; urllib3 checks this before it reuses a connection."""
        now = self._monotonic()
        return (
            not current_watch.get().fresh_only
            and now - self._connected_at < OLDEST
            and now - self.idle_since < LONGEST_IDLE
            and super().is_connected
        )

    def response_class(self, *arguments: object, **options: object) -> Response:  # type: ignore[override]
        """Return the object that reads a response; http.client calls this as it would a class."""
        watch = current_watch.get()
        watch.response = Response(*arguments, **options, watch=watch)  # type: ignore[arg-type]
        return watch.response

    def request(self, *arguments: object, **options: object) -> None:
        """Send a request, with the watch on the connection if it is there already."""
        if self._socket_handle is not None:
            current_watch.get().attach(self._socket_handle)
        super().request(*arguments, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the connection, and the handle of the watch as soon as that is done with it."""
        super().close()
        if self._socket_handle is not None:
            self._socket_handle.close()
            self._socket_handle = None

    def _new_conn(self) -> socket.socket:
        watch = current_watch.get()
        watch.connected = True
        addresses = self._resolver.resolve(self._dns_host, self.port, watch.remaining())
        sock = connect(addresses, self.port, watch, [*(self.socket_options or ()), *_KEEP_ALIVE])
        self._connected_at = self._monotonic()
        self._socket_handle = SocketHandle(sock)
        watch.attach(self._socket_handle)
        return sock


class TlsConnection(Connection, HTTPSConnection):
    """The same with TLS."""


_LookUp: TypeAlias = "Callable[[str, int, int, int], Sequence[tuple[int, int, int, str, tuple[object, ...]]]]"


class Resolver:
    """Name resolution with a timeout: the system's has none, so it runs in threads.

    Concurrent calls for one host and port share a look-up: however long it hangs, there is at most one thread for it.
    """

    def __init__(self, look_up: _LookUp = socket.getaddrinfo, start: Start = threads.start) -> None:
        self._look_up = look_up
        self._start = start
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], Future[list[str]]] = {}

    def resolve(self, host: str, port: int, timeout: float) -> list[str]:
        """Return the addresses of a host.

        Raises:
            TimeoutError: they were not found within `timeout` seconds.
            OSError: there are none, or no thread could be started.
            UnicodeError: the name cannot be one.

        """
        with self._lock:
            found = self._running.get((host, port))
            if found is None:
                found = Future()
                self._start(lambda: self._run(host, port, found), "resolve")
                self._running[host, port] = found
        failure = found.exception(timeout)
        if failure is not None:
            raise copy.copy(failure)  # each caller its own: raising adds to an exception
        return found.result()

    def _run(self, host: str, port: int, found: Future[list[str]]) -> None:
        try:
            addresses = self._look_up(host, port, allowed_gai_family(), socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self._forget(host, port)
            found.set_exception(error)
        else:
            self._forget(host, port)
            found.set_result([str(address[0]) for *_, address in addresses])

    def _forget(self, host: str, port: int) -> None:
        """Make the next call look again; it waits until this one is in the dictionary."""
        with self._lock:
            del self._running[host, port]


def connect(
    addresses: Sequence[str],
    port: int,
    watch: Watch,
    options: list[tuple[int, int, int | bytes]],
    *,
    patience: float = PATIENCE,
) -> socket.socket:
    """Connect to the first address that responds.

    Each has an equal share of the time left, `patience` seconds at most; the last has all of it.
    """
    failure = OSError("the name has no address")
    for others, address in zip(reversed(range(len(addresses))), addresses, strict=True):
        share = min(patience, watch.remaining() / (others + 1)) if others else watch.remaining()
        try:
            sock = create_connection((address, port), max(share, 0.001), socket_options=options)
        except OSError as error:
            failure = error
        else:
            sock.settimeout(max(watch.remaining(), 0.001))
            return sock
    raise failure
