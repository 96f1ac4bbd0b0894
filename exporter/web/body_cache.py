"""Cache of the encoded campaign part of /metrics, per format and content coding.

A scrape sends the cached body and appends the small rest, which changes with every scrape. A gzip response is one
member, as some clients lose further members. The cached deflate stream ends with a full flush, so that the stream of
the rest can follow, and then the checksum of both.
"""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from isal import isal_zlib

from exporter.exposition import head
from exporter.system import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exporter.exposition import Exposition, Format, Snapshot

REMEMBERED = 300.0
"""Seconds after its last request for which the body of an encoding is kept up to date."""

_SHARE = 0.05  # maximum share of a core
_SHORTEST_PAUSE = 1.0  # seconds between two refreshes
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, by no system in particular
_RAW_DEFLATE = -15


class Encoding(NamedTuple):
    """Encoding of a body: its exposition format, and whether it is compressed."""

    form: Format
    gzip: bool


@dataclass(frozen=True, slots=True)
class CachedBody:
    """Start of a response's body: pieces to be joined, `length` bytes in all, of that `version` of the exposition.

    A compressed one has one piece; `checksum` and `size` are those of the uncompressed text.
    """

    version: int
    pieces: Sequence[bytes]
    length: int
    checksum: int | None = None
    size: int = 0

    def end(self, rest: bytes) -> bytes:
        """Return the bytes that follow the pieces and append `rest` to the text."""
        if self.checksum is None:
            return rest
        compressor = isal_zlib.compressobj(wbits=_RAW_DEFLATE)
        checksum = isal_zlib.crc32(rest, self.checksum)
        trailer = struct.pack("<LL", checksum, (self.size + len(rest)) % 2**32)
        return compressor.compress(rest) + compressor.flush() + trailer


class BodyCache:
    """Bodies of the encodings that were requested in the last five minutes.

    Once started, a thread encodes changes, at most once a second and with at most a twentieth of a core. Any thread may
    call `get` and `make`. `fatal` is called when the thread ends by an exception.
    """

    def __init__(
        self, exposition: Exposition, *, monotonic: Callable[[], float], fatal: Callable[[BaseException], None]
    ) -> None:
        self._exposition = exposition
        self._monotonic = monotonic
        self._fatal = fatal
        self._requested: dict[Encoding, float] = {}
        self._bodies: dict[Encoding, CachedBody] = {}
        self._storing = threading.Lock()  # held from the comparison of versions until the body is stored
        self._stopped = threading.Event()

    def get(self, encoding: Encoding) -> CachedBody | None:
        """Return the cached body, None where there is none or it is invalid; from now on it is kept up to date."""
        self._requested[encoding] = self._monotonic()
        body = self._bodies.get(encoding)
        return body if body is not None and body.version >= self._exposition.oldest_valid else None

    def make(self, encoding: Encoding) -> CachedBody:
        """Encode the current exposition, cache the body and return it."""
        bodies = _encode([encoding], self._exposition.snapshot())
        self._store(bodies)
        return bodies[encoding]

    def refresh(self) -> None:
        """Encode stale bodies again, and remove those that are no longer requested."""
        oldest = self._monotonic() - REMEMBERED
        stale = []
        for encoding, requested_at in list(self._requested.items()):
            body = self._bodies.get(encoding)
            if requested_at < oldest:
                del self._requested[encoding]
                self._bodies.pop(encoding, None)
            elif body is None or body.version != self._exposition.version:
                stale.append(encoding)
        if stale:
            self._store(_encode(stale, self._exposition.snapshot()))

    def start(self) -> None:
        """Refresh in a thread until stopped. Raises NoThreadError."""
        threads.start(self._run, "body cache")

    def stop(self) -> None:
        """Signal the thread to end, without waiting for it."""
        self._stopped.set()

    def _store(self, bodies: Mapping[Encoding, CachedBody]) -> None:
        """Replace older bodies, never newer ones, as counters must not go back."""
        with self._storing:
            for encoding, body in bodies.items():
                known = self._bodies.get(encoding)
                if known is None or known.version <= body.version:
                    self._bodies[encoding] = body

    def _run(self) -> None:
        pause = _SHORTEST_PAUSE
        try:
            while not self._stopped.wait(pause):
                before = time.thread_time()
                self.refresh()
                pause = pause_after(time.thread_time() - before)
        except BaseException as error:  # noqa: BLE001 - scrapes would return old numbers forever
            self._fatal(error)


def pause_after(cpu: float) -> float:
    """Return the pause, in seconds, after a refresh that took `cpu` seconds of CPU."""
    return max(_SHORTEST_PAUSE, cpu / _SHARE)


def _encode(encodings: Sequence[Encoding], snapshot: Snapshot) -> dict[Encoding, CachedBody]:
    """Return the bodies of a snapshot in each of the encodings."""
    bodies = {}
    for encoding in encodings:
        if not encoding.gzip:
            pieces = list(snapshot.pieces(encoding.form))
            bodies[encoding] = CachedBody(snapshot.version, pieces, sum(map(len, pieces)))
    members = [_Member(encoding) for encoding in encodings if encoding.gzip]
    if members:
        for family, text in snapshot.drain():
            for member in members:
                member.add(head(family, member.encoding.form))
                member.add(text)
    return bodies | {member.encoding: member.body(snapshot.version) for member in members}


class _Member:
    """Encoder of the start of a gzip member."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self._compressor = isal_zlib.compressobj(wbits=_RAW_DEFLATE)
        self._compressed = [_GZIP_HEAD]
        self._checksum = self._size = 0

    def add(self, text: bytes) -> None:
        self._checksum = isal_zlib.crc32(text, self._checksum)
        self._size += len(text)
        self._compressed.append(self._compressor.compress(text))

    def body(self, version: int) -> CachedBody:
        body = b"".join((*self._compressed, self._compressor.flush(isal_zlib.Z_FULL_FLUSH)))
        return CachedBody(version, (body,), len(body), self._checksum, self._size)
