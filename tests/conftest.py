"""Fixtures for all tests: external programs, and the option that rewrites goldens."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

from tests.support.servers import Alertmanager, Prometheus, find_program, running_alertmanager, running_prometheus
from tests.support.system import Volume

Server = TypeVar("Server")

MISSING = "program not installed: "
# Fixtures of programs that serve, and of programs that check files and end.
SERVERS = {"alertmanager", "chromium", "nginx", "prometheus"}
CHECKERS = {"amtool", "promtool"}

# A busy machine is no failure. The settings of hypothesis for CI stay in force.
hypothesis.settings.register_profile("braze-exporter", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("braze-exporter")
# `make soak` runs twenty times as many examples.
hypothesis.settings.register_profile("soak", hypothesis.settings(), deadline=None, max_examples=2000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --update-goldens."""
    parser.addoption("--update-goldens", action="store_true", help="write the goldens anew instead of comparing")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use an external program, so that -m selects them."""
    for item in items:
        if isinstance(item, pytest.Function):
            used = set(item.fixturenames)
            if SERVERS & used or item.get_closest_marker("alone"):
                item.add_marker("server")
            if "checker" in used or (CHECKERS & used and not item.get_closest_marker("server")):
                item.add_marker("checker")


@pytest.fixture(scope="session")
def update_goldens(pytestconfig: pytest.Config) -> bool:
    """Whether goldens are to be written instead of compared."""
    return bool(pytestconfig.getoption("--update-goldens"))


@pytest.fixture
def volume() -> Iterator[Volume]:
    """A file system that hangs when the test wants it, until the test ends."""
    volume = Volume()
    yield volume
    volume.answer()


@pytest.fixture(scope="session")
def promtool() -> Path:
    """The path of promtool."""
    return _require("promtool")


@pytest.fixture(scope="session")
def amtool() -> Path:
    """The path of amtool."""
    return _require("amtool")


@pytest.fixture(scope="session")
def nginx() -> Path:
    """The path of nginx."""
    return _require("nginx")


@pytest.fixture(scope="session")
def curl() -> Path:
    """The path of curl."""
    return _require("curl")


@pytest.fixture(scope="session")
def openssl() -> Path:
    """The path of openssl."""
    return _require("openssl")


@pytest.fixture(scope="session")
def checker() -> Callable[[str], Path]:
    """Find a program by its name that `make checkers` installs: groups deploy and mutants in pyproject.toml."""
    return _require


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The path of Chromium, or of what Debian makes of it for work without windows."""
    return find_program("chromium") or _require("chromium-headless-shell")


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[str], Prometheus]]:
    """Start a Prometheus with the given configuration (YAML); it is stopped when the test ends."""
    executable = _require("prometheus")
    with _starting(tmp_path, "prometheus", partial(running_prometheus, executable)) as start:
        yield start


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Callable[[str], Alertmanager]]:
    """Start an Alertmanager with the given configuration (YAML); it is stopped when the test ends."""
    # Debian's name for it, and the one that it has elsewhere.
    executable = find_program("prometheus-alertmanager") or _require("alertmanager")
    with _starting(tmp_path, "alertmanager", partial(running_alertmanager, executable)) as start:
        yield start


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Print a last line with the missing programs and the number of tests skipped without them."""
    yield
    reasons = [
        report.longrepr[2]
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple) and MISSING in report.longrepr[2]
    ]
    if reasons:
        names = ", ".join(sorted({reason.partition(MISSING)[2] for reason in reasons}))
        terminalreporter.write_line(
            f"Tests left out because a program is not installed: {len(reasons)} ({names});"
            " `make servers checkers` fetches them",
            yellow=True,
        )


@contextmanager
def _starting(
    parent: Path, name: str, run: Callable[[str, Path], AbstractContextManager[Server]]
) -> Iterator[Callable[[str], Server]]:
    """Run a server with a configuration in a folder of its own, until the context ends."""
    with ExitStack() as stack:

        def start(configuration: str) -> Server:
            folder = parent / f"{name}-{len(list(parent.glob(f'{name}-*')))}"
            folder.mkdir()
            return stack.enter_context(run(configuration, folder))

        yield start


def _require(name: str) -> Path:
    """Find a program; without it skip the test, and on CI, which must not lose tests unnoticed, fail it."""
    program = find_program(name)
    if program is None and os.environ.get("CI") == "true":
        pytest.fail(MISSING + name)
    if program is None:
        pytest.skip(MISSING + name)
    return program
