"""Tests of exporter.braze.deadlines: sockets are shut down at the deadlines of their requests, and no others."""

import re
import socket
import subprocess
import sys
import time
from contextlib import closing

import pytest

from exporter.braze.deadlines import SocketHandle, Watch, Watchdog
from exporter.braze.transport import NotConnected, Transport
from tests.support.raw_server import (
    LONG,
    RefusedOnce,
    answering,
    get,
)
from tests.support.servers import ROOT

pytestmark = pytest.mark.server

SOON = 0.25
"""Seconds; what would take for ever is over by then."""


def answer_own(target: str, connection: socket.socket) -> None:
    """Respond to a request with its target."""
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(target)}\r\n\r\n{target}".encode())


def test_a_request_that_is_over_does_not_end_the_next_on_its_connection() -> None:
    """Of two requests that share a connection, only the deadline of the second counts."""
    near, far = socket.socketpair()
    with closing(near), closing(far):
        far.setblocking(False)
        line, first, second = SocketHandle(near), Watch(0), Watch(0)
        first.attach(line)
        second.attach(line)
        first.expire()
        first.attach(None)
        line.close()
        with pytest.raises(BlockingIOError):
            far.recv(1)
        second.expire()

        assert far.recv(1) == b""
        second.attach(None)


def test_a_connection_that_comes_too_late_is_shut() -> None:
    """A request whose deadline passed while it connected ends as soon as it is connected."""
    near, far = socket.socketpair()
    with closing(near), closing(far):
        far.setblocking(False)
        line, watch = SocketHandle(near), Watch(0)
        watch.expire()
        watch.attach(line)

        assert far.recv(1) == b""
        line.close()
        watch.attach(None)


def test_the_deadline_can_be_brought_forward() -> None:
    """A running request ends at the earlier of both deadlines, and a later one changes nothing."""
    near, far = socket.socketpair()
    with closing(near), closing(far):
        far.settimeout(LONG)
        watchdog, line = Watchdog(), SocketHandle(near)
        with watchdog.watch(time.monotonic() + 10 * LONG) as watch:
            watch.attach(line)
            watchdog.shorten(watch, 20 * LONG)
            assert watch.remaining() <= 10 * LONG
            watchdog.shorten(watch, SOON)

            assert far.recv(1) == b""
            assert watch.expired
        watchdog.close()
        line.close()


def test_a_watchdog_that_cannot_start_tries_again() -> None:
    """Where no thread can be started the request fails; the next one starts it."""
    start = RefusedOnce()

    with (
        answering(answer_own) as server,
        closing(Transport(server.url, headers={}, connections=1, start=start)) as transport,
    ):
        with pytest.raises(NotConnected, match="cannot be started: none is left"):
            get(transport, "/1")
        assert get(transport, "/2").body == b"/2"
        assert get(transport, "/3").body == b"/3"

    assert start.names == ["deadlines"] * 2


WITHOUT_THREADS = """
import sys, threading
from exporter.braze.transport import Transport, TransportError
transport = Transport(sys.argv[1], headers={}, connections=1)
for size in (1 << 50, 0):  # no address space is so large
    threading.stack_size(size)
    try:
        print(transport.get("/1", authorization="", timeout=60, before_large=print).status)
    except TransportError as error:
        print(type(error).__name__, error)
"""


def test_no_thread_can_be_started() -> None:
    """What the system says of a thread too many is a failed request like others, and not the last one."""
    with answering(answer_own) as server:
        command = [sys.executable, "-c", WITHOUT_THREADS, server.url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=2 * LONG)

    assert re.fullmatch(r"NotConnected the thread 'deadlines' cannot be started: .+\n200\n", done.stdout)
