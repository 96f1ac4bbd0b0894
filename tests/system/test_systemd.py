"""Tests of exporter.systemd, and of the unit: what systemd says of it, and the README's commands in a systemd."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter import __version__
from exporter.simulator.server import Simulator
from exporter.system.systemd import READY, notify
from tests.support.containers import Image, build, leave_out, running_process_1
from tests.support.exporters import COMMAND, KEY, config_check, configure
from tests.support.servers import PATIENCE, ROOT, eventually, fetch, running

FOLDER = ROOT / "deploy/systemd"
UNIT = (FOLDER / "braze-exporter.service").read_text(encoding="utf-8")
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SYSTEMD = Path("/lib/systemd/systemd")
# Process 1 of new namespaces becomes systemd on this machine's files, of which nothing is changed: what is written goes
# to memory. $1 is a folder to mount that on, $2 the image's file system, for its Python and the program, and $3 what
# becomes /srv, where the commands run.
_BOOT = """
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
cp -a "$2/opt" "$2/usr" .
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/shm dev/mqueue dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs tmpfs tmp
mount --bind "$3" srv
ip link set lo up
rm -rf etc/systemd/system/*
printf '[Unit]\\nDefaultDependencies=no\\n' >etc/systemd/system/nothing.target
mkdir old
pivot_root . old
umount --lazy old
mount --make-rshared /
exec env --ignore-environment PATH=/usr/bin:/usr/sbin container=other /lib/systemd/systemd --unit=nothing.target
"""
# An edit as the README describes it, and curl, which a machine for tests may lack.
_SUDOEDIT = """#!/bin/sh
cat /srv/edited >"$1"
"""
_CURL = """#!/opt/braze-exporter/bin/python
import sys
from urllib.request import urlopen
with urlopen(sys.argv[-1], timeout=60) as answer:
    sys.stdout.write(answer.read().decode())
"""
_SUDO = """#!/bin/sh
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What runs under a systemd; `pid` is that of this systemd as the real machine counts."""

    pid: int

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it as root, in the folder /srv, to the end."""
        join = ["nsenter", f"--target={self.pid}", "--all", "--root", "--"]
        clean = ["env", "--chdir=/srv", "--ignore-environment", "PATH=/srv/bin:/usr/bin:/usr/sbin:/bin"]
        return subprocess.run(
            [*join, *clean, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def shown(self, *properties: str) -> dict[str, str]:
        """Return properties of the service by their names."""
        names = [f"--property={name}" for name in properties]
        lines = self.run("systemctl", "show", "braze-exporter", *names).stdout.splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def metrics(self) -> str:
        """Return what the exporter serves; nothing where it does not answer."""
        return self.run("curl", "http://127.0.0.1:10105/metrics").stdout


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """Listen as systemd does; the address of an abstract socket begins with @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        listener.settimeout(20)
        yield listener


@pytest.mark.server
@pytest.mark.parametrize("abstract", [False, True])
def test_what_systemd_is_told(abstract: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter of the test
    """It hears that the exporter is ready when that answers, and that it stops when it does."""
    address = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with Simulator(api_key=KEY, campaigns=1) as braze, listening(address) as listener:
        command = [*COMMAND, f"--config.file={configure(tmp_path, braze)}", "--web.listen-address=127.0.0.1:0"]
        with running(command, log=tmp_path / "log", environment={"NOTIFY_SOCKET": address}) as program:
            assert listener.recv(100) == b"READY=1"
            assert fetch(f"{program.logged('url=(.+?) ')[1]}/-/healthy").ok

            program.process.terminate()
            assert listener.recv(100) == b"STOPPING=1"
            assert program.process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    "address", ["", "vsock:2:1234", "relative", "/none/there", f"/{'long' * 99}", "@", "/dev/null"]
)
def test_nobody_listens(address: str) -> None:
    """Where there is no socket nothing happens."""
    notify(READY, {"NOTIFY_SOCKET": address})
    notify(READY, {})


@pytest.mark.server
def test_nobody_reads(tmp_path: Path) -> None:
    """A socket that is full holds up nobody."""
    with listening(str(tmp_path / "notify")) as listener:
        for _ in range(1000):  # more than a queue holds
            notify(READY, {"NOTIFY_SOCKET": str(tmp_path / "notify")})

        assert listener.recv(100) == b"READY=1"


@pytest.mark.server
def test_systemd_has_no_finding(tmp_path: Path) -> None:
    """It knows every setting; the program is one that is there."""
    unit = tmp_path / "braze-exporter.service"
    unit.write_text(UNIT.replace("/opt/braze-exporter/bin/braze-exporter", sys.executable), encoding="utf-8")

    result = analyze("verify", "--recursive-errors=one", "--man=no", unit)

    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.server
def test_exposure() -> None:
    """The service can do little: systemd reckons its exposure as 1.5 or less of 10."""
    result = analyze("security", "--offline=yes", "--threshold=15", FOLDER / "braze-exporter.service")

    assert result.returncode == 0, result.stdout
    assert "Overall exposure level for braze-exporter.service" in result.stdout


def test_names_agree() -> None:
    """The unit, the sample configuration and the README name the same files."""
    ((credential, source),) = re.findall(r"^LoadCredential=([^:]+):(\S+)$", UNIT, re.MULTILINE)
    sample = (FOLDER / "config.yaml").read_text(encoding="utf-8")
    (configuration,) = re.findall(r"^ExecStart=\S+ --config\.file=(\S+)$", UNIT, re.MULTILINE)

    assert f"    api_key_file: /run/credentials/braze-exporter.service/{credential} " in sample
    assert f"install --mode=0600 api-key {source}\n" in README
    assert f"deploy/systemd/config.yaml {configuration}\n" in README


@pytest.mark.server
def test_the_sample_configuration_is_right(tmp_path: Path) -> None:
    """It passes the check, when the key's path is that of a file that is there."""
    key, file = tmp_path / "api-key", tmp_path / "config.yaml"
    key.write_text(KEY, encoding="utf-8")
    sample = (FOLDER / "config.yaml").read_text(encoding="utf-8")
    file.write_text(re.sub(r"api_key_file: \S+", f"api_key_file: {key}", sample), encoding="utf-8")

    result = config_check(file)

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.server
def test_the_program_installs(tmp_path: Path) -> None:
    """The README's first commands make a program that runs, wherever the environment is."""
    install, *_ = blocks()
    script = install.replace("sudo ", "").replace("/opt", str(tmp_path)).replace("python3", sys.executable, 1)

    commands = (
        f"PIP_NO_COMPILE=1; export PIP_NO_COMPILE\n{script}\n{tmp_path}/braze-exporter/bin/braze-exporter --version\n"
    )
    result = subprocess.run(
        ["/bin/sh", "-euc", commands], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )

    assert result.returncode == 0, result.stderr
    assert f"braze-exporter, version {__version__} " in result.stdout


@pytest.fixture(scope="module")
def image() -> Image:
    """The image as it is now."""
    return build()


@pytest.fixture
def machine(image: Image, tmp_path: Path) -> Iterator[Machine]:
    """A systemd that runs nothing, with a simulated Braze beside it, and what the README's commands need in /srv."""
    if not SYSTEMD.exists():
        leave_out(f"program not installed: {SYSTEMD}")
    srv, top = tmp_path / "srv", tmp_path / "top"
    top.mkdir()
    shutil.copytree(FOLDER, srv / "deploy/systemd")
    (srv / "api-key").write_text(f"{KEY}\n", encoding="utf-8")
    (srv / "bin").mkdir()
    for name, script in {"sudo": _SUDO, "sudoedit": _SUDOEDIT, "curl": _CURL}.items():
        (srv / "bin" / name).write_text(script, encoding="utf-8")
        (srv / "bin" / name).chmod(0o755)
    namespaces = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--propagation=unchanged"]
    boot: list[str | Path] = [
        "unshare",
        *namespaces,
        "--fork",
        "--kill-child",
        "sh",
        "-euc",
        _BOOT,
        "sh",
        top,
        image.root,
        srv,
    ]
    with running_process_1(boot, log=tmp_path / "log") as (program, pid):
        machine = Machine(pid)
        eventually(
            lambda: machine.run("systemctl", "is-system-running").stdout == "running\n",
            what=f"a systemd, which said {program.output()}",
        )
        simulate = ["systemd-run", "--unit=simulated", "--property=StandardOutput=file:/srv/simulated"]
        machine.run(
            *simulate,
            "/opt/braze-exporter/bin/braze-exporter",
            "simulate",
            "--campaigns=2",
            "--api-key-file=/srv/api-key",
        )
        simulated = srv / "simulated"
        eventually(lambda: simulated.exists() and "name:" in simulated.read_text(encoding="utf-8"), what="a Braze")
        edited = re.sub("api_key_file: .+", api_key_setting(), simulated.read_text(encoding="utf-8"))
        (srv / "edited").write_text(edited, encoding="utf-8")
        yield machine


@pytest.mark.server
def test_the_commands_of_the_readme(machine: Machine, tmp_path: Path) -> None:
    """Installed as the README says, the service polls with its key, reloads, and takes a new key with a restart."""
    _, *rest = blocks()
    start, look, reload, rotate = "".join(rest[:3]), rest[3], rest[4], rest[5]

    installed = machine.run("sh", "-euc", start)
    assert installed.returncode == 0, installed.stderr
    eventually(lambda: machine.metrics().count("} 1.0\n") and up(machine) == 2, what="two polled campaigns")
    looked = machine.run("sh", "-euc", look)
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "active (running)" in looked.stdout
    assert machine.run("systemctl", "is-enabled", "braze-exporter").stdout == "enabled\n"
    status = machine.run("cat", f"/proc/{machine.shown('MainPID')['MainPID']}/status").stdout
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert not re.search(r"^Uid:.*\t0\b", status, re.MULTILINE)

    # Another configuration: one campaign fewer.
    configuration = machine.run("cat", "/etc/braze-exporter/config.yaml").stdout
    (tmp_path / "srv/edited").write_text(configuration[: configuration.rindex("      - id:")], encoding="utf-8")
    machine.run("sudoedit", "/etc/braze-exporter/config.yaml")
    before = machine.shown("MainPID", "NRestarts")
    reloaded = machine.run("sh", "-euc", reload)
    assert (reloaded.returncode, reloaded.stdout) == (0, "braze_exporter_config_last_reload_successful 1.0\n")
    eventually(lambda: up(machine) == 1, what="the other configuration in force")
    # One that is wrong changes nothing.
    (tmp_path / "srv/edited").write_text("workspaces: []\n", encoding="utf-8")
    machine.run("sudoedit", "/etc/braze-exporter/config.yaml")
    machine.run("sh", "-euc", reload)
    eventually(lambda: "_last_reload_successful 0.0\n" in machine.metrics(), what="a failed reload")
    assert (up(machine), machine.shown("MainPID", "NRestarts")) == (1, before)

    (tmp_path / "srv/edited").write_text(configuration, encoding="utf-8")
    machine.run("sudoedit", "/etc/braze-exporter/config.yaml")
    (tmp_path / "srv/api-key").write_text("another-key\n", encoding="utf-8")
    assert machine.run("sh", "-euc", rotate).returncode == 0
    credential = "/run/credentials/braze-exporter.service/braze-api-key"
    assert machine.run("cat", credential).stdout == "another-key\n"
    eventually(lambda: 'braze_workspace_up{workspace="simulated"} 0.0' in machine.metrics(), what="a refused key")
    machine.run("systemctl", "stop", "braze-exporter")
    assert machine.shown("Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}


@pytest.mark.server
def test_it_is_started_again(machine: Machine) -> None:
    """Killed, the exporter is back after a few seconds."""
    _, *rest = blocks()
    assert machine.run("sh", "-euc", "".join(rest[:3])).returncode == 0
    machine.run("systemctl", "kill", "--signal=KILL", "braze-exporter")

    eventually(lambda: machine.shown("NRestarts") == {"NRestarts": "1"}, what="a restart")
    eventually(lambda: up(machine) == 2, what="two polled campaigns")


@pytest.mark.server
def test_a_refused_configuration_is_not_started_again(machine: Machine, tmp_path: Path) -> None:
    """An exporter whose configuration is refused stays down, and starts with one that is right."""
    _, *rest = blocks()
    configuration = (tmp_path / "srv/edited").read_text(encoding="utf-8")
    (tmp_path / "srv/edited").write_text("workspaces: []\n", encoding="utf-8")

    assert machine.run("sh", "-euc", "".join(rest[:3])).returncode != 0

    eventually(lambda: machine.shown("ActiveState") == {"ActiveState": "failed"}, what="a service that failed")
    assert machine.shown("NRestarts", "ExecMainStatus") == {"NRestarts": "0", "ExecMainStatus": "78"}
    (tmp_path / "srv/edited").write_text(configuration, encoding="utf-8")
    machine.run("sudoedit", "/etc/braze-exporter/config.yaml")
    assert machine.run("systemctl", "restart", "braze-exporter").returncode == 0
    assert machine.run("curl", "http://127.0.0.1:10105/-/healthy").returncode == 0  # it listens when that returns


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze with arguments to the end."""
    program = shutil.which("systemd-analyze") or leave_out("program not installed: systemd-analyze")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)


def blocks() -> list[str]:
    """Return the README's blocks of commands."""
    return re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def api_key_setting() -> str:
    """Return the line of the sample configuration that names the key."""
    found = re.search(r"api_key_file: \S+", (FOLDER / "config.yaml").read_text(encoding="utf-8"))
    assert found
    return found[0]


def up(machine: Machine) -> int:
    """Return how many campaigns are polled with success."""
    return len(re.findall(r"^braze_campaign_up\{.* 1\.0$", machine.metrics(), re.MULTILINE))
