"""`braze-exporter demo` and `simulate`: a simulated Braze on loopback, with and without an exporter that polls it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from exporter import app
from exporter.flags import CAMPAIGNS, SIMULATED_KEY
from exporter.simulator.server import Simulator
from exporter.system.command import CommandError, print_lines
from exporter.system.output import Output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from exporter.system.command import Surroundings

_DEMO = """\
A simulated Braze listens on {braze}, and the exporter polls it every five seconds.

  metrics      {url}{path}
  overview     {url}/
  configuration of this demo
               {file}

Ctrl-C stops both.
"""


def demo(flags: argparse.Namespace, surroundings: Surroundings) -> int:
    """Run the exporter against a simulated Braze until a signal; return the exit status. Raises CommandError."""
    with contextlib.ExitStack() as stack:
        zone = zone_of_noon(datetime.now(UTC))
        braze = stack.enter_context(
            Simulator(campaigns=CAMPAIGNS, api_key=SIMULATED_KEY, newest_day=flags.newest_day, timezone=zone)
        )
        key = _file_in_memory("api-key", SIMULATED_KEY)
        workspace = _configuration(braze, f"api_key_file: {key}", zone)
        file = _file_in_memory("config.yaml", f"poll: {{interval: 5s, timeout: 5s}}\n{workspace}")

        def introduce(urls: Sequence[str]) -> None:
            introduction = _DEMO.format(url=urls[0], path=flags.telemetry_path, braze=braze.url, file=file)
            Output(sys.stdout.fileno()).write(introduction)  # whether anybody reads it or not

        status = app.run(file, flags, surroundings, started=introduce)
        stack.pop_all()  # the process ends: without its Braze a poll that is under way would fail, and be logged
        return status


def zone_of_noon(now: datetime) -> ZoneInfo:
    """Return a zone whose day began about twelve hours ago, so that the demo has numbers at any time. Pure."""
    return ZoneInfo(f"Etc/GMT{now.astimezone(UTC).hour - 12:+}")  # the sign is POSIX': positive is west of Greenwich


def _file_in_memory(name: str, text: str) -> Path:
    """Return the path of a file in memory, which ends with the process: there may be no folder to write to."""
    descriptor = os.memfd_create(name)
    os.write(descriptor, text.encode())
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def simulate(flags: argparse.Namespace, _: Surroundings) -> int:
    """Run a simulated Braze until a signal ends the process. Raises CommandError."""
    braze = Simulator(
        seed=flags.seed,
        campaigns=flags.campaigns,
        timezone=flags.timezone,
        newest_day=flags.newest_day,
        api_key=_key(flags.api_key_file) if flags.api_key_file else SIMULATED_KEY,
        address=flags.listen_address,
    )
    try:
        braze.start()
    except OSError as error:
        raise app.cannot_listen(flags.listen_address, error) from None
    try:
        source = "api_key_env: BRAZE_API_KEY"
        if flags.api_key_file:
            source = f"api_key_file: {_quoted(str(flags.api_key_file.resolve()))}"
        lines = [f"# A simulated Braze listens on {braze.url}. A configuration that polls it:"]
        if not flags.api_key_file:
            lines.append(f"# (with BRAZE_API_KEY={SIMULATED_KEY} in the environment)")
        with contextlib.suppress(CommandError):  # it serves, whether anybody reads this or not
            print_lines([*lines, _configuration(braze, source, flags.timezone)])
        while True:  # until a signal ends the process
            time.sleep(3600)
    finally:
        braze.close()


def _configuration(braze: Simulator, key_source: str, timezone: ZoneInfo) -> str:
    """Return the YAML of a workspace that polls every campaign of a simulated Braze."""
    lines = [
        "workspaces:",
        "  - name: simulated",
        f"    endpoint: {braze.url}",
        f"    {key_source}",
        f"    timezone: {timezone}",
        "    campaigns:",
    ]
    for campaign in braze.campaigns:
        lines += [f"      - id: {campaign.id}", f"        name: {_quoted(campaign.name)}"]
    return "\n".join([*lines, ""])


def _key(file: Path) -> str:
    try:
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise CommandError(f"--api-key-file: expected a file that can be read: {error.strerror}") from None
    except UnicodeDecodeError:
        key = ""
    if not key:
        raise CommandError("--api-key-file: expected a file with a key in ASCII")
    return key


def _quoted(text: str) -> str:
    """Return YAML in which the text is nothing but text."""
    return json.dumps(text, ensure_ascii=False)
