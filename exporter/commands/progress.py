"""How far a command is that asks one campaign after the other, shown on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

_PATIENCE = 1.0  # seconds: what is over sooner needs no bar
_WIDTH = 30


class Progress:
    """A bar, for one thread, on a stream that is a terminal; on any other there is nothing.

    The cursor waits at its beginning, so that a line of the log takes its place.
    """

    def __init__(self, stream: TextIO, monotonic: Callable[[], float]) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._begins_at = monotonic() + _PATIENCE
        self._length = 0

    def show(self, done: int, total: int) -> None:
        """Show that so many are done, once the command has run for a second."""
        if total and self._monotonic() >= self._begins_at and self._stream.isatty():
            self._write(f"[{'#' * (_WIDTH * done // total):{_WIDTH}}] {done:,} of {total:,} campaigns")

    def clear(self) -> None:
        """Take the bar away."""
        if self._length:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"{text:{self._length}}\r")
        self._stream.flush()
        self._length = len(text)
