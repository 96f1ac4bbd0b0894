"""The dashboards' queries, asked of a real Prometheus that remembers weeks of the simulated world."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median
from zoneinfo import ZoneInfo

import pytest

from exporter.simulator.world import CONTROL_GROUP, CampaignModel, daily
from grafana.source.campaign import STATISTICS
from grafana.source.channels import CHANNELS
from grafana.source.promql import SMS
from tests.support.dashboards import (
    UIDS,
    Json,
    as_list,
    filled_in,
    object_at,
    objects_in,
    panel_queries,
    panels,
    read_dashboard,
)
from tests.support.history import CAMPAIGNS, FIRST, NOW, ZONES, remembering_prometheus
from tests.support.servers import Prometheus

pytestmark = pytest.mark.server

DAY = 86_400.0
DAYS = [date(2025, 10, 11) + timedelta(days=number) for number in range(28)]


# Nothing is wrong in these respects in the simulated world.
QUIET = re.compile(
    r"Spam reports by campaign"
    r"|.*(braze_threshold:override|braze_timezone:hours_off|braze_campaign_health\{.*\}\) == 2)",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def prometheus_with_history(tmp_path_factory: pytest.TempPathFactory, promtool: Path) -> Iterator[Prometheus]:
    """A Prometheus that has watched two workspaces for a month, through two clock changes, a restart and a replica."""
    with remembering_prometheus(promtool, tmp_path_factory.mktemp("history")) as prometheus:
        yield prometheus


@pytest.mark.parametrize("uid", UIDS)
def test_every_query_is_answered_with_data(prometheus_with_history: Prometheus, uid: str) -> None:
    """No query is refused, and each has data in a month of history."""
    empty = [
        f"{panel['title']}: {query}"
        for panel, query in panel_queries(uid)
        if not _answer(prometheus_with_history, panel, query) and not _stands_in(query)
    ]

    assert not [title for title in empty if not QUIET.match(title)]


def test_sends_per_day_are_the_final_numbers(prometheus_with_history: Prometheus) -> None:
    """Each day has what Braze said six hours after its end, in spite of zones, clock changes, a restart, a replica."""
    query = _query("braze-overview", "Sends per day by channel")
    shown = {
        labels["channel"]: [values.get(_midnight(day)) for day in DAYS]
        for labels, values in _range(prometheus_with_history, query, FIRST, NOW, DAY)
    }

    assert shown["email"] == [_sent(day, "email") for day in DAYS]
    assert shown["ios_push"] == [_sent(day, "ios_push") for day in DAYS]


def test_deliveries_yesterday_are_a_share_of_the_sends_of_yesterday(prometheus_with_history: Prometheus) -> None:
    """The rate is that of the previous day's numbers as they are now, not of the running day."""
    query = _query("braze-overview", "Email delivery rate yesterday")
    ((_, rate),) = _instant(prometheus_with_history, query)

    assert rate == pytest.approx(_yesterday("email", "delivered") / _yesterday("email", "sent"))


def test_yesterday_stands_against_the_same_weekday_of_four_weeks(prometheus_with_history: Prometheus) -> None:
    """Volume and deliveries of yesterday, and how far they are from the median of the four weeks before."""
    yesterday = date(2025, 11, 7)
    weeks = [yesterday - timedelta(days=7 * week) for week in range(1, 5)]
    for title, statistics in (("Volume yesterday", ("sent", "impressions")), ("Delivered yesterday", ("delivered",))):
        value, against = (query for panel, query in panel_queries("braze-overview") if panel["title"] == title)
        ((_, shown),) = _instant(prometheus_with_history, value)
        ((_, change),) = _instant(prometheus_with_history, against)
        usual = median(_of_all(day, _known(day), statistics) for day in weeks)

        assert shown == _of_all(yesterday, dict.fromkeys(ZONES, NOW), statistics)
        assert change == pytest.approx(shown / usual - 1)


def test_hours_add_up_to_the_day(prometheus_with_history: Prometheus) -> None:
    """The hours of Berlin's yesterday, midnights included, add up to its total: none is lost and there is no cliff."""
    start = datetime(2025, 11, 7, tzinfo=ZoneInfo(ZONES["europe"]))
    end = start + timedelta(days=1)
    query = _query("braze-overview", "Sends per hour by channel").replace('workspace=~".+"', 'workspace="europe"')
    shown = {
        labels["channel"]: sum(values.values())
        for labels, values in _range(prometheus_with_history, query, start + timedelta(hours=1), end, 3600)
    }

    assert shown["email"] == _total("europe", start.date(), end, "email", "sent")
    assert shown["webhook"] == _total("europe", start.date(), end, "webhook", "sent")


def test_the_table_of_campaigns_has_each_campaign_once(prometheus_with_history: Prometheus) -> None:
    """One row for each campaign with the sum of its channels, although two replicas disagree about a name."""
    panel = next(panel for panel in panels("braze-overview") if panel["title"] == "Campaigns")
    query = filled_in(str(as_list(panel["targets"])[1]["expr"]))
    rows = [(labels["campaign_id"], value) for labels, value in _instant(prometheus_with_history, query)]

    assert sorted(rows) == sorted(
        (campaign.id, _volume(daily(campaign, date(2025, 11, 7), now=NOW.timestamp(), zone=ZoneInfo(ZONES[workspace]))))
        for workspace, campaigns in CAMPAIGNS.items()
        for campaign in campaigns
    )


def test_variations_are_compared_with_the_control_group(prometheus_with_history: Prometheus) -> None:
    """Sums of 28 days, rate, lift, its interval, z, confidence and extra conversions equal an own calculation."""
    campaign = CAMPAIGNS["europe"][1]
    variations = _four_weeks(campaign, "ios_push")
    control = next(one for one in variations.values() if one.control)
    expected = {identifier: _compared(one, control) for identifier, one in variations.items() if one is not control}
    shown = {identifier: dict[str, float]() for identifier in expected}
    for figure in next(iter(expected.values())):
        query = f"variation:braze_message_{figure}"
        for labels, value in _instant(prometheus_with_history, query):
            place = (labels["campaign_id"], labels["channel"], labels.get("conversion_event", "A"))
            if place == (campaign.id, "ios_push", "A") and labels["variation_id"] in shown:
                shown[labels["variation_id"]][figure] = value

    assert len(expected) == 2
    for identifier, figures in expected.items():
        assert shown[identifier] == pytest.approx(figures, rel=2e-3)


def test_the_verdict_says_why_there_is_none(prometheus_with_history: Prometheus) -> None:
    """Leads or is behind the control group, or the best other variation where there is none; or why nobody does."""
    panel = next(panel for panel in panels("braze-campaign") if panel["title"] == "Variations compared")
    (verdict,) = (
        query
        for one, query in panel_queries("braze-campaign")
        if one == panel and "verdict" in query and "needed" not in query
    )
    mapped = {
        value: word["text"]
        for one in objects_in(panel)
        if one.get("type") == "value"
        for value, word in object_at(one, "options").items()
        if isinstance(word, dict)
    }
    shown = {
        (labels["campaign_id"], labels.get("variation_id") or labels["variation_name"]): mapped[f"{value:.0f}"]
        for labels, value in _instant(prometheus_with_history, verdict)
        if labels["workspace"] == "europe"
    }
    expected = {
        (campaign.id, identifier): word
        for campaign in CAMPAIGNS["europe"]
        for identifier, word in _verdicts(campaign).items()
    }

    assert {"leads, 95 %", "is behind, 95 %", "no winner yet", "control group"} <= set(expected.values())
    assert shown == expected


def _verdicts(campaign: CampaignModel) -> dict[str, str]:
    """Judge a campaign's variations, each in the channel with a control group or the most people."""
    channels = [_four_weeks(campaign, channel.name) for channel in campaign.channels if channel.variations]
    counted: dict[str, _Variation] = {}
    controls = [one for rows in channels for one in rows.values() if one.control]
    for rows in sorted(channels, key=lambda rows: any(one.control for one in rows.values())):
        controlled = any(one.control for one in rows.values())
        for identifier, one in rows.items():
            if controlled or identifier not in counted or one.recipients > counted[identifier].recipients:
                counted[identifier] = one
    verdicts = {}
    for identifier, one in counted.items():
        if one.control:
            verdicts[identifier] = "control group"
            continue
        others = [other for name, other in counted.items() if name != identifier and not other.control]
        best = max(others, key=lambda other: other.conversions / other.recipients, default=None)
        same = next((rows for rows in channels if rows.get(identifier) is one), {})
        own = [row for row in same.values() if row.control]
        of_campaign = [
            _Variation(True, max(one.recipients for one in controls), max(one.conversions for one in controls))
            for _ in controls
        ]
        reference = next(iter(own or of_campaign), best)
        if reference is None or min(one.conversions, reference.conversions) < 10:
            verdicts[identifier] = "too few conversions"
        else:
            z = _compared(one, reference)["conversions:z28d"]
            verdicts[identifier] = "leads, 95 %" if z > 1.96 else "is behind, 95 %" if z < -1.96 else "no winner yet"
    return verdicts


def test_channels_are_chosen_by_brazes_words(prometheus_with_history: Prometheus) -> None:
    """The variable has the API's key as value and Braze's word as text, and offers what campaigns use."""
    listed = as_list(object_at(read_dashboard("braze-campaign"), "templating")["list"])
    (variable,) = (one for one in listed if one["name"] == "channel")
    asked = re.fullmatch(r"query_result\((.*)\)", filled_in(str(variable["definition"])), flags=re.DOTALL)
    pattern = str(variable["regex"]).strip("/").replace("(?<", "(?P<")
    assert asked is not None
    offered = dict[str, str]()
    for labels, _ in _instant(prometheus_with_history, asked[1]):
        series = "{" + ",".join(f'{name}="{text}"' for name, text in sorted(labels.items())) + "} 1 1700000000000"
        match = re.search(pattern, series)
        assert match is not None
        offered[match["value"]] = match["text"]

    used = {channel.name for campaigns in CAMPAIGNS.values() for campaign in campaigns for channel in campaign.channels}
    assert offered == {channel: CHANNELS[channel] for channel in used}


@pytest.mark.parametrize("channel", ["email", "sms", "ios_push", "trigger_in_app_message", "content_cards"])
def test_the_table_of_a_channel_has_its_statistics(prometheus_with_history: Prometheus, channel: str) -> None:
    """Each variation's numbers of yesterday by Braze's words, those of the channel alone."""
    panel = next(panel for panel in panels("braze-campaign") if "by variation" in str(panel["title"]))
    query = str(as_list(panel["targets"])[0]["expr"])
    campaign = next(
        one for one in CAMPAIGNS["europe"] if channel in {used.name for used in one.channels if used.variations}
    )
    query = filled_in(query.replace("$campaign", campaign.id).replace("$channel", channel))
    shown = {
        (labels["variation_name"], labels["statistic"]): value
        for labels, value in _instant(prometheus_with_history, query)
    }
    messages = daily(campaign, date(2025, 11, 7), now=NOW.timestamp(), zone=ZoneInfo(ZONES["europe"]))["messages"]
    assert isinstance(messages, dict)
    expected = {
        (row.get("variation_name") or ("(no name)" if "variation_api_id" in row else "unnamed 1"), word): float(
            row[statistic]
        )
        for row in messages[channel]
        for word, statistic, matchers in STATISTICS
        if statistic in row and (statistic != "delivered" or (channel == "sms") == (matchers == (SMS,)))
    }

    assert len(expected) > 3
    assert shown == expected


def test_conversions_of_the_campaign_stand_in_for_those_of_a_channel(prometheus_with_history: Prometheus) -> None:
    """Braze reports no conversions of a message without variants: the campaign's are shown then, and only then."""
    plain, variants = CAMPAIGNS["europe"][:2]
    (query,) = (
        str(target["expr"])
        for panel in panels("braze-campaign")
        if panel.get("repeat") and panel["type"] == "bargauge"
        for target in as_list(panel["targets"])
        if _stands_in(str(target["expr"]))
    )
    shown = [
        [value for _, value in _instant(prometheus_with_history, filled_in(query.replace("$campaign", campaign.id)))]
        for campaign in (plain, variants)
    ]
    day = daily(plain, date(2025, 11, 7), now=NOW.timestamp(), zone=ZoneInfo(ZONES["europe"]))

    assert shown == [[day["conversions_by_send_time"]], []]


def test_the_control_group_is_not_compared_with_itself(prometheus_with_history: Prometheus) -> None:
    """The control group has a rate and no lift; campaigns without a control group have no lift either."""
    query = "variation:braze_message_conversions:lift28d"
    lifts = [labels for labels, _ in _instant(prometheus_with_history, query)]

    assert lifts
    assert not [labels for labels in lifts if labels["variation_name"] == CONTROL_GROUP]
    assert CAMPAIGNS["europe"][0].id not in {labels["campaign_id"] for labels in lifts}


def _stands_in(query: str) -> bool:
    """Say whether a query is there for campaigns of which another has no answer."""
    return "unless on ()" in query


def _volume(day: Json) -> float:
    """Add up the messages of all rows: sends, or impressions where there are no sends."""
    messages = day["messages"]
    assert isinstance(messages, dict)
    return sum(float(row.get("sent", row.get("impressions", 0))) for rows in messages.values() for row in rows)


@dataclass(frozen=True, slots=True)
class _Variation:
    """What happened to the people of one variation in four weeks."""

    control: bool
    recipients: float
    conversions: float


def _four_weeks(campaign: CampaignModel, channel: str) -> dict[str, _Variation]:
    """Add up the 28 days that were read at their end, each six hours after it."""
    zone = ZoneInfo(ZONES["europe"])
    found: dict[str, _Variation] = {}
    for day in DAYS:
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(days=1)
        known = (midnight.astimezone(UTC) + timedelta(hours=6)).timestamp()
        messages = daily(campaign, day, now=known, zone=zone)["messages"]
        assert isinstance(messages, dict)
        for row in messages[channel]:
            if "conversions" not in row:
                continue
            identifier = row.get("variation_api_id") or row.get("variation_name") or "unnamed 1"
            before = found.get(identifier, _Variation(row.get("variation_name") == CONTROL_GROUP, 0, 0))
            found[identifier] = replace(
                before,
                recipients=before.recipients + row["unique_recipients"],
                conversions=before.conversions + row["conversions"],
            )
    return found


def _compared(one: _Variation, control: _Variation) -> dict[str, float]:
    """Compute the figures of the rules by the textbook, with the exact normal distribution."""
    rate, base = one.conversions / one.recipients, control.conversions / control.recipients
    error = math.sqrt(1 / one.conversions - 1 / one.recipients + 1 / control.conversions - 1 / control.recipients)
    pooled = (one.conversions + control.conversions) / (one.recipients + control.recipients)
    z = (rate - base) / math.sqrt(pooled * (1 - pooled) * (1 / one.recipients + 1 / control.recipients))
    return {
        "unique_recipients:sum28d": one.recipients,
        "conversions:sum28d": one.conversions,
        "conversions:ratio28d": rate,
        "conversions:lift28d": rate / base - 1,
        "conversions:lift28d_lower": rate / base * math.exp(-1.96 * error) - 1,
        "conversions:lift28d_upper": rate / base * math.exp(1.96 * error) - 1,
        "conversions:z28d": z,
        "conversions:confidence28d": math.erf(abs(z) / math.sqrt(2)),
        "conversions:extra28d": (rate - base) * one.recipients,
    }


def _query(uid: str, title: str) -> str:
    (query,) = (query for panel, query in panel_queries(uid) if panel["title"] == title)
    return query


def _midnight(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def _known(day: date) -> dict[str, datetime]:
    """Return when a day is recorded in each workspace: when the next is six hours old."""
    midnights = {
        workspace: datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)) + timedelta(days=1)
        for workspace, zone in ZONES.items()
    }
    return {workspace: midnight.astimezone(UTC) + timedelta(hours=6) for workspace, midnight in midnights.items()}


def _sent(day: date, channel: str) -> float:
    """Return the sends of a day of all workspaces, as known when it was recorded."""
    return sum(_total(workspace, day, known, channel, "sent") for workspace, known in _known(day).items())


def _of_all(day: date, known: Mapping[str, datetime], statistics: Sequence[str]) -> float:
    """Add up the first of some statistics that each row of a day has, in all channels of all workspaces."""
    total = 0.0
    for workspace, moment in known.items():
        zone = ZoneInfo(ZONES[workspace])
        for campaign in CAMPAIGNS[workspace]:
            messages = daily(campaign, day, now=moment.timestamp(), zone=zone)["messages"]
            assert isinstance(messages, dict)
            for row in (row for rows in messages.values() for row in rows):
                total += next((float(row[name]) for name in statistics if name in row), 0)
    return total


def _yesterday(channel: str, statistic: str) -> float:
    """Return a statistic of the previous day of all workspaces, as known now."""
    return sum(_total(workspace, date(2025, 11, 7), NOW, channel, statistic) for workspace in ZONES)


def _total(workspace: str, day: date, known: datetime, channel: str, statistic: str) -> float:
    zone = ZoneInfo(ZONES[workspace])
    return sum(
        _count(daily(campaign, day, now=known.timestamp(), zone=zone), channel, statistic)
        for campaign in CAMPAIGNS[workspace]
    )


def _count(day: Json, channel: str, statistic: str) -> float:
    messages = day["messages"]
    assert isinstance(messages, dict)
    return sum(float(row.get(statistic, 0)) for row in messages.get(channel, []))


def _answer(prometheus: Prometheus, panel: Json, query: str) -> object:
    """Ask as Grafana does: tables and stats at the end of the time range, time series over it."""
    if panel["type"] != "timeseries" or "braze_threshold" in query:  # rules are recorded at the end only
        return _instant(prometheus, query)
    daily_step = panel.get("interval") == "1d"
    start = FIRST if daily_step else NOW - timedelta(hours=20)
    # The history has a scrape an hour, so shorter windows are widened to hold some.
    widened = query.replace("[4m]", "[3h]").replace("[10m]", "[3h]").replace("offset 5m", "offset 1h")
    return _range(prometheus, widened, start, NOW, DAY if daily_step else 3600)


def _instant(prometheus: Prometheus, query: str) -> list[tuple[dict[str, str], float]]:
    widened = query.replace("[10m]", "[3h]").replace("[1h])", "[3h])")
    data = prometheus.ask("query", query=widened, time=f"{NOW.timestamp():.0f}")
    assert isinstance(data, dict)
    return [(series["metric"], float(series["value"][1])) for series in data["result"]]


def _range(
    prometheus: Prometheus, query: str, start: datetime, end: datetime, step: float
) -> list[tuple[dict[str, str], dict[float, float]]]:
    aligned = start.timestamp() // step * step
    data = prometheus.ask("query_range", query=query, start=f"{aligned}", end=f"{end.timestamp()}", step=f"{step}")
    assert isinstance(data, dict)
    return [(series["metric"], {time: float(value) for time, value in series["values"]}) for series in data["result"]]
