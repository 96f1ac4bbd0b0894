"""`braze-exporter print`: polls every campaign once and writes the exposition, for the textfile collector."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import threading
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import config, logs
from exporter.braze.errors import Reason
from exporter.commands.progress import Progress
from exporter.exposition import Format, written
from exporter.metrics import workspace_rows
from exporter.poller import Poller
from exporter.publisher import Publisher
from exporter.state import system_clock
from exporter.system.command import CommandError, write

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from exporter.config import Config, Limits
    from exporter.state import CampaignState, WorkspaceState
    from exporter.system.command import Surroundings

_LOOK = 0.1  # seconds between two updates of the progress
_MODE = 0o644  # the collector runs as another user


def print_once(flags: argparse.Namespace, surroundings: Surroundings) -> int:
    """Run the command and return its exit status: 0 where every poll succeeded. Raises ConfigError, CommandError."""
    polls = PollRound(config.load(flags.config_file, os.environ), os.environ)
    logs.configure(level=flags.log_level, form=flags.log_format, write=sys.stderr.write, secrets=lambda: polls.secrets)
    content = polls.run()
    troubles = polls.troubles()
    sys.stderr.writelines(f"{trouble}\n" for trouble in troubles)
    if flags.output is None:
        write(content)
        return 1 if troubles else 0
    surroundings.on_stop(lambda: None)  # the rest takes no time, and no half of a file is left beside the old one
    try:
        replace_file(flags.output, content)
    except OSError as error:
        raise CommandError(f"{flags.output}: cannot be written: {error.strerror}") from None
    return 1 if troubles else 0


class PollRound:
    """Polls every campaign once, as the exporter does after its start.

    Raises:
        ConfigError: a key cannot be read.

    """

    def __init__(self, loaded: Config, environ: Mapping[str, str]) -> None:
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._publisher = _Publisher(loaded.limits, self._ended)
        self._poller = Poller(
            loaded,
            environ=environ,
            clock=system_clock(),
            publisher=self._publisher,
            fatal=self._fail,
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The keys in use, for the logs to hide."""
        return self._poller.secrets

    def run(self) -> bytes:
        """Return the exposition in the text format, once each campaign was polled or its workspace pauses.

        Raises:
            BaseException: what ended the polling, which nobody expected.

        """
        progress = Progress(sys.stderr, time.monotonic)
        self._poller.start()
        try:
            while not self._ended.wait(_LOOK):
                campaigns = self._poller.campaigns
                progress.show(sum(campaign.polls > 0 for campaign in campaigns), len(campaigns))
        finally:
            progress.clear()
            self._poller.stop()
        if self._error is not None:
            raise self._error
        succeeded = {campaign.workspace for campaign in self._poller.campaigns if campaign.up}
        rows = chain.from_iterable(
            # A workspace hears of a success after all the others do.
            workspace_rows(replace(workspace, up=workspace.workspace in succeeded and not _is_refused(workspace)))
            for workspace in self._poller.workspaces
        )
        return b"".join((*self._publisher.exposition.snapshot().pieces(Format.TEXT), written(rows, Format.TEXT)))

    def troubles(self) -> tuple[str, ...]:
        """Return a line per failure, after the round."""
        return tuple(troubles(self._poller.workspaces, self._poller.campaigns))

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._ended.set()


class _Publisher(Publisher):
    """Tells when the first round is over: it is settled then."""

    def __init__(self, limits: Limits, settled: threading.Event) -> None:
        super().__init__(limits)
        self._settled = settled

    def settle(self, states: Sequence[CampaignState]) -> None:
        super().settle(states)
        self._settled.set()


def troubles(workspaces: Sequence[WorkspaceState], campaigns: Sequence[CampaignState]) -> Iterator[str]:
    """Yield a line for each campaign that failed, and for each workspace with campaigns that were not polled."""
    for campaign in campaigns:
        if campaign.failure is not None:
            name = campaign.campaign_name if campaign.campaign_name.isprintable() else repr(campaign.campaign_name)
            yield (
                f"{campaign.workspace}: {name} ({campaign.campaign_id}): "
                f"{campaign.failure.reason.value}: {campaign.failure.detail}"
            )
    for workspace in workspaces:
        left = sum(campaign.workspace == workspace.workspace and not campaign.polls for campaign in campaigns)
        if left:
            reason = workspace.paused.value if workspace.paused is not None else "no response yet"
            yield f"{workspace.workspace}: {left:,} of {workspace.campaigns:,} campaigns were not polled: {reason}"


def _is_refused(workspace: WorkspaceState) -> bool:
    return workspace.paused is Reason.UNAUTHORIZED


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably: readers see either the old content or the new.

    After a failure the old file is unchanged, and no temporary file is left.

    Raises:
        OSError: the folder cannot be written to, or something else than a file has that name.

    """
    path = Path(os.path.realpath(path))  # a link stays a link
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "expected a file, got something else")
    temporary = ""
    try:
        # Not one of the names that the collector reads.
        number, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with open(number, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            file.flush()
            os.fchmod(number, _MODE)
            os.fsync(number)
        Path(temporary).replace(path)
        temporary = ""
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
