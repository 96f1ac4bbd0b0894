"""Tests of exporter.threads: results, exceptions, and a system that starts no thread."""

import errno
import threading
from pathlib import Path

import pytest

from exporter.system import files, threads
from exporter.system.threads import NoThreadError
from tests.support.system import no_new_threads


def test_a_result() -> None:
    """The work is done in a daemon thread with that name, and its result is the future's."""
    future = threads.call(threading.current_thread, name="some name")
    thread = future.result(10)

    assert (thread.name, thread.daemon) == ("some name", True)
    assert thread is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1)])
def test_an_exception(error: BaseException) -> None:
    """An exception of the work is the future's, whatever it is."""

    def fail() -> None:
        raise error

    assert threads.call(fail, name="x").exception(10) is error


def test_who_does_not_wait_any_longer() -> None:
    """A future cannot be cancelled once its thread runs, so the thread comes to its end."""
    let = threading.Event()
    future = threads.call(let.wait, name="x")
    cancelled = future.cancel()
    let.set()

    assert not cancelled
    assert future.result(10)


def test_no_thread(tmp_path: Path) -> None:
    """Where the system starts no thread the error names it; a file that needs one for its read cannot be read."""
    with no_new_threads():
        with pytest.raises(NoThreadError) as started:
            threads.start(print, "one")
        with pytest.raises(OSError, match="cannot be started") as read:
            files.read(tmp_path)

    assert str(started.value) == (
        "the thread 'one' cannot be started: can't start new thread; see the limits on processes and memory"
    )
    assert read.value.errno == errno.EAGAIN
    with pytest.raises(IsADirectoryError):
        files.read(tmp_path)
