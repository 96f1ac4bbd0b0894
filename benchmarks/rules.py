"""Measure the cost of the rules in a real Prometheus, as shares of the evaluation interval.

The Prometheus holds 30 days of campaigns of mixed channels, made by the exporter's own code from the simulated Braze,
and scrapes their present state. It loads the rule files as they are, except that no group waits longer than `--every`
seconds, so that each is seen several times. Shares are of the interval in the file.

The history has what is recorded of each complete day, and samples around the moments that an `offset` leads to: rules
look for the newest sample of five minutes before, so what they find and compute is the same as with a sample every
minute. `benchmarks.dashboards` measures the queries of the dashboards. Needs the programs of `make programs`.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import yaml

from exporter.braze.counters import ApiStatistics
from exporter.exposition import render
from exporter.metrics import CAMPAIGN_STATUS, day_rows, day_timestamp, exporter_rows, status_rows, workspace_rows
from exporter.simulator.world import (
    ALL_DAY,
    CONTROL_GROUP,
    MORNINGS,
    WEEKDAYS,
    WEEKLY,
    CampaignModel,
    ChannelModel,
    VariationModel,
)
from exporter.state import CampaignState, WorkspaceState
from tests.support.dashboards import Json, as_list
from tests.support.history import polled, recorded_day
from tests.support.servers import (
    ROOT,
    Answer,
    Prometheus,
    eventually,
    fetch,
    find_program,
    running_prometheus,
    serving,
    write_history,
)

PROMETHEUS = ROOT / "deploy/prometheus"
RULE_FILES = (*sorted(PROMETHEUS.glob("rules/*.yml")), PROMETHEUS / "overrides.example.yml")

ZONES = {"europe": "Europe/Berlin", "america": "America/New_York", "india": "Asia/Kolkata"}
_PLAIN: Sequence[str | None] = (None,)
_TESTED: Sequence[str | None] = ("A: short", "B: long", CONTROL_GROUP)
# Of forty campaigns so many have these channels, each with these variations.
_MIX: Sequence[tuple[int, Mapping[str, Sequence[str | None]]]] = (
    (24, {"email": _PLAIN}),
    (4, {"email": _TESTED}),
    (3, {"ios_push": _TESTED, "android_push": _TESTED}),
    (3, {"ios_push": _PLAIN, "android_push": _PLAIN}),
    (2, {"sms": _PLAIN}),
    (1, {"whats_app": _PLAIN}),
    (1, {"webhook": _PLAIN}),
    (1, {"content_cards": _PLAIN}),
    (1, {"trigger_in_app_message": _TESTED}),
)
_RHYTHMS = (ALL_DAY, MORNINGS, WEEKDAYS, WEEKLY)

_DAY = 86_400
_HOUR = 3600
_HOURLY = 3 * _DAY  # so far back do panels look at the running day hour by hour
_BLOCK = 54 * 3600  # the longest that Prometheus makes where it keeps 35 days
_LOOK_BACK = 300
_AROUND = 240  # seconds between the samples around the moments that an offset leads to
_RUN = 3600  # so long after the end of the history is there something at the offsets
_PATIENCE = 1800  # seconds until every group was evaluated often enough
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": _DAY}
_SHOWN = 10
_ALLOWED = 0.1
_JOB, _INSTANCE = "braze-exporter", "braze-exporter:10105"
_LABELS = f'job="{_JOB}",instance="{_INSTANCE}"'


@dataclass(frozen=True, slots=True)
class LookBack:
    """Past samples that expressions read: metrics day by day, metrics at offsets, and these offsets in seconds."""

    daily: frozenset[str]
    at_offsets: frozenset[str]
    offsets: frozenset[int]


@dataclass(frozen=True, slots=True)
class Group:
    """Measurements of a rule group: the seconds of its evaluations, and those of each rule in the last one."""

    file: str
    name: str
    interval: int
    series: int
    evaluations: Sequence[float]
    rules: Sequence[tuple[float, str]]

    @property
    def share(self) -> float:
        """The median of the evaluations as a share of the interval."""
        return statistics.median(self.evaluations) / self.interval


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--campaigns", type=int, default=2_000, help="so many (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, default=3, help="of each group (default: %(default)s)")
    parser.add_argument(
        "--every", type=int, default=120, help="longest interval of a group, seconds (default: %(default)s)"
    )
    flags = parser.parse_args()
    with ExitStack() as stack:
        world = campaigns_by_workspace(flags.campaigns)
        start = prepared(stack, world, looked_back_at(expressions()), days=30, every=flags.every)
        print_groups(evaluated(stack.enter_context(start()), flags.evaluations))


def prepared(
    stack: ExitStack, world: Mapping[str, Sequence[CampaignModel]], look_back: LookBack, *, days: int, every: int
) -> Callable[[], AbstractContextManager[Prometheus]]:
    """Write the history of so many days; return what starts a Prometheus on it that scrapes and evaluates the rules."""
    promtool, prometheus = find_program("promtool"), find_program("prometheus")
    if promtool is None or prometheus is None:
        raise SystemExit("expected promtool and prometheus on PATH or from `make programs`")
    end = int(time.time())
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="braze-exporter-bench-")))
    text = exposition(world, end)
    scrape = Answer(text, "text/plain; version=0.0.4; charset=utf-8")
    campaigns, series = sum(map(len, world.values())), text.count(b"\n")
    print(f"{campaigns:,} campaigns with {series:,} series, {days} days of history", flush=True)
    for lines in history(world, look_back, moments(look_back, end, days)):
        write_history(promtool, lines, folder, longest=f"{_BLOCK}s")
    configuration = configure(folder, stack.enter_context(serving(lambda *_: scrape)), every)
    # What takes too long is to be measured, too.
    options = ("--storage.tsdb.retention.time=60d", f"--query.timeout={_PATIENCE}s")
    return partial(running_prometheus, prometheus, configuration, folder, *options)


# ---- the campaigns


def campaigns_by_workspace(count: int) -> dict[str, list[CampaignModel]]:
    """Invent campaigns and distribute them over the workspaces; a small number has every kind, too."""
    kinds = [channels for number, channels in _MIX for _ in range(number)]
    world: dict[str, list[CampaignModel]] = {workspace: [] for workspace in ZONES}
    for number in range(count):
        workspace = tuple(ZONES)[number % len(ZONES)]
        world[workspace].append(_campaign(number, kinds[number * 7 % len(kinds)]))
    return world


def _campaign(number: int, channels: Mapping[str, Sequence[str | None]]) -> CampaignModel:
    rows = sum(len(names) for names in channels.values())
    return CampaignModel(
        id=f"{number:08x}-7f5b-4b8e-9b53-0a1f6d9f2c11",
        name=f"Spring offers, part {number}",
        rhythm=_RHYTHMS[number % len(_RHYTHMS)],
        base=300.0 * (1 + number % 97),
        channels=tuple(
            ChannelModel(channel, tuple(_variation(number, place, name, 1 / rows) for place, name in enumerate(names)))
            for channel, names in channels.items()
        ),
    )


def _variation(number: int, place: int, name: str | None, share: float) -> VariationModel:
    return VariationModel(f"{number:08x}-{place:04x}-4fa0-a5c0-4505edf3e064", name, share)


def exposition(world: Mapping[str, Sequence[CampaignModel]], now: float) -> bytes:
    """Return all sample lines that the exporter would show."""
    pieces: list[bytes] = []
    for workspace, models in world.items():
        for model in models:
            state = polled(workspace, ZoneInfo(ZONES[workspace]), model, now)
            pieces.extend(render((*day_rows(state), *status_rows(state, 0, CAMPAIGN_STATUS))).values())
        api = ApiStatistics(rate_limit=50_000, rate_limit_remaining=49_000, rate_limit_reset=now + _DAY)
        zone = ZONES[workspace]
        shown = WorkspaceState(workspace, zone, len(models), up=True, paused=None, apis={"data_series": api})
        pieces.extend(render(workspace_rows(shown)).values())
    own = exporter_rows(version="1", python_version="3.13", reload_successful=True, reload_time=now, series=1)
    pieces.extend(render(own).values())
    return b"".join(pieces)


# ---- their history


def expressions() -> str:
    """Return the text of all rules."""
    return "\n".join(path.read_text(encoding="utf-8") for path in RULE_FILES)


def looked_back_at(text: str, *, day_by_day: bool = False) -> LookBack:
    """Find the past samples that expressions read; `day_by_day` says whether some read the raw series of days, too."""
    names = set(re.findall(r"(?<![:\w])braze_\w+", text))
    daily = {
        name for name in names if name.startswith("braze_previous_day_") or name.endswith("_day_timestamp_seconds")
    }
    at_offsets = re.findall(r"(?<![:\w])(braze_\w+)(?:\{[^}]*\})?(?: @ end\(\))? offset", text)
    offsets = {seconds(duration) for duration in re.findall(r"\boffset (\w+)", text)}
    return LookBack(frozenset(daily if day_by_day else ()), frozenset(at_offsets), frozenset(offsets))


def seconds(duration: str) -> int:
    """Read a duration such as 15m."""
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", duration))


def moments(look_back: LookBack, end: int, days: int) -> dict[int, bool]:
    """Return the times of the history's samples in order; true are those of the regular ones, every hour."""
    times = dict.fromkeys(range((end - days * _DAY) // _HOUR * _HOUR, end, _HOUR), True)
    for offset in look_back.offsets:
        first = end - offset - _LOOK_BACK
        for moment in range(first, min(first + _LOOK_BACK + _RUN, end), _AROUND):
            times.setdefault(moment, False)
    return dict(sorted(times.items()))


def history(
    world: Mapping[str, Sequence[CampaignModel]], look_back: LookBack, times: Mapping[int, bool]
) -> Iterator[Iterator[str]]:
    """Yield the samples of each block of a Prometheus that scraped the campaigns at these times."""
    blocks: dict[int, dict[int, bool]] = defaultdict(dict)
    for moment, regular in times.items():
        blocks[moment // _BLOCK][moment] = regular
    recent = max(times) - _HOURLY
    for number, block in blocks.items():
        span = range(number * _BLOCK, min((number + 1) * _BLOCK, max(times)))
        yield (
            line
            for workspace, models in world.items()
            for model in models
            for line in _samples(workspace, model, look_back, block, span, recent=recent)
        )


def _samples(
    workspace: str,
    model: CampaignModel,
    look_back: LookBack,
    times: Mapping[int, bool],
    span: range,
    *,
    recent: int,
) -> Iterator[str]:
    """Yield a campaign's samples, series by series; on one day all have the value of noon, which costs the same."""
    zone = ZoneInfo(ZONES[workspace])
    days: dict[int, list[int]] = defaultdict(list)
    for moment in times:
        days[datetime.fromtimestamp(moment, zone).toordinal()].append(moment)
    for day, of_day in days.items():
        noon = datetime.fromordinal(day).replace(hour=12, tzinfo=zone)
        state = polled(workspace, zone, model, noon.timestamp())
        six = noon.replace(hour=6).timestamp()
        if int(six) in span:
            yield from recorded_day(state, six)
        pieces = render(day_rows(state))
        for name in sorted(pieces.keys() & (look_back.daily | look_back.at_offsets)):
            lines = pieces[name].decode().splitlines()
            stamps = [
                f" {moment}\n"
                for moment in of_day
                if (name in look_back.daily if times[moment] else name in look_back.at_offsets)
                or (moment > recent and name in look_back.at_offsets)
            ]
            yield from (head + head.join(stamps) for line in lines if stamps for head in [_scraped(line)])
        stamps = [f" {moment}\n" for moment in of_day if moment > recent]
        yield from (line + line.join(stamps) for line in _recorded(state) if stamps)


def _scraped(line: str) -> str:
    """Add the labels of the target to a line."""
    return line.replace("{", "{" + _LABELS + ",", 1)


def _recorded(state: CampaignState) -> Iterator[str]:
    """Yield the recorded series that other rules read from an hour ago."""
    ids = f'workspace="{state.workspace}",campaign_id="{state.campaign_id}"'
    if state.latest is not None:
        midnight = day_timestamp(state.latest, state.timezone)
        yield f"campaign:braze_campaign_day_timestamp_seconds:max{{{ids}}} {midnight:.0f}"
        found = {(row.channel, name) for row in state.latest.variations for name in row.statistics}
        for channel, name in sorted(found):
            if name in {"sent", "bounces", "errors"}:
                yield f'campaign_channel:braze_message_{name}:sum{{{ids},channel="{channel}"}} 0'


# ---- the measurements


def configure(folder: Path, target: str, every: int) -> str:
    """Write the rule files with that longest interval in seconds; return the configuration that loads them."""
    names = []
    for path in RULE_FILES:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for group in document["groups"]:
            group["interval"] = f"{min(every, seconds(group.get('interval', '1m')))}s"
        (folder / path.name).write_text(yaml.safe_dump(document), encoding="utf-8")
        names.append(path.name)
    scraped = {"targets": [target], "labels": {"instance": _INSTANCE}}
    return yaml.safe_dump(
        {
            "global": {"scrape_interval": f"{min(every, 60)}s"},
            "rule_files": names,
            "scrape_configs": [{"job_name": _JOB, "static_configs": [scraped]}],
        }
    )


def evaluated(server: Prometheus, times: int) -> list[Group]:
    """Measure a number of evaluations of each group over live samples, after one that is not counted."""
    eventually(lambda: server.query("braze_campaign_up"), what="live samples", timeout=120)
    seen: dict[str, dict[str, float]] = defaultdict(dict)

    def groups() -> list[Json]:
        data = server.ask("rules")
        found = as_list(data["groups"]) if isinstance(data, dict) else []
        for group in found:
            seen[str(group["name"])].setdefault(str(group["lastEvaluation"]), float(str(group["evaluationTime"])))
        # The one before the live samples, and the first one with them.
        return found if all(len(evaluations) >= times + 2 for evaluations in seen.values()) else []

    measured = eventually(groups, what=f"{times} evaluations of each group", timeout=_PATIENCE)
    intervals, written = _intervals(), _written(server)
    return [
        Group(
            Path(str(group["file"])).name,
            name := str(group["name"]),
            intervals[name],
            written[name],
            list(seen[name].values())[2:],
            [_rule(rule) for rule in as_list(group["rules"])],
        )
        for group in measured
    ]


def _intervals() -> dict[str, int]:
    """Return the interval of each group as it is in the file."""
    return {
        group["name"]: seconds(group.get("interval", "1m"))
        for path in RULE_FILES
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    }


def _written(server: Prometheus) -> dict[str, int]:
    """Return how many series each group wrote in its last evaluation."""
    metric = r'^prometheus_rule_group_last_evaluation_samples\{rule_group="[^"]*;([^";]+)"\} (\S+)$'
    text = fetch(f"{server.url}/metrics").text
    return {group: int(float(value)) for group, value in re.findall(metric, text, re.MULTILINE)}


def _rule(rule: Json) -> tuple[float, str]:
    """Return the seconds of a rule's last evaluation, and its name."""
    if rule["health"] != "ok":
        raise SystemExit(f"expected the rule {rule['name']} to be evaluated, got {rule}")
    labels = rule.get("labels", {}) if rule["type"] == "recording" else {}
    return float(str(rule["evaluationTime"])), f"{rule['name']}{labels or ''}"


def print_groups(groups: Sequence[Group]) -> None:
    """Print a line for each group and each file, then the costliest rules."""
    columns = f"{'rules':>6}{'series':>9}{'interval':>10}{'median':>10}{'worst':>10}{'share':>8}"
    print(f"\n{'file and group':34}{columns}")
    for file in sorted({group.file for group in groups}):
        of_file = [group for group in groups if group.file == file]
        rules, series = (sum(numbers) for numbers in zip(*((len(g.rules), g.series) for g in of_file), strict=True))
        print(f"{file:34}{rules:6}{series:9,}{sum(group.share for group in of_file):38.1%}")
        for group in of_file:
            numbers = f"{len(group.rules):6}{group.series:9,}{group.interval:8} s"
            times = f"{statistics.median(group.evaluations):8.4f} s{max(group.evaluations):8.4f} s"
            print(f"  {group.name:32}{numbers}{times}{group.share:8.1%}")
    rules_by_cost = sorted(((*rule, group.name) for group in groups for rule in group.rules), reverse=True)
    print("\nthe costliest rules")
    for took, rule, name in rules_by_cost[:_SHOWN]:
        print(f"{took:8.3f} s  {name}: {rule}")
    above = [group.name for group in groups if group.share >= _ALLOWED]
    print(f"\nat or above a tenth of the interval: {', '.join(above) or 'no group'}")


if __name__ == "__main__":
    main()
