"""The poller: polls all workspaces and keeps the states of their campaigns."""

from __future__ import annotations

import contextlib
import threading
from random import Random
from typing import TYPE_CHECKING

from exporter.braze.client import Client
from exporter.braze.decoding import DecodingLocks
from exporter.braze.rate_limiter import LONGEST_WAIT
from exporter.campaigns import Campaigns
from exporter.system import threads
from exporter.workspace_poller import WorkspacePoller

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from exporter.config import Config, Workspace
    from exporter.publisher import Publisher
    from exporter.reload import Changes
    from exporter.state import CampaignState, Clock, WorkspaceState
    from exporter.system.threads import Start


class Poller:
    """Polls all workspaces and publishes each campaign's state when it changes.

    The configuration has the campaigns of one of `total_shards`, which share the rate limits. Before it is ready, the
    poller settles what is published once, in the order of the configuration. `fatal` is called when a thread ends by an
    unexpected exception.
    """

    def __init__(
        self,
        config: Config,
        *,
        environ: Mapping[str, str],
        clock: Clock,
        publisher: Publisher,
        fatal: Callable[[BaseException], None],
        total_shards: int = 1,
        start_thread: Start = threads.start,
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._polled = publisher.polled
        self._fatal = fatal
        self._total_shards = total_shards
        self._start_thread = start_thread
        self._decoding_locks = DecodingLocks()
        self._stopped = False
        self._expiry_changed = threading.Event()
        self._former_secrets: tuple[str, ...] = ()
        self._workspaces: dict[str, WorkspacePoller] = {}
        self._campaigns = Campaigns(publisher, clock)
        clients = self._connect(config, config.workspaces)
        self._workspaces = self._workspace_pollers(config, clients)
        self._campaigns.configure(config, clients)

    @property
    def ready(self) -> bool:
        """Whether every campaign was polled or its requests are paused, and the results are published."""
        return self._campaigns.ready

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every API key that was used, for the logs to hide."""
        current = (key for workspace in self._workspaces.values() for key in workspace.client.secrets)
        return (*self._former_secrets, *current)

    @property
    def campaigns(self) -> tuple[CampaignState, ...]:
        """The state of every campaign, in the order of the configuration."""
        return self._campaigns.states

    @property
    def workspaces(self) -> tuple[WorkspaceState, ...]:
        """The state of every workspace, in the order of the configuration."""
        return tuple(workspace.state(self._campaigns.rollover(name)) for name, workspace in self._workspaces.items())

    def start(self) -> None:
        """Poll every campaign as fast as the rate limits allow, then each in its slot, until the poller is stopped."""
        self._start_thread(self._expire_stale, "expiry")
        with self._campaigns.lock:
            for workspace in self._workspaces.values():
                workspace.start()
            self._campaigns.check_ready()

    def stop(self) -> None:
        """Let every thread end after its current poll; does not wait for them."""
        self._stopped = True
        self._expiry_changed.set()
        for workspace in self._workspaces.values():
            workspace.stop()

    def apply(self, config: Config, changes: Changes) -> None:
        """Apply another configuration; `changes` are its differences from the one before.

        States, slots and counters of what is in both continue. New campaigns are due at once, and so are all of a
        workspace with another endpoint, or with another key after Braze refused its key. Raises ConfigError, with
        nothing changed, if the key for an endpoint cannot be read.
        """
        new = changes.added_workspaces | changes.reconnected_workspaces
        clients = self._connect(config, (workspace for workspace in config.workspaces if workspace.name in new))
        expedited = set(new)
        try:
            for workspace in config.workspaces:
                if workspace.name not in new:
                    clients[workspace.name] = client = self._workspaces[workspace.name].client
                    if client.change(workspace, interval=config.poll.interval):
                        expedited.add(workspace.name)
            with self._campaigns.lock:
                self._apply(config, clients, expedited)
        except BaseException as error:
            self._fatal(error)  # half of each configuration would be in force
            raise

    def _apply(self, config: Config, clients: Mapping[str, Client], expedited: Collection[str]) -> None:
        before = self._workspaces
        used = (key for workspace in before.values() for key in workspace.client.secrets)
        self._former_secrets = tuple(dict.fromkeys((*self._former_secrets, *used)))
        self._workspaces = self._workspace_pollers(config, clients)
        self._campaigns.configure(config, clients)
        for name in before.keys() - clients.keys():
            before[name].stop()
        for workspace in config.workspaces:
            name = workspace.name
            if name in before:
                before[name].change(config, workspace, clients[name], expedite=name in expedited)
            else:
                self._workspaces[name].start()
        self._expiry_changed.set()
        self._campaigns.check_ready()

    def _connect(self, config: Config, workspaces: Iterable[Workspace]) -> dict[str, Client]:
        """Return a new client for each workspace, all or none; it continues the counters of the one before."""
        clients = {}
        with contextlib.ExitStack() as undo:
            for workspace in workspaces:
                former = self._workspaces.get(workspace.name)
                client = Client(
                    workspace,
                    [polled.api for polled in self._polled],
                    interval=config.poll.interval,
                    environ=self._environ,
                    wall=self._clock.wall,
                    monotonic=self._clock.monotonic,
                    random=Random(),  # noqa: S311 - jitter
                    stopped=threading.Event(),
                    total_shards=self._total_shards,
                    counters=former.client.counters if former else None,
                    decoding_locks=self._decoding_locks,
                )
                undo.callback(client.close)
                clients[workspace.name] = client
            undo.pop_all()
        return clients

    def _workspace_pollers(self, config: Config, clients: Mapping[str, Client]) -> dict[str, WorkspacePoller]:
        """Return the poller of each workspace, a new one for a new workspace."""
        return {
            workspace.name: self._workspaces.get(workspace.name)
            or WorkspacePoller(
                config,
                workspace,
                clients[workspace.name],
                self._polled,
                clock=self._clock,
                record=self._campaigns.record,
                fatal=self._fatal,
                start_thread=self._start_thread,
            )
            for workspace in config.workspaces
        }

    def _expire_stale(self) -> None:
        """Remove stale numbers, and start threads that could not be started before."""
        try:
            while not self._stopped:
                wait = self._campaigns.expire()
                for workspace in tuple(self._workspaces.values()):
                    workspace.start_thread_if_needed()
                self._expiry_changed.wait(min(wait, LONGEST_WAIT))
                self._expiry_changed.clear()
        except BaseException as error:  # noqa: BLE001 - without this thread old numbers would stay
            self._fatal(error)
