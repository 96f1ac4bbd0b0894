"""Output that never blocks its writer: a bounded queue, and one thread that writes it to a file descriptor."""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING, TextIO

from exporter.system import threads
from exporter.system.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer

_AT_ONCE = select.PIPE_BUF  # bytes: a pipe takes so many as a whole, so no line is cut when the process ends


class Output:
    """Bounded queue of lines for a file descriptor, at most `lines` lines and `size` bytes.

    When it is full, lines are dropped and counted until half of it is free again. Then `notice` formats the number of
    dropped lines as a line. Lines that cannot be written, as the reader is gone or a disk is full, are dropped too.
    """

    def __init__(self, descriptor: int, *, lines: int = 10_000, size: int = 4 << 20) -> None:
        self.notice: Callable[[int], str] = "{} log lines were dropped because they could not be written\n".format
        self._descriptor = descriptor
        self._most_lines = lines
        self._most_bytes = size
        # A destructor can write while its thread holds the lock: this lock can be acquired again by its holder.
        self._changed = threading.Condition(threading.RLock())
        self._queue = deque[bytes]()
        self._lines = 0
        self._bytes = 0
        self._full = False
        self._started = False
        self._dropped = 0
        self._unannounced = 0
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)

    @property
    def dropped(self) -> int:
        """The number of lines that were dropped so far."""
        return self._dropped

    def write(self, text: str) -> None:
        """Queue whole lines, or drop them. Never blocks."""
        data = text.encode(errors="backslashreplace")
        lines = data.count(b"\n")
        with self._changed:
            fits = self._lines + lines <= self._most_lines and self._bytes + len(data) <= self._most_bytes
            self._full = self._bytes > 0 and (self._full or not fits)
            if self._full:
                self._drop(lines)
            else:
                self._append(data)
        self._start()

    def stream(self) -> TextIO:
        """Return a text stream that queues each line that is written to it."""
        return io.TextIOWrapper(_Lines(self, self._descriptor), "utf-8", "backslashreplace", line_buffering=True)

    def flush(self, seconds: float) -> None:
        """Wait until the queue is written, at most `seconds`."""
        if self._start():
            with self._changed:
                self._changed.wait_for(lambda: not self._bytes, seconds)
            return
        while self._bytes and self._writable.poll(0):  # there is no thread: what can be written without blocking
            self._write_some()

    def _append(self, data: bytes) -> None:
        self._queue.append(data)
        self._lines += data.count(b"\n")
        self._bytes += len(data)
        self._changed.notify_all()

    def _drop(self, lines: int) -> None:
        self._dropped += lines
        self._unannounced += lines

    def _start(self) -> bool:
        """Start the thread unless it runs; where the system allows no thread, the next line tries again.

        Not under the lock: the new thread may run a destructor that writes before this one knows that it has started.
        """
        with self._changed:
            if self._started or not self._bytes:
                return True
            self._started = True
        try:
            threads.start(self._run, "output")
        except NoThreadError:
            self._started = False
        return self._started

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._bytes:
                    self._changed.wait()
            self._write_some()

    def _write_some(self) -> None:
        """Write the first lines of the queue, and the notice when lines were dropped and it has room again."""
        data = self._first()
        unwritten = self._send(data)
        with self._changed:
            self._lines -= data.count(b"\n")
            self._bytes -= len(data)
            self._drop(unwritten.count(b"\n"))
            if self._lines <= self._most_lines // 2 and self._bytes <= self._most_bytes // 2:
                self._full = False
            announced = 0 if self._full or unwritten else self._unannounced
            self._unannounced -= announced
            self._changed.notify_all()
        if announced:
            notice = self.notice(announced).encode()
            with self._changed:
                self._append(notice)

    def _first(self) -> bytes:
        with self._changed:
            taken = [self._queue.popleft()]
            size = len(taken[0])
            while self._queue and (size := size + len(self._queue[0])) <= _AT_ONCE:
                taken.append(self._queue.popleft())
        return b"".join(taken)

    def _send(self, data: bytes) -> bytes:
        """Write bytes, however long that takes; return what the descriptor refuses."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                self._writable.poll()
            except OSError:
                return data
        return b""


class _Lines(io.RawIOBase):
    """The bytes of a text stream on their way into the queue."""

    name = "<stderr>"

    def __init__(self, output: Output, descriptor: int) -> None:
        self._output = output
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer) -> int:
        written = bytes(data)
        self._output.write(written.decode())
        return len(written)
