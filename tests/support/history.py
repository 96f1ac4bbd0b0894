"""Weeks of the simulated world's metrics in a Prometheus, as if it had scraped the exporter all the time."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

import yaml

from exporter.braze.counters import ApiStatistics
from exporter.braze.data_series import parse_data_series
from exporter.braze.errors import Reason
from exporter.exposition import render
from exporter.metrics import CAMPAIGN_STATUS, day_rows, exporter_rows, status_rows, workspace_rows
from exporter.simulator.world import CampaignModel, campaign_models, data_series
from exporter.state import CampaignState, WorkspaceState
from tests.support.servers import ROOT, Prometheus, running_prometheus, write_history

NOW = datetime(2025, 11, 8, 15, tzinfo=UTC)
"""End of the history. The whole history is in one of Prometheus' largest blocks."""

FIRST = datetime(2025, 10, 9, tzinfo=UTC)
ZONES = {"europe": "Europe/Berlin", "america": "America/New_York"}  # both changed their clocks within the history
CAMPAIGNS: Mapping[str, tuple[CampaignModel, ...]] = {
    "europe": campaign_models(12),
    "america": campaign_models(3, seed=2),
}

RULES = ROOT / "deploy/prometheus/rules"
# In labels as text, with the comma behind it.
_NAME = re.compile(r'campaign_name="(?:[^"\\]|\\.)*",?')

# The first pod was replaced here, and since then there are two replicas.
_REPLACED = NOW - timedelta(days=2, hours=3)
# One of them has not heard yet that a campaign has a new name.
_BEHIND = "c:10105"
_RENAMED = ('campaign_name="Anniversary"', 'campaign_name="Birthday"')
_HOURLY = timedelta(days=4)
_FOREIGN = """\
process_resident_memory_bytes 6e7
process_cpu_seconds_total 10
process_start_time_seconds 1759968000
scrape_duration_seconds 0.01
scrape_samples_scraped 2000
"""
_ALERT = (
    'alertname="BrazeEmailBounces",severity="warning",workspace="europe",campaign_id="1",campaign_name="Welcome e-mail"'
)
_ALERTS = f"""\
ALERTS{{{_ALERT},alertstate="firing"}} 1
ALERTS_FOR_STATE{{{_ALERT}}} 1762600000
"""


@contextmanager
def remembering_prometheus(promtool: Path, folder: Path) -> Iterator[Prometheus]:
    """Run the Prometheus beside promtool, with the samples of all scrapes from FIRST to NOW."""
    scraped = (line for moment in _moments() for line in _scrape(moment))
    write_history(promtool, (*scraped, *recorded_days()), folder)
    record_rules(promtool, folder, NOW - timedelta(hours=44), NOW, timedelta(hours=1))
    with running_prometheus(promtool.with_name("prometheus"), "global: {}", folder) as prometheus:
        yield prometheus


def polled(workspace: str, zone: ZoneInfo, campaign: CampaignModel, now: float) -> CampaignState:
    """Return the state of a campaign at a Unix time, after polls that succeeded."""
    answer = data_series(campaign, datetime.fromtimestamp(now, zone).date(), 2, now=now, zone=zone)
    series = parse_data_series(answer)
    return CampaignState(
        workspace,
        "data_series",
        zone,
        campaign.id,
        campaign.name,
        300,
        up=True,
        last_success=now - 60,
        polls=1,
        latest=series.latest,
        previous=series.previous,
    )


def recorded_day(state: CampaignState, time: float) -> Iterator[str]:
    """Yield what is recorded of a campaign's previous day, as the rules do and an import would: lines of OpenMetrics.

    `time` is the Unix time of recording.
    """
    day = state.previous
    if day is None:
        return
    weekday = f'weekday="{day.date.isoweekday() % 7}"'
    ids = f'workspace="{state.workspace}",campaign_id="{state.campaign_id}"'
    names = {f"braze_previous_day_{name}": f"{level}:braze_previous_day_{name}:day" for level, name in _of_days()}
    volume: dict[str, float] = {}
    for metric, text in render(day_rows(state)).items():
        if metric not in names:
            continue
        for line in text.decode().splitlines():
            series, _, value = line.rpartition(" ")
            labels = _NAME.sub("", series.partition("{")[2].removesuffix("}"))
            yield f"{names[metric]}{{{labels},{weekday}}} {value} {time:.0f}\n"
            if metric.endswith("_message_sent") or (metric.endswith("_message_impressions") and labels not in volume):
                volume[labels] = float(value)
    yield f"campaign:braze_previous_day_message_volume:day{{{ids},{weekday}}} {sum(volume.values())} {time:.0f}\n"
    midnight = datetime.combine(day.date, datetime.min.time(), UTC).timestamp()
    name = state.campaign_name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    yield f'campaign:braze_campaign_name:date{{{ids},campaign_name="{name}"}} {midnight:.0f} {time:.0f}\n'
    yield f"campaign:braze_recorded_day:date{{{ids}}} {midnight:.0f} {time:.0f}\n"


@cache
def _of_days() -> tuple[tuple[str, str], ...]:
    """Return the level and the statistic of each metric that is recorded for each complete day."""
    (group,) = yaml.safe_load((RULES / "braze-days.yml").read_text(encoding="utf-8"))["groups"]
    recorded = (re.fullmatch(r"(\w+):braze_previous_day_(\w+):day", rule["record"]) for rule in group["rules"])
    return tuple((match[1], match[2]) for match in recorded if match and match[2] != "message_volume")


def record_rules(
    promtool: Path, folder: Path, first: datetime, last: datetime, step: timedelta, files: str = "*"
) -> None:
    """Add to a Prometheus' data what the rules would have recorded between two times, without those of days.

    A rule is evaluated when all that it reads is there. So Prometheus starts anew for each level of them.
    """
    pending = [
        rule
        for path in sorted(RULES.glob(f"braze-{files}.yml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "record" in rule and group["name"] != "braze-days"
    ]
    while pending:
        missing = {rule["record"] for rule in pending}
        level = [rule for rule in pending if not missing & set(re.findall(r"\w+:\w+(?::\w+)?", rule["expr"]))]
        assert level, missing
        with running_prometheus(promtool.with_name("prometheus"), "global: {}", folder) as server:
            lines = [line for rule in level for line in _evaluated(server, rule, first, last, step)]
        write_history(promtool, lines, folder)
        pending = [rule for rule in pending if rule not in level]


def _evaluated(
    server: Prometheus, rule: Mapping[str, object], first: datetime, last: datetime, step: timedelta
) -> Iterator[str]:
    """Yield what a rule records."""
    own = rule.get("labels", {})
    assert isinstance(own, dict)
    times = {"start": f"{first.timestamp():.0f}", "end": f"{last.timestamp():.0f}"}
    data = server.ask("query_range", query=str(rule["expr"]), step=f"{step.total_seconds():.0f}", **times)
    assert isinstance(data, dict)
    for series in data["result"]:
        labels = {name: text for name, text in (series["metric"] | own).items() if name != "__name__"}
        pairs = ",".join(f"{name}={json.dumps(text, ensure_ascii=False)}" for name, text in labels.items())
        yield from (f"{rule['record']}{{{pairs}}} {value} {time:.0f}\n" for time, value in series["values"])


def recorded_days() -> Iterator[str]:
    """Yield what is recorded of all complete days, six hours after the end of each in its zone."""
    for workspace, name in ZONES.items():
        zone = ZoneInfo(name)
        midnight = FIRST.astimezone(zone).replace(hour=0) + timedelta(days=2)
        while (six := midnight.astimezone(UTC) + timedelta(hours=6)) <= NOW:
            for campaign in CAMPAIGNS[workspace]:
                yield from recorded_day(polled(workspace, zone, campaign, six.timestamp()), six.timestamp())
            midnight += timedelta(days=1)


def _moments() -> list[datetime]:
    """Return every hour of the last days, and of the weeks before only the hours that queries look back to."""
    hours = [FIRST + timedelta(hours=hour) for hour in range(int((NOW - FIRST) / timedelta(hours=1)) + 1)]
    return [moment for moment in hours if NOW - moment <= _HOURLY or _is_looked_at(moment)]


def _is_looked_at(moment: datetime) -> bool:
    return moment.hour == NOW.hour or any(
        moment.astimezone(ZoneInfo(zone)).hour in {5, 6, 7} for zone in ZONES.values()
    )


def _scrape(moment: datetime) -> Iterator[str]:
    """Yield the lines of all replicas at that time, with it."""
    text = "".join(_exposition(moment)) + _FOREIGN
    instances = ("b:10105", "c:10105") if moment >= _REPLACED else ("a:10105",)
    time = f"{moment.timestamp():.0f}"
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        name, opening, labels = series.partition("{")
        rest = f",{labels}" if opening else "}"
        for instance in instances:
            if instance == _BEHIND:
                rest = rest.replace(*_RENAMED)
            yield f'{name}{{job="braze",instance="{instance}"{rest} {value} {time}\n'
    if moment == NOW:
        yield from (f"{line} {time}\n" for line in _ALERTS.splitlines())


def _exposition(moment: datetime) -> Iterator[str]:
    now = moment.timestamp()
    age = moment - FIRST
    for workspace, zone in ZONES.items():
        for campaign in CAMPAIGNS[workspace]:
            state = _state(workspace, campaign, moment)
            yield from _lines(render([*day_rows(state), *status_rows(state, 0, CAMPAIGN_STATUS)]))
        api = ApiStatistics(rate_limit=50_000, rate_limit_remaining=49_000, rate_limit_reset=now + 60)
        api.failures[Reason.TIMEOUT] = int(age / timedelta(hours=7))
        api.durations[2] = api.requests = int(age / timedelta(minutes=1))
        shown = WorkspaceState(
            workspace, zone, len(CAMPAIGNS[workspace]), up=True, paused=None, apis={"data_series": api}
        )
        yield from _lines(render(workspace_rows(shown)))
    own = exporter_rows(
        version="1", python_version="3.13", reload_successful=True, reload_time=FIRST.timestamp(), series=2000
    )
    yield from _lines(render(own))


def _state(workspace: str, campaign: CampaignModel, moment: datetime) -> CampaignState:
    """Return what polling knows of a campaign; the last one of Europe has been failing for two hours at the end."""
    state = polled(workspace, ZoneInfo(ZONES[workspace]), campaign, moment.timestamp())
    since = NOW - timedelta(hours=2)
    if campaign is not CAMPAIGNS["europe"][-1] or moment < since:
        return state
    failures = {Reason.TIMEOUT: 1 + int((moment - since) / timedelta(minutes=5))}
    return replace(state, up=False, last_success=since.timestamp(), failures=failures)


def _lines(pieces: Mapping[str, bytes]) -> Iterator[str]:
    return (text.decode() for text in pieces.values())
