"""Tests of exporter.system.signals: a thread receives what is blocked: each SIGHUP as an item, and the first end."""

import signal
import subprocess
import sys

import pytest

from tests.support.servers import PATIENCE, ROOT

pytestmark = pytest.mark.server

RECEIVING = """
import os, signal, sys, threading
numbers = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
for number in map(int, sys.argv[1].split(",")[:1]):
    os.kill(os.getpid(), number)  # before anybody receives
from exporter.system.signals import Signals
ended = threading.Event()
signals = Signals(numbers, lambda: print("stop of the start"))
signals.on_stop = lambda: (print("stop"), ended.set())
for number in map(int, sys.argv[1].split(",")[1:]):
    if number == signal.SIGHUP:
        signals.hangups.get(timeout=60)
        print("hangup")
    os.kill(os.getpid(), number)
ended.wait(60)
print(signals.hangups.qsize(), "left")
"""


def received(*numbers: signal.Signals) -> list[str]:
    """Return what a process prints that gets the first signal before it receives any and the others afterwards."""
    command = [sys.executable, "-c", RECEIVING, ",".join(str(number.value) for number in numbers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return done.stdout.splitlines()


def test_a_signal_that_comes_early_waits() -> None:
    """A SIGHUP that was sent while nobody received is an item, as is each later one; none ends the process."""
    lines = received(signal.SIGHUP, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)

    assert lines[:3] == ["hangup", "hangup", "stop"]


def test_the_first_end_counts() -> None:
    """SIGINT means the end like SIGTERM, and is received once; what comes later changes nothing."""
    lines = received(signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTERM)

    assert lines == ["stop", "1 left"]
