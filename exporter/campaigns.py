"""The states of all campaigns: recorded after each poll, published at each change, expired when they are stale."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from exporter.braze.data_series import clean
from exporter.braze.errors import UNEXPECTED, BrazeError, Reason, log_traceback
from exporter.rollover import hours_off, meaning, observe
from exporter.state import CampaignState, Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exporter.braze.client import Client
    from exporter.braze.data_series import DataSeries, Day
    from exporter.config import Campaign, Config, Workspace
    from exporter.publisher import Publisher
    from exporter.rollover import Rollover
    from exporter.state import CampaignKey, Clock

logger = logging.getLogger(__name__)

_SKIPPED_SHOWN = 3


class Campaigns:
    """States of the campaigns of a configuration, in its order. `configure` comes first.

    `lock` is held while states and publications change: each campaign's follow one another, and so do those of the
    exposition. `record` and `expire` acquire it, for the other methods the caller does.
    """

    def __init__(self, publisher: Publisher, clock: Clock) -> None:
        self.lock = threading.Lock()
        self.ready = False
        self._publisher = publisher
        self._clock = clock
        self._states: dict[CampaignKey, CampaignState] = {}
        self._clients: Mapping[str, Client] = {}
        self._succeeded_at: dict[CampaignKey, float] = {}
        self._rollovers: dict[str, Rollover] = {}
        self._warned: set[tuple[CampaignKey, str]] = set()
        self._unpolled = Counter[tuple[str, str]]()  # by workspace and API
        self._apis = {polled.api.name: polled.api for polled in publisher.polled}

    @property
    def states(self) -> tuple[CampaignState, ...]:
        """The state of every campaign, in the order of the configuration."""
        return tuple(self._states.copy().values())

    def rollover(self, workspace: str) -> Rollover | None:
        """Return the last rollover of a workspace's days, if any response had a day."""
        return self._rollovers.get(workspace)

    def configure(self, config: Config, clients: Mapping[str, Client]) -> None:
        """Publish every campaign that is new or looks different, withdraw those that were removed, apply the limits."""
        kept = [name for name, client in clients.items() if self._clients.get(name) is client]
        self._rollovers = {name: self._rollovers[name] for name in kept if name in self._rollovers}
        before, self._clients, self._poll = self._states, clients, config.poll
        states = [
            self._configured(workspace, campaign, api)
            for workspace in config.workspaces
            for api in self._apis
            for campaign in workspace.campaigns
        ]
        self._states = {state.key: state for state in states}
        self._unpolled = Counter((state.workspace, state.api) for state in states if not state.polls)
        for key in before.keys() - self._states.keys():
            self._publisher.withdraw(key)
            self._succeeded_at.pop(key, None)
        self._warned = {warned for warned in self._warned if warned[0] in self._states}
        for state in states:
            if state is not before.get(state.key):
                self._publisher.publish(state)
        self._publisher.limit(config.limits, self.states)

    def check_ready(self) -> None:
        """Become ready when every campaign was polled or its requests are paused; stay ready from then on."""
        if self.ready:
            return
        waiting = (key for key, count in self._unpolled.items() if count)
        if all(self._clients[workspace].limiter(self._apis[api]).paused for workspace, api in waiting):
            self._publisher.settle(self.states)
            self.ready = True
            logger.info("every campaign was polled", extra={"campaigns": len(self._states)})

    def record(self, key: CampaignKey, client: Client, outcome: DataSeries | BrazeError) -> Failure | None:
        """Record and publish the outcome of a poll; return its failure, if any.

        A response that cannot be published is a failed poll: it must not affect other campaigns.
        """
        if isinstance(outcome, BrazeError):
            return self._record_failure(key, client, Failure(outcome.reason, str(outcome)))
        try:
            with self.lock:
                if self._is_current(key, client):
                    before = self._states[key]
                    self._replace(self._succeeded(before, outcome))
                    self._succeeded_at[key] = self._clock.monotonic()
                    self._observe_day(before, self._states[key])
                    self._log_left_out(key, outcome)
        except Exception as error:  # noqa: BLE001 - see above
            workspace, api, campaign_id = key
            log_traceback(workspace, campaign_id, error)
            client.counters.count_failure(api, Reason.BAD_PAYLOAD)
            return self._record_failure(key, client, Failure(Reason.BAD_PAYLOAD, UNEXPECTED))
        return None

    def expire(self) -> float:
        """Remove numbers whose last success is older than `poll.stale_after`; return the seconds until the next."""
        with self.lock:
            now = self._clock.monotonic()
            oldest = now - self._poll.stale_after
            for key in [key for key, succeeded_at in self._succeeded_at.items() if succeeded_at <= oldest]:
                del self._succeeded_at[key]
                self._states[key] = replace(self._states[key], up=False, latest=None, previous=None, dropped=0)
                self._publisher.publish(self._states[key])
                logger.warning("the numbers are stale and no longer shown", extra=_where(key))
            return min(self._succeeded_at.values(), default=now) - oldest

    def _configured(self, workspace: Workspace, campaign: Campaign, api: str) -> CampaignState:
        """Return a campaign's state under the configuration: the one before, if it looks the same."""
        before = self._states.get((workspace.name, api, campaign.id))
        name = clean(campaign.name)
        if before is None:
            return CampaignState(workspace.name, api, workspace.timezone, campaign.id, name, self._poll.interval)
        state = replace(
            before,
            timezone=workspace.timezone,
            campaign_name=name,
            interval=self._poll.interval,
            previous=before.previous if self._poll.previous_day else None,
        )
        return before if state == before else state

    def _is_current(self, key: CampaignKey, client: Client) -> bool:
        """Return whether the outcome of a poll still counts: neither campaign nor client was removed meanwhile."""
        return key in self._states and self._clients.get(key[0]) is client

    def _record_failure(self, key: CampaignKey, client: Client, failure: Failure) -> Failure:
        """Record and publish a failed poll; the numbers of the last success stay."""
        with self.lock:
            if self._is_current(key, client):
                before = self._states[key]
                failures = {**before.failures, failure.reason: before.failures.get(failure.reason, 0) + 1}
                self._replace(replace(before, up=False, failure=failure, polls=before.polls + 1, failures=failures))
        return failure

    def _succeeded(self, before: CampaignState, series: DataSeries) -> CampaignState:
        return replace(
            before,
            up=True,
            last_success=self._clock.wall(),
            failure=None,
            polls=before.polls + 1,
            latest=_kept(before.latest, series.latest),
            previous=_kept(before.previous, series.previous) if self._poll.previous_day else None,
            dropped=series.dropped,
        )

    def _replace(self, state: CampaignState) -> None:
        """Publish a campaign's state after a poll, then store it."""
        before = self._states[state.key]
        self._publisher.publish(state)
        self._states[state.key] = state
        _log_change(before, state)
        self._unpolled[state.workspace, state.api] -= not before.polls
        self.check_ready()

    def _observe_day(self, before: CampaignState, after: CampaignState) -> None:
        """Keep when the workspace's newest day began, and log what that says about `timezone`."""
        if after.latest is None or after.last_success is None:
            return
        known = self._rollovers.get(after.workspace)
        rollover = observe(
            known,
            after.latest.date,
            moment=after.last_success,
            last_success=before.last_success,
            interval=after.interval,
        )
        self._rollovers[after.workspace] = rollover
        offset = rollover.offset(after.timezone)
        if offset is None or (known is not None and known.day == rollover.day):
            return
        logger.log(
            logging.WARNING if hours_off(offset, after.interval) else logging.INFO,
            "a new day began",
            extra={
                "workspace": after.workspace,
                "day": str(rollover.day),
                "timezone": after.timezone.key,
                "seconds_after_midnight": round(offset),
                "meaning": meaning(offset, after.interval),
            },
        )

    def _log_left_out(self, key: CampaignKey, series: DataSeries) -> None:
        """Log what of a response is not shown, once per campaign."""
        if series.skipped and self._is_first(key, "skipped"):
            logger.warning(
                "parts of the response are not of the documented form and are skipped",
                extra={
                    **_where(key),
                    "parts": series.skipped_parts,
                    "first": "; ".join(series.skipped[:_SKIPPED_SHOWN]),
                },
            )
        if series.no_numbers and self._is_first(key, "no numbers"):
            logger.warning(
                "statistics are text or otherwise not numbers and are left out",
                extra={**_where(key), "statistics": ", ".join(series.no_numbers)},
            )

    def _is_first(self, key: CampaignKey, warning: str) -> bool:
        """Return whether a warning is a campaign's first of its kind, and remember it."""
        before = len(self._warned)
        self._warned.add((key, warning))
        return len(self._warned) > before


def _where(key: CampaignKey) -> dict[str, str]:
    return {"workspace": key[0], "campaign_id": key[2]}


def _kept(before: Day | None, now: Day | None) -> Day | None:
    """Return the day before if the new one is equal, so that it is known to be unchanged by its identity."""
    return before if before == now else now


def _log_change(before: CampaignState, after: CampaignState) -> None:
    """Log the first failure of a reason and the first success after failures; all others at level debug."""
    where = {**_where(after.key), "campaign_name": after.campaign_name}
    if after.failure is not None:
        is_new = before.failure is None or before.failure.reason is not after.failure.reason
        logger.log(
            logging.WARNING if is_new else logging.DEBUG,
            "poll failed",
            extra={**where, "reason": after.failure.reason.value, "error": after.failure.detail},
        )
    elif before.failure is not None:
        logger.info("poll succeeded again", extra=where)
    else:
        logger.debug("poll succeeded", extra=where)
