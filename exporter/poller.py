"""When campaigns are asked, and what is known of each: polls in, states out.

Each workspace has its own client and threads. One of a workspace's threads waits for the next turn; the moment it takes
it, another waits instead, a new one where all are busy and `poll.concurrency` allows. So there are as many threads as
latency times rate needs. They are daemons: a slow answer never holds up the end of the process.
"""

from __future__ import annotations

import logging
import math
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from exporter.braze import BrazeError, Client, Permit, Reason
from exporter.model import PayloadError, parse_data_series
from exporter.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from zoneinfo import ZoneInfo

    from exporter.braze import ApiStatistics
    from exporter.config import Campaign, Config, Poll, Workspace
    from exporter.model import DataSeries, Day

logger = logging.getLogger(__name__)

CampaignKey = tuple[str, str]
"""The name of a workspace and the id of a campaign in it."""

_INTERVALS_UP = 2
_SKIPPED_SHOWN = 3
_LONGEST_WAIT = 3600.0


@dataclass(frozen=True, slots=True)
class Failure:
    """How a poll failed: a reason, and a sentence that is safe to show."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class CampaignState:
    """All that is known of a campaign; `up` is None before the first poll, `failure` is how the last one failed."""

    workspace: str
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

    @property
    def key(self) -> CampaignKey:
        """What tells the campaign from all others, whatever it is called."""
        return (self.workspace, self.campaign_id)


@dataclass(frozen=True, slots=True)
class WorkspaceState:
    """What is known of a workspace now; `closed` is why it asks nothing but a probe."""

    workspace: str
    timezone: str
    campaigns: int
    up: bool
    closed: Reason | None
    apis: Mapping[str, ApiStatistics]


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the time comes from: Unix time, and one that only goes forward."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]


_Outcome = Callable[[CampaignKey, object], Failure | None]
_Fatal = Callable[[BaseException], None]


class Poller:
    """All workspaces: starts their threads, keeps the campaigns' states and publishes each when it changes.

    `publish` is called for one state at a time; `settle` once, with all states in the order of the configuration,
    before the poller is ready; `fatal` when a thread ends by an exception that nobody expected.
    """

    def __init__(
        self,
        config: Config,
        *,
        environ: Mapping[str, str],
        clock: Clock,
        publish: Callable[[CampaignState], None],
        settle: Callable[[Sequence[CampaignState]], None],
        fatal: _Fatal,
    ) -> None:
        self._stale_after = config.poll.stale_after
        self._previous_day = config.poll.previous_day
        self._clock = clock
        self._publish = publish
        self._settle = settle
        self._fatal = fatal
        self._stopped = threading.Event()
        self._recording = threading.Lock()
        self._states: dict[CampaignKey, CampaignState] = {}
        self._succeeded_at: dict[CampaignKey, float] = {}
        self._told_of_skipped: set[CampaignKey] = set()
        self._unpolled = Counter[str]()
        self._ready = False
        self._workspaces: list[_WorkspacePoller] = []
        for workspace in config.workspaces:
            client = Client(
                workspace,
                interval=config.poll.interval,
                connections=config.poll.concurrency,
                environ=environ,
                monotonic=clock.monotonic,
                random=Random(),  # noqa: S311 - jitter
                stopped=self._stopped,
            )
            poller = _WorkspacePoller(workspace, config.poll, clock, client, self._outcome, fatal)
            self._workspaces.append(poller)
            for campaign in workspace.campaigns:
                self._add(workspace, campaign, config.poll.interval)

    @property
    def ready(self) -> bool:
        """Whether every campaign was polled once, or its workspace pauses, and what is published holds the results."""
        return self._ready

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every API key that was used, for the logs to hide."""
        return tuple(key for workspace in self._workspaces for key in workspace.client.secrets)

    @property
    def campaigns(self) -> tuple[CampaignState, ...]:
        """The state of every campaign, in the order of the configuration."""
        return tuple(self._states.copy().values())

    @property
    def workspaces(self) -> tuple[WorkspaceState, ...]:
        """The state of every workspace, in the order of the configuration."""
        return tuple(workspace.state() for workspace in self._workspaces)

    def start(self) -> None:
        """Ask every campaign as fast as pacing allows, then each in its slot, until the poller is stopped."""
        threading.Thread(target=self._expire_stale, name="expiry", daemon=True).start()
        for workspace in self._workspaces:
            workspace.start()

    def stop(self) -> None:
        """Let every thread end after what it does now; does not wait for them."""
        self._stopped.set()
        for workspace in self._workspaces:
            workspace.stop()

    def _add(self, workspace: Workspace, campaign: Campaign, interval: float) -> None:
        state = CampaignState(workspace.name, workspace.timezone, campaign.id, campaign.name, interval)
        self._states[state.key] = state
        self._unpolled[workspace.name] += 1
        self._publish(state)

    def _outcome(self, key: CampaignKey, outcome: object) -> Failure | None:
        """Publish what a poll brought, an answer or a BrazeError; return how it failed, if it did.

        An answer that cannot be read or shown is a failed poll: one answer's trouble is no other campaign's.
        """
        if isinstance(outcome, BrazeError):
            return self._failed(key, Failure(outcome.reason, str(outcome)))
        try:
            series = parse_data_series(outcome)
            with self._recording:
                self._record(self._succeeded(self._states[key], series))
                self._succeeded_at[key] = self._clock.monotonic()
        except PayloadError as error:
            return self._failed(key, Failure(Reason.BAD_PAYLOAD, str(error)))
        except Exception as error:  # noqa: BLE001 - see above
            _log_traceback(key, error)
            return self._failed(key, Failure(Reason.BAD_PAYLOAD, "the answer cannot be shown, see the traceback"))
        self._tell_of_skipped(key, series.skipped)
        return None

    def _failed(self, key: CampaignKey, failure: Failure) -> Failure:
        """Publish that a poll failed; the numbers of the last success stay."""
        with self._recording:
            before = self._states[key]
            failures = {**before.failures, failure.reason: before.failures.get(failure.reason, 0) + 1}
            self._record(replace(before, up=False, failure=failure, polls=before.polls + 1, failures=failures))
        return failure

    def _succeeded(self, before: CampaignState, series: DataSeries) -> CampaignState:
        return replace(
            before,
            up=True,
            last_success=self._clock.wall(),
            failure=None,
            polls=before.polls + 1,
            latest=series.latest,
            previous=series.previous if self._previous_day else None,
        )

    def _record(self, state: CampaignState) -> None:
        """Publish a campaign's new state after a poll and keep it."""
        before = self._states[state.key]
        self._publish(state)
        self._states[state.key] = state
        _log_change(before, state)
        if not self._ready:
            self._unpolled[state.workspace] -= not before.polls
            self._get_ready()

    def _get_ready(self) -> None:
        if all(not self._unpolled[workspace.name] or workspace.closed for workspace in self._workspaces):
            self._settle(self.campaigns)
            self._ready = True
            logger.info("every campaign was polled", extra={"campaigns": len(self._states)})

    def _tell_of_skipped(self, key: CampaignKey, skipped: tuple[str, ...]) -> None:
        if skipped and key not in self._told_of_skipped:
            self._told_of_skipped.add(key)
            examples = "; ".join(skipped[:_SKIPPED_SHOWN])
            logger.warning(
                "parts of the answer are not of the documented form and skipped",
                extra={"workspace": key[0], "campaign_id": key[1], "parts": len(skipped), "first": examples},
            )

    def _expire_stale(self) -> None:
        """Take numbers away when their success is older than `poll.stale_after`."""
        wait = self._stale_after
        try:
            while not self._stopped.wait(wait):
                with self._recording:
                    wait = self._expire(self._clock.monotonic())
        except BaseException as error:  # noqa: BLE001 - without this thread old numbers would stay
            self._fatal(error)

    def _expire(self, now: float) -> float:
        """Expire what is due; return the seconds until something can be again."""
        oldest = now - self._stale_after
        for key in [key for key, succeeded_at in self._succeeded_at.items() if succeeded_at <= oldest]:
            del self._succeeded_at[key]
            self._states[key] = replace(self._states[key], up=False, latest=None, previous=None)
            self._publish(self._states[key])
            logger.warning(
                "the numbers are stale and no longer shown", extra={"workspace": key[0], "campaign_id": key[1]}
            )
        return min(self._succeeded_at.values(), default=now) - oldest


class _WorkspacePoller:
    """One workspace's client and threads, and whose turn it is among its campaigns."""

    def __init__(
        self, workspace: Workspace, poll: Poll, clock: Clock, client: Client, outcome: _Outcome, fatal: _Fatal
    ) -> None:
        self.client = client
        self._workspace = workspace
        self._poll = poll
        self._clock = clock
        self._outcome = outcome
        self._fatal = fatal
        self._schedule = Schedule(poll.interval)
        self._changed = threading.Condition()
        self._in_line = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._stopped = False
        self._succeeded_at = -math.inf

    @property
    def name(self) -> str:
        return self._workspace.name

    @property
    def closed(self) -> Reason | None:
        return self.client.data_series_pool.closed

    def state(self) -> WorkspaceState:
        recent = self._clock.monotonic() - self._succeeded_at <= _INTERVALS_UP * self._poll.interval
        return WorkspaceState(
            workspace=self.name,
            timezone=self._workspace.timezone.key,
            campaigns=len(self._workspace.campaigns),
            up=recent and self.closed is not Reason.UNAUTHORIZED,
            closed=self.closed,
            apis=self.client.statistics,
        )

    def start(self) -> None:
        now = self._clock.monotonic()
        with self._changed:
            for campaign in self._workspace.campaigns:
                self._schedule.add(campaign.id, now)
            self._start_thread()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self.client.close()

    def _start_thread(self) -> None:
        self._threads += 1
        self._idle += 1
        threading.Thread(target=self._run, name=f"poll {self.name} {self._threads}", daemon=True).start()

    def _run(self) -> None:
        try:
            while (turn := self._next_turn()) is not None:
                self._ask(*turn)
        except BaseException as error:  # noqa: BLE001 - a campaign would never be asked again, in silence
            self._fatal(error)

    def _next_turn(self) -> tuple[str, Permit] | None:
        """Wait for a campaign that is due and leave to ask; None when the poller stops.

        Threads wait in line for the lock, and only the first in line for the time: none wakes in vain.
        """
        with self._in_line, self._changed:
            while not self._stopped:
                wait = self._schedule.next_due() - (now := self._clock.monotonic())
                permit = self.client.data_series_pool.take(now) if wait <= 0 else wait
                if isinstance(permit, Permit):
                    self._idle -= 1
                    if not self._idle and self._threads < self._poll.concurrency:
                        self._start_thread()
                    return self._schedule.take(), permit
                self._changed.wait(min(permit, _LONGEST_WAIT))
        return None

    def _ask(self, campaign_id: str, permit: Permit) -> None:
        try:
            answer = self.client.data_series(
                campaign_id, days=self._poll.days, permit=permit, timeout=self._poll.timeout
            )
        except BrazeError as error:
            failure = self._outcome((self.name, campaign_id), error)
        else:
            failure = self._outcome((self.name, campaign_id), answer)
            if failure is not None:
                self.client.count_failure("data_series", failure.reason)
        with self._changed:
            now = self._clock.monotonic()
            if failure is None:
                self._succeeded_at = now
            self._schedule.add_next(campaign_id, succeeded=failure is None, now=now, wall=self._clock.wall())
            self._idle += 1
            self._changed.notify()


def _log_change(before: CampaignState, after: CampaignState) -> None:
    """Log when polls begin to fail, fail otherwise, and succeed again; each single failure only for debugging."""
    where = {"workspace": after.workspace, "campaign_id": after.campaign_id, "campaign_name": after.campaign_name}
    if after.failure is not None:
        news = before.failure is None or before.failure.reason is not after.failure.reason
        logger.log(
            logging.WARNING if news else logging.DEBUG,
            "poll failed",
            extra={**where, "reason": after.failure.reason.value, "error": after.failure.detail},
        )
    elif before.failure is not None:
        logger.info("poll succeeded again", extra=where)
    else:
        logger.debug("poll succeeded", extra=where)


def _log_traceback(key: CampaignKey, error: Exception) -> None:
    """Log where an unexpected exception was raised, without its text, which may hold parts of the answer."""
    places = "".join(traceback.format_tb(error.__traceback__))
    logger.error(
        "an answer cannot be read or shown",
        extra={"workspace": key[0], "campaign_id": key[1], "error": type(error).__name__, "traceback": places},
    )
