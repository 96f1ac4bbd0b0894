"""The rules for Prometheus and the configuration of Alertmanager, proven on promtool and amtool."""

import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import pytest
import yaml

from exporter.polled import FAMILIES
from tests.support.found import some
from tests.support.servers import ROOT
from tests.support.worlds import Campaign, Gauge, Totals, Zone, at, between, clock, input_series, through

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
RECORDED = some(
    (rule for file in FILES.values() for group in file["groups"] for rule in group["rules"] if "record" in rule),
    "recording rules",
)
RUNBOOK = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
ABOUT = ("workspace", "campaign_id", "campaign_name", "api", "job", "instance")
RUNBOOKS = "https://github.com/braze-exporter/braze-exporter/blob/main/docs/runbooks.md#"


# ---- what promtool and Prometheus think of the files


def test_files_are_valid(promtool: Path) -> None:
    """Promtool finds no fault in the configuration, in any rule file or in the example of overrides."""
    files = [*some(sorted(RULES.glob("*.yml")), "files of rules"), PROMETHEUS / "overrides.example.yml"]

    assert run(promtool, "check", "config", PROMETHEUS / "prometheus.yml") == ""
    assert run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *files) == ""


def test_alerts_are_complete() -> None:
    """Each alert has a severity, a window, a static summary, a description with values, and its own runbook."""
    for name, rule in some(ALERTS.items(), "alerts"):
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

    assert list(sections) == list(some(ALERTS, "alerts"))
    for name, section in sections.items():
        assert re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE) == ["Means", "Look at", "Do", "Silence"], name
        assert section.count("```promql") == 1, name


def test_runbooks_name_what_exists() -> None:
    """Links between runbooks have a target, and the metrics, recorded series and thresholds named exist."""
    anchors = set(some(re.findall(r"\(#(\w+)\)", RUNBOOK), "links between runbooks"))
    recorded = {"campaign:braze_threshold:override", *(rule["record"] for rule in RECORDED)}
    thresholds = {rule["labels"]["threshold"] for rule in RECORDED if "threshold" in rule.get("labels", {})}
    metrics = {family.name for family in FAMILIES}

    assert anchors <= {name.lower() for name in ALERTS}
    assert {*some(re.findall(r"\b[a-z_]+:braze_[a-z_]+:[a-z0-9_]+", RUNBOOK), "recorded series")} <= recorded
    overrides = some(re.findall(r'threshold="(\w+)"|override `(\w+)`', RUNBOOK), "thresholds")
    assert {a or b for a, b in overrides} <= thresholds
    assert {*some(re.findall(r"(?<!:)\bbraze_[a-z_]+", RUNBOOK), "metrics")} <= metrics


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
    by_world = {fires.alert for fault in FAULTS for fires in fault.fires}

    assert set(labels_by_hand()) | by_world == set(ALERTS)


# ---- six weeks, of which the last two are judged

JUDGED = range(at(28), at(42), 60)
DAYS = range(42)

EMAIL = {"sent": 10_000, "delivered": 9_940, "bounces": 60, "reported_spam": 2, "unsubscribes": 20}
SMS = {"sent": 5_000, "rejected": 50, "delivery_failed": 100, "opt_out": 40}
WHATS_APP = {"sent": 2_000, "failed": 20}
WEBHOOK = {"sent": 2_400, "errors": 70}
PUSH = {"sent": 8_000, "bounces": 160}
IN_APP = {"impressions": 5_000}
USUAL = {"sent": 10_000, "conversions": 400, "revenue_dollars": 9_000}
SILENT = {"sent": 0, "conversions": 0, "revenue_dollars": 0}


def daily(usual: Totals, **others: Totals) -> list[Totals]:
    """Repeat the usual day; `day_5={…}` changes the totals that it names on day 5."""
    return [{**usual, **others.get(f"day_{day}", {})} for day in DAYS]


def on(usual: Totals, weekdays: Collection[int], every: int = 7) -> list[Totals]:
    """Send on these days of each week, 0 being the Thursday of day 0, and nothing on the others."""
    return [usual if day % every in weekdays else dict.fromkeys(usual, 0) for day in DAYS]


def until(day: int, before: Totals, after: Totals) -> list[Totals]:
    """Repeat one day until the day before this one, and then another."""
    return [before if each < day else after for each in DAYS]


# Prometheus was set up on day 26, with a backfill of the weeks before; some exporters have run since day 0.
LIVE = at(26, 10)
BERLIN_IN_SPRING = Zone(1, changes_on=31, by=1)
BERLIN_IN_AUTUMN = Zone(2, changes_on=38, by=-1)
KOLKATA = Zone(5.5)
UTC = Zone()

HEALTHY: list[Campaign | Gauge] = [
    Gauge('up{job="braze-exporter",instance="a"}', {0: 1, at(32, 8): 0, at(32, 9): None}),
    Gauge('up{job="braze-exporter",instance="b"}', {at(29, 3): 1}),
    Gauge('up{job="braze-exporter",instance="c"}', {at(32, 9): 1}),
    Gauge('process_start_time_seconds{job="braze-exporter",instance="b"}', {at(29, 3): 1, at(33): 2, at(40): 3}),
    Gauge('braze_exporter_config_last_reload_successful{job="braze-exporter",instance="b"}', {at(29, 3): 1}),
    Gauge('braze_exporter_total_shards{job="braze-exporter",instance="b"}', {at(29, 3): 1}),
    Gauge('braze_exporter_shard{job="braze-exporter",instance="b"}', {at(29, 3): 0}),
    Gauge('braze_exporter_build_info{job="braze-exporter",instance="b"}', {at(29, 3): 1}),
    Campaign(name="Daily", days=daily({**EMAIL, **USUAL}), variations=("a", "b"), workspace="main"),
    # Reports of spam come on days without sends, where a share of the day would be infinite.
    Campaign(
        name="Weekly",
        days=[{**USUAL, "reported_spam": 0} if day % 7 == 1 else {**SILENT, "reported_spam": 3} for day in DAYS],
        live=LIVE,
    ),
    Campaign(name="Fortnightly", days=on(USUAL, {8}, every=14), live=LIVE),
    Campaign(
        name="Once",
        days=daily(SILENT, day_30={"sent": 80_000, "conversions": 900}, day_31={"conversions": 300}),
        live=LIVE,
    ),
    Campaign(name="By API on workdays", days=on(USUAL, {0, 1, 4, 5, 6}), course=between(8, 18), live=LIVE),
    # One bounce of forty messages, five of a hundred: no news.
    Campaign(
        name="Small",
        days=[
            {"sent": sent, "delivered": sent - bounces, "bounces": bounces, "reported_spam": 1, "unsubscribes": 1}
            for sent, bounces in ((40, 1), (0, 0), (100, 5), (45, 2), (160, 6), (35, 2))
            for _ in range(7)
        ],
        live=LIVE,
    ),
    Campaign(name="New", days=[*[SILENT] * 30, {"sent": 30_000}, *[USUAL] * 11], live=LIVE),
    Campaign(name="Ended", days=until(19, USUAL, SILENT), live=LIVE),
    Campaign(name="In-app", days=daily(IN_APP), channel="trigger_in_app_message", live=LIVE),
    Campaign(name="Texts", days=daily(SMS), channel="sms", zone=KOLKATA, course=between(20, 24), live=LIVE),
    Campaign(name="Pushes", days=daily(PUSH), channel="ios_push", zone=BERLIN_IN_AUTUMN, live=LIVE),
    Campaign(
        name="Hooks", days=daily(WEBHOOK), channel="webhook", zone=BERLIN_IN_SPRING, course=between(0, 24), live=LIVE
    ),
    # A rate-limited send over midnight: what is missing on the day of the send is delivered by 04:00 of the next.
    Campaign(
        name="Overnight",
        days=[
            {"sent": 10_000, "delivered": 5_900, "bounces": 60}
            if day % 7 == 4
            else {"sent": 0, "delivered": 4_040 if day % 7 == 5 else 0, "bounces": 0}
            for day in DAYS
        ],
        course=clock(20),
        courses={"delivered": between(0, 4)},
        live=LIVE,
    ),
    # A rise to not quite twice, a fall to a bit over half with its conversions, a fall of conversions within chance.
    Campaign(
        name="Moody",
        days=daily(
            {**USUAL, "conversions": 100},
            day_29={"sent": 19_000},
            day_31={"sent": 5_500, "conversions": 40, "revenue_dollars": 4_000},
            day_33={"conversions": 40, "revenue_dollars": 5_000},
            day_16={"sent": 60_000},
            day_18={"sent": 300},
        ),
        live=LIVE,
    ),
    # Counts of a day are corrected when it is over, both ways, and those of a running day can shrink.
    Campaign(
        name="Corrected",
        days=daily({**EMAIL, "sent": 14_000, "delivered": 13_900, "bounces": 100}),
        restated={day: EMAIL if day % 2 else {**EMAIL, "sent": 19_000, "delivered": 18_700} for day in DAYS},
        course=through({0: 0, 6: 0.4, 9: 1.1, 15: 0.9, 20: 1}),
        live=LIVE,
    ),
    # A second replica that polls at other minutes learns of a new name later: nothing doubles, nothing breaks.
    *(
        Campaign(
            name=name,
            id="renamed",
            days=daily({**EMAIL, "sent": 14_000, "delivered": 13_900, "bounces": 100}),
            instance=instance,
            lag=lag,
            runs=runs,
            live=LIVE,
        )
        for name, instance, lag, runs in (
            ("Before", "a", 6, range(at(33, 4))),
            ("After", "a", 6, range(at(33, 4), at(42))),
            ("Before", "b", 66, range(at(29, 3), at(33, 6))),
            ("After", "b", 66, range(at(33, 6), at(42))),
        )
    ),
    # A restart with another instance label.
    *(
        Campaign(name="Chats", days=daily(WHATS_APP), channel="whats_app", instance=instance, runs=runs)
        for instance, runs in (("a", range(at(32, 8))), ("c", range(at(32, 9), at(42))))
    ),
    # Absent is not zero: failed polls now, and a day without numbers among the weeks before.
    Campaign(
        name="Missing",
        days=daily({**EMAIL, **USUAL}),
        missing=[*range(at(15), at(16)), *range(at(29, 3), at(30)), *range(at(34, 20), at(35, 5))],
        live=LIVE,
    ),
    # Nothing to tell: an exporter may ask once an hour.
    Campaign(name="Quiet", days=daily(SILENT), interval=3600, lag=59, live=LIVE),
]


@dataclass(frozen=True, slots=True)
class Fires:
    """An alert that fires from its first to its last minute, and the values that its description names.

    It is about the first campaign of its fault unless it has other labels.
    """

    alert: str
    first: int
    last: int
    values: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong, and all that must be told of it."""

    shapes: tuple[Campaign | Gauge, ...]
    fires: tuple[Fires, ...]


# Alerts are judged once an hour here, so each fires an hour after its cause and is kept an hour after that. Yesterday
# is judged from two hours after midnight until the next midnight, and days are counted from 06:00 on.
BAD_DAY = (at(36, 3), at(37, 1))
THREE_DAYS = (at(36, 7), at(39, 7))
SEVEN_DAYS = (at(30, 7), at(37, 7))


# What day 36 and those around it are compared with: Thursday to Saturday and some hours. More would only cost time.
TWINS = {now for now in range(0, at(42), 60) if now % at(7) < at(3, 3)}
NAMED = "3bbc4555-8fa0-4c9b-a5c0-4505edf3e064"
UNJUDGED = "5d5a3c1e-7f5b-4b8e-9b53-0a1f6d9f2c11"
BOUNCING = {"bounces": 300, "delivered": 9_700}


def silent(day: int = 36, *, usual: str = "10k", first: float = 11, midnight: float = 0) -> tuple[Fires, ...]:
    """Tell of a day on which nothing is sent: from an hour, when it usually has been, and when the day is over."""
    end = ceil(midnight + 0.1)  # the first hour at which the next day is known
    return (
        Fires("BrazeNothingSent", at(day, first), at(day + 1, end), (usual,)),
        Fires("BrazeNothingSentYesterday", at(day + 1, ceil(midnight + 2) + 1), at(day + 2, end), (usual,)),
    )


def twice(*, name: str, days: Sequence[Totals], seen: Collection[int], zone: Zone = UTC) -> tuple[Campaign, ...]:
    """Show a campaign by two replicas, of which one learns of a new day half an hour later."""
    return tuple(
        Campaign(name=name, days=days, seen=seen, zone=zone, instance=instance, lag=lag)
        for instance, lag in (("a", 6), ("b", 36))
    )


VOLUME_FAULTS = [
    # The campaigns send at nine. At ten that was an hour ago, and at eleven the alert has been pending long enough.
    Fault((Campaign(name="Silent", days=daily(USUAL, day_36=SILENT), seen=TWINS),), silent()),
    Fault(
        (Campaign(name="Silent by API on workdays", days=daily({"sent": 250}, day_36={"sent": 0}), seen=TWINS),),
        silent(usual="250"),
    ),
    # Prometheus remembers two weeks only.
    Fault(
        (Campaign(name="Silent two weeks", days=daily(USUAL, day_36=SILENT), seen=TWINS - set(range(at(21)))),),
        silent(),
    ),
    Fault(
        (Campaign(name="Silent week", days=[*on(USUAL, {1})[:36], *[SILENT] * 6], seen=TWINS),),
        silent(),
    ),
    Fault(
        (
            Campaign(
                name="Silent in-app",
                days=daily(IN_APP, day_36={"impressions": 0}),
                channel="trigger_in_app_message",
                seen=TWINS,
            ),
        ),
        silent(usual="5k"),
    ),
    # The clocks change on the day before, so the day begins an hour off its twins.
    Fault(
        (Campaign(name="Silent spring", days=daily(USUAL, day_36=SILENT), zone=Zone(1, 35, 1), seen=TWINS),),
        silent(first=10, midnight=-2),
    ),
    Fault(
        (Campaign(name="Silent autumn", days=daily(USUAL, day_36=SILENT), zone=Zone(2, 35, -1), seen=TWINS),),
        (
            Fires("BrazeNothingSent", at(36, 9), at(37), ("10k",)),
            Fires("BrazeNothingSentYesterday", at(37, 2), at(38), ("10k",)),
        ),
    ),
    Fault(
        (Campaign(name="Silent in Kolkata", days=daily(USUAL, day_36=SILENT), zone=KOLKATA, seen=TWINS),),
        silent(first=6, midnight=-5.5),
    ),
    # An ended campaign, where Braze is not asked for details, is missed for a week.
    Fault(
        (Campaign(name="Ended unseen", days=until(34, USUAL, SILENT)),),
        (
            *(silent(day)[0] for day in range(34, 41)),
            Fires("BrazeNothingSentYesterday", at(35, 3), at(42), ("10k",)),
        ),
    ),
    # One of four weeks may be silent, but not two, and not the last; one alone says nothing.
    *(
        Fault(
            (
                Campaign(
                    name=f"Silent, decided by week {week}",
                    days=daily(USUAL, day_36=SILENT, **{f"day_{15 if week == 4 else 8}": SILENT}),
                    course=clock(6, **{f"day_{36 - 7 * week}": 9}),
                    seen=TWINS,
                ),
            ),
            # In that week it was late: missed for two hours, if that week is judged.
            (*silent(), *((Fires("BrazeNothingSent", at(29, 8), at(29, 9), ("10k",)),) if week == 1 else ())),
        )
        for week in (1, 2, 3, 4)
    ),
    Fault((Campaign(name="Two odd", days=daily(USUAL, day_8=SILENT, day_22=SILENT, day_36=SILENT), seen=TWINS),), ()),
    Fault((Campaign(name="Last odd", days=daily(USUAL, day_29=SILENT, day_36=SILENT), seen=TWINS),), silent(29)),
    Fault((Campaign(name="One week", days=daily(USUAL, day_36=SILENT), seen=TWINS - set(range(at(28)))),), ()),
    Fault((Campaign(name="Few", days=daily({"sent": 199}, day_36={"sent": 0}), seen=TWINS),), ()),
    Fault(
        (
            Campaign(
                name="Low",
                days=daily(USUAL, day_36={"sent": 4_990, "conversions": 200, "revenue_dollars": 4_500}),
                seen=TWINS,
            ),
        ),
        (Fires("BrazeVolumeLow", at(37, 3), at(38, 1), ("4.99k", "10k")),),
    ),
    Fault(
        (Campaign(name="High", days=daily(USUAL, day_36={"sent": 30_000}), course=between(0, 24), seen=TWINS),),
        (Fires("BrazeVolumeHigh", at(36, 18), at(37, 1), ("22.5k", "10k")),),
    ),
    Fault(
        (
            Campaign(
                name="High of one week", days=daily(USUAL, day_36={"sent": 30_000}), seen=TWINS - set(range(at(28)))
            ),
        ),
        (),
    ),
    Fault((Campaign(name="High of few", days=daily({"sent": 199}, day_36={"sent": 600}), seen=TWINS),), ()),
    Fault(
        (Campaign(name="Unconverted", days=daily(USUAL, day_36={"conversions": 170}), seen=TWINS),),
        (Fires("BrazeConversionsDropped", at(37, 3), at(38, 1), ("170", "400")),),
    ),
    Fault(
        (Campaign(name="Poor", days=daily(USUAL, day_36={"revenue_dollars": 4_000}), seen=TWINS),),
        (Fires("BrazeRevenueDropped", at(37, 3), at(38, 1), ("4k", "9k")),),
    ),
    # Too few to judge, or as few as messages were.
    Fault(
        (
            Campaign(
                name="Few conversions",
                days=daily(
                    {"sent": 10_000, "conversions": 29, "revenue_dollars": 9_000},
                    day_36={"conversions": 1, "revenue_dollars": 1},
                ),
                seen=TWINS,
            ),
            Campaign(
                name="Fewer messages",
                days=daily(USUAL, day_36={"sent": 6_900, "conversions": 100, "revenue_dollars": 1_000}),
                seen=TWINS,
            ),
        ),
        (),
    ),
    # Each single week counts: twice the largest and half of the smallest are not reached thanks to it. Replicas, whose
    # sum would be another week, and clocks that are moved meanwhile do not hide a week.
    *(
        Fault(
            (
                *twice(
                    name=f"Usual by week {week}",
                    days=daily(
                        USUAL,
                        **{
                            f"day_{35 - 7 * week}": {"sent": 11_000},
                            "day_35": {"sent": 21_000},
                            f"day_{36 - 7 * week}": {"sent": 9_000},
                            "day_36": {"sent": 4_700, "conversions": 190, "revenue_dollars": 4_000},
                        },
                    ),
                    seen=TWINS,
                    zone=Zone(1, 34, by=1),
                ),
                *twice(
                    name=f"Converting as in week {week}",
                    days=daily(
                        USUAL,
                        **{
                            f"day_{36 - 7 * week}": {"conversions": 300, "revenue_dollars": 6_000},
                            "day_36": {"conversions": 170, "revenue_dollars": 3_700},
                        },
                    ),
                    seen=TWINS,
                    zone=Zone(1, 34, by=1),
                ),
            ),
            (),
        )
        for week in (1, 2, 3, 4)
    ),
    Fault(twice(name="Silent twice", days=daily(USUAL, day_36=SILENT), seen=TWINS), silent()),
    Fault(
        twice(name="High twice", days=daily(USUAL, day_36={"sent": 30_000}), seen=TWINS),
        (Fires("BrazeVolumeHigh", at(36, 10), at(37, 1), ("30k", "10k")),),
    ),
]

# What overrides.example.yml says holds in workspace main and for two of its campaigns.
OVERRIDE_FAULTS = [
    Fault(
        (
            Campaign(
                name="Named",
                id=NAMED,
                workspace="main",
                days=daily(EMAIL, day_35=BOUNCING, day_36={"sent": 300_000, "delivered": 299_940}),
                seen=TWINS,
            ),
        ),
        (
            Fires("BrazeVolumeOverLimit", at(36, 9), at(37, 1), ("300k", "250k")),
            Fires("BrazeVolumeHigh", at(36, 10), at(37, 1), ("300k", "10k")),
        ),
    ),
    Fault(
        (
            Campaign(
                name="Unjudged",
                id=UNJUDGED,
                workspace="main",
                days=daily(EMAIL, day_35=BOUNCING, day_36=dict.fromkeys(EMAIL, 0)),
                seen=TWINS,
            ),
        ),
        (Fires("BrazeEmailBounceRateHigh", *BAD_DAY, ("3%", "2%")),),
    ),
    Fault(
        (
            Campaign(
                name="Under a thousand", days=daily({"sent": 500}, day_36={"sent": 0}), workspace="main", seen=TWINS
            ),
        ),
        (),
    ),
]

# Most are bad on day 35.
WEEK = range(at(32), at(41))
FAILURE_FAULTS = [
    Fault(
        (Campaign(name="Bounces", days=daily(EMAIL, day_35=BOUNCING), seen=WEEK),),
        (Fires("BrazeEmailBounceRateHigh", *BAD_DAY, ("3%", "2%")),),
    ),
    # A provider blocks it between 10:00 and 14:00: 10 % of four hours, 1.7 % of the day.
    Fault(
        (
            Campaign(
                name="Blocked",
                days=daily(
                    {"sent": 24_000, "bounces": 0, "delivered": 24_000}, day_36={"bounces": 400, "delivered": 23_600}
                ),
                course=between(0, 24),
                courses={"bounces": between(10, 14)},
                seen=WEEK,
            ),
        ),
        (Fires("BrazeEmailBounceSpike", at(36, 12), at(36, 15), ("10%", "5%")),),
    ),
    Fault(
        (Campaign(name="Lost", days=daily(EMAIL, day_35={"delivered": 9_400}), seen=WEEK),),
        (Fires("BrazeEmailDeliveriesMissing", at(36, 6), at(37, 1), ("5.4%", "2%")),),
    ),
    Fault(
        (
            Campaign(
                name="Reported",
                days=[{"sent": 20_000 * (day == 35), "reported_spam": 60 if day == 35 else 2} for day in DAYS],
                seen=WEEK,
            ),
        ),
        (Fires("BrazeEmailSpamRateHigh", *THREE_DAYS, ("0.32%", "0.1%")),),
    ),
    Fault(
        (Campaign(name="Unsubscribed", days=daily(EMAIL, day_35={"unsubscribes": 300}), seen=WEEK),),
        (Fires("BrazeUnsubscribeRateHigh", *THREE_DAYS, ("1.14%", "0.5%")),),
    ),
    Fault(
        (
            Campaign(
                name="Failing texts",
                days=daily(SMS, day_35={"rejected": 300, "delivery_failed": 200}),
                channel="sms",
                seen=WEEK,
            ),
        ),
        (Fires("BrazeSmsFailureRateHigh", *BAD_DAY, ("10%", "7%")),),
    ),
    Fault(
        (Campaign(name="Opt-outs", days=daily(SMS, day_35={"opt_out": 500}), channel="sms", seen=WEEK),),
        (Fires("BrazeSmsOptOutRateHigh", *THREE_DAYS, ("3.867%", "2%")),),
    ),
    Fault(
        (
            Campaign(
                name="Failing chats", days=daily(WHATS_APP, day_35={"failed": 200}), channel="whats_app", seen=WEEK
            ),
        ),
        (Fires("BrazeWhatsAppFailureRateHigh", *BAD_DAY, ("10%", "5%")),),
    ),
    Fault(
        (
            Campaign(
                name="Failing hooks",
                days=daily({"sent": 2_400, "errors": 0}, day_36={"errors": 110}),
                channel="webhook",
                course=between(0, 24),
                courses={"errors": between(10, 12)},
                seen=WEEK,
            ),
        ),
        (Fires("BrazeWebhookErrorsHigh", at(36, 12), at(36, 13), ("55%", "5%")),),
    ),
    Fault(
        (Campaign(name="Flaky hooks", days=daily(WEBHOOK, day_35={"errors": 240}), channel="webhook", seen=WEEK),),
        (Fires("BrazeWebhookErrorsHighYesterday", *BAD_DAY, ("10%", "5%")),),
    ),
    Fault(
        (Campaign(name="Lost pushes", days=daily(PUSH, day_35={"bounces": 1_200}), channel="ios_push", seen=WEEK),),
        (Fires("BrazePushBounceRateHigh", *BAD_DAY, ("ios_push", "15%", "10%")),),
    ),
    # The sum of two replicas would be no other share.
    Fault(
        twice(name="Twice", days=daily(EMAIL, day_35=BOUNCING), seen=WEEK),
        (Fires("BrazeEmailBounceRateHigh", *BAD_DAY, ("3%", "2%")),),
    ),
    # The exporter restarts with a new instance label while the alert fires, and no poll succeeds for an hour.
    Fault(
        (
            Campaign(name="Restarted", days=daily(EMAIL, day_35=BOUNCING), runs=range(at(36, 9)), seen=WEEK),
            Campaign(
                name="Restarted",
                days=daily(EMAIL, day_35=BOUNCING),
                runs=range(at(36, 9), at(42)),
                instance="c",
                seen=WEEK,
            ),
        ),
        (Fires("BrazeEmailBounceRateHigh", *BAD_DAY, ("3%", "2%")),),
    ),
    # Braze is behind: a day is the running one for 27 hours at most. Then nothing says that yesterday is over.
    Fault(
        (
            Campaign(
                name="Behind",
                workspace="behind",
                days=daily(EMAIL, day_34=BOUNCING),
                skipped=range(36, 42),
                seen=WEEK,
            ),
        ),
        (
            Fires("BrazeEmailBounceRateHigh", at(35, 3), at(36, 3), ("3%", "2%")),
            Fires("BrazeDayNotMoving", at(36, 4), at(41), ("100%",), {"workspace": "behind"}),
        ),
    ),
    # The day before today is not yesterday.
    Fault((Campaign(name="Skipping", days=daily(EMAIL, day_33=BOUNCING), skipped={34}, seen=WEEK),), ()),
    # The reputation of a workspace suffers for a week.
    *(
        Fault(
            (
                Campaign(
                    name=name,
                    workspace=workspace,
                    days=daily({"sent": 50_000, "reported_spam": 5}, day_29={"reported_spam": reports}),
                    seen=range(at(22), at(39)),
                ),
            ),
            (
                Fires("BrazeEmailSpamRateHigh", at(30, 7), at(33, 7), (of_three, "0.1%")),
                *(
                    Fires(alert, *SEVEN_DAYS, (of_seven,), {"workspace": workspace})
                    for alert in ("BrazeWorkspaceSpamRateHigh", "BrazeWorkspaceSpamRateCritical")[
                        : 1 + (reports > 1_000)
                    ]
                ),
            ),
        )
        for name, workspace, reports, of_three, of_seven in (
            ("Complained", "blog", 500, "0.34%", "0.1514%"),
            ("Hated", "ads", 2_000, "1.34%", "0.58%"),
        )
    ),
]


EXPORTER_FAULTS = [
    Fault(
        (Campaign(name="Deleted", days=daily(EMAIL), failing=range(at(35, 3), at(35, 9)), seen=WEEK),),
        (Fires("BrazeCampaignFailing", at(35, 4), at(35, 9)),),
    ),
    Fault(
        (Campaign(name="Crowded", days=daily(EMAIL), late=range(at(35, 3), at(35, 9)), seen=WEEK),),
        (Fires("BrazeCampaignStale", at(35, 5), at(35, 9), ("2h 5m 0s",)),),
    ),
    Fault(
        (
            Campaign(
                name="Refused", workspace="refused", days=daily(EMAIL), failing=range(at(35, 3), at(35, 9)), seen=WEEK
            ),
            Gauge('braze_workspace_up{workspace="refused"}', {0: 1, at(35, 3): 0, at(35, 9): 1}),
            Gauge(
                'braze_api_request_failures_total{workspace="refused",api="data_series",reason="unauthorized"}',
                {at(28): 0, **{at(35, hour): hour for hour in range(3, 9)}},
            ),
        ),
        (Fires("BrazeWorkspaceUnauthorized", at(35, 4), at(35, 9), (), {"workspace": "refused"}),),
    ),
    Fault(
        (
            Campaign(
                name="Cut off", workspace="cut off", days=daily(EMAIL), failing=range(at(35, 3), at(35, 9)), seen=WEEK
            ),
            Gauge('braze_workspace_up{workspace="cut off"}', {0: 1, at(35, 3): 0, at(35, 9): 1}),
        ),
        (Fires("BrazeWorkspaceDown", at(35, 4), at(35, 9), (), {"workspace": "cut off"}),),
    ),
    Fault(
        (
            Gauge('braze_api_rate_limit{workspace="busy",api="list"}', {0: 250}),
            Gauge(
                'braze_api_rate_limit_remaining{workspace="busy",api="list"}', {0: 200, at(35, 3): 10, at(35, 9): 200}
            ),
            Gauge('braze_api_rate_limit_reset_timestamp_seconds{workspace="busy",api="list"}', {0: at(42) * 60}),
        ),
        (Fires("BrazeApiBudgetLow", at(35, 4), at(35, 9), ("4%",), {"workspace": "busy", "api": "list"}),),
    ),
    # Braze counts in New York's days, the exporter believes in Kolkata's; and the other way round.
    Fault(
        (
            Campaign(
                name="East",
                workspace="east",
                days=daily(EMAIL),
                zone=Zone(-5),
                stamped=KOLKATA,
                seen=range(at(35), at(36)),
            ),
        ),
        tuple(
            Fires("BrazeDayNotMoving", at(day, first), at(day, last), ("100%",), {"workspace": "east"})
            for day, first, last in ((35, 1, 6), (35, 22, 24))
        ),
    ),
    Fault(
        (
            Campaign(
                name="West",
                workspace="west",
                days=daily(EMAIL),
                zone=KOLKATA,
                stamped=Zone(-5),
                seen=range(at(35), at(36)),
            ),
        ),
        tuple(
            Fires("BrazeDayInFuture", at(35, first), at(35, last), ("1",), {"workspace": "west"})
            for first, last in ((1, 5), (20, 24))
        ),
    ),
    Fault(
        (
            Gauge(
                'braze_exporter_dropped_series{workspace="shop",campaign_id="large"}',
                {0: 0, at(35, 3): 70, at(35, 9): 0},
            ),
        ),
        (Fires("BrazeSeriesDropped", at(35, 4), at(35, 9), ("70",), {"workspace": "shop"}),),
    ),
    *(
        Fault(shapes, (Fires(alert, at(35, 4), at(35, last), values, {"job": "eu/braze-exporter", **more}),))
        for alert, last, values, more, shapes in (
            (
                "BrazeExporterReplicaDown",
                8,
                (),
                {"instance": "d"},
                (
                    Gauge('up{job="eu/braze-exporter",instance="d"}', {0: 1, at(35, 3): 0, at(35, 9): 1}),
                    Gauge('up{job="eu/braze-exporter",instance="e"}', {0: 1}),
                ),
            ),
            (
                "BrazeConfigReloadFailed",
                9,
                (),
                {},
                (
                    Gauge(
                        'braze_exporter_config_last_reload_successful{job="eu/braze-exporter",instance="d"}',
                        {0: 1, at(35, 3): 0, at(35, 9): 1},
                    ),
                ),
            ),
            (
                "BrazeShardMissing",
                9,
                ("2",),
                {},
                (
                    Gauge('braze_exporter_total_shards{job="eu/braze-exporter",instance="d"}', {0: 2}),
                    Gauge('braze_exporter_shard{job="eu/braze-exporter",instance="d"}', {0: 0}),
                    Gauge(
                        'braze_exporter_shard{job="eu/braze-exporter",instance="e"}',
                        {0: 1, at(35, 3): None, at(35, 9): 1},
                    ),
                ),
            ),
        )
    ),
    Fault(
        (Gauge('up{job="us/braze-exporter",instance="f"}', {0: 1, at(35, 3): 0, at(35, 9): 1}),),
        (Fires("BrazeExporterDown", at(35, 4), at(35, 8), (), {"job": "us/braze-exporter"}),),
    ),
]
FAULTS = [*VOLUME_FAULTS, *OVERRIDE_FAULTS, *FAILURE_FAULTS, *EXPORTER_FAULTS]


SAYS = {
    "BrazeExporterDown": "No target of job {job} responds to scrapes. No other alert about its workspaces can fire.",
    "BrazeExporterReplicaDown": "{instance} of job {job} does not respond to scrapes, others of the job do.",
    "BrazeConfigReloadFailed": "An exporter of job {job} goes on with its old configuration, because the new one has"
    " errors.",
    "BrazeShardMissing": "Of {0} shards of job {job} some are missing. Their campaigns have no numbers and no alerts.",
    "BrazeSeriesDropped": "{0} series of campaigns in workspace {workspace} are not shown: the limits on series are"
    " reached.",
    "BrazeWorkspaceUnauthorized": "Braze responds with 401 or 403 for workspace {workspace}. Its numbers disappear soon"
    " and none of its campaigns is watched.",
    "BrazeWorkspaceDown": "No campaign of workspace {workspace} was polled with success within two intervals. Its"
    " numbers disappear soon and none of its campaigns is watched.",
    "BrazeApiBudgetLow": "Only {0} of the requests that Braze allows to {api} in workspace {workspace} are left.",
    "BrazeCampaignFailing": "Polls of campaign {campaign_name} in workspace {workspace} ({campaign_id}) fail.",
    "BrazeCampaignStale": "The numbers of campaign {campaign_name} in workspace {workspace} are {0} old, more than"
    " three poll intervals, though no poll failed.",
    "BrazeDayNotMoving": "For {0} of the campaigns in workspace {workspace} the newest day began more than 26 hours"
    " and a poll interval ago, though polls succeed.",
    "BrazeDayInFuture": "{0} campaigns in workspace {workspace} have a day that has not begun yet in the configured"
    " time zone.",
    "BrazeNothingSent": "Nothing of campaign {campaign_name} in workspace {workspace} was sent today. On this weekday"
    " it usually has sent at least {0} messages by now.",
    "BrazeNothingSentYesterday": "Nothing of campaign {campaign_name} in workspace {workspace} was sent yesterday. On"
    " that weekday it usually sends at least {0} messages.",
    "BrazeVolumeLow": "Campaign {campaign_name} in workspace {workspace} sent {0} messages yesterday. On the same"
    " weekday of the last weeks it sent at least {1}.",
    "BrazeVolumeHigh": "Campaign {campaign_name} in workspace {workspace} has sent {0} messages today. On the same"
    " weekday of the last weeks it sent at most {1} in the whole day.",
    "BrazeVolumeOverLimit": "Campaign {campaign_name} in workspace {workspace} has sent {0} messages today. Its limit"
    " is {1}.",
    "BrazeConversionsDropped": "Campaign {campaign_name} in workspace {workspace} had {0} primary conversions"
    " yesterday. On the same weekday of the last weeks it had at least {1}, with about as many messages.",
    "BrazeRevenueDropped": "Campaign {campaign_name} in workspace {workspace} brought $ {0} yesterday. On the same"
    " weekday of the last weeks it brought at least $ {1}, with about as many messages.",
    "BrazeEmailBounceRateHigh": "{0} of yesterday's e-mails of campaign {campaign_name} in workspace {workspace}"
    " bounced. The threshold is {1}.",
    "BrazeEmailBounceSpike": "{0} of the last hour's e-mails of campaign {campaign_name} in workspace {workspace}"
    " bounced. The threshold is {1}.",
    "BrazeEmailDeliveriesMissing": "{0} of yesterday's e-mails of campaign {campaign_name} in workspace {workspace}"
    " were neither delivered nor bounced. The threshold is {1}.",
    "BrazeEmailSpamRateHigh": "{0} of the e-mails of the last three complete days of campaign {campaign_name} in"
    " workspace {workspace} were reported as spam. The threshold is {1}.",
    "BrazeWorkspaceSpamRateHigh": "{0} of the e-mails of workspace {workspace} in the last seven complete days were"
    " reported as spam. Gmail sends no reports, so this is a lower bound.",
    "BrazeWorkspaceSpamRateCritical": "{0} of the e-mails of workspace {workspace} in the last seven complete days"
    " were reported as spam. Gmail sends no reports, so this is a lower bound: look at Google Postmaster Tools.",
    "BrazeUnsubscribeRateHigh": "{0} of the e-mails delivered in the last three complete days of campaign"
    " {campaign_name} in workspace {workspace} led to an unsubscription. The threshold is {1}.",
    "BrazeSmsFailureRateHigh": "{0} of yesterday's text messages of campaign {campaign_name} in workspace {workspace}"
    " were rejected or not delivered. The threshold is {1}.",
    "BrazeSmsOptOutRateHigh": "{0} of the text messages of the last three complete days of campaign {campaign_name} in"
    " workspace {workspace} were answered with an opt-out. The threshold is {1}.",
    "BrazeWhatsAppFailureRateHigh": "{0} of yesterday's WhatsApp messages of campaign {campaign_name} in workspace"
    " {workspace} failed. The threshold is {1}.",
    "BrazeWebhookErrorsHigh": "{0} of the last hour's webhooks of campaign {campaign_name} in workspace {workspace}"
    " ended in an error. The threshold is {1}.",
    "BrazeWebhookErrorsHighYesterday": "{0} of yesterday's webhooks of campaign {campaign_name} in workspace"
    " {workspace} ended in an error. The threshold is {1}.",
    "BrazePushBounceRateHigh": "{1} of yesterday's push messages ({0}) of campaign {campaign_name} in workspace"
    " {workspace} bounced. The threshold is {2}.",
}


HEALTHY_WORLD = (Fault(tuple(HEALTHY), ()),)
WORLD = (*HEALTHY_WORLD, *FAULTS)


@pytest.mark.parametrize(
    ("file", "remembered", "world"),
    [
        pytest.param("braze-volume", 28, HEALTHY_WORLD, id="volume-healthy"),
        pytest.param("braze-volume", 28, FAULTS, id="volume-faults"),
        pytest.param("braze-failures", 7, HEALTHY_WORLD, id="failures-healthy"),
        pytest.param("braze-failures", 7, [*OVERRIDE_FAULTS, *FAILURE_FAULTS], id="failures-faults"),
        pytest.param("braze-exporter", 0, WORLD, id="exporter"),
    ],
)
def test_six_weeks(promtool: Path, tmp_path: Path, file: str, remembered: int, world: Sequence[Fault]) -> None:
    """In each hour of two weeks exactly the expected alerts fire, with the expected texts when they begin."""
    names = ("braze-thresholds", "braze-campaigns", "braze-days", file)
    files = [PROMETHEUS / "overrides.example.yml", *(RULES / f"{name}.yml" for name in names)]
    alerts = {name for name in ALERTS if f"- alert: {name}\n" in files[-1].read_text(encoding="utf-8")}
    expected = [
        (fires, fires.labels or identity(fault)) for fault in world for fires in fault.fires if fires.alert in alerts
    ]
    shapes = [shape for fault in world for shape in fault.shapes]
    firing = [
        {
            "expr": f'group by ({", ".join(("alertname", *ABOUT))}) (ALERTS{{alertstate="firing"}})',
            "eval_time": f"{now}m",
            "exp_samples": [
                {"labels": selector({"alertname": fires.alert, **labels}), "value": 1}
                for fires, labels in expected
                if fires.first <= now <= fires.last
            ],
        }
        for now in JUDGED
    ]
    told = [
        {
            "eval_time": f"{now}m",
            "alertname": name,
            "exp_alerts": [
                shown(fires, labels, shapes)
                for fires, labels in expected
                if fires.alert == name and fires.first <= now <= fires.last
            ],
        }
        for name, now in sorted({(fires.alert, fires.first) for fires, _ in expected})
    ]
    sampled = range(JUDGED.start - at(remembered), JUDGED.stop, JUDGED.step)
    judged = {"promql_expr_test": firing, "alert_rule_test": told}

    assert judge(promtool, tmp_path, files, shapes, sampled, JUDGED.step, **judged) == ""


# ---- to the minute

CAUSE = range(60, 360)


def during(series: str, value: float = 1, otherwise: float | None = None) -> Gauge:
    """Have one value as long as the cause lasts, and another before and after."""
    return Gauge(series, {0: otherwise, CAUSE.start: value, CAUSE.stop: otherwise})


def always(series: str, value: float = 1) -> Gauge:
    """Have one value all the time."""
    return Gauge(series, {0: value})


def ticking(series: str, minutes: Iterable[int], by: int = 60, less: int = 0) -> Gauge:
    """Count seconds in these minutes, less so many, and stand still in others."""
    return Gauge(series, {minute: minute * by - less for minute in minutes})


def recorded(alert: str, *gauges: Gauge) -> tuple[Gauge, ...]:
    """Name the campaign that recorded series are about after the alert."""
    of_campaign = f'{{workspace="main",campaign_id="{alert}"'
    named = Gauge(f'campaign:braze_campaign_name:group{of_campaign},campaign_name="{alert}"}}', {0: 1})
    return (named, *(Gauge(gauge.series.replace("{", f"{of_campaign},", 1), gauge.steps) for gauge in gauges))


def threshold(name: str, value: float) -> Gauge:
    """Set a threshold of the campaign."""
    return always(f'campaign:braze_threshold:effective{{threshold="{name}"}}', value)


# The cause of each is there from minute 60 to 359. What is kept for 15 minutes ends after minute 374.
TIMES: list[tuple[tuple[str, int, int], tuple[Gauge, ...]]] = [
    (("BrazeExporterDown", 65, 359), (during('up{job="1/braze-exporter",instance="a"}', 0, 1),)),
    (
        ("BrazeExporterReplicaDown", 75, 359),
        (during('up{job="2/braze-exporter",instance="a"}', 0, 1), always('up{job="2/braze-exporter",instance="b"}')),
    ),
    # The first of three starts leaves the hour after minute 117.
    (
        ("BrazeExporterRestarting", 60, 117),
        (Gauge('process_start_time_seconds{job="1/braze-exporter"}', {0: 0, 58: 1, 59: 2, 60: 3}),),
    ),
    (
        ("BrazeConfigReloadFailed", 65, 374),
        (during('braze_exporter_config_last_reload_successful{job="1/braze-exporter"}', 0, 1),),
    ),
    (
        ("BrazeShardMissing", 75, 374),
        (
            always('braze_exporter_total_shards{job="1/braze-exporter",instance="a"}', 2),
            always('braze_exporter_shard{job="1/braze-exporter",instance="a"}', 0),
            Gauge('braze_exporter_shard{job="1/braze-exporter",instance="b"}', {0: 1, 60: None, 360: 1}),
        ),
    ),
    (
        ("BrazeSeriesDropped", 70, 374),
        (during('braze_exporter_dropped_series{workspace="main",campaign_id="1"}', 1, 0),),
    ),
    # For an hour it was there an hour ago.
    (
        ("BrazeWorkspaceVanished", 70, 134),
        (
            always('braze_exporter_build_info{job="1/braze-exporter"}'),
            Gauge('braze_workspace_up{workspace="1"}', {0: 1, 60: None}),
        ),
    ),
    # One 401 explains two hours.
    (
        ("BrazeWorkspaceUnauthorized", 70, 194),
        (
            during('braze_workspace_up{workspace="2"}', 0, 1),
            Gauge(
                'braze_api_request_failures_total{workspace="2",api="data_series",reason="unauthorized"}', {0: 0, 60: 1}
            ),
        ),
    ),
    (("BrazeWorkspaceDown", 195, 374), ()),
    (
        ("BrazeWorkspaceDown", 75, 374),
        (
            during('braze_workspace_up{workspace="3"}', 0, 1),
            ticking('braze_api_request_failures_total{workspace="3",reason="server_error"}', range(360)),
        ),
    ),
    # The last 429 leaves the quarter of an hour after minute 373, and the alert is kept for another.
    (
        ("BrazeWorkspaceRateLimited", 75, 388),
        (ticking('braze_api_request_failures_total{workspace="4",reason="rate_limited"}', (0, *CAUSE), by=1),),
    ),
    (
        ("BrazeWorkspaceReplicaDown", 75, 374),
        (
            during('braze_workspace_up{workspace="10",job="3/braze-exporter",instance="a"}', 0, 1),
            always('braze_workspace_up{workspace="10",job="3/braze-exporter",instance="b"}'),
        ),
    ),
    # Two intervals of five minutes and a quarter of an hour are allowed, either way.
    *(
        (
            ("BrazeTimezoneWrong", 90, 374),
            (
                during(f'braze_workspace_day_rollover_offset_seconds{{workspace="{workspace}"}}', wrong, right),
                always(f'braze_campaign_poll_interval_seconds{{workspace="{workspace}",campaign_id="1"}}', 300),
            ),
        )
        for workspace, wrong, right in (
            ("11", 1501, 1500),
            ("12", -1501, -1500),
            ("13", 86_400 + 1501, 86_400 + 1500),
            ("14", 86_400 - 1501, 86_400 - 1500),
        )
    ),
    (
        ("BrazeOverrideUnknown", 120, 374),
        (during('campaign:braze_threshold:override{threshold="misspelt",workspace="main"}'),),
    ),
    # The last low number leaves the ten minutes after minute 369.
    (
        ("BrazeApiBudgetLow", 75, 384),
        (
            always('braze_api_rate_limit{workspace="4",api="list"}', 250),
            during('braze_api_rate_limit_remaining{workspace="4",api="list"}', 24, 25),
            always('braze_api_rate_limit_reset_timestamp_seconds{workspace="4",api="list"}', at(1) * 60),
        ),
    ),
    # The window of the numbers ended a quarter of an hour before minute 100.
    (
        ("BrazeApiBudgetLow", 75, 114),
        (
            always('braze_api_rate_limit{workspace="5",api="list"}', 250),
            during('braze_api_rate_limit_remaining{workspace="5",api="list"}', 24, 25),
            always('braze_api_rate_limit_reset_timestamp_seconds{workspace="5",api="list"}', 85 * 60),
        ),
    ),
    # Its numbers get old, too, of which nothing more is to be told.
    (
        ("BrazeCampaignFailing", 80, 374),
        recorded(
            "BrazeCampaignFailing",
            during("braze_campaign_up{}", 0, 1),
            always("braze_campaign_poll_interval_seconds{}", 300),
            ticking("braze_campaign_last_success_timestamp_seconds{}", (*range(61), *range(360, 480))),
        ),
    ),
    # Of a campaign asked every five minutes nothing came for more than sixteen minutes at minute 76.
    (
        ("BrazeCampaignStale", 86, 374),
        recorded(
            "BrazeCampaignStale",
            always("braze_campaign_poll_interval_seconds{}", 300),
            ticking("braze_campaign_last_success_timestamp_seconds{}", (*range(61), *range(360, 480)), less=10),
        ),
    ),
    # From the minute after the 26 hours and an interval; three of five campaigns are more than half, two of four are
    # not, and those not polled for more than three intervals and a minute do not count.
    (
        ("BrazeDayNotMoving", 91, 374),
        tuple(
            gauge
            for workspace, campaigns, old, age in (("6", 5, 3, 959), ("7", 4, 2, 0), ("8", 1, 1, 960))
            for each in range(campaigns)
            for labels in [f'workspace="{workspace}",campaign_id="{each}"']
            for gauge in (
                during(
                    f"campaign:braze_campaign_day_timestamp_seconds:max{{{labels}}}",
                    60 * 60 - 26 * 3600 - 300 if each < old else 0,
                    0,
                ),
                always(f"braze_campaign_poll_interval_seconds{{{labels}}}", 300),
                ticking(f"braze_campaign_last_success_timestamp_seconds{{{labels}}}", range(480), less=age),
            )
        ),
    ),
    (
        ("BrazeDayInFuture", 70, 374),
        (Gauge('campaign:braze_campaign_day_timestamp_seconds:max{workspace="9"}', {0: 0, 60: 365 * 60}),),
    ),
    (
        ("BrazeNothingSent", 75, 374),
        recorded(
            "BrazeNothingSent",
            during("campaign:braze_message_volume:sum{}", 0, 1),
            always("campaign:braze_message_volume:usual_by_now{}"),
        ),
    ),
    (
        ("BrazeNothingSentYesterday", 75, 374),
        recorded(
            "BrazeNothingSentYesterday",
            during("campaign:braze_previous_day_message_volume:sum{}", 0, 1),
            always("campaign:braze_previous_day_message_volume:usual{}"),
            always("campaign:braze_previous_day:settled{}"),
        ),
    ),
    (
        ("BrazeVolumeLow", 75, 374),
        recorded(
            "BrazeVolumeLow",
            during("campaign:braze_previous_day_message_volume:sum{}", 499, 500),
            always("campaign:braze_previous_day_message_volume:smallest{}", 1_000),
            always("campaign:braze_previous_day:settled{}"),
            threshold("volume_low_ratio", 0.5),
            threshold("volume_min", 1_000),
        ),
    ),
    (
        ("BrazeVolumeHigh", 70, 374),
        recorded(
            "BrazeVolumeHigh",
            during("campaign:braze_message_volume:sum{}", 2_001, 2_000),
            always("campaign:braze_message_volume:largest{}", 1_000),
            threshold("volume_high_ratio", 2),
            threshold("volume_min", 1_000),
        ),
    ),
    (
        ("BrazeVolumeOverLimit", 60, 374),
        recorded(
            "BrazeVolumeOverLimit",
            during("campaign:braze_message_volume:sum{}", 1_001, 1_000),
            threshold("volume_max", 1_000),
        ),
    ),
    # Two standard errors of 37 are 12, of 38 as well: 49 and 50.
    (
        ("BrazeConversionsDropped", 120, 374),
        recorded(
            "BrazeConversionsDropped",
            during("campaign:braze_previous_day_campaign_conversions:max{}", 37, 38),
            always("campaign:braze_previous_day_campaign_conversions:smallest{}", 100),
            always("campaign:braze_previous_day_campaign_conversions:comparable{}"),
            threshold("conversions_drop_ratio", 0.5),
        ),
    ),
    # A hundred conversions make a fifth of uncertainty: 41.6 and 42 are worth 49.92 and 50.4.
    (
        ("BrazeRevenueDropped", 120, 374),
        recorded(
            "BrazeRevenueDropped",
            during("campaign:braze_previous_day_campaign_revenue_dollars:max{}", 41.6, 42),
            always("campaign:braze_previous_day_campaign_revenue_dollars:smallest{}", 100),
            always("campaign:braze_previous_day_campaign_conversions:max{}", 100),
            always("campaign:braze_previous_day_campaign_conversions:comparable{}"),
            threshold("revenue_drop_ratio", 0.5),
        ),
    ),
    *(
        (
            (alert, first, 374),
            (
                during(
                    f'workspace:braze_previous_day_message_reported_spam:ratio7d_lower{{workspace="{alert}"}}', 0.3, 0.2
                ),
                always(f'workspace:braze_previous_day_message_reported_spam:ratio7d{{workspace="{alert}"}}'),
                always(f'workspace:braze_threshold:effective{{workspace="{alert}",threshold="{judged_by}"}}', 0.3),
            ),
        )
        for alert, first, judged_by in (
            ("BrazeWorkspaceSpamRateHigh", 90, "email_spam_ratio"),
            ("BrazeWorkspaceSpamRateCritical", 90, "email_spam_ratio_critical"),
        )
    ),
    *(
        ((alert, first, 374), (during(f'campaign_channel:braze_rate:too_high{{threshold="{judged_by}"}}'),))
        for alert, first, judged_by in (
            ("BrazeEmailBounceRateHigh", 75, "email_bounce_ratio"),
            ("BrazeEmailBounceSpike", 65, "email_bounce_ratio_1h"),
            ("BrazeEmailDeliveriesMissing", 300, "email_unaccounted_ratio"),
            ("BrazeEmailSpamRateHigh", 75, "email_spam_ratio"),
            ("BrazeUnsubscribeRateHigh", 75, "email_unsubscribe_ratio"),
            ("BrazeSmsFailureRateHigh", 75, "sms_failure_ratio"),
            ("BrazeSmsOptOutRateHigh", 75, "sms_opt_out_ratio"),
            ("BrazeWhatsAppFailureRateHigh", 75, "whats_app_failure_ratio"),
            ("BrazeWebhookErrorsHigh", 65, "webhook_error_ratio_1h"),
            ("BrazeWebhookErrorsHighYesterday", 75, "webhook_error_ratio"),
            ("BrazePushBounceRateHigh", 75, "push_bounce_ratio"),
        )
    ),
]


def test_times(promtool: Path, tmp_path: Path) -> None:
    """Each alert begins and ends in the right minute."""
    files = [RULES / f"{name}.yml" for name in ("braze-exporter", "braze-volume", "braze-failures")]
    edges = {edge for (_, first, last), _ in TIMES for edge in (first - 1, first, last, last + 1)}
    counted = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{now}m",
            "exp_samples": [
                {"labels": selector({"alertname": alert}), "value": count}
                for alert, count in Counter(alert for (alert, first, last), _ in TIMES if first <= now <= last).items()
            ],
        }
        for now in sorted(edges)
    ]
    shapes = [gauge for _, gauges in TIMES for gauge in gauges]

    assert {alert for (alert, _, _), _ in TIMES} == set(ALERTS)
    assert judge(promtool, tmp_path, files, shapes, range(480), 1, promql_expr_test=counted) == ""


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
    """Every inhibition names alerts that exist and is limited by labels, which all of these alerts have."""
    labels_of = labels_by_hand()
    for fault in FAULTS:
        for fires in fault.fires:
            labels_of[fires.alert] = set(fires.labels or identity(fault))

    only_by_operator = {"namespace", "service"}  # with the same job, both lack it or both have it
    for rule in some(yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))["inhibit_rules"], "inhibitions"):
        equal = set(rule["equal"]) - only_by_operator
        sources, targets = matching(rule["source_matchers"]), matching(rule["target_matchers"])

        assert sources, rule
        assert targets - sources, rule
        assert equal, rule
        assert all(equal <= labels_of[name] for name in sources | targets), rule


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
    files: Sequence[Path],
    shapes: Sequence[Campaign | Gauge],
    sampled: Sequence[int],
    step: int,
    **judged: Sequence[object],
) -> str:
    """Let promtool scrape and evaluate each so many minutes and compare what is expected; return what differs."""
    rules = "".join(path.read_text(encoding="utf-8") for path in files)
    document = {
        "rule_files": [str(path) for path in files],
        "group_eval_order": re.findall(r"^  - name: (\S+)$", rules, re.MULTILINE),
        "evaluation_interval": f"{step}m",
        "tests": [
            {
                "interval": f"{step}m",
                "input_series": input_series(shapes, sampled, step, set(re.findall(r"[\w:]+", rules))),
                **judged,
            }
        ],
    }
    path = folder / "world.test.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return run(promtool, "test", "rules", path)


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
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    said = re.sub(r"\n\s*\n+", "\n", done.stdout + done.stderr)  # promtool writes empty lines
    return "" if done.returncode == 0 else f"exit status {done.returncode}\n{said}"


def identity(fault: Fault) -> Mapping[str, str]:
    """The labels of the first campaign of a fault."""
    return next(shape.identity for shape in fault.shapes if isinstance(shape, Campaign))


def selector(labels: Mapping[str, str]) -> str:
    """Write labels as promtool does."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def shown(fires: Fires, labels: Mapping[str, str], shapes: Sequence[Campaign | Gauge]) -> dict[str, Mapping[str, str]]:
    """The alert as promtool expects it."""
    rule = ALERTS[fires.alert]
    says = SAYS[fires.alert].format(*fires.values, **labels)
    rate = {}
    if judged_by := re.search(r'too_high\{threshold="(\w+)"\}', rule["expr"]):
        channels = {shape.channel for shape in shapes if isinstance(shape, Campaign) and shape.identity == labels}
        rate = {"channel": channels.pop(), "threshold": judged_by[1]}
    return {
        "exp_labels": {**rule["labels"], **labels, **rate},
        "exp_annotations": {**rule["annotations"], "description": says},
    }
