"""Tests of exporter.files: what a read returns and raises, and what one that hangs costs."""

import errno
import gc
import os
import select
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.system import files
from exporter.system.files import Budget, Files, Watch, digests
from tests.support.servers import eventually
from tests.support.system import Volume

HUNG = "the file system does not respond within"


def open_files(path: Path | None = None) -> int:
    """Return how many files this process has open, all or those of a path."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(path is None or link.readlink() == path for link in links)


def read_fully(reader: Files) -> Callable[[Path], bytes]:
    """Return what reads a whole file, however long that takes."""
    return lambda path: reader.read(path, limit=None, timeout=30)


@contextmanager
def reading(read: Callable[[Path], bytes], path: Path, *, times: int) -> Iterator[list[object]]:
    """Read a path in so many threads at once; yield the list of what they get or raise."""
    results: list[object] = []

    def collect() -> None:
        try:
            results.append(read(path))
        except OSError as error:
            results.append(error)

    with ThreadPoolExecutor(times) as pool:
        for _ in range(times):
            pool.submit(collect)
        yield results


@pytest.mark.parametrize(("limit", "expected"), [(None, b"0123456789"), (4, b"0123"), (10, b"0123456789"), (0, b"")])
def test_content(limit: int | None, expected: bytes, tmp_path: Path) -> None:
    """The whole content is returned, or its beginning up to the limit."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")

    assert expected == files.read(file, limit=limit)


def test_a_content_is_not_kept(tmp_path: Path) -> None:
    """What was read, such as a key, stays with the caller only."""
    file = tmp_path / "file"
    file.write_bytes(b"a key")
    content = files.read(file)

    def holders() -> list[object]:
        kept = gc.get_referrers(content)
        return [each for each in kept if isinstance(each, Future) or (isinstance(each, dict) and "_result" in each)]

    eventually(lambda: not holders(), what="nothing that holds the content")


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
    """A named pipe is empty without a writer; with one it is read to its end, however late that comes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    alone = files.read(pipe)
    writer = os.open(pipe, os.O_RDWR)
    with reading(files.read, pipe, times=1) as results:
        eventually(lambda: open_files(pipe) == 2, what="a reader")
        os.write(writer, b"hel")
        eventually(lambda: select.select([writer], [], [], 0)[0] == [], what="a reader that reads")
        os.write(writer, b"lo")
        os.close(writer)

    assert (alone, results) == (b"", [b"hello"])


def test_a_pipe_without_an_end(tmp_path: Path) -> None:
    """A named pipe whose writer does not close it is a timeout."""
    os.mkfifo(tmp_path / "pipe")
    with os.fdopen(os.open(tmp_path / "pipe", os.O_RDWR), "wb", 0), pytest.raises(TimeoutError):
        files.read(tmp_path / "pipe", timeout=0.05)


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
    with reading(read_fully(reader), file, times=20) as results:
        eventually(lambda: volume.opened, what="a first read")
        with pytest.raises(TimeoutError):
            reader.read(file, limit=None, timeout=0.01)
        opened_while_hung = len(volume.opened)
        volume.answer()

    assert opened_while_hung == 1
    assert results == [b"content"] * 20


def test_reads_of_one_path_never_overlap(tmp_path: Path) -> None:
    """However many threads begin to read a path at the same moment, one opens it at a time."""
    (tmp_path / "file").write_bytes(b"content")
    inside: list[Path] = []
    crowds: list[int] = []

    def open_counted(path: Path) -> int:
        inside.append(path)
        crowds.append(len(inside))
        descriptor = os.open(path, os.O_RDONLY)
        inside.remove(path)
        return descriptor

    reader = Files(open_counted)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            with reading(read_fully(reader), tmp_path / "file", times=16) as results:
                pass
            assert results == [b"content"] * 16
    finally:
        sys.setswitchinterval(interval)

    assert crowds == [1] * 160


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
    with reading(read_fully(reader), file, times=1) as results:
        volume.answer()

    assert results == [b"new"]


def test_a_budget_is_for_all_files(tmp_path: Path) -> None:
    """Several files share one timeout; when it is used up the error names the whole of it, and nothing is opened."""
    (tmp_path / "file").write_bytes(b"content")
    ample, spent = Budget(30), Budget(0)

    assert ample.read(tmp_path / "file", limit=3) == b"con"
    with pytest.raises(TimeoutError, match=f"{HUNG} 0 s"):
        spent.read(tmp_path / "file")


def test_a_change_is_noticed_when_it_is_complete(tmp_path: Path) -> None:
    """Other bytes are a change once two looks in a row find them; the same ones written again are none."""
    file = tmp_path / "file"
    file.write_bytes(b"first")
    watch = Watch(digests([file]))
    looks = []
    for content in (b"first", b"sec", b"second", b"second", b"second", b"first", b"first"):
        file.unlink()
        file.write_bytes(content)
        looks.append((watch.look(), watch.changed))

    assert looks == [
        (True, False),
        (False, True),
        (False, True),
        (True, True),
        (True, True),
        (False, False),
        (True, False),
    ]


def test_a_file_that_cannot_be_read_is_a_change(tmp_path: Path, volume: Volume) -> None:
    """A file that is away, or whose volume hangs, is a change like any other, and so is its return."""
    file, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(b"other")
    watch = Watch(digests([file, other, Path("a\0b")]))
    looks = []

    def look() -> None:
        looks.append((watch.look(Budget(0.5, files=Files(volume.open))), watch.changed))

    look()
    file.write_bytes(b"content")
    look()
    look()
    volume.hung = {other}
    look()
    volume.answer()
    file.unlink()
    look()
    look()

    assert looks == [(True, False), (False, True), (True, True), (False, True), (False, False), (True, False)]
