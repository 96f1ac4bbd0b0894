"""Client connections: a table of all of them, and the HTTP/1.1 protocol of each with its timeouts.

uvicorn's protocol parses requests and runs the ASGI application. Its names that are not documented are used here only.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import logging
import sys
import time
from collections import OrderedDict
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from exporter.web.web_config import certificate_fits

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from exporter.web.client_limits import ClientLimits

logger = logging.getLogger(__name__)

LARGEST_HEAD = 1 << 16
"""Maximum number of bytes of the request line and the headers together."""

_GUARANTEED_IDLE = 0.05  # seconds that a connection has for its request, however many others wait to be accepted
_KEEP_ALIVE = 120  # seconds; longer than usual scrape intervals, so that Prometheus keeps its connection
_LARGEST_BODY = 1 << 20  # bytes of a request's body, which is read and discarded
_READ_AT_ONCE = 1 << 15  # bytes of a connection
_SLICE = 1 << 17  # bytes of a body that are written at once

# asyncio gives each TLS connection a buffer of 256 KiB before the client is known. Requests need much less.
asyncio.sslproto.SSLProtocol.max_size = _READ_AT_ONCE


class ConnectionTable:
    """All open connections in two queues: idle ones wait for a request, busy ones for the end of their response."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: OrderedDict[Connection, float] = OrderedDict()
        self._busy: OrderedDict[Connection, float] = OrderedDict()

    def all(self) -> list[Connection]:
        """Return all connections, idle ones first."""
        return [*self._idle, *self._busy]

    def seconds_until_free(self) -> float:
        """Return in how many seconds one more connection may be added: 0, or when the next one may be evicted."""
        if not self._full():
            return 0
        since = next(iter((self._idle or self._busy).values()))
        return max(0, since + _GUARANTEED_IDLE - time.monotonic())

    def add(self, connection: Connection) -> None:
        """Register a connection, evicting one first when the limit is reached."""
        if self._full():
            self.evict()
        self._idle[connection] = time.monotonic()

    def evict(self) -> None:
        """Abort the connection that has been idle longest, else the one that has been busy longest."""
        for connections in (self._idle, self._busy):
            if connections:
                connection, _ = connections.popitem(last=False)
                connection.abort()
                return

    def mark_busy(self, connection: Connection) -> None:
        """Move a connection to the busy ones: its request is complete."""
        if connection in self._idle:
            del self._idle[connection]
            self._busy[connection] = time.monotonic()

    def mark_idle(self, connection: Connection) -> None:
        """Move a connection to the idle ones: its response is sent."""
        if connection in self._busy:
            del self._busy[connection]
            self._idle[connection] = time.monotonic()

    def remove(self, connection: Connection) -> None:
        """Remove a connection that is closed."""
        self._idle.pop(connection, None)
        self._busy.pop(connection, None)

    def _full(self) -> bool:
        return len(self._idle) + len(self._busy) >= self._limit


class ClientDisconnected(Exception):
    """The client closed the connection before the whole response was sent."""


class Connection(H11Protocol):
    """One connection, aborted on two timeouts: one for the handshake and the request, one for the response.

    One deadline is enough. It is set when the connection is accepted and when the first byte of a further request
    arrives, and cleared when the request is complete. It is set again when the response starts, and cleared when its
    last byte is passed to the system. `headers_of` returns the headers of a response with its own headers.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        table: ConnectionTable,
        limits: ClientLimits,
        *,
        headers_of: Callable[[Iterable[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]],
        allowed_sans: frozenset[str],
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(config=config, server_state=ServerState(), app_state={}, _loop=loop)
        self.app = self._respond
        self.opening: asyncio.Task[None] | None = None
        self._connected = False
        self._table = table
        self._limits = limits
        self._headers_of = headers_of
        self._allowed_sans = allowed_sans
        self._half_closed = False
        self._rejected = False
        self._unread = 0  # bytes of a body, or of what follows a rejected request
        self._deadline: asyncio.Handle | None = None
        self._set_deadline(limits.header_timeout)

    def opened(self, accepted: socket.socket) -> None:
        """Handle the end of opening: after a failure, close the socket and remove the connection."""
        if not self._connected:
            accepted.close()
            self._remove()

    def abort(self) -> None:
        """Close the connection at once, whatever is under way."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self._connected:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def close(self) -> None:
        """Close the connection, after the response if one is under way."""
        if self._busy():
            self.cycle.keep_alive = False
        elif self._connected and self.flow.write_paused:
            self.transport.close()
        else:
            self.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        """Start to read, unless the client's certificate has no allowed name."""
        self._connected = True
        super().connection_made(transport)
        # The next slice waits until the one before is sent. With 0 a TLS transport would wait with nothing to write.
        transport.set_write_buffer_limits(high=1, low=0)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and not certificate_fits(tls.getpeercert(), self._allowed_sans):
            logger.debug("no name of the client's certificate is in client_allowed_sans")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the table."""
        self._remove()
        super().connection_lost(exc)
        self.app = self.config.loaded_app  # breaks a reference cycle that would keep received bytes until collection

    def data_received(self, data: bytes) -> None:
        """Parse what was received; too large a body aborts the connection."""
        if self._rejected or self.conn.their_state is h11.SEND_BODY:
            self._unread += len(data)
            if self._unread > _LARGEST_BODY:
                self.abort()
                return
        if self._rejected:
            return
        if self._deadline is None and not self._busy():
            self._set_deadline(self._limits.header_timeout)
        super().data_received(data)
        if self._busy():
            self._clear_deadline()  # the client is not to blame for the time that the response takes to make
            self._table.mark_busy(self)

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn's returns nothing
        """Keep a half-closed connection open whose client still reads; TLS has no such state."""
        self._half_closed = self.scheme == "http" and self._busy()
        return self._half_closed

    def resume_writing(self) -> None:
        """Become idle when the last of a response is sent."""
        super().resume_writing()
        if not self._busy():
            self._become_idle()

    def on_response_complete(self) -> None:
        """Become idle, unless a part of the response is still to be sent."""
        super().on_response_complete()  # starts the next request if that has arrived
        if not self.flow.write_paused and not self._busy():
            self._become_idle()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's is the same for all
        """Reject an invalid request, with the headers of every response and the status code that h11 suggests."""
        hint = getattr(sys.exception(), "error_status_hint", HTTPStatus.BAD_REQUEST)
        if self._busy() or self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.abort()
            return
        status = HTTPStatus(hint)
        text = f"{status.value} {status.phrase}\n".encode()
        headers = [*plain_text(text), (b"connection", b"close"), *self._headers_of(())]
        for event in (h11.Response(status_code=status, headers=headers, reason=status.phrase), h11.Data(data=text)):
            self.transport.write(self.conn.send(event) or b"")
        self._linger()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; a message of its body may have `pieces` (an iterable of bytes) instead of `body`."""
        cycle = self.cycle
        self._unread = 0

        async def send_on(message: Message) -> None:
            if cycle.disconnected:
                raise ClientDisconnected
            if message["type"] == "http.response.start":
                self._set_deadline(self._limits.write_timeout)
            elif "pieces" in message or len(message["body"]) > _SLICE:
                if scope["method"] != "HEAD":
                    await self._write(slices(message.get("pieces") or (message["body"],)))
                message = {**message, "body": b""}
            await send(message)

        with contextlib.suppress(ClientDisconnected):
            await self.config.loaded_app(scope, receive, send_on)

    async def _write(self, parts: Iterable[bytes | memoryview]) -> None:
        """Write each part of a body when the one before is sent."""
        for part in parts:
            # h11 passes on whatever has a length.
            for framed in self.conn.send_with_data_passthrough(h11.Data(data=part)) or ():  # type: ignore[arg-type]
                if self.flow.write_paused:
                    await self.flow.drain()
                if self.transport.is_closing():
                    raise ClientDisconnected
                self.transport.write(framed)

    def _busy(self) -> bool:
        # cycle is None before the first request, whatever its type says.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _become_idle(self) -> None:
        """Wait for the next request after a response was sent."""
        if self._rejected or self.transport.is_closing():
            return  # the deadline holds until it is closed
        self._table.mark_idle(self)
        self._clear_deadline()
        if self._half_closed:
            self.transport.close()
        elif self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._set_deadline(self._limits.header_timeout)

    def _linger(self) -> None:
        """Close for writing and read on for a while: closing with unread bytes would reset the connection."""
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self._rejected = True
        self.transport.write_eof()
        self.flow.resume_reading()

    def _remove(self) -> None:
        self._clear_deadline()
        self._unset_keepalive_if_required()
        self._table.remove(self)

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._time_out)

    def _time_out(self, rounds: int = 2) -> None:
        """Abort the connection after two more rounds of the event loop.

        When we were busy, its data may have arrived in time but be unread. Within two rounds the event loop starts to
        watch a connection that was just made, and reads from it.
        """
        if rounds:
            self._deadline = self.loop.call_soon(self._time_out, rounds - 1)
        else:
            self.abort()

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def protocol_config(application: ASGIApp) -> uvicorn.Config:
    """Return the settings of uvicorn's protocol, loaded."""
    config = uvicorn.Config(
        application,
        interface="asgi3",
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_keep_alive=_KEEP_ALIVE,
    )
    config.load()
    return config


def plain_text(text: bytes) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers of a response that is plain text."""
    return (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())


def slices(pieces: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """Yield a body in slices: small pieces joined, large ones cut without a copy.

    A slow client costs one slice of memory, besides the pieces, which all clients share.
    """
    joined: list[bytes] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > _SLICE:
            if joined:
                yield b"".join(joined)
            joined, size = [], len(piece)
        if size <= _SLICE:
            joined.append(piece)
            continue
        view = memoryview(piece)
        yield from (view[start : start + _SLICE] for start in range(0, size, _SLICE))
        size = 0
    if joined:
        yield b"".join(joined)
