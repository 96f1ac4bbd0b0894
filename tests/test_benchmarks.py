"""The benchmarks run: what they measure is for people to read."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks.loops import LOOPS
from tests.servers import ROOT


def output_of(module: str, *flags: str) -> str:
    """Run a measurement to its end; return what it prints."""
    command = [sys.executable, "-m", module, *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result
    return result.stdout


@pytest.mark.alone
@pytest.mark.usefixtures("nginx")
def test_bench(tmp_path: Path) -> None:
    """The comparison ends by itself, and everybody whom it measures has done something at every place."""
    file = tmp_path / "bench.json"

    output = output_of("benchmarks.bench", "--quick", f"--output={file}")

    found = json.loads(file.read_text(encoding="utf-8"))
    assert list(found) == ["machine", "targets", "scrapes", "polls", "starts", "memory"]
    assert all(target["name"] in output for target in found["targets"])
    servers = Counter(scrapes["server"] for scrapes in found["scrapes"])
    assert servers == {"braze-exporter": 6, "nginx": 6, "prometheus_client": 2}
    assert all(scrapes["p99"] >= scrapes["p50"] > 0 for scrapes in found["scrapes"])
    assert {polls["client"] for polls in found["polls"]} == {"braze-exporter", *LOOPS}
    assert all(polls["per_second"] > 0 and polls["cpu"] > 0 for polls in found["polls"])
    assert all(start["ready"] > start["polls"] > 0 and start["cpu"] > 0 for start in found["starts"])
    few, many = found["memory"]
    assert few["series"] < many["series"]


@pytest.mark.alone
@pytest.mark.usefixtures("promtool")
def test_rules() -> None:
    """The measurement of the rules ends by itself and prints the cost of each group of each file."""
    output = output_of("benchmarks.rules", "--campaigns=3", "--evaluations=1", "--every=1")

    about, groups, costliest, verdict = output.split("\n\n")
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


@pytest.mark.alone
@pytest.mark.usefixtures("promtool")
def test_dashboards() -> None:
    """The measurement of the dashboards ends by itself and prints the times of each dashboard, and what is too slow."""
    output = output_of("benchmarks.dashboards", "--campaigns=3", "--days=8", "--every=1")

    about, table, slowest, verdict = output.split("\n\n")
    measured = re.findall(r"^(braze-\w+) +(\d+) +(\S+) +(\S+) +(\S+)$", table, re.MULTILINE)
    assert about.startswith("3 campaigns")
    assert {uid for uid, *_ in measured} == {path.stem for path in (ROOT / "grafana/dashboards").glob("*.json")}
    assert all(0 < float(p50) <= float(worst) <= float(all_of_them) for _, _, p50, worst, all_of_them in measured)
    assert float(slowest.splitlines()[1].split()[0]) > 0
    assert "above a second" in verdict
