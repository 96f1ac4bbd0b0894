"""Tests of exporter.braze.connection: a connection is reused only if nothing is left of the request before."""

import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from exporter.braze.connection import (
    LONGEST_IDLE,
    OLDEST,
    PATIENCE,
    Connection,
    Resolver,
    connect,
)
from exporter.braze.deadlines import Watch, Watchdog
from exporter.braze.transport import NotConnected, TimedOut, Transport, TransportError
from exporter.system.threads import NoThreadError
from tests.support.exporters import configure, running_exporter
from tests.support.raw_server import (
    LONG,
    Answer,
    RefusedOnce,
    answering,
    ask_elsewhere,
    deaf,
    free_port,
    get,
    hangs,
    make_certificate,
)

pytestmark = pytest.mark.server

SOON = 0.25
"""Seconds; what would take for ever is over by then."""

Address = tuple[int, int, int, str, tuple[object, ...]]


# -- The exchange before is over ---------------------------------------------------------------------------------------

FRAMINGS = ("length", "chunked", "none")
TAILS = ("nothing", "trailing", "second response", "late response", "response to the next request")
FORMS = [(framing, with_body, tail) for framing in FRAMINGS for with_body in (True, False) for tail in TAILS]
TYPICAL = {
    *(100, 101, 102, 103, 199, 200, 201, 204, 205, 206, 207, 226, 299, 300, 301, 304, 307),
    *(400, 401, 404, 407, 408, 413, 425, 429, 499, 500, 502, 503, 504, 599),
}

STALE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale"


def own(target: str) -> bytes:
    """Return the response that belongs to a target, and to no other."""
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(target)}\r\n\r\n{target}".encode()


def response(status: int, framing: str, body: bytes) -> bytes:
    """Return a response whose body is framed so."""
    head = f"HTTP/1.1 {status} Status\r\n".encode()
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    if framing == "chunked":
        chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
    return head + b"\r\n" + body


@dataclass(slots=True)
class Script:
    """A server's answers: a response with a tail to the first request of each pair, its own to the second."""

    late: threading.Event = field(default_factory=threading.Event)

    def answer(self, target: str, connection: socket.socket) -> bool:
        """Answer; a target of a first request is /first/status/framing/body/tail."""
        _, which, *parts = target.split("/")
        if which != "first":
            connection.sendall(own(target))
            return True
        status, framing, body, tail = int(parts[0]), parts[1], parts[2].encode(), parts[3]
        is_interim = status < 200 and status != 101
        tails = {"trailing": b"trailing", "second_response": STALE}
        connection.sendall(response(status, framing, body) + tails.get(tail, b""))
        if tail == "late_response":
            connection.sendall(STALE)
        elif tail == "response_to_the_next_request" and (is_interim or status in {101, 204, 304, 408}):
            self.late.set()
            select.select([connection], [], [], 0.02)  # who trusts the connection sends it at once
            connection.sendall(STALE)
        self.late.set()
        # Without an end the client would wait for one; else the connection stays open, for whoever trusts it.
        has_end = framing != "none" or status in {101, 204, 304}
        return has_end and not (is_interim and "response" not in tail)


@pytest.mark.parametrize(("framing", "with_body", "tail"), FORMS)
def test_every_request_has_its_own_response(framing: str, with_body: bool, tail: str) -> None:  # noqa: FBT001
    """Whatever a server answers before, and whatever follows that, the next request never has that for its answer."""
    form = FORMS.index((framing, with_body, tail))
    statuses = [status for status in range(100, 600) if status in TYPICAL or status % len(FORMS) == form]
    script = Script()
    with answering(script.answer) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        for status in statuses:
            script.late.clear()
            with suppress(TransportError):
                get(transport, f"/first/{status}/{framing}/{'body' if with_body else ''}/{tail.replace(' ', '_')}")
            assert script.late.wait(LONG)

            assert get(transport, f"/second/{status}").body == f"/second/{status}".encode()
    followed = [before for targets in server.connections for before, _ in pairwise(targets)]
    if tail in {"trailing", "second response", "late response"}:  # an interim response may be followed by the final one
        assert not [target for target in followed if "/first/2" <= target < "/first/6"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("status", [200, 201, 206, 299, 301, 400, 401, 404, 429, 500, 503, 599])
def test_connections_are_kept_where_nothing_is_left(status: int, framing: str) -> None:
    """A complete response to the one request leaves the connection for the next."""
    with (
        answering(Script().answer) as server,
        closing(Transport(server.url, headers={}, connections=1)) as transport,
    ):
        assert get(transport, f"/first/{status}/{framing}/body/nothing").status == status
        assert get(transport, "/second").status == 200

    assert [len(targets) for targets in server.connections] == [2]


@pytest.mark.parametrize("status", [101, 204, 304, 408])
def test_connections_are_not_kept_after_statuses_with_an_uncertain_end(status: int) -> None:
    """After 101, 204, 304 and 408 the next request has a new connection, though the other side keeps the old one."""
    with (
        answering(Script().answer) as server,
        closing(Transport(server.url, headers={}, connections=1)) as transport,
    ):
        assert get(transport, f"/first/{status}/length//nothing").status == status
        assert get(transport, "/second").status == 200

    assert [len(targets) for targets in server.connections] == [1, 1]


FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        pytest.param(FINE, True, id="one length"),
        pytest.param(FINE.replace(b": 2", b": 2\r\nContent-Length: 2"), True, id="the same length twice"),
        pytest.param(FINE.replace(b": 2", b": 0002"), True, id="a length with zeros"),
        pytest.param(FINE.replace(b": 2", b": 2\r\nContent-Length: 3"), False, id="two lengths"),
        pytest.param(FINE.replace(b": 2", b": 2, 3"), False, id="two lengths in one"),
        pytest.param(FINE.replace(b": 2", b": +2"), False, id="a length with a sign"),
        pytest.param(FINE.replace(b": 2", b": 2\r\nTransfer-Encoding: chunked"), False, id="cut chunks with a length"),
        pytest.param(FINE.replace(b": 2", b": 2\r\nTransfer-Encoding: gzip"), False, id="another transfer coding"),
        pytest.param(FINE.replace(b": 2", b": 2\r\nX: y\r\n z"), False, id="a folded header"),
        pytest.param(FINE.replace(b": 2", b": 2\r\n X: y"), False, id="a folded length"),
        pytest.param(FINE.replace(b": 2", b": 2\nX: y"), False, id="a bare line feed"),
        pytest.param(FINE.replace(b": 2", b": 2\r\nX: y\rContent-Length: 2"), False, id="a bare carriage return"),
        pytest.param(FINE.replace(b": 2", b": 2\r\nX: \0"), False, id="a NUL"),
        pytest.param(FINE.replace(b": 2", b": 2\r\nConnection: close"), False, id="close"),
        pytest.param(FINE.replace(b"1.1", b"1.0"), False, id="HTTP/1.0"),
        pytest.param(
            FINE.replace(b"1.1", b"1.0").replace(b": 2", b": 2\r\nConnection: keep-alive"), False, id="1.0 kept"
        ),
    ],
)
def test_connections_are_kept_only_where_everybody_agrees_on_the_end(first: bytes, *, kept: bool) -> None:
    """A head that programs read in different ways may be followed by bytes that are meant for somebody else."""
    assert connections_of(first, timeout=LONG if kept else SOON) == (1 if kept else 2)


CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        pytest.param(CHUNKS + b"2\r\n{}\r\n0\r\n\r\n", True, id="chunks"),
        pytest.param(
            CHUNKS.replace(b"chunked", b"Chunked") + b"2 ;x=y\r\n{}\r\n00\r\nX: y\r\n\r\n", True, id="trailers"
        ),
        pytest.param(CHUNKS + b"2\n{}\r\n0\r\n\r\n", False, id="a bare line feed"),
        pytest.param(CHUNKS + b"2\r\n{}\r\n0\r\nX: y\n\r\n", False, id="a bare line feed in the trailers"),
        pytest.param(CHUNKS + b"2\r\n{}--0\r\n\r\n", False, id="another end of a chunk"),
        pytest.param(CHUNKS + b"0x2\r\n{}\r\n0\r\n\r\n", False, id="a prefix"),
        pytest.param(CHUNKS + b"+2\r\n{}\r\n0\r\n\r\n", False, id="a sign"),
        pytest.param(CHUNKS + b"0_2\r\n{}\r\n0\r\n\r\n", False, id="an underscore"),
        pytest.param(CHUNKS + b"\r\n2\r\n{}\r\n0\r\n\r\n", False, id="no size"),
        pytest.param(
            CHUNKS.replace(b"chunked", b"chunked\r\nTransfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n",
            False,
            id="chunked twice",
        ),
        pytest.param(
            CHUNKS.replace(b"chunked", b"chunked\r\nContent-Length: 2") + b"2\r\n{}\r\n0\r\n\r\n", False, id="a length"
        ),
        pytest.param(
            CHUNKS.replace(b"chunked", b"gzip, chunked") + b"2\r\n{}\r\n0\r\n\r\n", False, id="another coding, too"
        ),
    ],
)
def test_chunks_are_read_as_everybody_does(first: bytes, *, kept: bool) -> None:
    """Chunks that programs read in different ways end the connection, whether or not they make a body."""
    assert connections_of(first, timeout=LONG if kept else SOON) == (1 if kept else 2)


def connections_of(first: bytes, *, timeout: float) -> int:
    """Answer a request so and the next with its own; return how many connections that took."""

    def answer(target: str, connection: socket.socket) -> None:
        connection.sendall(first if target == "/first" else own(target))

    with answering(answer) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        with suppress(TransportError):
            get(transport, "/first", timeout=timeout)
        assert get(transport, "/second").body == b"/second"
    return len(server.connections)


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n"]
)
@pytest.mark.parametrize("times", [1, 2, 500])
def test_interim_responses_are_read_past(interim: bytes, times: int) -> None:
    """However many responses come before the final one, that is the one that counts, and the connection is kept."""

    def answer(target: str, connection: socket.socket) -> None:
        connection.sendall(interim * times + b"HTTP/1.1 100 Continue\r\n\r\n" + own(target))

    with answering(answer) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        for number in range(3):
            assert get(transport, f"/{number}").body == b"/%d" % number

    assert [len(targets) for targets in server.connections] == [3]


@pytest.mark.parametrize("line", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"1\r\n \r\n"], ids=["interim", "chunks"])
def test_responses_without_end_are_given_up(line: bytes) -> None:
    """Interim responses and chunks of a byte go on for ever only where somebody reads them."""

    def answer(_: str, connection: socket.socket) -> None:
        connection.sendall(CHUNKS if line.startswith(b"1") else b"")
        while True:
            connection.sendall(line * 1000)

    with (
        answering(answer) as server,
        closing(Transport(server.url, headers={}, connections=1)) as transport,
        pytest.raises(NotConnected),
    ):
        get(transport, "/")


def test_every_request_has_its_own_response_within_tls(certificate: Path, tmp_path: Path) -> None:
    """Bytes that TLS has decrypted and nobody has read count as left over, too."""
    script = Script()

    def answer(target: str, connection: socket.socket) -> bool:
        # Several records leave together, so that the client has them all before it sends another request.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        goes_on = script.answer(target, connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        return goes_on

    firsts = [
        f"/first/{status}/length/body/{tail.replace(' ', '_')}" for status in (200, 103, 500) for tail in TAILS[:4]
    ]
    targets = [target for first in firsts for target in (first, "/second" + first)]
    with answering(answer, certificate=certificate) as server:
        environment = {"REQUESTS_CA_BUNDLE": str(certificate)}
        lines = ask_elsewhere(server.url, environment, tmp_path, targets=targets).splitlines()

    assert lines[1::2] == [f"200 /second{first}" for first in firsts]
    assert len(server.connections) < len(firsts) * 2  # some are kept


# -- Age and idleness --------------------------------------------------------------------------------------------------


class Clock:
    """A clock that a test puts forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def answer_own(target: str, connection: socket.socket) -> None:
    """Answer a request with what belongs to its target."""
    connection.sendall(own(target))


@pytest.mark.parametrize(("idle", "connections"), [(LONGEST_IDLE - 1, 1), (LONGEST_IDLE, 2)])
def test_idle_connections_are_not_used_again(idle: float, connections: int) -> None:
    """After a minute without a request a NAT may have forgotten a connection, which would cost a whole timeout."""
    clock = Clock()
    with (
        answering(answer_own) as server,
        closing(Transport(server.url, headers={}, connections=1, monotonic=clock)) as transport,
    ):
        get(transport, "/1")
        clock.now += idle
        get(transport, "/2")

    assert len(server.connections) == connections


def test_a_connection_that_works_for_long_is_not_idle() -> None:
    """The minute begins with the end of a response."""
    clock = Clock()

    def answer(target: str, connection: socket.socket) -> None:
        clock.now += LONGEST_IDLE + 1
        connection.sendall(own(target))

    with (
        answering(answer) as server,
        closing(Transport(server.url, headers={}, connections=1, monotonic=clock)) as transport,
    ):
        get(transport, "/1")
        get(transport, "/2")

    assert len(server.connections) == 1


def test_old_connections_are_not_used_again() -> None:
    """A name that has moved to another address is followed within five minutes, however busy its connection is."""
    clock = Clock()
    with (
        answering(answer_own) as server,
        closing(Transport(server.url, headers={}, connections=1, monotonic=clock)) as transport,
    ):
        for number in range(21):
            get(transport, f"/{number}")
            clock.now += 30.0

    assert [len(targets) for targets in server.connections] == [10, 10, 1]


def test_connections_beyond_the_number_to_keep_are_closed() -> None:
    """Of three that are in use at once two are kept where two are asked for."""
    all_are_here = threading.Barrier(3)

    def answer(target: str, connection: socket.socket) -> None:
        all_are_here.wait(LONG)
        connection.sendall(own(target))

    with (
        answering(answer) as server,
        closing(Transport(server.url, headers={}, connections=2)) as transport,
        ThreadPoolExecutor(3) as threads,
    ):
        for _ in range(2):
            for reply in [threads.submit(get, transport, f"/{number}") for number in range(3)]:
                assert reply.result().status == 200

    assert sorted(len(targets) for targets in server.connections) == [1, 1, 2, 2]


def test_a_name_that_moves_is_followed() -> None:
    """Every new connection looks the name up anew, and an old one is not kept for long."""
    clock = Clock()
    with ExitStack() as stack:
        servers = [stack.enter_context(answering(answer_own)) for _ in range(2)]
        port = int(servers[0].url.rpartition(":")[2])
        addresses = {"now": "127.0.0.1"}

        def look_up(*_: object) -> list[Address]:
            return [(0, 0, 0, "", (addresses["now"], port))]

        transport = Transport(servers[0].url, headers={}, connections=1, monotonic=clock, resolver=Resolver(look_up))
        with closing(transport):
            get(transport, "/1")
            addresses["now"] = "127.0.0.9"
            clock.now += LONGEST_IDLE - 1
            get(transport, "/2")
            clock.now += LONGEST_IDLE
            with pytest.raises(NotConnected):
                get(transport, "/3")

    assert servers[0].connections == [["/1", "/2"]]


def test_the_times_are_those_that_are_promised() -> None:
    """A minute idle, five minutes of age, two seconds for a dead address."""
    assert (LONGEST_IDLE, OLDEST, PATIENCE) == (60, 300, 2)


# -- Dead connections --------------------------------------------------------------------------------------------------


def fails_second(how: Callable[[socket.socket], object]) -> Answer:
    """Answer the first request of every connection, and do something else about the next."""
    served: set[socket.socket] = set()

    def answer(target: str, connection: socket.socket) -> bool:
        if connection in served:
            how(connection)
            return False
        served.add(connection)
        connection.sendall(own(target))
        return True

    return answer


def reset(connection: socket.socket) -> None:
    """Let closing the connection reset it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def close(connection: socket.socket) -> None:
    """Close the connection in order."""
    connection.shutdown(socket.SHUT_WR)


TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("how", [reset, close, lambda connection: connection.sendall(TIMED_OUT)])
def test_a_request_that_finds_its_connection_dead_is_sent_once_more(how: Callable[[socket.socket], object]) -> None:
    """A server that ends idle connections just when the next request is sent fails none: that gets a new connection."""
    both_are_here = threading.Barrier(2)
    fails = fails_second(how)

    def answer(target: str, connection: socket.socket) -> object:
        if target != "/last":
            both_are_here.wait(LONG)
        return fails(target, connection)

    with answering(answer) as server, closing(Transport(server.url, headers={}, connections=2)) as transport:
        with ThreadPoolExecutor(2) as threads:
            for reply in [threads.submit(get, transport, target) for target in ("/1", "/2")]:
                assert reply.result().status == 200

        assert get(transport, "/last").body == b"/last"

    assert sorted(len(targets) for targets in server.connections) == [1, 1, 2]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        pytest.param(lambda connection: connection.sendall(b"H"), NotConnected, id="a byte has arrived"),
        pytest.param(hangs, TimedOut, id="the time is up"),
    ],
)
def test_a_request_that_may_be_answered_is_not_sent_again(
    how: Callable[[socket.socket], object], error: type[TransportError]
) -> None:
    """Once a byte of a response is there, or the time is up, the request has failed."""
    with (
        answering(fails_second(how)) as server,
        closing(Transport(server.url, headers={}, connections=1)) as transport,
    ):
        get(transport, "/1")
        with pytest.raises(error):
            get(transport, "/2", timeout=4 * SOON if error is TimedOut else LONG)

    assert server.connections == [["/1", "/2"]]


@pytest.mark.parametrize("how", [reset, close])
def test_a_request_that_fails_on_a_new_connection_is_not_sent_again(how: Callable[[socket.socket], object]) -> None:
    """A new connection that dies says something of the server, and retries are made elsewhere."""

    def answer(_: str, connection: socket.socket) -> bool:
        how(connection)
        return False

    with (
        answering(answer) as server,
        closing(Transport(server.url, headers={}, connections=1)) as transport,
        pytest.raises(NotConnected),
    ):
        get(transport, "/1")

    assert server.connections == [["/1"]]


def test_a_request_is_sent_twice_at_most() -> None:
    """Where the new connection is dead as well, the request has failed."""
    requests: list[str] = []

    def answer(target: str, connection: socket.socket) -> bool:
        requests.append(target)
        if target == "/1":
            connection.sendall(own(target))
        return target == "/1"

    with answering(answer) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        get(transport, "/1")
        with pytest.raises(NotConnected):
            get(transport, "/2")

    assert server.connections == [["/1", "/2"], ["/2"]]


def test_a_408_on_a_new_connection_is_an_answer() -> None:
    """Only on a connection that was kept may it be about the connection alone."""

    def answer(_: str, connection: socket.socket) -> bool:
        connection.sendall(TIMED_OUT)
        return False

    with answering(answer) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        assert get(transport, "/1").status == 408

    assert server.connections == [["/1"]]


def test_a_request_after_a_408_has_all_of_its_time() -> None:
    """What the body of an error may take is no limit for the request that is sent once more."""

    def answer(target: str, connection: socket.socket) -> bool:
        if len(server.connections) == 2:
            select.select([connection], [], [], 1.2)  # the body of an error has one second
        connection.sendall(TIMED_OUT if server.connections == [["/1", "/2"]] else own(target))
        return target != "/2"

    with answering(answer) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        get(transport, "/1")

        assert get(transport, "/2").body == b"/2"
    assert server.connections == [["/1", "/2"], ["/2"]]


def test_a_408_to_an_idle_connection_answers_nothing() -> None:
    """A server that closes an idle connection with a 408 costs the next request a new connection, and nothing else."""
    said = threading.Event()

    def answer(target: str, connection: socket.socket) -> bool:
        connection.sendall(own(target))
        if target == "/1":
            connection.sendall(TIMED_OUT)
            connection.shutdown(socket.SHUT_WR)
            said.set()
        return target != "/1"

    with answering(answer) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        get(transport, "/1")
        assert said.wait(LONG)

        assert get(transport, "/2").status == 200

    assert server.connections == [["/1"], ["/2"]]


# -- Names and addresses -----------------------------------------------------------------------------------------------


def test_an_address_that_is_a_dead_end_leaves_time_for_the_next() -> None:
    """A name with a broken address and a working one, as with half-configured IPv6, is reached."""
    port = free_port("127.0.0.1", "127.0.0.2")
    with deaf("127.0.0.1", port), closing(socket.create_server(("127.0.0.2", port))):
        watch = Watch(time.monotonic() + 8 * SOON)
        with closing(connect(["127.0.0.1", "127.0.0.2"], port, watch, [], patience=LONG)) as connection:
            assert connection.getpeername() == ("127.0.0.2", port)
            assert watch.remaining() > 0


@pytest.mark.parametrize("dead", [1, 2])
def test_a_dead_address_costs_little(dead: int) -> None:
    """While others remain, an address that does not answer is given up after the patience, however long the timeout."""
    addresses = [f"127.0.0.{number + 1}" for number in range(dead + 1)]
    port = free_port(*addresses)
    with ExitStack() as stack:
        for address in addresses[:-1]:
            stack.enter_context(deaf(address, port))
        listener = stack.enter_context(closing(socket.create_server((addresses[-1], port))))
        watch = Watch(time.monotonic() + 10 * LONG)
        with closing(connect(addresses, port, watch, [], patience=SOON)) as connection:
            assert connection.getpeername() == listener.getsockname()
            assert watch.remaining() > 9 * LONG


def test_the_last_address_has_all_that_is_left() -> None:
    """The patience is for addresses that leave others to try."""
    watch = Watch(time.monotonic() + 2 * SOON)
    with deaf("127.0.0.1") as port, pytest.raises(TimeoutError):
        connect(["127.0.0.1"], port, watch, [], patience=SOON / 10)

    assert watch.remaining() <= 0


def test_a_connection_has_all_of_the_time_that_is_left() -> None:
    """What an address that answers did not use of its share is there for the handshake."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port, watch = listener.getsockname()[1], Watch(time.monotonic() + LONG)
        with closing(connect(["127.0.0.1", "127.0.0.2"], port, watch, [])) as connection:
            assert LONG / 2 < (connection.gettimeout() or 0) <= LONG


def test_a_name_without_addresses() -> None:
    """A resolver that returns nothing leads nowhere, in words."""
    with pytest.raises(OSError, match=r"^the name has no address$"):
        connect([], 443, Watch(time.monotonic() + LONG), [])


def test_connections_are_probed_by_the_system() -> None:
    """TCP keep-alive is on, soon enough for NATs that forget after a minute; small requests leave at once."""
    sockets: list[socket.socket] = []

    class Spy(Connection):
        def _new_conn(self) -> socket.socket:
            sockets.append(super()._new_conn())
            return sockets[-1]

    watchdog = Watchdog()
    with answering(answer_own) as server, watchdog.watch(time.monotonic() + LONG):
        host, _, port = server.url.removeprefix("http://").partition(":")
        connection = Spy(host, int(port), monotonic=time.monotonic, resolver=Resolver())
        with closing(connection):
            connection.connect()
            (sock,) = sockets
            tcp = [socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
            options = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in tcp]

            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert options == [1, 30, 10, 3]
    watchdog.close()


def test_a_resolver_that_hangs_is_left_behind() -> None:
    """The system's resolver cannot be interrupted; the request does not wait for it."""
    asked, over = threading.Event(), threading.Event()

    def hang(*_: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        asked.set()
        over.wait(LONG)
        return []

    with pytest.raises(TimeoutError):
        Resolver(hang).resolve("braze.invalid", 443, SOON)

    assert asked.is_set()
    over.set()


def test_look_ups_that_hang_are_shared() -> None:
    """Ten requests for a name that is not resolved wait for one thread, each as long as it may; then all have it."""
    calls: list[object] = []
    over = threading.Event()

    def hang(host: str, *_: object) -> list[Address]:
        calls.append(host)
        over.wait(LONG)
        return [(0, 0, 0, "", ("192.0.2.1", 443))]

    resolver = Resolver(hang)
    with pytest.raises(TimeoutError):
        resolver.resolve("braze.invalid", 443, SOON)
    with ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(resolver.resolve, "braze.invalid", 443, LONG) for _ in range(10)]
        others = [threads.submit(resolver.resolve, host, port, 2 * SOON) for host, port in OTHERS]
        assert all(isinstance(other.exception(), TimeoutError) for other in others)
        over.set()

        assert [one.result() for one in waiting] == [["192.0.2.1"]] * 10
    assert sorted(map(str, calls)) == ["braze.invalid", "braze.invalid", "other.invalid"]


OTHERS = [("braze.invalid", 444), ("other.invalid", 443)]


def test_every_look_up_that_is_over_is_made_anew() -> None:
    """What was found, or was not, is not kept: an address may change, and a failure may pass."""
    results: list[Exception | list[Address]] = [
        socket.gaierror(socket.EAI_AGAIN, "not now"),
        [(0, 0, 0, "", ("192.0.2.1", 443))],
        UnicodeError("not a name"),
        [(0, 0, 0, "", ("192.0.2.2", 443)), (0, 0, 0, "", ("192.0.2.3", 443))],
    ]

    def look_up(*_: object) -> list[Address]:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    resolver = Resolver(look_up)
    with pytest.raises(socket.gaierror, match="not now"):
        resolver.resolve("braze.invalid", 443, LONG)
    assert resolver.resolve("braze.invalid", 443, LONG) == ["192.0.2.1"]
    with pytest.raises(UnicodeError, match="not a name"):
        resolver.resolve("braze.invalid", 443, LONG)
    assert resolver.resolve("braze.invalid", 443, LONG) == ["192.0.2.2", "192.0.2.3"]


def test_a_look_up_without_a_thread_fails_alone() -> None:
    """Where no thread can be started for a look-up, the next one may have more luck."""
    start = RefusedOnce()

    resolver = Resolver(lambda *_: [(0, 0, 0, "", ("127.0.0.1", 443))], start)
    with pytest.raises(OSError, match="cannot be started: none is left"):
        resolver.resolve("braze.invalid", 443, LONG)

    assert resolver.resolve("braze.invalid", 443, LONG) == ["127.0.0.1"]


def test_a_request_without_a_thread_for_its_look_up_fails() -> None:
    """It is a connection that was not made, in words."""

    def start(_: object, name: str) -> None:
        raise NoThreadError(name, "none is left")

    transport = Transport("http://127.0.0.1:1", headers={}, connections=1, resolver=Resolver(start=start))
    with closing(transport), pytest.raises(NotConnected, match="cannot be started: none is left"):
        get(transport)


# -- Through the exporter ----------------------------------------------------------------------------------------------


def test_campaigns_have_their_own_numbers_behind_early_hints(tmp_path: Path) -> None:
    """Sixty campaigns, each response behind a 103 that comes before it: every one shows what is its own."""
    names = {str(UUID(int=number, version=4)): str(number) for number in range(1, 61)}

    def answer(target: str, connection: socket.socket) -> None:
        (campaign,) = parse_qs(urlsplit(target).query)["campaign_id"]
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        select.select([connection], [], [], 0.01)  # who takes that for the response sends the next request at once
        day = {"time": "2026-03-01", "unique_recipients": int(names[campaign])}
        body = json.dumps({"message": "success", "data": [day]}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with answering(answer) as server, running_exporter(configure(tmp_path, server.url, names=names)) as exporter:
        samples = exporter.samples("braze_campaign_unique_recipients")

    shown = {re.findall('campaign_name="([^"]*)"', series)[0]: float(value) for series, value in samples.items()}
    assert shown == {name: float(name) for name in names.values()}


@pytest.fixture(scope="session")
def certificate(openssl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for 127.0.0.1 that signs itself; one file holds it and its key."""
    return make_certificate(openssl, tmp_path_factory.mktemp("certificate"))
