"""Broken worlds, one for each alert: health says what is wrong, and the query of the runbook names the culprit."""

import re
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path

import pytest
import yaml

from grafana.source.overview import REASONS
from tests.support.worlds import Campaign, Gauge, at
from tests.test_rules import (
    ALERTS,
    FAULTS,
    PROMETHEUS,
    RULES,
    RUNBOOK,
    Fault,
    Fires,
    identity,
    judge,
    selector,
)

FILES = [
    PROMETHEUS / "overrides.example.yml",
    *(
        RULES / f"braze-{name}.yml"
        for name in ("thresholds", "campaigns", "days", "failures", "volume", "exporter", "health")
    ),
]
STEP = 60
QUERIES = {
    alert: [query.strip() for query in re.findall(r"```promql\n(.+?)```", section, re.DOTALL)]
    for alert, section in re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
}
# How the health names what an alert is about, where that is not the threshold in its expression.
REASON = {
    "BrazeWorkspaceUnauthorized": "unauthorized",
    "BrazeWorkspaceDown": "workspace_down",
    "BrazeCampaignFailing": "failing",
    "BrazeCampaignStale": "stale",
}
# Those of the exporter itself, a workspace without campaigns, or another week's: none is a campaign's.
WITHOUT_HEALTH = {
    "BrazeApiBudgetLow",
    "BrazeConfigReloadFailed",
    "BrazeDayInFuture",
    "BrazeDayNotMoving",
    "BrazeExporterDown",
    "BrazeExporterReplicaDown",
    "BrazeExporterRestarting",
    "BrazeOverrideUnknown",
    "BrazeSeriesDropped",
    "BrazeShardMissing",
    "BrazeTimezoneWrong",
    "BrazeWorkspaceRateLimited",
    "BrazeWorkspaceReplicaDown",
    "BrazeWorkspaceSpamRateCritical",
    "BrazeWorkspaceSpamRateHigh",
    "BrazeWorkspaceVanished",
}


def reason(alert: str) -> str:
    """Return the reason that a campaign's health has for an alert."""
    expression = ALERTS[alert]["expr"]
    found = re.search(r'(?:problem:value\{reason|too_high\{threshold)="(\w+)"', expression)
    return REASON.get(alert) or (found[1] if found else "")


def culprits(labels: Mapping[str, str], query: str) -> str:
    """Count the answers of a query that are about these labels, as far as the answer has them."""
    wanted = "vector(1)"
    known = {
        name: text for name, text in labels.items() if name in {"workspace", "campaign_id", "job", "instance", "api"}
    }
    for name, text in known.items():
        wanted = f'label_replace({wanted}, "{name}", "{text}", "", "")'
    return f"count(({query}) and on ({', '.join(known)}) {wanted}) > bool 0"


def first_of_each() -> Iterator[tuple[Fault, Fires]]:
    """Yield a fault for each alert that fires in some world."""
    seen = set()
    for fault in FAULTS:
        for fires in fault.fires:
            if fires.alert not in seen:
                seen.add(fires.alert)
                yield fault, fires


# Told by hand, as no world of weeks has them.
BY_HAND: dict[str, tuple[Mapping[str, str], tuple[Gauge, ...]]] = {
    "BrazeExporterRestarting": (
        {"job": "9/braze-exporter", "instance": "z"},
        (Gauge('process_resident_memory_bytes{job="9/braze-exporter",instance="z"}', {0: 1}),),
    ),
    "BrazeWorkspaceVanished": (
        {"workspace": "shop"},
        (Gauge('braze_workspace_up{workspace="shop",instance="z"}', {0: 1}),),
    ),
    "BrazeWorkspaceRateLimited": (
        {"workspace": "shop"},
        (
            Gauge(
                'braze_api_requests_total{workspace="shop",api="data_series"}', {now: now for now in range(0, 120, 5)}
            ),
        ),
    ),
    "BrazeWorkspaceReplicaDown": (
        {"workspace": "shop", "instance": "z"},
        (
            Gauge('braze_workspace_up{workspace="shop",instance="z"}', {0: 0}),
            Gauge(
                'braze_api_request_failures_total{workspace="shop",instance="z",reason="timeout"}',
                {now: now for now in range(0, 120, 5)},
            ),
        ),
    ),
    "BrazeTimezoneWrong": (
        {"workspace": "shop"},
        (
            Gauge('braze_workspace_day_rollover_offset_seconds{workspace="shop"}', {0: 7_200}),
            Gauge('braze_campaign_poll_interval_seconds{workspace="shop",campaign_id="1"}', {0: 300}),
        ),
    ),
    "BrazeOverrideUnknown": (
        {"workspace": "main", "campaign_id": "3bbc4555-8fa0-4c9b-a5c0-4505edf3e064"},
        (Gauge('braze_workspace_up{workspace="main"}', {0: 1}),),
    ),
    "BrazeShardMissing": (
        {"job": "9/braze-exporter", "shard": "1"},
        (
            Gauge('braze_exporter_shard{job="9/braze-exporter",instance="y"}', {0: 0}),
            Gauge('braze_exporter_shard{job="9/braze-exporter",instance="z"}', {0: 1, 60: None}),
        ),
    ),
    "BrazeConfigReloadFailed": (
        {"job": "9/braze-exporter"},
        (
            Gauge(
                'braze_exporter_config_last_reload_success_timestamp_seconds{job="9/braze-exporter",instance="z"}',
                {0: 0},
            ),
        ),
    ),
    "BrazeCampaignFailing": (
        {"workspace": "shop", "campaign_id": "deleted"},
        (
            Gauge(
                'braze_campaign_poll_failures_total{workspace="shop",campaign_id="deleted",reason="bad_request"}',
                {now: now for now in range(0, 120, 5)},
            ),
        ),
    ),
    "BrazeWorkspaceDown": (
        {"workspace": "cut off"},
        (
            Gauge(
                'braze_api_request_failures_total{workspace="cut off",api="data_series",reason="connection"}',
                {now: now for now in range(0, 120, 5)},
            ),
        ),
    ),
}


@pytest.mark.parametrize("alert", sorted(BY_HAND))
def test_queries_of_runbooks_on_small_worlds(promtool: Path, tmp_path: Path, alert: str) -> None:
    """The query names the exporter, shard, override or workspace that is to blame."""
    labels, gauges = BY_HAND[alert]
    query = QUERIES[alert][0]
    known = ", ".join(labels)
    wanted = "vector(1)"
    for name, text in labels.items():
        wanted = f'label_replace({wanted}, "{name}", "{text}", "", "")'
    asked = [
        {
            "expr": f"count(({query}) and on ({known}) {wanted}) > bool 0",
            "eval_time": "100m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
    ]
    read = tmp_path / "read.yml"  # so that what only runbooks read is fed, too
    rules = [{"record": f"query:{number}:asked", "expr": one} for number, one in enumerate(QUERIES[alert])]
    read.write_text(
        "groups:\n  - name: read\n    rules: " + yaml.safe_dump(rules, default_flow_style=True), encoding="utf-8"
    )

    assert judge(promtool, tmp_path, [*FILES, read], gauges, range(0, 110, 5), 5, promql_expr_test=asked) == ""


def test_health_and_runbooks_name_the_culprit(promtool: Path, tmp_path: Path) -> None:
    """While an alert fires, its campaign's health has its colour and reason, and its runbook's query the campaign."""
    chosen = list(first_of_each())
    faults = list({id(fault): fault for fault, _ in chosen}.values())
    shapes = [shape for fault in faults for shape in fault.shapes]
    asked: list[object] = []
    for fault, fires in chosen:
        labels = fires.labels or identity(fault)
        if fires.alert not in BY_HAND:
            asked += [
                {
                    "expr": culprits(labels, query),
                    "eval_time": f"{fires.first}m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
                for query in QUERIES[fires.alert][:1]
            ]
        if fires.alert not in WITHOUT_HEALTH and "campaign_id" in labels:
            asked.append(_health(fault, fires.first, labels))
    sampled = range(0, at(42), STEP)

    assert {alert for alert in ALERTS if not reason(alert)} <= WITHOUT_HEALTH
    assert {reason(alert) for alert in ALERTS if reason(alert)} <= set(REASONS)
    assert judge(promtool, tmp_path, FILES, shapes, sampled, STEP, promql_expr_test=asked) == ""


def _health(fault: Fault, now: int, labels: Mapping[str, str]) -> dict[str, object]:
    """Expect the worst of what fires for a campaign, or has begun and waits."""
    rank = {name: number for number, name in enumerate(REASONS)}
    begun = [
        fires
        for fires in fault.fires
        if (fires.labels or identity(fault)) == labels
        and fires.alert not in WITHOUT_HEALTH
        and fires.first - _waits(fires.alert) <= now <= fires.last - STEP
    ]
    worst = min(begun, key=lambda fires: rank[reason(fires.alert)])
    value = {"critical": 2, "warning": 1}[ALERTS[worst.alert]["labels"]["severity"]]
    about = {"workspace": labels["workspace"], "campaign_id": labels["campaign_id"], "reason": reason(worst.alert)}
    query = f"campaign:braze_campaign_health{selector({name: about[name] for name in ('workspace', 'campaign_id')})}"
    return {
        "expr": query,
        "eval_time": f"{now}m",
        "exp_samples": [{"labels": f"campaign:braze_campaign_health{selector(about)}", "value": value}],
    }


def _waits(alert: str) -> int:
    """Return the minutes that an alert waits here, where it is judged once an hour."""
    number, unit = re.fullmatch(r"(\d+)([mh])", ALERTS[alert]["for"]).groups()  # type: ignore[union-attr]
    return ceil(int(number) * {"m": 1, "h": 60}[unit] / STEP) * STEP


def test_reasons_are_a_closed_list() -> None:
    """Every reason of the rules has its words on the overview, and there are no others."""
    text = (RULES / "braze-health.yml").read_text(encoding="utf-8")
    recorded = set(re.findall(r'(?:reason|threshold)=~?"(\w+)"', text)) | set(re.findall(r'"reason", "(\w+)"', text))

    assert recorded == set(REASONS)


def test_a_healthy_campaign_is_green(promtool: Path, tmp_path: Path) -> None:
    """Where nothing is wrong there is one series, at 0, with the reason ok."""
    day = {"sent": 10_000.0, "delivered": 9_900.0, "bounces": 50.0}
    expected = [
        {
            "expr": "campaign:braze_campaign_health",
            "eval_time": f"{at(2, 9)}m",
            "exp_samples": [
                {
                    "labels": 'campaign:braze_campaign_health{workspace="shop",campaign_id="fine",reason="ok"}',
                    "value": 0,
                }
            ],
        }
    ]
    world = [Campaign(name="Fine", days=[day] * 4)]

    assert judge(promtool, tmp_path, FILES[1:], world, range(0, at(2, 10), STEP), STEP, promql_expr_test=expected) == ""
