"""The command line: reads flags and configuration, puts the parts together, runs them until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from exporter import __version__, config, logs, shards
from exporter.commands import check
from exporter.commands.print import Round, replace_file
from exporter.commands.progress import Progress
from exporter.config import ConfigError
from exporter.flags import CAMPAIGNS, SIMULATED_KEY, flag_parser
from exporter.poller import Poller
from exporter.publisher import Publisher
from exporter.reload import Configuration, Reloads
from exporter.shards import WHOLE, Shard
from exporter.simulator.server import Simulator
from exporter.state import system_clock
from exporter.system import open_files, systemd
from exporter.system.files import Watch, digests
from exporter.system.open_files import TooFewOpenFilesError
from exporter.system.output import Output
from exporter.system.threads import NoThreadError
from exporter.web import app as web
from exporter.web import server
from exporter.web.body_cache import BodyCache
from exporter.web.client_limits import ClientLimits
from exporter.web.server import Server
from exporter.web.web_config import WatchedWebConfig, WebConfig

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable, Sequence
    from zoneinfo import ZoneInfo

    from starlette.types import ASGIApp

    from exporter.config import Config
    from exporter.reload import Requests
    from exporter.system.signals import Signals

logger = logging.getLogger(__name__)

_GARBAGE = 50_000  # objects between two searches for those that refer to each other: polls make crowds that do not
_GRACE = 0.4  # seconds that running answers have when the process stops
_M_ARENA_MAX = -8  # see mallopt(3)
_REFUSED = 78  # EX_CONFIG of sysexits.h: the same configuration will be refused again
_STOPPING = 0.9  # seconds from a signal to the end of the process, whatever still runs


def main(
    arguments: Sequence[str] | None = None, *, signals: Signals | None = None, errors: Output | None = None
) -> int:
    """Run the command and return the exit status.

    It is 0 when all is done, 1 after an error of the configuration or at run time, 2 after wrong usage, and 78 where a
    configuration keeps the exporter from starting. The log goes to `errors`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given.pop(0) if given and given[0] and given[0] in _COMMANDS else ""
    parser = flag_parser(name)
    surroundings = _Surroundings(signals, errors or Output(sys.stderr.fileno()))
    try:
        return _COMMANDS[name](parser.parse_args(given), surroundings)
    except _UsageError as error:
        parser.error(str(error))
    except _FailedError as error:
        print(error, file=sys.stderr)
        return error.status
    except NoThreadError as error:
        print(error, file=sys.stderr)
        return 1


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What a command gets of its process: the signals, if it receives any, and where its log goes."""

    signals: Signals | None
    errors: Output

    def on_stop(self, stop: Callable[[], None]) -> None:
        """Call this from now on when a signal means the end."""
        if self.signals is not None:
            self.signals.on_stop = stop


class _FailedError(Exception):
    """What keeps the command from its work, in words for a person, and the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class _UsageError(Exception):
    """Flags that do not fit together, in words for a person."""


def _serve(flags: argparse.Namespace, surroundings: _Surroundings) -> int:
    shard = _shard(flags)
    if not flags.config_check:
        return _run(flags.config_file, flags, surroundings, shard=shard)
    loaded, web_config = _load_both(flags.config_file, flags.web_config_file, refused=1)
    own = shards.part(loaded, shard)
    lines = [f"{flags.config_file}: warning: {remark}" for remark in config.warnings(own, total_shards=shard.total)]
    if web_config is not None:
        lines += [f"{flags.web_config_file}: warning: {remark}" for remark in web_config.current.warnings]
        lines.append(f"{flags.web_config_file}: valid")
    counted = f"workspaces: {len(loaded.workspaces)}, campaigns: {_campaigns(loaded)}"
    if shard.total > 1:
        counted += f", of which shard {shard.number} of {shard.total} has {_campaigns(own)}"
    lines.append(f"{flags.config_file}: valid; {counted}")
    _print_all(lines)
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


def _demo(flags: argparse.Namespace, surroundings: _Surroundings) -> int:
    with contextlib.ExitStack() as stack:
        braze = stack.enter_context(Simulator(campaigns=CAMPAIGNS, api_key=SIMULATED_KEY, newest_day=flags.newest_day))
        key = _file_in_memory("api-key", SIMULATED_KEY)
        workspace = _configuration(braze, f"api_key_file: {key}")
        file = _file_in_memory("config.yaml", f"poll: {{interval: 5s, timeout: 5s}}\n{workspace}")

        def introduce(urls: Sequence[str]) -> None:
            introduction = _DEMO.format(url=urls[0], path=flags.telemetry_path, braze=braze.url, file=file)
            Output(sys.stdout.fileno()).write(introduction)  # whether anybody reads it or not

        status = _run(file, flags, surroundings, started=introduce)
        stack.pop_all()  # the process ends: without its Braze a poll that is under way would fail, and be logged
        return status


def _file_in_memory(name: str, text: str) -> Path:
    """Return a file that the process alone holds, and that is gone with it: there may be no folder to write to."""
    descriptor = os.memfd_create(name)
    os.write(descriptor, text.encode())
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def _simulate(flags: argparse.Namespace, _: _Surroundings) -> int:
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
        lines = [f"# A simulated Braze answers on {braze.url}. A configuration that polls it:"]
        if not flags.api_key_file:
            lines.append(f"# (with BRAZE_API_KEY={SIMULATED_KEY} in the environment)")
        with contextlib.suppress(OSError):  # it answers, whether anybody reads this or not
            print(*lines, _configuration(braze, source, flags.timezone), sep="\n", flush=True)
        while True:  # until a signal ends the process
            time.sleep(3600)
    finally:
        braze.close()


def _check(flags: argparse.Namespace, _: _Surroundings) -> int:
    logging.getLogger().addHandler(logging.NullHandler())  # the report says it all
    try:
        loaded = config.load(flags.config_file, os.environ)
        progress = Progress(sys.stderr, time.monotonic)
        try:
            clock = system_clock()
            checks = check.ask(loaded, environ=os.environ, clock=clock, progress=progress.show)
        finally:
            progress.clear()
    except ConfigError as error:
        if flags.json:
            _print_all([_json({"ok": False, "problems": error.problems, "warnings": [], "workspaces": []})])
        raise _FailedError(str(error)) from None
    report = check.as_json(checks, os.environ)
    if flags.json:
        _print_all([_json({"problems": [], "warnings": config.warnings(loaded), **report})])
    else:
        remarks = (f"{flags.config_file}: warning: {remark}" for remark in config.warnings(loaded))
        _print_all([*remarks, *check.lines(checks, os.environ)])
    return 0 if report["ok"] else 1


def _json(report: dict[str, object]) -> str:
    return json.dumps(report, indent=2)


def _print(flags: argparse.Namespace, surroundings: _Surroundings) -> int:
    loaded = _load(flags.config_file)
    try:
        polls = Round(loaded, os.environ)
    except ConfigError as error:  # a key that was there a moment ago
        raise _FailedError(str(error)) from None
    logs.configure(level=flags.log_level, form=flags.log_format, write=sys.stderr.write, secrets=lambda: polls.secrets)
    content = polls.run()
    troubles = polls.troubles()
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    if flags.output is None:
        _write(content)
        return 1 if troubles else 0
    surroundings.on_stop(lambda: None)  # the rest takes no time, and no half of a file is left beside the old one
    try:
        replace_file(flags.output, content)
    except OSError as error:
        raise _FailedError(f"{flags.output}: cannot be written: {error.strerror}") from None
    return 1 if troubles else 0


def _print_all(lines: Sequence[str]) -> None:
    _write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))


def _write(content: bytes) -> None:
    """Write to stdout, all of it; raises _FailedError where that cannot be."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise _FailedError(f"stdout: cannot be written: {error.strerror}") from None


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


def _load_both(path: Path, web_path: Path | None, *, refused: int) -> tuple[Config, WatchedWebConfig | None]:
    """Read the configuration, and the web server's where there is one.

    Raises _FailedError with all problems of both, and with the status `refused`.
    """
    problems: list[str] = []
    loaded, web_config = None, None
    try:
        loaded = config.load(path, os.environ)
    except ConfigError as error:
        problems += error.problems
    try:
        web_config = None if web_path is None else WatchedWebConfig(web_path)
    except ConfigError as error:
        problems += error.problems
    if loaded is None or problems:
        raise _FailedError("\n".join(problems), refused)
    return loaded, web_config


def _load(path: Path) -> Config:
    try:
        return config.load(path, os.environ)
    except ConfigError as error:
        raise _FailedError(str(error)) from None


def _run(
    file: Path,
    flags: argparse.Namespace,
    surroundings: _Surroundings,
    *,
    shard: Shard = WHOLE,
    started: Callable[[Sequence[str]], None] = lambda _: None,
) -> int:
    """Poll and serve until a signal, or until an exception that nobody expected; each SIGHUP is a reload."""
    _use_one_arena()
    gc.set_threshold(_GARBAGE)
    # Before the file is read: no change in between is missed.
    watch = Watch(digests([file])) if flags.auto_reload_interval else None
    whole, web_config = _load_both(file, flags.web_config_file, refused=_REFUSED)
    with contextlib.ExitStack() as stack:
        addresses = flags.listen_addresses or [flags.default_listen_address]
        sockets = [stack.enter_context(_listening(address, "--web.listen-address")) for address in addresses]
        probes = [
            stack.enter_context(_listening(address, "--web.health.listen-address"))
            for address in flags.health_addresses or ()
        ]
        servers = 1 + bool(probes)
        try:
            loaded, connections, remarks = _within_open_files(shards.part(whole, shard), servers, flags.max_connections)
        except TooFewOpenFilesError as error:
            raise _FailedError(str(error)) from None
        process = _Process(loaded, shard)
        poller = process.poller
        errors = surroundings.errors
        errors.notice = logs.configure(
            level=flags.log_level, form=flags.log_format, write=errors.write, secrets=lambda: poller.secrets
        )

        def read() -> Config:
            part = shards.part(config.load(file, os.environ), shard)
            try:
                fitting, _, remarks = _within_open_files(part, servers, connections, fewest=connections)
            except TooFewOpenFilesError as error:
                raise ConfigError([str(error)]) from None
            for remark in remarks:
                logger.warning(remark)
            return fitting

        configuration = Configuration(loaded, shard=shard, read=read, apply=poller.apply, wall=time.time)
        limits = ClientLimits(
            connections=connections, header_timeout=flags.header_timeout, write_timeout=flags.write_timeout
        )
        tls = web_config is not None and web_config.current.context is not None
        urls = [_url(listener, tls=tls) for listener in sockets]
        for url in urls:
            logger.info("listening", extra={"url": url, "version": __version__})
        for listener in probes:
            logger.info("listening for probes", extra={"url": _url(listener)})
        for remark in (*remarks, *(web_config.current.warnings if web_config is not None else ())):
            logger.warning(remark)
        started(urls)
        # Not asyncio.run, which waits at its end for what still runs in threads.
        return asyncio.new_event_loop().run_until_complete(
            process.run(
                sockets,
                probes,
                configuration,
                flags,
                limits=limits,
                web_config=web_config,
                surroundings=surroundings,
                watch=watch,
            )
        )


def _use_one_arena() -> None:
    """Let glibc give memory to all threads from one place, so that what one has freed the next can use.

    It would keep a place for each of many threads, of which the interpreter runs one at a time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _within_open_files(
    loaded: Config, servers: int, connections: int, *, fewest: int = open_files.FEWEST_CONNECTIONS
) -> tuple[Config, int, list[str]]:
    """Return the configuration and the connections of each server as open files allow, and what is less than wanted.

    Raises TooFewOpenFilesError where they do not allow the `fewest` connections and polls.
    """
    wishes = {
        "servers": servers,
        "connections": connections,
        "workspaces": len(loaded.workspaces),
        "concurrency": loaded.poll.concurrency,
    }
    limit = open_files.raised_limit(open_files.wanted(**wishes))
    shares = open_files.share(limit, **wishes, fewest=fewest)
    remarks = [
        f"{name} is {allowed} instead of {wanted}, as the limit on open files is {limit}"
        for name, wanted, allowed in (
            ("poll.concurrency", loaded.poll.concurrency, shares.concurrency),
            ("--web.max-connections", connections, shares.connections),
        )
        if allowed < wanted
    ]
    poll = loaded.poll.model_copy(update={"concurrency": shares.concurrency})
    return loaded.model_copy(update={"poll": poll}), shares.connections, remarks


class _Process:
    """The running exporter: what polls, what serves, and what ends both."""

    def __init__(self, loaded: Config, shard: Shard) -> None:
        self._status = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        publisher = Publisher(loaded.limits)
        self._exposition = publisher.exposition
        self._body_cache = BodyCache(self._exposition, monotonic=time.monotonic, fatal=self._fail)
        try:
            self.poller = Poller(
                loaded,
                total_shards=shard.total,
                environ=os.environ,
                clock=system_clock(),
                publisher=publisher,
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
        limits: ClientLimits,
        web_config: WatchedWebConfig | None,
        surroundings: _Surroundings,
        watch: Watch | None,
    ) -> int:
        """Serve until stopped; return the exit status."""
        self._loop = asyncio.get_running_loop()
        surroundings.on_stop(self._end)
        threading.excepthook = lambda crash: self._fail(crash.exc_value or RuntimeError("a thread ended"))
        requests: Requests = SimpleQueue() if surroundings.signals is None else surroundings.signals.hangups
        reloads = Reloads(configuration, requests, watch=watch, interval=flags.auto_reload_interval, fatal=self._fail)
        application = web.application(
            self.poller,
            self._exposition,
            self._body_cache,
            configuration,
            web_config=web_config,
            telemetry_path=flags.telemetry_path,
            request_reload=reloads.request if flags.enable_lifecycle else None,
            log_lines_dropped=lambda: surroundings.errors.dropped,
        )
        servers = self._servers(application, limits, web_config)
        for each, listeners in zip(servers, (sockets, probes), strict=True):
            each.start(listeners)
        self.poller.start()
        self._body_cache.start()
        reloads.start()
        if web_config is not None:
            web_config.start(self._fail)
        systemd.notify(systemd.READY, os.environ)
        await self._stopped.wait()
        systemd.notify(systemd.STOPPING, os.environ)
        logger.info("stopping")
        self.poller.stop()
        self._body_cache.stop()
        await asyncio.gather(*(each.stop(_GRACE) for each in servers))
        return self._status

    def _servers(
        self, application: ASGIApp, limits: ClientLimits, web_config: WatchedWebConfig | None
    ) -> tuple[Server, Server]:
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

    def _end(self) -> None:
        """End the process within a second, in the thread that received a signal."""
        self._stop()
        time.sleep(_STOPPING)  # meanwhile `run` returns and the process ends, unless something hangs
        os._exit(self._status)

    def _stop(self) -> None:
        """Let `run` return; from any thread, and any number of times."""
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

_COMMANDS: dict[str, Callable[[argparse.Namespace, _Surroundings], int]] = {
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

Ctrl-C stops both.
"""
