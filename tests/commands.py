"""Commands of the exporter that end by themselves, run in this process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import pytest

from exporter import cli


class Run(Protocol):
    """Runs a command that ends by itself."""

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit status, and what was written to stdout and to stderr."""


@contextmanager
def commands(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Yield what runs commands; the handlers of signals, which they set, are put back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status: object = cli.main(arguments)
        except SystemExit as wrong_usage:
            status = wrong_usage.code
        assert isinstance(status, int)
        return status, *capfd.readouterr()

    yield run
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
