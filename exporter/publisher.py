"""From a campaign's state to the exposition: its rows, of these the ones within the series limits, their bytes."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING

from exporter.exposition import Exposition
from exporter.metrics import LATEST_DAY, PREVIOUS_DAY, status_rows
from exporter.polled import POLLED
from exporter.series_limits import SeriesLimits, samples_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporter.config import Limits
    from exporter.polled import Polled
    from exporter.state import CampaignKey, CampaignState

logger = logging.getLogger(__name__)


class Publisher:
    """Publishes the states of campaigns in an exposition of its own, for one thread at a time."""

    def __init__(self, limits: Limits, polled: Sequence[Polled] = POLLED) -> None:
        self.polled = polled
        self.exposition = Exposition(
            chain(*(one.families for one in polled), chain.from_iterable(one.status for one in polled))
        )
        self._by_api = {one.api.name: one for one in polled}
        self._limits = SeriesLimits(limits)
        self._dropped: dict[CampaignKey, int] = {}
        self._published: dict[CampaignKey, CampaignState] = {}

    def publish(self, state: CampaignState) -> None:
        """Publish a campaign's state in place of the one before, which stays if this raises."""
        polled = self._by_api[state.api]
        rows = polled.rows(state)
        # After failures a campaign without numbers stays admitted; one without days in Braze does not.
        admitted = self._limits.admit(state.key, rows) if rows or state.up else []
        series = samples_in(admitted)
        dropped = samples_in(rows) - series + state.dropped
        if dropped != self._dropped.get(state.key, 0):
            _log_dropped(state, dropped)
        unchanged = set() if dropped else self._unchanged_days(state)
        changed = (
            row for row in (*admitted, *status_rows(state, dropped, polled.status)) if row.key[0] not in unchanged
        )
        self.exposition.replace(state.key, changed, series=series, unchanged=unchanged)
        self._dropped[state.key] = dropped
        self._published[state.key] = state

    def withdraw(self, campaign: CampaignKey) -> None:
        """Remove a campaign from the exposition and from the series limits."""
        self._limits.drop(campaign)
        self._dropped.pop(campaign, None)
        self._published.pop(campaign, None)
        self.exposition.remove(campaign)

    def settle(self, states: Sequence[CampaignState]) -> None:
        """Admit all series again if any was dropped, in the order of the states instead of that of the responses."""
        if any(self._dropped.values()):
            self._limits = SeriesLimits(self._limits.limits)
            for state in states:
                self.publish(state)
        self.exposition.invalidate()

    def limit(self, limits: Limits, states: Sequence[CampaignState]) -> None:
        """Apply other limits: the last states lose series first, and the first get those that are left first."""
        self._limits.limits = limits
        for state in reversed(states):
            if self._limits.exceeded(state.key):
                self.publish(state)
        for state in states:
            if self._dropped[state.key]:
                self.publish(state)
        self.exposition.invalidate()

    def _unchanged_days(self, state: CampaignState) -> set[str]:
        """Return the days that are published already: a day that is over seldom changes."""
        published = self._published.get(state.key)
        if published is None or self._dropped[state.key]:
            return set()
        if (published.campaign_name, published.timezone) != (state.campaign_name, state.timezone):
            return set()
        days = ((LATEST_DAY, state.latest, published.latest), (PREVIOUS_DAY, state.previous, published.previous))
        return {name for name, day, day_before in days if day is day_before}


def _log_dropped(state: CampaignState, dropped: int) -> None:
    where = {"workspace": state.workspace, "campaign_id": state.campaign_id}
    if dropped:
        logger.warning(
            "samples are dropped: they are over limits.series or limits.series_per_campaign",
            extra={**where, "dropped": dropped},
        )
    else:
        logger.info("all samples are shown again", extra=where)
