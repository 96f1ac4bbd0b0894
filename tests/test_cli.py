"""Tests of exporter.cli: what ends by itself in this process, all else and signals in processes of their own."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from exporter import logs
from exporter.simulator.server import Drip, Fault, Hang, Latency, Simulator, Status
from tests.support.commands import Run, commands
from tests.support.exporters import COMMAND, KEY, Exporter, ask, config_check, configure, running_exporter
from tests.support.servers import ROOT, Program, eventually, running
from tests.support.system import broken_library, hung_file, reads

STOPPING = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
CAMPAIGN = "3bbc4555-8fa0-4c9b-a5c0-4505edf3e064"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command in this process."""
    with commands(capfd) as run:
        yield run


REFUSED = pytest.mark.parametrize(("flags", "refused"), [((), 78), (("--config.check",), 1)])


@REFUSED
def test_missing_file(flags: tuple[str, ...], refused: int, tmp_path: Path, run: Run) -> None:
    """A configuration file that is not there is one line; status 1 says so after a check, 78 to a service manager."""
    file = tmp_path / "none.yaml"

    status, output, errors = run(f"--config.file={file}", *flags)

    assert (status, output) == (refused, "")
    assert errors == f"{file}: expected a file that can be read, got 'No such file or directory'\n"


@pytest.mark.parametrize("arguments", [(), ("--config.check",), ("check",), ("print",)])
def test_no_configuration_at_all(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Without a file and without the flag that names one, the ways to begin are named."""
    monkeypatch.chdir(tmp_path)

    status, output, errors = run(*arguments)

    assert (status, output) == (1 if arguments else 78, "")
    assert errors.startswith("config.yaml: expected a file that can be read, got 'No such file or directory'\n")
    assert {"--config.file", "config.example.yaml", "demo"} <= {*re.findall(r"[\w.-]+\w", errors)}


@REFUSED
def test_bad_file(flags: tuple[str, ...], refused: int, tmp_path: Path, run: Run) -> None:
    """A configuration with errors is all its problems, a line each, and the same status."""
    file = configure(tmp_path, "http://example.com", poll="interval: 5", names={"x": "y"})

    status, output, errors = run(f"--config.file={file}", *flags)

    assert (status, output) == (refused, "")
    problems = errors.splitlines()
    assert len(problems) == 3
    assert all(problem.startswith(f"{file}:") for problem in problems)


def test_check_of_a_good_file(tmp_path: Path, run: Run) -> None:
    """A valid configuration is counted, with status 0."""
    file = configure(tmp_path, "https://rest.iad-01.braze.com", names={CAMPAIGN: "One"})

    assert run(f"--config.file={file}", "--config.check") == (0, f"{file}: valid; workspaces: 1, campaigns: 1\n", "")


def test_check_with_warnings(tmp_path: Path, run: Run) -> None:
    """What is valid but hardly meant is told before, and status 0."""
    file = configure(tmp_path, "https://braze.example.com", names={CAMPAIGN: "One"})

    status, output, errors = run(f"--config.file={file}", "--config.check")

    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        f"{file}: warning: workspace 'main': braze.example.com is not a host of braze.com or braze.eu",
        f"{file}: valid; workspaces: 1, campaigns: 1",
    ]


def test_check_of_a_web_configuration(tmp_path: Path, run: Run) -> None:
    """The web configuration is checked beside the configuration, and what is wrong with both is told at once."""
    good, web = configure(tmp_path, "https://rest.iad-01.braze.com", names={CAMPAIGN: "One"}), tmp_path / "web.yml"
    bad = good.with_name("bad.yaml")
    bad.write_text(good.read_text(encoding="utf-8").replace("rest.", "http://rest."), encoding="utf-8")
    check = ("--config.check", f"--web.config.file={web}")
    web.write_text("http_server_config: {http2: true}", encoding="utf-8")

    assert run(f"--config.file={good}", *check) == (
        0,
        (
            f"{web}: warning: HTTP/2 is not served; clients use HTTP/1.1\n{web}: valid\n"
            f"{good}: valid; workspaces: 1, campaigns: 1\n"
        ),
        "",
    )
    web.write_text("rate_limit: {}", encoding="utf-8")
    for file, flags, refused, wrong in (
        (bad, check, 1, [bad, web]),
        (bad, check[1:], 78, [bad, web]),
        (good, check, 1, [web]),
        (good, check[1:], 78, [web]),
    ):
        status, output, errors = run(f"--config.file={file}", *flags)
        assert (status, output) == (refused, "")
        assert [line.partition(":")[0] for line in errors.splitlines()] == [*map(str, wrong)]


@pytest.mark.server
def test_health_port_in_use(tmp_path: Path, run: Run) -> None:
    """A port of the probes that another process has is one line that names the flag, and status 1."""
    file = configure(tmp_path, "http://127.0.0.1:1", names={CAMPAIGN: "One"})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ("--web.listen-address=127.0.0.1:0", f"--web.health.listen-address={address}")

        status, _, errors = run(f"--config.file={file}", *flags)

    assert status == 1
    assert errors == f"--web.health.listen-address: cannot listen on {address}: Address already in use\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "--api-key-file: expected a file that can be read: No such file or directory\n"),
        (b" \n", "--api-key-file: expected a file with a key in ASCII\n"),
        (b"schl\xfcssel", "--api-key-file: expected a file with a key in ASCII\n"),
    ],
)
def test_simulate_with_a_bad_key(content: bytes | None, expected: str, tmp_path: Path, run: Run) -> None:
    """A key file that holds none is one line, without what it holds, and status 1."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)

    assert run("simulate", f"--api-key-file={file}", "--web.listen-address=127.0.0.1:0") == (1, "", expected)


@pytest.mark.server
@pytest.mark.parametrize("command", ["", "demo", "simulate"])
def test_port_in_use(command: str, tmp_path: Path, run: Run) -> None:
    """A port that another process has is one line that names flag and address, and status 1."""
    arguments = (
        [command] if command else [f"--config.file={configure(tmp_path, 'http://[::1]:1', names={CAMPAIGN: 'One'})}"]
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        status, output, errors = run(*arguments, f"--web.listen-address={address}")

    assert (status, output) == (1, "")
    assert errors == f"--web.listen-address: cannot listen on {address}: Address already in use\n"


@pytest.mark.server
def test_address_of_another_machine(tmp_path: Path, run: Run) -> None:
    """An address that this machine has not got is one line and status 1."""
    file = configure(tmp_path, "http://127.0.0.1:1", names={CAMPAIGN: "One"})

    status, _, errors = run(f"--config.file={file}", "--web.listen-address=192.0.2.1:10105")

    assert status == 1
    assert errors == "--web.listen-address: cannot listen on 192.0.2.1:10105: Cannot assign requested address\n"


@pytest.mark.server
def test_all_addresses(tmp_path: Path) -> None:
    """Without a host the exporter listens on IPv4 and, where there is any, on IPv6."""
    file = configure(tmp_path, "http://127.0.0.1:1", names={CAMPAIGN: "One"})
    with running_exporter(file, address=":0", ready=False) as exporter:
        port = urlsplit(exporter.url).port

        assert ask(f"http://127.0.0.1:{port}/-/healthy").ok
        if has_ipv6():
            assert ask(f"http://[::1]:{port}/-/healthy").ok


@pytest.mark.server
def test_several_addresses(tmp_path: Path) -> None:
    """The flag may be repeated, and each address answers."""
    file = configure(tmp_path, "http://127.0.0.1:1", names={CAMPAIGN: "One"})
    with running_exporter(file, "--web.listen-address=127.0.0.2:0", ready=False) as exporter:
        second = exporter.program.logged(r"url=(http://127\.0\.0\.2:\d+)")[1]

        assert ask(f"{second}/-/healthy").ok
        assert exporter.ask("/-/healthy").ok


@pytest.mark.server
@pytest.mark.parametrize("newest_day", ["today", "yesterday"])
def test_demo(newest_day: str, tmp_path: Path) -> None:
    """Five seconds after its start the demo shows gauges of a dozen campaigns where it says, whatever day is newest."""
    deadline = time.monotonic() + 5
    with demo(tmp_path, f"--newest-day={newest_day}") as shown:
        eventually(
            lambda: len(campaigns(shown.samples("braze_campaign_unique_recipients"))) == 12,
            what="gauges of 12 campaigns",
            timeout=deadline - time.monotonic(),
        )
        eventually(shown.ready, what="a demo that is ready")

        assert len(campaigns(shown.samples("braze_message_"))) == 12
        assert shown.ask("/").ok
        file = Path(shown.program.logged(r"^ +(/proc/.*)$")[1])
        assert "name: simulated\n" in file.read_text(encoding="utf-8")
        assert "level=" not in shown.program.output()


@pytest.mark.server
def test_demo_on_a_read_only_system(tmp_path: Path) -> None:
    """The demo needs no place to write to."""
    if os.geteuid() != 0:
        pytest.skip("expected root: only root can make a file system read-only")
    read_only = 'for mount in $(awk "{ print \\$2 }" /proc/mounts); do mount -o remount,bind,ro "$mount" || true; done'
    with demo(tmp_path, enter=("unshare", "--mount", "sh", "-euc", f'{read_only}; exec "$@"', "sh")) as shown:
        eventually(shown.ready, what="a demo that is ready")


@pytest.mark.server
@pytest.mark.parametrize("address", ["127.0.0.1:0", "LOCALHOST:0", "127.8.9.10:0", "[::1]:0"])
@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_loopback_addresses(command: str, address: str, tmp_path: Path) -> None:
    """Demo and simulate listen on any loopback address."""
    if address == "[::1]:0" and not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    host = {"LOCALHOST:0": "127.0.0.1"}.get(address, address.removesuffix(":0"))
    with running((*COMMAND, command, f"--web.listen-address={address}"), log=tmp_path / "log") as program:
        url = program.logged(rf"http://{re.escape(host)}:\d+\b")[0]

        assert ask(url).status_code in {200, 401}


@pytest.mark.server
@pytest.mark.parametrize("flags", [(), ("--timezone=Europe/Berlin", "--campaigns=30", "--seed=7")])
def test_simulate(flags: tuple[str, ...], tmp_path: Path) -> None:
    """What simulate prints is a valid configuration, with which the exporter shows every campaign that sends."""
    folder = tmp_path / "a folder: with # and 'quotes'"
    folder.mkdir()
    (folder / "key").write_text(f"{KEY}\n", encoding="ascii")
    with running(
        (*COMMAND, "simulate", "--web.listen-address=127.0.0.1:0", f"--api-key-file={folder / 'key'}", *flags),
        log=tmp_path / "config.yaml",
    ) as simulator:
        simulator.logged(r"\n\n\Z")
        file = tmp_path / "config.yaml"
        check = config_check(file)
        with running_exporter(file) as exporter:
            up = exporter.samples("braze_campaign_up")

    assert (check.returncode, check.stderr) == (0, "")
    assert len(up) == (30 if flags else 12)
    assert {*up.values()} == {"1.0"}
    assert KEY not in simulator.output()


@pytest.mark.server
def test_simulate_without_a_key(tmp_path: Path) -> None:
    """Without a key file simulate accepts a key that it prints, and the configuration reads it from a variable."""
    with running((*COMMAND, "simulate", "--web.listen-address=127.0.0.1:0"), log=tmp_path / "config.yaml") as simulator:
        key = simulator.logged(r"with BRAZE_API_KEY=(\S+) ")[1]
        url = simulator.logged(r"endpoint: (\S+)\n[^\0]*\n\n\Z")[1]

        assert ask(f"{url}/campaigns/list", Authorization=f"Bearer {key}").ok
        assert ask(f"{url}/campaigns/list", Authorization="Bearer other").status_code == 401
        assert "api_key_env: BRAZE_API_KEY\n" in simulator.output()


@pytest.mark.server
@STOPPING
@pytest.mark.parametrize(
    "fault",
    [None, Hang(), Latency(30), Drip(1), Status(503), Status(429)],
    ids=lambda fault: str(fault).partition("(")[0],
)
def test_stopping_during_polls(number: int, fault: Fault | None, tmp_path: Path) -> None:
    """A signal ends the exporter, with status 0 and without a complaint, whatever Braze does."""
    with Simulator(api_key=KEY) as braze:
        if fault is not None:
            braze.misbehave(fault)
        file = configure(tmp_path, braze, poll="interval: 1s, timeout: 30s, stale_after: 1m")
        with running_exporter(file, ready=False) as exporter:
            eventually(lambda: len(braze.requests) >= (1 if fault == Status(429) else 12), what="requests")

            assert stopped(exporter.program, number) == 0

        assert not re.search("level=error|Traceback|Exception", exporter.program.output())


@pytest.mark.server
@STOPPING
@pytest.mark.parametrize(
    "request_text",
    [
        "",
        "GET /metr",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 40,
    ],
    ids=["connected", "half a request", "half a body", "kept alive", "answers that nobody reads"],
)
def test_stopping_with_an_open_connection(number: int, request_text: str, tmp_path: Path) -> None:
    """A client that does nothing, or never reads its answers, does not hold the exporter."""
    with (
        Simulator(api_key=KEY, campaigns=100) as braze,
        running_exporter(configure(tmp_path, braze)) as exporter,
        closing(connect(exporter)) as client,
    ):
        client.sendall(request_text.encode())
        assert exporter.ask("/-/healthy").ok  # after the other was accepted

        assert stopped(exporter.program, number) == 0

    assert not re.search("level=error|Traceback|Exception", exporter.program.output())


@pytest.mark.server
@STOPPING
def test_stopping_the_demo(number: int, tmp_path: Path) -> None:
    """A signal ends the demo with status 0."""
    with demo(tmp_path) as shown:
        assert stopped(shown.program, number) == 0


@pytest.mark.server
@STOPPING
def test_stopping_simulate(number: int, tmp_path: Path) -> None:
    """A signal ends the simulator with status 0, clients or not."""
    with running((*COMMAND, "simulate", "--web.listen-address=127.0.0.1:0"), log=tmp_path / "log") as program:
        address = urlsplit(program.logged(r"endpoint: (\S+)\n")[1])
        with closing(socket.create_connection((str(address.hostname), address.port or 0))):
            assert stopped(program, number) == 0


@pytest.mark.server
@STOPPING
def test_stopping_before_the_server_is_up(number: int, tmp_path: Path) -> None:
    """A signal while the configuration is read ends the exporter with status 0, too."""
    configure(tmp_path, "http://127.0.0.1:1", names={CAMPAIGN: "One"})
    file = tmp_path / "fifo.yaml"
    with hung_file(file), running((*COMMAND, f"--config.file={file}"), log=tmp_path / "log") as program:
        eventually(lambda: reads(program.process.pid, file), what="a reader of the configuration")

        assert stopped(program, number) == 0

    assert not program.output()


@pytest.mark.server
@STOPPING
@pytest.mark.parametrize("what", ["configuration", "web configuration", "both"])
def test_stopping_while_a_file_hangs(what: str, number: int, tmp_path: Path) -> None:
    """A reload that waits for a file, as on a network volume that is gone, does not hold the exporter."""
    web = tmp_path / "web.yml"
    web.write_text("http_server_config: {}\n", encoding="utf-8")
    with Simulator(api_key=KEY, campaigns=1) as braze:
        file = configure(tmp_path, braze)
        with running_exporter(file, f"--web.config.file={web}") as exporter, ExitStack() as hanging:
            files = {"configuration": [file], "web configuration": [web], "both": [file, web]}[what]
            for path in files:
                hanging.enter_context(hung_file(path))
            exporter.program.process.send_signal(signal.SIGHUP)
            for path in files:
                eventually(partial(reads, exporter.program.process.pid, path), what=f"a reader of {path}")

            assert stopped(exporter.program, number) == 0


@pytest.mark.server
@STOPPING
def test_stopping_while_the_event_loop_hangs(number: int, tmp_path: Path) -> None:
    """A signal ends the exporter even when what serves does nothing any more."""
    with Simulator(api_key=KEY, campaigns=1) as braze:
        command = [*COMMAND, f"--config.file={configure(tmp_path, braze)}", "--web.listen-address=127.0.0.1:0"]
        environment = broken_library(tmp_path, hangs="MainThread")
        with running(command, log=tmp_path / "log", environment=environment) as program:
            address = urlsplit(program.logged(r"\burl=(\S+)")[1])
            with closing(socket.create_connection((str(address.hostname), address.port or 0))) as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
                program.logged("^hangs$")

                assert stopped(program, number) == 0


@pytest.mark.server
@STOPPING
@pytest.mark.parametrize("other", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_while_the_exporter_stops(number: int, other: int, tmp_path: Path) -> None:
    """A signal that comes while answers that nobody reads hold up the end changes nothing, SIGHUP neither."""
    with (
        Simulator(api_key=KEY, campaigns=100) as braze,
        running_exporter(configure(tmp_path, braze)) as exporter,
        closing(connect(exporter)) as client,
    ):
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 40)
        assert exporter.ask("/-/healthy").ok
        process = exporter.program.process
        process.send_signal(number)
        exporter.program.logged("stopping")
        while process.poll() is None:
            process.send_signal(other)

    assert process.returncode == 0
    assert not re.search("level=error|Traceback|reloaded", exporter.program.output())


@pytest.mark.alone
@STOPPING
@pytest.mark.parametrize("state", ["at rest", "polls and clients that hang", "a log that nobody reads"])
def test_stopping_takes_a_second(state: str, number: int, tmp_path: Path) -> None:
    """A signal ends the exporter within a second, whatever hangs."""
    with Simulator(api_key=KEY, campaigns=100) as braze, ExitStack() as stack:
        if state == "a log that nobody reads":
            process, _, _ = stack.enter_context(unread(braze, tmp_path))
        else:
            exporter = stack.enter_context(
                running_exporter(configure(tmp_path, braze, poll="interval: 1s, timeout: 1m, stale_after: 2m"))
            )
            process = exporter.program.process
        if state == "polls and clients that hang":
            braze.misbehave(Hang())
            client = stack.enter_context(closing(connect(exporter)))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 40)
            polled = len(braze.requests)
            eventually(lambda: len(braze.requests) > polled, what="polls that hang")
        began = time.monotonic()
        process.send_signal(number)

        assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 1.1  # a tenth is the system's


@pytest.mark.server
def test_a_log_that_nobody_reads(tmp_path: Path) -> None:
    """Polls, scrapes and probes go on while nobody reads the log; what is dropped is counted, and told to who reads."""
    with Simulator(api_key=KEY, campaigns=100) as braze, unread(braze, tmp_path) as (process, log, exporter):
        assert exporter.ask("/-/healthy").ok
        braze.behave()
        up = exporter.samples("braze_campaign_up")
        eventually(lambda: {*exporter.samples("braze_campaign_up").values()} == {"1.0"}, what="successful polls")
        assert len(up) == 100

        parts: list[bytes] = []
        os.set_blocking(log, False)

        def told() -> re.Match[bytes] | None:
            with suppress(BlockingIOError):
                while True:
                    parts.append(os.read(log, 1 << 20))
            return re.search(rb"^time=\S+ level=warning msg=(.*) lines=(\d+)$", b"".join(parts), re.MULTILINE)

        notice = eventually(told, what="a line that says how many were dropped")
        assert notice
        assert notice[1] == b'"log lines were dropped because they could not be written"'
        assert 0 < int(notice[2]) <= dropped(exporter)
        assert process.poll() is None


@pytest.mark.server
@STOPPING
def test_stopping_with_a_log_that_nobody_reads(number: int, tmp_path: Path) -> None:
    """A signal ends the exporter with status 0 while its log waits for a reader."""
    with Simulator(api_key=KEY, campaigns=100) as braze, unread(braze, tmp_path) as (process, _, _):
        process.send_signal(number)

        assert process.wait(timeout=20) == 0


@pytest.mark.server
def test_a_crash_with_a_log_that_nobody_reads(tmp_path: Path) -> None:
    """An unexpected exception ends the exporter with status 1 while its log waits for a reader."""
    with (
        Simulator(api_key=KEY, campaigns=100) as braze,
        unread(braze, tmp_path, environment=broken_library(tmp_path, breaks="body cache")) as (process, _, exporter),
    ):
        assert exporter.ask(Accept_Encoding="gzip").ok

        assert process.wait(timeout=20) == 1


@pytest.mark.server
def test_a_crash_while_a_file_hangs(tmp_path: Path) -> None:
    """An unexpected exception ends the exporter with status 1 while a thread waits for a file."""
    web = tmp_path / "web.yml"
    web.write_text("http_server_config: {}\n", encoding="utf-8")
    with Simulator(api_key=KEY, campaigns=1) as braze:
        file = configure(tmp_path, braze, poll="interval: 1s, timeout: 1s")
        command = [*COMMAND, f"--config.file={file}", f"--web.config.file={web}", "--web.listen-address=127.0.0.1:0"]
        environment = broken_library(tmp_path, breaks="body cache")
        with running(command, log=tmp_path / "log", environment=environment) as program:
            exporter = Exporter(program, program.logged(r"\burl=(\S+)")[1])
            with hung_file(web):
                eventually(lambda: reads(program.process.pid, web), what="a reader of the web configuration")
                assert exporter.ask(Accept_Encoding="gzip").ok

                assert program.process.wait(timeout=20) == 1


@pytest.mark.server
def test_a_refused_configuration_that_nobody_reads_of(tmp_path: Path) -> None:
    """An exporter that cannot start ends with its status, even where nobody reads why."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    with subprocess.Popen([*COMMAND, f"--config.file={tmp_path / 'none'}"], cwd=ROOT, stderr=writer) as process:
        os.close(writer)

        assert process.wait(timeout=20) == 78
    os.close(reader)


@pytest.mark.server
def test_the_end_of_the_log_is_written(tmp_path: Path) -> None:
    """What is logged at the end arrives, all of it."""
    with Simulator(api_key=KEY, campaigns=1) as braze, running_exporter(configure(tmp_path, braze)) as exporter:
        assert stopped(exporter.program, signal.SIGTERM) == 0

    assert exporter.program.output().endswith(" level=info msg=stopping\n")


@pytest.mark.server
def test_an_unexpected_exception_ends_the_process(tmp_path: Path) -> None:
    """A thread that ends by what nobody foresaw, here a broken library, ends the exporter, status 1."""
    with Simulator(api_key=KEY, campaigns=1) as braze:
        command = [*COMMAND, f"--config.file={configure(tmp_path, braze, poll='interval: 1s, timeout: 1s')}"]
        with running(
            [*command, "--web.listen-address=127.0.0.1:0"],
            log=tmp_path / "log",
            environment=broken_library(tmp_path, breaks="body cache"),
        ) as program:
            exporter = Exporter(program, program.logged(r"\burl=(\S+)")[1])
            eventually(exporter.ready, what="an exporter that is ready")
            assert exporter.ask(Accept_Encoding="gzip").ok  # from now on its thread compresses

            status = program.process.wait(timeout=20)

    assert status == 1
    assert 'level=error msg="an unexpected exception ends the process"' in program.output()
    assert "Traceback (most recent call last)" in program.output()
    assert KEY not in program.output()


@pytest.mark.server
@pytest.mark.parametrize("form", logs.FORMATS)
@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", "debug info warning error"),
        ("info", "info warning error"),
        ("warning", "warning error"),
        ("error", "error"),
    ],
)
def test_log_flags(level: str, form: str, shown: str, tmp_path: Path) -> None:
    """The level decides what is logged, and the format how: one line an event."""
    with Simulator(api_key="another-key") as braze:
        command = (*COMMAND, f"--config.file={configure(tmp_path, braze)}", "--web.listen-address=127.0.0.1:0")
        with running((*command, f"--log.level={level}", f"--log.format={form}"), log=tmp_path / "log") as program:
            program.logged('level(=|": ")error')  # of the key that is refused
            assert stopped(program, signal.SIGTERM) == 0
            lines = program.output().splitlines()

    line = re.compile(
        r"time=\S+ level=(\w+) msg=" if form == "logfmt" else r'\{"time": "[^"]+", "level": "(\w+)", "msg": ".*\}'
    )
    levels = [match[1] if (match := line.match(each)) else each for each in lines]
    assert {*levels} <= {*shown.split()}
    assert level != "info" or "info" in levels


@pytest.mark.server
@pytest.mark.parametrize(
    "fault",
    [
        Status(401),
        Status(401, b"the key is " + KEY.encode()),
        Status(403, b'{"message": "%s may not"}' % KEY.encode()),
        Status(400, b'{"message": "%s"}' % KEY.upper().encode()),
        Status(404, b'{"message": "%s"}' % KEY[4:20].encode()),
        Status(429, headers={"Retry-After": KEY}),
        Status(302, headers={"Location": f"http://127.0.0.1:1/{KEY}"}),
        Status(500, KEY.encode()),
        Status(200, b'{"message": "success", "data": "%s"}' % KEY.encode()),
        Hang(),
    ],
    ids=lambda fault: f"{getattr(fault, 'code', 'hang')}",
)
def test_the_key_is_nowhere(fault: Fault, tmp_path: Path) -> None:
    """Whatever Braze does, even if it repeats the key, no log line, page, metric or process list shows it."""
    with Simulator(api_key=KEY, campaigns=3) as braze:
        braze.misbehave(fault)
        file = configure(tmp_path, braze, poll="interval: 1s, timeout: 1s, stale_after: 1m")
        with running_exporter(file, "--log.level=debug") as exporter:
            eventually(lambda: len(braze.requests) >= 2, what="polls")
            pages = [exporter.ask(path).text for path in ("/metrics", "/", "/-/ready", "/none")]
            pages.append(exporter.ask(Accept="application/openmetrics-text").text)
            command = Path(f"/proc/{exporter.program.process.pid}/cmdline").read_text(encoding="utf-8")

    shown = "\n".join([*pages, command, exporter.program.output()]).lower()
    parts = {KEY[start : start + 8] for start in range(len(KEY) - 7)}
    assert not [part for part in sorted(parts) if part in shown]


@contextmanager
def demo(folder: Path, *flags: str, enter: Sequence[str] = ()) -> Iterator[Exporter]:
    """Run the demo, by the command `enter` if any; it has printed where to look when the context starts."""
    command = (*enter, *COMMAND, "demo", "--web.listen-address=127.0.0.1:0", *flags)
    with running(command, log=folder / "demo.log") as program:
        yield Exporter(program, program.logged(r"^ +overview +(http://127\.0\.0\.1:\d+)/$")[1])


def stopped(program: Program, number: int) -> int:
    """Send a signal, and return the exit status."""
    program.process.send_signal(number)
    return program.process.wait(timeout=20)


def campaigns(samples: dict[str, str]) -> set[str]:
    """Return the ids of the campaigns that samples are of."""
    return {match[1] for series in samples if (match := re.search('campaign_id="([^"]*)"', series))}


def connect(exporter: Exporter) -> socket.socket:
    """Connect to the exporter with room for hardly anything that it sends."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    address = urlsplit(exporter.url)
    client.connect((str(address.hostname), address.port or 0))
    return client


@contextmanager
def unread(
    braze: Simulator, folder: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int, Exporter]]:
    """Run an exporter whose polls fail and whose log nobody reads any more; its queue is full.

    Yield the process, the end of the log's pipe that nobody reads, and the exporter.
    """
    braze.misbehave(Status(400))
    names = {campaign.id: "x" * 20_000 for campaign in braze.campaigns}
    file = configure(folder, braze, poll="interval: 1s, timeout: 1s, stale_after: 1m", names=names)
    reader, writer = os.pipe()
    command = [*COMMAND, f"--config.file={file}", "--web.listen-address=127.0.0.1:0", "--log.level=debug"]
    added = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, cwd=ROOT, env=added, stdin=subprocess.DEVNULL, stderr=writer) as process:
        os.close(writer)
        try:
            url = re.search(rb"url=(\S+)", os.read(reader, 4096))
            assert url
            exporter = Exporter(Program(process, folder / "none"), url[1].decode())
            eventually(lambda: dropped(exporter) > 0, what="dropped lines", timeout=60)
            yield process, reader, exporter
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            finally:
                process.kill()
                os.close(reader)


def dropped(exporter: Exporter) -> int:
    """Return how many lines of its log an exporter has dropped."""
    return int(float(exporter.samples("braze_exporter_log_lines_")["braze_exporter_log_lines_dropped_total"]))


def has_ipv6() -> bool:
    """Tell whether this machine has a loopback address of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
