"""HTTP client with little overhead, so that differences between servers stay visible: it reads into one buffer."""

import http
import re
import socket
from urllib.parse import urlsplit

_START = 1 << 20  # bytes of the buffer at first
_TIMEOUT = 300.0  # seconds of silence
_STATUS = re.compile(rb"HTTP/1\.([01]) (\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_GZIP = re.compile(rb"\r\ncontent-encoding: *gzip", re.IGNORECASE)


class Client:
    """Requests one page repeatedly, as Prometheus does, over one connection if the server keeps it alive."""

    def __init__(self, url: str, path: str, *, gzip: bool, accept: str = "text/plain;version=0.0.4") -> None:
        address = urlsplit(url)
        self._address = (str(address.hostname), address.port or 80)
        encoding = "gzip" if gzip else "identity"
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: {accept}\r\nAccept-Encoding: {encoding}\r\n\r\n"
        ).encode()
        self._gzip = gzip
        self._buffer = bytearray(_START)
        self._connection: socket.socket | None = None

    def get(self) -> memoryview:
        """Return the body as received, valid until the next call; raises SystemExit unless the status code is 200."""
        if self._connection is None:
            self._connection = socket.create_connection(self._address, timeout=_TIMEOUT)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(self._request)
        received = 0
        while (start := self._buffer.find(b"\r\n\r\n", 0, received) + 4) < 4:  # noqa: PLR2004 - the length of that
            received += self._receive(self._connection, received)
        head = bytes(self._buffer[:start])
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if status is None or int(status[2]) != http.HTTPStatus.OK or length is None:
            raise SystemExit(f"expected status 200 and a Content-Length, got {head!r}")
        if bool(_GZIP.search(head)) != self._gzip:
            raise SystemExit(f"expected an answer {'with' if self._gzip else 'without'} gzip, got {head!r}")
        end = start + int(length[1])
        if end > len(self._buffer):
            self._buffer += bytes(end - len(self._buffer))
        while received < end:
            received += self._receive(self._connection, received)
        if status[1] == b"0":
            self.close()
        return memoryview(self._buffer)[start:end].toreadonly()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _receive(self, connection: socket.socket, start: int) -> int:
        with memoryview(self._buffer) as whole, whole[start:] as room:
            size = connection.recv_into(room)
        if not size:
            raise SystemExit(f"expected the rest of an answer from {self._address}, got the end of the connection")
        return size
