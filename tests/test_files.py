"""Tests of exporter.files: what a read returns and raises, and what one that hangs costs."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter import files
from exporter.files import Budget, Files
from tests.servers import eventually
from tests.system import Volume

HUNG = "the file system does not answer within"


def open_files() -> int:
    """Return how many files this process has open."""
    return len([*Path("/proc/self/fd").iterdir()])


@contextmanager
def reading(reader: Files, path: Path, *, times: int) -> Iterator[list[object]]:
    """Read a path in so many threads at once; yields the list of what they get or raise."""
    results: list[object] = []

    def read() -> None:
        try:
            results.append(reader.read(path, limit=None, timeout=30))
        except OSError as error:
            results.append(error)

    with ThreadPoolExecutor(times) as pool:
        for _ in range(times):
            pool.submit(read)
        yield results


@pytest.mark.parametrize(("limit", "expected"), [(None, b"0123456789"), (4, b"0123"), (10, b"0123456789"), (0, b"")])
def test_content(limit: int | None, expected: bytes, tmp_path: Path) -> None:
    """The whole content is returned, or its beginning up to the limit."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")

    assert expected == files.read(file, limit=limit)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory, a device and a path that is none raise what says so, and leave nothing open."""
    open_before = open_files()
    got: list[object] = []
    for path in (tmp_path / "missing", tmp_path, Path("/dev/null"), Path("/dev/zero"), Path("a\0b")):
        with pytest.raises((OSError, ValueError)) as caught:
            files.read(path)
        got.append(caught.value.errno if isinstance(caught.value, OSError) else ValueError)

    assert got == [errno.ENOENT, errno.EISDIR, errno.EINVAL, errno.EINVAL, ValueError]
    assert open_files() <= open_before


def test_a_pipe(tmp_path: Path) -> None:
    """A named pipe is empty without a writer and before the first byte, and then has what was written."""
    os.mkfifo(tmp_path / "pipe")
    alone = files.read(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        silent = files.read(tmp_path / "pipe")
        os.write(writer, b"hello")
        written = files.read(tmp_path / "pipe", limit=5)
    finally:
        os.close(writer)

    assert (alone, silent, written) == (b"", b"", b"hello")


def test_a_read_that_hangs(volume: Volume, tmp_path: Path) -> None:
    """A file system that does not answer is a timeout in words for a log line, at each further read, too."""
    volume.hung = {tmp_path}
    reader = Files(volume.open)

    for _ in range(3):
        with pytest.raises(TimeoutError) as caught:
            reader.read(tmp_path, limit=None, timeout=0.01)
        assert caught.value.strerror == f"{HUNG} 0.01 s"


def test_a_hung_path_has_one_thread(volume: Volume, tmp_path: Path) -> None:
    """However many read a path that hangs, one thread waits for it; all get its content when the volume answers."""
    file = tmp_path / "file"
    file.write_bytes(b"content")
    volume.hung = {file}
    reader = Files(volume.open)
    with reading(reader, file, times=20) as results:
        eventually(lambda: volume.opened, what="a first read")
        with pytest.raises(TimeoutError):
            reader.read(file, limit=None, timeout=0.01)
        opened_while_hung = len(volume.opened)
        volume.answer()

    assert opened_while_hung == 1
    assert results == [b"content"] * 20


def test_another_path_does_not_wait(volume: Volume, tmp_path: Path) -> None:
    """A hung path delays no read of another one."""
    (tmp_path / "file").write_bytes(b"content")
    volume.hung = {tmp_path / "hung"}
    reader = Files(volume.open)
    with pytest.raises(TimeoutError):
        reader.read(tmp_path / "hung", limit=None, timeout=0.01)

    assert reader.read(tmp_path / "file", limit=None, timeout=30) == b"content"


def test_bytes_are_not_older_than_the_read(volume: Volume, tmp_path: Path) -> None:
    """A read that begins while an earlier one hangs does not return that one's bytes: the file may have changed."""
    file = tmp_path / "file"
    contents = iter([b"old", b"new"])

    def open_next(path: Path) -> int:
        file.write_bytes(next(contents))
        return volume.open(path)

    volume.hung = {file}
    reader = Files(open_next)
    with pytest.raises(TimeoutError):
        reader.read(file, limit=None, timeout=0.01)
    with reading(reader, file, times=1) as results:
        volume.answer()

    assert results == [b"new"]


def test_a_budget_is_for_all_files(tmp_path: Path) -> None:
    """Several files share one timeout; when it is used up the error names the whole of it, and nothing is opened."""
    (tmp_path / "file").write_bytes(b"content")
    ample, spent = Budget(30), Budget(0)

    assert ample.read(tmp_path / "file", limit=3) == b"con"
    with pytest.raises(TimeoutError, match=f"{HUNG} 0 s"):
        spent.read(tmp_path / "file")
