"""Surroundings of a command: its signals, its log, stdout, and the errors that end it with a status."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporter.system.output import Output
    from exporter.system.signals import Signals


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The process's signals, None where it receives none, and the output to which the log is written."""

    signals: Signals | None
    errors: Output

    def on_stop(self, stop: Callable[[], None]) -> None:
        """Call `stop` from now on when a signal stops the command."""
        if self.signals is not None:
            self.signals.on_stop = stop


class CommandError(Exception):
    """The command cannot do its work: the reason, in words for a person, and the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class UsageError(Exception):
    """Flags that do not fit together, in words for a person."""


def print_lines(lines: Sequence[str]) -> None:
    """Write lines to stdout. Raises CommandError."""
    write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))


def write(content: bytes) -> None:
    """Write all of `content` to stdout. Raises CommandError."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise CommandError(f"stdout: cannot be written: {error.strerror}") from None
