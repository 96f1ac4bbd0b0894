"""The HTTP server: listening sockets, TLS and users of each connection, and the headers of every response.

Connections are accepted here and not by uvicorn, so that they are counted before anything is read from them, TLS
handshakes included, and so that each gets the TLS settings in force when it is accepted.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from exporter.web.auth import Authentication, Verdict
from exporter.web.connections import LARGEST_HEAD, Connection, ConnectionTable, plain_text, protocol_config
from exporter.web.web_config import WebConfig

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from exporter.web.client_limits import ClientLimits

logger = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE = 16  # connections, before the event loop serves the open ones again
_BACKLOG = 1024
_LOG_INTERVAL = 60  # seconds between two log lines about connections that cannot be accepted
_PAUSE = 0.1  # seconds without accepting after the system refused a connection
_SEND_BUFFER = 1 << 18  # bytes that the system buffers for a client; it doubles this


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; without a host on all of IPv6 and IPv4, on IPv4 alone where there is no IPv6.

    Nagle's algorithm is off: asyncio switches it off only for sockets that name their protocol, which these do not, and
    a small response on a kept connection would wait 40 ms for the client's acknowledgement.
    """
    listener = _listen_on(host, port) if host else _listen_everywhere(port)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # By default the system buffers megabytes for each client that does not read.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    listener.setblocking(False)
    return listener


class Server:
    """Serves an ASGI application on sockets; `settings` returns the web configuration in force."""

    def __init__(
        self,
        application: ASGIApp,
        *,
        headers: Mapping[str, str],
        limits: ClientLimits,
        settings: Callable[[], WebConfig] = WebConfig,
    ) -> None:
        self.listeners: tuple[socket.socket, ...] = ()
        self._guard = _Guard(application, headers, settings)
        self._limits = limits
        self._settings = settings
        self._connections = ConnectionTable(limits.connections)
        self._config = protocol_config(self._guard)
        self._logged_at = -float("inf")

    def start(self, listeners: Iterable[socket.socket]) -> None:
        """Accept connections from now on, in the running event loop."""
        self.listeners = tuple(listeners)
        for listener in self.listeners:
            self._resume(listener)

    async def stop(self, grace: float) -> None:
        """Close the listeners; responses that are being sent may take `grace` seconds."""
        loop = asyncio.get_running_loop()
        for listener in self.listeners:
            loop.remove_reader(listener)
            listener.close()
        for connection in self._connections.all():
            connection.close()
        end = loop.time() + grace
        while self._connections.all() and loop.time() < end:  # noqa: ASYNC110 - an event would cost more than it saves
            await asyncio.sleep(grace / 20)
        for connection in self._connections.all():
            connection.abort()
        await asyncio.sleep(0)  # lets the aborted transports call connection_lost

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if wait := self._connections.seconds_until_free():
                self._pause(listener, wait)
                return
            try:
                accepted, _ = listener.accept()
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    self._free_resources(listener, error)
                return  # no client is waiting, or it has gone
            accepted.setblocking(False)
            self._add(accepted)

    def _pause(self, listener: socket.socket, seconds: float) -> None:
        """Leave further clients in the backlog for a while."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(seconds, self._resume, listener)

    def _free_resources(self, listener: socket.socket, error: OSError) -> None:
        """Evict a connection when the system cannot open another; without a pause the event loop would spin."""
        self._pause(listener, _PAUSE)
        self._connections.evict()
        if time.monotonic() - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = time.monotonic()
            logger.warning("a connection cannot be accepted", extra={"error": error.strerror})

    def _add(self, accepted: socket.socket) -> None:
        settings = self._settings()
        connection = Connection(
            self._config,
            self._connections,
            self._limits,
            headers_of=self._guard.headers_of,
            allowed_sans=settings.allowed_sans,
        )
        self._connections.add(connection)
        opening = asyncio.get_running_loop().create_task(self._open(connection, accepted, settings.context))
        opening.add_done_callback(lambda _: connection.opened(accepted))
        connection.opening = opening

    async def _open(self, connection: Connection, accepted: socket.socket, context: ssl.SSLContext | None) -> None:
        timeout = None if context is None else self._limits.header_timeout
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
            logger.debug("a connection could not be opened", extra={"error": reason})


class _Guard:
    """Wraps the application: limits the size of the head, checks users, sets the headers of every response."""

    def __init__(self, application: ASGIApp, headers: Mapping[str, str], settings: Callable[[], WebConfig]) -> None:
        self._application = application
        self._headers = _encoded(headers)
        self._settings = settings
        self._authentication = Authentication()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = _in_origin_form(scope)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self.headers_of(message["headers"])}
            await send(message)

        if _size_of_head(scope) > LARGEST_HEAD:
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
        """Return the headers of a response; the web configuration overrides its own, which override the defaults."""
        headers = {**self._headers, **dict(own), **_encoded(self._settings().headers)}
        return [(b"date", formatdate(usegmt=True).encode()), *headers.items()]

    async def _verdict(self, scope: Scope) -> Verdict:
        users = self._settings().users
        if not users:
            return Verdict.ALLOWED
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return Verdict.REFUSED
        host, _ = scope["client"] or ("", 0)  # None when the client has disconnected
        return await self._authentication.check(users, given[0], host)


async def _refuse(send: Send, status: HTTPStatus, header: tuple[bytes, bytes]) -> None:
    text = f"{status.value} {status.phrase}\n".encode()
    await send({"type": "http.response.start", "status": status.value, "headers": [*plain_text(text), header]})
    await send({"type": "http.response.body", "body": text})


def _encoded(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.encode() for name, value in headers.items()}


def _size_of_head(scope: Scope) -> int:
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # with colon, space, CR and LF
    return headers + len(scope["raw_path"]) + len(scope["query_string"])


def _in_origin_form(scope: Scope) -> Scope:
    """Return the scope of a request for http://host/path as one for /path."""
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
