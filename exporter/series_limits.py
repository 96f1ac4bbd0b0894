"""Series limits: the rows that are served when `limits` do not allow all of them. Pure but for what it remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from exporter.config import Limits
    from exporter.metrics import Row


class SeriesLimits:
    """Rows that were admitted, by campaign: they stay admitted, and new ones are while the limits allow them.

    A row is admitted whole or not at all. A campaign's rows stay admitted until its next rows come or it is dropped, so
    that an outage in between does not change which rows are served. Other `limits` apply from the next rows on.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._admitted: dict[Hashable, set[tuple[str, ...]]] = {}
        self._sizes: dict[Hashable, int] = {}
        self._total = 0

    def admit(self, campaign: Hashable, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that are admitted now, in their order, in place of the campaign's rows before."""
        before = self._admitted.get(campaign, set())
        left = min(self.limits.series_per_campaign, self.limits.series - self._total + self._sizes.get(campaign, 0))
        size = samples_in(rows)
        if size > left:
            rows = _first_within(rows, before, left)
            size = samples_in(rows)
        self.drop(campaign)
        self._admitted[campaign] = {row.key for row in rows}
        self._sizes[campaign] = size
        self._total += size
        return list(rows)

    def exceeded(self, campaign: Hashable) -> bool:
        """Return whether the admitted rows of a campaign, or of all together, are over the limits."""
        return self._total > self.limits.series or self._sizes.get(campaign, 0) > self.limits.series_per_campaign

    def drop(self, campaign: Hashable) -> None:
        """Forget all rows of a campaign."""
        self._admitted.pop(campaign, None)
        self._total -= self._sizes.pop(campaign, 0)


def samples_in(rows: Iterable[Row]) -> int:
    """Return the number of samples of all rows together."""
    return sum(len(row.samples) for row in rows)


def _first_within(rows: Sequence[Row], before: set[tuple[str, ...]], left: int) -> list[Row]:
    """Choose rows until no sample is left: those that were admitted before come first, each in their order."""
    chosen: set[tuple[str, ...]] = set()
    for row in sorted(rows, key=lambda row: row.key not in before):
        if len(row.samples) <= left:
            left -= len(row.samples)
            chosen.add(row.key)
    return [row for row in rows if row.key in chosen]
