"""Parser of responses of `GET /campaigns/data_series`: numbers by day and variation. Pure.

Memory and time are linear in the size of the response, and the number of samples that are kept is bounded.
"""

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

from exporter.braze.errors import PayloadError
from exporter.catalogue import is_statistic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LABEL_BYTES = 1000
"""Maximum number of bytes of a label value in UTF-8; a longer one is cut and ends in an ellipsis.

Managed Prometheus services refuse a whole scrape for one value of more than 1,023.
"""

EXAMPLES = 10
"""Maximum number of skipped parts, and of fields that are not numbers, that are named; the others are counted."""

SAMPLES = 100_000
"""Default of the maximum number of numbers of a response; a row without numbers counts as one."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NUMBER = re.compile(r"[-+]?[\d.,_]*\d[\d.,_]*(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_LONGEST_NUMBER = 40
_NO_STATISTICS = {"time", "messages", "variation_api_id", "variation_name"}
_LARGEST = sys.float_info.max
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ELLIPSIS = "…"
_UNNAMED = "unnamed "
_NAME_SHOWN = 40


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
    """The two newest days of a response, and the parts that were left out.

    `skipped_parts` could not be read, `skipped` describes the first ones. `no_numbers` are the names of statistics that
    are not numbers, for example in quotes. `dropped` is the number of samples over the limit.
    """

    latest: Day | None
    previous: Day | None
    skipped: tuple[str, ...] = ()
    skipped_parts: int = 0
    no_numbers: tuple[str, ...] = ()
    dropped: int = 0


def parse_data_series(response: object, samples: int = SAMPLES) -> DataSeries:
    """Return the newest day of a decoded response and the one before it, with at most `samples` samples of both.

    A part that has not the documented form (a day, a channel, a row) spoils only itself and is counted as skipped.
    A response without days is a series without days.

    Raises:
        PayloadError: `message` is a text other than success; or there is no `data` array, or it has entries and none
            of them is a day.

    """
    entries = response.get("data") if isinstance(response, dict) else None
    message = response.get("message") if isinstance(response, dict) else None
    if isinstance(message, str) and message.strip().lower() != "success":
        raise PayloadError("expected the `message` success, got another text")
    if not isinstance(entries, list):
        raise PayloadError(f"expected an object with an array `data`, got {_kind(response)} without one")

    notes = _Notes(samples)
    newest: dict[date, tuple[int, dict[str, object]]] = {}
    for place, entry in enumerate(entries):
        if (day := _date(place, entry, notes)) is not None:
            newest[day] = (place, entry)
            if len(newest) > 2:  # noqa: PLR2004 - latest and previous
                del newest[min(newest)]
    if entries and not newest:
        raise PayloadError(f"none of the {len(entries)} entries of `data` is a day; {notes.skipped[0]}")

    days = [_day(day, *newest[day], notes) for day in sorted(newest, reverse=True)]
    return DataSeries(
        days[0] if days else None,
        days[1] if days[1:] else None,
        tuple(notes.skipped),
        notes.skipped_parts,
        tuple(notes.no_numbers),
        notes.dropped,
    )


def clean(text: str) -> str:
    """Make any text a legal label value: no lone surrogates, at most LABEL_BYTES bytes of UTF-8."""
    if len(text) <= LABEL_BYTES and text.isascii():
        return text
    encoded = _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text[: LABEL_BYTES + 1]).encode()
    if len(encoded) <= LABEL_BYTES:
        return encoded.decode()
    return encoded[: LABEL_BYTES - len(_ELLIPSIS.encode())].decode(errors="ignore") + _ELLIPSIS


_shared = lru_cache(maxsize=1024)(clean)
"""Cache of names, which are the same in every response: each is kept once, not once for every campaign."""


class _Notes:
    """Parts of a response that are left out, and the number of samples that may still be kept."""

    __slots__ = ("dropped", "left", "no_numbers", "skipped", "skipped_parts")

    def __init__(self, left: int) -> None:
        self.left = left
        self.dropped = 0
        self.skipped: list[str] = []
        self.skipped_parts = 0
        self.no_numbers: list[str] = []

    def skip(self, template: str, *parts: object) -> None:
        """Count a part that cannot be read; only the first ones are described."""
        self.skipped_parts += 1
        if len(self.skipped) < EXAMPLES:
            self.skipped.append(template.format(*parts))

    def no_number(self, field: str, value: object) -> None:
        """Record a statistic that is not a number; another field only if its text looks like a number."""
        if len(self.no_numbers) < EXAMPLES and (is_statistic(field) or _looks_like_number(value)):
            name = clean(field[:_NAME_SHOWN])
            if name not in self.no_numbers:
                self.no_numbers.append(name)

    def admit(self, statistics: dict[str, float], before: int = 0) -> bool:
        """Return whether the limit allows them in place of the size before; otherwise count them as dropped."""
        left = self.left + before - _size(statistics)
        if left < 0:
            self.left += before
            self.dropped += len(statistics)
            return False
        self.left = left
        return True


def _size(statistics: dict[str, float]) -> int:
    """Return a row's share of the limit: without numbers it takes memory, too."""
    return max(len(statistics), 1)


def _date(place: int, entry: object, notes: _Notes) -> date | None:
    """Return the day as it is written, in whatever zone Braze means; a time of day behind it is ignored."""
    if not isinstance(entry, dict):
        notes.skip("data[{}]: expected an object, got {}", place, _kind(entry))
        return None
    time = entry.get("time")
    if not isinstance(time, str) or not _DATE.match(time):
        notes.skip("data[{}]: expected `time` to be a date, got {}", place, _kind(time))
        return None
    try:
        return date.fromisoformat(time[:10])
    except ValueError:
        notes.skip("data[{}]: expected `time` to be a date of the calendar", place)
        return None


def _day(day: date, place: int, entry: dict[str, object], notes: _Notes) -> Day:
    """Read a day. After the first row over the limit no other is added: a part of a sum would be a wrong number."""
    own = _statistics(entry, notes)
    if not notes.admit(own):
        own = {}
    variations: dict[tuple[str, str, str], Variation] = {}
    full = False
    for channel, variation_id, name, row in _named_rows(place, entry.get("messages"), notes):
        key = (channel, variation_id, name)
        statistics = _statistics(row, notes)
        if (same := variations.get(key)) is not None:
            before = _size(same.statistics)
            _add(same.statistics, statistics)
            if not notes.admit(same.statistics, before):
                del variations[key]
                full = True
        elif full:
            notes.dropped += len(statistics)
        elif notes.admit(statistics):
            variations[key] = Variation(channel, variation_id, name, statistics)
        else:
            full = True
    return Day(day, _finite(own), tuple(map(_with_finite, variations.values())))


_Row = tuple[str, str, str, dict[str, object]]
"""A row of a channel: the channel, the variation's id and name (empty where Braze sends none), and its fields."""


def _named_rows(place: int, messages: object, notes: _Notes) -> Iterator[_Row]:
    """Yield each readable row; those without id and name get a number in their channel that no real name uses."""
    taken: set[tuple[str, str]] | None = None
    numbers: defaultdict[str, count[int]] = defaultdict(lambda: count(1))
    for channel, variation_id, name, row in _rows(place, messages, notes):
        if variation_id or name:
            yield channel, variation_id, name, row
            continue
        if taken is None:
            again = _rows(place, messages, _Notes(0))
            taken = {(channel, name) for channel, _, name, _ in again if name.startswith(_UNNAMED)}
        free = (f"{_UNNAMED}{number}" for number in numbers[channel])
        yield channel, "", next(name for name in free if (channel, name) not in taken), row


def _rows(place: int, messages: object, notes: _Notes) -> Iterator[_Row]:
    """Yield each readable row, its texts cleaned."""
    if messages is None:
        return
    if not isinstance(messages, dict):
        notes.skip("data[{}].messages: expected an object, got {}", place, _kind(messages))
        return
    for channel, rows in messages.items():
        shown = channel[:_NAME_SHOWN]
        if not isinstance(rows, list):
            notes.skip("data[{}].messages[{!r}]: expected an array, got {}", place, shown, _kind(rows))
            continue
        cleaned = clean(channel)
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                notes.skip("data[{}].messages[{!r}][{}]: expected an object, got {}", place, shown, number, _kind(row))
                continue
            variation_id, name = row.get("variation_api_id"), row.get("variation_name")
            if not isinstance(variation_id, str | None):
                wrong, kind = "variation_api_id", _kind(variation_id)
            elif not isinstance(name, str | None):
                wrong, kind = "variation_name", _kind(name)
            else:
                yield cleaned, clean(variation_id or ""), clean(name or ""), row
                continue
            template = "data[{}].messages[{!r}][{}]: expected `{}` to be text, got {}"
            notes.skip(template, place, shown, number, wrong, kind)


def _statistics(fields: Mapping[str, object], notes: _Notes) -> dict[str, float]:
    """Return every field that is a number, by its cleaned name; what is not a number is absent, not zero.

    NaN, infinities and integers beyond every float are no numbers; neither are booleans, which Python takes for such.
    """
    statistics: dict[str, float] = {}
    for field, value in fields.items():
        if (type(value) is int or type(value) is float) and -_LARGEST <= value <= _LARGEST:
            name = _shared(field) if len(field) <= LABEL_BYTES else clean(field)
            statistics[name] = statistics.get(name, 0.0) + value
        elif value is not None and field not in _NO_STATISTICS:
            notes.no_number(field, value)
    return statistics


def _add(statistics: dict[str, float], others: Mapping[str, float]) -> None:
    for name, number in others.items():
        statistics[name] = statistics.get(name, 0.0) + number


def _with_finite(variation: Variation) -> Variation:
    finite = _finite(variation.statistics)
    return variation if finite is variation.statistics else variation._replace(statistics=finite)


def _finite(statistics: dict[str, float]) -> dict[str, float]:
    """Leave out sums that no float can hold."""
    if all(map(math.isfinite, statistics.values())):
        return statistics
    return {name: number for name, number in statistics.items() if math.isfinite(number)}


def _looks_like_number(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value.strip()) is not None


_KINDS = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "nothing"}


def _kind(value: object) -> str:
    """Name a JSON value by its type alone: its text may be anything, a secret too."""
    return _KINDS.get(type(value), "a number")
