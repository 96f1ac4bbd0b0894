"""The benchmarks run: what they measure is for people to read."""

import re
import subprocess
import sys

import pytest
import yaml

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


@pytest.mark.usefixtures("promtool")
def test_rules() -> None:
    """The measurement of the rules ends by itself and prints the cost of each group of each file."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.rules", "--campaigns=3", "--evaluations=1", "--every=1", "--panels"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert result.returncode == 0, result
    about, groups, costliest, verdict, queries = result.stdout.split("\n\n")
    measured = re.findall(r"^  (\S+) +(\d+) .* (\S+) s +(\S+) s +\S+%$", groups, re.MULTILINE)
    expected = {
        group["name"]: len(group["rules"])
        for path in (ROOT / "deploy/prometheus").glob("*/*.yml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8")).get("groups", ())
    }
    assert about.startswith("3 campaigns")
    assert expected.items() <= {name: int(rules) for name, rules, _, _ in measured}.items()
    assert all(0 < float(median) <= float(worst) for _, _, median, worst in measured), groups
    assert float(costliest.splitlines()[1].split()[0]) > 0
    assert "tenth of the interval" in verdict
    assert float(queries.splitlines()[1].split()[0]) > 0
