"""The web application: /metrics from cached bodies, pages for people, health and readiness for probes."""

from __future__ import annotations

import asyncio
import platform
import time
from functools import partial
from http import HTTPStatus
from itertools import chain
from typing import TYPE_CHECKING, Generic, TypeVar

import prometheus_client
from isal import isal_zlib
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from exporter import __version__
from exporter.exposition import Format, written, written_metrics
from exporter.metrics import exporter_rows, workspace_rows
from exporter.system import threads
from exporter.system.threads import NoThreadError
from exporter.web.body_cache import Encoding
from exporter.web.negotiation import accepts_gzip, negotiate
from exporter.web.pages import CONTENT_SECURITY_POLICY, RELOAD_INTERVALS, config_page, landing_page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from concurrent.futures import Future

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from exporter.exposition import Exposition
    from exporter.poller import Poller
    from exporter.reload import CurrentConfig
    from exporter.web.body_cache import BodyCache
    from exporter.web.web_config import WatchedWebConfig

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response."""

Made = TypeVar("Made")

_GZIP_WINDOW_BITS = 31


def application(
    poller: Poller,
    exposition: Exposition,
    bodies: BodyCache,
    configuration: CurrentConfig,
    *,
    web_config: WatchedWebConfig | None = None,
    telemetry_path: str,
    request_reload: Callable[[], Future[str | None]] | None,
    log_lines_dropped: Callable[[], int],
) -> ASGIApp:
    """Return the ASGI application; without `request_reload` reloads over HTTP are forbidden."""
    scrape = _Scrape(poller, exposition, bodies, configuration, web_config, log_lines_dropped)

    def overview(reload_interval: int | None) -> str:
        campaigns = poller.campaigns
        shown = {campaign.key: exposition.shown(campaign.key) for campaign in campaigns}
        return landing_page(
            poller.workspaces,
            campaigns,
            shown,
            configuration,
            telemetry_path=telemetry_path,
            now=time.time(),
            reload_interval=reload_interval,
        )

    async def reload(_: Request) -> Response:
        if request_reload is None:
            text = "Reloading over HTTP is off: start braze-exporter with --web.enable-lifecycle, or send it SIGHUP.\n"
            return PlainTextResponse(text, status_code=403)
        problem = await asyncio.wrap_future(request_reload())
        if problem is not None:
            return PlainTextResponse(f"{problem}\n", status_code=500)
        return PlainTextResponse("The configuration was reloaded.\n")

    overviews = {
        str(seconds or ""): _page(partial(overview, seconds), "text/html; charset=utf-8")
        for seconds in (None, *RELOAD_INTERVALS)
    }

    async def landing(request: Request) -> Response:
        return await overviews.get(request.query_params.get("refresh", ""), overviews[""])(request)

    config = _page(lambda: config_page(configuration.current), "text/plain; charset=utf-8")
    routed = _routed(
        Route(telemetry_path, scrape, methods=["GET"]),  # first: it may replace a page
        Route("/", landing, methods=["GET"]),
        Route("/config", config, methods=["GET"]),
        *_probes(poller),
        Route("/-/reload", reload, methods=["POST"]),
    )

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's routing takes as long as the rest of a scrape.
        scraped = scope["path"] == telemetry_path and scope["method"] == "GET"
        await (scrape if scraped else routed)(scope, receive, send)

    return respond


def health_application(poller: Poller) -> Starlette:
    """Return an ASGI application that serves health and readiness only."""
    return _routed(*_probes(poller))


def _routed(*routes: Route) -> Starlette:
    starlette = Starlette(routes=routes)
    starlette.router.redirect_slashes = False  # a redirect of /metrics/ would go to any host that the header Host names
    return starlette


def _probes(poller: Poller) -> Iterator[Route]:
    async def healthy(_: Request) -> Response:
        return PlainTextResponse("braze-exporter is healthy.\n")

    async def ready(_: Request) -> Response:
        if poller.ready:
            return PlainTextResponse("braze-exporter is ready.\n")
        return PlainTextResponse("Not every campaign has been polled yet.\n", status_code=503)

    for path, endpoint in (("/-/healthy", healthy), ("/-/ready", ready)):
        yield Route(path, endpoint, methods=["GET"])


def _page(write: Callable[[], str], content_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of a page that `write` renders in a thread, as thousands of campaigns take a while."""

    def body(*, gzip: bool) -> bytes:
        content = write().encode(errors="replace")  # a name may contain a lone surrogate
        return _compressed(content) if gzip else content

    bodies = {gzip: SingleFlight(partial(body, gzip=gzip)) for gzip in (False, True)}

    async def endpoint(request: Request) -> Response:
        gzip = accepts_gzip(_value(request.headers, "Accept-Encoding"))
        headers = {"Content-Type": content_type, "Vary": "Accept-Encoding"}
        return Response(await bodies[gzip](), headers=headers | ({"Content-Encoding": "gzip"} if gzip else {}))

    return endpoint


class _Scrape:
    """Endpoint of /metrics: the cached body of the campaigns, followed by the exporter's current metrics."""

    def __init__(
        self,
        poller: Poller,
        exposition: Exposition,
        bodies: BodyCache,
        configuration: CurrentConfig,
        web_config: WatchedWebConfig | None,
        log_lines_dropped: Callable[[], int],
    ) -> None:
        self._poller = poller
        self._exposition = exposition
        self._bodies = bodies
        self._configuration = configuration
        self._web_config = web_config
        self._log_lines_dropped = log_lines_dropped
        self._making = {
            encoding: SingleFlight(partial(bodies.make, encoding))
            for encoding in (Encoding(form, gzip) for form in Format for gzip in (False, True))
        }
        self._collectors = (
            prometheus_client.ProcessCollector(registry=None),
            prometheus_client.PlatformCollector(registry=None),
            prometheus_client.GCCollector(registry=prometheus_client.CollectorRegistry()),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the exposition in the format and encoding that the client prefers; for HEAD only its headers."""
        headers = Headers(scope=scope)
        chosen = negotiate(_value(headers, "Accept"))
        encoding = Encoding(chosen.form, accepts_gzip(_value(headers, "Accept-Encoding")))
        body = self._bodies.get(encoding) or await self._making[encoding]()
        end = body.end(self._own(chosen.form))
        own_headers = [
            (b"content-type", chosen.content_type.encode()),
            (b"content-length", str(body.length + len(end)).encode()),
            (b"vary", b"Accept, Accept-Encoding"),
        ]
        if encoding.gzip:
            own_headers.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": own_headers})
        await send({"type": "http.response.body", "pieces": chain(body.pieces, (end,))})

    def _own(self, form: Format) -> bytes:
        rows = chain(
            chain.from_iterable(workspace_rows(workspace) for workspace in self._poller.workspaces),
            exporter_rows(
                version=__version__,
                python_version=platform.python_version(),
                reload_successful=self._configuration.successful,
                reload_time=self._configuration.succeeded_at,
                series=self._exposition.series,
                shard=self._configuration.shard,
                web_config_successful=None if self._web_config is None else self._web_config.successful,
                log_lines_dropped=self._log_lines_dropped(),
            ),
        )
        metrics = chain.from_iterable(collector.collect() for collector in self._collectors)
        end = b"# EOF\n" if form is Format.OPENMETRICS else b""
        return written(rows, form) + written_metrics(metrics, form) + end


class SingleFlight(Generic[Made]):
    """Coalesce concurrent calls of `make`: callers that arrive before a run starts share it, later ones the next run.

    No caller gets a result that is older than its call. Each run has its own thread; if no thread can be started, it
    runs in the event loop.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._making = asyncio.Lock()  # one run at a time
        self._next: asyncio.Task[Made] | None = None

    async def __call__(self) -> Made:
        """Return the result of the next run that starts."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> Made:
        async with self._making:
            self._next = None
            try:
                made = threads.call(self._make, name="page")
            except NoThreadError:
                return self._make()
            return await asyncio.wrap_future(made)


def _value(headers: Headers, name: str) -> str:
    """Return the value of a header, of all its lines joined."""
    return ",".join(headers.getlist(name))


def _compressed(content: bytes) -> bytes:
    compressor = isal_zlib.compressobj(wbits=_GZIP_WINDOW_BITS)
    return compressor.compress(content) + compressor.flush()
