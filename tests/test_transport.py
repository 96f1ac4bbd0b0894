"""Tests of exporter.transport: whatever a server, a proxy or a resolver does, one of a few outcomes and in time."""

import gzip
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from exporter.simulator import Body, Cut, Drip, Fault, Hang, Simulator, Status
from exporter.transport import (
    BODY_LIMIT,
    NotConnected,
    NotDecoded,
    NotTrusted,
    Reply,
    TimedOut,
    TooLarge,
    Transport,
    TransportError,
    _connect,
    _Line,
    _resolve,
    _Watch,
)
from tests.servers import ROOT, eventually

pytestmark = pytest.mark.server

KEY = "Bearer simulated-braze-key"
SOON = 0.25
"""Seconds; what would take for ever is over by then."""
LONG = 30.0
TARGET = "/campaigns/list?page=0"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


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


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


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
    ],
)
def test_answers_that_are_none(answer: bytes, error: type[TransportError]) -> None:
    """What is not a whole HTTP answer is an error of a known kind whose text repeats nothing of it."""
    with raw_server(sends(answer)) as server, pytest.raises(error) as caught:
        ask(server.url)

    assert type(caught.value) is error
    assert caught.value.__context__ is None
    assert not any(part in str(caught.value) for part in ("OpenSSH", "2x0", "yyy", "xyz", KEY))


def test_resets(raw: Callable[["Serve"], "RawServer"]) -> None:
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


# -- Limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "error"), [(BODY_LIMIT, None), (BODY_LIMIT + 1, TooLarge), (20 << 20, TooLarge)])
def test_body_limit(braze: Simulator, size: int, error: type[TransportError] | None) -> None:
    """A body of the limit is read, one byte more is too much."""
    braze.misbehave(Body(bytes(size)))

    assert outcome(braze.url) == (error or size)


def endless(head: bytes) -> "Serve":
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
    make: Callable[[], "Serve"], error: type[TransportError], raw: Callable[["Serve"], "RawServer"]
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


# -- Time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Hang(), Drip(0.05, "headers"), Drip(0.05, "body")])
def test_the_deadline_holds(braze: Simulator, fault: Fault) -> None:
    """A server that is silent, or sends a byte now and then, is given up at the deadline."""
    with closing(Transport(braze.url, headers={})) as transport:
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
        pytest.param(b"HTTP/1.1 500 Oh no\r\nContent-Length: 1000\r\n\r\n", id="error"),
    ],
)
def test_the_deadline_holds_against_every_drip(head: bytes, raw: Callable[["Serve"], "RawServer"]) -> None:
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
    with closing(Transport(braze.url, headers={})) as transport, ThreadPoolExecutor(1) as others:
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


def test_an_address_that_is_a_dead_end_leaves_time_for_the_next() -> None:
    """A name with a broken address and a working one, as with half-configured IPv6, is reached."""
    with deaf("127.0.0.1") as port, closing(socket.create_server(("127.0.0.2", port))):
        watch = _Watch(time.monotonic() + 2 * SOON)
        with closing(_connect(["127.0.0.1", "127.0.0.2"], port, watch, None)) as connection:
            assert connection.getpeername() == ("127.0.0.2", port)
            assert watch.remaining() > 0


def test_a_connection_has_all_of_the_time_that_is_left() -> None:
    """What an address that answers did not use of its share is there for the handshake."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port, watch = listener.getsockname()[1], _Watch(time.monotonic() + LONG)
        with closing(_connect(["127.0.0.1", "127.0.0.2"], port, watch, None)) as connection:
            assert LONG / 2 < (connection.gettimeout() or 0) <= LONG


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    """A name without an address is no connection."""
    assert ask_elsewhere("https://braze.invalid", {}, tmp_path).startswith("NotConnected ")


def test_names_that_cannot_exist(tmp_path: Path) -> None:
    """Nor is a name that DNS has no way to ask for."""
    assert ask_elsewhere(f"https://{'a' * 64}.invalid", {}, tmp_path).startswith("NotConnected ")


def test_a_resolver_that_hangs_is_left_behind() -> None:
    """The system's resolver cannot be interrupted; the request does not wait for it."""
    asked, over = threading.Event(), threading.Event()

    def hang(*_: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        asked.set()
        over.wait(LONG)
        return []

    with pytest.raises(TimeoutError):
        _resolve("braze.invalid", 443, SOON, look_up=hang)

    assert asked.is_set()
    over.set()


# -- Connections -------------------------------------------------------------------------------------------------------


def test_connections_are_kept(braze: Simulator) -> None:
    """Requests in a row share one connection, errors among them."""
    with closing(Transport(braze.url, headers={})) as transport:
        for status in (200, 404, 500, 401, 204, 304, 429, 307, 200):
            if status != 200:
                braze.misbehave(Status(status), times=1)
            assert get(transport).status == status

    assert braze.connections == 1


def test_threads_share_connections(braze: Simulator) -> None:
    """Any number of threads may ask at once; there are no more connections than threads."""
    with closing(Transport(braze.url, headers={})) as transport, ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: get(transport), range(200)))

    assert {reply.status for reply in replies} == {200}
    assert braze.connections <= 8


def test_a_connection_that_the_server_has_closed_is_replaced() -> None:
    """Servers close what is idle; the next request does not fail for it."""
    with raw_server(sends(OK)) as server, closing(Transport(server.url, headers={})) as transport:
        for number in (1, 2, 3):
            assert get(transport).body == b"{}"
            eventually(lambda: server.ended, what="a closed connection")
            server.ended.clear()
            assert len(server.requests) == number


def test_a_request_that_is_over_does_not_end_the_next_on_its_connection() -> None:
    """Of two requests that share a connection, only the deadline of the second counts."""
    near, far = socket.socketpair()
    with closing(near), closing(far):
        far.setblocking(False)
        line, first, second = _Line(near), _Watch(0), _Watch(0)
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
        line, watch = _Line(near), _Watch(0)
        watch.expire()
        watch.attach(line)

        assert far.recv(1) == b""
        line.close()
        watch.attach(None)


def test_close_ends_idle_connections() -> None:
    """After close the connections that were kept are gone, and no new one is made."""

    def keep(connection: socket.socket) -> None:
        connection.sendall(OK)
        hangs(connection)

    with raw_server(keep) as server:
        transport = Transport(server.url, headers={})
        get(transport)
        assert not server.ended
        transport.close()
        eventually(lambda: server.ended, what="a closed connection")

        with pytest.raises(NotConnected):
            get(transport)


def test_close_lets_running_requests_end(braze: Simulator) -> None:
    """The deadline of a request that runs at the time of close still holds."""
    transport = Transport(braze.url, headers={})
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
        transport = Transport(server.url, headers={})
        running = others.submit(get, transport)
        eventually(lambda: server.requests, what="a request that runs")
        transport.close()
        closed.set()

        assert running.result().body == b"{}"
        eventually(lambda: server.ended, what="a closed connection")


def test_no_thread_waits_for_a_deadline_after_close(braze: Simulator) -> None:
    """When the last request of a closed transport is over, its thread ends, however far away the deadline was."""
    transport = Transport(braze.url, headers={})
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
        transport = Transport(braze.url, headers={})
        for fault in (faults * 23)[:200]:
            if fault is not None:
                braze.misbehave(fault, times=1)
            with suppress(TransportError):
                get(transport, timeout=0.02 if isinstance(fault, Hang | Drip) else LONG)
        transport.close()

    eventually(lambda: threading.active_count() <= threads, what="as many threads as before")
    eventually(lambda: open_files() <= files, what="as many files as before")


# -- What is sent ------------------------------------------------------------------------------------------------------


def test_requests_hold_what_they_should(raw: Callable[["Serve"], "RawServer"]) -> None:
    """A request is the target, the given headers and the key: no cookie, nothing of the libraries' own."""
    server = raw(sends(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n")))
    with closing(Transport(server.url, headers={"Accept-Encoding": "gzip", "User-Agent": "x"})) as transport:
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

        assert ask_elsewhere(braze.url, environment, tmp_path) == "200"
        assert proxy.requests == []
    assert [request.authorized for request in braze.requests] == [True]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 407 Some words\r\n\r\n", "NotConnected the proxy answered 407"),
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

        assert ask_elsewhere("https://braze.invalid", environment, tmp_path) == "200"

    assert [KEY.encode() in request for request in (*server.requests, *proxy.requests)] == [True, False]


def test_a_proxy_that_drips(tmp_path: Path) -> None:
    """The deadline holds for the proxy's answer too."""
    with raw_server(drips(b"HTTP/1.1 200 OK\r\nX: ")) as proxy:
        said = ask_elsewhere("https://braze.invalid", {"HTTPS_PROXY": proxy.url}, tmp_path, timeout=SOON)

    assert said == "TimedOut no complete answer within the timeout"


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
        assert ask_elsewhere(server.url, {"REQUESTS_CA_BUNDLE": str(certificate)}, tmp_path) == "200"


def test_the_deadline_holds_within_tls(certificate: Path, tmp_path: Path) -> None:
    """A drip of encrypted bytes is ended too."""
    drip = drips(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    with raw_server(drip, certificate=certificate) as server:
        said = ask_elsewhere(server.url, {"REQUESTS_CA_BUNDLE": str(certificate)}, tmp_path, timeout=SOON)

    assert said == "TimedOut no complete answer within the timeout"


def test_a_ca_bundle_that_is_missing(tmp_path: Path) -> None:
    """The text names the file, for whoever mounted it somewhere else."""
    said = ask_elsewhere("https://127.0.0.1:1", {"REQUESTS_CA_BUNDLE": "/missing.pem"}, tmp_path)

    assert said == "NotTrusted expected a CA bundle at /missing.pem, got nothing there"


def test_a_server_without_tls() -> None:
    """Something else than TLS on the port of an https address is not trusted."""
    with raw_server(sends(OK)) as server, pytest.raises(NotTrusted):
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

Serve = Callable[[socket.socket], None]
"""What a raw server does about a request, before it closes the connection."""


@dataclass(frozen=True)
class RawServer:
    """A server that does as it is told: its address, what it has received, and that a connection has ended."""

    url: str
    requests: list[bytes] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)


@contextmanager
def raw_server(serve: Serve, *, certificate: Path | None = None) -> Iterator[RawServer]:
    """Serve one request on each connection, one connection at a time, with TLS where there is a certificate."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        server = RawServer(f"{'https' if context else 'http'}://127.0.0.1:{port}")

        def run() -> None:
            while True:
                connection, _ = listener.accept()
                connection.settimeout(30)  # a client that never goes fails its test, and hangs none
                with closing(connection), suppress(OSError):
                    if stopping.is_set():
                        return
                    if context is None:
                        _serve_one(connection, server, serve)
                    else:
                        with closing(context.wrap_socket(connection, server_side=True)) as secured:
                            _serve_one(secured, server, serve)
                server.ended.append(True)

        stopping = threading.Event()
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server
        finally:
            stopping.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


def _serve_one(connection: socket.socket, server: RawServer, serve: Serve) -> None:
    request = b""
    while b"\r\n\r\n" not in request and not request.startswith(b"\x16"):  # a TLS handshake
        part = connection.recv(65_536)
        if not part:
            return
        request += part
    server.requests.append(request)
    serve(connection)


def sends(answer: bytes) -> Serve:
    """Answer with these bytes, and read what the client still sends, so that closing is no reset."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    return serve


def hangs(connection: socket.socket) -> None:
    """Wait until the client goes."""
    while connection.recv(65_536):
        pass


def leads_to(url: str) -> Serve:
    """Connect to an address, say so, and pass on what either side sends until one goes."""

    def serve(connection: socket.socket) -> None:
        address = urlsplit(url)
        with closing(socket.create_connection((address.hostname, address.port or 0), timeout=30)) as other:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            others = {connection: other, other: connection}
            while True:
                for source in select.select(others, [], [], 30)[0]:
                    part = source.recv(65_536)
                    if not part:
                        return
                    others[source].sendall(part)

    return serve


def drips(head: bytes, drop: bytes = b" ") -> Serve:
    """Send the head, then a drop every 0.05 s until the client goes."""

    def serve(connection: socket.socket) -> None:
        connection.settimeout(0.05)
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            with suppress(TimeoutError):
                if not connection.recv(65_536):
                    return

    return serve


@contextmanager
def deaf(address: str) -> Iterator[int]:
    """Listen on a port of the address without ever accepting: when its queue is full, connecting hangs."""
    with ExitStack() as stack:
        listener = stack.enter_context(closing(socket.create_server((address, 0), backlog=0)))
        for _ in range(4):
            client = stack.enter_context(closing(socket.socket()))
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


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
    folder = tmp_path_factory.mktemp("certificate")
    command: list[str | Path] = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1,DNS:braze.invalid", "-days", "2"]
    command += ["-keyout", folder / "key", "-out", folder / "certificate"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "certificate").read_bytes())
    return both


def ask(url: str, *, timeout: float = LONG) -> Reply:
    """Ask once over a transport of its own."""
    with closing(Transport(url, headers={})) as transport:
        return get(transport, timeout=timeout)


def get(transport: Transport, *, timeout: float = LONG) -> Reply:
    """Ask for the list."""
    return transport.get(TARGET, authorization=KEY, timeout=timeout, before_large=lambda _: None)


def outcome(url: str) -> int | type[TransportError]:
    """Ask once; return the size of the body, or the kind of error."""
    try:
        return len(ask(url).body)
    except TransportError as error:
        return type(error)


ELSEWHERE = """
import sys, time
from exporter.transport import Transport, TransportError
url, target, key, timeout = sys.argv[1:]
try:
    reply = Transport(url, headers={}).get(
        target, authorization=key, timeout=float(timeout), before_large=lambda _: None
    )
    print(reply.status)
except TransportError as error:
    print(type(error).__name__, error)
"""


def ask_elsewhere(url: str, environment: Mapping[str, str], home: Path, *, timeout: float = 2 * LONG) -> str:
    """Ask once from a process with this environment alone; return the status, or the kind of error and its text."""
    command = [sys.executable, "-c", ELSEWHERE, url, TARGET, KEY, str(timeout)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **environment}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=4 * LONG
    )
    assert done.stderr == ""
    return done.stdout.strip()


def open_files() -> int:
    """Count this process's file descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))
