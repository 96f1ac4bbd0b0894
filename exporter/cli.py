"""The command line: reads flags and configuration, puts the parts together, runs them until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from exporter import __version__, check, config, logs, server, shards, web
from exporter.config import ConfigError
from exporter.exposition import Exposition
from exporter.files import Watch, digests
from exporter.flags import CAMPAIGNS, SIMULATED_KEY, flag_parser
from exporter.poller import Clock, Poller
from exporter.progress import Progress
from exporter.ready import Ready
from exporter.reload import Configuration, Reloads
from exporter.server import Limits, Server
from exporter.shards import WHOLE, Shard
from exporter.simulator import Simulator
from exporter.textfile import Round, replace_file
from exporter.threads import NoThreadError
from exporter.webconfig import Watched, WebConfig

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable, Sequence
    from types import FrameType
    from zoneinfo import ZoneInfo

    from starlette.types import ASGIApp

    from exporter.config import Config
    from exporter.reload import Requests

logger = logging.getLogger(__name__)

_GARBAGE = 50_000  # objects between two searches for those that refer to each other: polls make crowds that do not
_GRACE = 0.4  # seconds that running answers have when the process stops
_M_ARENA_MAX = -8  # see mallopt(3)
_OPEN_FILES = 64  # at most, besides connections: listening sockets, the log, key files, libraries


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 done, 1 configuration or run-time error, 2 wrong usage."""
    _on_stop_signals(_exit)  # until the server runs; as process 1 there would be no handler at all
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given.pop(0) if given and given[0] and given[0] in _COMMANDS else ""
    parser = flag_parser(name)
    try:
        return _COMMANDS[name](parser.parse_args(given))
    except _UsageError as error:
        parser.error(str(error))
    except (_FailedError, NoThreadError) as error:
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
    hangups: Requests = SimpleQueue()
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
        Simulator(campaigns=CAMPAIGNS, api_key=SIMULATED_KEY, newest_day=flags.newest_day) as braze,
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
    hangups: Requests | None = None,
    started: Callable[[Sequence[str]], None] = lambda _: None,
) -> int:
    """Poll and serve until a signal, or until an exception that nobody expected; each of `hangups` is a reload."""
    _use_one_arena()
    gc.set_threshold(_GARBAGE)
    # Before the file is read: no change in between is missed.
    watch = Watch(digests([file])) if flags.auto_reload_interval else None
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
        poller = process.poller
        logs.configure(level=flags.log_level, form=flags.log_format, stream=sys.stderr, secrets=lambda: poller.secrets)
        configuration = Configuration(
            loaded,
            shard=shard,
            read=lambda: shards.part(config.load(file, os.environ), shard),
            apply=poller.apply,
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
                watch=watch,
            )
        )


def _use_one_arena() -> None:
    """Let glibc give memory to all threads from one place, so that what one has freed the next can use.

    It would keep a place for each of many threads, of which the interpreter runs one at a time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


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

    async def run(
        self,
        sockets: list[socket.socket],
        probes: list[socket.socket],
        configuration: Configuration,
        flags: argparse.Namespace,
        *,
        limits: Limits,
        web_config: Watched | None,
        hangups: Requests | None,
        watch: Watch | None,
    ) -> int:
        """Serve until stopped; return the exit status."""
        self._loop = asyncio.get_running_loop()
        requests: Requests = SimpleQueue() if hangups is None else hangups
        reloads = Reloads(configuration, requests, watch=watch, interval=flags.auto_reload_interval, fatal=self._fail)
        _on_stop_signals(self._stop)  # not the loop's own way, which would bring the default back when it closes
        application = web.application(
            self.poller,
            self._exposition,
            self._ready,
            configuration,
            web_config=web_config,
            telemetry_path=flags.telemetry_path,
            request_reload=reloads.request if flags.enable_lifecycle else None,
        )
        servers = self._servers(application, limits, web_config)
        for each, listeners in zip(servers, (sockets, probes), strict=True):
            each.start(listeners)
        self.poller.start()
        self._ready.start()
        reloads.start()
        if web_config is not None:
            web_config.start(self._fail)
        await self._stopped.wait()
        _on_stop_signals(signal.SIG_IGN)  # one is enough
        logger.info("stopping")
        self.poller.stop()
        self._ready.stop()
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


_OPEN = WebConfig()

_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "": _serve,
    "demo": _demo,
    "simulate": _simulate,
    "check": _check,
    "print": _print,
}

_DEMO = """\
A simulated Braze answers on {braze}, and the exporter polls it every five seconds.

  metrics      {url}{path}
  overview     {url}/
  configuration of this demo
               {file}

Ctrl-C stops both."""
