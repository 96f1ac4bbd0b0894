"""An operating system that starts no thread, whose files hang, or whose libraries fail."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BROKEN = """
import os
import threading
import zlib
from zlib import *

def compressobj(**settings):
    if threading.current_thread().name == os.environ["BREAKS"] and os.path.exists(os.environ["BREAKS_WITH"]):
        raise SystemError("broken")
    if threading.current_thread().name == os.environ["HANGS"]:
        print("hangs", flush=True)
        threading.Event().wait()
    return zlib.compressobj(**settings)
"""


def broken_library(folder: Path, *, breaks: str = "", hangs: str = "", file: Path = Path("/")) -> dict[str, str]:
    """Return the environment of an exporter with a library that fails in one of its threads, and hangs in another.

    It fails as soon as `file` exists.
    """
    library = folder / "isal/isal_zlib.py"
    library.parent.mkdir()
    library.write_text(_BROKEN, encoding="utf-8")
    (library.parent / "__init__.py").touch()
    return {"PYTHONPATH": str(folder), "BREAKS": breaks, "BREAKS_WITH": str(file), "HANGS": hangs}


@contextmanager
def no_new_threads() -> Iterator[None]:
    """Make the system refuse every new thread of this process, as at a limit on processes."""
    before = threading.stack_size(1 << 47)  # bytes: more than there are addresses
    try:
        yield
    finally:
        threading.stack_size(before)


@contextmanager
def hung_file(path: Path) -> Iterator[None]:
    """Replace a file by a named pipe without data, so that reading it hangs."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        yield
    finally:
        os.close(writer)


def reads(process: int, path: Path) -> bool:
    """Return whether a process has a file open."""
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if link.readlink() == path:
                return True
    return False


class Volume:
    """A file system that hangs for the paths in `hung`; `opened` are all paths opened, in order."""

    def __init__(self) -> None:
        self.hung: set[Path] = set()
        self.opened: list[Path] = []
        self._answers = threading.Event()

    def open(self, path: Path) -> int:
        """Open a file, as soon as it does not hang."""
        self.opened.append(path)
        if path in self.hung:
            self._answers.wait(30)
        return os.open(path, os.O_RDONLY)

    def answer(self) -> None:
        """Hang no longer."""
        self.hung = set()
        self._answers.set()
