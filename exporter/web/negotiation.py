"""Content negotiation: the format and the encoding of /metrics by Accept and Accept-Encoding. Pure.

https://prometheus.io/docs/instrumenting/content_negotiation/ describes what Prometheus sends and expects. Our
names are plain: every escaping scheme but `dots` leaves them as they are, and text 1.0.0 equals text 0.0.4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from exporter.exposition import Format

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_ESCAPED_ALIKE = {name: name for name in ("allow-utf-8", "underscores", "values")}
_ESCAPINGS = {**_ESCAPED_ALIKE, "dots": "underscores"}  # dots would double each of our underscores
_OPENMETRICS, _TEXT = "application/openmetrics-text", "text/plain"
_REMEMBERED = 64  # cached headers: a client sends the same one with each scrape
_LONGEST = 4096  # characters of a header that are parsed; Prometheus sends some hundred
_QUALITY = re.compile(r"0(?:\.[0-9]*)?|1(?:\.0*)?|\.[0-9]+")
# An unclosed quotation mark quotes the rest of the header.
_QUOTED = r'"(?:[^"\\]|\\.)*"?'
_ELEMENT = re.compile(rf'(?:[^,"]|{_QUOTED})+')
_PARAMETER = re.compile(rf'(?:[^;"]|{_QUOTED})+')


@dataclass(frozen=True, slots=True)
class Representation:
    """Representation of the metrics: their exposition format and the Content-Type."""

    form: Format
    content_type: str


@dataclass(frozen=True, slots=True)
class _Range:
    """One element of a header: its value in lower case, its parameters, and its q-value from 0 to 1."""

    value: str
    parameters: dict[str, str]
    quality: float


@lru_cache(maxsize=_REMEMBERED)
def negotiate(accept: str) -> Representation:
    """Choose the representation by an Accept header; one that matches nothing gets text 0.0.4.

    OpenMetrics is chosen if it is named with at least the q-value of text, text 1.0.0 if it is named with a higher
    q-value than all others. The Content-Type repeats the escaping scheme of the header.
    """
    ranges = list(_ranges(accept))
    chosen, version = Format.TEXT, "0.0.4"
    best, wanted = 0.0, None
    for form, offered, candidates in (
        (Format.OPENMETRICS, "1.0.0", _named(ranges, _OPENMETRICS, "1.0.0", bare=True)),
        (Format.TEXT, "0.0.4", _text(ranges)),
        (Format.TEXT, "1.0.0", _named(ranges, _TEXT, "1.0.0", bare=False)),
    ):
        match = max(candidates, key=lambda each: each.quality, default=None)
        if match is not None and match.quality > best:
            chosen, version, best, wanted = form, offered, match.quality, match
    content_type = chosen.value.replace("version=0.0.4", f"version={version}")
    escaping = _ESCAPINGS.get(wanted.parameters.get("escaping", "").lower()) if wanted else None
    return Representation(chosen, f"{content_type}; escaping={escaping}" if escaping else content_type)


@lru_cache(maxsize=_REMEMBERED)
def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding header allows gzip, by its name or by a star."""
    ranges = list(_ranges(accept_encoding))
    for coding in ("gzip", "x-gzip", "*"):
        qualities = [each.quality for each in ranges if each.value == coding]
        if qualities:
            return max(qualities) > 0
    return False


def _named(ranges: Sequence[_Range], media_type: str, version: str, *, bare: bool) -> list[_Range]:
    """Return the ranges with this version, else, if `bare`, those without one: more specific ones win."""
    named = [each for each in ranges if each.value == media_type]
    exact = [each for each in named if each.parameters.get("version") == version]
    return exact or [each for each in named if bare and "version" not in each.parameters]


def _text(ranges: Sequence[_Range]) -> list[_Range]:
    """Return the most specific ranges that match text 0.0.4."""
    named = _named(ranges, _TEXT, "0.0.4", bare=True)
    stars = ([each for each in ranges if each.value == star] for star in ("text/*", "*/*"))
    return named or next(filter(None, stars), [])


def _ranges(header: str) -> Iterator[_Range]:
    for element in _ELEMENT.findall(header[:_LONGEST]):
        value, *parameters = _PARAMETER.findall(element) or [""]
        pairs = dict(_pairs(parameters))
        yield _Range(value.strip().lower(), pairs, _quality(pairs.get("q", "1")))


def _pairs(parameters: Iterable[str]) -> Iterator[tuple[str, str]]:
    for parameter in parameters:
        name, _, text = parameter.partition("=")
        text = text.strip()
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text.removeprefix('"').removesuffix('"'))
        yield name.strip().lower(), text


def _quality(text: str) -> float:
    return float(text) if _QUALITY.fullmatch(text) else 0.0
