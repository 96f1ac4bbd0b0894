"""A simulated Braze on loopback: campaigns whose counts grow through the day, behind Braze's endpoints and any fault.

First comes the world, pure: the same campaign, day, time and zone give the same numbers. Then the server that shows it.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import formatdate
from functools import lru_cache, partial
from hashlib import blake2b
from http import HTTPStatus
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate, cycle
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import parse_qsl
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import tzinfo
    from types import TracebackType
    from typing import Self

CONTROL_GROUP = "Control Group"
"""The variation of this name is enrolled and sent nothing."""

SETTLED_HOURS = 48.0
"""A day's numbers are fixed when the day after it is over."""

PAGE_SIZE = 100
"""So many campaigns are on one page of `/campaigns/list`."""

# -- The world ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)  # hashed often, so by identity
class Rhythm:
    """When messages leave: a factor for each weekday from Monday on, and the share of a day's messages in each hour."""

    weekdays: tuple[float, ...]
    hours: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Statistic:
    """How one number of a channel follows from others.

    `rate` is its share of the messages or, with `of`, of that statistic; `less` is taken off. It trails the sends by
    `delay` hours, and is complete at midnight; `late` ones, which need a delay, keep coming in through the day after.
    """

    name: str
    rate: float = 1.0
    of: str = ""
    less: str = ""
    delay: float = 0.0
    late: bool = False


@dataclass(frozen=True, slots=True)
class VariationModel:
    """One variation: its share of the campaign's messages, and how well it does (1 is average)."""

    id: str
    name: str | None = None
    share: float = 1.0
    appeal: float = 1.0


@dataclass(frozen=True, slots=True)
class ChannelModel:
    """A channel's variations, perhaps none, and its statistics beyond those of STATISTICS."""

    name: str
    variations: tuple[VariationModel, ...] = ()
    extra: tuple[Statistic, ...] = ()


@dataclass(frozen=True, slots=True)
class CampaignModel:
    """One campaign: `base` messages on an average day, sent in its rhythm over its channels.

    `multivariate` campaigns are answered in the form that Braze documents under this name: without `message` and
    variation ids, with one conversion event. Drafts and archived campaigns send nothing.
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
    """Invent `count` campaigns; the first dozen covers every documented channel, rhythm and shape of answer."""
    return tuple(_campaign(seed, number) for number in range(count))


def data_series(campaign: CampaignModel, last: date, length: int, *, now: float, zone: tzinfo) -> dict[str, object]:
    """Return Braze's answer for `length` days that end with `last`, oldest first, as known at the Unix time `now`."""
    days = (last - timedelta(days=back) for back in reversed(range(length)))
    data = [daily(campaign, day, now=now, zone=zone) for day in days]
    return {"data": data} if campaign.multivariate else {"message": "success", "data": data}


def daily(campaign: CampaignModel, day: date, *, now: float, zone: tzinfo) -> dict[str, object]:
    """Return one day of a campaign as an entry of `data`; a day without activity is all zeros."""
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
    """Return Braze's answer about the campaign itself; whole e-mails make it large."""
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
        # Not documented: what a client has never heard of, it must carry nevertheless.
        "rcs": (
            Statistic("sent"),
            Statistic("delivered", 0.97, delay=_SOON),
            Statistic("read", 0.5, delay=1.0, late=True),
            Statistic("suggestion_clicks", 0.2, of="read"),
        ),
    }
)
"""Each channel's statistics; the first counts the messages, and every other one stands behind those it follows from."""

_CONVERTED = Statistic("conversions_by_send_time", 0.01, delay=3.0, late=True)


@dataclass(frozen=True, slots=True)
class _Kind:
    """The pattern of a campaign, with its variations' names by channel; None stands for a campaign without variants."""

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
    """Split the campaign over channels of different sizes, and these over variations of different luck."""
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
    """Return how far the day and the one after it are through, 0 to 48.

    An hour here is a 24th of a day from midnight to midnight, so days of 23 and 25 hours need no care elsewhere.
    """
    starts = [_midnight(day + timedelta(days=days), zone) for days in range(3)]
    if now < starts[1]:
        return 24 * max(0.0, now - starts[0]) / (starts[1] - starts[0])
    return min(24 + 24 * (now - starts[1]) / (starts[2] - starts[1]), SETTLED_HOURS)


@lru_cache(maxsize=1024)
def _midnight(day: date, zone: tzinfo) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()


def _messages(campaign: CampaignModel, variation: VariationModel, day: date) -> float:
    """Return how many messages the variation sends on the whole day, not yet a round number."""
    if day < campaign.started or campaign.archived or campaign.draft:
        return 0.0
    noise = (1 + 0.06 * _spread(_noise(campaign.id, day)[0])) * (1 + 0.01 * _spread(_noise(variation.id, day)[-2]))
    return campaign.base * campaign.rhythm.weekdays[day.weekday()] * variation.share * noise


def _counts(
    campaign: CampaignModel, channel: ChannelModel, variation: VariationModel, day: date, age: float
) -> dict[str, int]:
    """Return the statistics of a variation, rounded down step by step: parts never exceed what they are part of."""
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
    """Return conversions by the day of sending, and revenue and conversions by their own day.

    The latter are those of the day's own messages until midnight, and the late ones of the day before.
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
    """Return how often the events A to D had followed from the messages of `day`, at each of its ages."""
    messages = _messages(campaign, variation, day)
    rate = _CONVERTED.rate * variation.appeal * (1 + 0.06 * _spread(_noise(variation.id, day)[-1]))
    first = [math.floor(rate * _reached(campaign.rhythm, messages, _CONVERTED, age)) for age in ages]
    return [(count, count // 5, 0, 0) for count in first]


def _row(
    campaign: CampaignModel, variation: VariationModel, counts: Mapping[str, int], outcome: Mapping[str, float]
) -> dict[str, object]:
    """Return the variation in one of Braze's two shapes: without variants there is no name and no outcome."""
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
        # Some people are reached on several channels and are counted once.
        total["unique_recipients"] = math.floor(0.9 * sum(outcome["unique_recipients"] for outcome in outcomes))
    return total


def _reached(rhythm: Rhythm, messages: float, statistic: Statistic, age: float) -> int:
    """Return how many of the day's messages are so far along that they can count in the statistic."""
    today = min(age, 24.0)
    # The delay shrinks to nothing towards midnight, when what is not late is complete.
    handed_over = _sent(rhythm, today - min(statistic.delay, _SOON) * (1 - today / 24))
    if statistic.late:
        return math.floor(messages * min(handed_over, _answered(rhythm, age, statistic.delay)))
    return math.floor(messages * _sent(rhythm, today - statistic.delay * (1 - today / 24)))


def _sent(rhythm: Rhythm, hour: float) -> float:
    """Return the share of the day's messages that has left by an hour of the day."""
    if hour >= 24:  # noqa: PLR2004 - a day's hours; exact, where the sum of the shares may not be
        return 1.0
    whole, part = divmod(max(hour, 0.0), 1)
    return min(1.0, _left_by(rhythm)[int(whole)] + rhythm.hours[int(whole)] * part)


@lru_cache(maxsize=64)
def _left_by(rhythm: Rhythm) -> tuple[float, ...]:
    return tuple(accumulate(rhythm.hours, initial=0.0))


@lru_cache(maxsize=4096)
def _answered(rhythm: Rhythm, age: float, delay: float) -> float:
    """Return the share of the day's messages that people have reacted to, after `delay` hours on average.

    Reactions thin out exponentially: this is the integral over each hour's even sending.
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
    """Return the newest moment of sending; a campaign of in-app messages only has none."""
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
    """Return what makes a day of a campaign or variation differ from others."""
    return _random(f"{of} {day}")


def _random(key: str) -> bytes:
    """Return 16 bytes that look random and depend on the key alone."""
    return blake2b(key.encode(), digest_size=16).digest()


def _uuid(key: str) -> str:
    return str(UUID(bytes=_random(key), version=4))


def _spread(byte: int) -> float:
    """Return a byte as a number from -1 to 1."""
    return byte / 127.5 - 1


# -- The server --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Latency:
    """Answer as otherwise, but so many seconds late."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with a status; body and headers are Braze's for it unless given."""

    code: int
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """Answer 200 with this body."""

    content: bytes
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Hang:
    """Take the request and never answer."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Send so many bytes of the real answer, the status line included, and cut the connection."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Drip:
    """Send the real answer a byte each `interval` seconds, from the status line or from the body on."""

    interval: float
    part: Literal["headers", "body"] = "body"


Fault: TypeAlias = Latency | Status | Body | Hang | Cut | Drip
"""One way to misbehave."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came: `time` is monotonic, `status` what was answered, None where nothing was."""

    time: float
    path: str
    query: str
    campaign_id: str | None
    status: int | None
    authorized: bool


class Simulator:
    """A Braze workspace on a loopback address, from `start` (or entering it as a context) to `close`."""

    def __init__(
        self,
        *,
        seed: int = 1,
        campaigns: int | Sequence[CampaignModel] = 12,
        timezone: tzinfo = UTC,
        newest_day: Literal["today", "yesterday"] = "today",
        api_key: str = "simulated-braze-key",
        clock: Callable[[], float] = time.time,
        address: tuple[str, int] = ("127.0.0.1", 0),
        data_series_per_minute: int = 50_000,
        other_requests_per_hour: int = 250_000,
    ) -> None:
        """Invent a workspace; nothing listens yet.

        `campaigns` are given or so many are invented from the seed. `newest_day` says whether an answer without
        `ending_at` ends with the running day or the one before. `clock` returns Unix seconds: the days, the growth of
        their numbers (each whole second), the rate limits and the Date header follow it.

        Raises:
            ValueError: the address is not a loopback address.

        """
        if not _is_loopback(address[0]):
            raise ValueError(f"expected a loopback address such as 127.0.0.1, got {address[0]!r}")
        self.api_key = api_key
        self.campaigns = campaign_models(campaigns, seed) if isinstance(campaigns, int) else tuple(campaigns)
        self._by_id = {campaign.id.lower(): campaign for campaign in self.campaigns}
        self._zone = timezone
        self._newest_day = newest_day
        self._clock = clock
        self._address = address
        self._series = lru_cache(maxsize=4096)(self._encoded_series)  # the numbers move once a second
        self._lock = threading.Lock()
        self._data_series_limit = _RateLimit(data_series_per_minute, 60)
        self._other_limit = _RateLimit(other_requests_per_hour, 3600)
        self._rules: list[_Rule] = []
        self._requests: deque[Request] = deque(maxlen=100_000)
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Return what a client's configuration calls the endpoint."""
        host, port = self._running().server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    @property
    def requests(self) -> list[Request]:
        """Return the requests of late, at most 100,000, in the order in which their answers were decided."""
        with self._lock:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """Return how many TCP connections have been accepted."""
        return self._running().accepted

    def start(self) -> None:
        """Listen and answer, in threads of their own.

        Raises:
            OSError: the address cannot be had.

        """
        self._server = _Server(self._address, self._reply)
        threading.Thread(target=partial(self._server.serve_forever, poll_interval=0.05), daemon=True).start()

    def close(self) -> None:
        """Stop listening and end every connection and thread, whatever they are at."""
        if self._server is not None:
            self._server.close()

    def misbehave(self, fault: Fault, *, campaign_id: str | None = None, times: int | None = None) -> None:
        """Answer requests for one campaign, or all requests, with a fault: the next `times`, or until `behave`.

        The newest fault that fits a request holds; what it replaced comes back after it. Latency adds to the others.
        """
        with self._lock:
            self._rules.insert(0, _Rule(fault, campaign_id and campaign_id.lower(), times))

    def behave(self, campaign_id: str | None = None) -> None:
        """End the faults of one campaign, or all faults."""
        with self._lock:
            self._rules = [
                rule for rule in self._rules if campaign_id is not None and rule.campaign_id != campaign_id.lower()
            ]

    def _running(self) -> _Server:
        if self._server is None:
            raise RuntimeError("expected a started simulator, got one that listens nowhere yet")
        return self._server

    def _reply(self, method: str, target: str, authorization: str) -> _Reply:
        """Decide what a request gets, and take note of it."""
        arrived, now = time.monotonic(), self._clock()
        path, _, query = target.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        campaign_id = parameters.get("campaign_id")
        authorized = authorization == f"Bearer {self.api_key}"
        limit = self._data_series_limit if path == "/campaigns/data_series" else self._other_limit
        with self._lock:
            rate = limit.take(now) if authorized else _NO_RATE
            seconds, fault = self._faults((campaign_id or "").lower())

        answer = self._answer(method, path, parameters, authorization=authorization, rate=rate, now=now)
        if isinstance(fault, Status):
            answer = _failure(fault, authorization, rate)
        elif isinstance(fault, Body):
            answer = _Answer(200, rate.headers | {"Content-Type": fault.content_type}, fault.content)
        unanswered = isinstance(fault, Hang) or (isinstance(fault, Cut) and fault.after == 0)
        request = Request(arrived, path, query, campaign_id, None if unanswered else answer.status, authorized)
        with self._lock:
            self._requests.append(request)
        return _Reply(_head(answer, now), answer.body, seconds, fault)

    def _faults(self, campaign_id: str) -> tuple[float, Fault | None]:
        """Return the latency in seconds and the other fault in force, and use up one time of each."""
        fitting = [rule for rule in self._rules if rule.campaign_id in (None, campaign_id)]
        late = next((rule for rule in fitting if isinstance(rule.fault, Latency)), None)
        wrong = next((rule for rule in fitting if not isinstance(rule.fault, Latency)), None)
        for rule in (late, wrong):
            if rule is not None and rule.times is not None:
                rule.times -= 1
        self._rules = [rule for rule in self._rules if rule.times != 0]
        seconds = late.fault.seconds if late is not None and isinstance(late.fault, Latency) else 0.0
        return seconds, None if wrong is None else wrong.fault

    def _answer(
        self, method: str, path: str, parameters: Mapping[str, str], *, authorization: str, rate: _Rate, now: float
    ) -> _Answer:
        endpoint = {
            "/campaigns/data_series": self._data_series,
            "/campaigns/list": self._list,
            "/campaigns/details": self._details,
        }.get(path)
        if rate is _NO_RATE:
            return _failure(Status(401), authorization, rate)
        if rate.exceeded:
            return _failure(Status(429), authorization, rate)
        if endpoint is None:
            return _failure(Status(404), authorization, rate)
        if method != "GET":
            return _failure(Status(405, headers={"Allow": "GET", "Connection": "close"}), authorization, rate)
        try:
            return _Answer(200, rate.headers | _JSON, endpoint(parameters, now))
        except _BadParameterError as error:
            return _failure(Status(400, _message_body(str(error))), authorization, rate)

    def _data_series(self, parameters: Mapping[str, str], now: float) -> bytes:
        campaign = self._campaign(parameters)
        length = parameters.get("length", "")
        if not re.fullmatch("[1-9][0-9]?|100", length):
            raise _BadParameterError("length must be an integer from 1 to 100")
        last = self._last_day(parameters.get("ending_at"), now)
        return self._series(campaign.id.lower(), last, int(length), math.floor(now))

    def _list(self, parameters: Mapping[str, str], _now: float) -> bytes:
        page = parameters.get("page", "0")
        if not re.fullmatch("[0-9]{1,9}", page):
            raise _BadParameterError("page must be an integer from 0 on")
        newest_first = _choice(parameters, "sort_direction", ("asc", "desc")) == "desc"
        archived_too = _choice(parameters, "include_archived", ("false", "true")) == "true"
        edited_after = parameters.get("last_edit.time[gt]")
        campaigns = [campaign for campaign in self.campaigns if archived_too or not campaign.archived]
        if edited_after is not None:
            since = _moment("last_edit.time[gt]", edited_after, UTC)
            campaigns = [campaign for campaign in campaigns if campaign.edited > since]
        campaigns.sort(key=attrgetter("started"), reverse=newest_first)
        return _encode(listing(campaigns[int(page) * PAGE_SIZE :][:PAGE_SIZE]))

    def _details(self, parameters: Mapping[str, str], now: float) -> bytes:
        return _encode(details(self._campaign(parameters), now=now, zone=self._zone))

    def _encoded_series(self, campaign_id: str, last: date, length: int, second: int) -> bytes:
        return _encode(data_series(self._by_id[campaign_id], last, length, now=second, zone=self._zone))

    def _campaign(self, parameters: Mapping[str, str]) -> CampaignModel:
        campaign = self._by_id.get(parameters.get("campaign_id", "").lower())
        if campaign is None:
            raise _BadParameterError("campaign_id must be a string of the campaign api identifier")
        return campaign

    def _last_day(self, ending_at: str | None, now: float) -> date:
        """Return the last day of an answer: none to come, and none of which only the midnight is asked for."""
        today = datetime.fromtimestamp(now, self._zone).date()
        if ending_at is None:
            return today if self._newest_day == "today" else today - timedelta(days=1)
        end = _moment("ending_at", ending_at, self._zone)
        return min(today, (end - timedelta(microseconds=1)).date())


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response before it is written."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Reply:
    """What to do about a request: bytes to write, after so many seconds, in the way of the fault."""

    head: bytes
    body: bytes
    seconds: float
    fault: Fault | None


@dataclass(slots=True)
class _Rule:
    """A fault in force for one campaign or all of them, so many times or without an end."""

    fault: Fault
    campaign_id: str | None
    times: int | None


@dataclass(frozen=True, slots=True)
class _Rate:
    """What a request finds of its rate limit."""

    headers: dict[str, str]
    exceeded: bool = False


class _RateLimit:
    """One pool's fixed windows of `period` seconds on the clock."""

    def __init__(self, limit: int, period: int) -> None:
        self._limit = limit
        self._period = period
        self._window = -1
        self._used = 0

    def take(self, now: float) -> _Rate:
        window = int(now // self._period)
        if window != self._window:
            self._window, self._used = window, 0
        self._used += 1
        remaining = max(0, self._limit - self._used)
        return _Rate(_rate_headers(self._limit, remaining, (window + 1) * self._period), self._used > self._limit)


class _BadParameterError(ValueError):
    """A parameter is missing or wrong; the text is Braze's message."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _rate_headers(limit: int | str, remaining: int | str, reset: int | str) -> dict[str, str]:
    return {"X-RateLimit-Limit": f"{limit}", "X-RateLimit-Remaining": f"{remaining}", "X-RateLimit-Reset": f"{reset}"}


_NO_RATE = _Rate(_rate_headers("", "", ""))  # Braze sends the headers empty with a 401
_FIRST_YEAR = 1970
_JSON = {"Content-Type": "application/json"}
_MESSAGES = {
    400: "campaign_id must be a string of the campaign api identifier",
    403: "The API key lacks the permission for this endpoint",
    404: "No such URL",
    429: "The rate limit is used up",
}


def _failure(status: Status, authorization: str, rate: _Rate) -> _Answer:
    """Return an error as Braze words it, with the headers and body of the status in place of the usual ones."""
    code = status.code
    headers = (_NO_RATE if code == HTTPStatus.UNAUTHORIZED else rate).headers | _JSON
    replaced = {name.lower() for name in status.headers}
    headers = {name: value for name, value in headers.items() if name.lower() not in replaced} | dict(status.headers)
    if status.body is not None:
        return _Answer(code, headers, status.body)
    if code == HTTPStatus.UNAUTHORIZED:  # Braze repeats the key
        return _Answer(code, headers, _message_body(f"Invalid API key: {authorization.removeprefix('Bearer ')}"))
    if code in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return _Answer(code, headers, b"")
    return _Answer(code, headers, _message_body(_MESSAGES.get(code) or responses.get(code, "Unknown")))


def _message_body(message: str) -> bytes:
    return _encode({"message": message})


def _encode(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _head(answer: _Answer, now: float) -> bytes:
    """Write the status line and the headers; the Date follows the simulator's clock."""
    headers = {"Date": formatdate(now, usegmt=True), "Content-Length": str(len(answer.body)), **answer.headers}
    lines = [
        f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Unknown')}",
        *(f"{name}: {headers[name]}" for name in headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _choice(parameters: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """Return the parameter, by default the first of the choices."""
    value = parameters.get(name, choices[0])
    if value not in choices:
        raise _BadParameterError(f"{name} must be {' or '.join(choices)}")
    return value


def _moment(name: str, text: str, zone: tzinfo) -> datetime:
    """Read ISO 8601, also with an offset of one digit as in Braze's examples; without an offset it is in the zone."""
    try:
        moment = datetime.fromisoformat(re.sub(r"([+-])(\d:\d\d)$", r"\g<1>0\2", text))
        moment = moment.astimezone(zone) if moment.tzinfo else moment.replace(tzinfo=zone)
    except (ValueError, OverflowError):
        moment = datetime.min.replace(tzinfo=zone)
    if moment.year < _FIRST_YEAR:
        raise _BadParameterError(f"{name} must be an ISO 8601 date and time from {_FIRST_YEAR} on")
    return moment


class _Server(ThreadingHTTPServer):
    """The listening socket and its connections, each with a thread."""

    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], reply: Callable[[str, str, str], _Reply]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.reply = reply
        self.closing = threading.Event()
        self.accepted = 0
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the look-up of the host's name that HTTPServer makes."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Start the thread of a connection, and remember both."""
        assert isinstance(request, socket.socket)  # noqa: S101 - TCP has no other requests; for the type checker
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._lock:
            self.accepted += 1
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """End a connection, and forget it."""
        with self._lock:
            if isinstance(request, socket.socket):
                self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Report what is our fault; a client that has gone is not."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop accepting, shut every connection, which ends whatever its thread waits for, and wait for the threads."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            still_open = dict(self._open)
        for connection in still_open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in still_open.values():
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests and writes replies, or fails to as it is told."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        """Write nothing: the simulator keeps its requests."""

    def _serve(self) -> None:
        reply = self.server.reply(self.command, self.path, self.headers.get("Authorization", ""))
        if self.command != "GET":
            self.close_connection = True  # a body may follow, which nobody reads
        if reply.seconds and not self._wait(reply.seconds):
            return
        body = b"" if self.command == "HEAD" else reply.body
        match reply.fault:
            case Hang():
                self._hang()
            case Cut(after):
                self.wfile.write((reply.head + body)[:after])
                self.close_connection = True
            case Drip(interval, "headers"):
                self._drip(reply.head + body, interval)
            case Drip(interval, _):
                self.wfile.write(reply.head)
                self._drip(body, interval)
            case _:
                self.wfile.write(reply.head + body)  # in one segment, as long as it is small

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815 - the names count

    def _hang(self) -> None:
        """Wait until the client or the simulator ends the connection."""
        self.close_connection = True
        while self.connection.recv(65_536):
            pass

    def _drip(self, content: bytes, interval: float) -> None:
        for place in range(len(content)):
            self.wfile.write(content[place : place + 1])
            if not self._wait(interval):
                return

    def _wait(self, seconds: float) -> bool:
        """Wait, and return whether the simulator still runs; if not, the connection is done for."""
        closing = self.server.closing.wait(seconds)
        self.close_connection = self.close_connection or closing
        return not closing
