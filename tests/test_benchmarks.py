"""The benchmarks run: what they measure is for people to read."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks import soak
from benchmarks.loops import LOOPS
from benchmarks.soak import Footprint, Grown
from tests.support.found import some
from tests.support.servers import ROOT


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
        for path in some((ROOT / "deploy/prometheus").glob("*/*.yml"), "files of rules")
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


@pytest.mark.alone
def test_large_responses() -> None:
    """The measurement of large responses ends by itself and prints what each shape of them did."""
    flags = ("--campaigns=2", "--seconds=1", "--shape=an empty list", "--shape=entries without anything")
    head, *shapes = output_of("benchmarks.large_responses", *flags).splitlines()

    assert head.split() == ["responses", "MiB", "oldest", "numbers", "slowest", "scrape", "most", "memory"]
    measured = [re.findall(r"([\d.]+) (?:s|MiB)\b", line) for line in shapes]
    assert all(0 < float(age) < 60 and float(slowest) < 60 and float(memory) > 10 for age, slowest, memory in measured)
    assert len(measured) == 2


@pytest.mark.server
def test_soak() -> None:
    """The soak ends by itself and finds nothing wrong; in a quarter of a minute memory may still grow."""
    output = output_of("benchmarks.soak", "--minutes=0.25", "--growth=3")

    assert output.splitlines()[-1] == "Nothing grew, nothing went wrong, and the numbers are Braze's."


def test_soak_sees_what_grows() -> None:
    """What the last quarter of the samples has more than the second, in the median, has grown; a start may be slow."""
    start = [Footprint(number, 0, 0) for number in range(1, 101)]
    flat, up = [Footprint(1000, 40, 9)] * 100, [Footprint(1300, 70, 30)] * 100

    assert soak.grown(start + flat + flat + flat, 1.25) == []
    assert soak.grown(start + flat + flat + up, 1.25) == [
        Grown("memory (KiB)", 1000, 1300),
        Grown("open files", 40, 70),
        Grown("threads", 9, 30),
    ]


def test_soak_sees_wrong_numbers() -> None:
    """Each statistic of each channel is compared with the newest day of Braze's answer; without any it is an error."""
    rows = [{"variation_name": "A", "sent": 3, "conversions": 1, "conversions1": 4}, {"sent": 4, "bounces": 9}]
    days = [{"messages": {"email": [{"sent": 1000}]}}, {"messages": {"email": rows}}]
    answers = [(f"c{number}", json.dumps({"data": days}).encode()) for number in range(soak.CAMPAIGNS)]
    metrics = "".join(
        f'braze_message_{name}{{campaign_id="{campaign}",campaign_name="a,\\"b",channel="email"{more}}} {value}\n'
        for campaign, _ in answers
        for name, more, value in (
            ("sent", ',variation_name="A"', "3.0"),
            ("sent", ',variation_name="B"', "4.0"),
            ("conversions", ',conversion_event="A"', "1.0"),
            ("conversions", ',conversion_event="B"', "4.0"),
        )
    )

    assert soak.differences(answers, metrics) == []
    assert soak.differences(answers, metrics.replace(" 4.0", " 5.0", 1)) == ["c0 email sent: Braze says 7, served is 8"]
    with pytest.raises(AssertionError):
        soak.differences(answers, "")
