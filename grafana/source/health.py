"""Exporter health: can the numbers be trusted now, and if not, whose fault is it? Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana.source.dashboards import Row, campaign_link, make_dashboard, query_variable, workspace_variable
from grafana.source.panels import Column, Look, Panel, Query, override, stat_panel, table_panel, time_series

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

W = 'workspace=~"$workspace"'
JOB = 'job=~"$job"'
RATE = "$__rate_interval"
LAST_SUCCESS = f"max by (workspace, campaign_id) (braze_campaign_last_success_timestamp_seconds{{{W}}})"
UP = f"max by (workspace, campaign_id) (braze_campaign_up{{{W}}})"
DAY = f"max by (workspace, campaign_id) (braze_campaign_day_timestamp_seconds{{{W}}})"
BUDGET = f"min_over_time(braze_api_rate_limit_remaining{{{W}}}[10m])\n/ braze_api_rate_limit{{{W}}}"
NAMES = (
    f"topk by (workspace, campaign_id) (1, group by (workspace, campaign_id, campaign_name) (braze_campaign_up{{{W}}}))"
)
NAMED = f"on (workspace, campaign_id) group_left (campaign_name) {NAMES}"
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
    )


def _state() -> tuple[dashboard.Panel, ...]:
    campaigns = f"count by (workspace) ({UP})"
    return (
        table_panel(
            Panel(
                "Workspaces",
                "Up: Braze accepts the key and some campaign was polled within two intervals. Failing: campaigns whose "
                "last poll failed. Oldest data: of the campaign that waits longest. Budget left: the lowest share of "
                "Braze's rate limit in ten minutes. Newest day: its start, written in your time zone.",
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
            Column(
                "Oldest data",
                f"max by (workspace) (time() - {LAST_SUCCESS})",
                unit="s",
                decimals=0,
                steps=((1200, "orange"), (7200, "red")),
            ),
            Column(
                "Budget left",
                f"min by (workspace) ({BUDGET})",
                unit="percentunit",
                decimals=0,
                steps=((0, "red"), (0.1, "orange"), (0.25, "text")),
            ),
            Column(
                "Newest day",
                f"max by (workspace) (braze_campaign_day_timestamp_seconds{{{W}}}) * 1000",
                unit="dateTimeAsIso",
            ),
            labels={"workspace": "Workspace"},
        ),
        stat_panel(
            Panel(
                "Configuration",
                "Whether the last reload of the configuration succeeded, on every replica.",
                NOT_SCRAPED,
                unit="none",
                first="red",
                steps=((1, "green"),),
                words=(("1", "loaded", "green"), ("0", "refused, the old one is in force", "red")),
                width=6,
                height=6,
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
                width=8,
                height=6,
            ),
            Query("served", f"max(max by (instance) (braze_exporter_series{{{JOB}}}))"),
            Query(
                "dropped",
                f"sum(max by (workspace, campaign_id) (braze_exporter_dropped_series{{{W}}}))",
            ),
        ),
        table_panel(
            Panel(
                "Replicas and versions",
                "Running replicas with their versions. More than one version: a rollout hangs.",
                NOT_SCRAPED,
                width=10,
                height=6,
            ),
            Column("Replicas", f"count by (version, python_version, instance) (braze_exporter_build_info{{{JOB}}})"),
            labels={"instance": "Instance", "version": "Version", "python_version": "Python"},
        ),
    )


def _freshness() -> tuple[dashboard.Panel, ...]:
    ages = f"time() - {LAST_SUCCESS}"
    failing = f"({LAST_SUCCESS}\nand on (workspace, campaign_id) ({UP} == 0))"
    failures = f"sum by (workspace, campaign_id, reason) (increase(braze_campaign_poll_failures_total{{{W}}}[1h])) > 0"
    return (
        time_series(
            Panel(
                "Age of the data",
                "Time since the last successful poll: of half of the campaigns at most the median, of the one that "
                "waits longest the oldest. Logarithmic.",
                NOT_SCRAPED,
                unit="s",
            ),
            Query("median", f"quantile(0.5, {ages})"),
            Query("99 %", f"quantile(0.99, {ages})"),
            Query("oldest", f"max({ages})"),
            look=Look(logarithmic=True),
        ),
        time_series(
            Panel(
                "Time since the day began",
                "Climbs to 24 hours and falls to 0 at the workspace's midnight. Over 25 hours: the days in Braze's "
                "answers do not move on, or its time zone is configured wrongly; below 0: the time zone is wrong.",
                NOT_SCRAPED,
                unit="s",
                first="red",
                steps=((0, "green"), (90_000, "red")),
            ),
            Query("{{workspace}}", f"min by (workspace) (time() - {DAY})"),
            look=Look(threshold_lines=True),
        ),
        table_panel(
            Panel(
                "Campaigns that fail",
                "Campaigns whose last poll failed: for how long there was no success, and the most frequent reasons of "
                "the last hour with their number. A campaign without any success yet has only reasons.",
                "No campaign fails.",
                unit="s",
                width=24,
            ),
            Column("Failing for", f"(time() - {failing})\n* {NAMED}", unit="s", decimals=0, steps=((7200, "red"),)),
            Column(
                "Failures in an hour",
                f"(topk by (workspace, campaign_id) (1, {failures})\nand on (workspace, campaign_id) ({UP} == 0))\n"
                f"* {NAMED}",
                decimals=0,
            ),
            labels={"campaign_name": "Campaign", "workspace": "Workspace", "reason": "Reason"},
            hidden=("campaign_id",),
            links=(campaign_link(event=False),),
            sort="Failing for",
        ),
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
                "From sending a request to the last byte of its answer: half and 99 % of the requests were faster.",
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
                "Lowest number of requests left in ten minutes / Braze's limit. Every other program that asks Braze "
                "for this workspace uses the same budget.",
                "Braze has not told a rate limit yet.",
                unit="percentunit",
                decimals=0,
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
            Panel("CPU", "Processor cores that each replica uses.", NOT_SCRAPED, least=0),
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
                "Starts of each replica within an hour; a pod that is replaced is a new instance without one.",
                NOT_SCRAPED,
                steps=((1, "orange"), (3, "red")),
                least=0,
            ),
            Query("{{instance}}", f"changes(process_start_time_seconds{{{JOB}}}[1h])"),
        ),
    )
