"""The running exporter: what is wired together, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from exporter import __version__, config, logs, shards
from exporter.config import ConfigError
from exporter.poller import Poller
from exporter.publisher import Publisher
from exporter.reload import CurrentConfig, Reloads
from exporter.shards import WHOLE
from exporter.state import system_clock
from exporter.system import open_files, systemd
from exporter.system.command import CommandError
from exporter.system.files import Watch, digests
from exporter.system.open_files import TooFewOpenFilesError
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
    from pathlib import Path

    from starlette.types import ASGIApp

    from exporter.config import Config
    from exporter.reload import Requests
    from exporter.shards import Shard
    from exporter.system.command import Surroundings

logger = logging.getLogger(__name__)

_GARBAGE = 50_000  # allocations between garbage collections: polls allocate much and leave no cycles
_GRACE = 0.4  # seconds that responses in progress have when the process stops
_M_ARENA_MAX = -8  # see mallopt(3)
_REFUSED = 78  # EX_CONFIG of sysexits.h: starting again with the same configuration is useless
_STOPPING = 0.9  # seconds from a signal to the end of the process, whatever still runs
_OPEN = WebConfig()


def run(
    file: Path,
    flags: argparse.Namespace,
    surroundings: Surroundings,
    *,
    shard: Shard = WHOLE,
    started: Callable[[Sequence[str]], None] = lambda _: None,
) -> int:
    """Poll and serve until a signal or an unexpected exception; each SIGHUP is a reload. Return the exit status.

    `started` is called with the URLs once they are listened on. Raises ConfigError, CommandError, NoThreadError.
    """
    _use_one_arena()
    gc.set_threshold(_GARBAGE)
    # Before the file is read: no change in between is missed.
    watch = Watch(digests([file])) if flags.auto_reload_interval else None
    whole, web_config = load_both(file, flags.web_config_file, refused=_REFUSED)
    with contextlib.ExitStack() as stack:
        addresses = flags.listen_addresses or [flags.default_listen_address]
        sockets = [stack.enter_context(_listening(address, "--web.listen-address")) for address in addresses]
        probes = [
            stack.enter_context(_listening(address, "--web.health.listen-address"))
            for address in flags.health_addresses or ()
        ]
        servers = 1 + bool(probes)
        loaded, connections, remarks = _within_open_files(shards.part(whole, shard), servers, flags.max_connections)
        process = _Process(loaded, shard)
        poller = process.poller
        errors = surroundings.errors
        errors.notice = logs.configure(
            level=flags.log_level, form=flags.log_format, write=errors.write, secrets=lambda: poller.secrets
        )

        def read() -> Config:
            part = shards.part(config.load(file, os.environ), shard)
            fitting, _, remarks = _within_open_files(part, servers, connections, fewest=connections)
            for remark in remarks:
                logger.warning(remark)
            return fitting

        configuration = CurrentConfig(loaded, shard=shard, read=read, apply=poller.apply, wall=time.time)
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


def load_both(path: Path, web_path: Path | None, *, refused: int) -> tuple[Config, WatchedWebConfig | None]:
    """Read the configuration, and the web server's where there is one.

    Raises CommandError with all problems of both, and with the status `refused`.
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
        raise CommandError("\n".join(problems), refused)
    return loaded, web_config


def _use_one_arena() -> None:
    """Make glibc use one arena for all threads, so that memory freed by one is available to the others.

    By default it keeps an arena per thread, and the interpreter runs only one of them at a time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _within_open_files(
    loaded: Config, servers: int, connections: int, *, fewest: int = open_files.FEWEST_CONNECTIONS
) -> tuple[Config, int, list[str]]:
    """Return the configuration and the connections per server that the limit on open files allows, and warnings.

    Raises ConfigError when it does not allow the `fewest` connections and one request per workspace.
    """
    wishes = {
        "servers": servers,
        "connections": connections,
        "workspaces": len(loaded.workspaces),
        "concurrency": loaded.poll.concurrency,
    }
    limit = open_files.raised_limit(open_files.wanted(**wishes))
    try:
        shares = open_files.share(limit, **wishes, fewest=fewest)
    except TooFewOpenFilesError as error:
        raise ConfigError([str(error)]) from None
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
    """The running exporter: the poller, the servers, and how both are stopped."""

    def __init__(self, loaded: Config, shard: Shard) -> None:
        self._status = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        publisher = Publisher(loaded.limits)
        self._exposition = publisher.exposition
        self._body_cache = BodyCache(self._exposition, monotonic=time.monotonic, fatal=self._fail)
        self.poller = Poller(
            loaded,
            total_shards=shard.total,
            environ=os.environ,
            clock=system_clock(),
            publisher=publisher,
            fatal=self._fail,
        )

    async def run(
        self,
        sockets: list[socket.socket],
        probes: list[socket.socket],
        configuration: CurrentConfig,
        flags: argparse.Namespace,
        *,
        limits: ClientLimits,
        web_config: WatchedWebConfig | None,
        surroundings: Surroundings,
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
        """Return the server of the pages and the server of the probes."""

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
        """Make `run` return. May be called from any thread, any number of times."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed already
                self._loop.call_soon_threadsafe(self._stopped.set)


def _listening(address: tuple[str, int], flag: str) -> socket.socket:
    try:
        return server.listen(*address)
    except OSError as error:
        raise cannot_listen(address, error, flag) from None


def cannot_listen(address: tuple[str, int], error: OSError, flag: str = "--web.listen-address") -> CommandError:
    """Return the error of an address that cannot be listened on."""
    reason = (error.strerror or "").partition(" (")[0]  # in brackets the standard library repeats the address
    return CommandError(f"{flag}: cannot listen on {_joined(*address)}: {reason}")


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _url(listener: socket.socket, *, tls: bool = False) -> str:
    host, port, *_ = listener.getsockname()
    return f"{'https' if tls else 'http'}://{_joined(host, port)}"
