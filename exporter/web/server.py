"""Serving over a network: listening sockets, how many connections, how long they may take, TLS, users and headers.

Connections are accepted here, so that they can be counted before anything of them is read, TLS handshakes too, and so
that each gets the TLS settings of its moment. uvicorn's protocol parses the requests and runs the ASGI application.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import errno
import logging
import re
import socket
import sys
import time
from collections import OrderedDict
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from exporter.web.auth import Authentication, Verdict
from exporter.web.web_config import WebConfig, certificate_fits

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from exporter.web.client_limits import ClientLimits

logger = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE = 16  # connections, before those that are open have their turn
_AT_LEAST = 0.05  # seconds that a connection has for its request, however many others wait to be let in
_BACKLOG = 1024
_COMPLAINTS = 60  # seconds between two log lines about the same trouble
_IN_FLIGHT = 1 << 18  # bytes that the system takes before a client has them; it doubles this
_KEEP_ALIVE = 120  # seconds; longer than usual scrape intervals, so that Prometheus keeps its connection
_LARGEST_BODY = 1 << 20  # bytes of a request's body, which is read and thrown away
_LARGEST_HEAD = 1 << 16  # bytes of the request line and the headers
_PAUSE = 0.1  # seconds without accepting after the system had no room for another connection
_READ_AT_ONCE = 1 << 15  # bytes of a connection
_SLICE = 1 << 17  # bytes of an answer that a connection gets at once; when it asks for more it has room for so many

# asyncio gives each TLS connection a buffer of 256 KiB before it is known who is there. Requests need much less.
asyncio.sslproto.SSLProtocol.max_size = _READ_AT_ONCE


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; without a host on all of IPv6 and IPv4, on IPv4 alone where there is no IPv6.

    What is written to its connections leaves at once. asyncio sees to that only where a socket names its protocol, and
    these do not: a small answer on a kept connection would wait 40 ms for the other side's acknowledgement.
    """
    listener = _listen_on(host, port) if host else _listen_everywhere(port)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Else the system takes megabytes for each client that does not read, and a crowd of them all of a sudden.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _IN_FLIGHT)
    listener.setblocking(False)
    return listener


class Server:
    """Serves an ASGI application on sockets, with what `settings` returns at that moment."""

    def __init__(
        self,
        application: ASGIApp,
        *,
        headers: Mapping[str, str],
        limits: ClientLimits,
        settings: Callable[[], WebConfig] = WebConfig,
    ) -> None:
        self.application = _Guard(application, headers, settings)
        self.limits = limits
        self.room = _Room(limits.connections)
        self.state = ServerState()
        self.config = uvicorn.Config(
            application,
            interface="asgi3",
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_LARGEST_HEAD,
            timeout_keep_alive=_KEEP_ALIVE,
        )
        self._settings = settings
        self.listeners: tuple[socket.socket, ...] = ()
        self._complained = -float("inf")

    def start(self, listeners: Iterable[socket.socket]) -> None:
        """Accept connections from now on, in the running event loop."""
        self.config.load()
        self.listeners = tuple(listeners)
        for listener in self.listeners:
            self._resume(listener)

    async def stop(self, grace: float) -> None:
        """Close the sockets; answers that are under way may take `grace` seconds."""
        loop = asyncio.get_running_loop()
        for listener in self.listeners:
            loop.remove_reader(listener)
            listener.close()
        for connection in self.room.all():
            connection.finish()
        end = loop.time() + grace
        while self.room.all() and loop.time() < end:  # noqa: ASYNC110 - an event for this would cost more than it saves
            await asyncio.sleep(grace / 20)
        for connection in self.room.all():
            connection.drop()
        await asyncio.sleep(0)  # what was dropped is told so

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if wait := self.room.next_free():
                self._pause(listener, wait)
                return
            try:
                accepted, _ = listener.accept()
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    self._make_room(listener, error)
                return  # nobody is there, or not any more
            accepted.setblocking(False)
            self._take(accepted)

    def _pause(self, listener: socket.socket, seconds: float) -> None:
        """Leave the others in the queue for a moment."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(seconds, self._resume, listener)

    def _make_room(self, listener: socket.socket, error: OSError) -> None:
        """Drop a connection where the system has no room for more; the socket would be reported again and again."""
        self._pause(listener, _PAUSE)
        self.room.make()
        if time.monotonic() - self._complained >= _COMPLAINTS:
            self._complained = time.monotonic()
            logger.warning("a connection cannot be accepted", extra={"error": error.strerror})

    def _take(self, accepted: socket.socket) -> None:
        settings = self._settings()
        connection = _Connection(self, settings)
        self.room.enter(connection)
        opening = asyncio.get_running_loop().create_task(self._open(connection, accepted, settings.context))
        opening.add_done_callback(lambda _: connection.opened(accepted))
        connection.opening = opening

    async def _open(self, connection: _Connection, accepted: socket.socket, context: ssl.SSLContext | None) -> None:
        timeout = None if context is None else self.limits.header_timeout
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=timeout,
            )
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            logger.debug("a connection was not made", extra={"error": reason})


class _Room:
    """The connections that there are, with the times since when they wait for a request or for an answer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[_Connection, float] = OrderedDict()
        self._answering: OrderedDict[_Connection, float] = OrderedDict()

    def all(self) -> list[_Connection]:
        return [*self._waiting, *self._answering]

    def next_free(self) -> float:
        """Return in how many seconds one more may enter: at once, or when another has had its time."""
        if not self._full():
            return 0
        since = next(iter((self._waiting or self._answering).values()))
        return max(0, since + _AT_LEAST - time.monotonic())

    def enter(self, connection: _Connection) -> None:
        """Let a new connection in; in a full house another makes way."""
        if self._full():
            self.make()
        self._waiting[connection] = time.monotonic()

    def make(self) -> None:
        """Drop one: who has waited longest without a request, else whose answer takes longest."""
        for connections in (self._waiting, self._answering):
            if connections:
                connection, _ = connections.popitem(last=False)
                connection.drop()
                return

    def answer(self, connection: _Connection) -> None:
        """Note that a request is there."""
        if connection in self._waiting:
            del self._waiting[connection]
            self._answering[connection] = time.monotonic()

    def wait(self, connection: _Connection) -> None:
        """Note that its answer is gone."""
        if connection in self._answering:
            del self._answering[connection]
            self._waiting[connection] = time.monotonic()

    def leave(self, connection: _Connection) -> None:
        self._waiting.pop(connection, None)
        self._answering.pop(connection, None)

    def _full(self) -> bool:
        return len(self._waiting) + len(self._answering) >= self._limit


class _GoneError(Exception):
    """Nobody is there any more to take the rest of an answer."""


class _Connection(H11Protocol):
    """One connection, which is cut when it takes too long: for the handshake and a request, then for its answer.

    One deadline is enough. It is set when the connection is accepted and when the first byte of a further request is
    there, put away when the request is there, set anew when an answer begins to leave, and put away when the last byte
    of it is given to the system.
    """

    def __init__(self, server: Server, settings: WebConfig) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(config=server.config, server_state=server.state, app_state={}, _loop=loop)
        self.app = self._answer
        self.opening: asyncio.Task[None] | None = None
        self._connected = False
        self._server = server
        self._settings = settings
        self._half_closed = False
        self._refused = False
        self._unread = 0  # bytes of a body, or of what follows a refusal
        self._deadline: asyncio.Handle | None = None
        self._expect(server.limits.header_timeout)

    def opened(self, accepted: socket.socket) -> None:
        """Note that opening has come to its end; where it failed nothing is left."""
        if not self._connected:
            accepted.close()
            self._leave()

    def drop(self) -> None:
        """Cut the connection, whatever is under way."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self._connected:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def finish(self) -> None:
        """Close the connection, after its answer if there is one under way."""
        if self._answering():
            self.cycle.keep_alive = False
        elif self._connected and self.flow.write_paused:
            self.transport.close()
        else:
            self.drop()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        self._connected = True
        super().connection_made(transport)
        # The next slice waits until the one before is gone. With 0 a TLS transport would wait with nothing to write.
        transport.set_write_buffer_limits(high=1, low=0)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and not certificate_fits(tls.getpeercert(), self._settings.allowed_sans):
            logger.debug("a client's certificate is made out to none of client_allowed_sans")
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)
        self.app = self.config.loaded_app  # no circle holds what was received until garbage is collected

    def data_received(self, data: bytes) -> None:
        if self._refused or self.conn.their_state is h11.SEND_BODY:
            self._unread += len(data)
            if self._unread > _LARGEST_BODY:
                self.drop()
                return
        if self._refused:
            return
        if self._deadline is None and not self._answering():
            self._expect(self._server.limits.header_timeout)
        super().data_received(data)
        if self._answering():
            self._put_deadline_away()  # making the answer is our time
            self._server.room.answer(self)

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn's returns nothing
        """Keep a connection open whose client sends no more but still reads; with TLS there is no such thing."""
        self._half_closed = self.scheme == "http" and self._answering()
        return self._half_closed

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._answering():
            self._rest()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which begins with the next request, if that is there
        if not self.flow.write_paused and not self._answering():
            self._rest()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's is the same for all
        """Refuse what is no request, with our headers and with what h11 says of it."""
        hint = getattr(sys.exception(), "error_status_hint", HTTPStatus.BAD_REQUEST)
        if self._answering() or self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.drop()
            return
        status = HTTPStatus(hint)
        text = f"{status.value} {status.phrase}\n".encode()
        headers = [*_plain_text(text), (b"connection", b"close"), *self._server.application.headers_of(())]
        for event in (h11.Response(status_code=status, headers=headers, reason=status.phrase), h11.Data(data=text)):
            self.transport.write(self.conn.send(event) or b"")
        self._linger()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = self.cycle
        self._unread = 0

        async def send_on(message: Message) -> None:
            if cycle.disconnected:
                raise _GoneError
            if message["type"] == "http.response.start":
                self._expect(self._server.limits.write_timeout)
            elif len(message["body"]) > _SLICE and scope["method"] != "HEAD":
                await self._send_in_slices(message["body"])
                message = {**message, "body": b""}
            await send(message)

        with contextlib.suppress(_GoneError):
            await self._server.application(_in_origin_form(scope), receive, send_on)

    async def _send_in_slices(self, body: bytes) -> None:
        """Give the connection a slice when the one before is gone; what waits meanwhile is shared by all who get it."""
        data = h11.Data(data=memoryview(body))  # type: ignore[arg-type] # h11 passes on whatever has a length
        for part in self.conn.send_with_data_passthrough(data) or ():
            for start in range(0, len(part), _SLICE):
                if self.flow.write_paused:
                    await self.flow.drain()
                if self.transport.is_closing():
                    raise _GoneError
                self.transport.write(part[start : start + _SLICE])

    def _answering(self) -> bool:
        # There is none before the first request, whatever its type says.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _rest(self) -> None:
        """Wait for what comes next, now that the answer is gone."""
        if self._refused or self.transport.is_closing():
            return  # the deadline holds until it is closed
        self._server.room.wait(self)
        self._put_deadline_away()
        if self._half_closed:
            self.transport.close()
        elif self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._expect(self._server.limits.header_timeout)

    def _linger(self) -> None:
        """Close for writing and read on for a while: closing with bytes unread would take the refusal with it."""
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self._refused = True
        self.transport.write_eof()
        self.flow.resume_reading()

    def _leave(self) -> None:
        self._put_deadline_away()
        self._unset_keepalive_if_required()
        self._server.room.leave(self)

    def _expect(self, seconds: float) -> None:
        self._put_deadline_away()
        self._deadline = self.loop.call_later(seconds, self._overdue)

    def _overdue(self, rounds: int = 2) -> None:
        """Cut the connection, unless what it waits for is there and was not looked at: a crowd can keep us busy.

        Within two rounds the event loop begins to watch a connection that was just made, and looks at it.
        """
        if rounds:
            self._deadline = self.loop.call_soon(self._overdue, rounds - 1)
        else:
            self.drop()

    def _put_deadline_away(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Guard:
    """What stands around the application: size of the head, users, headers of every answer."""

    def __init__(self, application: ASGIApp, headers: Mapping[str, str], settings: Callable[[], WebConfig]) -> None:
        self._application = application
        self._headers = _encoded(headers)
        self._settings = settings
        self._authentication = Authentication()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self.headers_of(message["headers"])}
            await send(message)

        if _size_of_head(scope) > _LARGEST_HEAD:
            await _refuse(send_on, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, (b"connection", b"close"))
            return
        verdict = await self._verdict(scope)
        if verdict is Verdict.ALLOWED:
            await self._application(scope, receive, send_on)
        elif verdict is Verdict.BUSY:
            await _refuse(send_on, HTTPStatus.SERVICE_UNAVAILABLE, (b"retry-after", b"1"))
        else:
            challenge = b'Basic realm="braze-exporter", charset="UTF-8"'
            await _refuse(send_on, HTTPStatus.UNAUTHORIZED, (b"www-authenticate", challenge))

    def headers_of(self, own: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer: what the settings say, else its own, else those of every answer."""
        headers = {**self._headers, **dict(own), **_encoded(self._settings().headers)}
        return [(b"date", formatdate(usegmt=True).encode()), *headers.items()]

    async def _verdict(self, scope: Scope) -> Verdict:
        users = self._settings().users
        if not users:
            return Verdict.ALLOWED
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return Verdict.REFUSED
        host, _ = scope["client"] or ("", 0)  # None where it is gone already
        return await self._authentication.check(users, given[0], host)


async def _refuse(send: Send, status: HTTPStatus, header: tuple[bytes, bytes]) -> None:
    text = f"{status.value} {status.phrase}\n".encode()
    await send({"type": "http.response.start", "status": status.value, "headers": [*_plain_text(text), header]})
    await send({"type": "http.response.body", "body": text})


def _plain_text(text: bytes) -> Sequence[tuple[bytes, bytes]]:
    return (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())


def _encoded(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.encode() for name, value in headers.items()}


def _size_of_head(scope: Scope) -> int:
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # with colon, blank, CR and LF
    return headers + len(scope["raw_path"]) + len(scope["query_string"])


def _in_origin_form(scope: Scope) -> Scope:
    """Return a request for http://host/path as one for /path."""
    prefix = re.match(r"https?://[^/]*", scope["path"], re.IGNORECASE)
    if not prefix:
        return scope
    raw_prefix = re.match(rb"https?://[^/]*", scope["raw_path"], re.IGNORECASE)
    raw_path = scope["raw_path"][raw_prefix.end() if raw_prefix else 0 :]
    return {**scope, "path": scope["path"][prefix.end() :] or "/", "raw_path": raw_path or b"/"}


def _listen_on(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise
    return socket.create_server(("", port), backlog=_BACKLOG)
