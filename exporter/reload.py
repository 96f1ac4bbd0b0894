"""The current configuration and its reloads: read the file, compare, apply the difference, log it.

What was removed leaves no trace, and what both configurations have continues undisturbed.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty
from typing import TYPE_CHECKING, TypeAlias

from exporter.config import ConfigError, warnings
from exporter.system import threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from exporter.config import Config, Workspace
    from exporter.shards import Shard
    from exporter.system.files import Watch

logger = logging.getLogger(__name__)

Requests: TypeAlias = "SimpleQueue[Future[str | None] | None]"
"""Requests for a reload: a future of the problem, as `CurrentConfig.reload` returns it, or None from a signal.

A signal's handler may put one at any time: unlike an event, this queue is safe in a handler that interrupts itself.
"""

_SECOND_LOOK = 1.0  # seconds between finding a change and checking whether the file is complete


class CurrentConfig:
    """The current configuration and the result of the last reload; the load at the start counts as the first.

    `read` returns this shard's part of the file as it is now, `apply` puts it into use. Both raise ConfigError, and
    then nothing has changed. Any thread may read the attributes, only one at a time may call `reload`.
    """

    def __init__(
        self,
        loaded: Config,
        *,
        shard: Shard,
        read: Callable[[], Config],
        apply: Callable[[Config, Changes], None],
        wall: Callable[[], float],
    ) -> None:
        self.shard = shard
        self.current = loaded
        self.successful = True
        self.succeeded_at = wall()
        self._read = read
        self._apply = apply
        self._wall = wall
        self._warned: tuple[str, ...] = ()
        self._warn(loaded)

    def reload(self) -> str | None:
        """Read the file again and apply it; return the problem that prevented it, or None."""
        try:
            loaded = self._read()
            changes = compare(self.current, loaded)
            self._apply(loaded, changes)
        except ConfigError as error:
            problem = str(error)
        else:
            self.current = loaded
            self.successful = True
            self.succeeded_at = self._wall()
            self._warn(loaded)
            logger.info("the configuration was reloaded", extra=changes.counts())
            return None
        self.successful = False
        logger.error("reload failed, keeping the previous configuration", extra={"error": problem})
        return problem

    def _warn(self, loaded: Config) -> None:
        """Log the warnings that the previous configuration did not have."""
        remarks = warnings(loaded, total_shards=self.shard.total)
        for remark in remarks:
            if remark not in self._warned:
                logger.warning(remark)
        self._warned = remarks


class Reloads:
    """Daemon thread that reloads the configuration on request and after changes of its file.

    With a `watch` the file is checked every `interval` seconds. Requests that arrive before a reload begins share it.
    `fatal` is called when the thread ends by an exception.
    """

    def __init__(
        self,
        configuration: CurrentConfig,
        requests: Requests,
        *,
        watch: Watch | None = None,
        interval: float | None = None,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._configuration = configuration
        self._requests = requests
        self._watch = watch
        self._interval = interval
        self._fatal = fatal

    def start(self) -> None:
        """Reload from now on. Raises NoThreadError."""
        threads.start(self._run, "reload")

    def request(self) -> Future[str | None]:
        """Request a reload that begins after this call; return a future of the problem, None without one."""
        request = Future[str | None]()
        self._requests.put(request)
        return request

    def _run(self) -> None:
        try:
            while True:
                requests = self._wait()
                problem = self._configuration.reload()
                for request in requests:
                    if request is not None and request.set_running_or_notify_cancel():
                        request.set_result(problem)
        except BaseException as error:  # noqa: BLE001 - later requests would be ignored
            self._fatal(error)

    def _wait(self) -> list[Future[str | None] | None]:
        """Wait for requests or for a change of the file; return all pending requests."""
        pause = self._interval
        while True:
            try:
                requests = [self._requests.get(timeout=pause)]
            except Empty:
                if not self._changed():
                    pause = pause_before_look(self._interval, changed=self._watch is not None and self._watch.changed)
                    continue
                requests = []
            while not self._requests.empty():
                requests.append(self._requests.get())
            return requests

    def _changed(self) -> bool:
        """Check the file; return whether it has changed and is complete, once per change."""
        if self._watch is None or not self._watch.look() or not self._watch.changed:
            return False
        self._watch.in_use = self._watch.seen
        return True


def pause_before_look(interval: float | None, *, changed: bool) -> float | None:
    """Return the seconds until the next check of a file, which is soon after a change. Pure."""
    return min(interval, _SECOND_LOOK) if interval is not None and changed else interval


@dataclass(frozen=True, slots=True)
class Changes:
    """Difference between two configurations, by names of workspaces and keys of campaigns.

    `reconnected_workspaces` are the changed ones with another endpoint. `settings` are the changed paths in `poll` and
    `limits`.
    """

    added_workspaces: frozenset[str]
    removed_workspaces: frozenset[str]
    changed_workspaces: frozenset[str]
    reconnected_workspaces: frozenset[str]
    added_campaigns: frozenset[tuple[str, str]]
    removed_campaigns: frozenset[tuple[str, str]]
    changed_campaigns: frozenset[tuple[str, str]]
    settings: frozenset[str]

    def counts(self) -> dict[str, int]:
        """Return the number of changes of each kind, as fields of a log line."""
        return {
            "workspaces_added": len(self.added_workspaces),
            "workspaces_removed": len(self.removed_workspaces),
            "workspaces_changed": len(self.changed_workspaces),
            "campaigns_added": len(self.added_campaigns),
            "campaigns_removed": len(self.removed_campaigns),
            "campaigns_changed": len(self.changed_campaigns),
            "settings_changed": len(self.settings),
        }


def compare(before: Config, after: Config) -> Changes:
    """Return the difference between two configurations. Pure. The order of things is no difference."""
    old = {workspace.name: workspace for workspace in before.workspaces}
    new = {workspace.name: workspace for workspace in after.workspaces}
    both = old.keys() & new.keys()
    old_names, new_names = _campaign_names(before), _campaign_names(after)
    return Changes(
        added_workspaces=frozenset(new.keys() - old.keys()),
        removed_workspaces=frozenset(old.keys() - new.keys()),
        changed_workspaces=frozenset(name for name in both if _settings(old[name]) != _settings(new[name])),
        reconnected_workspaces=frozenset(name for name in both if old[name].endpoint != new[name].endpoint),
        added_campaigns=frozenset(new_names.keys() - old_names.keys()),
        removed_campaigns=frozenset(old_names.keys() - new_names.keys()),
        changed_campaigns=frozenset(
            key for key in old_names.keys() & new_names.keys() if old_names[key] != new_names[key]
        ),
        settings=frozenset(
            f"{group}.{name}"
            for group, one, other in (("poll", before.poll, after.poll), ("limits", before.limits, after.limits))
            for (name, value), (_, new_value) in zip(one, other, strict=True)
            if value != new_value
        ),
    )


def _campaign_names(config: Config) -> dict[tuple[str, str], str]:
    return {
        (workspace.name, campaign.id): campaign.name
        for workspace in config.workspaces
        for campaign in workspace.campaigns
    }


def _settings(workspace: Workspace) -> dict[str, object]:
    """Return the settings of a workspace itself; an instance is another way to write the endpoint."""
    return {name: value for name, value in workspace if name not in {"campaigns", "instance"}}
