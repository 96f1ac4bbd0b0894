"""The large part of an answer, ready before it is asked for: what is shown of the campaigns, joined and compressed.

A scrape sends it and adds what is small and of that moment. A gzip answer stays one member, as some clients lose what
comes after the first: the deflate stream of the ready part ends at a byte with no more to refer back to (a full flush),
so that of the rest can follow, and then the checksum of both.
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
"""Seconds for which an encoding that was asked for is made ready."""

_SHARE = 0.05  # of a core, at most
_SHORTEST_PAUSE = 1.0  # seconds between two rounds
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, by no system in particular
_RAW_DEFLATE = -15


class Encoding(NamedTuple):
    """A form of an answer: which format, and whether it is compressed."""

    form: Format
    gzip: bool


@dataclass(frozen=True, slots=True)
class CachedBody:
    """The ready part of an answer: pieces to be joined, `length` bytes in all.

    Where it is compressed there is one piece; `checksum` and `size` are those of what was compressed.
    """

    version: int
    pieces: Sequence[bytes]
    length: int
    checksum: int | None = None
    size: int = 0

    def end(self, rest: bytes) -> bytes:
        """Return what follows the pieces, so that the answer, or what was compressed, ends with the rest."""
        if self.checksum is None:
            return rest
        compressor = isal_zlib.compressobj(wbits=_RAW_DEFLATE)
        checksum = isal_zlib.crc32(rest, self.checksum)
        trailer = struct.pack("<LL", checksum, (self.size + len(rest)) % 2**32)
        return compressor.compress(rest) + compressor.flush() + trailer


class BodyCache:
    """The ready parts of those encodings that were asked for lately.

    Once started, it makes them anew when something has changed, at most once a second and with at most a twentieth
    of a core. Any thread may ask. `fatal` is called when its own thread ends by an exception.
    """

    def __init__(
        self, exposition: Exposition, *, monotonic: Callable[[], float], fatal: Callable[[BaseException], None]
    ) -> None:
        self._exposition = exposition
        self._monotonic = monotonic
        self._fatal = fatal
        self._asked: dict[Encoding, float] = {}
        self._parts: dict[Encoding, CachedBody] = {}
        self._keeping = threading.Lock()  # between comparing versions and putting a part in its place
        self._stopped = threading.Event()

    def part(self, encoding: Encoding) -> CachedBody | None:
        """Return what is ready, None where that is nothing or out of date; from now on it is kept ready."""
        self._asked[encoding] = self._monotonic()
        part = self._parts.get(encoding)
        return part if part is not None and part.version >= self._exposition.oldest_valid else None

    def make(self, encoding: Encoding) -> CachedBody:
        """Return what is shown at present."""
        parts = _parts([encoding], self._exposition.snapshot())
        self._keep(parts)
        return parts[encoding]

    def refresh(self) -> None:
        """Make anew what has changed, and forget what nobody asks for."""
        oldest = self._monotonic() - REMEMBERED
        outdated = []
        for encoding, asked_at in list(self._asked.items()):
            part = self._parts.get(encoding)
            if asked_at < oldest:
                del self._asked[encoding]
                self._parts.pop(encoding, None)
            elif part is None or part.version != self._exposition.version:
                outdated.append(encoding)
        if outdated:
            self._keep(_parts(outdated, self._exposition.snapshot()))

    def start(self) -> None:
        """Keep ready what is asked for, until stopped. Raises NoThreadError."""
        threads.start(self._run, "body cache")

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stopped.set()

    def _keep(self, parts: Mapping[Encoding, CachedBody]) -> None:
        """Put parts in the place of older ones, never of newer ones: counters must not go back."""
        with self._keeping:
            for encoding, part in parts.items():
                known = self._parts.get(encoding)
                if known is None or known.version <= part.version:
                    self._parts[encoding] = part

    def _run(self) -> None:
        pause = _SHORTEST_PAUSE
        try:
            while not self._stopped.wait(pause):
                before = time.thread_time()
                self.refresh()
                pause = pause_after(time.thread_time() - before)
        except BaseException as error:  # noqa: BLE001 - scrapes would show old numbers for good
            self._fatal(error)


def pause_after(cpu: float) -> float:
    """Return for how many seconds nothing is made after a round that took so many seconds of CPU."""
    return max(_SHORTEST_PAUSE, cpu / _SHARE)


def _parts(encodings: Sequence[Encoding], snapshot: Snapshot) -> dict[Encoding, CachedBody]:
    """Return the parts of what is shown, in each of the encodings."""
    parts = {}
    for encoding in encodings:
        if not encoding.gzip:
            pieces = list(snapshot.pieces(encoding.form))
            parts[encoding] = CachedBody(snapshot.version, pieces, sum(map(len, pieces)))
    members = [_Member(encoding) for encoding in encodings if encoding.gzip]
    if members:
        for family, text in snapshot.drain():
            for member in members:
                member.add(head(family, member.encoding.form))
                member.add(text)
    return parts | {member.encoding: member.part(snapshot.version) for member in members}


class _Member:
    """The beginning of a gzip member."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self._compressor = isal_zlib.compressobj(wbits=_RAW_DEFLATE)
        self._compressed = [_GZIP_HEAD]
        self._checksum = self._size = 0

    def add(self, text: bytes) -> None:
        self._checksum = isal_zlib.crc32(text, self._checksum)
        self._size += len(text)
        self._compressed.append(self._compressor.compress(text))

    def part(self, version: int) -> CachedBody:
        body = b"".join((*self._compressed, self._compressor.flush(isal_zlib.Z_FULL_FLUSH)))
        return CachedBody(version, (body,), len(body), self._checksum, self._size)
