"""Samples to the bytes of Prometheus' text format and of OpenMetrics, and the ready pieces that a scrape joins.

The sample lines of text 0.0.4 and of OpenMetrics 1.0.0 are the same for our names; the lines about a family differ.
What is rendered equals byte for byte what prometheus_client renders of the same samples.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect
from enum import Enum
from typing import TYPE_CHECKING

from exporter.limits import Places, samples_in
from exporter.metrics import FAMILIES, day_rows, status_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from exporter.config import Limits
    from exporter.metrics import Family, Labels, Row
    from exporter.poller import CampaignKey, CampaignState

logger = logging.getLogger(__name__)

_FIRST_WITH_EXPONENT = 1e6

Pieces = dict[str, bytes]
"""Sample lines by the name of their family."""


class Format(Enum):
    """An exposition format; its value is the Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Exposition:
    """The pieces of every campaign, family by family, ready for the next scrape.

    Publishing is for one thread at a time; scrapes may come from any. One poll replaces one campaign's pieces at once:
    a scrape sees all of an answer or nothing of it.
    """

    def __init__(self, limits: Limits) -> None:
        self._places = Places(limits)
        self._dropped: dict[CampaignKey, int] = {}
        self._shown: dict[CampaignKey, int] = {}
        self._lock = threading.Lock()
        self._tables: dict[str, dict[CampaignKey, bytes]] = {family.name: {} for family in FAMILIES}

    @property
    def series(self) -> int:
        """How many samples of Braze's numbers are shown."""
        with self._lock:
            return sum(self._shown.values())

    def shown(self, campaign: CampaignKey) -> int:
        """Return how many samples of Braze's numbers are shown of one campaign."""
        return self._shown.get(campaign, 0)

    def publish(self, state: CampaignState) -> None:
        """Put what is known of a campaign now in the place of what was; whatever raises, the old is kept."""
        rows = day_rows(state)
        # A campaign without numbers because of failures keeps its places; one that Braze says has none gives them up.
        admitted = self._places.admit(state.key, rows) if rows or state.up else []
        shown = samples_in(admitted)
        dropped = samples_in(rows) - shown
        if dropped != self._dropped.get(state.key, 0):
            self._log_dropped(state, dropped)
        pieces = render((*admitted, *status_rows(state, dropped)))
        with self._lock:
            self._dropped[state.key] = dropped
            self._shown[state.key] = shown
            self._replace(state.key, pieces)

    def withdraw(self, campaign: CampaignKey) -> None:
        """Take everything of a campaign away and free its places."""
        self._places.release(campaign)
        with self._lock:
            self._dropped.pop(campaign, None)
            self._shown.pop(campaign, None)
            self._replace(campaign, {})

    def settle(self, states: Sequence[CampaignState]) -> None:
        """Give the places out anew, in the order of the states and not of the answers, if any was refused."""
        if not any(self._dropped.values()):
            return
        self._places = Places(self._places.limits)
        for state in states:
            self.publish(state)

    def limit(self, limits: Limits, states: Sequence[CampaignState]) -> None:
        """Let these limits hold: the last of the states make room where it is needed, the first get what is left."""
        self._places.limits = limits
        for state in reversed(states):
            if self._places.crowded(state.key):
                self.publish(state)
        for state in states:
            if self._dropped[state.key]:
                self.publish(state)

    def parts(self, form: Format, own: Mapping[str, bytes]) -> list[bytes]:
        """Return what a scrape sends, to be joined: the campaigns' pieces and the exporter's `own`.

        OpenMetrics' final `# EOF` is not part of it: what prometheus_client renders follows, and ends so.
        """
        with self._lock:
            tables = [(name, list(table.values())) for name, table in self._tables.items()]
        parts: list[bytes] = []
        for name, pieces in tables:
            if name in own:
                pieces.append(own[name])
            if pieces:
                parts.append(_HEADS[form][name])
                parts.extend(pieces)
        return parts

    def _replace(self, campaign: CampaignKey, pieces: Mapping[str, bytes]) -> None:
        for name, table in self._tables.items():
            if name in pieces:
                table[campaign] = pieces[name]
            else:
                table.pop(campaign, None)

    def _log_dropped(self, state: CampaignState, dropped: int) -> None:
        where = {"workspace": state.workspace, "campaign_id": state.campaign_id}
        if dropped:
            logger.warning(
                "samples are dropped: limits.series or limits.series_per_campaign leaves no room for them",
                extra={**where, "dropped": dropped},
            )
        else:
            logger.info("all samples are shown again", extra=where)


def render(rows: Iterable[Row]) -> Pieces:
    """Return the sample lines of rows by family. Values are finite."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        labels = [f'{name}="{_escape(value)}"' for name, value in row.labels]
        plain = "{" + ",".join(labels) + "}" if labels else ""
        around: dict[str, tuple[str, str]] = {}
        for family, label, value, suffix in row.samples:
            text = plain
            if label is not None:
                name, label_value = label
                if name not in around:
                    around[name] = _around(name, row.labels, labels)
                text = _escape(label_value).join(around[name])
            lines.setdefault(family, []).append(f"{family}{suffix}{text} {value_text(value)}\n")
    return {family: "".join(texts).encode() for family, texts in lines.items()}


def value_text(value: float) -> str:
    """Return a finite number as Go prints it, which is how prometheus_client does: 1e+06 and up with an exponent."""
    text = repr(float(value))
    if value < _FIRST_WITH_EXPONENT or "e" in text:
        return text
    whole, _, fraction = text.partition(".")
    digits = f"{whole}{fraction}".rstrip("0")
    point = "." if len(digits) > 1 else ""
    return f"{digits[0]}{point}{digits[1:]}e+{len(whole) - 1:02d}"


def head(family: Family, form: Format) -> bytes:
    """Return the HELP and TYPE lines of a family."""
    name, kind = family.name, family.type
    if form is Format.TEXT and kind == "info":
        kind = "gauge"
    if form is Format.OPENMETRICS:
        name = name.removesuffix({"counter": "_total", "info": "_info"}.get(kind, ""))
    return f"# HELP {name} {family.help}\n# TYPE {name} {kind}\n".encode()


def _around(name: str, labels: Labels, texts: list[str]) -> tuple[str, str]:
    """Return the label text before and after the value of one more label, put where the order of names wants it."""
    place = bisect([other for other, _ in labels], name)
    before, after = texts[:place], texts[place:]
    return "{" + ",".join([*before, f'{name}="']), ",".join(['"', *after]) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


_HEADS = {form: {family.name: head(family, form) for family in FAMILIES} for form in Format}
