"""Deadlines of requests: one thread shuts down the sockets of those whose deadline has passed.

The timeouts of urllib3 are for each read, so that a slow server keeps a request open for ever.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from exporter.system import threads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse

    from exporter.system.threads import Start


class SocketHandle:
    """A second handle on a connection's socket: shutting it down ends all reads and writes, TLS handshakes too.

    It is open until its connection is closed, and while a request is watched on it even if that was closed before.
    A connection serves its next request while the one before still ends: only the last watch counts.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._lock = threading.Lock()
        self._handle = sock.dup()
        self._watch: Watch | None = None
        self._closing = False

    def begin(self, watch: Watch) -> None:
        """Allow this watch, and no other, to shut the connection down."""
        with self._lock:
            self._watch = watch

    def end(self, watch: Watch) -> None:
        """End this watch, unless another has begun."""
        with self._lock:
            if self._watch is watch:
                self._watch = None
            self._close_if_done()

    def close(self) -> None:
        """Close the handle as soon as no watch needs it."""
        with self._lock:
            self._closing = True
            self._close_if_done()

    def shut(self, watch: Watch) -> None:
        """Shut the connection down if this watch is the current one."""
        with self._lock, contextlib.suppress(OSError):
            if self._watch is watch:
                self._handle.shutdown(socket.SHUT_RDWR)

    def _close_if_done(self) -> None:
        if self._closing and self._watch is None:
            self._handle.close()


class Watch:
    """One running request: its deadline, and the state of its connection and response.

    `connected` says that a connection was made for it, `responding` that a byte of a response has arrived. With
    `fresh_only` it uses no connection that has served others.
    """

    def __init__(self, deadline: float, *, fresh_only: bool = False) -> None:
        self.deadline = deadline
        self.expired = False
        self.fresh_only = fresh_only
        self.connected = False
        self.responding = False
        self.response: HTTPResponse | None = None
        self._lock = threading.Lock()
        self._socket_handle: SocketHandle | None = None

    def remaining(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def attach(self, handle: SocketHandle | None) -> None:
        """Watch this connection instead of the one before."""
        with self._lock:
            if handle is self._socket_handle:
                return
            if self._socket_handle is not None:
                self._socket_handle.end(self)
            self._socket_handle = handle
            if handle is not None:
                handle.begin(self)
                if self.expired:
                    handle.shut(self)

    def expire(self) -> None:
        """Shut the connection, now or as soon as there is one."""
        with self._lock:
            self.expired = True
            if self._socket_handle is not None:
                self._socket_handle.shut(self)


current_watch: ContextVar[Watch] = ContextVar("current_watch")
"""The watch of the request that this thread makes: urllib3 opens connections deep inside a call."""


class Watchdog:
    """A daemon thread that expires the watches whose deadline has passed; it sleeps until the earliest.

    It starts with the first watch, and ends when it is closed and nothing is left to watch.
    """

    def __init__(self, start: Start = threads.start) -> None:
        self._start = start
        self._running = False
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._wakes_at = math.inf
        self._closed = False

    @contextlib.contextmanager
    def watch(self, deadline: float, *, fresh_only: bool = False) -> Iterator[Watch]:
        """Watch the request that this thread makes meanwhile; `deadline` is a time of time.monotonic().

        Raises:
            OSError: the watchdog is closed, or its thread cannot be started.

        """
        watch = Watch(deadline, fresh_only=fresh_only)
        with self._changed:
            if self._closed:
                raise OSError(errno.ESHUTDOWN, "the exporter closes its connections")
            if not self._running:
                self._start(self._run, "deadlines")
                self._running = True
            self._watches.add(watch)
            self._wake_by(deadline)
        token = current_watch.set(watch)
        try:
            yield watch
        finally:
            current_watch.reset(token)
            with self._changed:
                self._watches.discard(watch)
                if self._is_over():
                    self._changed.notify()
            watch.attach(None)

    def shorten(self, watch: Watch, seconds: float) -> None:
        """Shorten the deadline of a running request to `seconds` from now."""
        with self._changed:
            watch.deadline = min(watch.deadline, time.monotonic() + seconds)
            self._wake_by(watch.deadline)

    def close(self) -> None:
        """Accept no further watch, and end the thread with the last one."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _wake_by(self, deadline: float) -> None:
        if deadline < self._wakes_at:
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
