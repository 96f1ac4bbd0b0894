"""The campaigns of the simulated Braze behave like real ones."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exporter.simulator.world import CONTROL_GROUP, CampaignModel, campaign_models, daily, data_series
from tests.support.servers import ROOT

PAYLOADS = ROOT / "tests/data/payloads"
THURSDAY = date(2026, 3, 5)
NOON = datetime(2026, 3, 5, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0
BERLIN = ZoneInfo("Europe/Berlin")
CAMPAIGNS = campaign_models(14)
EMAIL, PUSH, NEWSLETTER, _, WHATS_APP, _, _, IN_APP, _, DOUBLED, SMALL, EVERYTHING, ARCHIVED, DRAFT = CAMPAIGNS


def test_the_same_seed_gives_the_same_world() -> None:
    """Two simulators of one seed agree in every campaign and number, and another seed has other ones."""
    one, same, other = ([series(campaign) for campaign in campaign_models(14, seed)] for seed in (7, 7, 8))

    assert one == same
    assert all(these != those for these, those in zip(one[:12], other[:12], strict=True))


def test_ids_are_different_uuids() -> None:
    """Every campaign has an id in Braze's form that no other one has."""
    ids = [campaign.id for campaign in campaign_models(1000)]

    assert [str(UUID(identifier)) for identifier in ids] == ids
    assert len(set(ids)) == 1000


def test_a_dozen_campaigns_cover_every_documented_channel() -> None:
    """The first twelve have all channels that Braze documents, and one that it does not."""
    documented = {"email", "sms", "whats_app", "webhook", "ios_push", "android_push", "web_push", "kindle_push"}
    documented |= {"content_cards", "trigger_in_app_message", "in_app_message"}

    assert {c.name for campaign in CAMPAIGNS[:12] for c in campaign.channels} == documented | {"rcs"}


@pytest.mark.parametrize(
    ("file", "campaign"),
    [("email_single_variation", EMAIL), ("push_with_control_group", PUSH), ("in_app_multivariate", IN_APP)],
)
def test_responses_have_the_recorded_shape(file: str, campaign: CampaignModel) -> None:
    """A response has the same keys as the recorded one, in the response, the day and each kind of row."""
    recorded = json.loads((PAYLOADS / f"{file}.json").read_text())

    assert shape(series(campaign)) == shape(recorded)


def test_rows_of_every_channel_have_the_recorded_statistics() -> None:
    """Each channel's rows have the keys of the recorded rows; one unknown statistic is added."""
    recorded = shape(json.loads((PAYLOADS / "all_channels.json").read_text()))
    invented = shape(series(EVERYTHING))
    invented.rows["ios_push"] = {keys - {'carousel_slide_1_Summer "Sale"_click'} for keys in invented.rows["ios_push"]}

    assert {channel: invented.rows[channel] for channel in recorded.rows} == recorded.rows
    assert (invented.response, invented.day) == (recorded.response, recorded.day)


def test_unknown_statistics_are_invented_too() -> None:
    """One campaign has a channel and a statistic that no documentation names."""
    messages = day_of(EVERYTHING)["messages"]

    assert isinstance(messages, dict)
    assert "suggestion_clicks" in messages["rcs"][0]
    assert 'carousel_slide_1_Summer "Sale"_click' in messages["ios_push"][0]


def test_a_variation_can_have_two_rows() -> None:
    """One campaign has two rows of the same channel and variation."""
    messages = day_of(DOUBLED)["messages"]

    assert isinstance(messages, dict)
    first, second = messages["web_push"]
    assert first["variation_api_id"] == second["variation_api_id"]
    assert first["sent"] != second["sent"]


def test_channels_share_the_control_group() -> None:
    """The control group has one id in all channels of a campaign."""
    groups = {v.id for channel in PUSH.channels for v in channel.variations if v.name == CONTROL_GROUP}

    assert len(groups) == 1


@given(
    campaign=st.sampled_from(CAMPAIGNS),
    day=st.dates(date(2025, 12, 1), date(2026, 12, 31)),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago"]),
    moments=st.lists(st.floats(0, 1), min_size=2, max_size=4),
)
def test_the_running_day_only_grows(campaign: CampaignModel, day: date, zone: str, moments: list[float]) -> None:
    """From midnight to midnight no number of the running day gets smaller, whatever the zone and the clocks do."""
    start, end = midnight(day, ZoneInfo(zone)), midnight(day + timedelta(days=1), ZoneInfo(zone))
    times = [start + share * (end - start) for share in sorted(moments)]
    growth = [numbers(daily(campaign, day, now=now, zone=ZoneInfo(zone))) for now in times]

    assert all(before.keys() == after.keys() for before, after in pairwise(growth))
    assert all(before[name] <= after[name] for before, after in pairwise(growth) for name in before)


@given(
    campaign=st.sampled_from(CAMPAIGNS),
    day=st.dates(date(2025, 12, 1), date(2026, 12, 31)),
    hours=st.floats(-30, 80),
)
@example(campaign=EVERYTHING, day=date(2025, 12, 1), hours=54.0)  # a share that good luck would lift above one
@example(campaign=CAMPAIGNS[0], day=date(2025, 12, 1), hours=3.1197463447464628e-09)  # no time for late conversions
def test_parts_stay_within_what_they_are_part_of(campaign: CampaignModel, day: date, hours: float) -> None:
    """At any time deliveries and failures are among the sends, the unique among all, and nothing is negative."""
    counts = daily(campaign, day, now=midnight(day, UTC) + hours * HOUR, zone=UTC)

    assert min(numbers(counts).values()) >= 0
    for row in rows(counts):
        sent = row.get("sent", 0)
        assert row.get("delivered", 0) + row.get("bounces", 0) <= sent
        assert row.get("delivered", 0) + row.get("rejected", 0) + row.get("delivery_failed", 0) <= sent
        assert row.get("delivered", 0) + row.get("failed", 0) <= sent
        assert row.get("errors", 0) <= sent
        assert row.get("opens", 0) <= row.get("delivered", 0)
        assert row.get("read", 0) <= row.get("delivered", 0)
        assert row.get("clicks", 0) <= max(sent, row.get("impressions", 0))
        assert row.get("first_button_clicks", 0) + row.get("second_button_clicks", 0) <= row.get("clicks", 0)
        for name in ("opens", "clicks"):
            assert row.get(f"unique_{name}", 0) <= row.get(name, row.get(f"total_{name}", 0))


@pytest.mark.parametrize("zone", [UTC, BERLIN, ZoneInfo("Australia/Sydney")], ids=str)
def test_counts_restart_at_the_midnight_of_the_zone(zone: tzinfo) -> None:
    """At midnight the new day is at zero; an hour earlier the day before was still running."""
    now = midnight(THURSDAY, zone)

    assert set(numbers(daily(EMAIL, THURSDAY, now=now, zone=zone)).values()) == {0}
    assert (
        0
        < sent(EMAIL, THURSDAY - timedelta(days=1), now - HOUR, zone)
        < sent(EMAIL, THURSDAY - timedelta(days=1), now, zone)
    )


def test_most_messages_leave_in_the_daytime() -> None:
    """A triggered campaign sends little at night, and the more by day."""
    by_hour = [sent(EMAIL, THURSDAY, midnight(THURSDAY, UTC) + hour * HOUR) for hour in range(25)]
    night, working_day = by_hour[6], by_hour[18] - by_hour[8]

    assert 0 < night < 0.06 * by_hour[24]
    assert working_day > 0.5 * by_hour[24]


def test_reactions_trail_the_sends() -> None:
    """In the middle of a mailing most e-mails are sent and delivered, and few are opened."""
    during = rows(daily(NEWSLETTER, THURSDAY, now=midnight(THURSDAY, UTC) + 10.5 * HOUR, zone=UTC))[0]
    complete = rows(daily(NEWSLETTER, THURSDAY, now=midnight(THURSDAY, UTC) + 24 * HOUR, zone=UTC))[0]

    assert 0 < during["opens"] / complete["opens"] < 0.5 * during["sent"] / complete["sent"]
    assert 0.7 < during["delivered"] / during["sent"] < 0.98


def test_nothing_is_opened_before_it_is_delivered() -> None:
    """In the first minutes even of a large mailing no e-mail is delivered or opened yet."""
    minutes = midnight(THURSDAY, UTC) + 9.05 * HOUR
    row = rows(daily(replace(NEWSLETTER, base=1e9), THURSDAY, now=minutes, zone=UTC))[0]

    assert row["sent"] > 0
    assert (row["delivered"], row["opens"], row["clicks"]) == (0, 0, 0)


def test_the_fate_of_every_message_is_known_at_midnight() -> None:
    """At the end of the day each e-mail has been delivered or has bounced."""
    row = rows(daily(EMAIL, THURSDAY, now=midnight(THURSDAY, UTC) + 24 * HOUR, zone=UTC))[0]

    assert row["delivered"] + row["bounces"] == row["sent"] > 0


@pytest.mark.parametrize("day", [date(2026, 3, 29), date(2026, 10, 25)], ids=["23 hours", "25 hours"])
def test_days_on_which_the_clocks_change_are_complete(day: date) -> None:
    """A day of 23 or 25 hours starts at zero, grows hour by hour, and is done at its end, not before."""
    start, end = midnight(day, BERLIN), midnight(day + timedelta(days=1), BERLIN)
    hours = round((end - start) / HOUR)
    growth = [sent(EMAIL, day, start + hour * HOUR, BERLIN) for hour in range(hours + 1)]

    assert hours != 24
    assert growth[0] == 0
    assert all(before < after for before, after in pairwise(growth))
    assert sent(EMAIL, day, end + 10 * HOUR, BERLIN) == growth[-1]


def test_the_day_after_restates_reactions_a_little() -> None:
    """Opens, clicks and conversions by send time of a day go on growing through the next one, and are then fixed."""
    restated = {"opens", "unique_opens", "machine_open", "clicks", "unique_clicks"}
    restated |= {"conversions_by_send_time", "conversions1_by_send_time"}
    end = midnight(THURSDAY, UTC) + 24 * HOUR
    at_midnight, later, fixed, much_later = (
        numbers(daily(replace(EMAIL, base=1e9), THURSDAY, now=end + hours * HOUR, zone=UTC))
        for hours in (0, 12, 24, 99)
    )
    grown = {name: after / at_midnight[name] for name, after in fixed.items() if after != at_midnight[name]}

    assert {name.rpartition("/")[2] for name in grown} == restated
    assert all(1 < growth < 1.15 for growth in grown.values())
    assert all(at_midnight[name] <= later[name] <= fixed[name] for name in fixed)
    assert at_midnight["messages/email/0/opens"] < later["messages/email/0/opens"]
    assert fixed == much_later


def test_late_conversions_count_on_their_own_day() -> None:
    """What converts after midnight counts on the day of sending by send time, and on the next day otherwise."""
    thursday, friday = (numbers(daily(NEWSLETTER, day, now=NOON + 240 * HOUR, zone=UTC)) for day in days(THURSDAY, 2))

    assert (friday["messages/email/0/sent"], friday["conversions_by_send_time"]) == (0, 0)
    assert friday["conversions"] > 0
    assert thursday["conversions"] + friday["conversions"] == thursday["conversions_by_send_time"]


def test_totals_are_the_sums_of_all_variations() -> None:
    """A day's conversions and revenue are those of its rows together, the control group's included."""
    day = day_of(PUSH)

    for name in ("conversions", "conversions_by_send_time", "conversions1"):
        assert day[name] == sum(row[name] for row in rows(day))
    assert day["revenue"] == pytest.approx(sum(row["revenue"] for row in rows(day)))


@pytest.mark.parametrize(
    ("campaign", "expected"),
    [(EMAIL, "MTWTFSS"), (WHATS_APP, "MTWTF--"), (NEWSLETTER, "---T---"), (ARCHIVED, "-------"), (DRAFT, "-------")],
    ids=["triggered", "weekdays", "weekly", "archived", "draft"],
)
def test_campaigns_have_rhythms(campaign: CampaignModel, expected: str) -> None:
    """Some campaigns send every day, some on weekdays, some once a week, and some not at all."""
    week = days(date(2026, 3, 2), 7)
    active = ["MTWTFSS"[day.weekday()] if sent(campaign, day, NOON + 240 * HOUR) else "-" for day in week]

    assert "".join(active) == expected


def test_a_small_campaign_stays_small() -> None:
    """A campaign of about forty messages a day has days without any reported spam, and ratios that jump."""
    volumes = [sent(SMALL, day, NOON + 2400 * HOUR) for day in days(THURSDAY, 60)]

    assert all(20 <= volume <= 45 for volume in volumes)
    assert len(set(volumes)) > 3


def test_days_before_the_start_are_all_zeros() -> None:
    """A day on which the campaign did not exist yet has its rows nevertheless, with zeros."""
    young = replace(PUSH, started=THURSDAY)
    before, first = (daily(young, day, now=NOON + 48 * HOUR, zone=UTC) for day in days(date(2026, 3, 4), 2))

    assert set(numbers(before).values()) == {0}
    assert numbers(before).keys() == numbers(first).keys()
    assert numbers(first)["conversions"] > 0


# -- Helpers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The keys of a response, of its days, and of the kinds of rows in each channel."""

    response: set[str]
    day: set[str]
    rows: dict[str, set[frozenset[str]]]


def shape(response: dict[str, object]) -> Shape:
    """Return the keys without the values; all days of a response must have the same keys."""
    data = response["data"]
    assert isinstance(data, list)
    day = data[-1]
    assert all(other.keys() == day.keys() for other in data)
    return Shape(
        set(response),
        set(day),
        {channel: {frozenset(row) for row in entries} for channel, entries in day["messages"].items()},
    )


def series(campaign: CampaignModel) -> dict[str, object]:
    """Return three days of a campaign."""
    return data_series(campaign, THURSDAY, 3, now=NOON, zone=UTC)


def day_of(campaign: CampaignModel) -> dict[str, object]:
    """Return a complete Thursday."""
    return daily(campaign, THURSDAY, now=NOON + 48 * HOUR, zone=UTC)


def days(first: date, count: int) -> list[date]:
    """Return days in a row."""
    return [first + timedelta(days=number) for number in range(count)]


def rows(day: dict[str, object]) -> list[dict[str, float]]:
    """Return the numbers of all rows of a day."""
    messages = day["messages"]
    assert isinstance(messages, dict)
    return [
        {name: value for name, value in row.items() if not isinstance(value, str)}
        for entries in messages.values()
        for row in entries
    ]


def numbers(day: dict[str, object]) -> dict[str, float]:
    """Return every number of a day by its path."""
    return dict(_numbers(day, ""))


def _numbers(value: object, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float):
        yield path, value
    elif isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{path}/{name}".lstrip("/"))


def sent(campaign: CampaignModel, day: date, now: float, zone: tzinfo = UTC) -> float:
    """Return how many messages a campaign has sent of a day's."""
    return sum(row.get("sent", 0) for row in rows(daily(campaign, day, now=now, zone=zone)))


def midnight(day: date, zone: tzinfo) -> float:
    """Return the start of a day in Unix seconds."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
