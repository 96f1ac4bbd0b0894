"""The rules that record one number for each complete day, and the query that reads them, on promtool."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from grafana.source.promql import Selection
from tests.support.worlds import Campaign, Gauge, Totals, Zone, at, input_series
from tests.test_rules import RULES, run, selector

FILES = [RULES / f"{name}.yml" for name in ("braze-campaigns", "braze-days")]
WEEK = range(8)
SENDS = [{"sent": 1_000 + 10 * day, "conversions": 30 + day, "revenue_dollars": 900 + day} for day in WEEK]
READ = Selection(campaigns='workspace=~".+"').days("message_sent", ("workspace", "campaign_id"))


def sends(name: str, *, zone: Zone | None = None, days: Sequence[Totals] = SENDS, **others: object) -> Campaign:
    """Show a campaign in a workspace of its own."""
    return replace(Campaign(name=name, workspace=name, days=days, zone=zone or Zone()), **others)  # type: ignore[arg-type]


def shown(
    promtool: Path,
    folder: Path,
    shapes: Sequence[Campaign | Gauge],
    expected: Mapping[int, Mapping[str, float]],
    *,
    scrape: str = "15m",
    rules: str = "15m",
    ends: int = at(8),
    read: str = READ,
    files: Sequence[Path] = FILES,
    viewers: Sequence[float] = (0,),
) -> str:
    """Compare what a panel of days shows at midnights in each viewer's zone, by campaign; return what differs."""
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    minutes = 1 if scrape == "15s" else int(scrape[:-1])
    series = input_series(shapes, range(0, ends, minutes), minutes, set(re.findall(r"[\w:]+", text)))
    if scrape == "15s":
        for one in series:
            one["values"] = " ".join(_four_times(values) for values in one["values"].split())
    document = {
        "rule_files": [str(path) for path in files],
        "group_eval_order": re.findall(r"^  - name: (\S+)$", text, re.MULTILINE),
        "evaluation_interval": rules,
        "tests": [
            {
                "interval": scrape,
                "input_series": series,
                "promql_expr_test": [
                    {
                        # Looked at from the end, as promtool knows nothing of the future.
                        "expr": f"last_over_time(({read})[1m:1m] @ {at(day, -viewer) * 60})",
                        "eval_time": f"{ends}m",
                        "exp_samples": [
                            {"labels": selector({"workspace": name, "campaign_id": name.lower()}), "value": value}
                            for name, value in values.items()
                        ],
                    }
                    for day, values in expected.items()
                    for viewer in viewers
                ],
            }
        ],
    }
    path = folder / "days.test.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return run(promtool, "test", "rules", path)


def _four_times(values: str) -> str:
    """Repeat each value, as scraped so many times a minute."""
    value, _, more = values.partition("x")
    return values if value == "stale" else f"{value}x{4 * (int(more or 0) + 1) - 1}"


ZONES = {
    "Honolulu": Zone(-10),
    "Los_Angeles": Zone(-8, changes_on=4, by=1),
    "New_York": Zone(-4, changes_on=4, by=-1),
    "London": Zone(),
    "Kolkata": Zone(5.5),
    "Lord_Howe": Zone(10.5),
    "Chatham": Zone(13.75),
    "Kiritimati": Zone(14),
}
KIRITIMATI = Gauge('braze_workspace_info{workspace="Kiritimati",timezone="Pacific/Kiritimati"}', {0: 1})


def test_zones_and_clock_changes(promtool: Path, tmp_path: Path) -> None:
    """Each day has its own number in all zones, of workspaces and of viewers, and over clock changes both ways."""
    world: list[Campaign | Gauge] = [*(sends(name, zone=zone) for name, zone in ZONES.items()), KIRITIMATI]
    expected = {day: dict.fromkeys(ZONES, 1_000.0 + 10 * day) for day in range(1, 6)}

    assert shown(promtool, tmp_path, world, expected, viewers=(-10, -5, 0, 5.5, 13.75)) == ""


@pytest.mark.parametrize(("scrape", "rules"), [("15s", "30s"), ("15s", "5m"), ("5m", "30s"), ("5m", "5m")])
def test_intervals(promtool: Path, tmp_path: Path, scrape: str, rules: str) -> None:
    """Scrapes every 15 s to 5 m and rules evaluated every 30 s to 5 m give the same number, though it changes later."""
    east = Zone(5)  # so that noon, when its numbers are corrected, is early
    corrected = {day: {"sent": 5_000} for day in WEEK}
    world = [
        sends("Plain", zone=east, restated=corrected),
        sends("Lagging", zone=east, lag=90, restated=corrected),
        *(sends("Twice", instance=name, lag=lag, zone=east, restated=corrected) for name, lag in (("a", 2), ("b", 59))),
    ]
    expected = {0: dict.fromkeys(("Plain", "Lagging", "Twice"), 1_000.0)}

    assert shown(promtool, tmp_path, world, expected, scrape=scrape, rules=rules, ends=at(1, 8)) == ""


def test_lost_scrapes(promtool: Path, tmp_path: Path) -> None:
    """Ten minutes without a sample lose no day, at whatever hour they are; nor does anything else before 18:00."""
    short = {f"Hour_{hour}": [*range(at(3, hour) - 5, at(3, hour) + 10)] for hour in range(24)}
    long = {
        "Until_18": range(at(3, 1), at(3, 17.9)),
        "From_7": range(at(3, 7), at(4, 7)),
        "Midday": range(at(3, 5), at(3, 12)),
    }
    lost = range(at(3, 5), at(4, 1))
    world = [
        *(sends(name, seen=_without(missed)) for name, missed in {**short, **long}.items()),
        sends("Nothing_seen", seen=_without(lost)),
        # Polls that fail are no zeros: the day waits for the next that succeeds.
        sends("Failing", missing=range(at(3, 4), at(3, 15))),
    ]
    complete = dict.fromkeys((*short, *long, "Failing"))
    expected = {
        day: dict.fromkeys((*complete, *(["Nothing_seen"] if day != 2 else [])), 1_000.0 + 10 * day)
        for day in (1, 2, 3, 4)
    }

    assert shown(promtool, tmp_path, world, expected, scrape="5m", rules="5m", ends=at(6)) == ""


def _without(missed: Sequence[int]) -> set[int]:
    return set(range(at(8))) - set(missed)


def test_campaigns_that_come_and_go(promtool: Path, tmp_path: Path) -> None:
    """A campaign of one day, one added late and one removed since have each day that Braze told of them."""
    once = [{"sent": 5_000.0 if day == 2 else 0} for day in WEEK]
    world = [
        sends("Once", days=once),
        sends("Added", runs=range(at(3, 15), at(8))),
        sends("Removed", runs=range(at(4, 10))),
        sends("Renamed_since", id="renamed_since", runs=range(at(4, 3))),
        replace(sends("Renamed_since", runs=range(at(4, 3), at(8))), name="Other", id="renamed_since"),
    ]
    expected = {
        day: {
            "Once": 5_000.0 if day == 2 else 0,
            "Renamed_since": 1_000.0 + 10 * day,
            **({"Added": 1_000.0 + 10 * day} if day >= 2 else {}),
            **({"Removed": 1_000.0 + 10 * day} if day <= 3 else {}),
        }
        for day in range(6)
    }

    assert shown(promtool, tmp_path, world, expected) == ""


def test_replicas(promtool: Path, tmp_path: Path) -> None:
    """The largest of the replicas that show the day counts: no sum of two, and none of one that is a day behind."""
    larger = [{"sent": 9_000 - 100 * day} for day in WEEK]
    world = [
        *(sends("Twice", instance=name, lag=lag) for name, lag in (("a", 6), ("b", 36))),
        *(sends("Behind", days=larger, instance=name, lag=lag) for name, lag in (("a", 6), ("b", 1_300))),
        *(
            sends("Replaced", instance=name, runs=runs)
            for name, runs in (("a", range(at(3, 6) + 3)), ("b", range(at(3, 6) + 8, at(8))))
        ),
        *(sends("Parts", variations=("x", "y"), instance=name, lag=lag) for name, lag in (("a", 6), ("b", 36))),
    ]
    expected = {
        day: {**dict.fromkeys(("Twice", "Replaced", "Parts"), 1_000.0 + 10 * day), "Behind": 9_000.0 - 100 * day}
        for day in range(1, 6)
    }

    assert shown(promtool, tmp_path, world, expected) == ""


def test_days_that_braze_leaves_out_or_repeats(promtool: Path, tmp_path: Path) -> None:
    """A gap is no day, the day before it is there, and one that stays the newest for long is recorded once."""
    world = [sends("Gap", skipped={3}), sends("Stuck", skipped={3, 4, 5, 6, 7}), sends("Daily")]
    days = {
        day: {"Daily": 1_000.0 + 10 * day, "Gap": 1_000.0 + 10 * day, "Stuck": 1_000.0 + 10 * day} for day in (0, 1)
    }
    expected = {
        **days,
        2: {"Daily": 1_020.0, "Gap": 1_020.0},
        3: {"Daily": 1_030.0},
        4: {"Daily": 1_040.0, "Gap": 1_040.0},
    }
    count = "sum by (workspace, campaign_id) (count_over_time(campaign:braze_recorded_day:date[8d]))"

    assert shown(promtool, tmp_path, world, expected) == ""
    assert shown(promtool, tmp_path, world, {8: {"Daily": 7, "Gap": 6, "Stuck": 2}}, read=count) == ""


def test_every_series_is_recorded(promtool: Path, tmp_path: Path) -> None:
    """Each series of days is the maximum of the replicas of its own metric, with the weekday beside its labels."""
    rules = [
        rule
        for group in yaml.safe_load((RULES / "braze-days.yml").read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if rule["record"].endswith(":day") and "volume" not in rule["record"]
    ]
    labels = {
        "variation": 'channel="email",variation_id="1",variation_name="A"',
        "campaign": 'campaign_name="Each"',
    }
    of = 'workspace="shop",campaign_id="each"'
    stamps = {
        "braze_campaign_day_timestamp_seconds": at(1) * 60,
        "braze_previous_day_campaign_day_timestamp_seconds": 0,
    }
    shapes, expected = [], {}
    for name, stamp in stamps.items():
        shapes += [Gauge(f'{name}{{instance="{one}",{of}}}', {at(1): stamp}) for one in "ab"]
    for number, rule in enumerate(rules, 1):
        level, metric, _ = rule["record"].split(":")
        event = ',conversion_event="B"' if "conversions" in metric else ""
        for one, value in (("a", number * 10), ("b", number * 10 + 5)):
            shapes.append(Gauge(f'{metric}{{instance="{one}",{of},{labels[level]}{event}}}', {at(1): value}))
        kept = labels["variation"] if level == "variation" else ""
        expected[rule["record"]] = (f'{of},weekday="4"{"," if kept else ""}{kept}{event}', number * 10 + 5)
    sent = expected["variation:braze_previous_day_message_sent:day"][1]
    expected["campaign:braze_previous_day_message_volume:day"] = (f'{of},weekday="4"', sent)
    world = {
        "rule_files": [str(path) for path in FILES],
        "group_eval_order": ["braze-campaigns", "braze-days"],
        "evaluation_interval": "5m",
        "tests": [
            {
                "interval": "5m",
                "input_series": input_series(shapes, range(at(1), at(1, 7), 5), 5, {*stamps, *_metrics(shapes)}),
                "promql_expr_test": [
                    {
                        "expr": f"last_over_time({name}[1h])",
                        "eval_time": f"{at(1, 6.5):.0f}m",
                        "exp_samples": [{"labels": f"{name}{{{labels_of}}}", "value": value}],
                    }
                    for name, (labels_of, value) in expected.items()
                ],
            }
        ],
    }
    path = tmp_path / "each.test.yml"
    path.write_text(yaml.safe_dump(world), encoding="utf-8")

    assert len(rules) > 15
    assert run(promtool, "test", "rules", path) == ""


def _metrics(shapes: Sequence[Campaign | Gauge]) -> set[str]:
    return {shape.series.split("{")[0] for shape in shapes if isinstance(shape, Gauge)}


def test_imported_days_count_like_recorded_ones(promtool: Path, tmp_path: Path) -> None:
    """Days that were never scraped, written by an import, are drawn and compared with as if recorded."""
    ids = 'workspace="shop",campaign_id="live"'
    imported = range(27)
    series = []
    for weekday in range(7):
        days = [day for day in imported if (day + 4) % 7 == weekday]
        values = " ".join(str(1_000 + day) if day in days else "_" for day in imported)
        for name, labels in (
            ("campaign:braze_previous_day_message_volume:day", ids),
            ("variation:braze_previous_day_message_sent:day", f'{ids},channel="email"'),
        ):
            # At noon of the day after.
            series.append({"series": f'{name}{{{labels},weekday="{weekday}"}}', "values": f"_x1 {_spread(values)}"})
    live = Campaign(name="Live", days=[{"sent": 500.0}] * 31, live=at(28), runs=range(at(28), at(31)))
    files = [RULES / f"braze-{name}.yml" for name in ("thresholds", "campaigns", "days", "volume")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    raw = input_series([live], range(at(28), at(30), 720), 720, set(re.findall(r"[\w:]+", text)))
    read = READ.replace('workspace=~".+"', 'campaign_id="live"')
    weeks_ago = "campaign:braze_previous_day_message_volume:weeks_ago"
    document = {
        "rule_files": [str(path) for path in files],
        "group_eval_order": re.findall(r"^  - name: (\S+)$", text, re.MULTILINE),
        "evaluation_interval": "12h",
        "tests": [
            {
                "interval": "12h",
                "input_series": series + raw,
                "promql_expr_test": [
                    # On day 29 at noon yesterday is day 28, and the same weekday of four weeks before is day 0.
                    {
                        "expr": weeks_ago,
                        "eval_time": f"{at(29, 12)}m",
                        "exp_samples": [
                            {
                                "labels": f'{weeks_ago}{{{ids},weeks="{week}"}}',
                                "value": 1_000 + 28 - 7 * week,
                            }
                            for week in range(1, 5)
                        ],
                    },
                    *(
                        {
                            "expr": f"last_over_time(({read})[1m:1m] @ {at(day) * 60})",
                            "eval_time": f"{at(29, 12)}m",
                            "exp_samples": [{"labels": f"{{{ids}}}", "value": value}],
                        }
                        for day, value in ((3, 1_003), (25, 1_025), (27, 500), (28, 500))
                    ),
                ],
            }
        ],
    }
    path = tmp_path / "import.test.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")

    assert run(promtool, "test", "rules", path) == ""


def _spread(values: str) -> str:
    """Put half a day between values of days: the import writes them at noon of the day after."""
    return " ".join(f"_ {value}" for value in values.split())


def test_weekdays_of_both_days(promtool: Path, tmp_path: Path) -> None:
    """The running and the previous day have the weekday of their date in every zone."""
    world: list[Campaign | Gauge] = [*(sends(name, zone=zone) for name, zone in ZONES.items()), KIRITIMATI]
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    now = at(3, 11)
    running = {name: max(day for day in WEEK if zone.midnight(day) + 6 <= now - 15) for name, zone in ZONES.items()}
    document = {
        "rule_files": [str(path) for path in FILES],
        "group_eval_order": re.findall(r"^  - name: (\S+)$", text, re.MULTILINE),
        "evaluation_interval": "15m",
        "tests": [
            {
                "interval": "15m",
                "input_series": input_series(world, range(0, now, 15), 15, set(re.findall(r"[\w:]+", text))),
                "promql_expr_test": [
                    {
                        "expr": f"max by (workspace, weekday) ({series})",
                        "eval_time": f"{now - 15}m",
                        "exp_samples": [
                            {"labels": selector({"workspace": name, "weekday": str((day - back + 4) % 7)}), "value": 1}
                            for name, day in running.items()
                        ],
                    }
                    for series, back in (
                        ("campaign:braze_campaign_day:weekday", 0),
                        ("campaign:braze_previous_day:weekday", 1),
                    )
                ],
            }
        ],
    }
    path = tmp_path / "weekdays.test.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")

    assert len(set(running.values())) > 1
    assert run(promtool, "test", "rules", path) == ""
