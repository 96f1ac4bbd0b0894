"""The benchmarks run: what they measure is for people to read."""

import subprocess
import sys

import pytest

from tests.servers import ROOT


@pytest.mark.server
def test_scrape() -> None:
    """The comparison of scrapes ends by itself and prints a row of numbers above zero for each measurement."""
    result = subprocess.run(
        [sys.executable, "benchmarks/scrape.py", "--series=1", "--scrapes=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result
    _, table = result.stdout.split("\n\n")
    measured = [line[34:].split() for line in table.splitlines()[1:]]
    assert len(measured) == 9
    assert all(float(number) > 0 for row in measured for number in row), table
