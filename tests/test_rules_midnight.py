"""Alerts on the last hour across midnight, at launches, over gaps and with replicas, on promtool."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.worlds import Campaign, Course, Gauge, Totals, at, between, clock
from tests.test_rules import PROMETHEUS, RULES, judge, selector

FILES = [
    PROMETHEUS / "overrides.example.yml",
    *(RULES / f"braze-{name}.yml" for name in ("thresholds", "campaigns", "days", "failures")),
]
STEP = 5
# The rules see three days; what is judged is around the midnight between the second and the third.
MIDNIGHT = at(2)
STEADY = between(0, 24)
DAYS = range(4)

# What is sent, what fails, the alert, and the channel.
LAST_HOUR = [
    ("email", "bounces", "BrazeEmailBounceSpike"),
    ("webhook", "errors", "BrazeWebhookErrorsHigh"),
]


def burning(failures: str) -> tuple[list[Totals], Course]:
    """Fail a fifth of a steady thousand an hour from half an hour before midnight until two hours after it."""
    totals: list[Totals] = [{"sent": 24_000.0, failures: {1: 100.0, 2: 400.0}.get(day, 0)} for day in DAYS]
    return totals, lambda now, day: between(23.5, 24)(now, day) if day == 1 else between(0, 2)(now, day)


def fires(
    promtool: Path, folder: Path, shapes: Sequence[Campaign | Gauge], expected: dict[int, set[str]], alert: str
) -> str:
    """Compare which campaigns an alert fires for at each of these minutes; return what differs."""
    judged = [
        {
            "expr": f'group by (campaign_id) (ALERTS{{alertname="{alert}",alertstate="firing"}})',
            "eval_time": f"{now}m",
            "exp_samples": [{"labels": selector({"campaign_id": name.lower()}), "value": 1} for name in sorted(names)],
        }
        for now, names in expected.items()
    ]
    sampled = range(at(0, 12), max(expected) + STEP, STEP)
    return judge(promtool, folder, FILES, shapes, sampled, STEP, promql_expr_test=judged)


@pytest.mark.parametrize(("channel", "failures", "alert"), LAST_HOUR)
def test_midnight_is_no_gap(promtool: Path, tmp_path: Path, channel: str, failures: str, alert: str) -> None:
    """Failures from 23:30 to 02:00 fire once and without a gap, in spite of zones, slow polls and a second replica."""
    replicas = {"One": (("a", 6),), "Slow": (("a", 50),), "Two": (("a", 6), ("b", 45))}
    shapes = [
        Campaign(
            name=name,
            days=burning(failures)[0],
            course=STEADY,
            courses={failures: burning(failures)[1]},
            channel=channel,
            instance=instance,
            lag=lag,
        )
        for name, all_replicas in replicas.items()
        for instance, lag in all_replicas
    ]
    quiet = {now: set[str]() for now in (at(1, 20), at(1, 23.5), MIDNIGHT + 60 * 4 + 30)}
    burns = {now: set(replicas) for now in range(MIDNIGHT + 10, MIDNIGHT + 60 * 2 + 30, STEP)}

    assert fires(promtool, tmp_path, shapes, quiet | burns, alert) == ""


@pytest.mark.parametrize(("channel", "failures", "alert"), LAST_HOUR)
def test_launches_that_are_known_late(promtool: Path, tmp_path: Path, channel: str, failures: str, alert: str) -> None:
    """A quarter of 200,000 that failed at 10:00 fires when it gets known at 10:30, and ends an hour later."""
    blast = [{"sent": 200_000.0, failures: 50_000.0} for _ in DAYS]
    well = [{"sent": 200_000.0, failures: 2_000.0} for _ in DAYS]
    known = range(at(1, 10.5), at(4))
    shapes: list[Campaign | Gauge] = [
        Campaign(name="Added", days=blast, course=clock(10), channel=channel, runs=known),
        Campaign(name="Added_well", days=well, course=clock(10), channel=channel, runs=known),
        # The exporter was away during the send, and another pod came back.
        Campaign(name="Away", days=blast, course=clock(10), channel=channel, runs=range(at(1, 9))),
        Campaign(name="Away", days=blast, course=clock(10), channel=channel, runs=known, instance="b"),
        # The channel's row begins with the send.
        Campaign(name="New_row", days=[{"opens": 1.0} for _ in DAYS], channel="content_cards"),
        *(
            Gauge(
                f'braze_message_{name}{{workspace="shop",campaign_id="new_row",campaign_name="New_row",instance="a",'
                f'channel="{channel}",variation_id="",variation_name=""}}',
                {known.start: value},
            )
            for name, value in (("sent", 200_000), (failures, 50_000))
        ),
    ]
    late = {"Added", "Away", "New_row"}
    expected = {
        at(1, 10.5) - STEP: set[str](),
        at(1, 10.5): set[str](),
        at(1, 10.5) + 10: late,
        at(1, 11.5): late,
        # The condition is over, and the alert is kept for a quarter of an hour.
        at(1, 11.5) + 10: late,
        at(1, 11.5) + 25: set[str](),
    }

    assert fires(promtool, tmp_path, shapes, expected, alert) == ""


@pytest.mark.parametrize(("channel", "failures", "alert"), LAST_HOUR)
def test_a_handful_is_not_judged(promtool: Path, tmp_path: Path, channel: str, failures: str, alert: str) -> None:
    """Of fewer than a hundred messages in the hour no share is judged, as panels draw none; of a hundred it is."""
    shapes = [
        Campaign(
            name=name,
            days=[{"sent": sent, failures: failed} for _ in DAYS],
            course=clock(10),
            channel=channel,
        )
        for name, sent, failed in (("Eight", 8.0, 5.0), ("Below", 99.0, 60.0), ("Hundred", 100.0, 60.0))
    ]

    assert fires(promtool, tmp_path, shapes, {at(1, 10.5): {"Hundred"}, at(1, 10) - STEP: set()}, alert) == ""


def test_counts_that_a_replica_still_shows_of_yesterday(promtool: Path, tmp_path: Path) -> None:
    """After midnight a replica that was not polled yet adds nothing: its total of yesterday is none of today's."""
    files = [RULES / f"braze-{name}.yml" for name in ("campaigns", "failures")]
    shapes = [
        Campaign(
            name="Two",
            days=[{"sent": 24_000.0} for _ in DAYS],
            course=STEADY,
            instance=instance,
            lag=lag,
            workspace="w",
        )
        for instance, lag in (("a", 6), ("b", 45))
    ]
    judged = [
        {
            "expr": f"{name}{{}}",
            "eval_time": f"{MIDNIGHT + minutes}m",
            "exp_samples": [{"labels": f"{name}{{{labels}}}", "value": value}],
        }
        for minutes, value in ((5, 24_000.0), (30, 500.0), (60, 1_000.0))
        for name, labels in (
            ("campaign:braze_message_volume:sum", 'workspace="w",campaign_id="two"'),
            ("campaign_channel:braze_message_sent:sum", 'workspace="w",campaign_id="two",channel="email"'),
        )
    ]

    assert judge(promtool, tmp_path, files, shapes, range(0, at(2, 2), STEP), STEP, promql_expr_test=judged) == ""


@pytest.mark.parametrize(("channel", "failures"), [("email", "bounces"), ("webhook", "errors")])
def test_the_last_hour_across_midnight_is_exact(promtool: Path, tmp_path: Path, channel: str, failures: str) -> None:
    """Half an hour after midnight it is what yesterday still gained and what today has, as at any other time."""
    files = [RULES / f"braze-{name}.yml" for name in ("campaigns", "failures")]
    days, course = burning(failures)
    world = [Campaign(name="One", days=days, course=STEADY, courses={failures: course}, channel=channel)]
    judged = [
        {
            "expr": f"campaign_channel:braze_message_{statistic}:increase1h",
            "eval_time": f"{MIDNIGHT + minutes}m",
            "exp_samples": [
                {
                    "labels": f"campaign_channel:braze_message_{statistic}:increase1h"
                    f'{{workspace="shop",campaign_id="one",channel="{channel}"}}',
                    "value": value,
                }
            ],
        }
        for minutes, sent, failed in ((-15, 1_000, 50), (30, 1_000, 200), (45, 1_000, 200), (90, 1_000, 200))
        for statistic, value in (("sent", sent), (failures, failed))
    ]

    assert judge(promtool, tmp_path, files, world, range(0, at(2, 2), STEP), STEP, promql_expr_test=judged) == ""
