"""When campaigns are asked, and what is known of each: polls in, states out.

Each workspace has its own client and threads. One of a workspace's threads waits for the next turn; the moment it takes
it, another waits instead, a new one where all are busy and `poll.concurrency` allows. So there are as many threads as
latency times rate needs. They are daemons: a slow answer never holds up the end of the process.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Protocol

from exporter.braze.client import Client
from exporter.braze.data_series import clean
from exporter.braze.decoding import Lanes
from exporter.braze.errors import UNEXPECTED, BrazeError, Reason, log_traceback
from exporter.braze.rate_limiter import LONGEST_WAIT, Permit
from exporter.schedule import Schedule
from exporter.state import CampaignKey, CampaignState, Failure, WorkspaceState
from exporter.system import threads
from exporter.system.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from exporter.braze.client import Received
    from exporter.braze.data_series import DataSeries, Day
    from exporter.config import Campaign, Config, Limits, Poll, Workspace
    from exporter.reload import Changes
    from exporter.state import Clock
    from exporter.system.threads import Start

logger = logging.getLogger(__name__)

_INTERVALS_UP = 2
_SKIPPED_SHOWN = 3
_SLACK = 2  # times the limit of samples that is kept of a campaign, so that those with a place are seldom cut


class Exposition(Protocol):
    """What shows the states; called by one thread at a time."""

    def publish(self, state: CampaignState) -> None:
        """Show a campaign's new state."""

    def withdraw(self, campaign: CampaignKey) -> None:
        """Show nothing of a campaign any more."""

    def settle(self, states: Sequence[CampaignState]) -> None:
        """Share the room among all states anew, in their order."""

    def limit(self, limits: Limits, states: Sequence[CampaignState]) -> None:
        """Let these limits hold, and use what room is left."""


_Outcome = Callable[[CampaignKey, Client, "DataSeries | BrazeError"], Failure | None]
_Fatal = Callable[[BaseException], None]


class Poller:
    """All workspaces: starts their threads, keeps the campaigns' states and publishes each when it changes.

    The configuration has the campaigns of one of `total_shards`, which share the pace. Before it is ready, the poller
    settles the exposition once, with all states in the order of the configuration. `fatal` is called when a thread
    ends by an exception that nobody expected.
    """

    def __init__(
        self,
        config: Config,
        *,
        environ: Mapping[str, str],
        clock: Clock,
        exposition: Exposition,
        fatal: _Fatal,
        total_shards: int = 1,
        start_thread: Start = threads.start,
    ) -> None:
        self._poll = config.poll
        self._limits = config.limits
        self._environ = environ
        self._clock = clock
        self._exposition = exposition
        self._fatal = fatal
        self._total_shards = total_shards
        self._start_thread = start_thread
        self._lanes = Lanes()
        self._stopped = False
        self._expiry_changed = threading.Event()
        self._recording = threading.Lock()  # one state follows the other: of a campaign, and of the exposition
        self._states: dict[CampaignKey, CampaignState] = {}
        self._succeeded_at: dict[CampaignKey, float] = {}
        self._told_of_skipped: set[CampaignKey] = set()
        self._told_of_no_numbers: set[CampaignKey] = set()
        self._unpolled = Counter[str]()
        self._ready = False
        self._former_secrets: tuple[str, ...] = ()
        self._workspaces: dict[str, _WorkspacePoller] = {}
        clients = self._connect(config.workspaces, config.poll)
        self._workspaces = {
            workspace.name: self._workspace_poller(workspace, clients[workspace.name])
            for workspace in config.workspaces
        }
        self._show(config)

    @property
    def ready(self) -> bool:
        """Whether every campaign was polled once, or its workspace pauses, and what is published holds the results."""
        return self._ready

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every API key that was used, for the logs to hide."""
        current = (key for workspace in self._workspaces.values() for key in workspace.client.secrets)
        return (*self._former_secrets, *current)

    @property
    def campaigns(self) -> tuple[CampaignState, ...]:
        """The state of every campaign, in the order of the configuration."""
        return tuple(self._states.copy().values())

    @property
    def workspaces(self) -> tuple[WorkspaceState, ...]:
        """The state of every workspace, in the order of the configuration."""
        return tuple(workspace.state() for workspace in self._workspaces.values())

    def start(self) -> None:
        """Ask every campaign as fast as pacing allows, then each in its slot, until the poller is stopped."""
        self._start_thread(self._expire_stale, "expiry")
        with self._recording:
            for workspace in self._workspaces.values():
                workspace.start()
            self._get_ready()

    def stop(self) -> None:
        """Let every thread end after what it does now; does not wait for them."""
        self._stopped = True
        self._expiry_changed.set()
        for workspace in self._workspaces.values():
            workspace.stop()

    def apply(self, config: Config, changes: Changes) -> None:
        """Go on by another configuration, of which `changes` says what is different.

        What both configurations have goes on: numbers, slots, counters. What is new is asked at once, and so are all
        campaigns of a workspace with another endpoint, or with another key after its key was refused. Raises
        ConfigError, with nothing changed, where the key for an endpoint cannot be read.
        """
        new = changes.added_workspaces | changes.reconnected_workspaces
        clients = self._connect((workspace for workspace in config.workspaces if workspace.name in new), config.poll)
        in_a_hurry = set(new)
        try:
            for workspace in config.workspaces:
                if workspace.name not in new:
                    clients[workspace.name] = client = self._workspaces[workspace.name].client
                    if client.change(workspace, interval=config.poll.interval):
                        in_a_hurry.add(workspace.name)
            with self._recording:
                self._apply(config, clients, in_a_hurry)
        except BaseException as error:
            self._fatal(error)  # half of each configuration would be in force
            raise

    def _apply(self, config: Config, clients: Mapping[str, Client], in_a_hurry: Collection[str]) -> None:
        before, self._poll, self._limits = self._workspaces, config.poll, config.limits
        used = (key for workspace in before.values() for key in workspace.client.secrets)
        self._former_secrets = tuple(dict.fromkeys((*self._former_secrets, *used)))
        self._workspaces = {
            workspace.name: before.get(workspace.name) or self._workspace_poller(workspace, clients[workspace.name])
            for workspace in config.workspaces
        }
        self._show(config)
        self._exposition.limit(config.limits, self.campaigns)
        for name in before.keys() - clients.keys():
            before[name].stop()
        for workspace in config.workspaces:
            if workspace.name in before:
                hurry = workspace.name in in_a_hurry
                client = clients[workspace.name]
                before[workspace.name].change(workspace, config.poll, config.limits, client, hurry=hurry)
            else:
                self._workspaces[workspace.name].start()
        self._expiry_changed.set()
        self._get_ready()

    def _connect(self, workspaces: Iterable[Workspace], poll: Poll) -> dict[str, Client]:
        """Return a new client for each workspace, all or none; one that takes another's place counts on."""
        clients = {}
        with contextlib.ExitStack() as undo:
            for workspace in workspaces:
                former = self._workspaces.get(workspace.name)
                client = Client(
                    workspace,
                    interval=poll.interval,
                    environ=self._environ,
                    wall=self._clock.wall,
                    monotonic=self._clock.monotonic,
                    random=Random(),  # noqa: S311 - jitter
                    stopped=threading.Event(),
                    total_shards=self._total_shards,
                    counters=former.client.counters if former else None,
                    lanes=self._lanes,
                )
                undo.callback(client.close)
                clients[workspace.name] = client
            undo.pop_all()
        return clients

    def _workspace_poller(self, workspace: Workspace, client: Client) -> _WorkspacePoller:
        return _WorkspacePoller(
            workspace, self._poll, self._limits, self._clock, client, self._outcome, self._start_thread, self._fatal
        )

    def _show(self, config: Config) -> None:
        """Publish every campaign that is new or to be shown otherwise, and withdraw those that are gone."""
        before = self._states
        states = [
            self._state(workspace, campaign, config.poll)
            for workspace in config.workspaces
            for campaign in workspace.campaigns
        ]
        self._states = {state.key: state for state in states}
        self._unpolled = Counter(state.workspace for state in states if not state.polls)
        for key in before.keys() - self._states.keys():
            self._exposition.withdraw(key)
            self._succeeded_at.pop(key, None)
            self._told_of_skipped.discard(key)
            self._told_of_no_numbers.discard(key)
        for state in states:
            if state is not before.get(state.key):
                self._exposition.publish(state)

    def _state(self, workspace: Workspace, campaign: Campaign, poll: Poll) -> CampaignState:
        """Return what is known of a campaign as it is shown now: what it was before, where that is no difference."""
        before = self._states.get((workspace.name, campaign.id))
        name = clean(campaign.name)
        if before is None:
            return CampaignState(workspace.name, workspace.timezone, campaign.id, name, poll.interval)
        state = replace(
            before,
            timezone=workspace.timezone,
            campaign_name=name,
            interval=poll.interval,
            previous=before.previous if poll.previous_day else None,
        )
        return before if state == before else state

    def _outcome(self, key: CampaignKey, client: Client, outcome: DataSeries | BrazeError) -> Failure | None:
        """Publish what a poll brought; return how it failed, if it did.

        A response that cannot be shown is a failed poll: one response's trouble is no other campaign's.
        """
        if isinstance(outcome, BrazeError):
            return self._failed(key, client, Failure(outcome.reason, str(outcome)))
        try:
            with self._recording:
                if self._is_asked_for(key, client):
                    self._record(self._succeeded(self._states[key], outcome))
                    self._succeeded_at[key] = self._clock.monotonic()
                    self._tell_of_skipped(key, outcome)
                    self._tell_of_no_numbers(key, outcome)
        except Exception as error:  # noqa: BLE001 - see above
            log_traceback(key, error)
            client.count_failure("data_series", Reason.BAD_PAYLOAD)
            return self._failed(key, client, Failure(Reason.BAD_PAYLOAD, UNEXPECTED))
        return None

    def _failed(self, key: CampaignKey, client: Client, failure: Failure) -> Failure:
        """Publish that a poll failed; the numbers of the last success stay."""
        with self._recording:
            if self._is_asked_for(key, client):
                before = self._states[key]
                failures = {**before.failures, failure.reason: before.failures.get(failure.reason, 0) + 1}
                self._record(replace(before, up=False, failure=failure, polls=before.polls + 1, failures=failures))
        return failure

    def _is_asked_for(self, key: CampaignKey, client: Client) -> bool:
        """Tell whether a poll that began some time ago still means something: nothing removed comes back."""
        workspace = self._workspaces.get(key[0])
        return key in self._states and workspace is not None and workspace.client is client

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

    def _record(self, state: CampaignState) -> None:
        """Publish a campaign's new state after a poll and keep it."""
        before = self._states[state.key]
        self._exposition.publish(state)
        self._states[state.key] = state
        _log_change(before, state)
        self._unpolled[state.workspace] -= not before.polls
        self._get_ready()

    def _get_ready(self) -> None:
        """Be ready when the first round is over; never stop being so."""
        if self._ready:
            return
        if all(not self._unpolled[workspace.name] or workspace.paused for workspace in self._workspaces.values()):
            self._exposition.settle(self.campaigns)
            self._ready = True
            logger.info("every campaign was polled", extra={"campaigns": len(self._states)})

    def _tell_of_skipped(self, key: CampaignKey, series: DataSeries) -> None:
        if series.skipped and key not in self._told_of_skipped:
            self._told_of_skipped.add(key)
            examples = "; ".join(series.skipped[:_SKIPPED_SHOWN])
            logger.warning(
                "parts of the answer are not of the documented form and skipped",
                extra={"workspace": key[0], "campaign_id": key[1], "parts": series.skipped_parts, "first": examples},
            )

    def _tell_of_no_numbers(self, key: CampaignKey, series: DataSeries) -> None:
        if series.no_numbers and key not in self._told_of_no_numbers:
            self._told_of_no_numbers.add(key)
            logger.warning(
                "statistics are text or otherwise no numbers, they are left out",
                extra={"workspace": key[0], "campaign_id": key[1], "statistics": ", ".join(series.no_numbers)},
            )

    def _expire_stale(self) -> None:
        """Take numbers away when their success is older than `poll.stale_after`, and see that somebody polls."""
        try:
            while not self._stopped:
                with self._recording:
                    wait = self._expire(self._clock.monotonic())
                for workspace in tuple(self._workspaces.values()):
                    workspace.start_thread_if_needed()
                self._expiry_changed.wait(min(wait, LONGEST_WAIT))
                self._expiry_changed.clear()
        except BaseException as error:  # noqa: BLE001 - without this thread old numbers would stay
            self._fatal(error)

    def _expire(self, now: float) -> float:
        """Expire what is due; return the seconds until something can be again."""
        oldest = now - self._poll.stale_after
        for key in [key for key, succeeded_at in self._succeeded_at.items() if succeeded_at <= oldest]:
            del self._succeeded_at[key]
            self._states[key] = replace(self._states[key], up=False, latest=None, previous=None, dropped=0)
            self._exposition.publish(self._states[key])
            logger.warning(
                "the numbers are stale and no longer shown", extra={"workspace": key[0], "campaign_id": key[1]}
            )
        return min(self._succeeded_at.values(), default=now) - oldest


class _WorkspacePoller:
    """One workspace's client and threads, and whose turn it is among its campaigns."""

    def __init__(
        self,
        workspace: Workspace,
        poll: Poll,
        limits: Limits,
        clock: Clock,
        client: Client,
        outcome: _Outcome,
        start_thread: Start,
        fatal: _Fatal,
    ) -> None:
        self.client = client
        self._workspace = workspace
        self._poll = poll
        self._limits = limits
        self._clock = clock
        self._outcome = outcome
        self._start_thread = start_thread
        self._fatal = fatal
        self._schedule = Schedule(poll.interval)
        self._changed = threading.Condition()
        self._in_line = threading.Lock()  # of the idle threads only the first wakes by the clock
        self._threads = 0
        self._idle = 0
        self._thread_refused = False
        self._stopped = False
        self._succeeded_at = -math.inf

    @property
    def name(self) -> str:
        return self._workspace.name

    @property
    def paused(self) -> Reason | None:
        return self.client.data_series_limiter.paused

    def state(self) -> WorkspaceState:
        recent = self._clock.monotonic() - self._succeeded_at <= _INTERVALS_UP * self._poll.interval
        campaigns = len(self._workspace.campaigns)
        return WorkspaceState(
            workspace=self.name,
            timezone=self._workspace.timezone.key,
            campaigns=campaigns,
            up=recent and self.paused is not Reason.UNAUTHORIZED if campaigns else None,
            paused=self.paused,
            apis=self.client.statistics,
        )

    def start(self) -> None:
        now = self._clock.monotonic()
        with self._changed:
            for campaign in self._workspace.campaigns:
                self._schedule.add(campaign.id, now)
            self._let_one_wait()

    def start_thread_if_needed(self) -> None:
        """Start the thread that could not be started before, unless one that was busy waits again."""
        with self._changed:
            if self._thread_refused and not self._stopped:
                self._let_one_wait()

    def change(self, workspace: Workspace, poll: Poll, limits: Limits, client: Client, *, hurry: bool) -> None:
        """Go on with other settings, campaigns and, where the endpoint is another, another client."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        with self._changed:
            before = {campaign.id for campaign in self._workspace.campaigns}
            former, self.client = self.client, client
            former_poll, self._poll = self._poll, poll
            self._limits = limits
            self._workspace = workspace
            if poll.interval != former_poll.interval:
                self._schedule.change_interval(poll.interval, now=now, wall=wall)
            if hurry:
                self._schedule.hurry(now)
            for campaign in workspace.campaigns:
                if campaign.id not in before:
                    self._schedule.add(campaign.id, now)
            for campaign_id in before - {campaign.id for campaign in workspace.campaigns}:
                self._schedule.remove(campaign_id)
            self._let_one_wait()
            self._changed.notify()
        if former is not client:
            former.close()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self.client.close()

    def _let_one_wait(self) -> None:
        """Start a thread where all others are busy and there may be one more; where the system allows none, go on."""
        if self._idle or self._threads >= self._poll.concurrency:
            return
        try:
            self._start_thread(self._run, f"poll {self.name} {self._threads + 1}")
        except NoThreadError as error:
            if not self._thread_refused:
                logger.warning(
                    "a thread cannot be started, polling goes on with fewer",
                    extra={"workspace": self.name, "threads": self._threads, "error": str(error)},
                )
            self._thread_refused = True
        else:
            self._thread_refused = False
            self._threads += 1
            self._idle += 1

    def _run(self) -> None:
        try:
            while (turn := self._next_turn()) is not None:
                self._ask(*turn)
        except BaseException as error:  # noqa: BLE001 - a campaign would never be asked again, in silence
            self._fatal(error)

    def _next_turn(self) -> tuple[str, Client, Permit] | None:
        """Wait for a campaign that is due and leave to ask; None where the thread is needed no more.

        Threads wait in line for the lock, and only the first in line for the time: none wakes in vain.
        """
        with self._in_line, self._changed:
            while not self._stopped and self._threads <= self._poll.concurrency:
                wait = self._schedule.next_due() - (now := self._clock.monotonic())
                permit = self.client.data_series_limiter.acquire(now) if wait <= 0 else wait
                if isinstance(permit, Permit):
                    self._idle -= 1
                    self._let_one_wait()
                    return self._schedule.take(), self.client, permit
                self._changed.wait(min(permit, LONGEST_WAIT))
            self._threads -= 1
            self._idle -= 1
        return None

    def _ask(self, campaign_id: str, client: Client, permit: Permit) -> None:
        key = (self.name, campaign_id)
        outcome: DataSeries | BrazeError
        try:
            received = client.data_series(campaign_id, days=self._poll.days, permit=permit, timeout=self._poll.timeout)
        except BrazeError as error:
            self._be_free()
            outcome = error
        else:
            self._be_free()
            outcome = self._read(client, received)
        failure = self._outcome(key, client, outcome)
        with self._changed:
            now = self._clock.monotonic()
            if client is not self.client:
                self._schedule.put_back(campaign_id, now)  # what the old endpoint said means nothing
            else:
                if failure is None:
                    self._succeeded_at = now
                self._schedule.add_next(campaign_id, succeeded=failure is None, now=now, wall=self._clock.wall())
            self._changed.notify()

    def _read(self, client: Client, received: Received) -> DataSeries | BrazeError:
        try:
            return client.read(received, samples=_SLACK * self._limits.series_per_campaign)
        except BrazeError as error:
            return error

    def _be_free(self) -> None:
        """Count among those who can wait: what is still to be done needs the processor, not one more thread."""
        with self._changed:
            self._idle += 1


def _kept(before: Day | None, now: Day | None) -> Day | None:
    """Return the old day where the new one says the same, so that this is plain to see."""
    return before if before == now else now


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
