"""The command line: reads flags and configuration, puts the parts together, runs them until a signal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from zoneinfo import ZoneInfo

import uvicorn

from exporter import __version__, config, logs, web
from exporter.config import ConfigError
from exporter.exposition import Exposition
from exporter.poller import Clock, Poller
from exporter.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from starlette.applications import Starlette

    from exporter.config import Config

logger = logging.getLogger(__name__)

SIMULATED_KEY = "simulated-braze-key"
"""The key of the simulated Braze where no other is given; it opens nothing else."""

_CAMPAIGNS = 12
_GRACE = 0.4  # seconds that running answers have when the process stops
_KEEP_ALIVE = 120  # seconds; longer than usual scrape intervals, so that Prometheus keeps its connection


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 done, 1 configuration or run-time error, 2 wrong usage."""
    _on_stop_signals(_exit)  # until the server runs; as process 1 there would be no handler at all
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given.pop(0) if given and given[0] and given[0] in _COMMANDS else ""
    command, add_flags = _COMMANDS[name]
    parser = _parser(name)
    add_flags(parser)
    try:
        return command(parser.parse_args(given))
    except _FailedError as error:
        print(error, file=sys.stderr)
        return 1


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; without a host on all of IPv6 and IPv4, on IPv4 alone where there is no IPv6.

    What is written to its connections leaves at once. asyncio sees to that only where a socket names its protocol, and
    these do not: a small answer on a kept connection would wait 40 ms for the other side's acknowledgement.
    """
    try:
        listener = _listen_on(host, port) if host else _listen_everywhere(port)
    except OSError as error:
        raise _cannot_listen((host, port), error) from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _FailedError(Exception):
    """What keeps the command from its work, in words for a person."""


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _exit(*_: object) -> NoReturn:
    _on_stop_signals(signal.SIG_IGN)  # one is enough
    raise SystemExit(0)


def _warn_of_hangup(*_: object) -> None:
    logger.warning("the configuration is read at the start only; restart to apply a new one")


def _serve(flags: argparse.Namespace) -> int:
    signal.signal(signal.SIGHUP, _warn_of_hangup)
    loaded = _load(flags.config_file)
    remarks = config.warnings(loaded)
    if not flags.config_check:
        return _run(loaded, flags, remarks=remarks)
    for remark in remarks:
        print(f"{flags.config_file}: warning: {remark}")
    campaigns = sum(len(workspace.campaigns) for workspace in loaded.workspaces)
    print(f"{flags.config_file}: valid; workspaces: {len(loaded.workspaces)}, campaigns: {campaigns}")
    return 0


def _demo(flags: argparse.Namespace) -> int:
    with (
        Simulator(campaigns=_CAMPAIGNS, api_key=SIMULATED_KEY, newest_day=flags.newest_day) as braze,
        tempfile.TemporaryDirectory(prefix="braze-exporter-demo-") as folder,
    ):
        Path(folder, "api-key").write_text(SIMULATED_KEY, encoding="utf-8")
        file = Path(folder, "config.yaml")
        workspace = _configuration(braze, "api_key_file: api-key")
        file.write_text(f"poll: {{interval: 5s, timeout: 5s}}\n{workspace}", encoding="utf-8")

        def introduce(urls: Sequence[str]) -> None:
            print(_DEMO.format(url=urls[0], path=flags.telemetry_path, braze=braze.url, file=file), flush=True)

        return _run(_load(file), flags, started=introduce)


def _simulate(flags: argparse.Namespace) -> int:
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
        raise _cannot_listen(flags.listen_address, error) from None
    try:
        source = "api_key_env: BRAZE_API_KEY"
        if flags.api_key_file:
            source = f"api_key_file: {_quoted(str(flags.api_key_file.resolve()))}"
        print(f"# A simulated Braze answers on {braze.url}. A configuration that polls it:")
        if not flags.api_key_file:
            print(f"# (with BRAZE_API_KEY={SIMULATED_KEY} in the environment)")
        print(_configuration(braze, source, flags.timezone), flush=True)
        while True:  # until a signal; in short waits, as one that comes just before a wait does not end it
            time.sleep(_GRACE)
    finally:
        braze.close()


def _configuration(braze: Simulator, key_source: str, timezone: ZoneInfo | None = None) -> str:
    """Return the YAML of a workspace that polls every campaign of a simulated Braze."""
    lines = [
        "workspaces:",
        "  - name: simulated",
        f"    endpoint: {braze.url}",
        f"    {key_source}",
        f"    timezone: {timezone or 'UTC'}",
        "    campaigns:",
    ]
    for campaign in braze.campaigns:
        lines += [f"      - id: {campaign.id}", f"        name: {_quoted(campaign.name)}"]
    return "\n".join([*lines, ""])


def _key(file: Path) -> str:
    try:
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise _FailedError(f"--api-key-file: expected a file that can be read: {error.strerror}") from None
    except UnicodeDecodeError:
        key = ""
    if not key:
        raise _FailedError("--api-key-file: expected a file that holds a key in ASCII")
    return key


def _quoted(text: str) -> str:
    """Return YAML in which the text is nothing but text."""
    return json.dumps(text, ensure_ascii=False)


def _load(path: Path) -> Config:
    try:
        return config.load(path, os.environ)
    except ConfigError as error:
        raise _FailedError(str(error)) from None


def _run(
    loaded: Config,
    flags: argparse.Namespace,
    *,
    remarks: Sequence[str] = (),
    started: Callable[[Sequence[str]], None] = lambda _: None,
) -> int:
    """Poll and serve until a signal, or until an exception that nobody expected."""
    with contextlib.ExitStack() as stack:
        addresses = flags.listen_addresses or [flags.default_listen_address]
        sockets = [stack.enter_context(listen(*address)) for address in addresses]
        process = _Process(loaded)
        logs.configure(level=flags.log_level, form=flags.log_format, stream=sys.stderr, secrets=lambda: process.secrets)
        for remark in remarks:
            logger.warning(remark)
        urls = [_url(listener) for listener in sockets]
        for url in urls:
            logger.info("listening", extra={"url": url, "version": __version__})
        started(urls)
        return asyncio.run(process.run(sockets, flags.telemetry_path))


class _Process:
    """The running exporter: what polls, what serves, and what ends both."""

    def __init__(self, loaded: Config) -> None:
        self._status = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._exposition = Exposition(loaded.limits)
        try:
            self._poller = Poller(
                loaded,
                environ=os.environ,
                clock=Clock(wall=time.time, monotonic=time.monotonic),
                publish=self._exposition.publish,
                settle=self._exposition.settle,
                fatal=self._fail,
            )
        except ConfigError as error:  # a key that was there a moment ago
            raise _FailedError(str(error)) from None
        self._loaded_at = time.time()

    @property
    def secrets(self) -> tuple[str, ...]:
        return self._poller.secrets

    async def run(self, sockets: list[socket.socket], telemetry_path: str) -> int:
        """Serve until stopped; return the exit status."""
        self._loop = asyncio.get_running_loop()
        _on_stop_signals(self._stop)  # not the loop's own way, which would bring the default back when it closes
        application = web.application(
            self._poller, self._exposition, telemetry_path=telemetry_path, loaded_at=self._loaded_at
        )
        server = _Server(_server_settings(application))
        serving = asyncio.create_task(server.serve(sockets))
        self._poller.start()
        stopping = asyncio.create_task(self._stopped.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        _on_stop_signals(signal.SIG_IGN)  # one is enough
        logger.info("stopping")
        self._poller.stop()
        server.should_exit = True
        await asyncio.wait((serving,), timeout=_GRACE)
        for connection in list(server.server_state.connections):
            connection.transport.abort()  # a client that does not read would be waited for, for good
        await serving  # raises what ended it, if that was not us
        return self._status

    def _fail(self, error: BaseException) -> None:
        """End the process, from any thread: old numbers behind a healthy page would be worse."""
        logger.error("an unexpected exception ends the process", exc_info=error)
        self._status = 1
        self._stop()

    def _stop(self, *_: object) -> None:
        """Let `run` return; from any thread or as the handler of a signal, and any number of times."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed already
                self._loop.call_soon_threadsafe(self._stopped.set)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would decide the exit status."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server_settings(application: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=list(web.HEADERS.items()),
        timeout_keep_alive=_KEEP_ALIVE,
    )


def _listen_on(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise
    return socket.create_server(("", port), backlog=_BACKLOG)


def _cannot_listen(address: tuple[str, int], error: OSError) -> _FailedError:
    reason = (error.strerror or "").partition(" (")[0]  # in brackets the standard library repeats the address
    return _FailedError(f"--web.listen-address: cannot listen on {_joined(*address)}: {reason}")


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _url(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://{_joined(host, port)}"


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"braze-exporter {command}".strip(),
        description=_DESCRIPTIONS[command],
        epilog=_EPILOG if not command else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"braze-exporter, version {__version__} (python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    return parser


def _serve_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config.file",
        dest="config_file",
        type=Path,
        default=Path("config.yaml"),
        metavar="FILE",
        help="configuration file (default: %(default)s)",
    )
    parser.add_argument(
        "--config.check",
        dest="config_check",
        action="store_true",
        help="check the configuration file, say everything that is wrong with it, and exit",
    )
    _add_listen_flag(parser, _address, "address to listen on, may be repeated (default: :10105, all addresses)")
    _add_page_and_log_flags(parser, level="info")


def _demo_flags(parser: argparse.ArgumentParser) -> None:
    _add_listen_flag(parser, _loopback_address, "loopback address to listen on (default: 127.0.0.1:10105)")
    parser.set_defaults(default_listen_address=("127.0.0.1", 10105))
    _add_newest_day_flag(parser)
    _add_page_and_log_flags(parser, level="warning")


def _simulate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--web.listen-address",
        dest="listen_address",
        type=_loopback_address,
        default=("127.0.0.1", 10106),
        metavar="ADDRESS",
        help="loopback address to listen on (default: 127.0.0.1:10106)",
    )
    parser.add_argument(
        "--campaigns", type=_count, default=_CAMPAIGNS, help="how many campaigns (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="the same seed makes the same numbers (default: %(default)s)"
    )
    parser.add_argument(
        "--timezone", type=_zone, default=ZoneInfo("UTC"), metavar="ZONE", help="where its days begin (default: UTC)"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"holds the key to accept (default: the key {SIMULATED_KEY})"
    )
    _add_newest_day_flag(parser)


def _add_listen_flag(parser: argparse.ArgumentParser, kind: Callable[[str], tuple[str, int]], text: str) -> None:
    parser.add_argument(
        "--web.listen-address",
        dest="listen_addresses",
        type=kind,
        action="append",
        metavar="ADDRESS",
        help=text,
    )
    parser.set_defaults(default_listen_address=("", 10105))


def _add_page_and_log_flags(parser: argparse.ArgumentParser, level: str) -> None:
    parser.add_argument(
        "--web.telemetry-path",
        dest="telemetry_path",
        type=_telemetry_path,
        default="/metrics",
        metavar="PATH",
        help="where the metrics are (default: %(default)s)",
    )
    parser.add_argument(
        "--log.level",
        dest="log_level",
        choices=logs.LEVELS,
        default=level,
        help="what is logged (default: %(default)s)",
    )
    parser.add_argument(
        "--log.format",
        dest="log_format",
        choices=logs.FORMATS,
        default="logfmt",
        help="how it is logged (default: %(default)s)",
    )


def _add_newest_day_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--newest-day",
        choices=("today", "yesterday"),
        default="today",
        help="whether answers hold the running day, which Braze does not document (default: %(default)s)",
    )


def _address(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if not match or int(match["port"]) > _LARGEST_PORT or not _is_host(match["host"] or ""):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, [IPV6]:PORT or :PORT, got {text!r}")
    return match["ipv6"] or match["host"] or "", int(match["port"])


def _is_host(text: str) -> bool:
    """Tell whether the text can be looked up at all."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def _loopback_address(text: str) -> tuple[str, int]:
    host, port = _address(text)
    if not config.is_loopback(host):
        raise argparse.ArgumentTypeError(f"expected a loopback address such as 127.0.0.1:{port}, got {text!r}")
    return "127.0.0.1" if host.lower() == "localhost" else host, port


def _telemetry_path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected a path such as /metrics, not below /-/, got {text!r}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_CAMPAIGNS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {_MOST_CAMPAIGNS}, got {text!r}")
    return int(text)


def _zone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text)
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
        raise argparse.ArgumentTypeError(f"expected an IANA time zone such as Europe/Berlin, got {text!r}") from None


_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]/\s]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_PATH = re.compile(r"/|(?:/[A-Za-z0-9_~][A-Za-z0-9._~-]*)+")
_BACKLOG = 1024
_LARGEST_PORT = 65535
_MOST_CAMPAIGNS = 100_000

_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None]]] = {
    "": (_serve, _serve_flags),
    "demo": (_demo, _demo_flags),
    "simulate": (_simulate, _simulate_flags),
}

_DESCRIPTIONS = {
    "": "Polls Braze's campaign analytics and serves the latest days' counts as Prometheus metrics.",
    "demo": "Runs the exporter against a simulated Braze: no account, no configuration file, nothing but loopback.",
    "simulate": "Runs a simulated Braze alone, and prints a configuration that polls it.",
}

_EPILOG = """\
commands:
  demo        run the exporter against a simulated Braze
  simulate    run the simulated Braze alone

`braze-exporter COMMAND --help` shows the flags of a command."""

_DEMO = """\
A simulated Braze answers on {braze}, and the exporter polls it every five seconds.

  metrics      {url}{path}
  overview     {url}/
  configuration of this demo
               {file}

Ctrl-C stops both."""
