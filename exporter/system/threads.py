"""Daemon threads, which do not delay the end of the process, and the error when one cannot be started."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class NoThreadError(OSError):
    """The system starts no further thread: the limit on processes (pids), or the memory, is used up."""

    def __init__(self, name: str, reason: str) -> None:
        text = f"the thread {name!r} cannot be started: {reason}; see the limits on processes and memory"
        super().__init__(errno.EAGAIN, text)

    def __str__(self) -> str:
        return str(self.strerror)


Start: TypeAlias = "Callable[[Callable[[], object], str], None]"
"""Starts a function in a daemon thread of that name; raises NoThreadError."""


def start(work: Callable[[], object], name: str) -> None:
    """Run `work` in a new daemon thread; raises NoThreadError."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError as error:
        reason = str(error)
    else:
        return
    raise NoThreadError(name, reason)  # out here it is the innermost error, as those who explain errors look for it


def call(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """Run `work` in a new daemon thread; return its result, or its exception, as a future. Raises NoThreadError."""
    future = Future[Result]()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            future.set_exception(error)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()  # a caller that stops waiting does not cancel it
    start(run, name)
    return future
