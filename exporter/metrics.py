"""Metric families, and the rows of samples of a campaign's and a workspace's state. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from exporter.braze.counters import DURATION_BUCKETS
from exporter.braze.errors import Reason
from exporter.catalogue import CAMPAIGN_STATISTICS, CONVERSIONS, MESSAGE_STATISTICS, REVENUE, conversion
from exporter.rollover import midnight
from exporter.shards import WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

    from exporter.braze.counters import ApiStatistics
    from exporter.braze.data_series import Day, Variation
    from exporter.shards import Shard
    from exporter.state import CampaignState, WorkspaceState

MetricType = Literal["gauge", "counter", "info", "histogram"]
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family: its name in the text format, its HELP and TYPE; `day` is that of its samples, if of one."""

    name: str
    help: str
    labels: tuple[str, ...]
    type: MetricType = "gauge"
    day: str = ""


Series = tuple[str, tuple[str, str] | None, str]
"""Identity of a sample in its row: the family's name, one more label than the row's, a histogram's suffix."""

Sample = tuple[Series, float]
"""One number; a plain tuple, as each poll makes a hundred of them."""


class Row(NamedTuple):
    """Samples with the same labels; `key` identifies it among a campaign's rows and begins with its day, if any."""

    key: tuple[str, ...]
    labels: Labels
    samples: tuple[Sample, ...]


LATEST_DAY, PREVIOUS_DAY = "latest", "previous"
LATEST = "braze_"
PREVIOUS = "braze_previous_day_"

CAMPAIGN_LABELS = ("campaign_id", "campaign_name", "workspace")
VARIATION_LABELS = ("campaign_id", "campaign_name", "channel", "variation_id", "variation_name", "workspace")

# HELP of the families of a variation and of a whole campaign, which `{}` stands for.
_REVENUE = "Revenue in US dollars of {}; revenue of several campaigns overlaps"
_EVENT = "by conversion event (A is the primary one; other: all beyond Z)"
_CONVERSIONS = f"Conversions of {{}}, on the day they happened, {_EVENT}"
_CONVERSIONS_BY_SEND_TIME = f"Conversions of {{}}, on the day the message was sent, {_EVENT}"
_OTHER = "Any other numeric statistic of {}, by Braze's name for it"


_DAYS = {
    LATEST_DAY: "latest day, which may still be running",
    PREVIOUS_DAY: "previous day, the newest before the latest, complete",
}


class _Group(NamedTuple):
    """The families of one kind of row on one of the two days; `other` is for statistics that have none."""

    prefix: str
    families: dict[str, Family]
    by_statistic: dict[str, Series]
    other: str


def _group(prefix: str, labels: tuple[str, ...], statistics: dict[str, str], whose: str, path: str, day: str) -> _Group:
    def family(name: str, text: str, source: str, *extra: str) -> Family:
        words = f"{text}; {_DAYS[day]}. Braze's {path}{source}, polled, not read at scrape time."
        return Family(prefix + name, words, (*labels, *extra), day=day)

    own = {name: family(name, text, name) for name, text in statistics.items()}
    by_statistic: dict[str, Series] = {name: (own[name].name, None, "") for name in own}
    own[REVENUE] = family("revenue_dollars", _REVENUE.format(whose), REVENUE)
    by_statistic[REVENUE] = (own[REVENUE].name, None, "")
    for name, text in {"conversions": _CONVERSIONS, "conversions_by_send_time": _CONVERSIONS_BY_SEND_TIME}.items():
        own[name] = family(name, text.format(whose), name, "conversion_event")
    for statistic, (name, event) in CONVERSIONS.items():
        by_statistic[statistic] = (own[name].name, ("conversion_event", event), "")
    own["other"] = family("other", _OTHER.format(whose), "<stat>", "stat")
    return _Group(prefix, {family.name: family for family in own.values()}, by_statistic, own["other"].name)


class _DayGroups(NamedTuple):
    """The families of one of the two days."""

    day: str
    campaign: _Group
    variation: _Group
    timestamp: Family

    @property
    def families(self) -> tuple[Family, ...]:
        return (*self.variation.families.values(), *self.campaign.families.values(), self.timestamp)


def _day_groups(prefix: str, day: str) -> _DayGroups:
    campaign = _group(f"{prefix}campaign_", CAMPAIGN_LABELS, CAMPAIGN_STATISTICS, "the campaign", "data[].", day)
    variation = _group(
        f"{prefix}message_", VARIATION_LABELS, MESSAGE_STATISTICS, "the variation", "data[].messages.<channel>[].", day
    )
    timestamp = Family(
        f"{prefix}campaign_day_timestamp_seconds",
        f"Start of the day that the counts are of, in the workspace's time zone; {_DAYS[day]}. "
        "Braze's data[].time, polled, not read at scrape time.",
        CAMPAIGN_LABELS,
        day=day,
    )
    return _DayGroups(day, campaign, variation, timestamp)


_LATEST_GROUPS = _day_groups(LATEST, LATEST_DAY)
_PREVIOUS_GROUPS = _day_groups(PREVIOUS, PREVIOUS_DAY)

DAY_FAMILIES = _LATEST_GROUPS.families + _PREVIOUS_GROUPS.families
"""Families of a campaign's two days: present while its last success is not stale."""


def _own(name: str, text: str, *labels: str, type: MetricType = "gauge") -> Family:  # noqa: A002 - Prometheus' word
    return Family(name, f"{text}. Counted by the exporter.", labels, type)


class StatusFamilies(NamedTuple):
    """Families about the polls of a campaign: present while it is configured."""

    up: Family
    last_success: Family
    polls: Family
    failures: Family
    interval: Family
    dropped: Family


def status_families(prefix: str, dropped: str) -> StatusFamilies:
    """Return the families about the polls of one API; `dropped` is the name of that about dropped samples."""

    def family(name: str, text: str, *labels: str, type: MetricType = "gauge") -> Family:  # noqa: A002 - as above
        return _own(f"{prefix}{name}", text, *CAMPAIGN_LABELS, *labels, type=type)

    shown = "1 when the last poll of the campaign succeeded and its counts are shown, else 0"
    failed = "Failed polls of the campaign, by the reason of the last attempt; a reason appears with its first failure"
    over = "Samples of the campaign that are not shown because of limits.series or limits.series_per_campaign"
    return StatusFamilies(
        up=family("up", f"{shown}; says nothing of its activity"),
        last_success=family("last_success_timestamp_seconds", "Time of the campaign's last successful poll"),
        polls=family("polls_total", "Finished polls of the campaign", type="counter"),
        failures=family("poll_failures_total", failed, "reason", type="counter"),
        interval=family("poll_interval_seconds", "Interval between two polls of the campaign"),
        dropped=_own(dropped, over, "campaign_id", "workspace"),
    )


CAMPAIGN_STATUS = status_families("braze_campaign_", "braze_exporter_dropped_series")

WORKSPACE_UP = _own(
    "braze_workspace_up",
    "1 while Braze accepts the key and a poll of some campaign succeeded within two intervals, else 0; "
    "absent where another shard polls all its campaigns",
    "workspace",
)
WORKSPACE_CAMPAIGNS = _own("braze_workspace_campaigns", "Campaigns that are polled", "workspace")
WORKSPACE_INFO = _own("braze_workspace_info", "Time zone of Braze's days", "timezone", "workspace", type="info")
WORKSPACE_ROLLOVER = _own(
    "braze_workspace_day_rollover_offset_seconds",
    "Time from midnight in the configured time zone to the first response with the day that began then: up to about an "
    "interval if the zone is right, about a day if Braze's responses end with yesterday; "
    "absent until a day begins while the exporter polls",
    "workspace",
)
API_REQUESTS = _own(
    "braze_api_requests_total", "Requests sent to Braze, retries included", "api", "workspace", type="counter"
)
API_FAILURES = _own(
    "braze_api_request_failures_total", "Requests to Braze that failed", "api", "reason", "workspace", type="counter"
)
API_DURATION = _own(
    "braze_api_request_duration_seconds",
    "Time from sending a request to the last byte of its response",
    "api",
    "workspace",
    type="histogram",
)
API_RATE_LIMIT = _own(
    "braze_api_rate_limit", "Requests allowed in one window of the rate limit (X-RateLimit-Limit)", "api", "workspace"
)
API_RATE_LIMIT_REMAINING = _own(
    "braze_api_rate_limit_remaining", "Requests left in the window (X-RateLimit-Remaining)", "api", "workspace"
)
API_RATE_LIMIT_RESET = _own(
    "braze_api_rate_limit_reset_timestamp_seconds", "End of the window (X-RateLimit-Reset)", "api", "workspace"
)

BUILD_INFO = _own(
    "braze_exporter_build_info", "Version of the exporter and of Python", "python_version", "version", type="info"
)
RELOAD_SUCCESSFUL = _own(
    "braze_exporter_config_last_reload_successful", "1 when the last reload of the configuration succeeded"
)
RELOAD_TIME = _own(
    "braze_exporter_config_last_reload_success_timestamp_seconds",
    "Time of the last successful load of the configuration",
)
WEB_CONFIG_SUCCESSFUL = _own(
    "braze_exporter_web_config_last_reload_successful",
    "1 when the last reload of the web configuration succeeded; only with --web.config.file",
)
SERIES = _own("braze_exporter_series", "Samples shown of Braze's numbers")
SHARD = _own("braze_exporter_shard", "Number of the shard whose campaigns are polled, counted from 0")
TOTAL_SHARDS = _own("braze_exporter_total_shards", "Shards that the campaigns are split into")
LOG_LINES_DROPPED = _own(
    "braze_exporter_log_lines_dropped_total",
    "Log lines that were dropped because they were not read or could not be written",
    type="counter",
)

OWN_FAMILIES: tuple[Family, ...] = (
    WORKSPACE_UP,
    WORKSPACE_CAMPAIGNS,
    WORKSPACE_INFO,
    WORKSPACE_ROLLOVER,
    API_REQUESTS,
    API_FAILURES,
    API_DURATION,
    API_RATE_LIMIT,
    API_RATE_LIMIT_REMAINING,
    API_RATE_LIMIT_RESET,
    BUILD_INFO,
    RELOAD_SUCCESSFUL,
    RELOAD_TIME,
    WEB_CONFIG_SUCCESSFUL,
    SERIES,
    SHARD,
    TOTAL_SHARDS,
    LOG_LINES_DROPPED,
)
"""Families of workspaces, their APIs and the exporter itself: read at each scrape."""


def day_rows(state: CampaignState) -> tuple[Row, ...]:
    """Return the rows of the campaign's latest day, then of its previous day: the first ones are admitted first."""
    rows: list[Row] = []
    for day, groups in ((state.latest, _LATEST_GROUPS), (state.previous, _PREVIOUS_GROUPS)):
        if day is not None:
            rows.append(_campaign_row(state, day, groups))
            rows.extend(_variation_row(state, variation, groups) for variation in day.variations)
    return tuple(rows)


def status_rows(state: CampaignState, dropped: int, families: StatusFamilies) -> tuple[Row, ...]:
    """Return the rows about the campaign's polls; `dropped` is the number of its samples over the series limits."""
    polling = [_sample(families.polls, state.polls), _sample(families.interval, state.interval)]
    if state.up is not None:
        polling.append(_sample(families.up, state.up))
    if state.last_success is not None:
        polling.append(_sample(families.last_success, state.last_success))
    polling.extend(_sample(families.failures, count, ("reason", reason)) for reason, count in state.failures.items())
    ids = (("campaign_id", state.campaign_id), ("workspace", state.workspace))
    return (
        Row(("status",), _campaign_labels(state), tuple(polling)),
        Row(("dropped",), ids, (_sample(families.dropped, dropped),)),
    )


def workspace_rows(state: WorkspaceState) -> Iterator[Row]:
    """Yield the rows of a workspace and of each of Braze's APIs that it uses."""
    workspace = ("workspace", state.workspace)
    samples = [_sample(WORKSPACE_CAMPAIGNS, state.campaigns)]
    if state.up is not None:
        samples.append(_sample(WORKSPACE_UP, state.up))
    if state.rollover_offset is not None:
        samples.append(_sample(WORKSPACE_ROLLOVER, state.rollover_offset))
    yield Row((), (workspace,), tuple(samples))
    yield Row((), (("timezone", state.timezone), workspace), (_sample(WORKSPACE_INFO, 1),))
    for api, statistics in state.apis.items():
        yield Row((), (("api", api), workspace), tuple(_api_samples(statistics)))


def exporter_rows(
    *,
    version: str,
    python_version: str,
    reload_successful: bool,
    reload_time: float,
    series: int,
    shard: Shard = WHOLE,
    web_config_successful: bool | None = None,
    log_lines_dropped: int = 0,
) -> Iterator[Row]:
    """Yield the rows of the exporter itself; `web_config_successful` is None without a web configuration."""
    yield Row((), (("python_version", python_version), ("version", version)), (_sample(BUILD_INFO, 1),))
    samples = (
        _sample(RELOAD_SUCCESSFUL, reload_successful),
        _sample(RELOAD_TIME, reload_time),
        _sample(SERIES, series),
        _sample(SHARD, shard.number),
        _sample(TOTAL_SHARDS, shard.total),
        _sample(LOG_LINES_DROPPED, log_lines_dropped),
    )
    yield Row((), (), samples)
    if web_config_successful is not None:
        yield Row((), (), (_sample(WEB_CONFIG_SUCCESSFUL, web_config_successful),))


def day_timestamp(day: Day, timezone: ZoneInfo) -> float:
    """Return the Unix time in seconds at which the day begins in the zone."""
    return midnight(day.date, timezone)


def _campaign_row(state: CampaignState, day: Day, groups: _DayGroups) -> Row:
    timestamp = _sample(groups.timestamp, day_timestamp(day, state.timezone))
    samples = (timestamp, *_samples(day.statistics, groups.campaign))
    return Row((groups.day,), _campaign_labels(state), samples)


def _variation_row(state: CampaignState, variation: Variation, groups: _DayGroups) -> Row:
    labels = (
        ("campaign_id", state.campaign_id),
        ("campaign_name", state.campaign_name),
        ("channel", variation.channel),
        ("variation_id", variation.id),
        ("variation_name", variation.name),
        ("workspace", state.workspace),
    )
    key = (groups.day, variation.channel, variation.id, variation.name)
    return Row(key, labels, tuple(_samples(variation.statistics, groups.variation)))


def _samples(statistics: dict[str, float], group: _Group) -> list[Sample]:
    known = group.by_statistic
    samples = [(known[statistic], number) for statistic, number in statistics.items() if statistic in known]
    if len(samples) < len(statistics):
        samples.extend(_other_samples({name: statistics[name] for name in statistics if name not in known}, group))
    return samples


def _other_samples(statistics: dict[str, float], group: _Group) -> Iterator[Sample]:
    """Yield the samples of statistics without a series of their own; conversions beyond the letters are summed."""
    sums: dict[Series, float] = {}
    for statistic, number in statistics.items():
        if (beyond := conversion(statistic)) is not None:
            name, event = beyond
            series: Series = (group.prefix + name, ("conversion_event", event), "")
            sums[series] = sums.get(series, 0.0) + number
        else:
            yield (group.other, ("stat", statistic), ""), number
    yield from ((series, number) for series, number in sums.items() if math.isfinite(number))


def _sample(family: Family, value: float, label: tuple[str, str] | None = None, suffix: str = "") -> Sample:
    return ((family.name, label, suffix), float(value))


def _campaign_labels(state: CampaignState) -> Labels:
    return (
        ("campaign_id", state.campaign_id),
        ("campaign_name", state.campaign_name),
        ("workspace", state.workspace),
    )


def _api_samples(statistics: ApiStatistics) -> Iterator[Sample]:
    yield _sample(API_REQUESTS, statistics.requests)
    for reason in Reason:
        yield _sample(API_FAILURES, statistics.failures[reason], ("reason", reason))
    requests = 0
    for bucket, count in zip(_BUCKETS, statistics.durations, strict=True):
        requests += count
        yield _sample(API_DURATION, requests, ("le", bucket), "_bucket")
    yield _sample(API_DURATION, requests, suffix="_count")
    yield _sample(API_DURATION, statistics.duration_sum, suffix="_sum")
    if statistics.rate_limit is not None:
        yield _sample(API_RATE_LIMIT, statistics.rate_limit)
    if statistics.rate_limit_remaining is not None:
        yield _sample(API_RATE_LIMIT_REMAINING, statistics.rate_limit_remaining)
    if statistics.rate_limit_reset is not None:
        yield _sample(API_RATE_LIMIT_RESET, statistics.rate_limit_reset)


_BUCKETS = (*map(repr, DURATION_BUCKETS), "+Inf")
