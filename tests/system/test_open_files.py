"""Tests of exporter.open_files: how the limit is shared, and exporters that run with little."""

import re
import resource
import signal
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.simulator.server import Hang, Simulator
from exporter.system.open_files import (
    FEWEST_CONNECTIONS,
    OTHERS,
    Shares,
    TooFewOpenFilesError,
    raised_limit,
    share,
    wanted,
)
from tests.support.exporters import COMMAND, KEY, Exporter, configure
from tests.support.servers import eventually, running


@pytest.mark.parametrize(
    ("limit", "servers", "workspaces", "expected"),
    [
        (2000, 1, 1, Shares(connections=1000, concurrency=32)),
        (1088, 1, 1, Shares(connections=1000, concurrency=32)),
        (1087, 1, 1, Shares(connections=999, concurrency=32)),
        (104, 1, 1, Shares(connections=16, concurrency=32)),
        (103, 1, 1, Shares(connections=17, concurrency=31)),
        (102, 1, 1, Shares(connections=16, concurrency=31)),
        (42, 1, 1, Shares(connections=16, concurrency=1)),
        (184, 2, 2, Shares(connections=16, concurrency=32)),
        (180, 2, 2, Shares(connections=16, concurrency=31)),
        (60, 2, 2, Shares(connections=16, concurrency=1)),
    ],
)
def test_shares(limit: int, servers: int, workspaces: int, expected: Shares) -> None:
    """Connections give way first, down to 16 of each server, then polls, down to one of each workspace."""
    assert share(limit, servers=servers, connections=1000, workspaces=workspaces, concurrency=32) == expected


@given(
    limit=st.integers(0, 3000),
    servers=st.integers(1, 2),
    connections=st.integers(1, 2000),
    workspaces=st.integers(1, 50),
    concurrency=st.integers(1, 100),
)
def test_shares_fit(limit: int, servers: int, connections: int, workspaces: int, concurrency: int) -> None:
    """What is shared out is within the limit and within what is wanted; it is refused only if it cannot be enough."""
    fewest = min(connections, FEWEST_CONNECTIONS)
    try:
        shares = share(limit, servers=servers, connections=connections, workspaces=workspaces, concurrency=concurrency)
    except TooFewOpenFilesError:
        assert limit < OTHERS + servers * fewest + 2 * workspaces
    else:
        assert OTHERS + servers * shares.connections + 2 * workspaces * shares.concurrency <= limit
        assert fewest <= shares.connections <= connections
        assert 1 <= shares.concurrency <= concurrency
        enough = wanted(servers=servers, connections=connections, workspaces=workspaces, concurrency=concurrency)
        assert (shares == Shares(connections, concurrency)) == (limit >= enough)


def test_connections_that_are_there_stay() -> None:
    """Where a server has its connections already, polls of more workspaces share what is left."""
    shares = share(128, servers=1, connections=72, workspaces=3, concurrency=32, fewest=72)

    assert shares == Shares(connections=72, concurrency=5)


def test_too_few() -> None:
    """Where that is not possible either, the message names the limit, what is needed and how to get it."""
    with pytest.raises(TooFewOpenFilesError) as raised:
        share(41, servers=1, connections=1000, workspaces=1, concurrency=32)

    assert str(raised.value) == (
        "the limit on open files is 41, expected at least 42: raise it, for example with `ulimit -n` or LimitNOFILE= "
        "of systemd"
    )


def test_the_limit_is_raised() -> None:
    """The soft limit is raised to what is needed, as far as the hard limit allows, and never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert (raised_limit(100), resource.getrlimit(resource.RLIMIT_NOFILE)) == (256, (256, hard))
        assert (raised_limit(700), resource.getrlimit(resource.RLIMIT_NOFILE)) == (700, (700, hard))
        assert (raised_limit(10**9), resource.getrlimit(resource.RLIMIT_NOFILE)) == (hard, (hard, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.server
@pytest.mark.parametrize("limit", [32, 42, 48, 64, 128, 256])
def test_few_open_files(limit: int, tmp_path: Path) -> None:
    """With few open files the exporter polls and is scraped while requests and clients hang, or says why it cannot.

    A reload with one more workspace leaves fewer requests to each.
    """
    with Simulator(api_key=KEY, campaigns=200) as braze:
        file = configure(tmp_path, braze, poll="interval: 1s, timeout: 10s, stale_after: 1m")
        shell = ["/bin/sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *COMMAND, f"--config.file={file}"]
        with running((*shell, "--web.listen-address=127.0.0.1:0"), log=tmp_path / "log") as program:
            if limit < 42:
                program.logged(rf"^the limit on open files is {limit}, expected at least 42: raise it")
                assert program.process.wait(timeout=20) == 1
                return
            exporter = Exporter(program, program.logged(r"\burl=(\S+)")[1])
            eventually(exporter.ready, what="an exporter that is ready")
            assert {*exporter.samples("braze_campaign_up").values()} == {"1.0"}
            warned = re.findall(
                r'msg="(\S+) is (\d+) instead of (\d+), as the limit on open files is (\d+)', program.output()
            )
            concurrency = min(32, (limit - 40) // 2)
            assert ("poll.concurrency", str(concurrency), "32", str(limit)) in warned or concurrency == 32
            assert ("--web.max-connections", str(limit - 24 - 2 * concurrency), "1000", str(limit)) in warned

            braze.misbehave(Hang())
            address = urlsplit(exporter.url)
            with ExitStack() as stack:
                for _ in range(limit):
                    stack.enter_context(closing(socket.create_connection((address.hostname, address.port))))
                eventually(lambda: exporter.open_files() > limit - 24, what="many open files")
                assert exporter.ask().ok
            one_workspace = file.read_text(encoding="utf-8")
            another = one_workspace[one_workspace.index("  - name:") :].replace("main", "another")
            file.write_text(one_workspace + another, encoding="utf-8")
            program.process.send_signal(signal.SIGHUP)
            if concurrency == 1:
                program.logged(r"level=error .*the limit on open files is 42, expected at least 44")
                return
            program.logged("the configuration was reloaded")
            assert f"concurrency: {concurrency // 2}\n" in exporter.ask("/config").text
            braze.behave()
            eventually(lambda: len(exporter.samples("braze_workspace_up")) == 2, what="two workspaces")
            assert exporter.ask().ok
