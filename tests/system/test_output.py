"""Tests of exporter.output: real pipes, terminals and files, with and without somebody who reads."""

import fcntl
import gc
import os
import pty
import resource
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from exporter.system.output import Output
from tests.support.servers import eventually

LINE = f"{'x' * 99}\n"


@contextmanager
def piped(*, lines: int = 10_000, size: int = 4 << 20, blocking: bool = True) -> Iterator[tuple[int, int, Output]]:
    """Yield the end to read of a pipe that holds 4 KiB, its other end and an output to that."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, blocking)
    output = Output(writer, lines=lines, size=size)
    try:
        yield reader, writer, output
    finally:
        with suppress(OSError):
            os.close(reader)
        output.flush(20)  # nothing is written any more when the number of the descriptor is another's
        os.close(writer)


def read(descriptor: int, ends_with: str) -> str:
    """Read until the text ends as expected."""
    os.set_blocking(descriptor, False)
    parts: list[bytes] = []

    def complete() -> bool:
        try:
            parts.append(os.read(descriptor, 65536))
        except BlockingIOError:
            return False
        return b"".join(parts).decode().endswith(ends_with)

    eventually(complete, what=f"a text that ends with {ends_with!r}")
    return b"".join(parts).decode()


def test_lines_are_written_in_order() -> None:
    """What is written arrives, in the order in which it was written, whatever characters it has."""
    with piped() as (reader, _, output):
        lines = [f"{number} ü 🛒 \ud800\n" for number in range(1000)]
        for line in lines:
            output.write(line)

        assert read(reader, "999 ü 🛒 \\ud800\n") == "".join(lines).replace("\ud800", "\\ud800")
        assert output.dropped == 0


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("limits", [{"lines": 100}, {"size": 100 * len(LINE)}])
def test_what_nobody_reads_is_dropped(limits: dict[str, int], blocking: bool) -> None:  # noqa: FBT001 - a parameter
    """A writer never waits; what the queue has no room for is counted, and announced once when there is a reader."""
    with piped(**limits, blocking=blocking) as (reader, _, output):
        for _ in range(1000):
            output.write(LINE)

        before = resource.getrusage(resource.RUSAGE_SELF)
        output.flush(0.3)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.2  # it waits
        assert 1000 - 150 <= output.dropped <= 1000 - 100  # some lines are in the pipe
        dropped = output.dropped
        notice = f"{dropped} log lines were dropped because they could not be written\n"
        assert read(reader, notice) == LINE * (1000 - dropped) + notice
        output.write("and on\n")
        assert read(reader, "on\n") == "and on\n"
        assert output.dropped == dropped


def test_a_full_queue_takes_lines_again_when_half_of_it_is_free() -> None:
    """Until then lines are dropped, so that they are missing in few places, and nothing is announced."""
    line = f"{'x' * 1023}\n"  # four make a full pipe
    with piped(lines=40) as (reader, _, output):
        for _ in range(60):
            output.write(line)
        eventually(lambda: pending(reader), what="lines in the pipe")
        before = output.dropped

        for _ in range(2):  # at most eight of 36 to 40 lines leave the queue
            assert os.read(reader, 4096).endswith(b"\n")
            eventually(lambda: pending(reader), what="lines in the pipe")
            output.write(line)
        assert output.dropped == before + 2

        assert read(reader, "written\n").count("log lines were dropped") == 1


def pending(descriptor: int) -> int:
    """Return how many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_drops_are_announced_where_the_lines_are_missing() -> None:
    """With a reader that is too slow, the numbers announced add up to what is missing, and are few."""
    with piped(lines=100) as (reader, _, output):
        output.notice = "{} dropped\n".format
        parts: list[str] = []
        for number in range(2000):
            output.write(f"{number:99}\n")
            if number % 10 == 9:
                parts.append(os.read(reader, 400).decode() if number > 500 else "")
        output.write("end\n")
        os.set_blocking(reader, False)

        def everything() -> bool:
            with suppress(BlockingIOError):
                parts.append(os.read(reader, 65536).decode())
            numbers = [line for line in "".join(parts).split("\n") if line]
            announced = [int(line.split()[0]) for line in numbers if line.endswith(" dropped")]
            return sum(announced) == output.dropped > 0 and len(numbers) == 2001 + len(announced) - sum(announced)

        eventually(everything, what="every line, or the number of those that are missing")


def test_a_reader_that_is_gone() -> None:
    """Without a reader lines are dropped and counted, without an exception and without work in between."""
    with piped() as (reader, _, output):
        os.close(reader)
        for _ in range(10):
            output.write(LINE)

        eventually(lambda: output.dropped == 10, what="ten dropped lines")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        output.flush(0.3)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 0.2


def test_a_full_disk() -> None:
    """What a full disk refuses is counted like what nobody reads."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        output = Output(descriptor)
        output.write(LINE * 3)

        eventually(lambda: output.dropped == 3, what="three dropped lines")
    finally:
        os.close(descriptor)


def test_a_terminal_that_is_stopped() -> None:
    """A terminal that was stopped with Ctrl-S holds up nobody, and shows what fits when it goes on."""
    main, terminal = pty.openpty()
    try:
        os.write(main, b"\x13")
        output = Output(terminal, lines=100)
        for _ in range(1000):
            output.write(LINE)

        assert output.dropped >= 800
        os.write(main, b"\x11")
        assert "log lines were dropped" in read(main, "written\r\n")
    finally:
        os.close(main)
        os.close(terminal)


def test_a_line_is_never_cut() -> None:
    """What is in the pipe when nothing more is written ends with a whole line."""
    with piped() as (reader, _, output):
        for number in range(1000):
            output.write(f"{number}: {'x' * (number % 50)}\n")
        output.flush(0.1)

        os.set_blocking(reader, False)
        assert os.read(reader, 4096).endswith(b"\n")


def test_flush() -> None:
    """A flush returns when all is written, and in time when that cannot be."""
    with piped() as (reader, _, output):
        output.write(LINE)
        output.flush(60)
        assert os.read(reader, 4096).decode() == LINE

        for _ in range(100):
            output.write(LINE)
        began = time.monotonic()
        output.flush(0.01)
        assert time.monotonic() - began < 10
        assert os.read(reader, 4096)


def test_one_line_that_is_larger_than_the_queue() -> None:
    """A line of any size is written when nothing else is queued, and the queue goes on after it."""
    with piped(size=1000) as (reader, _, output):
        output.write(f"{LINE[:-1] * 100}\n")
        assert read(reader, "\n") == f"{LINE[:-1] * 100}\n"

        output.flush(60)
        output.write(LINE)
        assert read(reader, "\n") == LINE


def test_no_thread_can_be_started(tmp_path: Path) -> None:
    """Where the system allows no thread, lines wait, a later one tries again, and a flush writes without a thread."""
    file = tmp_path / "log"
    before = threading.stack_size(2**46)  # more than any address space has
    try:
        with file.open("wb") as log:
            output = Output(log.fileno())
            output.write("first\n")
            assert file.read_text(encoding="utf-8") == ""
            output.flush(0)
            assert file.read_text(encoding="utf-8") == "first\n"

            output.write("second\n")
            threading.stack_size(before)
            output.write("third\n")
            output.flush(60)
            assert file.read_text(encoding="utf-8") == "first\nsecond\nthird\n"
    finally:
        threading.stack_size(before)


def test_a_destructor_that_writes() -> None:
    """A destructor that runs while its thread writes can write, too."""
    with piped() as (reader, _, output):
        thresholds = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for _ in range(50):
                Dying(output)
                output.write("alive\n")
            output.write("end\n")
        finally:
            gc.set_threshold(*thresholds)

        text = read(reader, "end\n")
        assert (text.count("alive\n"), text.count("dead\n")) == (50, 50)


class Dying:
    """Refers to itself, so that it is found by the garbage collector alone."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._self = self

    def __del__(self) -> None:
        self._output.write("dead\n")


def test_stream() -> None:
    """A stream queues whole lines, and says of its descriptor what the descriptor is."""
    with piped() as (reader, writer, output):
        stream = output.stream()
        print("one", "line", file=stream)
        stream.write("no line")

        assert read(reader, "\n") == "one line\n"
        assert (stream.fileno(), stream.isatty()) == (writer, False)
        stream.flush()
        assert read(reader, "line") == "no line"
