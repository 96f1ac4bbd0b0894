"""Recorded series against a model: sums over variations and replicas, and the comparison of variations, on promtool."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.worlds import DAY, Gauge, at, input_series
from tests.test_rules import RULES, run

IDS = 'workspace="shop",campaign_id="c1"'


def checked(
    promtool: Path, folder: Path, files: list[str], series: list[dict[str, str]], tests: list[object], step: str
) -> str:
    """Let promtool evaluate some rule files over series and compare; return what differs."""
    paths = [RULES / f"braze-{name}.yml" for name in files]
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    document = {
        "rule_files": [str(path) for path in paths],
        "group_eval_order": re.findall(r"^  - name: (\S+)$", text, re.MULTILINE),
        "evaluation_interval": step,
        "tests": [{"interval": step, "input_series": series, "promql_expr_test": tests}],
    }
    path = folder / "recorded.test.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return run(promtool, "test", "rules", path)


def expects(expression: str, values: Mapping[str, float], when: str) -> dict[str, object]:
    """Expect an expression to have these values by their labels."""
    samples = [{"labels": f"{{{labels}}}", "value": value} for labels, value in values.items()]
    return {"expr": expression, "eval_time": when, "exp_samples": samples}


# ---- sums over variations, of the larger of two replicas


def test_sums_take_the_larger_replica_of_each_variation(promtool: Path, tmp_path: Path) -> None:
    """Each sum adds up the variations, of each the largest that a replica on the newest day shows."""
    pattern = r"(campaign_channel|campaign):(braze_(?:previous_day_)?(?:message|campaign)_(\w+)):(?:sum|max)"
    recorded = [
        rule["record"]
        for name in ("campaigns", "failures")
        for group in yaml.safe_load((RULES / f"braze-{name}.yml").read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "record" in rule and not re.search("unaccounted|day_timestamp|volume", rule["record"])
    ]
    rules = [(name, *match.groups()) for name in recorded if (match := re.fullmatch(pattern, name))]
    names = {metric: number * 100 for number, (_, _, metric, _) in enumerate(rules, 1)}
    gauges = []
    for prefix, days in (("braze_", (1, 0)), ("braze_previous_day_", (0, -1))):
        for instance, day in zip(("a", "b", "behind"), (days[0], days[0], days[1]), strict=True):
            labels = f'{IDS},campaign_name="C",instance="{instance}"'
            gauges.append(Gauge(f"{prefix}campaign_day_timestamp_seconds{{{labels}}}", {0: day * DAY * 60}))
    for metric, base in names.items():
        for instance, more in (("a", 0), ("b", 5), ("behind", 9_000)):
            labels = f'{IDS},campaign_name="C",instance="{instance}"'
            if "_campaign_" in metric:
                event = ',conversion_event="A"' if "conversions" in metric else ""
                gauges.append(Gauge(f"{metric}{{{labels}{event}}}", {0: base + more}))
                continue
            for variation, weight in (("x", 1), ("y", 2)):
                row = f'{labels},channel="email",variation_id="{variation}",variation_name=""'
                larger = more if variation == "x" or instance == "behind" else 5 - more
                gauges.append(Gauge(f"{metric}{{{row}}}", {0: weight * base + larger}))
    series = input_series(gauges, range(at(1), at(1, 1), 5), 5, {gauge.series.split("{")[0] for gauge in gauges})
    tests: list[object] = []
    for record, level, metric, _ in rules:
        value = names[metric] + 5 if level == "campaign" else 3 * names[metric] + 10
        channel = "" if level == "campaign" else ',channel="email"'
        tests.append(
            expects(f"max by (workspace, campaign_id, channel) ({record})", {IDS + channel: value}, f"{at(1, 0.5)}m")
        )
    for record, metric in (
        ("campaign:braze_message_volume:sum", "braze_message_sent"),
        ("campaign:braze_previous_day_message_volume:sum", "braze_previous_day_message_sent"),
    ):
        tests.append(
            expects(f"max by (workspace, campaign_id) ({record})", {IDS: 3 * names[metric] + 10}, f"{at(1, 0.5)}m")
        )

    assert len(rules) >= 13
    assert checked(promtool, tmp_path, ["campaigns", "failures"], series, tests, "5m") == ""


# ---- the comparison of variations


@dataclass(frozen=True, slots=True)
class Row:
    """A variation in a channel: recipients, conversions and dollars of each day, and of how many days."""

    channel: str
    name: str
    recipients: float
    conversions: float
    revenue: float = 0
    days: int = 40
    control: bool = False

    @property
    def labels(self) -> str:
        """Its labels but those of the campaign."""
        return f'channel="{self.channel}",variation_id="{self.name}",variation_name="{self.name}"'


CAMPAIGNS = {
    # The control group of the channel; the same people in a second channel, that has none; a loser and a tie.
    "controlled": (
        Row("email", "control", 100, 5, 50, control=True),
        Row("email", "better", 200, 16, 300),
        Row("email", "same", 300, 15, 10),
        Row("push", "better", 210, 17),
        Row("push", "elsewhere", 200, 4),
    ),
    # No control group: the best other variation.
    "uncontrolled": (Row("email", "first", 500, 50), Row("email", "second", 500, 40), Row("email", "third", 400, 8)),
    # Not for seven days, and too few conversions.
    "young": (Row("email", "control", 1_000, 50, days=6, control=True), Row("email", "new", 1_000, 100, days=6)),
    "small": (Row("email", "control", 20, 0.25, control=True), Row("email", "some", 20, 0.5)),
}


def _days(campaign: str, row: Row) -> Iterator[dict[str, str]]:
    """Yield what is recorded of the last days until the fortieth, one series for each weekday."""
    counts = {"unique_recipients": row.recipients, "conversions": row.conversions, "revenue_dollars": row.revenue}
    if row.control:
        counts["enrolled"] = row.recipients
    for statistic, value in counts.items():
        event = ',conversion_event="A"' if statistic == "conversions" else ""
        for weekday in range(7):
            labels = f'workspace="shop",campaign_id="{campaign}",{row.labels},weekday="{weekday}"{event}'
            values = ["_"] * 82
            for day in range(41 - row.days, 41):
                if (day + 4) % 7 == weekday:
                    values[2 * day] = f"{value:g}"
            name = f"variation:braze_previous_day_message_{statistic}:day"
            yield {"series": f"{name}{{{labels}}}", "values": " ".join(values)}


def _figures(row: Row, rows: tuple[Row, ...]) -> dict[str, float]:
    """Compute all figures of a variation by the textbook."""
    days = min(row.days, 28)
    n, c = row.recipients * days, row.conversions * days
    figures = {"conversions:sum28d": c, "unique_recipients:sum28d": n, "unique_recipients:days28d": days}
    figures |= {"revenue_dollars:sum28d": row.revenue * days, "conversions:recipients28d": n}
    rate, z95 = c / n, 1.96
    middle, spread = rate + z95**2 / 2 / n, z95 * math.sqrt(rate * (1 - rate) / n + z95**2 / 4 / n**2)
    figures["conversions:ratio28d"] = rate
    figures["conversions:ratio28d_lower"] = (middle - spread) / (1 + z95**2 / n)
    figures["conversions:ratio28d_upper"] = (middle + spread) / (1 + z95**2 / n)
    counted = _counted(row, rows)
    if row.control:
        return figures | {"conversions:verdict28d": 8}
    if not counted:
        return figures
    reference = _reference(row, rows)
    of_days = min(reference.days, 28)
    m, d = reference.recipients * of_days, reference.conversions * of_days
    figures |= {"reference conversions:sum28d": d, "reference conversions:recipients28d": m}
    base = d / m
    figures["reference conversions:ratio28d"] = base
    if min(c, d) < 10:
        return figures | {"conversions:verdict28d": 9}
    error = math.sqrt(1 / c - 1 / n + 1 / d - 1 / m)
    pooled = (c + d) / (n + m)
    z = (rate - base) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    figures |= {
        "conversions:comparable28d": c,
        "conversions:ratio_to_reference28d": rate / base,
        "conversions:ratio_to_reference28d_se": error,
        "conversions:lift28d": rate / base - 1,
        "conversions:lift28d_lower": rate / base * math.exp(-z95 * error) - 1,
        "conversions:lift28d_upper": rate / base * math.exp(z95 * error) - 1,
        "conversions:pooled28d": pooled,
        "conversions:z28d": z,
        "conversions:confidence28d": math.erf(abs(z) / math.sqrt(2)),
        "conversions:verdict28d": 0 if days < 7 or abs(z) <= z95 else math.copysign(1, z),
    }
    if rate != base:
        needed = math.ceil(7.85 * (rate * (1 - rate) + base * (1 - base)) / (rate - base) ** 2) - n
        figures["conversions:needed28d"] = max(needed, 0)
    if reference.control:
        figures["conversions:extra28d"] = (rate - base) * n
    return figures


def _counted(row: Row, rows: tuple[Row, ...]) -> bool:
    """Say whether this is the channel in which the people of a variation are counted."""
    controlled = {one.channel for one in rows if one.control}
    same = [one for one in rows if one.name == row.name]
    return row == max(same, key=lambda one: (one.channel in controlled, one.recipients))


def _reference(row: Row, rows: tuple[Row, ...]) -> Row:
    controls = [one for one in rows if one.control]
    others = [one for one in rows if one.name != row.name and not one.control]
    of_channel = [one for one in controls if one.channel == row.channel]
    return (of_channel or controls or [max(others, key=lambda one: one.conversions / one.recipients)])[0]


# Within a thousandth: the rules have 1.92, 3.84 and 0.96 for 1.96 squared, and approximate the normal distribution.
_CLOSE = 1e-3


def test_variations_are_compared_by_the_textbook(promtool: Path, tmp_path: Path) -> None:
    """Every series of the comparison has the textbook's value, for each kind of reference, and there is no other."""
    series = [one for campaign, rows in CAMPAIGNS.items() for row in rows for one in _days(campaign, row)]
    expected: dict[str, dict[str, float]] = {}
    for campaign, rows in CAMPAIGNS.items():
        for row in rows:
            for figure, value in _figures(row, rows).items():
                level = "reference" if figure.startswith("reference") else "variation"
                name = f"{level}:braze_message_{figure.removeprefix('reference ')}"
                labels = f'workspace="shop",campaign_id="{campaign}",{row.labels}'
                if "message_conversions" in name:
                    labels += ',conversion_event="A"'
                expected.setdefault(name, {})[labels] = value
    tests: list[object] = []
    for name, values in expected.items():
        for labels, value in values.items():
            close = f"abs({name}{{{labels}}} - {value!r}) <= bool {_CLOSE * abs(value) + 1e-9:.12f}"
            tests.append(expects(close, {labels: 1}, "972h"))
        tests.append(expects(f"count({name})", {"": len(values)}, "972h"))
    recorded = {
        rule["record"]
        for group in yaml.safe_load((RULES / "braze-ab.yml").read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    }
    inner = {
        "variation:braze_control_group:group",
        "variation:braze_variation:counted",
        "variation:braze_message_conversions:best28d",
        "variation:braze_message_conversions:second28d",
        "control_group:braze_message_conversions:sum28d",
        "control_group:braze_message_conversions:recipients28d",
    }

    assert set(expected) == recorded - inner
    assert checked(promtool, tmp_path, ["ab"], series, tests, "12h") == ""
