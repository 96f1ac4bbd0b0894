"""The exporter as a process that polls a simulated Braze, and requests to it over HTTP."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from exporter.simulator.server import Simulator
from tests.support.servers import PATIENCE, ROOT, Program, eventually, running

KEY = "9f1b-secret-c0ffee-4d5e-api-key"
COMMAND = (sys.executable, "-m", "exporter")
ONCE = "interval: 1h"
"""Settings of `poll` with which nothing changes after the first poll of each campaign."""


def config_check(file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the exporter with --config.check until it ends."""
    command = (*COMMAND, f"--config.file={file}", *flags, "--config.check")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def ask(url: str, *, method: str = "GET", **headers: str) -> requests.Response:
    """Send a request to a loopback address without a proxy; redirects are not followed, the body is not decoded.

    `headers` are written with underscores and replace those of requests.
    """
    with requests.Session() as session:
        session.trust_env = False
        session.headers.clear()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with session.request(
            method, url, headers=named, timeout=PATIENCE, allow_redirects=False, stream=True
        ) as response:
            response.raw.decode_content = False
            response._content = response.raw.read()  # noqa: SLF001 - requests has no other way to keep the bytes sent
            return response


@dataclass(frozen=True, slots=True)
class Exporter:
    """An exporter that listens on `url`."""

    program: Program
    url: str

    def ask(self, path: str = "/metrics", *, method: str = "GET", **headers: str) -> requests.Response:
        """Request a page; see the function `ask`."""
        return ask(self.url + path, method=method, **headers)

    def samples(self, prefix: str = "braze_") -> dict[str, str]:
        """Return the values of all series with that prefix, by the series as text."""
        lines = (line.rpartition(" ") for line in self.ask().text.split("\n"))
        return {series: value for series, _, value in lines if series.startswith(prefix)}

    def open_files(self) -> int:
        """Return how many files the process has open, connections among them."""
        return len([*Path(f"/proc/{self.program.process.pid}/fd").iterdir()])

    def ready(self) -> bool:
        """Return whether every campaign has been polled."""
        return self.ask("/-/ready").ok


def configure(
    folder: Path,
    endpoint: Simulator | str,
    *,
    poll: str = ONCE,
    workspace: str = "main",
    names: Mapping[str, str] | None = None,
) -> Path:
    """Write a configuration with the campaigns of `names`, by default all campaigns of a simulator."""
    if isinstance(endpoint, Simulator):
        names = names or {campaign.id: campaign.name for campaign in endpoint.campaigns}
        endpoint = endpoint.url
    campaigns = "".join(
        f"      - {{id: {identifier}, name: {_quoted(name)}}}\n" for identifier, name in (names or {}).items()
    )
    (folder / "api-key").write_text(KEY, encoding="utf-8")
    file = folder / "config.yaml"
    file.write_text(
        f"poll: {{{poll}}}\nworkspaces:\n  - name: {_quoted(workspace)}\n    endpoint: {endpoint}\n"
        f"    api_key_file: api-key\n    campaigns:\n{campaigns}",
        encoding="utf-8",
    )
    return file


@contextmanager
def running_exporter(file: Path, *flags: str, address: str = "127.0.0.1:0", ready: bool = True) -> Iterator[Exporter]:
    """Run the exporter with a configuration file until the context ends; it listens when the context starts.

    By default it also waits until every campaign has been polled. The log level must be info or debug: the port that
    the system chose is read from the log.
    """
    command = (*COMMAND, f"--config.file={file}", f"--web.listen-address={address}", *flags)
    with running(command, log=file.with_name("exporter.log")) as program:
        exporter = Exporter(program, program.logged(r'\burl"?[=:] ?"?(https?://[^"\s]+)')[1])
        if ready:
            eventually(exporter.ready, what="an exporter that is ready")
        yield exporter


def _quoted(text: str) -> str:
    """Return a text as YAML; not in ASCII, because YAML has no surrogate pairs."""
    return json.dumps(text, ensure_ascii=False)
