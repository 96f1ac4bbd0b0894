"""The configuration in force, and how another takes its place: read, compared, applied, told.

What is not in force any more leaves no trace, and what both configurations have goes on undisturbed.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.config import ConfigError, warnings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exporter.config import Config, Workspace
    from exporter.shards import Shard

logger = logging.getLogger(__name__)


class Configuration:
    """What is in force, and how the last reload went; the load at the start counts as the first.

    `read` returns the file's configuration as it is now, as far as it is this shard's, `apply` brings one into force;
    the former raises ConfigError where it cannot be used, the latter too, with nothing changed. Reading attributes
    never waits for a reload.
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
        self._reloading = threading.Lock()
        self._warned: tuple[str, ...] = ()
        self._warn(loaded)

    def reload(self) -> str | None:
        """Read the file again and bring it into force; return what is wrong with it, None where it is in force now.

        One reload is made at a time, in the thread that asks for it.
        """
        with self._reloading:
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
            logger.error("the configuration is refused, the old one stays", extra={"error": problem})
            return problem

    def _warn(self, loaded: Config) -> None:
        """Log those warnings that the configuration before did not lead to."""
        remarks = warnings(loaded, total_shards=self.shard.total)
        for remark in remarks:
            if remark not in self._warned:
                logger.warning(remark)
        self._warned = remarks


class WatchedFile:
    """A file that is looked at from time to time; it has changed when its bytes have.

    Kubernetes puts another file in its place, an editor may write it in two steps: neither times nor inodes tell.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._digest()

    def changed(self) -> bool:
        """Tell whether it holds other bytes than at the last look; a file that cannot be read has not changed."""
        found = self._digest()
        if found in {None, self._seen}:
            return False
        self._seen = found
        return True

    def _digest(self) -> bytes | None:
        try:
            return hashlib.sha256(self._path.read_bytes()).digest()
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class Changes:
    """What is different between two configurations, by names of workspaces and by campaigns' keys.

    `reconnected_workspaces` are those of the `changed_workspaces` that have another endpoint. `settings` are the paths
    of what changed in `poll` and `limits`.
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
        """Return how many of each kind there are, by words for a log line."""
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
    """Say what changes from one configuration to another. Pure. In which order things are written is no change."""
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
    """Return what is set for the whole workspace; an instance is just another way to write the endpoint."""
    return {name: value for name, value in workspace if name not in {"campaigns", "instance"}}
