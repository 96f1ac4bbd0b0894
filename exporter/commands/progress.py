"""Progress bar of a command that polls campaigns, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

_PATIENCE = 1.0  # seconds before the bar appears
_WIDTH = 30


class Progress:
    """Progress bar for one thread, shown only on a stream that is a terminal.

    The cursor stays at its beginning, so that a log line overwrites it.
    """

    def __init__(self, stream: TextIO, monotonic: Callable[[], float]) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._begins_at = monotonic() + _PATIENCE
        self._length = 0

    def show(self, done: int, total: int) -> None:
        """Show how many are done, once the command has run for a second."""
        if total and self._monotonic() >= self._begins_at and self._stream.isatty():
            self._write(f"[{'#' * (_WIDTH * done // total):{_WIDTH}}] {done:,} of {total:,} campaigns")

    def clear(self) -> None:
        """Remove the bar."""
        if self._length:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"{text:{self._length}}\r")
        self._stream.flush()
        self._length = len(text)
