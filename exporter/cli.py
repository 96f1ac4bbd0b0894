"""The command line: reads flags and configuration, puts the parts together, runs them until a signal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn
from zoneinfo import ZoneInfo

from exporter import __version__, check, config, logs, server, shards, web
from exporter.config import ConfigError
from exporter.exposition import Exposition
from exporter.poller import Clock, Poller
from exporter.progress import Progress
from exporter.ready import Ready
from exporter.reload import Configuration, WatchedFile
from exporter.server import Limits, Server
from exporter.shards import MOST_SHARDS, WHOLE, Shard
from exporter.simulator import Simulator
from exporter.textfile import Round, replace_file
from exporter.webconfig import Watched, WebConfig

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from types import FrameType

    from starlette.types import ASGIApp

    from exporter.config import Config

logger = logging.getLogger(__name__)

SIMULATED_KEY = "simulated-braze-key"
"""The key of the simulated Braze where no other is given; it opens nothing else."""

_CAMPAIGNS = 12
_GRACE = 0.4  # seconds that running answers have when the process stops
_OPEN_FILES = 64  # at most, besides connections: listening sockets, the log, key files, libraries
_WATCHING = 1  # seconds between two looks at the files of the web configuration


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
    except _UsageError as error:
        parser.error(str(error))
    except _FailedError as error:
        print(error, file=sys.stderr)
        return 1


class _FailedError(Exception):
    """What keeps the command from its work, in words for a person."""


class _UsageError(Exception):
    """Flags that do not fit together, in words for a person."""


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _exit(*_: object) -> NoReturn:
    _on_stop_signals(signal.SIG_IGN)  # one is enough
    raise SystemExit(0)


def _serve(flags: argparse.Namespace) -> int:
    hangups = SimpleQueue[None]()  # an event, a handler that interrupts itself could lock for good
    signal.signal(signal.SIGHUP, lambda *_: hangups.put(None))
    shard = _shard(flags)
    if not flags.config_check:
        return _run(flags.config_file, flags, shard=shard, hangups=hangups)
    loaded, web_config = _load_both(flags.config_file, flags.web_config_file)
    own = shards.part(loaded, shard)
    for remark in config.warnings(own, total_shards=shard.total):
        print(f"{flags.config_file}: warning: {remark}")
    if web_config is not None:
        for remark in web_config.current.warnings:
            print(f"{flags.web_config_file}: warning: {remark}")
        print(f"{flags.web_config_file}: valid")
    counted = f"workspaces: {len(loaded.workspaces)}, campaigns: {_campaigns(loaded)}"
    if shard.total > 1:
        counted += f", of which shard {shard.number} of {shard.total} has {_campaigns(own)}"
    print(f"{flags.config_file}: valid; {counted}")
    return 0


def _shard(flags: argparse.Namespace) -> Shard:
    if flags.shard >= flags.total_shards:
        raise _UsageError(
            f"argument --shard: expected a number below --total-shards, which is {flags.total_shards}, "
            f"got {flags.shard}; shards are counted from 0"
        )
    return Shard(flags.shard, flags.total_shards)


def _campaigns(loaded: Config) -> int:
    return sum(len(workspace.campaigns) for workspace in loaded.workspaces)


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

        return _run(file, flags, started=introduce)


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


def _check(flags: argparse.Namespace) -> int:
    _on_stop_signals(_give_up)
    logging.getLogger().addHandler(logging.NullHandler())  # the report says it all
    try:
        loaded = config.load(flags.config_file, os.environ)
        progress = Progress(sys.stderr, time.monotonic)
        try:
            clock = Clock(wall=time.time, monotonic=time.monotonic)
            checks = check.ask(loaded, environ=os.environ, clock=clock, progress=progress.show)
        finally:
            progress.clear()
    except ConfigError as error:
        if flags.json:
            print(json.dumps({"ok": False, "problems": error.problems, "warnings": [], "workspaces": []}, indent=2))
        raise _FailedError(str(error)) from None
    report = check.as_json(checks, os.environ)
    if flags.json:
        print(json.dumps({"problems": [], "warnings": config.warnings(loaded), **report}, indent=2))
    else:
        for remark in config.warnings(loaded):
            print(f"{flags.config_file}: warning: {remark}")
        for line in check.lines(checks, os.environ):
            print(line)
    return 0 if report["ok"] else 1


def _print(flags: argparse.Namespace) -> int:
    _on_stop_signals(_give_up)
    loaded = _load(flags.config_file)
    try:
        polls = Round(loaded, os.environ)
    except ConfigError as error:  # a key that was there a moment ago
        raise _FailedError(str(error)) from None
    logs.configure(level=flags.log_level, form=flags.log_format, stream=sys.stderr, secrets=lambda: polls.secrets)
    content = polls.run()
    _on_stop_signals(signal.SIG_IGN)  # the rest takes no time
    troubles = polls.troubles()
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    try:
        if flags.output is None:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        else:
            replace_file(flags.output, content)
    except OSError as error:
        if flags.output is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
        raise _FailedError(f"{flags.output or 'stdout'}: cannot be written: {error.strerror}") from None
    return 1 if troubles else 0


def _give_up(*_: object) -> NoReturn:
    _on_stop_signals(signal.SIG_IGN)  # one is enough
    print("stopped before all was asked", file=sys.stderr)
    raise SystemExit(1)


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


def _load_both(path: Path, web_path: Path | None) -> tuple[Config, Watched | None]:
    """Read the configuration, and the web server's where there is one; what is wrong with both is told at once."""
    problems: list[str] = []
    loaded, web_config = None, None
    try:
        loaded = config.load(path, os.environ)
    except ConfigError as error:
        problems += error.problems
    try:
        web_config = None if web_path is None else Watched(web_path)
    except ConfigError as error:
        problems += error.problems
    if loaded is None or problems:
        raise _FailedError("\n".join(problems))
    return loaded, web_config


def _load(path: Path) -> Config:
    try:
        return config.load(path, os.environ)
    except ConfigError as error:
        raise _FailedError(str(error)) from None


def _run(
    file: Path,
    flags: argparse.Namespace,
    *,
    shard: Shard = WHOLE,
    hangups: SimpleQueue[None] | None = None,
    started: Callable[[Sequence[str]], None] = lambda _: None,
) -> int:
    """Poll and serve until a signal, or until an exception that nobody expected; each of `hangups` is a reload."""
    watched = WatchedFile(file)  # before it is read: no change in between is missed
    whole, web_config = _load_both(file, flags.web_config_file)
    loaded = shards.part(whole, shard)
    with contextlib.ExitStack() as stack:
        addresses = flags.listen_addresses or [flags.default_listen_address]
        sockets = [stack.enter_context(_listening(address, "--web.listen-address")) for address in addresses]
        probes = [
            stack.enter_context(_listening(address, "--web.health.listen-address"))
            for address in flags.health_addresses or ()
        ]
        process = _Process(loaded, shard)
        logs.configure(level=flags.log_level, form=flags.log_format, stream=sys.stderr, secrets=lambda: process.secrets)
        configuration = Configuration(
            loaded,
            shard=shard,
            read=lambda: shards.part(config.load(file, os.environ), shard),
            apply=process.poller.apply,
            wall=time.time,
        )
        limits = Limits(
            connections=flags.max_connections, header_timeout=flags.header_timeout, write_timeout=flags.write_timeout
        ).within_open_files(servers=1 + bool(probes), reserved=_reserved(loaded))
        tls = web_config is not None and web_config.current.context is not None
        urls = [_url(listener, tls=tls) for listener in sockets]
        for url in urls:
            logger.info("listening", extra={"url": url, "version": __version__})
        for listener in probes:
            logger.info("listening for probes", extra={"url": _url(listener)})
        for remark in web_config.current.warnings if web_config is not None else ():
            logger.warning(remark)
        started(urls)
        return asyncio.run(
            process.run(
                sockets,
                probes,
                configuration,
                flags,
                limits=limits,
                web_config=web_config,
                hangups=hangups,
                watched=watched,
            )
        )


def _reserved(loaded: Config) -> int:
    """Return how many open files polling and all else may need."""
    return _OPEN_FILES + len(loaded.workspaces) * loaded.poll.concurrency


class _Process:
    """The running exporter: what polls, what serves, and what ends both."""

    def __init__(self, loaded: Config, shard: Shard) -> None:
        self._status = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._exposition = Exposition(loaded.limits)
        self._ready = Ready(self._exposition, monotonic=time.monotonic, fatal=self._fail)
        try:
            self.poller = Poller(
                loaded,
                total_shards=shard.total,
                environ=os.environ,
                clock=Clock(wall=time.time, monotonic=time.monotonic),
                exposition=self._exposition,
                fatal=self._fail,
            )
        except ConfigError as error:  # a key that was there a moment ago
            raise _FailedError(str(error)) from None

    @property
    def secrets(self) -> tuple[str, ...]:
        return self.poller.secrets

    async def run(
        self,
        sockets: list[socket.socket],
        probes: list[socket.socket],
        configuration: Configuration,
        flags: argparse.Namespace,
        *,
        limits: Limits,
        web_config: Watched | None,
        hangups: SimpleQueue[None] | None,
        watched: WatchedFile,
    ) -> int:
        """Serve until stopped; return the exit status."""
        self._loop = asyncio.get_running_loop()
        _on_stop_signals(self._stop)  # not the loop's own way, which would bring the default back when it closes
        application = web.application(
            self.poller,
            self._exposition,
            self._ready,
            configuration,
            web_config=web_config,
            telemetry_path=flags.telemetry_path,
            lifecycle=flags.enable_lifecycle,
        )
        servers = self._servers(application, limits, web_config)
        for each, listeners in zip(servers, (sockets, probes), strict=True):
            each.start(listeners)
        self.poller.start()
        self._ready.start()
        following = asyncio.create_task(self._follow(web_config))
        if hangups is not None:
            threading.Thread(
                target=self._reload,
                args=(hangups, configuration, watched, flags.auto_reload_interval),
                name="reload",
                daemon=True,
            ).start()
        await self._stopped.wait()
        _on_stop_signals(signal.SIG_IGN)  # one is enough
        logger.info("stopping")
        self.poller.stop()
        self._ready.stop()
        following.cancel()
        await asyncio.gather(*(each.stop(_GRACE) for each in servers))
        return self._status

    def _servers(self, application: ASGIApp, limits: Limits, web_config: Watched | None) -> tuple[Server, Server]:
        """Return what serves the pages and what serves the probes."""

        def settings() -> WebConfig:
            return _OPEN if web_config is None else web_config.current

        return (
            Server(application, headers=web.HEADERS, limits=limits, settings=settings),
            Server(web.health_application(self.poller), headers=web.HEADERS, limits=limits),
        )

    async def _follow(self, web_config: Watched | None) -> None:
        """Bring changes of the web configuration into force."""
        try:
            while web_config is not None:
                await asyncio.sleep(_WATCHING)
                await asyncio.to_thread(web_config.refresh)
        except Exception as error:  # noqa: BLE001 - no later change would be seen
            self._fail(error)

    def _reload(
        self,
        hangups: SimpleQueue[None],
        configuration: Configuration,
        watched: WatchedFile,
        interval: float | None,
    ) -> None:
        """Reload after each hang-up, and after each change of the file, looked for every `interval` seconds if any."""
        try:
            while True:
                try:
                    hangups.get(timeout=interval)
                except Empty:
                    if not watched.changed():
                        continue
                while not hangups.empty():  # several in a row want the same
                    hangups.get()
                configuration.reload()
        except BaseException as error:  # noqa: BLE001 - no later signal would be heeded
            self._fail(error)

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


def _listening(address: tuple[str, int], flag: str) -> socket.socket:
    try:
        return server.listen(*address)
    except OSError as error:
        raise _cannot_listen(address, error, flag) from None


def _cannot_listen(address: tuple[str, int], error: OSError, flag: str = "--web.listen-address") -> _FailedError:
    reason = (error.strerror or "").partition(" (")[0]  # in brackets the standard library repeats the address
    return _FailedError(f"{flag}: cannot listen on {_joined(*address)}: {reason}")


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _url(listener: socket.socket, *, tls: bool = False) -> str:
    host, port, *_ = listener.getsockname()
    return f"{'https' if tls else 'http'}://{_joined(host, port)}"


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
    _add_config_flag(parser)
    parser.add_argument(
        "--config.check",
        dest="config_check",
        action="store_true",
        help="check the configuration file, say everything that is wrong with it, and exit",
    )
    parser.add_argument(
        "--config.auto-reload-interval",
        dest="auto_reload_interval",
        type=_reload_interval,
        metavar="DURATION",
        help="look so often whether the configuration file has changed, and load it again if so",
    )
    _add_listen_flag(parser, _address, "address to listen on, may be repeated (default: :10105, all addresses)")
    _add_web_flags(parser)
    parser.add_argument(
        "--web.enable-lifecycle",
        dest="enable_lifecycle",
        action="store_true",
        help="allow everybody who reaches the exporter to reload the configuration with POST /-/reload",
    )
    parser.add_argument(
        "--shard",
        type=_shard_number,
        default=0,
        metavar="NUMBER",
        help="which of the shards this exporter is, counted from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--total-shards",
        dest="total_shards",
        type=_shard_count,
        default=1,
        metavar="NUMBER",
        help="how many exporters share the campaigns, each with a part of them (default: %(default)s)",
    )
    _add_page_and_log_flags(parser, level="info")


def _demo_flags(parser: argparse.ArgumentParser) -> None:
    _add_listen_flag(parser, _loopback_address, "loopback address to listen on (default: 127.0.0.1:10105)")
    parser.set_defaults(
        default_listen_address=("127.0.0.1", 10105),
        enable_lifecycle=False,
        web_config_file=None,
        health_addresses=None,
        max_connections=_LIMITS.connections,
        header_timeout=_LIMITS.header_timeout,
        write_timeout=_LIMITS.write_timeout,
    )
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


def _add_web_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--web.config.file",
        dest="web_config_file",
        type=Path,
        metavar="FILE",
        help="file with TLS, users and headers, in the form of the Prometheus exporter toolkit's web-config.yml",
    )
    parser.add_argument(
        "--web.health.listen-address",
        dest="health_addresses",
        type=_address,
        action="append",
        metavar="ADDRESS",
        help="another address, without TLS and users, that answers /-/healthy and /-/ready only, may be repeated",
    )
    parser.add_argument(
        "--web.max-connections",
        dest="max_connections",
        type=_connections,
        default=_LIMITS.connections,
        metavar="NUMBER",
        help="at most so many connections; when there are more the oldest without a request is closed"
        " (default: %(default)s)",
    )
    for flag, default, text in (
        ("header", _LIMITS.header_timeout, "how long a connection may take for TLS and for its request"),
        ("write", _LIMITS.write_timeout, "how long a client may take to receive an answer"),
    ):
        parser.add_argument(
            f"--web.{flag}-timeout",
            dest=f"{flag}_timeout",
            type=_timeout,
            default=f"{default:g}s",
            metavar="DURATION",
            help=f"{text} (default: %(default)s)",
        )


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


def _check_flags(parser: argparse.ArgumentParser) -> None:
    _add_config_flag(parser)
    parser.add_argument("--json", action="store_true", help="report as JSON, for scripts")


def _print_flags(parser: argparse.ArgumentParser) -> None:
    _add_config_flag(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to replace, at once and as a whole (default: stdout)"
    )
    _add_log_flags(parser, level="error")


def _add_config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config.file",
        dest="config_file",
        type=Path,
        default=Path("config.yaml"),
        metavar="FILE",
        help="configuration file (default: %(default)s)",
    )


def _add_page_and_log_flags(parser: argparse.ArgumentParser, level: str) -> None:
    parser.add_argument(
        "--web.telemetry-path",
        dest="telemetry_path",
        type=_telemetry_path,
        default="/metrics",
        metavar="PATH",
        help="where the metrics are (default: %(default)s)",
    )
    _add_log_flags(parser, level)


def _add_log_flags(parser: argparse.ArgumentParser, level: str) -> None:
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


def _connections(text: str) -> int:
    return _whole_number(text, 1, _MOST_CONNECTIONS)


def _reload_interval(text: str) -> float:
    seconds = config.seconds(text)
    if not _SHORTEST_RELOAD_INTERVAL <= seconds <= _LONGEST_RELOAD_INTERVAL:
        raise argparse.ArgumentTypeError(f"expected a duration from 1s to 24h such as 30s, got {text!r}")
    return seconds


def _timeout(text: str) -> float:
    seconds = config.seconds(text)
    if not _SHORTEST_TIMEOUT <= seconds <= _LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(f"expected a duration from 100ms to 1h such as 10s, got {text!r}")
    return seconds


def _count(text: str) -> int:
    return _whole_number(text, 1, _MOST_CAMPAIGNS)


def _shard_number(text: str) -> int:
    return _whole_number(text, 0, MOST_SHARDS - 1)


def _shard_count(text: str) -> int:
    return _whole_number(text, 1, MOST_SHARDS)


def _whole_number(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}, got {text!r}")
    return int(text)


def _zone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text)
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
        raise argparse.ArgumentTypeError(f"expected an IANA time zone such as Europe/Berlin, got {text!r}") from None


_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]/\s]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_PATH = re.compile(r"/|(?:/[A-Za-z0-9_~][A-Za-z0-9._~-]*)+")
_LARGEST_PORT = 65535
_MOST_CAMPAIGNS = 100_000
_MOST_CONNECTIONS = 100_000
_SHORTEST_RELOAD_INTERVAL, _LONGEST_RELOAD_INTERVAL = 1, 24 * 3600  # seconds
_SHORTEST_TIMEOUT, _LONGEST_TIMEOUT = 0.1, 3600  # seconds
_LIMITS = Limits()
_OPEN = WebConfig()

_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None]]] = {
    "": (_serve, _serve_flags),
    "demo": (_demo, _demo_flags),
    "simulate": (_simulate, _simulate_flags),
    "check": (_check, _check_flags),
    "print": (_print, _print_flags),
}

_DESCRIPTIONS = {
    "": "Polls Braze's campaign analytics and serves the latest days' counts as Prometheus metrics.",
    "demo": "Runs the exporter against a simulated Braze: no account, no configuration file, nothing but loopback.",
    "simulate": "Runs a simulated Braze alone, and prints a configuration that polls it.",
    "check": "Asks Braze for each campaign, and says what works, what does not and what to do about it.",
    "print": "Polls each campaign once and prints the metrics of workspaces and campaigns, or writes them to a file.",
}

_EPILOG = """\
commands:
  demo        run the exporter against a simulated Braze
  simulate    run the simulated Braze alone
  health      ask a running exporter whether it is healthy
  check       ask Braze for each campaign, and say what works and what to do
  print       poll once, and print the metrics or write them to a file

`braze-exporter COMMAND --help` shows the flags of a command."""

_DEMO = """\
A simulated Braze answers on {braze}, and the exporter polls it every five seconds.

  metrics      {url}{path}
  overview     {url}/
  configuration of this demo
               {file}

Ctrl-C stops both."""
