"""Commands of the exporter that end by themselves, run in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import pytest

from exporter import cli


class Run(Protocol):
    """Function that runs a command until it ends."""

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit status, and what was written to stdout and to stderr."""


@contextmanager
def commands(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Yield a function that runs commands."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status: object = cli.main(arguments)
        except SystemExit as wrong_usage:
            status = wrong_usage.code
        assert isinstance(status, int)
        return status, *capfd.readouterr()

    yield run
