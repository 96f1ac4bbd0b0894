"""Real Prometheus and Alertmanager with our rules and routes: each problem is notified once, and so is its end.

The files are those that users get, only faster: what lasts an hour there takes seconds here. Days remain days: what the
rules look up of the weeks before is in Prometheus' data from the start.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from exporter.exposition import render
from exporter.metrics import day_rows
from exporter.simulator.server import Body, Simulator, Status
from exporter.simulator.world import CampaignModel, Statistic, campaign_models, daily
from tests.support.exporters import KEY, running_exporter
from tests.support.history import polled
from tests.support.servers import (
    ROOT,
    Alertmanager,
    Answer,
    Prometheus,
    eventually,
    running_prometheus,
    serving,
    write_history,
)

StartAlertmanager = Callable[[str], Alertmanager]

FASTER = 240
HOUR = 3600.0
DAY = 24 * HOUR
WELCOME, CART, PASSCODE, APP = (campaign_models(12)[number] for number in (0, 1, 3, 8))
OF_SHOP = campaign_models(3, seed=2)

# A duration in a configuration or a rule. Not the resolution of a subquery, `:1h]`: that one looks at days.
_DURATION = re.compile(r"((?:\bfor|_for|interval|group_wait): |\boffset |\[)(\d+)([smh])\b(?!:)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_LONGEST = 2 * HOUR
"""Longer durations compare days, or keep Alertmanager from repeating a notification."""
_ABOUT = ("campaign_name", "workspace", "job", "alertname")


@dataclass(frozen=True, slots=True, order=True)
class Notification:
    """News in a notification of Alertmanager; `about` has the campaigns, workspaces or jobs.

    Alerts that began are one notification. Each end is one of its own: polls find campaigns mended one by one, and
    whether their ends share a message is chance.
    """

    receiver: str
    alert: str
    status: str
    about: tuple[str, ...]


UNAUTHORIZED = Notification("shop", "BrazeWorkspaceUnauthorized", "firing", ("shop",))
NOT_MOVING = Notification("shop", "BrazeDayNotMoving", "firing", ("shop",))
FAILING = Notification("platform", "BrazeCampaignFailing", "firing", (CART.name, APP.name))
NOTHING_SENT = Notification("lifecycle", "BrazeNothingSent", "firing", (PASSCODE.name,))
SPIKE = Notification("lifecycle-pager", "BrazeEmailBounceSpike", "firing", (WELCOME.name,))
DOWN = Notification("platform-pager", "BrazeExporterDown", "firing", ("braze-exporter",))


def test_trouble_at_braze(tmp_path: Path, promtool: Path, alertmanager: StartAlertmanager) -> None:
    """A refused key, two campaigns that fail, one that stops and one that bounces are told once each, and end."""
    zone = where_it_is_noon()
    behind = [2 * DAY]  # after one day the next would seem to begin at noon, which tells of a wrong time zone
    shop = Simulator(campaigns=OF_SHOP, api_key=KEY, timezone=zone, clock=lambda: time.time() - behind[-1])
    main = Simulator(campaigns=(WELCOME, CART, PASSCODE, APP), api_key=KEY, timezone=zone)
    with main, shop:
        main.misbehave(today(replace(PASSCODE, base=0), zone), campaign_id=PASSCODE.id)
        with running_exporter(configured(tmp_path, zone, main=main, shop=shop)) as exporter:
            for campaign in (CART, APP):
                main.misbehave(Status(400), campaign_id=campaign.id)
            shop.misbehave(Status(401))
            with watching(exporter.url, zone, tmp_path, promtool, alertmanager) as watch:
                watch.receives(UNAUTHORIZED, FAILING, NOTHING_SENT)
                eventually(
                    lambda: watch.alertmanager.alerts(inhibited=True) == {NOT_MOVING.alert},
                    what="the inhibited alert on numbers that are days old and stay so",
                )
                watch.received_nothing_else()

                main.behave()
                shop.behave()
                watch.receives(*ended(UNAUTHORIZED), *ended(FAILING), *ended(NOTHING_SENT), NOT_MOVING)
                behind.append(0)
                watch.receives(*ended(NOT_MOVING))

                hour = f"campaign_channel:braze_message_sent:increase1h{{campaign_id='{WELCOME.id}'}}"
                eventually(lambda: watch.prometheus.query(hour), what="numbers of an hour ago to compare with")
                main.misbehave(today(bouncing(WELCOME), zone, ahead=HOUR), campaign_id=WELCOME.id)
                watch.receives(SPIKE)
                watch.receives(*ended(SPIKE))
                watch.ends()


def test_killed_exporter(tmp_path: Path, promtool: Path, alertmanager: StartAlertmanager) -> None:
    """No exporter is up: that is notified, and earlier alerts end until an exporter knows of their cause again."""
    zone = where_it_is_noon()
    with Simulator(campaigns=(APP, PASSCODE), api_key=KEY, timezone=zone) as main:
        main.misbehave(today(replace(PASSCODE, base=0), zone), campaign_id=PASSCODE.id)
        file = configured(tmp_path, zone, main=main)
        with running_exporter(file) as exporter:
            address = exporter.url.removeprefix("http://")
            with watching(exporter.url, zone, tmp_path, promtool, alertmanager) as watch:
                watch.receives(NOTHING_SENT)
                exporter.program.process.kill()
                # What only a living exporter knows ends by itself, some time after it.
                watch.receives(DOWN, *ended(NOTHING_SENT))
                watch.received_nothing_else()

                with running_exporter(file, address=address):
                    watch.receives(*ended(DOWN), NOTHING_SENT)
                    watch.received_nothing_else()
                    main.behave()
                    watch.receives(*ended(NOTHING_SENT))
                    watch.ends()


@dataclass(frozen=True, slots=True)
class Watch:
    """Prometheus, Alertmanager, what receivers got from it and what they were expected to get."""

    prometheus: Prometheus
    alertmanager: Alertmanager
    received: Sequence[Notification]
    expected: list[Notification] = field(default_factory=list)

    def receives(self, *notifications: Notification) -> None:
        """Wait for notifications, in whatever order they come."""
        self.expected.extend(notifications)
        for notification in notifications:
            try:
                eventually(
                    lambda: self.received.count(notification) == self.expected.count(notification),  # noqa: B023 - used here
                    what=str(notification),
                )
            except AssertionError as error:
                error.add_note(f"received: {self.received}")
                raise

    def received_nothing_else(self) -> None:
        """Compare all notifications with those expected."""
        assert sorted(self.received) == sorted(self.expected)

    def ends(self) -> None:
        """Wait until no alert is left, and compare all notifications with those expected."""
        eventually(lambda: not self.prometheus.query("ALERTS"), what="no alert in Prometheus")
        eventually(lambda: not self.alertmanager.alerts(inhibited=False), what="no alert in Alertmanager")
        self.received_nothing_else()


@contextmanager
def watching(
    exporter: str, zone: ZoneInfo, folder: Path, promtool: Path, alertmanager: StartAlertmanager
) -> Iterator[Watch]:
    """Run Prometheus and Alertmanager with the files of deploy/ and weeks of history, for an exporter's address."""
    server = folder / "prometheus"
    (server / "rules").mkdir(parents=True)
    for file in (ROOT / "deploy/prometheus/rules").iterdir():
        (server / "rules" / file.name).write_text(faster(file), encoding="utf-8")
    remember(server, zone, exporter.removeprefix("http://"), promtool)
    with receiving() as (receivers, received):
        manager = alertmanager(faster(ROOT / "deploy/alertmanager/alertmanager.yml", {"localhost:9000": receivers}))
        targets = {"localhost:10105": exporter, "localhost:9093": manager.url}
        configuration = faster(
            ROOT / "deploy/prometheus/prometheus.yml",
            {documented: url.removeprefix("http://") for documented, url in targets.items()},
        )
        flags = ("--storage.tsdb.retention.time=35d",)
        with running_prometheus(promtool.with_name("prometheus"), configuration, server, *flags) as prometheus:
            yield Watch(prometheus, manager, received)


def faster(file: Path, addresses: Mapping[str, str] | None = None) -> str:
    """Return a configuration or rules with durations of minutes and hours divided, and with other addresses."""
    text = file.read_text(encoding="utf-8")
    for documented, used in (addresses or {}).items():
        assert documented in text
        text = text.replace(documented, used)
    return _DURATION.sub(_divided, text)


def _divided(match: re.Match[str]) -> str:
    seconds = int(match[2]) * _SECONDS[match[3]]
    return match[0] if seconds > _LONGEST else f"{match[1]}{1000 * seconds // FASTER}ms"


@contextmanager
def receiving() -> Iterator[tuple[str, Sequence[Notification]]]:
    """Run the webhooks of all receivers: their address without the path, and a list that what arrives is added to."""
    received: list[Notification] = []
    told: set[tuple[str, str]] = set()

    def webhook(path: str, body: bytes) -> Answer:
        message = json.loads(body)
        receiver, name = path.removeprefix("/"), message["groupLabels"]["alertname"]
        about: dict[str, set[str]] = {"firing": set(), "resolved": set()}
        for alert in message["alerts"]:
            about[alert["status"]].add(next(alert["labels"][label] for label in _ABOUT if label in alert["labels"]))
        begun = sorted(each for each in about["firing"] if (name, each) not in told)
        over = sorted(each for each in about["resolved"] if (name, each) in told)
        told.update((name, each) for each in begun)
        told.difference_update((name, each) for each in over)
        if begun or not over:  # neither: a message without news, which is one too many
            received.append(Notification(receiver, name, "firing", tuple(begun)))
        received.extend(Notification(receiver, name, "resolved", (each,)) for each in over)
        return Answer()

    with serving(webhook) as address:
        yield address, received


def ended(notification: Notification) -> list[Notification]:
    """Return the notifications that another one has ended."""
    return [replace(notification, status="resolved", about=(each,)) for each in notification.about]


def where_it_is_noon() -> ZoneInfo:
    """Return a zone in which a campaign has sent today, at this time and an hour ago, and no day ends during a test."""
    return ZoneInfo(f"Etc/GMT{datetime.now(UTC).hour - 12:+}")


def configured(folder: Path, zone: ZoneInfo, **workspaces: Simulator) -> Path:
    """Write a configuration of workspaces that polls as often as is usual, faster, and keeps numbers for long."""
    (folder / "api-key").write_text(KEY, encoding="utf-8")
    configuration = {
        "poll": {"interval": f"{1000 * 300 // FASTER}ms", "stale_after": "1h"},
        "workspaces": [
            {
                "name": name,
                "endpoint": braze.url,
                "api_key_file": "api-key",
                "timezone": zone.key,
                "campaigns": [{"id": campaign.id, "name": campaign.name} for campaign in braze.campaigns],
            }
            for name, braze in workspaces.items()
        ],
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(configuration, ensure_ascii=False), encoding="utf-8")  # YAML, too
    return file


def today(campaign: CampaignModel, zone: ZoneInfo, *, ahead: float = 0) -> Body:
    """Return Braze's response for a campaign that changes at this midnight, at a number of seconds after it."""
    now = time.time() + ahead
    day = datetime.fromtimestamp(now, zone).date()
    (usual,) = (each for each in (WELCOME, CART, PASSCODE, APP) if each.id == campaign.id)
    before = daily(usual, day - timedelta(days=1), now=now, zone=zone)
    answer = {"message": "success", "data": [before, daily(campaign, day, now=now, zone=zone)]}
    return Body(json.dumps(answer).encode())


def bouncing(campaign: CampaignModel) -> CampaignModel:
    """Return a campaign of e-mails with a high bounce rate, as after an hour in which a third bounced."""
    bounces = (Statistic("bounces", 0.055), Statistic("delivered", less="bounces"))
    return replace(campaign, channels=tuple(replace(channel, extra=bounces) for channel in campaign.channels))


def remember(folder: Path, zone: ZoneInfo, address: str, promtool: Path) -> None:
    """Put into a Prometheus' data what it would have scraped at the times that the rules look back to.

    The last one is now: without, for the seconds until its first scrape, Prometheus would miss the exporter.
    """
    now = time.time()
    days = [now - (7 * weeks - back) * DAY for weeks in range(1, 5) for back in (0, 1)]
    by_now = [now - (7 * weeks * 24 + 1) * HOUR for weeks in range(1, 5)]
    history = (line for moment in sorted(days + by_now) for line in scrape(moment, zone))
    last = f'up{{instance="{address}",job="braze-exporter"}} 1 {now:.3f}\n'
    write_history(promtool, (*history, last), folder)


def scrape(moment: float, zone: ZoneInfo) -> Iterable[str]:
    """Return the lines of OpenMetrics that show the campaigns' days as known at a Unix time, with that time."""
    for campaign in (WELCOME, CART, PASSCODE, APP):
        state = polled("main", zone, campaign, moment)
        for line in b"".join(render(day_rows(state)).values()).decode().splitlines():
            yield f"{line} {moment:.3f}\n"
