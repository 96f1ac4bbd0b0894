"""Tests of exporter.process and exporter.signals: signals at any moment, standard streams and the end, in processes."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from exporter.process import INTERRUPTED
from exporter.simulator.server import Hang, Simulator
from tests.support.exporters import COMMAND, KEY, ask, configure
from tests.support.servers import ROOT, Program, eventually, running

pytestmark = pytest.mark.server

CAMPAIGN = "3bbc4555-8fa0-4c9b-a5c0-4505edf3e064"
MOMENTS = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)  # seconds: most are within the half second of the imports
STOPPING = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
ANYWHERE = "--web.listen-address=127.0.0.1:0"
PROCESS_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@contextmanager
def starting(command: Sequence[str | Path], log: Path, *, process_1: bool = False) -> Iterator[tuple[Program, int]]:
    """Start a command, as process 1 if told so; yield it and its process id as soon as its signals wait."""
    if process_1 and os.geteuid() != 0:
        pytest.skip("expected root: only root can start a process 1")
    with running((*(PROCESS_1 if process_1 else ()), *command), log=log) as program:
        pid = program.process.pid
        if process_1:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            pid = int(eventually(lambda: children.read_text(encoding="ascii").split(), what="a process 1")[0])
        try:
            eventually(lambda: program.process.poll() is not None or waits(pid), what="signals that wait")
            yield program, pid
        finally:
            if process_1 and program.process.poll() is None:
                os.kill(pid, signal.SIGKILL)


def waits(pid: int) -> bool:
    """Tell whether a command lets SIGTERM wait, as its first statement does; what starts a process 1 does so, too."""
    if Path(f"/proc/{pid}/exe").readlink().name == PROCESS_1[0]:
        return False
    blocked = re.search(r"^SigBlk:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    return blocked is not None and bool(int(blocked[1], 16) & 1 << (signal.SIGTERM - 1))


def pause(seconds: float) -> None:
    """Let a moment of a start come."""
    threading.Event().wait(seconds)


def serve(folder: Path) -> list[str | Path]:
    """Return the command that serves, with a campaign that nobody answers for."""
    return [*COMMAND, f"--config.file={configure(folder, 'http://127.0.0.1:9', names={CAMPAIGN: 'One'})}", ANYWHERE]


@STOPPING
@pytest.mark.parametrize("process_1", [False, True], ids=["", "process 1"])
def test_stopping_at_any_moment(number: int, process_1: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter
    """From the first statement on the signal ends the exporter with status 0 and without a complaint."""
    for moment in MOMENTS:
        log = tmp_path / f"log {moment}"
        with starting(serve(tmp_path), log, process_1=process_1) as (program, pid):
            pause(moment)
            os.kill(pid, number)

            assert program.process.wait(timeout=20) == 0, (moment, program.output())
            assert not re.search("Traceback|Exception|level=error", program.output())


@STOPPING
@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_stopping_what_runs_until_a_signal(command: str, number: int, tmp_path: Path) -> None:
    """Demo and simulate end by a signal with status 0, too, at any moment."""
    for moment in (0, 0.3, 1):
        with starting((*COMMAND, command, ANYWHERE), tmp_path / "log") as (program, pid):
            pause(moment)
            os.kill(pid, number)

            assert program.process.wait(timeout=20) == 0, (moment, program.output())
            assert not re.search("Traceback|Exception|level=error", program.output())


@STOPPING
@pytest.mark.parametrize("arguments", ["check", "print", "--config.check", "health"])
def test_stopping_what_has_not_done_its_work(arguments: str, number: int, tmp_path: Path) -> None:
    """A command that a signal ends before its work is done says so, with status 1."""
    with Simulator(api_key=KEY, campaigns=1) as braze:
        braze.misbehave(Hang())
        flags: list[str | Path] = [f"--config.file={configure(tmp_path, braze)}"]
        if arguments == "health":
            flags = [f"--url={braze.url}/campaigns/data_series?campaign_id={braze.campaigns[0].id}&length=1"]
        for moment in (0, 0.1, 1):
            with starting((*COMMAND, arguments, *flags), tmp_path / "log") as (program, pid):
                pause(moment)
                if program.process.poll() is not None:
                    continue  # its work was done
                os.kill(pid, number)

                status = program.process.wait(timeout=20)
                assert (status, program.output()) in {
                    (1, INTERRUPTED),
                    *([] if moment < 1 else [(0, program.output())]),
                }


@pytest.mark.parametrize("process_1", [False, True], ids=["", "process 1"])
def test_hangups_during_the_start(process_1: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter
    """However many SIGHUPs come while the exporter starts, it serves, and has read its configuration again."""
    with starting(serve(tmp_path), tmp_path / "log", process_1=process_1) as (program, pid):

        def reloaded() -> bool:
            os.kill(pid, signal.SIGHUP)
            return "the configuration was reloaded" in program.output()

        eventually(reloaded, what="a reload")
        assert program.process.poll() is None
        os.kill(pid, signal.SIGTERM)
        assert program.process.wait(timeout=20) == 0


def test_a_hangup_during_the_start_is_a_reload(tmp_path: Path) -> None:
    """One SIGHUP at the very beginning is enough."""
    with starting(serve(tmp_path), tmp_path / "log") as (program, pid):
        os.kill(pid, signal.SIGHUP)

        program.logged("the configuration was reloaded")


@pytest.mark.parametrize("arguments", ["demo", "simulate", "check", "print", "health", "--config.check"])
def test_other_commands_end_by_a_hangup(arguments: str, tmp_path: Path) -> None:
    """SIGHUP does to all but the serving command what it does by default."""
    with starting((*COMMAND, arguments), tmp_path / "log") as (program, pid):
        os.kill(pid, signal.SIGHUP)

        assert program.process.wait(timeout=20) == -signal.SIGHUP


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
@pytest.mark.parametrize("command", ["", "demo", "simulate"])
def test_closed_streams(command: str, closed: str, tmp_path: Path) -> None:
    """Where standard streams are closed the exporter runs, and no connection gets the number of one."""
    with Simulator(api_key=KEY, campaigns=1) as braze:
        words = [*COMMAND, command, ANYWHERE] if command else [*COMMAND, f"--config.file={configure(tmp_path, braze)}"]
        redirected = " ".join(f"{number}>&-" for number in closed.split())
        shell = ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", *words, *([] if command else [ANYWHERE])]
        with starting(shell, tmp_path / "log") as (program, pid):
            eventually(lambda: ports(pid), what="a listening socket")

            streams = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in closed.split()}
            assert streams == {os.devnull}
            assert "Traceback" not in program.output()
            os.kill(pid, signal.SIGTERM)
            assert program.process.wait(timeout=20) == 0


def ports(pid: int) -> list[int]:
    """Return the ports of IPv4 on which a process listens, in the order in which it began to."""
    sockets = []
    for file in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda file: int(file.name)):
        with suppress(OSError):  # closed meanwhile
            sockets.append(str(file.readlink()))
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    listening = {f"socket:[{line[9]}]": int(line[1].partition(":")[2], 16) for line in lines if line[3] == "0A"}
    return [listening[name] for name in sockets if name in listening]


@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_nobody_reads_what_it_says(command: str, tmp_path: Path) -> None:
    """Demo and simulate go on, without a traceback, when the reader of their stdout has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, command, ANYWHERE], cwd=ROOT, stdout=writer, stderr=log)
    os.close(writer)
    try:
        eventually(lambda: ports(process.pid), what="a listening socket")
        eventually(lambda: waits(process.pid), what="signals that wait")
    finally:
        process.terminate()
        status = process.wait(timeout=20)

    assert (status, (tmp_path / "log").read_text(encoding="utf-8")) == (0, "")


@pytest.mark.parametrize("arguments", [("demo",), ("simulate", "--campaigns=2000")])
def test_what_it_says_waits_for_its_reader(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Demo and simulate serve, and end by a signal, while nobody reads their stdout."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, *arguments, ANYWHERE], cwd=ROOT, stdout=writer, stderr=log)
    os.close(writer)
    try:
        url = f"http://127.0.0.1:{eventually(lambda: ports(process.pid), what='a listening socket')[-1]}"
        eventually(lambda: ask(url).status_code in {200, 401}, what="an answer")
    finally:
        process.terminate()
        status = process.wait(timeout=20)
        os.close(reader)

    assert (status, (tmp_path / "log").read_text(encoding="utf-8")) == (0, "")


def test_an_interruption_takes_the_place_of_a_bar(tmp_path: Path) -> None:
    """On a terminal nothing of the bar is left beside what an interrupted command says."""
    main, terminal = pty.openpty()
    with Simulator(api_key=KEY, campaigns=1) as braze:
        braze.misbehave(Hang())
        command = [*COMMAND, "check", f"--config.file={configure(tmp_path, braze)}"]
        with subprocess.Popen(command, cwd=ROOT, stderr=terminal) as process:
            shown = b""
            while b"campaigns" not in shown:
                shown += os.read(main, 4096)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 1
        assert (shown + os.read(main, 4096)).endswith(b"\r\33[Kinterrupted before all was done\r\n")
    os.close(main)
    os.close(terminal)


@pytest.mark.parametrize("arguments", ["check", "print", "--config.check"])
def test_nobody_reads_the_result(arguments: str, tmp_path: Path) -> None:
    """A result that cannot be written is one line, and status 1."""
    with Simulator(api_key=KEY, campaigns=1) as braze, Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*COMMAND, arguments, f"--config.file={configure(tmp_path, braze)}"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (result.returncode, result.stderr) == (1, "stdout: cannot be written: No space left on device\n")


@STOPPING
def test_a_result_that_waits_for_its_reader(number: int, tmp_path: Path) -> None:
    """A signal ends a command that waits for somebody to read its result."""
    with Simulator(api_key=KEY, campaigns=200) as braze:
        command = [*COMMAND, "print", f"--config.file={configure(tmp_path, braze)}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.read(1)
            process.send_signal(number)
            process.wait(timeout=20)

            assert process.stderr
            assert (process.returncode, process.stderr.read().decode()) == (1, INTERRUPTED)


def test_an_exception_in_the_main_thread(tmp_path: Path) -> None:
    """What nobody expected, here a package that is missing, ends the exporter with a traceback and status 1."""
    (tmp_path / "starlette.py").write_text("raise ImportError('no such package')", encoding="utf-8")
    result = subprocess.run(
        [*serve(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("an unexpected exception ends the process\nTraceback (most recent call last):\n")
    assert result.stderr.endswith("ImportError: no such package\n")


@pytest.mark.parametrize(("arguments", "status"), [("--version", 0), ("--help", 0), ("--none", 2), ("health --x", 2)])
def test_what_the_parser_says(arguments: str, status: int) -> None:
    """What the parser of the flags says comes out whole, with its status."""
    result = subprocess.run(
        [*COMMAND, *arguments.split()], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )

    assert result.returncode == status
    said, silent = (result.stdout, result.stderr) if status == 0 else (result.stderr, result.stdout)
    assert (said[-1], silent) == ("\n", "")


def test_the_script(tmp_path: Path) -> None:
    """The installed script starts like the module, also with signals."""
    script = "import sys; from exporter.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", script, *serve(tmp_path)[len(COMMAND) :]]
    with starting(command, tmp_path / "log") as (program, pid):
        os.kill(pid, signal.SIGHUP)
        program.logged("the configuration was reloaded")
        os.kill(pid, signal.SIGINT)

        assert program.process.wait(timeout=20) == 0
