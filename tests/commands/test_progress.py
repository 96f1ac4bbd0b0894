"""Tests of exporter.progress: what a terminal shows of a command that takes long."""

import io
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from exporter.commands.progress import Progress
from exporter.simulator.server import Latency, Simulator
from tests.support.exporters import COMMAND, KEY, configure


@pytest.mark.server
def test_progress_on_a_terminal(tmp_path: Path) -> None:
    """A round that takes longer than a second shows on a terminal how far it is; stdout has the text alone."""
    terminal, end = pty.openpty()
    with Simulator(api_key=KEY) as braze:
        braze.misbehave(Latency(1.6))
        command = [*COMMAND, "print", f"--config.file={configure(tmp_path, braze)}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end) as process:
            output, _ = process.communicate(timeout=60)
    os.close(end)
    shown = os.read(terminal, 65_536).decode()
    os.close(terminal)

    assert process.returncode == 0
    assert "] 0 of 12 campaigns\r" in shown
    assert re.fullmatch(r" +\r", shown.rpartition("campaigns\r")[2])
    assert output.startswith(b"# HELP braze_")


class Terminal(io.StringIO):
    """A stream that says to be a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_bar(stream: io.StringIO) -> None:
    """The bar comes after a second, on a terminal only, grows, and is wiped away; a shorter one leaves no rest."""
    now = 0.0
    progress = Progress(stream, lambda: now)

    progress.show(1, 2)
    progress.clear()
    assert stream.getvalue() == ""
    now = 1.0
    progress.show(1000, 2000)
    progress.show(5, 5)
    progress.clear()
    progress.clear()

    half = f"[{'#' * 15}{' ' * 15}] 1,000 of 2,000 campaigns\r"
    full = f"[{'#' * 30}] 5 of 5 campaigns".ljust(len(half) - 1) + "\r"
    wiped = " " * len(f"[{'#' * 30}] 5 of 5 campaigns") + "\r"
    assert stream.getvalue() == (half + full + wiped if stream.isatty() else "")
