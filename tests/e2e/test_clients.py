"""Compressed metrics in clients that people use: all of what is sent arrives, from its first line to its last."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from exporter.simulator.server import Simulator
from tests.support.browser import running_browser
from tests.support.exporters import KEY, Exporter, configure, running_exporter

pytestmark = pytest.mark.server

FIRST, LAST = "# HELP braze_message_", "python_gc_collections_total{"


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """An exporter with a few hundred campaigns, so that a response has many slices; without Braze none changes."""
    with ExitStack() as stack:
        with Simulator(api_key=KEY, campaigns=300) as braze:
            file = configure(tmp_path_factory.mktemp("exporter"), braze)
            exporter = stack.enter_context(running_exporter(file))
        yield exporter


def test_curl(curl: Path, exporter: Exporter) -> None:
    """Curl decompresses a response with the cached body and the current metrics as one."""
    command = (curl, "--silent", "--show-error", "--noproxy", "*", "--compressed", f"{exporter.url}/metrics")
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert text.startswith(FIRST)
    assert text.splitlines()[-1].startswith(LAST)
    assert braze_lines(text) == braze_lines(exporter.ask().text)


def test_chromium(chromium: Path, tmp_path: Path, exporter: Exporter) -> None:
    """A browser shows all of it, too."""
    with running_browser(chromium, tmp_path) as browser, browser.page(f"{exporter.url}/metrics") as page:
        (text,) = page.texts("pre")

    assert text.startswith(FIRST)
    assert text.splitlines()[-1].startswith(LAST)
    assert braze_lines(text) == braze_lines(exporter.ask().text)


def braze_lines(text: str) -> list[str]:
    """Return Braze's numbers."""
    return [line for line in text.splitlines() if line.startswith(("braze_message_", "braze_previous_day_"))]
