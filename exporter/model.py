"""What one answer of `GET /campaigns/data_series` says, as numbers by day and variation. Pure."""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LABEL_LENGTH = 1024
"""A label value has at most so many characters; a longer one is cut and ends in an ellipsis."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_LARGEST = sys.float_info.max
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class PayloadError(ValueError):
    """The answer as a whole is not a data series; the text says what was expected and what came."""


class Variation(NamedTuple):
    """One variation's statistics in one channel on one day; `id` and `name` are empty where Braze sends none."""

    channel: str
    id: str
    name: str
    statistics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Day:
    """One day of a campaign: its own statistics, by Braze's names, and those of its variations."""

    date: date
    statistics: dict[str, float]
    variations: tuple[Variation, ...]


@dataclass(frozen=True, slots=True)
class DataSeries:
    """The two newest days of an answer, and a sentence about each part of them that could not be read."""

    latest: Day | None
    previous: Day | None
    skipped: tuple[str, ...]


def parse_data_series(answer: object) -> DataSeries:
    """Read the newest day and the one before it out of a decoded answer.

    A part that has not the documented form (a day, a channel, a row) spoils only itself and is named in `skipped`.
    An answer without days is a series without days.

    Raises:
        PayloadError: there is no `data` array, or it has entries and none of them is a day.

    """
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise PayloadError(f"expected an object with an array `data`, got {_kind(answer)} without one")

    skipped: list[str] = []
    by_date: dict[date, tuple[str, dict[str, object]]] = {}
    for place, entry in enumerate(entries):
        try:
            by_date[_date(entry)] = (f"data[{place}]", entry)
        except PayloadError as error:
            skipped.append(f"data[{place}]: {error}")
    if entries and not by_date:
        raise PayloadError(f"none of the {len(entries)} entries of `data` is a day; {skipped[0]}")

    newest = sorted(by_date, reverse=True)[:2]
    days = [_day(day, *by_date[day], skipped) for day in newest]
    return DataSeries(days[0] if days else None, days[1] if days[1:] else None, tuple(skipped))


def clean(text: str) -> str:
    """Make any text a legal label value: no lone surrogates, at most LABEL_LENGTH characters."""
    if len(text) <= LABEL_LENGTH and text.isascii():
        return text
    text = _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…"


_shared = lru_cache(maxsize=1024)(clean)
"""The same few names come with every answer: each is kept once, not once for every campaign."""


def _date(entry: object) -> date:
    """Return the day as it is written, in whatever zone Braze means; a time of day behind it is ignored."""
    if not isinstance(entry, dict):
        raise PayloadError(f"expected an object, got {_kind(entry)}")
    time = entry.get("time")
    if not isinstance(time, str) or not _DATE.match(time):
        raise PayloadError(f"expected `time` to be a date, got {_kind(time)}")
    try:
        return date.fromisoformat(time[:10])
    except ValueError:
        raise PayloadError("expected `time` to be a date of the calendar") from None


def _day(day: date, path: str, entry: dict[str, object], skipped: list[str]) -> Day:
    variations: dict[tuple[str, str, str], Variation] = {}
    for variation in _named(_variations(f"{path}.messages", entry.get("messages"), skipped)):
        key = (variation.channel, variation.id, variation.name)
        same = variations.get(key)
        variations[key] = variation if same is None else _sum(same, variation)
    return Day(day, _finite(_statistics(entry)), tuple(map(_with_finite, variations.values())))


def _variations(path: str, messages: object, skipped: list[str]) -> Iterator[Variation]:
    """Yield each readable row; its id and name are both empty where Braze sends neither."""
    if messages is None:
        return
    if not isinstance(messages, dict):
        skipped.append(f"{path}: expected an object, got {_kind(messages)}")
        return
    for channel, rows in messages.items():
        name, where = clean(channel), f"{path}[{channel[:40]!r}]"
        if not isinstance(rows, list):
            skipped.append(f"{where}: expected an array, got {_kind(rows)}")
            continue
        for place, row in enumerate(rows):
            try:
                yield _variation(name, row)
            except PayloadError as error:
                skipped.append(f"{where}[{place}]: {error}")


def _variation(channel: str, row: object) -> Variation:
    if not isinstance(row, dict):
        raise PayloadError(f"expected an object, got {_kind(row)}")
    return Variation(channel, _text(row, "variation_api_id"), _text(row, "variation_name"), _statistics(row))


def _text(row: Mapping[str, object], field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PayloadError(f"expected `{field}` to be text, got {_kind(value)}")
    return clean(value)


def _named(variations: Iterator[Variation]) -> list[Variation]:
    """Give rows that have neither id nor name a number in their channel, one that no real name uses."""
    rows = list(variations)
    if all(row.id or row.name for row in rows):
        return rows
    taken = {(row.channel, row.name) for row in rows}
    numbers: defaultdict[str, count[int]] = defaultdict(lambda: count(1))
    for place, row in enumerate(rows):
        if not row.id and not row.name:
            free = (f"unnamed {number}" for number in numbers[row.channel])
            rows[place] = row._replace(name=next(name for name in free if (row.channel, name) not in taken))
    return rows


def _statistics(fields: Mapping[str, object]) -> dict[str, float]:
    """Return every field that is a number, by its cleaned name; what is not a number is absent, not zero.

    NaN, infinities and integers beyond every float are no numbers; neither are booleans, which Python takes for such.
    """
    statistics: dict[str, float] = {}
    for field, value in fields.items():
        if (type(value) is int or type(value) is float) and -_LARGEST <= value <= _LARGEST:
            name = _shared(field) if len(field) <= LABEL_LENGTH else clean(field)
            statistics[name] = statistics.get(name, 0.0) + value
    return statistics


def _sum(one: Variation, other: Variation) -> Variation:
    statistics = dict(one.statistics)
    for name, number in other.statistics.items():
        statistics[name] = statistics.get(name, 0.0) + number
    return one._replace(statistics=statistics)


def _with_finite(variation: Variation) -> Variation:
    finite = _finite(variation.statistics)
    return variation if finite is variation.statistics else variation._replace(statistics=finite)


def _finite(statistics: dict[str, float]) -> dict[str, float]:
    """Leave out sums that no float can hold."""
    if all(map(math.isfinite, statistics.values())):
        return statistics
    return {name: number for name, number in statistics.items() if math.isfinite(number)}


def _kind(value: object) -> str:
    """Name a JSON value by its type alone: its text may be anything, a secret too."""
    names = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")
