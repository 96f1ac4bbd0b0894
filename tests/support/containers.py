"""Containers made of namespaces: the image's file system, read-only, and its settings, as an engine would start it."""

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import pytest

from tests.support.servers import ROOT, Program, eventually, running

# Run as process 1 of the new namespaces: $1 is the image's file system, what follows are pairs of a file or folder and
# where it is mounted, and after -- the command that takes this one's place. As engines do, it makes what is missing to
# mount on, and leaves it there, empty.
_ENTER = """
root=$1
shift
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p "$root$2"
    elif [ ! -e "$root$2" ]; then
        mkdir -p "$(dirname "$root$2")"
        touch "$root$2"
    fi
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
shift
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
ip link set lo up
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """An image as a folder and the settings that the Dockerfile gave it, by their names in Docker's format."""

    root: Path
    settings: Mapping[str, object]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what tools/image.sh left."""
        image: object = json.loads((folder / "image.json").read_text(encoding="utf-8"))
        assert isinstance(image, dict), image
        return cls(folder / "root", image["Docker"]["config"])

    def words(self, setting: str) -> list[str]:
        """Return a setting that is a list of texts."""
        words = self.settings[setting]
        assert isinstance(words, list), f"expected a list as {setting}, got {words!r}"
        return words

    def entering(self) -> list[str]:
        """Return the command that goes on as the image's user, without rights and with the image's environment only."""
        user, _, group = str(self.settings["User"]).partition(":")
        return [
            *("setpriv", "--no-new-privs", "--bounding-set=-all,+sys_chroot,+setuid,+setgid"),
            *("env", "--ignore-environment", *self.words("Env")),
            *("unshare", f"--root={self.root}", f"--wd={self.settings['WorkingDir']}"),
            *(f"--setgid={group}", f"--setuid={user}", "--"),
        ]


def build() -> Image:
    """Build the image, if anything that it is made of has changed.

    Without root it skips the test. Without the programs that build it, too, but on CI, which must not lose tests
    unnoticed, it fails it.
    """
    if os.geteuid() != 0:
        pytest.skip("expected root: only root can build and start an image without a container engine")
    (ROOT / ".cache").mkdir(exist_ok=True)
    with (ROOT / ".cache/image.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        built = subprocess.run(
            ["/usr/bin/env", "make", "--no-print-directory", "image"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    if built.returncode != 0 and "apt-get install" in built.stderr:
        leave_out(built.stderr.splitlines()[0])
    assert built.returncode == 0, built.stdout + built.stderr
    return Image.read(ROOT / ".cache/image")


def leave_out(reason: str) -> NoReturn:
    """Skip the test for want of a program, or fail it on CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Container:
    """A running container; `pid` is its process 1 as this machine counts."""

    image: Image
    program: Program
    pid: int

    def execute(self, *command: str | Path, inside: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it to the end, as `docker exec` does, or one of this machine in its network only."""
        join = ["nsenter", f"--target={self.pid}", "--net", *(("--pid", "--mount") if inside else ()), "--"]
        return subprocess.run(
            [*join, *(self.image.entering() if inside else ()), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def status(self) -> dict[str, str]:
        """Return what the kernel says of its process 1."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextmanager
def running_container(
    image: Image,
    *arguments: str,
    log: Path,
    mounts: Mapping[Path, str] | None = None,
    network_of: Container | None = None,
) -> Iterator[Container]:
    """Start the image until the context ends, with its own command unless there are arguments, which replace it.

    It sees no network but a loopback of its own, or the one of another container, and can write nowhere.
    """
    network = ["nsenter", f"--target={network_of.pid}", "--net"] if network_of else ["unshare", "--net"]
    pairs = [text for source, target in (mounts or {}).items() for text in (str(source), target)]
    command = [
        *network,
        *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
        *("sh", "-euc", _ENTER, "sh", str(image.root), *pairs, "--"),
        *image.entering(),
        *image.words("Entrypoint"),
        *(arguments or image.words("Cmd")),
    ]
    with running_process_1(command, log=log) as (program, pid):
        yield Container(image, program, pid)


@contextmanager
def running_process_1(command: Sequence[str | Path], *, log: Path) -> Iterator[tuple[Program, int]]:
    """Run an `unshare --fork` until the context ends; its child, process 1 of the new namespaces, ends with it."""
    with running(command, log=log) as program:
        outer = program.process.pid
        children = Path(f"/proc/{outer}/task/{outer}/children")
        pid = int(eventually(lambda: children.read_text(encoding="ascii").split(), what="a process 1")[0])
        try:
            yield program, pid
        finally:
            if program.process.poll() is None:
                os.kill(pid, signal.SIGKILL)  # unshare itself does not heed the signal to terminate
