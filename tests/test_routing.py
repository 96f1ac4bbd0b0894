"""A real Alertmanager with the routes of deploy/alertmanager, its waits shortened: what reaches whom."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue

import pytest
import requests
import yaml

from tests.support.servers import ROOT, Alertmanager, Answer, eventually, serving
from tests.test_rules import ALERTS, run

StartAlertmanager = Callable[[str], Alertmanager]
Received = tuple[str, str]

CONFIGURATION = (ROOT / "deploy/alertmanager/alertmanager.yml").read_text(encoding="utf-8")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@contextmanager
def receivers(configuration: str = CONFIGURATION) -> Iterator[tuple[str, "Queue[Received]"]]:
    """Run all receivers; yield the configuration that leads to them, and what arrives: receiver and alert."""
    arrived: Queue[Received] = Queue()

    def webhook(path: str, body: bytes) -> Answer:
        for alert in json.loads(body)["alerts"]:
            arrived.put((path.removeprefix("/"), alert["labels"]["alertname"]))
        return Answer()

    with serving(webhook) as address:
        text = configuration.replace("localhost:9000", address)
        yield re.sub(r"(group_wait|group_interval): \w+", r"\1: 100ms", text), arrived


def send(alertmanager: Alertmanager, *alerts: Mapping[str, str]) -> None:
    """Tell Alertmanager of alerts that fire from now on, with the labels of their rules beside those given."""
    now = datetime.now(UTC)
    body = [
        {
            "labels": {**ALERTS[labels["alertname"]]["labels"], **labels},
            "startsAt": now.isoformat(),
            "endsAt": (now + timedelta(hours=1)).isoformat(),
        }
        for labels in alerts
    ]
    with requests.Session() as session:
        session.trust_env = False
        session.post(f"{alertmanager.url}/api/v2/alerts", json=body, timeout=10).raise_for_status()


def taken(arrived: "Queue[Received]", count: int) -> set[Received]:
    """Wait for so many notifications."""
    return {arrived.get(timeout=30) for _ in range(count)}


@pytest.mark.parametrize("shift", range(7), ids=lambda shift: f"as-if-{shift}-days-later")
def test_a_report_of_every_weekday_reaches_somebody(alertmanager: StartAlertmanager, shift: int) -> None:
    """Whatever weekday it is, a report on a complete day is sent: no time of the week is muted."""
    later = {name: WEEKDAYS[(number + shift) % 7] for number, name in enumerate(WEEKDAYS)}
    moved = re.sub("|".join(WEEKDAYS), lambda match: later[match[0]], CONFIGURATION)
    with receivers(moved) as (configuration, arrived):
        server = alertmanager(configuration)
        send(
            server,
            {"alertname": "BrazeVolumeLow", "workspace": "main", "campaign_id": "1"},
            {"alertname": "BrazeUnsubscribeRateHigh", "workspace": "main", "campaign_id": "1"},
        )

        assert taken(arrived, 2) == {
            ("lifecycle-reports", "BrazeVolumeLow"),
            ("lifecycle-reports", "BrazeUnsubscribeRateHigh"),
        }


def test_no_route_mutes_what_ends_with_the_day() -> None:
    """No route has time intervals: an alert on the previous day lives for one day, and a mute can be longer."""

    def keys(value: object) -> set[str]:
        children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        return set(value if isinstance(value, dict) else ()).union(*(keys(child) for child in children))

    assert not {"mute_time_intervals", "active_time_intervals"} & keys(yaml.safe_load(CONFIGURATION)["route"])


def test_an_outage_of_staging_silences_nothing_of_production(alertmanager: StartAlertmanager) -> None:
    """A dead exporter inhibits alerts of its own installation only, and none of a workspace."""
    staging = {"job": "braze-exporter", "namespace": "staging", "service": "braze"}
    production = {**staging, "namespace": "production"}
    with receivers() as (configuration, arrived):
        server = alertmanager(configuration)
        send(server, {"alertname": "BrazeExporterDown", **staging})
        assert taken(arrived, 1) == {("platform-pager", "BrazeExporterDown")}
        send(
            server,
            {"alertname": "BrazeShardMissing", **staging},
            {"alertname": "BrazeConfigReloadFailed", **production},
            {"alertname": "BrazeWorkspaceDown", "workspace": "main"},
            {"alertname": "BrazeEmailBounceSpike", "workspace": "main", "campaign_id": "1", "channel": "email"},
            {"alertname": "BrazeNothingSent", "workspace": "main", "campaign_id": "1"},
        )

        assert taken(arrived, 4) == {
            ("platform", "BrazeConfigReloadFailed"),
            ("platform-pager", "BrazeWorkspaceDown"),
            ("lifecycle-pager", "BrazeEmailBounceSpike"),
            ("lifecycle", "BrazeNothingSent"),
        }
        eventually(
            lambda: server.alerts(inhibited=True) == {"BrazeShardMissing"}, what="the alert of the dead exporter itself"
        )


def test_alerts_end_by_themselves() -> None:
    """Whatever is known from a living exporter only is kept for a quarter of an hour, so a restart ends nothing."""
    from_prometheus = {"BrazeExporterDown", "BrazeExporterReplicaDown", "BrazeExporterRestarting"}

    assert {name for name, rule in ALERTS.items() if rule.get("keep_firing_for") != "15m"} == from_prometheus


@pytest.mark.parametrize(
    ("alert", "receiver"),
    [
        ("BrazeExporterDown", "braze"),
        ("BrazeEmailBounceSpike", "braze"),
        ("BrazeVolumeLow", "braze-reports"),
        ("BrazeEmailSpamRateHigh", "braze-reports"),
        ("SomethingElse", "null"),
    ],
)
def test_the_guide_for_kubernetes_routes_every_alert(amtool: Path, tmp_path: Path, alert: str, receiver: str) -> None:
    """The values that "Tell somebody" has for kube-prometheus-stack are valid and take every alert to a receiver."""
    guide = (ROOT / "deploy/kubernetes/README.md").read_text(encoding="utf-8")
    section = guide.partition("Tell somebody\n")[2]
    block = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert block is not None
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.safe_dump(yaml.safe_load(block[1])["alertmanager"]["config"]), encoding="utf-8")
    labels = [f"{name}={value}" for name, value in ALERTS.get(alert, {"labels": {}})["labels"].items()]
    options = [f"--config.file={file}", f"--verify.receivers={receiver}", f"alertname={alert}"]

    assert run(amtool, "check-config", file) == ""
    assert run(amtool, "config", "routes", "test", *options, *labels) == ""
