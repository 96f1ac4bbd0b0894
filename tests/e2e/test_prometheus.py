"""A real Prometheus scrapes the running exporter, which polls a simulated Braze: what went in at one end comes out."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from exporter.simulator.server import Body, Simulator
from exporter.simulator.world import CONTROL_GROUP, campaign_models, daily
from tests.support.exporters import KEY, Exporter, configure, running_exporter
from tests.support.servers import Answer, Prometheus, eventually, serving

Start = Callable[[str], Prometheus]
Series = tuple[str, frozenset[tuple[str, str]]]
"""The name of a metric, and its labels with their values."""

NOON = datetime(2026, 3, 3, 12, tzinfo=UTC).timestamp()
HOSTILE = {
    "quotes": "\"double\" 'single' `back`",
    "line breaks": "one\ntwo\r\nthree\u2028four",
    "backslashes": '\\ \\n \\" \\',
    "syntax": '{a="b"} 1 # EOF',
    "emoji": "🛒 ☀️ 👩‍👩‍👧",
    "replaced": "\ufffd and \udcff",
    "control characters": "\x00\x01\x1b[31m\x7f",
    "right to left": "\u202eevil",
    "blanks": "  \t ",
    "long": "x" * 5000,
}
HOSTILE_DAY = {
    "time": "2026-03-03",
    **{f"of the day {name}": 1 for name in HOSTILE.values()},
    "messages": {
        "email": [
            {"variation_api_id": f"id {name}", "variation_name": name, "sent": number, f"of {name}": number}
            for number, name in enumerate(HOSTILE.values())
        ],
        **{f"channel {name}": [{"sent": 7}] for name in HOSTILE.values()},
    },
}
CAMPAIGNS = campaign_models(13)
VICTIM = CAMPAIGNS[-1].id
NAMES = {campaign.id: campaign.name for campaign in CAMPAIGNS} | {VICTIM: 'Hostile \\ "name" \\n {x="y"} 🛒'}


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """An exporter after its only round; in Braze it is noon on 3 March 2026."""
    folder = tmp_path_factory.mktemp("exporter")
    with Simulator(campaigns=CAMPAIGNS, api_key=KEY, clock=lambda: NOON) as braze:
        braze.misbehave(Body(json.dumps({"data": [HOSTILE_DAY]}).encode()), campaign_id=VICTIM)
        file = configure(folder, braze, workspace='Über "us"', names=NAMES)
        with running_exporter(file) as exporter:
            yield exporter


def test_promtool(exporter: Exporter, promtool: Path) -> None:
    """Promtool finds nothing to complain about on the whole page."""
    check = subprocess.run(
        (promtool, "check", "metrics"), input=exporter.ask().content, capture_output=True, check=False
    )

    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


@pytest.mark.parametrize("form", ["OpenMetrics", "text"])
def test_every_sample_arrives(form: str, exporter: Exporter, prometheus: Start) -> None:
    """Prometheus has every braze_* sample with the labels and the value of the page, and nothing to complain about."""
    with text_only(exporter) if form == "text" else unchanged(exporter) as target:
        server = prometheus(scraping(target))
        arrived = samples_of(server)
        page = exporter.ask(Accept="application/openmetrics-text").content.decode()

        expected = {
            series(sample.name, sample.labels): sample.value
            for family in parse_openmetrics(page)  # type: ignore[no-untyped-call]
            for sample in family.samples
            if sample.name.startswith("braze_")
        }
        assert len(expected) > 1000
        assert arrived == expected
        count = sum(not line.startswith("#") for line in page.rstrip("\n").split("\n"))
        assert {value for _, value in server.query("scrape_samples_scraped")} == {count}
        assert {value for _, value in server.query("scrape_samples_post_metric_relabeling")} == {count}
        (active,) = targets(server)
        assert (active["health"], active["lastError"]) == ("up", "")
        assert not [
            line for line in server.program.output().splitlines() if "level=warn" in line or "level=error" in line
        ]


def test_numbers_are_those_of_braze(exporter: Exporter, prometheus: Start) -> None:
    """The query API returns what Braze counted: of a campaign, of its variants and control group, on both days."""
    server = prometheus(scraping(exporter.url))
    arrived = samples_of(server)
    campaign = CAMPAIGNS[1]
    today = datetime.fromtimestamp(NOON, UTC).date()
    for prefix, day in (("braze_", today), ("braze_previous_day_", today - timedelta(days=1))):
        counted = daily(campaign, day, now=NOON, zone=UTC)
        assert isinstance(counted["messages"], dict)

        of_campaign = {"campaign_id": campaign.id, "campaign_name": campaign.name, "workspace": 'Über "us"'}
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
        assert arrived[series(f"{prefix}campaign_day_timestamp_seconds", of_campaign)] == midnight
        for name, statistic in (("unique_recipients", "unique_recipients"), ("revenue_dollars", "revenue")):
            assert arrived[series(f"{prefix}campaign_{name}", of_campaign)] == counted[statistic]
        for channel in ("ios_push", "android_push"):
            rows = counted["messages"][channel]
            assert [row["variation_name"] for row in rows] == ["Variant 1", "Variant 2", CONTROL_GROUP]
            for row in rows:
                of_variation = of_campaign | {
                    "channel": channel,
                    "variation_id": row["variation_api_id"],
                    "variation_name": row["variation_name"],
                }
                sent = "enrolled" if row["variation_name"] == CONTROL_GROUP else "sent"
                assert arrived[series(f"{prefix}message_{sent}", of_variation)] == row[sent]
                assert row[sent] > 0
                assert arrived[series(f"{prefix}message_revenue_dollars", of_variation)] == row["revenue"]
                converted = series(f"{prefix}message_conversions", of_variation | {"conversion_event": "A"})
                assert arrived[converted] == row["conversions"]


def test_hostile_names_arrive(exporter: Exporter, prometheus: Start) -> None:
    """Any name arrives as Braze sent it, but for half characters, which are replaced, and for length."""
    server = prometheus(scraping(exporter.url))
    arrived = samples_of(server)
    sent = [name.replace("\udcff", "\ufffd") for name in HOSTILE.values()]

    labels = [dict(pairs) for name, pairs in arrived if name == "braze_message_sent"]
    hostile = [each for each in labels if each["campaign_id"] == VICTIM]
    assert {each["variation_name"] for each in hostile} == {"unnamed 1", *map(shortened, sent)}
    assert {each["channel"] for each in hostile} == {"email", *(shortened(f"channel {name}") for name in sent)}
    assert {each["campaign_name"] for each in hostile} == {NAMES[VICTIM]}


def shortened(name: str) -> str:
    """Return a name as a label has it: at most 1,000 bytes, of which the ellipsis takes three."""
    return name if len(name.encode()) <= 1000 else f"{name.encode()[:997].decode(errors='ignore')}…"


def scraping(url: str) -> str:
    """Return a configuration that scrapes one address each second."""
    return (
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: braze, static_configs: [{{targets: ['{url.removeprefix('http://')}']}}]}}]\n"
    )


def samples_of(server: Prometheus) -> dict[Series, float]:
    """Wait for a scrape, and return the braze_* samples of it without the labels of the target."""
    eventually(lambda: any(value == 1 for _, value in server.query("up")), what="a scrape that succeeded")
    eventually(lambda: server.query("braze_exporter_series"), what="samples")
    return {
        series(labels.pop("__name__"), {name: labels[name] for name in labels.keys() - {"job", "instance"}}): value
        for labels, value in server.query('{__name__=~"braze_.+"}')
    }


def targets(server: Prometheus) -> list[dict[str, object]]:
    """Return Prometheus' targets."""
    answer = server.ask("targets")
    assert isinstance(answer, dict)
    active = answer["activeTargets"]
    assert isinstance(active, list)
    return active


def series(name: str, labels: dict[str, str]) -> Series:
    """Return the series of a name and labels; Prometheus drops empty labels."""
    return name, frozenset((label, value) for label, value in labels.items() if value)


@contextmanager
def unchanged(exporter: Exporter) -> Iterator[str]:
    """The exporter's own address: Prometheus 2.42 requests OpenMetrics."""
    yield exporter.url


@contextmanager
def text_only(exporter: Exporter) -> Iterator[str]:
    """The address of a relay that requests the text format, which Prometheus 2.42 cannot be configured to do."""

    def relay(path: str, _: bytes) -> Answer:
        answer = exporter.ask(path, Accept="text/plain")
        return Answer(answer.content, answer.headers["Content-Type"], answer.status_code)

    with serving(relay) as address:
        yield f"http://{address}"
