"""Tests of exporter.web.server: requests as they stand, limits, clients that do harm, all against a real process."""

import asyncio
import base64
import http.client
import re
import resource
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt
import pytest
from starlette.types import Receive, Scope, Send

from exporter.simulator.server import Simulator
from exporter.web import server
from exporter.web.app import HEADERS
from exporter.web.client_limits import ClientLimits
from exporter.web.server import Server
from exporter.web.web_config import WebConfig
from tests.support.exporters import COMMAND, KEY, Exporter, ask, configure, running_exporter
from tests.support.hostile import NEVER, Address, Behaviour, attack, crawl, drip, handshake, hold
from tests.support.servers import eventually, running
from tests.support.system import no_new_threads

pytestmark = pytest.mark.alone

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTHY = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 200  # campaigns, of which the metrics have some three megabytes
PROMPT = 0.25  # seconds that a scrape may take beside an attack, in the middle of all
SHORT = ("--web.header-timeout=1s", "--web.write-timeout=2s")


@contextmanager
def polled_once(folder: Path, *flags: str, campaigns: int = 1) -> Iterator[Exporter]:
    """Run an exporter after its first and, for an hour, only round."""
    with (
        Simulator(api_key=KEY, campaigns=campaigns) as braze,
        running_exporter(configure(folder, braze), *flags) as exporter,
    ):
        yield exporter


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """An exporter that waits for nobody longer than a second."""
    with polled_once(tmp_path_factory.mktemp("exporter"), *SHORT, campaigns=LARGE) as exporter:
        yield exporter


def test_answers_leave_at_once() -> None:
    """An accepted connection does not collect small answers for the other side's acknowledgement."""
    with (
        closing(server.listen("127.0.0.1", 0)) as listener,
        closing(socket.create_connection(listener.getsockname())),
    ):
        listener.setblocking(True)
        with closing(listener.accept()[0]) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://127.0.0.1:1/-/healthy", 200),
        ("HTTPS://example.com/-/healthy?x=http://y/z", 200),
        ("http://example.com", 200),
        ("http://example.com/none", 404),
        ("http:///-/healthy", 200),
        ("http:/-/healthy", 404),
        ("ftp://example.com/-/healthy", 404),
        ("*", 404),
    ],
)
def test_absolute_form(target: str, status: int, exporter: Exporter) -> None:
    """A target with scheme and host, as clients write it for a proxy, is answered as its path is."""
    answer = converse(exporter, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        b"Content-Length: 100000\r\n\r\n" + 100_000 * b"x",
    ],
)
def test_a_body_is_ignored(body: bytes, exporter: Exporter) -> None:
    """A request with a body is answered as one without, and so is the next one on the same connection."""
    answer = converse(exporter, HEALTHY[:-2] + body + HEALTHY, answers=2)

    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.count(b"braze-exporter is healthy.\n") == 2


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + 1_000_000 * b"x", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + 70_000 * b"x" + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + 20_000 * b"X: y\r\n" + b"\r\n", 431),
        (b"GET /" + 70_000 * b"x" + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    ],
)
def test_what_is_no_request(request_text: bytes, status: int, exporter: Exporter) -> None:
    """What is no request, or one with too much before its body, is refused with the headers of every answer."""
    answer = converse(exporter, request_text)

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    head = answer.partition(b"\r\n\r\n")[0].decode().lower()
    assert all(f"\r\n{name}: {value}".lower() in head for name, value in HEADERS.items())
    assert exporter.ask("/-/healthy").ok
    assert not re.search("Traceback|level=(error|warning)", exporter.program.output())


def test_a_refusal_ends_in_peace(exporter: Exporter) -> None:
    """Who sends too much may read the refusal to its end: what comes after it is read, not answered by a reset."""
    with closing(connect(exporter)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + 900_000 * b"x")

        parts = list(iter(partial(client.recv, 1 << 16), b""))

    assert b"".join(parts).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_large_bodies_arrive_whole(version: str, counted: bool, method: str) -> None:  # noqa: FBT001 - a parameter
    """However large a body the application sends and however its length is told, a client gets all of it."""
    body = bytes(range(256)) * 3000 + b"end"
    length = [(b"content-length", str(len(body)).encode())] if counted else []

    async def application(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})

    async def ask() -> tuple[bytes, bytes]:
        serving = Server(application, headers={}, limits=ClientLimits())
        serving.start([server.listen("127.0.0.1", 0)])
        (listener,) = serving.listeners
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(f"{method} / HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await serving.stop(1)
        return head, rest

    head, rest = asyncio.run(ask())

    if b"transfer-encoding: chunked" in head.lower() and method == "GET":
        rest = dechunked(rest)
    assert rest == (body if method == "GET" else b"")


USERS = WebConfig(users={"alice": bcrypt.hashpw(b"secret", bcrypt.gensalt(4))}, headers={"X-Frame-Options": "deny"})
ALICE = b"Authorization: Basic " + base64.b64encode(b"alice:secret") + b"\r\n"


def answers_of(settings: WebConfig, *requests: bytes) -> list[bytes]:
    """Return the answers of a server with these settings to requests on one connection."""

    async def application(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> list[bytes]:
        serving = Server(application, headers={"X-Own": "x"}, limits=ClientLimits(), settings=lambda: settings)
        serving.start([server.listen("127.0.0.1", 0)])
        reader, writer = await asyncio.open_connection(*serving.listeners[0].getsockname())
        answers = []
        for request in requests:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            answers.append(head + await reader.readexactly(int(length[1]) if length else 0))
        writer.close()
        await serving.stop(1)
        return answers

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 401),
        (ALICE, 200),
        (ALICE.replace(b"A", b"a", 1), 200),
        (ALICE * 2, 401),
        (ALICE + b"Authorization: Basic x\r\n", 401),
        (b"Authorization: Bearer x\r\n", 401),
    ],
)
def test_users(headers: bytes, status: int) -> None:
    """One Authorization header of a user opens; none, a wrong one or several do not, and the connection is kept."""
    for answer in answers_of(USERS, *[HEALTHY[:-2] + headers + b"\r\n"] * 2):
        head, _, body = answer.partition(b"\r\n\r\n")
        challenge = b'www-authenticate: Basic realm="braze-exporter", charset="UTF-8"\r\n'

        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert (challenge in answer) == (status == 401)
        assert body == (b"401 Unauthorized\n" if status == 401 else b"")
        assert {b"x-own: x", b"x-frame-options: deny"} <= {*head.split(b"\r\n")}


def test_no_thread_for_a_password() -> None:
    """A password that cannot be checked for want of a thread is answered by 503, which says when to come again."""
    with no_new_threads():
        (answer,) = answers_of(USERS, HEALTHY[:-2] + ALICE + b"\r\n")

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in answer
    assert answer.endswith(b"\r\n\r\n503 Service Unavailable\n")


def test_without_users_everybody_is_served() -> None:
    """Without users an Authorization header does not matter."""
    assert answers_of(WebConfig(), HEALTHY[:-2] + b"Authorization: x\r\n\r\n")[0].startswith(b"HTTP/1.1 200 ")


def dechunked(text: bytes) -> bytes:
    """Return the content of a body that came in chunks."""
    content = b""
    while text:
        size, _, text = text.partition(b"\r\n")
        content, text = content + text[: int(size, 16)], text[int(size, 16) + 2 :]
    return content


def test_a_head_of_60_kilobytes(exporter: Exporter) -> None:
    """A request with large headers, such as those of proxies with cookies, is answered."""
    assert exporter.ask("/-/healthy", Cookie=60_000 * "x").ok


def test_pipelining(exporter: Exporter) -> None:
    """Requests that come before the answer to the first are answered one after another, each with its own."""
    requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in ("/-/healthy", "/none", "/-/ready") * 20]

    answer = converse(exporter, b"".join(requests), answers=60)

    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"404", b"200"] * 20


def test_a_bad_request_behind_a_good_one(exporter: Exporter) -> None:
    """What is no request ends the connection after the answer to those before."""
    answer = converse(exporter, HEALTHY + b"nonsense\r\n\r\n" + HEALTHY)

    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"400"]


@pytest.mark.parametrize("requests", [HEALTHY, 3 * HEALTHY, b"GET / HTTP/1.0\r\n\r\n", SCRAPE])
def test_a_half_closed_connection(requests: bytes, exporter: Exporter) -> None:
    """A client that closes its side after the request gets every answer whole, and then the connection is closed."""
    answer = converse(exporter, requests, half_close=True)

    assert answer.count(b"HTTP/1.1 200 OK") == requests.count(b"GET")
    length = re.search(rb"(?i)content-length: (\d+)", answer)
    assert length is not None
    assert len(answer.rpartition(b"\r\n\r\n")[2]) == int(length[1]) if requests != 3 * HEALTHY else True


def test_half_a_request_and_an_end(exporter: Exporter) -> None:
    """A client that closes its side within a request is gone at once."""
    assert converse(exporter, b"GET /metr", half_close=True) == b""


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"GET /metrics HTTP/1.1\r\nHost",
        HEALTHY + b"GET",
        HEALTHY[:-2] + b"Content-Length: 10\r\n\r\nhello",
        HEALTHY[:-2] + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
    ids=["nothing", "half a head", "half a second head", "half a body", "half a chunk"],
)
def test_a_request_must_come_to_its_end(text: bytes, exporter: Exporter) -> None:
    """A connection on which a request does not come to its end is closed after the header timeout."""
    started = time.monotonic()

    converse(exporter, text)

    assert 0.9 < time.monotonic() - started < 8


class Leaping(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        """Return seconds."""
        return super().time() + self.ahead


@pytest.mark.parametrize("busy", [1, 2, 3, 4, 5])
def test_a_busy_server_is_not_the_clients_fault(busy: int) -> None:
    """A request that was sent in time is answered, however long others keep the server from looking at it."""
    loop, sent = Leaping(), threading.Event()

    async def application(scope: Scope, _: Receive, send: Send) -> None:
        if scope["path"] == "/busy":
            sent.wait(10)
            loop.ahead += 2 * ClientLimits().header_timeout
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def ask_all(address: Address) -> list[bytes]:
        with ExitStack() as stack:

            def connected() -> socket.socket:
                return stack.enter_context(closing(socket.create_connection(address, timeout=10)))

            early = [connected() for _ in range(10)]
            connected().sendall(busy * b"GET /busy HTTP/1.1\r\nHost: x\r\n\r\n")
            clients = [*early, *(connected() for _ in range(10))]
            for client in clients:
                client.sendall(HEALTHY)
            sent.set()
            return [client.recv(15) for client in clients]

    async def ask() -> list[bytes]:
        serving = Server(application, headers={}, limits=ClientLimits())
        serving.start([server.listen("127.0.0.1", 0)])
        answers = await asyncio.to_thread(ask_all, serving.listeners[0].getsockname())
        await serving.stop(1)
        return answers

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(ask()) == 20 * [b"HTTP/1.1 200 OK"]


def test_a_kept_connection_waits_longer(exporter: Exporter) -> None:
    """Between requests a connection may rest: the header timeout counts from the first byte of a request."""
    with closing(http.client.HTTPConnection(urlsplit(exporter.url).netloc, timeout=10)) as connection:
        for _ in range(2):
            connection.request("GET", "/-/healthy")
            connection.getresponse().read()
            address = connection.sock.getsockname()
            eventually(lambda: waited(exporter), what="more than the header timeout")

            assert connection.sock.getsockname() == address


def test_an_endless_body_is_cut(exporter: Exporter) -> None:
    """A body that never ends is not read for ever, however fast it comes."""
    text = HEALTHY[:-2] + b"Content-Length: 1000000000000\r\n\r\n" + bytes(1 << 26)
    with closing(connect(exporter)) as client, pytest.raises(ConnectionError):
        client.sendall(text)


def test_an_answer_must_be_taken(exporter: Exporter) -> None:
    """A client that does not read its answer, or reads it too slowly, is cut off after the write timeout."""
    for pause in (NEVER, 0.1):
        with attack(address(exporter), 1, partial(crawl, text=SCRAPE, pause=pause)) as state:
            eventually(lambda: open_sockets(exporter) == 1, what="the connection")
            eventually(lambda: open_sockets(exporter) == 0, what="its end")
        assert state.received < 1_000_000


def test_an_answer_in_slices(exporter: Exporter) -> None:
    """A large answer is whole at the other side, whichever way it goes: plain, compressed, for HEAD."""
    plain, gzip = exporter.ask(), exporter.ask(Accept_Encoding="gzip")

    assert len(plain.content) == int(plain.headers["Content-Length"]) > 2_000_000
    assert len(gzip.content) == int(gzip.headers["Content-Length"])
    for encoding, got in (("identity", plain), ("gzip", gzip)):
        head = exporter.ask(method="HEAD", Accept_Encoding=encoding)
        assert head.content == b""
        assert int(head.headers["Content-Length"]) == pytest.approx(len(got.content), rel=0.01)


ATTACKS: dict[str, Behaviour] = {
    "one byte at a time": drip,
    "handshakes without an end": handshake,
    "connections that do nothing": hold,
    "headers of a megabyte": partial(hold, text=b"GET / HTTP/1.1\r\nX: " + 1_000_000 * b"x"),
    "readers of a kilobyte a second": partial(crawl, text=SCRAPE),
    "pipelines that nobody reads": partial(crawl, text=50 * SCRAPE, pause=NEVER),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(name: str, exporter: Exporter) -> None:
    """Beside 500 clients that do harm scrapes are prompt; what they cost is bounded, and it is over with them."""
    files, before = exporter.open_files(), memory(exporter)
    with attack(address(exporter), 500, ATTACKS[name]) as state:
        eventually(lambda: state.connected == 500, what="500 connections")
        seconds = []
        for _ in range(15):
            started = time.perf_counter()
            assert exporter.ask().ok
            seconds.append(time.perf_counter() - started)
            assert exporter.ask("/-/ready").ok
        during = memory(exporter)
        eventually(lambda: exporter.open_files() <= files + 2, what="an end of all connections")

    assert statistics.median(seconds) < PROMPT
    assert during - before < 150
    assert exporter.ask().ok
    assert not re.search("Traceback|level=error", exporter.program.output())


def test_a_full_house(tmp_path: Path) -> None:
    """When there are too many connections, those that waited longest without a request go, and new ones are served."""
    with polled_once(tmp_path, "--web.max-connections=10") as exporter, ExitStack() as stack:
        first, *others = [stack.enter_context(closing(connect(exporter))) for _ in range(10)]
        eventually(lambda: open_sockets(exporter) == 10, what="ten connections")

        assert exporter.ask().ok

        assert first.recv(1) == b""
        eventually(lambda: open_sockets(exporter) == 9, what="the other nine")
        for other in others:
            other.sendall(HEALTHY)
            assert other.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")


def test_a_house_full_of_slow_readers(tmp_path: Path) -> None:
    """When all connections wait for the rest of an answer, the one that has waited longest goes."""
    with (
        polled_once(tmp_path, "--web.max-connections=10", campaigns=LARGE) as exporter,
        attack(address(exporter), 10, partial(crawl, text=SCRAPE, pause=NEVER)) as state,
    ):
        eventually(lambda: state.received > 3 * 1024 and open_sockets(exporter) == 10, what="answers that have begun")

        for _ in range(5):
            assert exporter.ask().ok
        eventually(lambda: open_sockets(exporter) <= 9, what="less of them")


def test_a_flood_beyond_the_limit_on_connections(tmp_path: Path) -> None:
    """Under a flood of connections scrapes are answered, and there are never many more than allowed."""
    with polled_once(tmp_path, "--web.max-connections=50") as exporter:
        files = exporter.open_files()
        with attack(address(exporter), 300, hold, again=True) as state:
            for _ in range(20):
                assert exporter.ask().ok
                assert exporter.open_files() <= files + 50 + 20
            eventually(lambda: state.closed > 300, what="connections that made way")


def test_a_flood_leaves_time_to_ask(tmp_path: Path) -> None:
    """However many wait to be let in, who is in has a moment for its request."""
    with polled_once(tmp_path, "--web.max-connections=10") as exporter:
        started = time.monotonic()
        with attack(address(exporter), 200, hold, again=True) as state:
            eventually(lambda: state.closed > 100, what="connections that made way")
            closed, seconds = state.closed, time.monotonic() - started

    assert closed <= 10 * (seconds / 0.05 + 1)


@pytest.mark.parametrize("polls", [1, 2])
def test_a_flood_up_to_the_limit_on_open_files(polls: int, tmp_path: Path) -> None:
    """Where the limit on open files is low, fewer connections are held, so that polls and scrapes go on."""
    with Simulator(api_key=KEY, campaigns=20) as braze:
        file = configure(tmp_path, braze, poll=f"interval: {polls}s, timeout: 1s")
        command = (*COMMAND, f"--config.file={file}", "--web.listen-address=127.0.0.1:0")
        limited = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *command)
        with running(limited, log=tmp_path / "log") as program:
            exporter = Exporter(program, program.logged(r"\burl=(http://\S+)")[1])
            program.logged("level=warning msg=.*as the limit on open files is 128")
            with attack(address(exporter), 400, hold, again=True):
                asked = len(braze.requests)
                eventually(lambda: exporter.ask().ok and len(braze.requests) > asked + 60, what="polls and scrapes")
            eventually(
                lambda: "0.0" not in exporter.samples("braze_campaign_up").values(), what="campaigns that are up"
            )


def test_no_more_open_files(tmp_path: Path) -> None:
    """When the system gives no more files, one connection after another makes way, without a loop that spins."""
    with polled_once(tmp_path) as exporter:
        process = exporter.program.process.pid
        files = exporter.open_files()
        resource.prlimit(process, resource.RLIMIT_NOFILE, (files + 20, files + 20))
        with attack(address(exporter), 100, hold) as state:
            exporter.program.logged('level=warning msg="a connection cannot be accepted"')
            eventually(lambda: exporter.ask("/-/healthy").ok, what="an answer")
            eventually(lambda: state.closed > 0, what="connections that made way")
        assert exporter.program.output().count("cannot be accepted") == 1
        eventually(lambda: exporter.open_files() <= files, what="files that are closed")
        cpu = time.clock_gettime(~process << 3 | 2)
        eventually(lambda: waited(exporter), what="a second")
        assert time.clock_gettime(~process << 3 | 2) - cpu < 0.5


def test_the_listener_of_probes(tmp_path: Path) -> None:
    """Another address answers the two health pages, and nothing else; limits hold there, too."""
    with polled_once(tmp_path, *SHORT, "--web.health.listen-address=127.0.0.1:0") as exporter:
        probes = exporter.program.logged(r'"listening for probes" url=(http://\S+)')[1]

        assert {path: ask(probes + path).status_code for path in ("/-/healthy", "/-/ready")} == {
            "/-/healthy": 200,
            "/-/ready": 200,
        }
        assert {ask(probes + path).status_code for path in ("/", "/metrics", "/config", "/-/reload", "/x")} == {404}
        assert ask(f"{probes}/-/healthy", method="POST").status_code == 405
        assert ask(f"{probes}/-/healthy").headers["X-Content-Type-Options"] == "nosniff"
        with attack(address(Exporter(exporter.program, probes)), 50, drip) as state:
            eventually(lambda: state.connected == 50, what="50 connections")
            assert ask(f"{probes}/-/healthy").ok
            eventually(lambda: open_sockets(exporter) == 0, what="an end of all of them")


def address(exporter: Exporter) -> Address:
    """Return where an exporter listens."""
    url = urlsplit(exporter.url)
    return str(url.hostname), url.port or 0


def connect(exporter: Exporter) -> socket.socket:
    """Connect to an exporter."""
    return socket.create_connection(address(exporter), timeout=10)


def converse(exporter: Exporter, text: bytes, *, half_close: bool = False, answers: int = 0) -> bytes:
    """Send a text, and return what comes until the other side closes, or until so many answers are there."""
    answer = b""
    with closing(connect(exporter)) as client:
        try:
            client.sendall(text)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # closed before all was sent: what came before counts
        while part := _received(client):
            answer += part
            if answers and whole(answer) >= answers:
                return answer
    return answer


def whole(text: bytes) -> int:
    """Return how many answers are there to their last byte."""
    count = 0
    pattern = re.compile(
        rb"(?:HTTP/1\.1 100 Continue\r\n\r\n)?HTTP/1.+?content-length: (\d+)\r\n.*?\r\n\r\n", re.DOTALL | re.IGNORECASE
    )
    while head := pattern.match(text):
        end = head.end() + int(head[1])
        count += len(text) >= end
        text = text[end:]
    return count


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 16)
    except ConnectionError:
        return b""


_STARTED: dict[str, float] = {}


def waited(exporter: Exporter) -> bool:
    """Tell whether more than a second has gone since this was first asked, or answered with yes."""
    since = _STARTED.setdefault(exporter.url, time.monotonic())
    if time.monotonic() - since < 1.3:
        return False
    del _STARTED[exporter.url]
    return True


def open_sockets(exporter: Exporter) -> int:
    """Return how many connections clients have, or had until now, to the process."""
    inodes = set()
    for link in Path(f"/proc/{exporter.program.process.pid}/fd").iterdir():
        try:
            inodes |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
        except OSError:
            continue  # closed meanwhile
    connections = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    ports = {f":{address(exporter)[1]:04X}"} | {
        f":{int(port):04X}" for port in re.findall(r"url=http://127\.0\.0\.1:(\d+)", exporter.program.output())
    }
    return sum(line[9] in inodes and line[3] != "0A" and line[1][8:] in ports for line in connections)


def memory(exporter: Exporter) -> float:
    """Return the resident memory of the process in MiB."""
    pages = Path(f"/proc/{exporter.program.process.pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize() / 2**20
