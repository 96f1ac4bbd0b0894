"""State of campaigns and workspaces, as values: made by the poller, read by metrics, pages and commands."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from zoneinfo import ZoneInfo

    from exporter.braze.counters import ApiStatistics
    from exporter.braze.data_series import Day
    from exporter.braze.errors import Reason

CampaignKey = tuple[str, str, str]
"""Workspace, API and campaign id."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason of a failed poll, and a sentence that is safe to show."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class CampaignState:
    """State of a campaign in one API; `up` is None before the first poll, `failure` is that of the last one.

    `dropped` is the number of samples of the last response that are not in `latest` and `previous`: far too many.
    """

    workspace: str
    api: str
    timezone: ZoneInfo
    campaign_id: str
    campaign_name: str
    interval: float
    up: bool | None = None
    last_success: float | None = None
    failure: Failure | None = None
    polls: int = 0
    failures: Mapping[Reason, int] = field(default_factory=dict)
    latest: Day | None = None
    previous: Day | None = None
    dropped: int = 0

    @property
    def key(self) -> CampaignKey:
        """Identity of the campaign, independent of its name."""
        return (self.workspace, self.api, self.campaign_id)


@dataclass(frozen=True, slots=True)
class WorkspaceState:
    """State of a workspace; `paused` is the refusal after which only probes are sent.

    `up` is None without campaigns: all of them are other shards', and nothing is polled.
    `rollover_offset` is in seconds, None until a day begins.
    """

    workspace: str
    timezone: str
    campaigns: int
    up: bool | None
    paused: Reason | None
    apis: Mapping[str, ApiStatistics]
    rollover_offset: float | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """Unix time, and a monotonic time that includes the time that the machine sleeps."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]


def system_clock() -> Clock:
    """Return the machine's clock; `monotonic` counts the time asleep where the system can."""
    try:
        time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return Clock(time.time, time.monotonic)
    return Clock(time.time, partial(time.clock_gettime, time.CLOCK_BOOTTIME))
