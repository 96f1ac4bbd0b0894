"""The rules for Prometheus and the configuration of Alertmanager, proven on promtool and amtool."""

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from exporter.metrics import FAMILIES
from tests.servers import ROOT
from tests.worlds import Campaign, Totals, between, hour, series_of

PROMETHEUS = ROOT / "deploy/prometheus"
RULES = PROMETHEUS / "rules"
FILES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yml"))}
ALERTS = {
    rule["alert"]: rule
    for file in FILES.values()
    for group in file["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
RECORDED = [rule for file in FILES.values() for group in file["groups"] for rule in group["rules"] if "record" in rule]
RUNBOOK = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
RUNBOOKS = "https://github.com/braze-exporter/braze-exporter/blob/main/docs/runbooks.md#"


@dataclass(frozen=True, slots=True)
class Fires:
    """An alert that fires for a campaign, or for a workspace where there is none, from its first to its last hour."""

    alert: str
    campaign: str
    first: int
    last: int
    says: str


# ---- what promtool and Prometheus think of the files


def test_files_are_valid(promtool: Path) -> None:
    """Promtool finds no fault in the configuration, in any rule file or in the example of overrides."""
    files = [*sorted(RULES.glob("*.yml")), PROMETHEUS / "overrides.example.yml"]

    assert run(promtool, "check", "config", PROMETHEUS / "prometheus.yml") == ""
    assert run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *files) == ""


def test_alerts_are_complete() -> None:
    """Each alert has a severity, a window, a static summary, a description with values, and its own runbook."""
    for name, rule in ALERTS.items():
        assert set(rule["labels"]) == {"severity", "window"}, name
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert rule["labels"]["window"] in {"now", "running_day", "previous_day", "days"}, name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert "{{" not in rule["annotations"]["summary"], name
        assert "$labels" in rule["annotations"]["description"], name
        assert rule["annotations"]["runbook_url"] == RUNBOOKS + name.lower(), name


def test_runbooks() -> None:
    """The runbooks have one section for each alert, in the order of the rules, and each says the four things."""
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))

    assert list(sections) == list(ALERTS)
    for name, section in sections.items():
        assert re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE) == ["Means", "Look at", "Do", "Silence"], name
        assert section.count("```promql") == 1, name


def test_runbooks_name_what_exists() -> None:
    """Links between runbooks have a target, and the metrics, recorded series and thresholds named exist."""
    anchors = set(re.findall(r"\(#(\w+)\)", RUNBOOK))
    recorded = {rule["record"] for rule in RECORDED}
    thresholds = {rule["labels"]["threshold"] for rule in RECORDED if "threshold" in rule.get("labels", {})}
    metrics = {family.name for family in FAMILIES}

    assert anchors <= {name.lower() for name in ALERTS}
    assert set(re.findall(r"\b[a-z_]+:braze_[a-z_]+:[a-z0-9_]+", RUNBOOK)) <= recorded
    assert {a or b for a, b in re.findall(r'threshold="(\w+)"|override `(\w+)`', RUNBOOK)} <= thresholds
    assert set(re.findall(r"(?<!:)\bbraze_[a-z_]+", RUNBOOK)) <= metrics


def test_queries_of_runbooks(promtool: Path, tmp_path: Path) -> None:
    """Every query in the runbooks is valid PromQL."""
    queries = re.findall(r"```promql\n(.+?)```", RUNBOOK, re.DOTALL)
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")

    assert len(queries) > len(ALERTS)
    assert run(promtool, "check", "rules", path) == ""


# ---- alerts that say what they should, when they should, and nothing else


@pytest.mark.parametrize("path", sorted(PROMETHEUS.glob("tests/*.test.yml")), ids=lambda path: path.stem)
def test_alerts_on_the_exporter(promtool: Path, path: Path) -> None:
    """The tests written for promtool by hand pass."""
    assert run(promtool, "test", "rules", path) == ""


def test_every_alert_is_seen_firing() -> None:
    """Each alert fires, with its texts, in some test of this file or in one written for promtool by hand."""
    by_world = {fires.alert for fires, _ in fired()}

    assert set(labels_by_hand()) | by_world == set(ALERTS)


EMAIL = {"sent": 10_000, "delivered": 9_940, "bounces": 60, "reported_spam": 2, "unsubscribes": 20}
SMS = {"sent": 5_000, "rejected": 50, "delivery_failed": 100, "opt_out": 40}
WHATS_APP = {"sent": 2_000, "failed": 20}
WEBHOOK = {"sent": 2_400, "errors": 0}
PUSH = {"sent": 8_000, "bounces": 160}


def with_days(usual: Totals, days: int, **others: Totals) -> list[Totals]:
    """Repeat the usual day so many times; `day_5={…}` changes the totals that it names on day 5."""
    return [{**usual, **others.get(f"day_{day}", {})} for day in range(days)]


# Nine days, judged from day 6 on, when yesterday was day 5.
FAILING = [
    Campaign(name="Healthy", days=with_days(EMAIL, 9)),
    Campaign(name="Bounces", days=with_days(EMAIL, 9, day_5={"bounces": 300, "delivered": 9_700})),
    # One bounce of forty messages, five of a hundred: no news.
    Campaign(name="Tiny", days=with_days({"sent": 40, "delivered": 39, "bounces": 1, "reported_spam": 1}, 9)),
    Campaign(name="Small", days=with_days({"sent": 100, "delivered": 95, "bounces": 5}, 9)),
    # A provider blocks it between 10:00 and 14:00: 10 % of four hours, 1.7 % of the day.
    Campaign(
        name="Blocked",
        days=with_days(
            {"sent": 24_000, "bounces": 0, "delivered": 24_000}, 9, day_6={"bounces": 400, "delivered": 23_600}
        ),
        course=between(0, 24),
        courses={"bounces": between(10, 14)},
    ),
    Campaign(name="Lost", days=with_days(EMAIL, 9, day_5={"delivered": 9_400})),
    # A rate-limited send over midnight: what is missing on the day of the send is delivered by 04:00 of the next.
    Campaign(
        name="Overnight",
        days=[{"sent": 10_000, "delivered": 5_900, "bounces": 60}, {"sent": 0, "delivered": 4_040, "bounces": 0}] * 5,
        courses={"delivered": between(0, 4)},
    ),
    # Reports come on days without sends, where a share of the day would be infinite.
    Campaign(
        name="Reported",
        days=with_days({"sent": 0, "reported_spam": 4}, 9, day_5={"sent": 20_000, "reported_spam": 60}),
    ),
    Campaign(name="Late reports", days=with_days({"sent": 0, "reported_spam": 5}, 9, day_5={"sent": 20_000})),
    Campaign(name="Unsubscribed", days=with_days(EMAIL, 9, day_5={"unsubscribes": 300})),
    Campaign(name="Texts", days=with_days(SMS, 9, day_5={"rejected": 300, "delivery_failed": 200}), channel="sms"),
    Campaign(name="Opt-outs", days=with_days(SMS, 9, day_5={"opt_out": 500}), channel="sms"),
    Campaign(name="Chats", days=with_days(WHATS_APP, 9, day_5={"failed": 200}), channel="whats_app"),
    Campaign(
        name="Hooks",
        days=with_days(WEBHOOK, 9, day_6={"errors": 110}),
        channel="webhook",
        course=between(0, 24),
        courses={"errors": between(10, 12)},
    ),
    Campaign(name="Flaky hooks", days=with_days(WEBHOOK, 9, day_5={"errors": 240}), channel="webhook"),
    Campaign(name="Pushes", days=with_days(PUSH, 9, day_5={"bounces": 1_200}), channel="ios_push"),
    # Two replicas, of which one learns of a new day an hour later; a sum of both would be no other share.
    Campaign(name="Twice", days=with_days(EMAIL, 9, day_5={"bounces": 300, "delivered": 9_700})),
    Campaign(name="Twice", days=with_days(EMAIL, 9, day_5={"bounces": 300, "delivered": 9_700}), instance="b", lag=1.1),
    # The exporter restarts with a new instance label while the alert fires.
    Campaign(name="Restarted", days=with_days(EMAIL, 9, day_5={"bounces": 300, "delivered": 9_700}), until=hour(6, 9)),
    Campaign(
        name="Restarted",
        days=with_days(EMAIL, 9, day_5={"bounces": 300, "delivered": 9_700}),
        since=hour(6, 9),
        instance="b",
    ),
    # Failed polls: absent is not zero.
    Campaign(name="Missing", days=with_days(EMAIL, 9), missing=range(hour(6, 5), hour(6, 15))),
    *(
        Campaign(name=name, workspace=workspace, days=with_days({"sent": 50_000, "reported_spam": reports}, 9))
        for name, workspace, reports in (("Complained", "blog", 75), ("Hated", "ads", 250))
    ),
]
# From two hours after midnight, and the hour that the alert takes here to fire, until the next day is two hours old.
YESTERDAY = (hour(6, 3), hour(7, 1))
# From noon, when a day is counted, to the end of the world.
DAYS = (hour(6, 13), hour(8) - 1)
WEEK = (hour(6), hour(8) - 1)
FAILURES = [
    Fires(
        "BrazeEmailBounceRateHigh",
        name,
        *YESTERDAY,
        f"3% of yesterday's e-mails of campaign {name} in workspace shop bounced. The threshold is 2%.",
    )
    for name in ("Bounces", "Twice", "Restarted")
] + [
    Fires(
        "BrazeEmailBounceSpike",
        "Blocked",
        hour(6, 12),
        hour(6, 15),
        "10% of the last hour's e-mails of campaign Blocked in workspace shop bounced. The threshold is 5%.",
    ),
    Fires(
        "BrazeEmailDeliveriesMissing",
        "Lost",
        hour(6, 6),
        hour(7, 1),
        "5.4% of yesterday's e-mails of campaign Lost in "
        "workspace shop were neither delivered nor bounced. The threshold is 2%.",
    ),
    Fires(
        "BrazeEmailSpamRateHigh",
        "Reported",
        *DAYS,
        "0.34% of the e-mails of the last three complete days of campaign "
        "Reported in workspace shop were reported as spam. The threshold is 0.1%.",
    ),
    Fires(
        "BrazeEmailSpamRateHigh",
        "Complained",
        *WEEK,
        "0.15% of the e-mails of the last three complete days of campaign "
        "Complained in workspace blog were reported as spam. The threshold is 0.1%.",
    ),
    Fires(
        "BrazeEmailSpamRateHigh",
        "Hated",
        *WEEK,
        "0.5% of the e-mails of the last three complete days of campaign "
        "Hated in workspace ads were reported as spam. The threshold is 0.1%.",
    ),
    Fires(
        "BrazeWorkspaceSpamRateHigh",
        "blog",
        *WEEK,
        "0.15% of the e-mails of workspace blog in the last seven complete"
        " days were reported as spam. Gmail sends no reports, so this is a lower bound.",
    ),
    Fires(
        "BrazeWorkspaceSpamRateHigh",
        "ads",
        *WEEK,
        "0.5% of the e-mails of workspace ads in the last seven complete"
        " days were reported as spam. Gmail sends no reports, so this is a lower bound.",
    ),
    Fires(
        "BrazeWorkspaceSpamRateCritical",
        "ads",
        *WEEK,
        "0.5% of the e-mails of workspace ads in the last seven"
        " complete days were reported as spam. Gmail sends no reports, so this is a lower bound: look at Google"
        " Postmaster Tools.",
    ),
    Fires(
        "BrazeUnsubscribeRateHigh",
        "Unsubscribed",
        *DAYS,
        "1.14% of the e-mails delivered in the last three complete"
        " days of campaign Unsubscribed in workspace shop led to an unsubscription. The threshold is 0.5%.",
    ),
    Fires(
        "BrazeSmsFailureRateHigh",
        "Texts",
        *YESTERDAY,
        "10% of yesterday's text messages of campaign Texts in workspace"
        " shop were rejected or not delivered. The threshold is 7%.",
    ),
    Fires(
        "BrazeSmsOptOutRateHigh",
        "Opt-outs",
        *DAYS,
        "3.867% of the text messages of the last three complete days of"
        " campaign Opt-outs in workspace shop were answered with an opt-out. The threshold is 2%.",
    ),
    Fires(
        "BrazeWhatsAppFailureRateHigh",
        "Chats",
        *YESTERDAY,
        "10% of yesterday's WhatsApp messages of campaign Chats in workspace shop failed. The threshold is 5%.",
    ),
    Fires(
        "BrazeWebhookErrorsHigh",
        "Hooks",
        hour(6, 12),
        hour(6, 13),
        "55% of the last hour's webhooks of campaign Hooks in workspace shop ended in an error. The threshold is 5%.",
    ),
    Fires(
        "BrazeWebhookErrorsHighYesterday",
        "Flaky hooks",
        *YESTERDAY,
        "10% of yesterday's webhooks of campaign Flaky hooks in workspace shop ended in an error. The threshold is 5%.",
    ),
    Fires(
        "BrazePushBounceRateHigh",
        "Pushes",
        *YESTERDAY,
        "15% of yesterday's push messages (ios_push) of campaign Pushes"
        " in workspace shop bounced. The threshold is 10%.",
    ),
]

# ---- five weeks, a day of which is judged against the same weekday of the weeks before

USUAL = {"sent": 10_000, "conversions": 400, "revenue_dollars": 9_000}
SILENT = {"sent": 0, "conversions": 0, "revenue_dollars": 0}


def weekly(weekday: int, usual: Totals, days: int) -> list[Totals]:
    """Send on one day of the week, 0 being that of day 0, and nothing on the others."""
    return [usual if day % 7 == weekday else dict.fromkeys(usual, 0) for day in range(days)]


def zone(ahead: float, *, changes_on: int = 0, by: float = 0) -> Callable[[int], float]:
    """Begin days in a zone so many hours ahead of UTC; on one day its clocks change by so many hours, 1 in spring."""
    return lambda day: day * 24 - ahead - (by if changes_on and day > changes_on else 0)


# Day 28 has the weekday of day 0. Every day from day 28 on is like its twins of the weeks before.
HEALTHY = [
    Campaign(name="Daily", days=with_days(USUAL, 33)),
    Campaign(name="In-app", days=with_days({"impressions": 5_000}, 33), channel="trigger_in_app_message"),
    Campaign(name="Weekly", days=weekly(1, USUAL, 33)),
    Campaign(name="Workdays", days=[SILENT if day % 7 in {2, 3} else USUAL for day in range(33)]),
    Campaign(name="Fortnightly", days=[USUAL if day % 14 == 8 else SILENT for day in range(33)]),
    Campaign(name="Once", days=with_days(SILENT, 33, day_22={"sent": 80_000, "conversions": 900})),
    Campaign(name="Never", days=with_days(SILENT, 33)),
    Campaign(name="Small", days=with_days({"sent": 40}, 33, day_29={"sent": 0}, day_30={"sent": 100})),
    Campaign(name="New", days=[SILENT] * 25 + [USUAL] * 8),
    Campaign(name="Stopped", days=[USUAL] * 29 + [SILENT] * 4, stopped_since=hour(29)),
    Campaign(name="Ended", days=[USUAL] * 21 + [SILENT] * 12),
    Campaign(name="One week", days=with_days(USUAL, 33, day_29=SILENT), since=hour(21)),
    Campaign(name="Evening", days=with_days(USUAL, 33), course=between(20, 24)),
    Campaign(name="Kolkata", days=with_days(USUAL, 33), midnight=zone(5.5)),
    Campaign(name="Spring", days=with_days(USUAL, 33), midnight=zone(1, changes_on=29, by=1)),
    Campaign(name="Autumn", days=with_days(USUAL, 33), midnight=zone(2, changes_on=29, by=-1)),
    # A rise to not quite twice, a fall to a bit over half; conversions fall with the volume.
    Campaign(name="More", days=with_days(USUAL, 33, day_29={"sent": 19_000})),
    Campaign(
        name="Less", days=with_days(USUAL, 33, day_29={"sent": 5_500, "conversions": 190, "revenue_dollars": 4_000})
    ),
    # Fifty conversions of a hundred are within what chance does.
    Campaign(name="Chance", days=with_days({**USUAL, "conversions": 100}, 33, day_29={"conversions": 40})),
    # A second replica appears, with another name and a later poll: nothing doubles.
    Campaign(name="Doubled", days=with_days(USUAL, 33, day_29={"sent": 14_000})),
    Campaign(
        name="Doubled", days=with_days(USUAL, 33, day_29={"sent": 14_000}), instance="b", lag=1.1, since=hour(29, 3)
    ),
    Campaign(name="Renamed", id="renamed", days=with_days(USUAL, 33)),
    Campaign(name="Renamed since", id="renamed", days=with_days(USUAL, 33), instance="b", since=hour(28, 6)),
    Campaign(name="Restarted", days=with_days(USUAL, 33), until=hour(29, 8)),
    Campaign(name="Restarted", days=with_days(USUAL, 33), since=hour(29, 9), instance="b"),
    # A day without polls now, and one that is missing among the weeks before.
    Campaign(
        name="Missing", days=with_days(USUAL, 33), missing=[*range(hour(15), hour(16)), *range(hour(29, 3), hour(30))]
    ),
    # One odd week is no usual week.
    Campaign(name="Odd week", days=with_days(USUAL, 33, day_22={"sent": 60_000}, day_15={"sent": 300})),
]
# Each does something else than usual on day 29.
BROKEN = [
    Campaign(name="Silent", days=with_days(USUAL, 33, day_29=SILENT)),
    # Prometheus remembers two weeks only.
    Campaign(name="Silent two weeks", days=with_days(USUAL, 33, day_29=SILENT), since=hour(14)),
    Campaign(name="Silent week", days=weekly(1, USUAL, 29) + [SILENT] * 4),
    Campaign(
        name="Silent in-app",
        days=with_days({"impressions": 5_000}, 33, day_29={"impressions": 0}),
        channel="trigger_in_app_message",
    ),
    # The clocks change on the day before, so the day begins an hour off its twins.
    Campaign(name="Silent spring", days=with_days(USUAL, 33, day_29=SILENT), midnight=zone(1, changes_on=28, by=1)),
    Campaign(name="Silent autumn", days=with_days(USUAL, 33, day_29=SILENT), midnight=zone(2, changes_on=28, by=-1)),
    Campaign(name="Silent in Kolkata", days=with_days(USUAL, 33, day_29=SILENT), midnight=zone(5.5)),
    Campaign(
        name="Low", days=with_days(USUAL, 33, day_29={"sent": 3_000, "conversions": 120, "revenue_dollars": 2_700})
    ),
    Campaign(name="High", days=with_days(USUAL, 33, day_29={"sent": 30_000}), course=between(0, 24)),
    Campaign(name="Unconverted", days=with_days(USUAL, 33, day_29={"conversions": 100})),
    Campaign(name="Poor", days=with_days(USUAL, 33, day_29={"revenue_dollars": 3_000})),
]
# The campaigns send at nine. At ten that was an hour ago, and at eleven the alert has been pending long enough. It is
# kept for a while, here until an hour after midnight.
VOLUMES = [
    *(
        Fires(
            "BrazeNothingSent",
            name,
            hour(29, first),
            hour(29, last),
            f"Nothing of campaign {name} in workspace shop was sent today. On this weekday it usually has sent at least"
            f" {usual} messages by now.",
        )
        for name, usual, first, last in (
            ("Silent", "10k", 11, 25),
            ("Silent two weeks", "10k", 11, 25),
            ("Silent week", "10k", 11, 25),
            ("Silent in-app", "5k", 11, 25),
            ("Silent spring", "10k", 10, 23),
            ("Silent autumn", "10k", 9, 24),
            ("Silent in Kolkata", "10k", 6, 19),
        )
    ),
    *(
        Fires(
            "BrazeNothingSentYesterday",
            name,
            hour(29, first),
            hour(29, last),
            f"Nothing of campaign {name} in workspace shop was sent yesterday. On that weekday it usually sends at"
            f" least {usual} messages.",
        )
        for name, usual, first, last in (
            ("Silent", "10k", 27, 47),
            ("Silent two weeks", "10k", 27, 47),
            ("Silent week", "10k", 27, 47),
            ("Silent in-app", "5k", 27, 47),
            ("Silent spring", "10k", 25, 47),
            ("Silent autumn", "10k", 26, 47),
            ("Silent in Kolkata", "10k", 22, 43),
        )
    ),
    Fires(
        "BrazeVolumeLow",
        "Low",
        hour(30, 3),
        hour(30, 23),
        "Campaign Low in workspace shop sent 3k messages yesterday. On the same weekday of the last weeks it sent at"
        " least 10k.",
    ),
    Fires(
        "BrazeVolumeHigh",
        "High",
        hour(29, 18),
        hour(30, 1),
        "Campaign High in workspace shop has sent 22.5k messages today. On the same weekday of the last weeks it sent"
        " at most 10k in the whole day.",
    ),
    Fires(
        "BrazeConversionsDropped",
        "Unconverted",
        hour(30, 3),
        hour(30, 23),
        "Campaign Unconverted in workspace shop had 100 primary conversions yesterday. On the same weekday of the last"
        " weeks it had at least 400, with about as many messages.",
    ),
    Fires(
        "BrazeRevenueDropped",
        "Poor",
        hour(30, 3),
        hour(30, 23),
        "Campaign Poor in workspace shop brought $ 3k yesterday. On the same weekday of the last weeks it brought at"
        " least $ 9k, with about as many messages.",
    ),
]

# ---- overrides.example.yml in force, judged on day 15 and the day after it

NAMED = "3bbc4555-8fa0-4c9b-a5c0-4505edf3e064"
UNJUDGED = "5d5a3c1e-7f5b-4b8e-9b53-0a1f6d9f2c11"
BOUNCING = {"bounces": 300, "delivered": 9_700}
OVERRIDING = [
    Campaign(
        name="Named", id=NAMED, workspace="main", days=with_days(EMAIL, 17, day_14=BOUNCING, day_15={"sent": 300_000})
    ),
    Campaign(
        name="Unjudged",
        id=UNJUDGED,
        workspace="main",
        days=with_days(EMAIL, 17, day_14=BOUNCING, day_15=dict.fromkeys(EMAIL, 0)),
    ),
    Campaign(name="Small", days=with_days({"sent": 500}, 17, day_15={"sent": 0}), workspace="main"),
    Campaign(name="Small elsewhere", days=with_days({"sent": 500}, 17, day_15={"sent": 0})),
]
OVERRIDDEN = [
    Fires(
        "BrazeVolumeOverLimit",
        "Named",
        hour(15, 9),
        hour(16),
        "Campaign Named in workspace main has sent 300k messages today. Its limit is 250k.",
    ),
    Fires(
        "BrazeVolumeHigh",
        "Named",
        hour(15, 10),
        hour(16, 1),
        "Campaign Named in workspace main has sent 300k messages today. On the same weekday of the last weeks it sent"
        " at most 10k in the whole day.",
    ),
    Fires(
        "BrazeEmailBounceRateHigh",
        "Unjudged",
        hour(15, 3),
        hour(16, 1),
        "3% of yesterday's e-mails of campaign Unjudged in workspace main bounced. The threshold is 2%.",
    ),
    Fires(
        "BrazeNothingSent",
        "Small elsewhere",
        hour(15, 11),
        hour(16, 1),
        "Nothing of campaign Small elsewhere in workspace shop was sent today. On this weekday it usually has sent at"
        " least 500 messages by now.",
    ),
]
VOLUME_FILES = ["braze-thresholds", "braze-campaigns", "braze-volume"]
FAILURE_FILES = ["braze-thresholds", "braze-campaigns", "braze-failures"]
# The days that the rules compare days 29 and 30 with; samples of others would only cost time.
WEEKS = [at for at in range(hour(31)) if at // 24 % 7 in {1, 2, 3}]


@pytest.mark.parametrize(
    ("campaigns", "files", "sampled", "judged", "expected"),
    [
        pytest.param(FAILING, FAILURE_FILES, range(hour(8)), range(hour(6), hour(8)), FAILURES, id="failing"),
        pytest.param(HEALTHY, VOLUME_FILES, WEEKS, range(hour(29), hour(31)), [], id="healthy"),
        pytest.param(BROKEN, VOLUME_FILES, WEEKS, range(hour(29), hour(31)), VOLUMES, id="broken"),
    ],
)
def test_worlds(
    promtool: Path,
    tmp_path: Path,
    campaigns: Sequence[Campaign],
    files: Sequence[str],
    sampled: Sequence[int],
    judged: range,
    expected: Sequence[Fires],
) -> None:
    """In each hour exactly the expected alerts fire, with the expected texts."""
    paths = [RULES / f"{name}.yml" for name in files]

    assert judge(promtool, tmp_path, campaigns, paths, sampled, judged, expected) == ""


def test_overrides(promtool: Path, tmp_path: Path) -> None:
    """Overrides for a campaign and for a workspace hold, the campaign's before the workspace's, and touch no other."""
    names = ["braze-thresholds", "braze-campaigns", "braze-volume", "braze-failures"]
    paths = [PROMETHEUS / "overrides.example.yml", *(RULES / f"{name}.yml" for name in names)]
    judged = range(hour(15), hour(16, 3))

    assert judge(promtool, tmp_path, OVERRIDING, paths, range(hour(16, 3)), judged, OVERRIDDEN) == ""


# ---- Alertmanager

ALERTMANAGER = ROOT / "deploy/alertmanager/alertmanager.yml"


def test_alertmanager_takes_the_configuration(amtool: Path) -> None:
    """Amtool finds no fault in it."""
    assert run(amtool, "check-config", ALERTMANAGER) == ""


@pytest.mark.parametrize(
    ("alert", "workspace", "receiver"),
    [
        ("BrazeExporterDown", "", "platform-pager"),
        ("BrazeWorkspaceUnauthorized", "main", "platform-pager"),
        ("BrazeCampaignFailing", "main", "platform"),
        ("BrazeVolumeOverLimit", "main", "lifecycle-pager"),
        ("BrazeEmailBounceSpike", "main", "lifecycle-pager"),
        ("BrazeNothingSent", "main", "lifecycle"),
        ("BrazeVolumeLow", "main", "lifecycle-reports"),
        ("BrazeWorkspaceSpamRateCritical", "main", "lifecycle-reports"),
        ("BrazeNothingSent", "shop", "shop"),
        ("BrazeWorkspaceUnauthorized", "shop", "shop"),
        ("SomethingElse", "", "platform"),
    ],
)
def test_routes(amtool: Path, alert: str, workspace: str, receiver: str) -> None:
    """An alert goes where its window, its severity and its workspace send it."""
    of_rule = ALERTS[alert]["labels"] if alert in ALERTS else {}
    given = {"alertname": alert, **of_rule, **({"workspace": workspace} if workspace else {})}
    labels_given = [f"{name}={value}" for name, value in given.items()]
    options = [f"--config.file={ALERTMANAGER}", f"--verify.receivers={receiver}"]

    assert run(amtool, "config", "routes", "test", *options, *labels_given) == ""


def test_inhibition() -> None:
    """Every inhibition names alerts that exist, and all of these have the labels that must be equal."""
    labels_of = labels_by_hand()
    for fires, campaigns in fired():
        labels_of[fires.alert] = set(labels(fires, campaigns))

    for rule in yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))["inhibit_rules"]:
        sources, targets = matching(rule["source_matchers"]), matching(rule["target_matchers"])

        assert sources, rule
        assert targets - sources, rule
        assert all(set(rule.get("equal", ())) <= labels_of[name] for name in sources | targets), rule


def matching(matchers: Sequence[str]) -> set[str]:
    """Find the alerts whose names fulfil all matchers; an alternative that no alert fulfils is an error."""
    names = set(ALERTS)
    for matcher in matchers:
        operator, pattern = re.findall(r'^alertname(=~|!=|=)"(.+)"$', matcher)[0]
        by_part = [{name for name in ALERTS if re.fullmatch(part, name)} for part in pattern.split("|")]
        fitting = set().union(*by_part)
        assert all(by_part), matcher
        names = names - fitting if operator == "!=" else names & fitting
    return names


# ---- promtool


def judge(
    promtool: Path,
    folder: Path,
    campaigns: Sequence[Campaign],
    files: Sequence[Path],
    sampled: Sequence[int],
    judged: range,
    expected: Sequence[Fires],
) -> str:
    """Compare the alerts that fire in each of the judged hours, and their texts at first; return what differs."""
    groups = [group["name"] for path in files for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    by_hour = [
        {
            "expr": 'group by (alertname, workspace, campaign_name) (ALERTS{alertstate="firing"})',
            "eval_time": f"{at}h",
            "exp_samples": [
                {"labels": selector(fires, campaigns), "value": 1}
                for fires in expected
                if fires.first <= at <= fires.last
            ],
        }
        for at in judged
    ]
    texts = [
        {
            "eval_time": f"{at}h",
            "alertname": name,
            "exp_alerts": [
                shown(fires, campaigns) for fires in expected if fires.alert == name and fires.first <= at <= fires.last
            ],
        }
        for name, at in sorted({(fires.alert, fires.first) for fires in expected})
    ]
    document = {
        "rule_files": [str(path) for path in files],
        "group_eval_order": groups,
        "evaluation_interval": "1h",
        "tests": [
            {
                "interval": "1h",
                "input_series": series_of(campaigns, sampled),
                "promql_expr_test": by_hour,
                "alert_rule_test": texts,
            }
        ],
    }
    path = folder / "world.test.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return run(promtool, "test", "rules", path)


def fired() -> Iterator[tuple[Fires, Sequence[Campaign]]]:
    """Yield what fires in the worlds of this file, with the campaigns of the world."""
    for expected, campaigns in ((FAILURES, FAILING), (VOLUMES, BROKEN), (OVERRIDDEN, OVERRIDING)):
        for fires in expected:
            yield fires, campaigns


def labels_by_hand() -> dict[str, set[str]]:
    """The labels of each alert that fires in a test written by hand."""
    return {
        test["alertname"]: set(alert["exp_labels"])
        for path in sorted(PROMETHEUS.glob("tests/*.test.yml"))
        for world in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for test in world.get("alert_rule_test", ())
        for alert in test["exp_alerts"]
    }


def run(program: Path, *arguments: str | Path) -> str:
    """Run a program; return nothing when it succeeds, else what it wrote."""
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stdout}{done.stderr}"


def labels(fires: Fires, campaigns: Sequence[Campaign]) -> dict[str, str]:
    """The labels of the campaign or workspace that an alert is about."""
    of_campaign = [campaign.identity for campaign in campaigns if campaign.name == fires.campaign]
    return of_campaign[0] if of_campaign else {"workspace": fires.campaign}


def selector(fires: Fires, campaigns: Sequence[Campaign]) -> str:
    """The series by which a query counts a firing alert."""
    pairs = {"alertname": fires.alert, **labels(fires, campaigns)}
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs.items() if name != "campaign_id") + "}"


def shown(fires: Fires, campaigns: Sequence[Campaign]) -> dict[str, Mapping[str, str]]:
    """The alert as promtool expects it."""
    rule = ALERTS[fires.alert]
    judged_by = re.search(r'too_high\{threshold="(\w+)"\}', rule["expr"])
    channel = next(campaign.channel for campaign in campaigns if campaign.name == fires.campaign) if judged_by else ""
    rate = {"channel": channel, "threshold": judged_by[1]} if judged_by else {}
    return {
        "exp_labels": {**rule["labels"], **labels(fires, campaigns), **rate},
        "exp_annotations": {**rule["annotations"], "description": fires.says},
    }
