"""The measured processes, each on loopback while its context lasts, and their use of CPU and memory."""

import os
import random
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support.servers import Program, eventually, fetch, find_program, running

CORES = sorted(os.sched_getaffinity(0))
"""The cores that there are."""

_KEY = "key-of-the-benchmark"
_SHORTEST_INTERVAL = 1.0
_LONGEST_INTERVAL = 24 * 3600.0
_STARTING = 600.0  # seconds at most until an exporter is ready
_NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; default_type text/plain;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port}; root {folder};
    location = /gzip {{ add_header Content-Encoding gzip; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Payload:
    """Responses of the fast Braze: a file in tests/data/payloads, the number of days, and the series in them."""

    file: str
    days: int
    series: int

    def __str__(self) -> str:
        return f"{self.file.partition('_')[0]}, {self.days} {'day' if self.days == 1 else 'days'}"


EMAIL = Payload("email_single_variation", 1, 27)
PUSH = Payload("push_with_control_group", 3, 161)


@dataclass(frozen=True, slots=True)
class Server:
    """A process that listens on `url`."""

    program: Program
    url: str

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self.program.process.pid

    def cpu(self) -> float:
        """Return its seconds of CPU, ended threads included, to the nanosecond: see clock_getcpuclockid(3)."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def resident(self) -> int:
        """Return its resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend the process, so that it does not disturb other measurements."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Workspaces:
    """Configuration of an exporter: a number of campaigns in a number of workspaces, each at Braze's rate limit.

    Several workspaces are for what is not to be held up by the pacing.
    """

    braze: Server
    campaigns: int
    workspaces: int = 1
    concurrency: int = 32

    def configuration(self, interval: float) -> str:
        """Return the YAML; the same campaigns each time."""
        bits = random.Random(self.campaigns)  # noqa: S311 - ids
        poll = f"interval: {int(1000 * interval)}ms, timeout: 10m, stale_after: 1w, concurrency: {self.concurrency}"
        lines = [f"poll: {{{poll}}}", "workspaces:"]
        for workspace in range(self.workspaces):
            lines += [
                f"  - name: Workspace {workspace}",
                f"    endpoint: {self.braze.url}",
                "    api_key_file: api-key",
                "    requests_per_minute: 50000",
                "    campaigns:",
            ]
            lines += [
                f"      - {{id: {uuid.UUID(int=bits.getrandbits(128))}, name: Campaign {number}}}"
                for number in range(workspace, self.campaigns, self.workspaces)
            ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Exporter(Server):
    """A braze-exporter, the workspaces that it polls, and how long it took until it was ready."""

    workspaces: Workspaces
    started_in: float

    def poll_at(self, rate: float) -> None:
        """Poll this number of campaigns a second from now on, or each once a second if there are fewer."""
        interval = max(self.workspaces.campaigns / rate, _SHORTEST_INTERVAL)
        reloads = self._reloads()
        _configure(self.program.log.parent, self.workspaces, interval)
        os.kill(self.pid, signal.SIGHUP)
        eventually(lambda: self._reloads() > reloads, what="a reloaded configuration", timeout=_STARTING)

    def _reloads(self) -> int:
        return self.program.output().count("the configuration was reloaded")


@contextmanager
def fake_braze(folder: Path, payload: Payload, *, latency: float = 0, core: int | None = None) -> Iterator[Server]:
    """Run a fast Braze: see fake_braze.py. `latency` is in seconds."""
    flags = (f"--payload={payload.file}", f"--days={payload.days}", f"--latency={latency}")
    with running((sys.executable, "benchmarks/fake_braze.py", *flags), log=folder / "braze.log") as program:
        pin(program, core)
        yield Server(program, program.logged(r"^http://\S+")[0])


class Answered(NamedTuple):
    """How many polls there were, and the seconds from the first to the last."""

    polls: int
    seconds: float


def answered(braze: Server) -> Answered:
    """Return the count of the fast Braze's responses until now."""
    count, seconds = fetch(f"{braze.url}/answers").text.split()
    return Answered(int(count), float(seconds))


@contextmanager
def braze_exporter(folder: Path, workspaces: Workspaces, *, core: int | None = None) -> Iterator[Exporter]:
    """Run braze-exporter; when the context starts it has polled every campaign, and its interval is a day."""
    file = _configure(folder, workspaces, _LONGEST_INTERVAL)
    command = (sys.executable, "-m", "exporter", f"--config.file={file}", "--web.listen-address=127.0.0.1:0")
    started = time.monotonic()
    with running(command, log=folder / "exporter.log") as program:
        pin(program, core)
        url = program.logged(r'\burl"?[=:] ?"?(http://[^"\s]+)', timeout=_STARTING)[1]
        eventually(lambda: fetch(f"{url}/-/ready").ok, what="an exporter that is ready", timeout=_STARTING)
        yield Exporter(program, url, workspaces, time.monotonic() - started)


@contextmanager
def plain_exporter(folder: Path, exposition: bytes) -> Iterator[Server]:
    """Run an exporter of prometheus_client that serves the same samples: see plain_exporter.py."""
    file = folder / "exposition"
    file.write_bytes(exposition)
    with running((sys.executable, "benchmarks/plain_exporter.py", file), log=folder / "plain.log") as program:
        yield Server(program, program.logged(r"^http://\S+", timeout=_STARTING)[0])


@contextmanager
def nginx(folder: Path, files: Mapping[str, bytes]) -> Iterator[Server]:
    """Run an nginx of one process that serves these files; `gzip` is a compressed one."""
    executable = find_program("nginx")
    if executable is None:
        raise SystemExit("expected nginx, which `make programs` fetches")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    port = _free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=port), encoding="utf-8")
    log = folder / "nginx.log"
    with running((executable, "-p", folder, "-e", "stderr", "-c", configuration), log=log) as program:
        eventually(lambda: _listens(port), what="an nginx that listens")
        yield Server(program, f"http://127.0.0.1:{port}")


def _configure(folder: Path, workspaces: Workspaces, interval: float) -> Path:
    (folder / "api-key").write_text(_KEY, encoding="utf-8")
    file = folder / "config.yaml"
    file.write_text(workspaces.configuration(interval), encoding="utf-8")
    return file


def pin(program: Program, core: int | None) -> None:
    """Bind a new process, with its future threads, to one core."""
    if core is not None:
        os.sched_setaffinity(program.process.pid, {core})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
