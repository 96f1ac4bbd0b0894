"""Which rows are served when `limits` leave no room for all of them. Pure but for what it remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from exporter.config import Limits
    from exporter.metrics import Row


class Places:
    """The places of rows, by campaign: what has one keeps it, and a newcomer gets one while there is room.

    A row is admitted whole or not at all. A campaign's places stay its own until its next rows come or it is released,
    so that an outage in between changes nothing about who is served. Other `limits` hold from the next rows on.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._held: dict[Hashable, set[tuple[str, ...]]] = {}
        self._sizes: dict[Hashable, int] = {}
        self._total = 0

    def admit(self, campaign: Hashable, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that have a place now, in their order; the campaign's other places become free."""
        held = self._held.get(campaign, set())
        room = min(self.limits.series_per_campaign, self.limits.series - self._total + self._sizes.get(campaign, 0))
        size = samples_in(rows)
        if size > room:
            rows = _first_that_fit(rows, held, room)
            size = samples_in(rows)
        self.release(campaign)
        self._held[campaign] = {row.place for row in rows}
        self._sizes[campaign] = size
        self._total += size
        return list(rows)

    def crowded(self, campaign: Hashable) -> bool:
        """Tell whether the limits no longer allow what is admitted of a campaign, or of all together."""
        return self._total > self.limits.series or self._sizes.get(campaign, 0) > self.limits.series_per_campaign

    def release(self, campaign: Hashable) -> None:
        """Free all places of a campaign."""
        self._held.pop(campaign, None)
        self._total -= self._sizes.pop(campaign, 0)


def samples_in(rows: Iterable[Row]) -> int:
    """Return how many samples the rows have together."""
    return sum(len(row.samples) for row in rows)


def _first_that_fit(rows: Sequence[Row], held: set[tuple[str, ...]], room: int) -> list[Row]:
    """Choose rows until the room is used up: those that had a place before newcomers, each in their order."""
    chosen: set[tuple[str, ...]] = set()
    for row in sorted(rows, key=lambda row: row.place not in held):
        if len(row.samples) <= room:
            room -= len(row.samples)
            chosen.add(row.place)
    return [row for row in rows if row.place in chosen]
