"""Campaigns of a simulated Braze whose counts grow through the day, and the JSON of Braze's responses about them. Pure.

The same campaign, day, time and zone give the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, cycle
from types import MappingProxyType
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import tzinfo

CONTROL_GROUP = "Control Group"
"""Name of the variation that is enrolled and sent nothing."""


@dataclass(frozen=True, slots=True, eq=False)  # hashed often, so by identity
class Rhythm:
    """Sending pattern: a factor for each weekday from Monday on, and each hour's share of a day's messages."""

    weekdays: tuple[float, ...]
    hours: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Statistic:
    """Rule that computes one statistic of a channel from others.

    `rate` is its share of the messages or, with `of`, of that statistic; the statistic `less` is subtracted. It
    follows the sends after `delay` hours and is complete at midnight; `late` ones, with a delay, grow for another day.
    """

    name: str
    rate: float = 1.0
    of: str = ""
    less: str = ""
    delay: float = 0.0
    late: bool = False


@dataclass(frozen=True, slots=True)
class VariationModel:
    """Variation: its share of the campaign's messages, and its appeal to recipients (1 is average)."""

    id: str
    name: str | None = None
    share: float = 1.0
    appeal: float = 1.0


@dataclass(frozen=True, slots=True)
class ChannelModel:
    """Channel: its variations, perhaps none, and the statistics it has beside those of STATISTICS."""

    name: str
    variations: tuple[VariationModel, ...] = ()
    extra: tuple[Statistic, ...] = ()


@dataclass(frozen=True, slots=True)
class CampaignModel:
    """Campaign: `base` messages on an average day, sent in its rhythm over its channels.

    Responses about `multivariate` campaigns have the form that Braze documents under this name: without `message`
    and variation ids, with one conversion event. Drafts and archived campaigns send nothing.
    """

    id: str
    name: str
    rhythm: Rhythm
    base: float
    channels: tuple[ChannelModel, ...]
    multivariate: bool = False
    schedule_type: str = "action_based"
    tags: tuple[str, ...] = ()
    started: date = date(2024, 3, 1)
    edited: datetime = datetime(2024, 3, 1, 9, 15, 2, tzinfo=UTC)
    archived: bool = False
    draft: bool = False
    order_value: float = 24.9


def campaign_models(count: int, seed: int = 1) -> tuple[CampaignModel, ...]:
    """Invent `count` campaigns; the first twelve have every documented channel, rhythm and form of response."""
    return tuple(_campaign(seed, number) for number in range(count))


def data_series(campaign: CampaignModel, last: date, length: int, *, now: float, zone: tzinfo) -> dict[str, object]:
    """Return Braze's response for `length` days up to `last`, oldest first, as of the Unix time `now`."""
    days = (last - timedelta(days=back) for back in reversed(range(length)))
    data = [daily(campaign, day, now=now, zone=zone) for day in days]
    return {"data": data} if campaign.multivariate else {"message": "success", "data": data}


def daily(campaign: CampaignModel, day: date, *, now: float, zone: tzinfo) -> dict[str, object]:
    """Return one day of a campaign as an entry of `data`; without activity all its numbers are zero."""
    age = _age(day, now, zone)
    age_of_previous = _age(day - timedelta(days=1), now, zone)
    messages: dict[str, list[dict[str, object]]] = {}
    outcomes: list[dict[str, float]] = []
    for channel in campaign.channels:
        rows = messages[channel.name] = []
        for variation in channel.variations:
            counts = _counts(campaign, channel, variation, day, age)
            outcome = _outcome(campaign, variation, day, age, age_of_previous)
            outcome["unique_recipients"] = next(iter(counts.values()), 0)
            outcomes.append(outcome)
            rows.append(_row(campaign, variation, counts, outcome))
    return {"time": day.isoformat(), "messages": messages, **_total(campaign, outcomes)}


def details(campaign: CampaignModel, *, now: float, zone: tzinfo) -> dict[str, object]:
    """Return Braze's response with the details of a campaign, which include whole e-mails."""
    return {
        "message": "success",
        "created_at": _noon(campaign.started),
        "updated_at": campaign.edited.isoformat(),
        "archived": campaign.archived,
        "draft": campaign.draft,
        "enabled": not (campaign.archived or campaign.draft),
        "has_post_launch_draft": False,
        "name": campaign.name,
        "description": "",
        "schedule_type": campaign.schedule_type,
        "channels": [channel.name for channel in campaign.channels],
        "first_sent": None if campaign.draft else _noon(campaign.started),
        "last_sent": _last_sent(campaign, now, zone),
        "tags": list(campaign.tags),
        "teams": [],
        "messages": {
            variation.id: _message(channel.name, variation)
            for channel in campaign.channels
            for variation in channel.variations
        },
        "conversion_behaviors": [{"type": "Makes Purchase", "window": 172_800}],
    }


def listing(campaigns: Iterable[CampaignModel]) -> dict[str, object]:
    """Return one page of Braze's list of campaigns."""
    entries = [
        {
            "id": campaign.id,
            "name": campaign.name,
            "is_api_campaign": campaign.schedule_type == "api_triggered",
            "tags": list(campaign.tags),
            "last_edited": campaign.edited.isoformat(),
        }
        for campaign in campaigns
    ]
    return {"message": "success", "campaigns": entries}


def _shares(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(weight / sum(weights) for weight in weights)


ALL_DAY = Rhythm(
    (1.06, 1.1, 1.08, 1.04, 1.1, 0.86, 0.76),
    _shares((2, 1, 1, 1, 1, 2, 4, 8, 12, 15, 16, 15, 14, 13, 14, 14, 15, 16, 17, 16, 14, 11, 7, 4)),
)
"""Triggered by what people do."""

MORNINGS = Rhythm(
    (1.05, 1.1, 1.1, 1.05, 1.0, 0.9, 0.8),
    _shares((0, 0, 0, 0, 0, 0, 1, 6, 18, 30, 14, 6, 4, 3, 3, 3, 3, 3, 2, 2, 1, 1, 0, 0)),
)
"""Scheduled each morning, later for people in other zones."""

WEEKDAYS = Rhythm(
    (1.05, 1.02, 1.0, 1.0, 0.93, 0.0, 0.0),
    _shares((0, 0, 0, 0, 0, 0, 1, 4, 9, 12, 12, 11, 8, 9, 11, 11, 9, 5, 2, 1, 0, 0, 0, 0)),
)
"""Office hours."""

WEEKLY = Rhythm(
    (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
    _shares((0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 60, 28, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
)
"""Thursdays at ten."""

_SOON = 1 / 12  # hours until a message's fate is known
_PUSH = (
    Statistic("sent"),
    Statistic("direct_opens", 0.031, delay=0.6, late=True),
    Statistic("total_opens", 0.07, delay=0.6, late=True),
    Statistic("bounces", 0.004, delay=_SOON),
    Statistic("body_clicks", 0.92, of="direct_opens"),
)
_IN_APP = (
    Statistic("impressions"),
    Statistic("clicks", 0.11, of="impressions"),
    Statistic("first_button_clicks", 0.6, of="clicks"),
    Statistic("second_button_clicks", 0.28, of="clicks"),
)
STATISTICS: Mapping[str, tuple[Statistic, ...]] = MappingProxyType(
    {
        "email": (
            Statistic("sent"),
            Statistic("opens", 0.41, delay=2.0, late=True),
            Statistic("machine_open", 0.29, of="opens"),
            Statistic("unique_opens", 0.75, of="opens"),
            Statistic("machine_amp_open", 0.0),
            Statistic("clicks", 0.06, delay=2.5, late=True),
            Statistic("unique_clicks", 0.83, of="clicks"),
            Statistic("unsubscribes", 0.0018, delay=2.0),
            Statistic("bounces", 0.011, delay=_SOON),
            Statistic("delivered", less="bounces", delay=_SOON),
            Statistic("reported_spam", 0.0004, delay=3.0),
        ),
        "sms": (
            Statistic("sent"),
            Statistic("rejected", 0.012, delay=_SOON),
            Statistic("sent_to_carrier", less="rejected", delay=_SOON),
            Statistic("delivery_failed", 0.014, of="sent_to_carrier"),
            Statistic("delivered", of="sent_to_carrier", less="delivery_failed"),
            Statistic("clicks", 0.035, delay=0.5, late=True),
            Statistic("opt_out", 0.003, delay=0.5),
            Statistic("help", 0.0008, delay=0.5),
        ),
        "whats_app": (
            Statistic("sent"),
            Statistic("failed", 0.022, delay=_SOON),
            Statistic("delivered", less="failed", delay=_SOON),
            Statistic("read", 0.7, delay=1.0, late=True),
        ),
        "webhook": (Statistic("sent"), Statistic("errors", 0.021, delay=_SOON)),
        "content_cards": (
            Statistic("sent"),
            Statistic("total_impressions", 0.78, delay=2.5, late=True),
            Statistic("unique_impressions", 0.79, of="total_impressions"),
            Statistic("total_clicks", 0.08, of="total_impressions"),
            Statistic("unique_clicks", 0.76, of="total_clicks"),
            Statistic("total_dismissals", 0.2, of="total_impressions"),
            Statistic("unique_dismissals", 0.7, of="total_dismissals"),
        ),
        "ios_push": _PUSH,
        "android_push": _PUSH,
        "web_push": _PUSH,
        "kindle_push": _PUSH,
        "trigger_in_app_message": _IN_APP,
        "in_app_message": _IN_APP,
        # Not documented: clients must keep channels and statistics that they do not know.
        "rcs": (
            Statistic("sent"),
            Statistic("delivered", 0.97, delay=_SOON),
            Statistic("read", 0.5, delay=1.0, late=True),
            Statistic("suggestion_clicks", 0.2, of="read"),
        ),
    }
)
"""Statistics of each channel: first the number of messages, and each other one after those that it is computed from."""

_CONVERTED = Statistic("conversions_by_send_time", 0.01, delay=3.0, late=True)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Template for campaigns, with the variations' names by channel; None is for a campaign without variants."""

    name: str
    rhythm: Rhythm
    base: float
    channels: Mapping[str, tuple[str | None, ...]]
    schedule_type: str = "action_based"
    tags: tuple[str, ...] = ()
    multivariate: bool = False
    archived: bool = False
    draft: bool = False
    extra: Mapping[str, tuple[Statistic, ...]] = field(default_factory=dict)


_ONE: tuple[str | None, ...] = (None,)
_TESTED = ("Variant 1", "Variant 2", CONTROL_GROUP)
_KINDS = (
    _Kind("Welcome e-mail", ALL_DAY, 18_000, {"email": _ONE, "sms": ()}, tags=("onboarding",)),
    _Kind(
        'Cart "48h" push \\ A/B 🛒',
        ALL_DAY,
        21_000,
        {"ios_push": _TESTED, "android_push": _TESTED},
        tags=("cart", "push"),
    ),
    _Kind("Weekly newsletter", WEEKLY, 240_000, {"email": ("A: question", "B: offer")}, "time_based", ("newsletter",)),
    _Kind("One-time passcode", ALL_DAY, 9_000, {"sms": _ONE}, "api_triggered"),
    _Kind("Parcel is on its way", WEEKDAYS, 3_200, {"whats_app": _ONE}, "api_triggered", ("orders",)),
    _Kind("Customer sync", WEEKDAYS, 26_000, {"webhook": _ONE}, tags=("integration",)),
    _Kind("Home screen offers", MORNINGS, 60_000, {"content_cards": _TESTED}, "time_based", ("cards",)),
    _Kind(
        "Onboarding tour",
        ALL_DAY,
        2_400,
        {"trigger_in_app_message": ("A: short", "B: long", None, CONTROL_GROUP)},
        tags=("onboarding",),
        multivariate=True,
    ),
    _Kind("How do you like the app?", ALL_DAY, 900, {"in_app_message": _ONE}),
    # Braze has been seen to send two rows of one variation: the unnamed ones of a channel share their id.
    _Kind(
        "Breaking news", MORNINGS, 34_000, {"web_push": (None, None), "kindle_push": _ONE}, "api_triggered", ("news",)
    ),
    _Kind("Anniversary", ALL_DAY, 40, {"email": ("Card", CONTROL_GROUP)}),
    _Kind(
        "Summer sale ☀️ everywhere",
        MORNINGS,
        90_000,
        {channel: _ONE for channel in STATISTICS if channel != "trigger_in_app_message"},
        "time_based",
        ("sale",),
        extra={"ios_push": (Statistic('carousel_slide_1_Summer "Sale"_click', 0.2, of="direct_opens"),)},
    ),
    _Kind("Winter sale", MORNINGS, 50_000, {"email": _ONE}, "time_based", ("sale",), archived=True),
    _Kind("Untitled campaign", ALL_DAY, 1_000, {"email": _ONE, "android_push": _ONE}, draft=True),
)


def _campaign(seed: int, number: int) -> CampaignModel:
    turn, place = divmod(number, len(_KINDS))
    kind = _KINDS[place]
    started = date(2024, 1, 8) + timedelta(days=number % 365)
    random = _random(f"{seed} {number}")
    return CampaignModel(
        id=_uuid(f"{seed} {number}"),
        name=kind.name if turn == 0 else f"{kind.name} {turn + 1}",
        rhythm=kind.rhythm,
        base=kind.base,
        channels=_channels(kind, f"{seed} {number}"),
        multivariate=kind.multivariate,
        schedule_type=kind.schedule_type,
        tags=kind.tags,
        started=started,
        edited=datetime(started.year, started.month, started.day, 9, 15, tzinfo=UTC)
        + timedelta(minutes=97 * random[0]),
        archived=kind.archived,
        draft=kind.draft,
        order_value=19.9 + random[1] / 10,
    )


def _channels(kind: _Kind, key: str) -> tuple[ChannelModel, ...]:
    """Divide the campaign into channels of different sizes, and these into variations."""
    places = [(channel, place, name) for channel, names in kind.channels.items() for place, name in enumerate(names)]
    whole = sum(_size(key, *place) for place in places)
    return tuple(
        ChannelModel(
            channel,
            tuple(_variation(key, place, whole) for place in places if place[0] == channel),
            kind.extra.get(channel, ()),
        )
        for channel in kind.channels
    )


def _size(key: str, channel: str, place: int, name: str | None) -> float:
    channel_size = 1 + 0.4 * _spread(_random(f"{key} {channel}")[0])
    return channel_size * (0.12 if name == CONTROL_GROUP else 1 + 0.05 * _luck(key, channel, place))


def _luck(key: str, channel: str, place: int) -> float:
    return _spread(_random(f"{key} {channel} {place}")[0])


def _variation(key: str, at: tuple[str, int, str | None], whole: float) -> VariationModel:
    channel, place, name = at
    scope = "" if name == CONTROL_GROUP else channel  # all channels have the same control group
    appeal = 1 + 0.12 * _luck(key, channel, place)
    return VariationModel(_uuid(f"{key} {scope} {name}"), name, _size(key, *at) / whole, appeal)


def _age(day: date, now: float, zone: tzinfo) -> float:
    """Return the hours that have passed of a day and the one after it, 0 to 48.

    An hour here is a 24th of the day, so that days of 23 and 25 hours are no special case elsewhere.
    """
    starts = [_midnight(day + timedelta(days=days), zone) for days in range(3)]
    if now < starts[1]:
        return 24 * max(0.0, now - starts[0]) / (starts[1] - starts[0])
    return min(24 + 24 * (now - starts[1]) / (starts[2] - starts[1]), 48.0)  # then its numbers are final


@lru_cache(maxsize=1024)
def _midnight(day: date, zone: tzinfo) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()


def _messages(campaign: CampaignModel, variation: VariationModel, day: date) -> float:
    """Return the number of messages that the variation sends on the whole day, not rounded yet."""
    if day < campaign.started or campaign.archived or campaign.draft:
        return 0.0
    noise = (1 + 0.06 * _spread(_noise(campaign.id, day)[0])) * (1 + 0.01 * _spread(_noise(variation.id, day)[-2]))
    return campaign.base * campaign.rhythm.weekdays[day.weekday()] * variation.share * noise


def _counts(
    campaign: CampaignModel, channel: ChannelModel, variation: VariationModel, day: date, age: float
) -> dict[str, int]:
    """Return the statistics of a variation, each rounded down, so that a part never exceeds its whole."""
    statistics = (*STATISTICS.get(channel.name, ()), *channel.extra)
    if variation.name == CONTROL_GROUP:
        statistics = (Statistic("enrolled"),)
    messages = _messages(campaign, variation, day)
    counts: dict[str, int] = {}
    for statistic, byte in zip(statistics, cycle(_noise(variation.id, day)), strict=False):
        whole = counts[statistic.of] if statistic.of else _reached(campaign.rhythm, messages, statistic, age)
        rate = statistic.rate
        if rate < 1:
            rate = min(1.0, rate * (1 + 0.06 * _spread(byte)) * (variation.appeal if statistic.late else 1))
        counts[statistic.name] = math.floor(rate * whole) - (counts[statistic.less] if statistic.less else 0)
    return counts


def _outcome(
    campaign: CampaignModel, variation: VariationModel, day: date, age: float, age_of_previous: float
) -> dict[str, float]:
    """Return conversions by send time, and revenue and conversions by their own day.

    The latter come from the day's own messages until midnight, and from late reactions to the day before.
    """
    by_send_time, by_midnight = _conversions(campaign, variation, day, (age, min(age, 24.0)))
    previous = day - timedelta(days=1), (age_of_previous, min(age_of_previous, 24.0))
    late, early = _conversions(campaign, variation, *previous)
    on_the_day = [own + max(0, more - less) for own, more, less in zip(by_midnight, late, early, strict=True)]
    outcome = {"revenue": round(on_the_day[0] * campaign.order_value, 2)}
    for event in range(1 if campaign.multivariate else 4):
        outcome[f"conversions{event or ''}"] = on_the_day[event]
        outcome[f"conversions{event or ''}_by_send_time"] = by_send_time[event]
    return outcome


def _conversions(
    campaign: CampaignModel, variation: VariationModel, day: date, ages: Iterable[float]
) -> list[tuple[int, int, int, int]]:
    """Return the conversions A to D that the messages of `day` have led to, at each of these ages."""
    messages = _messages(campaign, variation, day)
    rate = _CONVERTED.rate * variation.appeal * (1 + 0.06 * _spread(_noise(variation.id, day)[-1]))
    first = [math.floor(rate * _reached(campaign.rhythm, messages, _CONVERTED, age)) for age in ages]
    return [(count, count // 5, 0, 0) for count in first]


def _row(
    campaign: CampaignModel, variation: VariationModel, counts: Mapping[str, int], outcome: Mapping[str, float]
) -> dict[str, object]:
    """Return a variation's row in one of Braze's two forms: without variants it has no name and no outcome."""
    row: dict[str, object] = {}
    if variation.name is not None:
        row["variation_name"] = variation.name
    if not campaign.multivariate:
        row["variation_api_id"] = variation.id
    row.update(counts)
    if campaign.multivariate or variation.name is not None:
        row.update(outcome)
    return row


def _total(campaign: CampaignModel, outcomes: Sequence[Mapping[str, float]]) -> dict[str, object]:
    names = dict.fromkeys(name for outcome in outcomes for name in outcome)
    total: dict[str, object] = {name: round(sum(outcome[name] for outcome in outcomes), 2) for name in names}
    if sum(1 for channel in campaign.channels if channel.variations) > 1:
        # Recipients of several channels are counted once.
        total["unique_recipients"] = math.floor(0.9 * sum(outcome["unique_recipients"] for outcome in outcomes))
    return total


def _reached(rhythm: Rhythm, messages: float, statistic: Statistic, age: float) -> int:
    """Return the number of the day's messages that can count in the statistic by now."""
    today = min(age, 24.0)
    # The delay shrinks to zero until midnight, when every statistic is complete but the late ones.
    handed_over = _sent(rhythm, today - min(statistic.delay, _SOON) * (1 - today / 24))
    if statistic.late:
        return math.floor(messages * min(handed_over, _reacted(rhythm, age, statistic.delay)))
    return math.floor(messages * _sent(rhythm, today - statistic.delay * (1 - today / 24)))


def _sent(rhythm: Rhythm, hour: float) -> float:
    """Return the share of the day's messages that are sent by an hour of the day."""
    if hour >= 24:  # noqa: PLR2004 - a day's hours; exact, where the sum of the shares may not be
        return 1.0
    whole, part = divmod(max(hour, 0.0), 1)
    return min(1.0, _left_by(rhythm)[int(whole)] + rhythm.hours[int(whole)] * part)


@lru_cache(maxsize=64)
def _left_by(rhythm: Rhythm) -> tuple[float, ...]:
    return tuple(accumulate(rhythm.hours, initial=0.0))


@lru_cache(maxsize=4096)
def _reacted(rhythm: Rhythm, age: float, delay: float) -> float:
    """Return the share of the day's messages with a reaction; reactions take `delay` hours on average.

    They decline exponentially: this is the integral over each hour's even sending.
    """
    share = 0.0
    for hour, sent in enumerate(rhythm.hours):
        since = age - hour
        if since <= 0:
            break
        over = max(0.0, since - 1)
        share += sent * (since - over - delay * (math.exp(-over / delay) - math.exp(-since / delay)))
    return max(0.0, share)  # microseconds after midnight rounding would make it negative


def _last_sent(campaign: CampaignModel, now: float, zone: tzinfo) -> str | None:
    """Return the time of the latest send; a campaign with in-app messages only has none."""
    channels = {channel.name for channel in campaign.channels}
    today = datetime.fromtimestamp(now, zone).date()
    for back in range(8) if channels - {"in_app_message", "trigger_in_app_message"} else ():
        day = today - timedelta(days=back)
        hour = min(_age(day, now, zone), 24.0)
        if _sent(campaign.rhythm, hour) and any(
            _messages(campaign, variation, day) for channel in campaign.channels for variation in channel.variations
        ):
            moment = min(now, _midnight(day + timedelta(days=1), zone) - 1)
            return datetime.fromtimestamp(moment, UTC).replace(microsecond=0).isoformat()
    return None


def _message(channel: str, variation: VariationModel) -> dict[str, object]:
    if variation.name == CONTROL_GROUP:
        return {"channel": channel, "type": "control"}
    message: dict[str, object] = {"channel": channel, "name": variation.name or "Original"}
    if channel != "email":
        return message | {"body": f"Hello {{{{${{first_name}}}}}}, this is {variation.id}."}
    line = f"<tr><td style='padding:8px 24px;font-family:sans-serif'>A line of {variation.id}</td></tr>\n"
    return message | {"subject": "Hello", "body": f"<html><body><table>\n{line * 300}</table></body></html>"}


def _noon(day: date) -> str:
    return f"{day.isoformat()}T12:00:00+00:00"


@lru_cache(maxsize=65_536)
def _noise(of: str, day: date) -> bytes:
    """Return the pseudo-random bytes of a campaign's or variation's day."""
    return _random(f"{of} {day}")


def _random(key: str) -> bytes:
    """Return 16 pseudo-random bytes that depend on the key alone."""
    return blake2b(key.encode(), digest_size=16).digest()


def _uuid(key: str) -> str:
    return str(UUID(bytes=_random(key), version=4))


def _spread(byte: int) -> float:
    """Return a byte as a number from -1 to 1."""
    return byte / 127.5 - 1
