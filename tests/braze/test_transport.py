"""Tests of exporter.transport: whatever a server, a proxy or a resolver does, one of a few outcomes and in time."""

import gzip
import json
import os
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from random import Random

import pytest

from exporter.braze.transport import (
    BODY_LIMIT,
    LARGE,
    NotConnected,
    NotDecoded,
    NotTrusted,
    TimedOut,
    TooLarge,
    Transport,
    TransportError,
)
from exporter.simulator.server import Body, Cut, Drip, Fault, Hang, Simulator, Status
from tests.support.raw_server import (
    CHUNKED,
    KEY,
    LONG,
    OK,
    TARGET,
    RawServer,
    Serve,
    answering,
    ask,
    ask_elsewhere,
    deaf,
    drips,
    get,
    hangs,
    leads_to,
    make_certificate,
    raw_server,
    sends,
    stalls,
)
from tests.support.servers import eventually

pytestmark = pytest.mark.server

SOON = 0.25
"""Seconds; what would take for ever is over by then."""


# -- Answers -----------------------------------------------------------------------------------------------------------


def test_status_headers_and_body_arrive(braze: Simulator) -> None:
    """A reply holds what was answered; the names of its headers are found in any case."""
    reply = ask(braze.url)

    assert reply.status == 200
    assert reply.headers["x-ratelimit-limit"] == reply.headers["X-RateLimit-Limit"] == "250000"
    assert json.loads(reply.body)["message"] == "success"


def test_every_status_is_a_reply(braze: Simulator) -> None:
    """What a status means is not decided here."""
    for status in (204, 206, 301, 304, 400, 401, 407, 429, 500, 599, 600, 999):
        braze.misbehave(Status(status))

        assert ask(braze.url).status == status


def test_redirects_are_not_followed(braze: Simulator) -> None:
    """The key goes to no other server: a redirect is a reply."""
    with Simulator() as other:
        braze.misbehave(Status(307, headers={"Location": f"{other.url}/campaigns/list"}))
        reply = ask(braze.url)

        assert reply.status == 307
        assert other.requests == []


NOISE = Random(1).randbytes(200_000)  # noqa: S311 - what cannot be compressed


def zipped(body: bytes, *, length: int | None = None) -> bytes:
    """Return an answer that says it is compressed."""
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body) if length is None else length}"
    return head.encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(CHUNKED + b'4\r\n{"a"\r\n3;x=y\r\n:1}\r\n0\r\nTrailer: x\r\n\r\n', b'{"a":1}', id="chunks"),
        pytest.param(CHUNKED + b"0\r\n\r\n", b"", id="no chunks"),
        pytest.param(zipped(gzip.compress(b'{"a":1}')), b'{"a":1}', id="gzip"),
        pytest.param(zipped(gzip.compress(b'{"a"') + gzip.compress(b":1}")), b'{"a":1}', id="two gzip members"),
        pytest.param(zipped(b""), b"", id="nothing as gzip"),
        pytest.param(zipped(gzip.compress(b"{}")).replace(b"gzip", b"x-gzip"), b"{}", id="x-gzip"),
        pytest.param(zipped(gzip.compress(b"{}")).replace(b"gzip", b" GZip "), b"{}", id="gzip in other letters"),
        pytest.param(zipped(gzip.compress(b"{}") + bytes(512)), b"{}", id="zeros behind gzip"),
        pytest.param(zipped(gzip.compress(b"{}") + bytes(70_000)), b"{}", id="many zeros behind gzip"),
        pytest.param(zipped(gzip.compress(b"{") + bytes(9) + gzip.compress(b"}")), b"{}", id="zeros between members"),
        pytest.param(zipped(gzip.compress(b"") * 1023 + gzip.compress(b"{}")), b"{}", id="1024 members"),
        pytest.param(zipped(gzip.compress(NOISE)), NOISE, id="gzip of many slices"),
        pytest.param(zipped(b"{}").replace(b"gzip", b"identity"), b"{}", id="identity"),
        pytest.param(zipped(b"{}").replace(b"gzip", b""), b"{}", id="empty coding"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end", id="no length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}", b"{}", id="length that is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}", b"{}", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{} and more", b"{}", id="more than the length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: x\r\nContent-Length: 2\r\n\r\n{}", b"{}", id="unknown coding"
        ),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + OK, b"{}", id="continues"),
        pytest.param(b"HTTP/1.1 200 \xff\r\nX: \xe9\r\nContent-Length: 2\r\n\r\n{}", b"{}", id="Latin-1"),
    ],
)
def test_answers_in_every_form_are_read(answer: bytes, body: bytes) -> None:
    """Whatever form HTTP allows, and some that it does not, yields the body."""
    with raw_server(sends(answer)) as server:
        assert ask(server.url).body == body


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(b"", NotConnected, id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", NotConnected, id="cut headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", NotConnected, id="cut body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1%s\r\n\r\n{}" % (b"0" * 30), NotConnected, id="absurd length"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n{}", NotConnected, id="two lengths"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n", NotConnected, id="cut chunks"),
        pytest.param(CHUNKED + b"FFFFFFFFFFFF\r\n{}", NotConnected, id="absurd chunk"),
        pytest.param(CHUNKED + b"xyz\r\n{}\r\n0\r\n\r\n", NotConnected, id="chunk without length"),
        pytest.param(CHUNKED + b"-1\r\n{}", NotConnected, id="negative chunk"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", NotConnected, id="not HTTP"),
        pytest.param(b"HTTP/1.1 2x0 OK\r\n\r\n", NotConnected, id="no status"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", NotConnected, id="200 headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"y" * 100_000), NotConnected, id="huge header"),
        pytest.param(zipped(b"{}"), NotDecoded, id="not gzip"),
        pytest.param(zipped(gzip.compress(bytes(1000))[:10] + b"?" * 20), NotDecoded, id="broken gzip"),
        pytest.param(zipped(gzip.compress(b"{}")[:-5]), NotDecoded, id="gzip without an end"),
        pytest.param(zipped(gzip.compress(b"{}"), length=1000), NotConnected, id="cut gzip"),
        pytest.param(zipped(gzip.compress(b"{}") + b"x"), NotDecoded, id="garbage behind gzip"),
        pytest.param(zipped(gzip.compress(b"{}") + bytes(9) + b"x"), NotDecoded, id="garbage behind zeros"),
        pytest.param(zipped(bytes(9) + gzip.compress(b"{}")), NotDecoded, id="zeros before gzip"),
        pytest.param(zipped(gzip.compress(b"{}")[:10]), NotDecoded, id="the head of gzip alone"),
        pytest.param(zipped(gzip.compress(b"{}") * 1025), NotDecoded, id="1025 members"),
        pytest.param(zipped(zlib.compress(b"{}")).replace(b"gzip", b"deflate"), NotDecoded, id="deflate"),
        pytest.param(zipped(b"{}").replace(b"gzip", b"BR"), NotDecoded, id="brotli"),
        pytest.param(zipped(b"{}").replace(b"gzip", b"zstd"), NotDecoded, id="zstd"),
        pytest.param(zipped(b"{}").replace(b"gzip", b"compress"), NotDecoded, id="compress"),
        pytest.param(zipped(b"{}").replace(b"gzip", b"x-compress"), NotDecoded, id="x-compress"),
        pytest.param(zipped(gzip.compress(b"{}")).replace(b"gzip", b"gzip, gzip"), NotDecoded, id="gzip twice"),
        pytest.param(zipped(gzip.compress(b"{}")).replace(b"gzip", b"x-gzip, x"), NotDecoded, id="more than gzip"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX", NotConnected, id="cut headers, no body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", NotConnected, id="cut before the last line"),
        pytest.param(b"HTTP/1.1 429 No\r\nRetry-After: 3", NotConnected, id="cut headers of an error"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n", NotConnected, id="an interim response alone"),
        pytest.param(OK.replace(b": 2", b": 2\r\nTransfer-Encoding: gzip"), NotConnected, id="transfer coding"),
        pytest.param(CHUNKED + b"2\r\n{}--0\r\n\r\n", NotConnected, id="no line break behind a chunk"),
    ],
)
def test_answers_that_are_none(answer: bytes, error: type[TransportError]) -> None:
    """What is not a whole HTTP answer is an error of a known kind whose text repeats nothing of it."""
    with raw_server(sends(answer)) as server, pytest.raises(error) as caught:
        ask(server.url)

    assert type(caught.value) is error
    assert caught.value.__context__ is None
    assert not any(part in str(caught.value) for part in ("OpenSSH", "2x0", "yyy", "xyz", KEY))


def test_resets(raw: Callable[[Serve], RawServer]) -> None:
    """A connection that is reset in the middle of an answer is none."""

    def reset(connection: socket.socket) -> None:
        connection.sendall(OK[:-1])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with pytest.raises(NotConnected):
        ask(raw(reset).url)


def test_refused_connections() -> None:
    """Where nobody listens there is no connection, and the text is the system's."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(NotConnected, match=r"^Connection refused$"):
        ask(f"http://127.0.0.1:{port}")


REFUSAL = b"HTTP/1.1 429 No\r\nRetry-After: 7\r\n"
"""The beginning of a head; a blank line is missing."""


@pytest.mark.parametrize("status", [b"429 No", b"401 No", b"404 No", b"503 No", b"307 No", b"201 Yes"])
@pytest.mark.parametrize(
    ("rest", "body"),
    [
        pytest.param(b"Content-Length: 2\r\n\r\n{}", b"{}", id="fine"),
        pytest.param(b"Content-Length: 1000\r\n\r\n{}", b"", id="cut body"),
        pytest.param(b"Content-Length: 2, 3\r\n\r\n{}", b"", id="two lengths"),
        pytest.param(b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"", id="two headers of length"),
        pytest.param(b"Transfer-Encoding: gzip\r\n\r\n{}", b"", id="transfer coding"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", b"", id="broken chunks"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", b"", id="cut chunks"),
        pytest.param(b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", b"", id="not gzip"),
        pytest.param(b"Content-Encoding: deflate\r\nContent-Length: 2\r\n\r\n{}", b"", id="deflate"),
        pytest.param(b"Content-Encoding: br\r\n\r\n{}", b"", id="brotli without length"),
        pytest.param(b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"{}")[:-3], b"", id="gzip without an end"),
    ],
)
def test_the_body_of_an_error_is_optional(status: bytes, rest: bytes, body: bytes) -> None:
    """Whatever is wrong with its body, a response that is no success has its status and its headers."""
    with raw_server(sends(REFUSAL.replace(b"429 No", status) + rest)) as server:
        reply = ask(server.url)

    assert (reply.status, reply.headers["retry-after"], reply.body) == (int(status[:3]), "7", body)


@pytest.mark.parametrize("head", [REFUSAL + b"Content-Length: 1000\r\n\r\n{", REFUSAL + b"\r\n{"])
@pytest.mark.parametrize("serve", [drips, stalls])
@pytest.mark.parametrize("timeout", [SOON, LONG])
def test_the_body_of_an_error_is_not_waited_for(
    head: bytes, serve: Callable[[bytes], Serve], timeout: float, raw: Callable[[Serve], RawServer]
) -> None:
    """An error whose body drips, or never comes, is known by its status long before the timeout, and at its end too."""
    started = time.monotonic()
    reply = ask(raw(serve(head)).url, timeout=timeout)

    assert (reply.status, reply.headers["Retry-After"]) == (429, "7")
    assert time.monotonic() - started < LONG / 2


def test_a_reset_in_the_body_of_an_error(raw: Callable[[Serve], RawServer]) -> None:
    """A connection that breaks after the head of an error has said enough."""

    def reset(connection: socket.socket) -> None:
        connection.sendall(REFUSAL + b"Content-Length: 1000\r\n\r\n{}")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    assert ask(raw(reset).url).status == 429


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        pytest.param(REFUSAL + b"Content-Length: 2\r\n\r\n{}", True, id="an error"),
        pytest.param(zipped(gzip.compress(b"{}")), True, id="gzip"),
        pytest.param(REFUSAL + zipped(b"{}").partition(b"\r\n")[2], False, id="an error, not gzip"),
        pytest.param(zipped(b"{}"), False, id="not gzip"),
        pytest.param(zipped(b"{}").replace(b"gzip", b"br"), False, id="brotli"),
        pytest.param(REFUSAL + b"Content-Length: 100000\r\n\r\n" + bytes(100_000), False, id="an error of 100 kB"),
    ],
)
def test_connections_are_kept_after_what_was_understood(response: bytes, *, kept: bool) -> None:
    """An error that was read to its end keeps its connection; what could not be decoded or was cut does not."""

    def answer(_: str, connection: socket.socket) -> None:
        connection.sendall(response)

    with answering(answer) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        for _ in range(2):
            with suppress(NotDecoded):
                get(transport)

    assert [len(targets) for targets in server.connections] == ([2] if kept else [1, 1])


# -- Limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "error"), [(BODY_LIMIT, None), (BODY_LIMIT + 1, TooLarge), (20 << 20, TooLarge)])
def test_body_limit(braze: Simulator, size: int, error: type[TransportError] | None) -> None:
    """A body of the limit is read, one byte more is too much."""
    braze.misbehave(Body(bytes(size)))

    assert outcome(braze.url) == (error or size)


def endless(head: bytes) -> Serve:
    """Send 256 MiB after the head, or as much as is read."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(256):
            connection.sendall(bytes(1 << 20))

    return serve


def bomb() -> bytes:
    """Return a quarter of a MiB of gzip that becomes 256 MiB."""
    compressor = zlib.compressobj(wbits=31)
    return b"".join([*(compressor.compress(bytes(1 << 20)) for _ in range(256)), compressor.flush()])


@pytest.mark.parametrize(
    ("make", "error"),
    [
        pytest.param(lambda: sends(zipped(bomb())), TooLarge, id="gzip bomb"),
        pytest.param(lambda: endless(b"HTTP/1.1 200 OK\r\n\r\n"), TooLarge, id="no length"),
        pytest.param(lambda: endless(CHUNKED + b"FFFFFFFFFFFF\r\n"), TooLarge, id="absurd chunk"),
        pytest.param(lambda: endless(CHUNKED + b"-1\r\n"), NotConnected, id="negative chunk"),
    ],
)
def test_memory_is_bounded(
    make: Callable[[], Serve], error: type[TransportError], raw: Callable[[Serve], RawServer]
) -> None:
    """However much comes, and however much it would become, a few times the limit is all that it takes."""
    server = raw(make())
    tracemalloc.start()
    try:
        result = outcome(server.url)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert result is error
    assert peak < 5 * BODY_LIMIT


def test_compressed_bodies_over_the_limit_are_not_cut() -> None:
    """A body of more than the limit is too large even if what would be left of it is a small whole."""
    compressor = zlib.compressobj(wbits=31)
    begun = compressor.compress(b"{}") + compressor.flush(zlib.Z_SYNC_FLUSH)
    nothing = b"\0\0\0\xff\xff"  # a block without a byte
    with raw_server(sends(zipped(begun + nothing * (BODY_LIMIT // len(nothing)) + compressor.flush()))) as server:
        assert outcome(server.url) is TooLarge


def test_bodies_of_errors_are_cut(braze: Simulator) -> None:
    """Of an error no more is read than people would, however much there is."""
    braze.misbehave(Status(500, body=bytes(20 << 20)))
    reply = ask(braze.url)

    assert reply.status == 500
    assert len(reply.body) < 100_000


@pytest.mark.parametrize("size", [1000, 100_000, 10_000_000])
def test_compressed_bodies_of_errors_are_cut(size: int) -> None:
    """So is one that is compressed, be it cut before or after that."""
    body = os.urandom(size) if size == 100_000 else bytes(size)
    with raw_server(sends(zipped(gzip.compress(body)).replace(b"200 OK", b"500 No"))) as server:
        reply = ask(server.url)

    assert reply.status == 500
    assert body.startswith(reply.body)
    assert min(size, 50_000) <= len(reply.body) < 100_000


def turn(log: list[float], sizes: Callable[[], object] = lambda: None) -> Callable[[float], None]:
    """Return what lets every large body have its turn at once, and writes down the seconds that it had left."""

    def before_large(seconds: float) -> None:
        log.append(seconds)
        sizes()

    return before_large


@pytest.mark.parametrize(
    ("response", "calls"),
    [
        pytest.param(OK, 0, id="small"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (LARGE, bytes(LARGE)), 0, id="1 MiB"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (LARGE + 1, bytes(LARGE + 1)), 1, id="more"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LARGE), 0, id="1 MiB without length"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LARGE + 1), 1, id="more without length"),
        pytest.param(CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (LARGE, bytes(LARGE)), 0, id="1 MiB in a chunk"),
        pytest.param(CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (LARGE + 1, bytes(LARGE + 1)), 1, id="more in a chunk"),
        pytest.param(zipped(gzip.compress(bytes(LARGE))), 0, id="gzip of 1 MiB"),
        pytest.param(zipped(gzip.compress(bytes(LARGE + 2))), 1, id="gzip of more"),
        pytest.param(zipped(gzip.compress(bytes(LARGE)) + gzip.compress(b"{}")), 1, id="gzip of more, in two members"),
        pytest.param(zipped(gzip.compress(Random(1).randbytes(3 * LARGE))), 1, id="both"),  # noqa: S311 - as NOISE
        pytest.param(b"HTTP/1.1 500 No\r\n\r\n" + bytes(LARGE + 1), 0, id="an error"),
        pytest.param(zipped(gzip.compress(bytes(3 * LARGE))).replace(b"200 OK", b"500 No"), 0, id="an error as gzip"),
    ],
)
def test_large_bodies_wait_for_their_turn(response: bytes, calls: int) -> None:
    """Once a body turns out to be over 1 MiB, on the network or decompressed, its turn is waited for, once."""
    log: list[float] = []
    with raw_server(sends(response)) as server, closing(Transport(server.url, headers={}, connections=1)) as transport:
        transport.get(TARGET, authorization=KEY, timeout=LONG, before_large=turn(log))

    assert len(log) == calls
    assert all(0 < seconds <= LONG for seconds in log)


def test_large_bodies_are_not_read_before_their_turn(raw: Callable[[Serve], RawServer]) -> None:
    """What is beyond 1 MiB stays with the server until then."""
    their_turn = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (2 * LARGE, bytes(LARGE + 1)))
        assert their_turn.wait(LONG)
        connection.sendall(bytes(LARGE - 1))

    with closing(Transport(raw(serve).url, headers={}, connections=1)) as transport:
        reply = transport.get(TARGET, authorization=KEY, timeout=LONG, before_large=turn([], their_turn.set))

    assert len(reply.body) == 2 * LARGE


@pytest.mark.parametrize("serve", [lambda: sends(zipped(bomb())), lambda: endless(b"HTTP/1.1 200 OK\r\n\r\n")])
def test_a_turn_that_does_not_come(serve: Callable[[], Serve], raw: Callable[[Serve], RawServer]) -> None:
    """A body that waits for its turn in vain takes little memory, and its request is out of time."""

    def never(_: float) -> None:
        raise TimedOut("no turn")

    server = raw(serve())
    tracemalloc.start()
    try:
        with closing(Transport(server.url, headers={}, connections=1)) as transport, pytest.raises(TimedOut):
            transport.get(TARGET, authorization=KEY, timeout=LONG, before_large=never)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 6 * LARGE


def test_many_gzip_members_cost_little() -> None:
    """A body of 16 MiB that consists of empty members is given up soon, not after half an hour."""
    body = gzip.compress(b"") * (BODY_LIMIT // 20)
    started = time.process_time()
    with raw_server(sends(zipped(body))) as server:
        assert outcome(server.url) is NotDecoded

    assert time.process_time() - started < LONG / 3


# -- Time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Hang(), Drip(0.05, "headers"), Drip(0.05, "body")])
def test_the_deadline_holds(braze: Simulator, fault: Fault) -> None:
    """A server that is silent, or sends a byte now and then, is given up at the deadline."""
    with closing(Transport(braze.url, headers={}, connections=8)) as transport:
        for _ in ("on a new connection", "on a kept one"):
            braze.misbehave(fault, times=1)
            started = time.monotonic()
            with pytest.raises(TimedOut):
                get(transport, timeout=SOON)

            assert SOON <= time.monotonic() - started < SOON + 3
            assert get(transport).status == 200


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n", id="close"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n", id="no length"),
        pytest.param(CHUNKED, id="chunks"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", id="one header"),
    ],
)
def test_the_deadline_holds_against_every_drip(head: bytes, raw: Callable[[Serve], RawServer]) -> None:
    """Also where the connection counts as closed while its answer is read."""
    server = raw(drips(head, b"1\r\n \r\n" if head == CHUNKED else b" "))
    started = time.monotonic()
    with pytest.raises(TimedOut):
        ask(server.url, timeout=SOON)

    assert time.monotonic() - started < SOON + 3


def test_a_deadline_in_the_past() -> None:
    """Without time left nothing is asked for long."""
    with raw_server(sends(OK)) as server, pytest.raises(TimedOut):
        ask(server.url, timeout=-1)


def test_the_earliest_of_many_deadlines_counts(braze: Simulator) -> None:
    """A request whose deadline comes before those of requests that run already is ended first."""
    with closing(Transport(braze.url, headers={}, connections=8)) as transport, ThreadPoolExecutor(1) as others:
        braze.misbehave(Hang(), times=1)
        running = others.submit(get, transport, timeout=LONG)
        eventually(lambda: braze.requests, what="a request that runs")
        braze.misbehave(Drip(0.05))
        with pytest.raises(TimedOut):
            get(transport, timeout=SOON)

        assert not running.done()
        braze.close()
        assert isinstance(running.exception(), NotConnected)


def test_connections_that_are_not_accepted() -> None:
    """A machine that does not answer at all is given up at the deadline."""
    with deaf("127.0.0.1") as port, pytest.raises(TimedOut):
        ask(f"http://127.0.0.1:{port}", timeout=SOON)


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    """A name without an address is no connection."""
    assert ask_elsewhere("https://braze.invalid", {}, tmp_path).startswith("NotConnected ")


def test_names_that_cannot_exist(tmp_path: Path) -> None:
    """Nor is a name that DNS has no way to ask for."""
    assert ask_elsewhere(f"https://{'a' * 64}.invalid", {}, tmp_path).startswith("NotConnected ")


# -- Connections -------------------------------------------------------------------------------------------------------


def test_connections_are_kept(braze: Simulator) -> None:
    """Requests in a row share one connection, errors among them."""
    with closing(Transport(braze.url, headers={}, connections=8)) as transport:
        for status in (200, 404, 500, 401, 429, 307, 200):
            if status != 200:
                braze.misbehave(Status(status), times=1)
            assert get(transport).status == status

    assert braze.connections == 1


def test_threads_share_connections(braze: Simulator) -> None:
    """Any number of threads may ask at once; there are no more connections than threads."""
    with closing(Transport(braze.url, headers={}, connections=8)) as transport, ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: get(transport), range(200)))

    assert {reply.status for reply in replies} == {200}
    assert braze.connections <= 8


def test_a_connection_that_the_server_has_closed_is_replaced() -> None:
    """Servers close what is idle; the next request does not fail for it."""
    with raw_server(sends(OK)) as server, closing(Transport(server.url, headers={}, connections=8)) as transport:
        for number in (1, 2, 3):
            assert get(transport).body == b"{}"
            eventually(lambda: server.ended, what="a closed connection")
            server.ended.clear()
            assert len(server.requests) == number


def test_close_ends_idle_connections() -> None:
    """After close the connections that were kept are gone, and no new one is made."""

    def keep(connection: socket.socket) -> None:
        connection.sendall(OK)
        hangs(connection)

    with raw_server(keep) as server:
        transport = Transport(server.url, headers={}, connections=8)
        get(transport)
        assert not server.ended
        transport.close()
        eventually(lambda: server.ended, what="a closed connection")

        with pytest.raises(NotConnected):
            get(transport)


def test_close_lets_running_requests_end(braze: Simulator) -> None:
    """The deadline of a request that runs at the time of close still holds."""
    transport = Transport(braze.url, headers={}, connections=8)
    braze.misbehave(Drip(0.05))
    with ThreadPoolExecutor(1) as others:
        running = others.submit(get, transport, timeout=2 * SOON)
        eventually(lambda: braze.requests, what="a request that runs")
        transport.close()

        assert isinstance(running.exception(), TimedOut)


def test_no_connection_is_kept_after_close() -> None:
    """A request that runs at the time of close has its answer, and then its connection is closed, too."""
    closed = threading.Event()

    def answer_late(connection: socket.socket) -> None:
        closed.wait(LONG)
        connection.sendall(OK)
        hangs(connection)

    with raw_server(answer_late) as server, ThreadPoolExecutor(1) as others:
        transport = Transport(server.url, headers={}, connections=8)
        running = others.submit(get, transport)
        eventually(lambda: server.requests, what="a request that runs")
        transport.close()
        closed.set()

        assert running.result().body == b"{}"
        eventually(lambda: server.ended, what="a closed connection")


def test_no_thread_waits_for_a_deadline_after_close(braze: Simulator) -> None:
    """When the last request of a closed transport is over, its thread ends, however far away the deadline was."""
    transport = Transport(braze.url, headers={}, connections=8)
    braze.misbehave(Hang())
    with ThreadPoolExecutor(1) as others:
        running = others.submit(get, transport, timeout=10 * LONG)
        eventually(lambda: braze.requests, what="a request that runs")
        transport.close()
        braze.close()
        assert isinstance(running.exception(), NotConnected)

    eventually(
        lambda: not any(thread.name == "deadlines" for thread in threading.enumerate()), what="no thread for deadlines"
    )


def test_nothing_leaks() -> None:
    """After 200 requests, most of them failed, there are as many threads and file descriptors as before."""
    faults = [None, Hang(), Cut(0), Cut(40), Cut(400), Drip(0.02), Status(500), Status(401), Body(bytes(1 << 20))]
    threads, files = threading.active_count(), open_files()
    with Simulator() as braze:
        transport = Transport(braze.url, headers={}, connections=8)
        for fault in (faults * 23)[:200]:
            if fault is not None:
                braze.misbehave(fault, times=1)
            with suppress(TransportError):
                get(transport, timeout=0.02 if isinstance(fault, Hang | Drip) else LONG)
        transport.close()

    eventually(lambda: threading.active_count() <= threads, what="as many threads as before")
    eventually(lambda: open_files() <= files, what="as many files as before")


# -- What is sent ------------------------------------------------------------------------------------------------------


def test_requests_hold_what_they_should(raw: Callable[[Serve], RawServer]) -> None:
    """A request is the target, the given headers and the key: no cookie, nothing of the libraries' own."""
    server = raw(sends(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n")))
    with closing(
        Transport(server.url, headers={"Accept-Encoding": "gzip", "User-Agent": "x"}, connections=1)
    ) as transport:
        for _ in range(2):
            get(transport)
            eventually(lambda: server.ended, what="a closed connection")
            server.ended.clear()

    head = f"GET {TARGET} HTTP/1.1\r\nHost: {server.url.removeprefix('http://')}\r\n"
    expected = f"{head}Accept-Encoding: gzip\r\nUser-Agent: x\r\nAuthorization: {KEY}\r\n\r\n"
    assert server.requests == [expected.encode()] * 2


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def test_the_machine_changes_nothing_about_loopback(braze: Simulator, tmp_path: Path) -> None:
    """Neither a netrc file nor proxies in the environment change the key or where a loopback address is."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login x password y\ndefault login x password y\n")
    with raw_server(sends(OK)) as proxy:
        environment = {"NETRC": str(tmp_path / ".netrc")} | dict.fromkeys(PROXIES, proxy.url)

        assert ask_elsewhere(braze.url, environment, tmp_path).startswith("200 ")
        assert proxy.requests == []
    assert [request.authorized for request in braze.requests] == [True]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 407 Some words\r\n\r\n", "NotConnected the proxy responded with 407"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "NotConnected the connection was closed"),
        (b"", "NotConnected RemoteDisconnected"),
    ],
)
def test_proxies_never_see_the_key(answer: bytes, expected: str, tmp_path: Path) -> None:
    """A proxy is asked to connect, by HTTPS_PROXY, and gets nothing else in the clear."""
    with raw_server(sends(answer)) as proxy:
        said = ask_elsewhere("https://braze.invalid", {"HTTPS_PROXY": proxy.url}, tmp_path)

    assert said == expected
    assert proxy.requests[0].startswith(b"CONNECT braze.invalid:443 HTTP/1.")
    assert len(proxy.requests) == 1
    assert b"braze-key" not in proxy.requests[0]


def test_a_proxy_leads_to_who_gets_the_key(certificate: Path, tmp_path: Path) -> None:
    """Through a proxy the certificate of the other side counts, and that side gets the request."""
    with raw_server(sends(OK), certificate=certificate) as server, raw_server(leads_to(server.url)) as proxy:
        environment = {"HTTPS_PROXY": proxy.url, "REQUESTS_CA_BUNDLE": str(certificate)}

        assert ask_elsewhere("https://braze.invalid", environment, tmp_path).startswith("200 ")

    assert [KEY.encode() in request for request in (*server.requests, *proxy.requests)] == [True, False]


def test_connections_through_a_proxy_are_kept(certificate: Path, tmp_path: Path) -> None:
    """Requests in a row take one CONNECT; one after a connection that was not kept takes another."""

    def answer(target: str, connection: socket.socket) -> None:
        connection.sendall(OK if target != "/last" else OK.replace(b"200 OK", b"408 No"))

    with answering(answer, certificate=certificate) as server, raw_server(leads_to(server.url)) as proxy:
        environment = {"HTTPS_PROXY": proxy.url, "REQUESTS_CA_BUNDLE": str(certificate)}
        targets = ("/1", "/2", "/last", "/3")
        said = ask_elsewhere("https://braze.invalid", environment, tmp_path, targets=targets)

    assert said.split("\n") == ["200 {}", "200 {}", "408 {}", "200 {}"]
    assert server.connections == [["/1", "/2", "/last"], ["/last"], ["/3"]]
    assert len(proxy.requests) == 3


@pytest.mark.parametrize("scheme", ["socks5", "SOCKS5h"])
def test_proxies_of_another_kind_are_refused(scheme: str, tmp_path: Path) -> None:
    """A SOCKS proxy is not spoken to, and not passed by either."""
    with raw_server(sends(OK)) as proxy:
        environment = {"HTTPS_PROXY": proxy.url.replace("http", scheme)}
        said = ask_elsewhere("https://braze.invalid", environment, tmp_path)

        assert said == "NotConnected expected an HTTP proxy, got a SOCKS proxy"
        assert proxy.requests == []


def test_a_proxy_that_drips(tmp_path: Path) -> None:
    """The deadline holds for the proxy's answer too."""
    with raw_server(drips(b"HTTP/1.1 200 OK\r\nX: ")) as proxy:
        said = ask_elsewhere("https://braze.invalid", {"HTTPS_PROXY": proxy.url}, tmp_path, timeout=SOON)

    assert said == "TimedOut no complete response within the timeout"


def test_no_proxy_is_honoured(tmp_path: Path) -> None:
    """A host in NO_PROXY is reached, or here not reached, without the proxy."""
    with raw_server(sends(OK)) as proxy:
        environment = {"HTTPS_PROXY": proxy.url, "NO_PROXY": "invalid"}

        assert ask_elsewhere("https://braze.invalid", environment, tmp_path).startswith("NotConnected ")
        assert proxy.requests == []


# -- TLS ---------------------------------------------------------------------------------------------------------------


def test_certificates_that_are_not_trusted(certificate: Path) -> None:
    """A server that signed its own certificate gets no request."""
    with raw_server(sends(OK), certificate=certificate) as server:
        with pytest.raises(NotTrusted, match=r"^self.signed certificate$"):
            ask(server.url)

        assert server.requests == []


def test_certificates_of_another_name(certificate: Path, tmp_path: Path) -> None:
    """A trusted certificate of another host is not trusted."""
    with raw_server(sends(OK), certificate=certificate) as server:
        said = ask_elsewhere(
            server.url.replace("127.0.0.1", "localhost"), {"REQUESTS_CA_BUNDLE": str(certificate)}, tmp_path
        )

    assert said.startswith("NotTrusted Hostname mismatch")


def test_the_environment_names_whom_to_trust(certificate: Path, tmp_path: Path) -> None:
    """CA bundles come from the variables that requests knows."""
    with raw_server(sends(OK), certificate=certificate) as server:
        assert ask_elsewhere(server.url, {"REQUESTS_CA_BUNDLE": str(certificate)}, tmp_path).startswith("200 ")


def test_the_deadline_holds_within_tls(certificate: Path, tmp_path: Path) -> None:
    """A drip of encrypted bytes is ended too."""
    drip = drips(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    with raw_server(drip, certificate=certificate) as server:
        said = ask_elsewhere(server.url, {"REQUESTS_CA_BUNDLE": str(certificate)}, tmp_path, timeout=SOON)

    assert said == "TimedOut no complete response within the timeout"


def test_a_ca_bundle_that_is_missing(tmp_path: Path) -> None:
    """The text names the file, for whoever mounted it somewhere else."""
    said = ask_elsewhere("https://127.0.0.1:1", {"REQUESTS_CA_BUNDLE": "/missing.pem"}, tmp_path)

    assert said == "NotTrusted expected a CA bundle at /missing.pem, got nothing there"


def test_a_server_without_tls() -> None:
    """Something else than TLS on the port of an https address is not trusted, in OpenSSL's words."""
    with raw_server(sends(OK)) as server, pytest.raises(NotTrusted, match=r"^[A-Z]+(_[A-Z]+)+$"):
        ask(server.url.replace("http:", "https:"))


def test_a_handshake_that_is_cut() -> None:
    """A connection that ends during the handshake says nothing about trust, so it may be tried again."""
    with raw_server(sends(b"")) as server, pytest.raises(NotConnected):
        ask(server.url.replace("http:", "https:"))


def test_a_handshake_that_never_ends() -> None:
    """The deadline holds for handshakes, silent ones and those that drip."""
    for serve in (hangs, drips(b"\x16\x03\x03\x40\x00")):  # the head of a long handshake record
        with raw_server(serve) as server, pytest.raises(TimedOut):
            ask(server.url.replace("http:", "https:"), timeout=SOON)


# -- Helpers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def braze() -> Iterator[Simulator]:
    """Run a simulated Braze."""
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def raw() -> Iterator[Callable[[Serve], RawServer]]:
    """Start raw servers; they end with the test."""
    with ExitStack() as stack:

        def start(serve: Serve) -> RawServer:
            return stack.enter_context(raw_server(serve))

        yield start


@pytest.fixture(scope="session")
def certificate(openssl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for 127.0.0.1 and braze.invalid that signs itself; one file holds it and its key."""
    return make_certificate(openssl, tmp_path_factory.mktemp("certificate"))


def outcome(url: str) -> int | type[TransportError]:
    """Ask once; return the size of the body, or the kind of error."""
    try:
        return len(ask(url).body)
    except TransportError as error:
        return type(error)


def open_files() -> int:
    """Count this process's file descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))
