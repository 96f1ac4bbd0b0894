"""The exporter's pages over HTTP: the metrics from memory, pages for people, and two for probes."""

from __future__ import annotations

import asyncio
import platform
import time
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Generic, TypeVar

import prometheus_client
from isal import isal_zlib
from prometheus_client.openmetrics.exposition import generate_latest as generate_latest_openmetrics
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from exporter import __version__
from exporter.exposition import Format, render
from exporter.metrics import exporter_rows, workspace_rows
from exporter.negotiation import accepts_gzip, negotiate
from exporter.pages import CONTENT_SECURITY_POLICY, config_page, landing_page
from exporter.server import SLICE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from exporter.exposition import Exposition
    from exporter.poller import Poller
    from exporter.reload import Configuration
    from exporter.webconfig import Watched

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What every answer carries."""

Made = TypeVar("Made")

_GZIP_WINDOW_BITS = 31


def application(
    poller: Poller,
    exposition: Exposition,
    configuration: Configuration,
    *,
    web_config: Watched | None = None,
    telemetry_path: str,
    lifecycle: bool,
) -> Starlette:
    """Return the ASGI application; `lifecycle` allows reloads over HTTP."""
    scrape = _Scrape(poller, exposition, configuration, web_config)
    reloading = asyncio.Lock()  # who waits for another's reload holds no thread that scrapes need

    async def metrics(request: Request) -> Response:
        return await scrape.answer(request)

    def overview() -> str:
        campaigns = poller.campaigns
        shown = {campaign.key: exposition.shown(campaign.key) for campaign in campaigns}
        return landing_page(
            poller.workspaces, campaigns, shown, configuration, telemetry_path=telemetry_path, now=time.time()
        )

    async def reload(_: Request) -> Response:
        if not lifecycle:
            text = "Reloading over HTTP is off: start braze-exporter with --web.enable-lifecycle, or send it SIGHUP.\n"
            return PlainTextResponse(text, status_code=403)
        async with reloading:
            problem = await asyncio.to_thread(configuration.reload)
        if problem is not None:
            return PlainTextResponse(f"{problem}\n", status_code=500)
        return PlainTextResponse("The configuration was reloaded.\n")

    landing = _page(overview, "text/html; charset=utf-8")
    config = _page(lambda: config_page(configuration.current), "text/plain; charset=utf-8")
    pages = {"/": landing, "/config": config, telemetry_path: metrics}
    routes = [Route(path, answer, methods=["GET"]) for path, answer in pages.items()]
    return _routed(*routes, *_probes(poller), Route("/-/reload", reload, methods=["POST"]))


def health_application(poller: Poller) -> Starlette:
    """Return an ASGI application that answers probes and nothing else."""
    return _routed(*_probes(poller))


def _routed(*routes: Route) -> Starlette:
    starlette = Starlette(routes=routes)
    starlette.router.redirect_slashes = False  # /metrics/ is unknown, not a redirect to what Host names
    return starlette


def _probes(poller: Poller) -> Iterator[Route]:
    async def healthy(_: Request) -> Response:
        return PlainTextResponse("braze-exporter is healthy.\n")

    async def ready(_: Request) -> Response:
        if poller.ready:
            return PlainTextResponse("braze-exporter is ready.\n")
        return PlainTextResponse("Not every campaign has been polled yet.\n", status_code=503)

    for path, answer in (("/-/healthy", healthy), ("/-/ready", ready)):
        yield Route(path, answer, methods=["GET"])


def _page(write: Callable[[], str], content_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers with a text that is written in a thread: thousands of campaigns take a moment."""

    def body(*, gzip: bool) -> bytes:
        content = write().encode(errors="replace")  # a name may hold half a pair of surrogates
        return _compressed(content) if gzip else content

    bodies = {gzip: _Together(partial(body, gzip=gzip)) for gzip in (False, True)}

    async def answer(request: Request) -> Response:
        gzip = accepts_gzip(_asked(request, "Accept-Encoding"))
        headers = {"Content-Type": content_type, "Vary": "Accept-Encoding"}
        return Response(await bodies[gzip](), headers=headers | ({"Content-Encoding": "gzip"} if gzip else {}))

    return answer


class _Scrape:
    """Joins what is ready with the exporter's own metrics, read at that moment."""

    def __init__(
        self, poller: Poller, exposition: Exposition, configuration: Configuration, web_config: Watched | None
    ) -> None:
        self._poller = poller
        self._exposition = exposition
        self._configuration = configuration
        self._web_config = web_config
        self._plain = {form: _Together(partial(self._measured, form)) for form in Format}
        self._gzipped = {form: _Together(partial(self._compressed, form)) for form in Format}
        self._process = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._process)
        prometheus_client.PlatformCollector(registry=self._process)
        prometheus_client.GCCollector(registry=self._process)

    async def answer(self, request: Request) -> Response:
        """Return the whole exposition in the form that is asked for."""
        chosen = negotiate(_asked(request, "Accept"))
        headers = {"Content-Type": chosen.content_type, "Vary": "Accept, Accept-Encoding"}
        if accepts_gzip(_asked(request, "Accept-Encoding")):
            return Response(await self._gzipped[chosen.form](), headers={**headers, "Content-Encoding": "gzip"})
        parts, length = await self._plain[chosen.form]()
        return _Joined(parts, {**headers, "Content-Length": str(length)})

    def _measured(self, form: Format) -> tuple[list[bytes], int]:
        parts = self._parts(form)
        return parts, sum(map(len, parts))

    def _compressed(self, form: Format) -> bytes:
        return _compressed(b"".join(self._parts(form)))

    def _parts(self, form: Format) -> list[bytes]:
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
            ),
        )
        generate_latest = prometheus_client.generate_latest if form is Format.TEXT else generate_latest_openmetrics
        return [*self._exposition.parts(form, render(rows)), generate_latest(self._process)]


class _Together(Generic[Made]):
    """Makes something in a thread, once for all who ask before it is begun; who asks later gets the next.

    So nobody gets what is older than the question, and a crowd costs hardly more than one.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._next: asyncio.Task[Made] | None = None

    async def __call__(self) -> Made:
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> Made:
        async with self._making:
            self._next = None
            return await asyncio.to_thread(self._make)


class _Joined(Response):
    """An answer that is joined slice by slice, each when the client has taken the one before; its length is given.

    So a slow client costs the places of the parts, which all clients share, and one slice.
    """

    def __init__(self, parts: Sequence[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(headers=headers)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send head and body, for HEAD the head alone."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in _slices(self._parts) if scope["method"] != "HEAD" else ():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _slices(parts: Iterable[bytes]) -> Iterator[bytes]:
    together: list[bytes] = []
    size = 0
    for part in parts:
        together.append(part)
        size += len(part)
        if size >= SLICE:
            yield b"".join(together)
            together, size = [], 0
    yield b"".join(together)


def _asked(request: Request, name: str) -> str:
    """Return a header, with all its lines as one."""
    return ",".join(request.headers.getlist(name))


def _compressed(content: bytes) -> bytes:
    compressor = isal_zlib.compressobj(wbits=_GZIP_WINDOW_BITS)
    return compressor.compress(content) + compressor.flush()
