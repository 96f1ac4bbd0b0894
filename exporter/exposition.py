"""Renderer of rows as Prometheus' text format and OpenMetrics, and the store of the pieces that a scrape joins.

The sample lines of text 0.0.4 and of OpenMetrics 1.0.0 are the same for our names; the lines about a family differ.
What is rendered equals byte for byte what prometheus_client renders of the same samples.
"""

from __future__ import annotations

import threading
from bisect import bisect
from collections import defaultdict, deque
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from exporter.metrics import OWN_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from exporter.metrics import Family, Labels, Row, Series
    from exporter.state import CampaignKey

_FIRST_WITH_EXPONENT = 1e6
_SERIES_REMEMBERED = 4096

Pieces = dict[str, bytes]
"""Sample lines by the name of their family."""


class Format(Enum):
    """An exposition format; its value is the Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The pieces of all campaigns at one moment, by family, in the order of the families."""

    version: int
    tables: deque[tuple[Family, list[bytes]]]

    def pieces(self, form: Format) -> Iterator[bytes]:
        """Yield the pieces to be joined, each family's after its HELP and TYPE lines."""
        for family, pieces in self.tables:
            yield head(family, form)
            yield from pieces

    def drain(self) -> Iterator[tuple[Family, bytes]]:
        """Yield each family with its samples, and free its pieces: some are outdated by then."""
        while self.tables:
            family, pieces = self.tables.popleft()
            yield family, b"".join(pieces)


class Exposition:
    """Store of the rendered pieces of every campaign, by family, for the next scrape.

    One thread at a time replaces pieces; any may take snapshots. One poll replaces all pieces of one campaign: a
    snapshot has all of a response or nothing of it.

    `series` is the number of samples of Braze's numbers. `version` grows with every change, and a snapshot of a version
    below `oldest_valid` is invalid: it has samples that were removed or lacks some that must be there.
    """

    def __init__(self, families: Iterable[Family]) -> None:
        self.series = 0
        self.version = 0
        self.oldest_valid = 0
        self._families = {family.name: family for family in families}
        self._shown: dict[CampaignKey, int] = {}
        self._names: dict[CampaignKey, tuple[str, ...]] = {}
        self._lock = threading.Lock()  # a snapshot has all of what replaces a campaign's pieces, or nothing
        self._tables: dict[str, dict[CampaignKey, bytes]] = {name: {} for name in self._families}

    def shown(self, campaign: CampaignKey) -> int:
        """Return the number of samples of Braze's numbers of one campaign."""
        return self._shown.get(campaign, 0)

    def replace(self, campaign: CampaignKey, rows: Iterable[Row], *, series: int, unchanged: Collection[str]) -> None:
        """Render rows in place of a campaign's pieces; those of the days that are `unchanged` stay as they are.

        `series` is the number of samples of Braze's numbers then. If it raises, nothing has changed.
        """
        pieces = render(rows)
        kept = [name for name in self._names.get(campaign, ()) if self._families[name].day in unchanged]
        with self._lock:
            self._replace(campaign, pieces, series, kept)

    def remove(self, campaign: CampaignKey) -> None:
        """Remove a campaign; snapshots that have it are invalid."""
        with self._lock:
            self._replace(campaign, {}, 0)
            self.oldest_valid = self.version

    def invalidate(self) -> None:
        """Declare all snapshots before this version invalid."""
        self.oldest_valid = self.version

    def snapshot(self) -> Snapshot:
        """Return the pieces of all campaigns now."""
        with self._lock:
            tables = ((self._families[name], list(table.values())) for name, table in self._tables.items() if table)
            return Snapshot(self.version, deque(tables))

    def _replace(
        self, campaign: CampaignKey, pieces: Mapping[str, bytes], shown: int, kept: Sequence[str] = ()
    ) -> None:
        names = dict.fromkeys((*kept, *pieces))
        for name in self._names.pop(campaign, ()):
            if name not in names:
                del self._tables[name][campaign]
        for name, piece in pieces.items():
            self._tables[name][campaign] = piece
        if names:
            self._names[campaign] = tuple(names)
        self.series += shown - self._shown.pop(campaign, 0)
        if shown:
            self._shown[campaign] = shown
        self.version += 1


def written(rows: Iterable[Row], form: Format, families: Sequence[Family] = OWN_FAMILIES) -> bytes:
    """Return rows as text, family by family; the text of each series is cached, as scrapes repeat it."""
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        for series, value in row.samples:
            lines[series[0]].append(f"{_before_value(series, row.labels)}{value_text(value)}\n")
    written = ((family, lines[family.name]) for family in families if family.name in lines)
    return b"".join(head(family, form) + "".join(texts).encode() for family, texts in written)


def written_metrics(metrics: Iterable[Metric], form: Format) -> bytes:
    """Return the metrics of prometheus_client's collectors as text: gauges and counters with finite values."""
    lines = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.type == "counter" and form is Format.TEXT else metric.name
        lines.append(_head(name, metric.documentation, metric.type))
        for sample in metric.samples:
            labels = tuple(sorted(sample.labels.items()))
            lines.append(f"{_before_value((sample.name, None, ''), labels)}{value_text(float(sample.value))}\n")
    return "".join(lines).encode()


def render(rows: Iterable[Row]) -> Pieces:
    """Return the sample lines of rows by family. Values are finite."""
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts = _label_texts(row.labels)
        plain = _braced(texts)
        around: dict[str, tuple[str, str]] = {}
        with_label: dict[tuple[str, str], str] = {}
        for (family, label, suffix), value in row.samples:
            if label is None:
                text = plain
            elif label in with_label:
                text = with_label[label]
            else:
                if label[0] not in around:
                    around[label[0]] = _around(row.labels, texts, label[0])
                before, after = around[label[0]]
                text = with_label[label] = f"{before}{_escape(label[1])}{after}"
            number = repr(value) if value < _FIRST_WITH_EXPONENT else value_text(value)
            lines[family].append(f"{family}{suffix}{text}{number}\n")
    return {family: "".join(texts).encode() for family, texts in lines.items()}


def value_text(value: float) -> str:
    """Return a finite float as Go prints it, which is how prometheus_client does: 1e+06 and up with an exponent."""
    text = repr(value)
    if value < _FIRST_WITH_EXPONENT or "e" in text:
        return text
    whole, _, fraction = text.partition(".")
    digits = f"{whole}{fraction}".rstrip("0")
    point = "." if len(digits) > 1 else ""
    return f"{digits[0]}{point}{digits[1:]}e+{len(whole) - 1:02d}"


@cache
def head(family: Family, form: Format) -> bytes:
    """Return the HELP and TYPE lines of a family."""
    name, kind = family.name, family.type
    if form is Format.TEXT and kind == "info":
        kind = "gauge"
    if form is Format.OPENMETRICS:
        name = name.removesuffix({"counter": "_total", "info": "_info"}.get(kind, ""))
    return _head(name, family.help, kind).encode()


@cache
def _head(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


@lru_cache(maxsize=_SERIES_REMEMBERED)
def _before_value(series: Series, labels: Labels) -> str:
    """Return the part of a sample's line before the number."""
    family, label, suffix = series
    texts = _label_texts(labels)
    if label is None:
        return f"{family}{suffix}{_braced(texts)}"
    before, after = _around(labels, texts, label[0])
    return f"{family}{suffix}{before}{_escape(label[1])}{after}"


def _braced(texts: list[str]) -> str:
    """Return the labels of a line, and the blank before its number."""
    return "{" + ",".join(texts) + "} " if texts else " "


def _around(labels: Labels, texts: list[str], name: str) -> tuple[str, str]:
    """Return the labels of a line before and after the value of one more, which the order of names puts among them."""
    place = bisect([other for other, _ in labels], name)
    return "{" + ",".join([*texts[:place], f'{name}="']), ",".join(['"', *texts[place:]]) + "} "


def _label_texts(labels: Labels) -> list[str]:
    """Return each label as a line has it; most rows have nothing to escape."""
    texts = [f'{name}="{value}"' for name, value in labels]
    together = "".join(texts)
    if "\\" in together or "\n" in together or together.count('"') > 2 * len(labels):
        return [f'{name}="{_escape(value)}"' for name, value in labels]
    return texts


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
