"""Exporter health: can the numbers be trusted now, and if not, whose fault is it? Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana.source.dashboards import Row, campaign_table, make_dashboard, query_variable, workspace_variable
from grafana.source.panels import (
    DATE,
    Column,
    Look,
    Panel,
    Query,
    age_column,
    noon,
    override,
    share_column,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import Selection

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

W = 'workspace=~"$workspace"'
JOB = 'job=~"$job"'
RATE = "$__rate_interval"
CHOSEN = Selection(campaigns=W)
LAST_SUCCESS = CHOSEN.status("last_success_timestamp_seconds")
UP = CHOSEN.status("up")
BUDGET = f"min_over_time(braze_api_rate_limit_remaining{{{W}}}[10m])\n/ braze_api_rate_limit{{{W}}}"
WEEKS = (
    f"max(count by (workspace, campaign_id) (campaign:braze_previous_day_message_volume:weeks_ago{{{W}}}))"
    f"\nor count(braze_workspace_up{{{W}}}) * 0"
)
_FAILURES = 150  # pixels of that column, so that the reason stands beside it
NOT_SCRAPED = "Nothing: does Prometheus scrape the exporter?"


def health() -> dashboard.Dashboard:
    """Return the dashboard."""
    return make_dashboard(
        "braze-exporter",
        "Braze / Exporter health",
        "Can the numbers be trusted now, and if not, whose fault is it?",
        variables=(
            query_variable("job", "Job", "label_values(braze_exporter_build_info, job)", "Prometheus' scrape jobs"),
            workspace_variable(),
        ),
        rows=(
            Row("State", _state()),
            Row("Freshness", _freshness()),
            Row("Braze's API", _api()),
            Row("Process", _process()),
        ),
        since="now-6h",
        refresh="5m",
    )


def _state() -> tuple[dashboard.Panel, ...]:
    started = (
        f"max by (version, python_version, instance) (braze_exporter_build_info{{{JOB}}}\n"
        f"* on (job, instance) group_left () process_start_time_seconds{{{JOB}}}) * 1000"
    )
    campaigns = f"count by (workspace) ({UP})"
    failures = f"sum by (workspace, reason) (increase(braze_api_request_failures_total{{{W}}}[1h])) > 0"
    return (
        table_panel(
            Panel(
                "Workspaces",
                "Up: Braze accepts the key and some campaign was polled within two intervals. Failing: campaigns "
                "whose last poll failed. Oldest data: of the campaign that waits longest. Budget left: the lowest "
                "share of Braze's rate limit in ten minutes. Newest day: of all in Braze's responses. Time zone "
                "off by: by how much `timezone` is wrong, where it is; above 0 too far east. Failures in an hour: "
                "requests that failed for the most frequent reason, which is beside them.",
                NOT_SCRAPED,
                width=24,
                height=7,
            ),
            Column(
                "Up",
                f"min by (workspace) (braze_workspace_up{{{W}}})",
                unit="none",
                words=(("1", "up", "green"), ("0", "down", "red")),
            ),
            Column("Campaigns", campaigns),
            Column("Failing", f"count by (workspace) ({UP} == 0)\nor {campaigns} * 0", steps=((1, "orange"),)),
            age_column("Oldest data", f"max by (workspace) (time() - {LAST_SUCCESS})"),
            share_column(
                "Budget left",
                f"min by (workspace) ({BUDGET})",
                decimals=0,
                steps=((0, "red"), (0.1, "orange"), (0.25, "text")),
            ),
            Column(
                "Newest day",
                noon(f"max by (workspace) (braze_campaign_day_timestamp_seconds{{{W}}})"),
                unit=DATE,
            ),
            Column(
                "Time zone off by",
                f"max by (workspace) (workspace:braze_timezone:hours_off{{{W}}})",
                unit="suffix: h",
                steps=((-100, "red"),),
            ),
            Column("Failures in an hour", f"topk by (workspace) (1, {failures})", decimals=0, width=_FAILURES),
            labels={"workspace": "Workspace", "reason": "For the reason"},
            last=("reason",),
        ),
        _failing_campaigns(),
        stat_panel(
            Panel(
                "Configuration",
                "Whether the last reload of the configuration succeeded, on every replica.",
                NOT_SCRAPED,
                unit="none",
                first="red",
                steps=((1, "green"),),
                words=(("1", "loaded", "green"), ("0", "refused, the old one is in force", "red")),
                width=5,
                height=5,
            ),
            Query("configuration", f"min(braze_exporter_config_last_reload_successful{{{JOB}}})"),
        ),
        stat_panel(
            Panel(
                "Series",
                "Samples of Braze's numbers that the fullest replica shows, and samples that it does not show because "
                "of limits.series or limits.series_per_campaign.",
                NOT_SCRAPED,
                first="text",
                width=5,
                height=5,
            ),
            Query("served", f"max(max by (instance) (braze_exporter_series{{{JOB}}}))"),
            Query(
                "dropped",
                f"sum(max by (workspace, campaign_id) (braze_exporter_dropped_series{{{W}}}))",
            ),
        ),
        stat_panel(
            Panel(
                "Weeks of history",
                "How many of the last four weeks the rules can compare with. Below two, eight alerts on volume, "
                "conversions and revenue cannot fire: Prometheus keeps too little "
                "(`--storage.tsdb.retention.time=35d` is enough), or the rules have not run for so long.",
                NOT_SCRAPED,
                first="red",
                steps=((2, "orange"), (4, "green")),
                width=5,
                height=5,
            ),
            Query("weeks", WEEKS),
        ),
        table_panel(
            Panel(
                "Replicas and versions",
                "Running replicas with their versions, and when they started. More than one version: a rollout hangs.",
                NOT_SCRAPED,
                width=9,
                height=5,
            ),
            Column("Started", started, unit="dateTimeFromNow"),
            labels={"instance": "Instance", "version": "Version", "python_version": "Python"},
        ),
    )


def _freshness() -> tuple[dashboard.Panel, ...]:
    ages = f"time() - {LAST_SUCCESS}"
    return (
        time_series(
            Panel(
                "Age of the data",
                "Minutes since the last successful poll: of half of the campaigns at most the median, of the one that "
                "waits longest the oldest. Logarithmic.",
                NOT_SCRAPED,
                unit="suffix:min",
            ),
            Query("median", f"quantile(0.5, {ages}) / 60"),
            Query("99 %", f"quantile(0.99, {ages}) / 60"),
            Query("oldest", f"max({ages}) / 60"),
            look=Look(logarithmic=True),
        ),
        time_series(
            Panel(
                "Time since the day began",
                "Climbs to 24 hours and falls to 0 at the workspace's midnight. Over 25 hours: the days in Braze's "
                "responses do not move on, or its time zone is configured wrongly; below 0: the time zone is wrong.",
                NOT_SCRAPED,
                unit="suffix:h",
                first="red",
                steps=((0, "green"), (25, "red")),
                room=25,
            ),
            Query("{{workspace}}", f"min by (workspace) (time() - {CHOSEN.day()}) / 3600"),
            look=Look(threshold_lines=True),
        ),
    )


def _failing_campaigns() -> dashboard.Panel:
    failing = f"({LAST_SUCCESS}\nand on (workspace, campaign_id) ({UP} == 0))"
    failures = f"sum by (workspace, campaign_id, reason) (increase(braze_campaign_poll_failures_total{{{W}}}[1h])) > 0"
    refused = (
        "or on (workspace, campaign_id)\n"
        f'label_replace({UP} == 0 and on (workspace) workspace:braze_problem:value{{{W},reason="unauthorized"}},\n'
        '"reason", "unauthorized", "", "")'
    )
    return campaign_table(
        Panel(
            "Campaigns that fail",
            "Campaigns whose last poll failed: for how long there was no success, and the most frequent reasons of "
            "the last hour with their number. A campaign without any success yet has only reasons; where Braze refuses "
            "the key of the workspace, its campaigns are not polled.",
            "No campaign fails.",
            unit="s",
            width=24,
        ),
        age_column("Failing for", f"time() - {failing}", steps=((7200, "red"),)),
        Column(
            "Failures in an hour",
            f"topk by (workspace, campaign_id) (1, {failures})\nand on (workspace, campaign_id) ({UP} == 0)\n{refused}",
            decimals=0,
            width=_FAILURES,
        ),
        selection=CHOSEN,
        labels={"reason": "For the reason"},
        last=("reason",),
        sort="Failing for",
        event=False,
    )


def _api() -> tuple[dashboard.Panel, ...]:
    buckets = f"sum by (le, api) (rate(braze_api_request_duration_seconds_bucket{{{W}}}[{RATE}]))"
    return (
        time_series(
            Panel(
                "Requests",
                "Requests to Braze a second, retries included, of all replicas.",
                NOT_SCRAPED,
                unit="reqps",
                least=0,
            ),
            Query("{{workspace}} {{api}}", f"sum by (workspace, api) (rate(braze_api_requests_total{{{W}}}[{RATE}]))"),
            look=Look("bars", stacked=True),
        ),
        time_series(
            Panel(
                "Failures by reason",
                "Requests that failed in the minutes before each point, by reason, of all replicas.",
                "No request has failed.",
                least=0,
            ),
            Query("{{reason}}", f"sum by (reason) (increase(braze_api_request_failures_total{{{W}}}[{RATE}])) > 0"),
            look=Look("bars", stacked=True),
        ),
        time_series(
            Panel(
                "Latency",
                "From sending a request to the last byte of its response: half and 99 % of the requests were faster.",
                "No requests in this time.",
                unit="s",
                least=0,
            ),
            Query("median {{api}}", f"histogram_quantile(0.5, {buckets})"),
            Query("99 % {{api}}", f"histogram_quantile(0.99, {buckets})"),
        ),
        time_series(
            Panel(
                "Request budget left",
                "Lowest number of requests left in ten minutes / Braze's limit. Every other program that polls Braze "
                "for this workspace uses the same budget.",
                "Braze has not named a rate limit yet.",
                unit="percentunit",
                first="red",
                steps=((0.1, "green"),),
                least=0,
                most=1,
            ),
            Query("{{workspace}} {{api}}", f"min by (workspace, api) ({BUDGET})"),
            look=Look(threshold_lines=True),
        ),
    )


def _process() -> tuple[dashboard.Panel, ...]:
    return (
        time_series(
            Panel("Memory", "Resident memory of each replica.", NOT_SCRAPED, unit="bytes", least=0),
            Query("{{instance}}", f"process_resident_memory_bytes{{{JOB}}}"),
        ),
        time_series(
            Panel(
                "CPU", "Share of one processor core that each replica uses.", NOT_SCRAPED, unit="percentunit", least=0
            ),
            Query("{{instance}}", f"rate(process_cpu_seconds_total{{{JOB}}}[{RATE}])"),
        ),
        time_series(
            Panel(
                "Scrapes",
                "How long Prometheus waits for /metrics, and how many samples it gets (right axis).",
                NOT_SCRAPED,
                unit="s",
                least=0,
            ),
            Query("duration {{instance}}", f"scrape_duration_seconds{{{JOB}}}"),
            Query("samples {{instance}}", f"scrape_samples_scraped{{{JOB}}}"),
            look=Look(
                overrides=(override("samples .*", pattern=True, unit="short", custom__axisPlacement="right"),),
            ),
        ),
        time_series(
            Panel(
                "Restarts",
                "Starts of each replica within an hour, three are an alert; a pod that is replaced is a new instance "
                "without one.",
                NOT_SCRAPED,
                decimals=0,
                steps=((3, "red"),),
                least=0,
                room=4,
            ),
            Query("{{instance}}", f"changes(process_start_time_seconds{{{JOB}}}[1h])"),
            look=Look(threshold_lines=True),
        ),
    )
