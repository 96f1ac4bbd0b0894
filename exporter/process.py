"""Process of a command: its signals, its standard streams and its end."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from exporter.system.output import Output
from exporter.system.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from signal import Signals as Number

INTERRUPTED = "interrupted before all was done\n"
"""Message of a command that a signal ends before its work is done."""

_LAST_SECONDS = 0.5  # that the end waits for lines queued for stderr


def run(name: str, numbers: AbstractSet[Number], *, running: bool) -> NoReturn:
    """Run a command and end the process with its status, whatever its threads are doing.

    `numbers` are the signals to receive, which are blocked. They end a command that is `running` until then with
    status 0, and one that has not done its work yet with 1.
    """
    _open_standard_streams()
    errors = Output(2)
    if running:
        sys.stderr = errors.stream()  # as nobody may read what is written there

    def interrupt() -> NoReturn:
        if not running:
            errors.write(("\33[K" if os.isatty(2) else "") + INTERRUPTED)  # in the place of a bar
        end(0 if running else 1, errors)

    status = 1
    try:
        status = _run(name, Signals(numbers, interrupt), errors)
    except SystemExit as stopped:  # --help, or wrong usage
        status = stopped.code if isinstance(stopped.code, int) else 0
    except BaseException:
        import logging  # noqa: PLC0415 - `health` needs it for this only

        logging.getLogger(__name__).exception("an unexpected exception ends the process")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    end(status, errors)


def end(status: int, errors: Output) -> NoReturn:
    """End the process once the lines queued for stderr are written, or after half a second."""
    errors.flush(_LAST_SECONDS)
    os._exit(status)


def _run(name: str, signals: Signals, errors: Output) -> int:
    """Run the command; `health` alone, as loading all the others takes several times as long as its request."""
    if name == "health":
        from exporter.commands import health  # noqa: PLC0415 - see above

        return health.main(sys.argv[2:])
    from exporter import cli  # noqa: PLC0415 - see above

    return cli.main(signals=signals, errors=errors)


def _open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed, so that no connection gets its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stderr
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
