"""Tests of exporter.flags: what each command takes, what it says of itself, and what it refuses."""

import re
import subprocess
import sys
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import pytest

from exporter import __version__
from exporter.flags import flag_parser
from tests.support.commands import Run, commands
from tests.support.servers import ROOT


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command in this process."""
    with commands(capfd) as run:
        yield run


def test_version(run: Run) -> None:
    """--version names the version of the exporter and of Python, for every command."""
    for command in ([], ["demo"], ["simulate"]):
        status, output, errors = run(*command, "--version")

        assert (status, errors) == (0, "")
        assert re.fullmatch(rf"braze-exporter, version {re.escape(__version__)} \(python 3\.\d+\.\d+\w*\)\n", output)


def test_help(run: Run) -> None:
    """--help lists the commands, and every flag of a command."""
    status, output, _ = run("--help")

    assert status == 0
    assert re.findall(r"^  ([a-z]+)  ", output.partition("commands:")[2], re.MULTILINE) == [
        "demo",
        "simulate",
        "health",
        "check",
        "print",
    ]
    assert {"--config.file", "--config.check", "--web.listen-address", "--web.telemetry-path"} <= flags(output)
    assert {"--newest-day", "--log.level", "--log.format"} <= flags(run("demo", "--help")[1])
    assert {"--seed", "--campaigns", "--timezone", "--api-key-file"} <= flags(run("simulate", "--help")[1])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--unknown", "unrecognized arguments: --unknown"),
        ("--config.fil=x", "unrecognized arguments: --config.fil=x"),
        ("--config.file", "expected one argument"),
        ("--config x", "unrecognized arguments: --config x; did you mean --config.file or --config.check or "),
        ("--log.levl=debug", "unrecognized arguments: --log.levl=debug; did you mean --log.level?"),
        ("dmeo", "unrecognized arguments: dmeo; did you mean the command demo?"),
        ("chek", "unrecognized arguments: chek; did you mean the command check?"),
        ("helth --url=x", "did you mean the command health?"),
        ("xyz", "unrecognized arguments: xyz"),
        ("check chek", "unrecognized arguments: chek"),
        ("check --jsn", "unrecognized arguments: --jsn; did you mean --json?"),
        ("--config.file=x check --json", "; a command comes before its flags: braze-exporter check [FLAGS]"),
        ("--config.check demo", "unrecognized arguments: demo; a command comes before its flags: "),
        ("demo --config.file=x", "unrecognized arguments: --config.file=x"),
        ("--log.level=trace", "invalid choice: 'trace'"),
        ("--log.level=INFO", "invalid choice: 'INFO'"),
        ("--log.format=xml", "invalid choice: 'xml'"),
        ("--web.listen-address=10105", "expected HOST:PORT, [IPV6]:PORT or :PORT, got '10105'"),
        ("--web.listen-address=", "got ''"),
        ("--web.listen-address=:", "got ':'"),
        ("--web.listen-address=host", "got 'host'"),
        ("--web.listen-address=:65536", "got ':65536'"),
        ("--web.listen-address=:-1", "got ':-1'"),
        ("--web.listen-address=:٣", "got ':٣'"),
        ("--web.listen-address=::1:80", "got '::1:80'"),
        ("--web.listen-address=[host]:80", "got '[host]:80'"),
        ("--web.listen-address=http://host:80", "got 'http://host:80'"),
        ("--web.listen-address=a..b:80", "got 'a..b:80'"),
        (f"--web.listen-address={'a' * 64}:80", f"got '{'a' * 64}:80'"),
        ("--web.telemetry-path=metrics", "expected a path such as /metrics, not below /-/, got 'metrics'"),
        ("--web.telemetry-path=", "got ''"),
        ("--web.telemetry-path=/-/metrics", "got '/-/metrics'"),
        ("--web.telemetry-path=//evil.example", "got '//evil.example'"),
        ("--web.telemetry-path=/metrics/", "got '/metrics/'"),
        ("--web.telemetry-path=/../metrics", "got '/../metrics'"),
        ("--web.telemetry-path=/{path}", "got '/{path}'"),
        ("--web.telemetry-path=/met?rics", "got '/met?rics'"),
        ("--web.health.listen-address=10106", "expected HOST:PORT, [IPV6]:PORT or :PORT, got '10106'"),
        ("--web.max-connections=0", "expected a number from 1 to 100000, got '0'"),
        ("--web.max-connections=many", "got 'many'"),
        ("--web.header-timeout=10", "expected a duration from 100ms to 1h such as 10s, got '10'"),
        ("--web.header-timeout=99ms", "got '99ms'"),
        ("--web.write-timeout=1h1ms", "got '1h1ms'"),
        ("--web.max-connections=100001", "got '100001'"),
        ("--web.max-connections=1000000000", "got '1000000000'"),
        ("--config.auto-reload-interval=30", "expected a duration from 1s to 24h such as 30s, got '30'"),
        ("--config.auto-reload-interval=999ms", "got '999ms'"),
        ("--config.auto-reload-interval=24h1ms", "got '24h1ms'"),
        ("--web.header-timeout=0s", "got '0s'"),
        ("--web.write-timeout=2h", "got '2h'"),
        ("--web.write-timeout=", "got ''"),
        ("--shard=1", "expected a number below --total-shards, which is 1, got 1; shards are counted from 0"),
        ("--shard=4 --total-shards=4 --config.check", "which is 4, got 4"),
        ("--shard=-1 --total-shards=2", "expected a number from 0 to 1023, got '-1'"),
        ("--shard=first", "got 'first'"),
        ("--shard=1024 --total-shards=1024", "got '1024'"),
        ("--shard=٣ --total-shards=4", "got '٣'"),
        ("--total-shards=0", "expected a number from 1 to 1024, got '0'"),
        ("--total-shards=1025", "got '1025'"),
        ("--total-shards=", "got ''"),
        ("demo --shard=0", "unrecognized arguments: --shard=0"),
        ("demo --web.listen-address=:10105", "expected a loopback address such as 127.0.0.1:10105, got ':10105'"),
        ("demo --web.listen-address=0.0.0.0:1", "got '0.0.0.0:1'"),
        ("demo --web.listen-address=[::]:1", "got '[::]:1'"),
        ("demo --web.listen-address=example.com:1", "got 'example.com:1'"),
        ("demo --newest-day=tomorrow", "invalid choice: 'tomorrow'"),
        ("simulate --web.listen-address=0.0.0.0:1", "got '0.0.0.0:1'"),
        ("simulate --campaigns=0", "expected a number from 1 to 100000, got '0'"),
        ("simulate --campaigns=many", "got 'many'"),
        ("simulate --campaigns=100001", "got '100001'"),
        ("simulate --seed=x", "invalid int value: 'x'"),
        ("simulate --timezone=Mars/Olympus", "expected an IANA time zone such as Europe/Berlin, got 'Mars/Olympus'"),
        ("simulate --timezone=../etc", "got '../etc'"),
        ("simulate --timezone=", "got ''"),
    ],
)
def test_wrong_usage(arguments: str, expected: str, run: Run) -> None:
    """Wrong usage ends with status 2, the usage, and one line that says what came and what is right."""
    status, output, errors = run(*arguments.split(" "))

    assert (status, output) == (2, "")
    assert errors.startswith("usage: braze-exporter")
    assert expected in errors.splitlines()[-1]
    assert arguments.startswith(("demo", "simulate", "check ")) or "{demo,simulate,health,check,print}" in errors


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        ("--web.listen-address=:0 --web.listen-address=[::1]:65535", "listen_addresses", [("", 0), ("::1", 65535)]),
        ("--web.listen-address=10.0.0.1:10105", "listen_addresses", [("10.0.0.1", 10105)]),
        ("--web.health.listen-address=:1 --web.health.listen-address=a.b:2", "health_addresses", [("", 1), ("a.b", 2)]),
        ("", "listen_addresses", None),
        ("", "health_addresses", None),
        ("", "default_listen_address", ("", 10105)),
        ("demo", "default_listen_address", ("127.0.0.1", 10105)),
        ("demo --web.listen-address=LocalHost:1", "listen_addresses", [("127.0.0.1", 1)]),
        ("simulate", "listen_address", ("127.0.0.1", 10106)),
        ("simulate --web.listen-address=[::1]:1", "listen_address", ("::1", 1)),
        ("--web.max-connections=1", "max_connections", 1),
        ("--web.max-connections=100000", "max_connections", 100_000),
        ("--web.header-timeout=100ms", "header_timeout", 0.1),
        ("--web.write-timeout=1h", "write_timeout", 3600),
        ("", "header_timeout", 10),
        ("", "write_timeout", 60),
        ("demo", "max_connections", 1000),
        ("demo", "enable_lifecycle", False),
        ("demo", "auto_reload_interval", None),
        ("--config.auto-reload-interval=1s", "auto_reload_interval", 1),
        ("--config.auto-reload-interval=24h", "auto_reload_interval", 86_400),
        ("", "auto_reload_interval", None),
        ("", "enable_lifecycle", False),
        ("--web.enable-lifecycle", "enable_lifecycle", True),
        ("--web.telemetry-path=/", "telemetry_path", "/"),
        ("--web.telemetry-path=/a/~b_c.d-e", "telemetry_path", "/a/~b_c.d-e"),
        ("--shard=1023 --total-shards=1024", "shard", 1023),
        ("--total-shards=1024", "total_shards", 1024),
        ("simulate --campaigns=100000", "campaigns", 100_000),
        ("simulate --seed=-7", "seed", -7),
        ("simulate --timezone=Asia/Kolkata", "timezone", ZoneInfo("Asia/Kolkata")),
        ("demo", "log_level", "warning"),
        ("print", "log_level", "error"),
        ("", "config_check", False),
    ],
)
def test_values(arguments: str, name: str, expected: object) -> None:
    """Each flag takes what it can at the most, and has its default without it."""
    command, *flags = arguments.split(" ") if not arguments.startswith("-") else ["", *arguments.split(" ")]

    assert getattr(flag_parser(command).parse_args(flags), name) == expected


def test_empty_argument(run: Run) -> None:
    """An empty argument, as an unset variable in a script leaves it, is wrong usage too."""
    assert run("", "--config.check")[0] == 2


def flags(text: str) -> set[str]:
    """Return the flags that a help text names at the beginning of a line."""
    return set(re.findall(r"^  (--[a-z.-]+)", text, re.MULTILINE))


@pytest.mark.server
def test_reading_flags_loads_no_server() -> None:
    """Importing the flags loads neither the server, which sets asyncio up for itself, nor bcrypt."""
    script = "import sys, exporter.flags; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

    assert "exporter.flags" in loaded
    assert {"asyncio", "bcrypt", "exporter.web.server", "uvicorn"} & set(loaded) == set()
