"""Samples to the bytes of Prometheus' text format and of OpenMetrics, and the ready pieces that a scrape joins.

The sample lines of text 0.0.4 and of OpenMetrics 1.0.0 are the same for our names; the lines about a family differ.
What is rendered equals byte for byte what prometheus_client renders of the same samples.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect
from collections import defaultdict, deque
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from exporter.metrics import CAMPAIGN_FAMILIES, DAYS, FAMILIES, LATEST, PREVIOUS, day_rows, status_rows
from exporter.series_limits import Places, samples_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from exporter.config import Limits
    from exporter.metrics import Family, Labels, Row, Series
    from exporter.state import CampaignKey, CampaignState

logger = logging.getLogger(__name__)

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
    tables: deque[tuple[str, list[bytes]]]

    def pieces(self, form: Format) -> Iterator[bytes]:
        """Yield what is shown of the campaigns, to be joined, with the lines about each family before its samples."""
        for name, pieces in self.tables:
            yield HEADS[form][name]
            yield from pieces

    def drain(self) -> Iterator[tuple[str, bytes]]:
        """Yield each family with its samples, and let go of its pieces: by then others have taken their place."""
        while self.tables:
            name, pieces = self.tables.popleft()
            yield name, b"".join(pieces)


class Exposition:
    """The pieces of every campaign, family by family, ready for the next scrape.

    Publishing is for one thread at a time; snapshots may be taken in any. One poll replaces one campaign's pieces at
    once: a snapshot has all of an answer or nothing of it.

    `series` is how many samples of Braze's numbers are shown. `version` grows with every change, and a snapshot of a
    version below `oldest_valid` shows what must not be shown any more, or lacks what must be.
    """

    def __init__(self, limits: Limits) -> None:
        self.series = 0
        self.version = 0
        self.oldest_valid = 0
        self._places = Places(limits)
        self._dropped: dict[CampaignKey, int] = {}
        self._published: dict[CampaignKey, CampaignState] = {}
        self._shown: dict[CampaignKey, int] = {}
        self._families: dict[CampaignKey, tuple[str, ...]] = {}
        self._lock = threading.Lock()  # a snapshot has all of what replaces a campaign's pieces, or nothing
        self._tables: dict[str, dict[CampaignKey, bytes]] = {family.name: {} for family in CAMPAIGN_FAMILIES}

    def shown(self, campaign: CampaignKey) -> int:
        """Return how many samples of Braze's numbers are shown of one campaign."""
        return self._shown.get(campaign, 0)

    def publish(self, state: CampaignState) -> None:
        """Put what is known of a campaign now in the place of what was; whatever raises, the old is kept."""
        rows = day_rows(state)
        # A campaign without numbers because of failures keeps its places; one that Braze says has none gives them up.
        admitted = self._places.admit(state.key, rows) if rows or state.up else []
        shown = samples_in(admitted)
        dropped = samples_in(rows) - shown + state.dropped
        if dropped != self._dropped.get(state.key, 0):
            self._log_dropped(state, dropped)
        standing = set() if dropped else self._standing(state)
        pieces = render(row for row in (*admitted, *status_rows(state, dropped)) if row.place[0] not in standing)
        kept = [name for name in self._families.get(state.key, ()) if DAYS.get(name) in standing]
        with self._lock:
            self._dropped[state.key] = dropped
            self._published[state.key] = state
            self._replace(state.key, pieces, shown, kept)

    def withdraw(self, campaign: CampaignKey) -> None:
        """Take everything of a campaign away and free its places."""
        self._places.release(campaign)
        with self._lock:
            self._dropped.pop(campaign, None)
            self._published.pop(campaign, None)
            self._replace(campaign, {}, 0)
            self.oldest_valid = self.version

    def settle(self, states: Sequence[CampaignState]) -> None:
        """Give the places out anew, in the order of the states and not of the answers, if any was refused."""
        if any(self._dropped.values()):
            self._places = Places(self._places.limits)
            for state in states:
                self.publish(state)
        self.oldest_valid = self.version

    def limit(self, limits: Limits, states: Sequence[CampaignState]) -> None:
        """Let these limits hold: the last of the states make room where it is needed, the first get what is left."""
        self._places.limits = limits
        for state in reversed(states):
            if self._places.crowded(state.key):
                self.publish(state)
        for state in states:
            if self._dropped[state.key]:
                self.publish(state)
        self.oldest_valid = self.version

    def snapshot(self) -> Snapshot:
        """Return what is shown of all campaigns now."""
        with self._lock:
            tables = ((name, list(table.values())) for name, table in self._tables.items() if table)
            return Snapshot(self.version, deque(tables))

    def _standing(self, state: CampaignState) -> set[str]:
        """Return which of the two days are shown already, as seldom anything changes of a day that is over."""
        shown = self._published.get(state.key)
        if shown is None or self._dropped[state.key]:
            return set()
        if (shown.campaign_name, shown.timezone) != (state.campaign_name, state.timezone):
            return set()
        days = ((LATEST, state.latest, shown.latest), (PREVIOUS, state.previous, shown.previous))
        return {prefix for prefix, day, shown_day in days if day is shown_day}

    def _replace(
        self, campaign: CampaignKey, pieces: Mapping[str, bytes], shown: int, kept: Sequence[str] = ()
    ) -> None:
        """Put pieces in the place of all that a campaign has but what is kept."""
        families = dict.fromkeys((*kept, *pieces))
        for name in self._families.pop(campaign, ()):
            if name not in families:
                del self._tables[name][campaign]
        for name, piece in pieces.items():
            self._tables[name][campaign] = piece
        if families:
            self._families[campaign] = tuple(families)
        self.series += shown - self._shown.pop(campaign, 0)
        if shown:
            self._shown[campaign] = shown
        self.version += 1

    def _log_dropped(self, state: CampaignState, dropped: int) -> None:
        where = {"workspace": state.workspace, "campaign_id": state.campaign_id}
        if dropped:
            logger.warning(
                "samples are dropped: limits.series or limits.series_per_campaign leaves no room for them",
                extra={**where, "dropped": dropped},
            )
        else:
            logger.info("all samples are shown again", extra=where)


def written(rows: Iterable[Row], form: Format) -> bytes:
    """Return rows that are written often, such as the exporter's own, as whole families in the order of the families.

    It is what `render` makes of them; all of a line but its number is remembered.
    """
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        for series, value in row.samples:
            lines[series[0]].append(f"{_before_value(series, row.labels)}{value_text(value)}\n")
    heads = HEADS[form]
    return b"".join(heads[name] + "".join(lines[name]).encode() for name in sorted(lines, key=_PLACES.__getitem__))


def written_metrics(metrics: Iterable[Metric], form: Format) -> bytes:
    """Return what collectors of prometheus_client collect: gauges and counters, with values that are finite."""
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


def _family_head(family: Family, form: Format) -> bytes:
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
    """Return what stands before the number in a sample's line."""
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


HEADS = {form: {family.name: _family_head(family, form) for family in FAMILIES} for form in Format}
_PLACES = {family.name: place for place, family in enumerate(FAMILIES)}
