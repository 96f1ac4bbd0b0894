"""Reads of files that may be on a hung network volume, in threads with a timeout, and a watch for changes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING, Protocol

from exporter.system import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Future
    from pathlib import Path

TIMEOUT = 5.0
"""Timeout of a read in seconds."""


class Read(Protocol):
    """Reads a file, as the function `read` does."""

    def __call__(self, path: Path, *, limit: int | None = None) -> bytes:
        """Return the content of a file, at most `limit` bytes of it."""


def read(path: Path, *, limit: int | None = None, timeout: float = TIMEOUT) -> bytes:
    """Return the content of a file, at most `limit` bytes of it, within `timeout` seconds.

    A named pipe is read to its end, and is empty without a writer. While a read of a path hangs, no other read of it is
    started: later callers wait for the first within their own timeouts.

    Raises:
        OSError: the file cannot be read, is a directory or a device, or no thread can be started to read it;
            TimeoutError when the file system does not answer.
        ValueError: the path contains a null character.

    """
    return _FILES.read(path, limit=limit, timeout=timeout)


class Budget:
    """One timeout for several reads, so that a hung volume with many files costs no more than one read."""

    def __init__(self, timeout: float = TIMEOUT, *, files: Files | None = None) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._files = files or _FILES

    def read(self, path: Path, *, limit: int | None = None) -> bytes:
        """Return the content of a file as `read` does, within what is left of the timeout."""
        try:
            return self._files.read(path, limit=limit, timeout=self._end - time.monotonic())
        except TimeoutError:
            raise _not_answering(self._timeout) from None


class Watch:
    """Compares files with the content in use; `in_use` has digests by path, None for a file that cannot be read.

    Content is compared, not times: Kubernetes replaces files, and an editor may write one in two steps. A file counts
    as complete when two checks in a row find the same.
    """

    def __init__(self, in_use: Mapping[Path, bytes | None]) -> None:
        self.in_use = in_use
        self.seen = in_use

    @property
    def changed(self) -> bool:
        """Whether the last check found other content than that in use."""
        return self.seen != self.in_use

    def agrees(self, read: Mapping[Path, bytes | None]) -> bool:
        """Return whether files that were read since the last check are unchanged, as far as it covered them."""
        return all(read.get(path, found) == found for path, found in self.seen.items())

    def look(self, budget: Budget | None = None) -> bool:
        """Check the files; return whether they are unchanged since the check before, so that they are complete."""
        before, self.seen = self.seen, digests(self.in_use, budget)
        return self.seen == before


def digests(paths: Iterable[Path], budget: Budget | None = None) -> dict[Path, bytes | None]:
    """Return a digest of the content of each file, None for one that cannot be read."""
    budget = budget or Budget()
    found: dict[Path, bytes | None] = {}
    for path in paths:
        try:
            found[path] = digest(budget.read(path))
        except (OSError, ValueError):
            found[path] = None
    return found


def digest(content: bytes) -> bytes:
    """Return the digest that identifies a content."""
    return hashlib.sha256(content).digest()


class Files:
    """Reads in progress, by path; `opener` opens a path for reading and returns its descriptor."""

    def __init__(self, opener: Callable[[Path], int]) -> None:
        self._opener = opener
        self._reading: dict[Path, Future[bytes]] = {}
        self._starting = threading.Lock()  # two threads that start a read of one path at once would both be let in

    def read(self, path: Path, *, limit: int | None, timeout: float) -> bytes:
        """Return the content of a file; see the function `read`."""
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise _not_answering(timeout)
            reading, own = self._start(path, limit)
            if not wait([reading], timeout=left).done:
                raise _not_answering(timeout)
            if own:
                return reading.result()

    def _start(self, path: Path, limit: int | None) -> tuple[Future[bytes], bool]:
        """Return the read in progress, and whether it is the caller's own: an earlier one may have old bytes."""
        with self._starting:
            reading = self._reading.get(path)
            if reading is not None and not reading.done():
                return reading, False
            self._reading[path] = started = threads.call(lambda: self._read(path, limit), name="read")
        started.add_done_callback(partial(self._forget, path))  # no circle holds the content until garbage is collected
        return started, True

    def _forget(self, path: Path, reading: Future[bytes]) -> None:
        with self._starting:
            if self._reading.get(path) is reading:
                del self._reading[path]

    def _read(self, path: Path, limit: int | None) -> bytes:
        descriptor = self._opener(path)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise OSError(errno.EINVAL, "not a regular file")
            os.set_blocking(descriptor, True)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    # Opening a named pipe without a writer must not wait for one.
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _not_answering(timeout: float) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"the file system does not respond within {timeout:g} s")


_FILES = Files(_open)
