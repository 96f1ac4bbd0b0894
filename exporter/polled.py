"""APIs that are polled, each as one value: its request, its parser, its rows and its families. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from exporter.braze.api import Api, RateLimit
from exporter.braze.data_series import parse_data_series
from exporter.metrics import CAMPAIGN_STATUS, DAY_FAMILIES, OWN_FAMILIES, day_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporter.braze.data_series import DataSeries
    from exporter.metrics import Family, Row, StatusFamilies
    from exporter.state import CampaignState


@dataclass(frozen=True, slots=True)
class Polled:
    """One API that is polled for every campaign: rows and families of its numbers, and families about its polls."""

    api: Api[DataSeries]
    rows: Callable[[CampaignState], tuple[Row, ...]]
    families: tuple[Family, ...]
    status: StatusFamilies


DATA_SERIES = Polled(
    Api(
        name="data_series",
        rate_limit=RateLimit("data_series", lambda workspace: workspace.requests_per_minute),
        target=lambda campaign_id, poll: f"/campaigns/data_series?campaign_id={campaign_id}&length={poll.days}",
        parse=parse_data_series,
    ),
    rows=day_rows,
    families=DAY_FAMILIES,
    status=CAMPAIGN_STATUS,
)

POLLED = (DATA_SERIES,)
"""Everything that is polled. A further API is a further record here."""

FAMILIES: tuple[Family, ...] = (
    *chain.from_iterable(polled.families for polled in POLLED),
    *chain.from_iterable(polled.status for polled in POLLED),
    *OWN_FAMILIES,
)
