"""Signals, received by a thread of their own, so that they work whatever other threads do.

Python runs a handler in the main thread only, between two of its steps. There it would wait for an import, name
resolution or a write to end, and its exception could be lost in a destructor. A blocked signal stays pending until the
thread receives it, in process 1, too.
"""

from __future__ import annotations

import signal
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from concurrent.futures import Future


class Signals:
    """Receiver of signals that are blocked in all threads: SIGHUP, and others, which all stop the process.

    The first of the others calls `on_stop` in the receiving thread; later signals are ignored. Each SIGHUP before it
    adds an item to `hangups`: a request for a reload whose result nobody waits for.

    Raises:
        RuntimeError: the system allows no thread.

    """

    def __init__(self, numbers: AbstractSet[signal.Signals], on_stop: Callable[[], None]) -> None:
        self.on_stop = on_stop
        self.hangups: SimpleQueue[Future[str | None] | None] = SimpleQueue()
        self._numbers = numbers
        threading.Thread(target=self._receive, name="signals", daemon=True).start()

    def _receive(self) -> None:
        while signal.sigwait(self._numbers) == signal.SIGHUP:
            self.hangups.put(None)
        self.on_stop()
