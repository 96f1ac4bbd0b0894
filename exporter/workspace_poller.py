"""The polls of one workspace: its threads, and the slots in which they poll its campaigns.

One of the threads waits for the next slot. When it begins a poll, another waits instead: a new one if all are busy and
`poll.concurrency` allows it. So there are as many threads as latency times rate needs. They are daemon threads: a slow
response never delays the end of the process.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from exporter.braze.errors import BrazeError, Reason
from exporter.braze.rate_limiter import LONGEST_WAIT, Permit
from exporter.schedule import Schedule
from exporter.state import CampaignKey, Failure, WorkspaceState
from exporter.system.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporter.braze.api import Api
    from exporter.braze.client import Client
    from exporter.braze.data_series import DataSeries
    from exporter.config import Config, Workspace
    from exporter.polled import Polled
    from exporter.rollover import Rollover
    from exporter.state import Clock
    from exporter.system.threads import Start

logger = logging.getLogger(__name__)

_INTERVALS_UP = 2
_SLACK = 2  # times the limit of samples that is kept of a campaign, so that admitted ones are seldom cut

Record = Callable[[CampaignKey, "Client", "DataSeries | BrazeError"], Failure | None]


class WorkspacePoller:
    """Polls one workspace's campaigns with its own client, threads and schedules, one schedule for each API.

    `record` is called with each outcome, `fatal` when a thread ends by an unexpected exception.
    """

    def __init__(
        self,
        config: Config,
        workspace: Workspace,
        client: Client,
        polled: Sequence[Polled],
        *,
        clock: Clock,
        record: Record,
        fatal: Callable[[BaseException], None],
        start_thread: Start,
    ) -> None:
        self.client = client
        self._workspace = workspace
        self._poll = config.poll
        self._limits = config.limits
        self._clock = clock
        self._record = record
        self._fatal = fatal
        self._start_thread = start_thread
        self._schedules = [(one.api, Schedule(config.poll.interval)) for one in polled]
        self._changed = threading.Condition()
        self._waiting = threading.Lock()  # held by the idle thread that waits for the clock
        self._threads = 0
        self._idle = 0
        self._thread_refused = False
        self._stopped = False
        self._succeeded_at = -math.inf

    def state(self, rollover: Rollover | None) -> WorkspaceState:
        """Return the workspace's state now; `rollover` is that of its days, if known."""
        recent = self._clock.monotonic() - self._succeeded_at <= _INTERVALS_UP * self._poll.interval
        campaigns, paused = len(self._workspace.campaigns), self.client.paused
        return WorkspaceState(
            workspace=self._workspace.name,
            timezone=self._workspace.timezone.key,
            campaigns=campaigns,
            up=recent and paused is not Reason.UNAUTHORIZED if campaigns else None,
            paused=paused,
            apis=self.client.statistics,
            rollover_offset=None if rollover is None else rollover.offset(self._workspace.timezone),
        )

    def start(self) -> None:
        """Begin to poll: every campaign is due now."""
        now = self._clock.monotonic()
        with self._changed:
            for _, schedule in self._schedules:
                for campaign in self._workspace.campaigns:
                    schedule.add(campaign.id, now)
            self._start_idle_thread()

    def start_thread_if_needed(self) -> None:
        """Start the thread that could not be started before, unless a busy one is idle again."""
        with self._changed:
            if self._thread_refused and not self._stopped:
                self._start_idle_thread()

    def change(self, config: Config, workspace: Workspace, client: Client, *, expedite: bool) -> None:
        """Apply other settings and campaigns, and another client if the endpoint is another."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        with self._changed:
            former, self.client = self.client, client
            former_interval = self._poll.interval
            before = {campaign.id for campaign in self._workspace.campaigns}
            after = {campaign.id for campaign in workspace.campaigns}
            self._poll, self._limits, self._workspace = config.poll, config.limits, workspace
            for _, schedule in self._schedules:
                if self._poll.interval != former_interval:
                    schedule.change_interval(self._poll.interval, now=now, wall=wall)
                if expedite:
                    schedule.expedite(now)
                for campaign in workspace.campaigns:
                    if campaign.id not in before:
                        schedule.add(campaign.id, now)
                for campaign_id in before - after:
                    schedule.remove(campaign_id)
            self._start_idle_thread()
            self._changed.notify()
        if former is not client:
            former.close()

    def stop(self) -> None:
        """Let the threads end after their polls; does not wait for them."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self.client.close()

    def _start_idle_thread(self) -> None:
        """Start a thread if all are busy and one more is allowed; if the system allows none, continue without."""
        if self._idle or self._threads >= self._poll.concurrency:
            return
        try:
            self._start_thread(self._run, f"poll {self._workspace.name} {self._threads + 1}")
        except NoThreadError as error:
            if not self._thread_refused:
                logger.warning(
                    "a thread cannot be started, polling continues with fewer",
                    extra={"workspace": self._workspace.name, "threads": self._threads, "error": str(error)},
                )
            self._thread_refused = True
        else:
            self._thread_refused = False
            self._threads += 1
            self._idle += 1

    def _run(self) -> None:
        try:
            while (begun := self._next_poll()) is not None:
                self._poll_campaign(*begun)
        except BaseException as error:  # noqa: BLE001 - a campaign would never be polled again, in silence
            self._fatal(error)

    def _next_poll(self) -> tuple[Api[DataSeries], Schedule, str, Client, Permit] | None:
        """Wait for a campaign that is due and for a permit; return None when the thread is to end.

        Idle threads wait for a lock, and only the one that holds it waits for the time: none wakes in vain.
        """
        with self._waiting, self._changed:
            while not self._stopped and self._threads <= self._poll.concurrency:
                wait = math.inf
                now = self._clock.monotonic()
                for api, schedule in sorted(self._schedules, key=lambda each: each[1].next_due()):
                    due_in = schedule.next_due() - now
                    permit = self.client.limiter(api).acquire(now) if due_in <= 0 else due_in
                    if isinstance(permit, Permit):
                        self._idle -= 1
                        self._start_idle_thread()
                        return api, schedule, schedule.pop(), self.client, permit
                    wait = min(wait, permit)
                self._changed.wait(min(wait, LONGEST_WAIT))
            self._threads -= 1
            self._idle -= 1
        return None

    def _poll_campaign(
        self, api: Api[DataSeries], schedule: Schedule, campaign_id: str, client: Client, permit: Permit
    ) -> None:
        outcome: DataSeries | BrazeError
        try:
            try:
                received = client.request(api, campaign_id, poll=self._poll, permit=permit)
            finally:
                self._become_idle()
            outcome = client.read(received, samples=_SLACK * self._limits.series_per_campaign)
        except BrazeError as error:
            outcome = error
        failure = self._record((self._workspace.name, api.name, campaign_id), client, outcome)
        with self._changed:
            now = self._clock.monotonic()
            if client is not self.client:
                schedule.put_back(campaign_id, now)  # a response of the former endpoint does not count
            else:
                if failure is None:
                    self._succeeded_at = now
                schedule.end_poll(campaign_id, succeeded=failure is None, now=now, wall=self._clock.wall())
            self._changed.notify()

    def _become_idle(self) -> None:
        """Count as idle: the rest of the poll needs the processor, not one more thread."""
        with self._changed:
            self._idle += 1
