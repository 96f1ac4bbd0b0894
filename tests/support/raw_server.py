"""A server whose every byte a test chooses, and clients for it."""

import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit

from exporter.braze.transport import Reply, Transport
from exporter.system import threads
from exporter.system.threads import NoThreadError
from tests.support.servers import ROOT

KEY = "Bearer simulated-braze-key"
TARGET = "/campaigns/list?page=0"
LONG = 30.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Serve = Callable[[socket.socket], None]
"""Handles a request on a connection; the server closes the connection afterwards."""


@dataclass(frozen=True)
class RawServer:
    """A raw server: its URL, the requests received, and an entry for each connection that has ended."""

    url: str
    requests: list[bytes] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)


class RefusedOnce:
    """Starts threads, but the first is refused as the system does at a limit; `names` are all that were wanted."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, run: Callable[[], object], name: str) -> None:
        """Start a thread, or raise NoThreadError."""
        self.names.append(name)
        if len(self.names) == 1:
            raise NoThreadError(name, "none is left")
        threads.start(run, name)


@contextmanager
def raw_server(serve: Serve, *, certificate: Path | None = None) -> Iterator[RawServer]:
    """Serve one request on each connection, one connection at a time, with TLS if there is a certificate."""
    context = _server_context(certificate)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        server = RawServer(f"{'https' if context else 'http'}://127.0.0.1:{port}")

        def run() -> None:
            while True:
                connection, _ = listener.accept()
                connection.settimeout(30)  # a client that never disconnects fails its test instead of hanging it
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
    """Send these bytes, then end the connection without a reset."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    return serve


def hangs(connection: socket.socket) -> None:
    """Wait until the client disconnects."""
    while connection.recv(65_536):
        pass


def stalls(head: bytes) -> Serve:
    """Send the head, then nothing until the client disconnects."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(head)
        hangs(connection)

    return serve


def leads_to(url: str) -> Serve:
    """Act as an HTTP proxy for CONNECT: connect to an address, then relay bytes until one side disconnects."""

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
    """Send the head, then `drop` every 0.05 s until the client disconnects."""

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
def deaf(address: str, port: int = 0) -> Iterator[int]:
    """Listen without accepting, with a full queue, so that connecting hangs; yield the port."""
    with ExitStack() as stack:
        listener = stack.enter_context(closing(socket.create_server((address, port), backlog=0)))
        for _ in range(4):
            client = stack.enter_context(closing(socket.socket()))
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def free_port(*addresses: str) -> int:
    """Return a port that is free on all of these addresses."""
    while True:
        with ExitStack() as stack, suppress(OSError):  # it is taken at one of them
            port = 0
            for address in addresses:
                listener = stack.enter_context(closing(socket.create_server((address, port))))
                port = int(listener.getsockname()[1])
            return port


Answer = Callable[[str, socket.socket], object]
"""Writes the response to a request for a target; returns False to close the connection."""


@dataclass(frozen=True, slots=True)
class AnsweringServer:
    """A server with any number of connections: its URL, and the targets requested on each connection, in order."""

    url: str
    connections: list[list[str]] = field(default_factory=list)


@contextmanager
def answering(answer: Answer, *, certificate: Path | None = None) -> Iterator[AnsweringServer]:
    """Respond to every request, each connection in a thread, with TLS if there is a certificate."""
    context = _server_context(certificate)

    class Handler(StreamRequestHandler):
        disable_nagle_algorithm = True

        def setup(self) -> None:
            if context is not None:
                self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def handle(self) -> None:
            targets: list[str] = []
            server.connections.append(targets)
            with suppress(OSError), closing(self.connection):
                while line := self.rfile.readline():
                    while self.rfile.readline().strip():
                        pass
                    targets.append(line.split()[1].decode())
                    if answer(targets[-1], self.connection) is False:
                        return

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        server = AnsweringServer(f"{'https' if context else 'http'}://127.0.0.1:{listener.server_address[1]}")
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


def _server_context(certificate: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def make_certificate(openssl: Path, folder: Path) -> Path:
    """Make a self-signed certificate for 127.0.0.1 and braze.invalid; the returned file also contains its key."""
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
    """Send one request over a new transport."""
    with closing(Transport(url, headers={}, connections=8)) as transport:
        return get(transport, timeout=timeout)


def get(transport: Transport, target: str = TARGET, *, timeout: float = LONG) -> Reply:
    """Request a target."""
    return transport.get(target, authorization=KEY, timeout=timeout, before_large=lambda _: None)


ELSEWHERE = """
import sys
from exporter.braze.transport import Transport, TransportError
url, key, timeout, *targets = sys.argv[1:]
transport = Transport(url, headers={}, connections=8)
for target in targets:
    try:
        reply = transport.get(target, authorization=key, timeout=float(timeout), before_large=lambda _: None)
        print(reply.status, reply.body.decode())
    except TransportError as error:
        print(type(error).__name__, error)
"""


def ask_elsewhere(
    url: str,
    environment: Mapping[str, str],
    home: Path,
    *,
    targets: Sequence[str] = (TARGET,),
    timeout: float = 2 * LONG,
) -> str:
    """Send requests from a process with only this environment.

    Return a line for each: the status and the body, or the kind of error and its text.
    """
    command = [sys.executable, "-c", ELSEWHERE, url, KEY, str(timeout), *targets]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **environment}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=4 * LONG
    )
    assert done.stderr == ""
    return done.stdout.strip()
