"""API key of a workspace, read again while it is in use. Any number of threads may use it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from exporter.config import ConfigError, read_api_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exporter.config import Workspace

logger = logging.getLogger(__name__)


class ApiKey:
    """Current and former keys of a workspace; an unreadable key leaves the one before in use.

    Raises ConfigError at construction if it cannot be read.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        interval: float,
        environ: Mapping[str, str],
        monotonic: Callable[[], float],
        read_key: Callable[[Workspace, Mapping[str, str]], str] = read_api_key,
    ) -> None:
        self._workspace = workspace
        self._interval = interval
        self._environ = environ
        self._monotonic = monotonic
        self._read_key = read_key
        self._lock = threading.Lock()  # one thread decides to read the key, and none mixes two workspaces' settings
        self._keys = [read_key(workspace, environ)]
        self._read_at = monotonic()
        self._being_read = False
        self._readable = True

    @property
    def used(self) -> tuple[str, ...]:
        """Every key so far, the current one last."""
        return tuple(self._keys)

    def change(self, workspace: Workspace, *, interval: float) -> bool:
        """Apply other settings and read the key; return whether it is another one."""
        with self._lock:
            self._workspace = workspace
            self._interval = interval
            before = self._keys[-1]
        self._read(workspace)
        return self._keys[-1] != before

    def get(self, *, fresh: bool) -> str:
        """Return the key, read again once per interval and for `fresh`.

        One thread reads it, without the lock, as its volume may hang: the others keep using the one before.
        """
        with self._lock:
            now = self._monotonic()
            due = not self._being_read and (fresh or now - self._read_at >= self._interval)
            if due:
                self._read_at = now
                self._being_read = True
            workspace = self._workspace
        if due:
            try:
                self._read(workspace)
            finally:
                self._being_read = False
        return self._keys[-1]

    def _read(self, workspace: Workspace) -> None:
        key, problem = "", ""
        try:
            key = self._read_key(workspace, self._environ)
        except ConfigError as error:
            problem = str(error)
        with self._lock:
            if workspace is not self._workspace:  # changed by a reload meanwhile, which reads the key
                return
            is_new = self._readable if problem else key != self._keys[-1]
            self._readable = not problem
            if is_new and not problem:
                self._keys = [*(old for old in self._keys if old != key), key]
        where = {"workspace": workspace.name}
        if is_new and problem:
            logger.warning("the API key cannot be read, keeping the previous one", extra={**where, "error": problem})
        elif is_new:
            logger.info("the API key was replaced", extra=where)
