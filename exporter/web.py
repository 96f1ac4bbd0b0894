"""The exporter's pages over HTTP: the metrics from memory, a landing page for people, and two for probes."""

from __future__ import annotations

import asyncio
import html
import platform
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING

import prometheus_client
from isal import isal_zlib
from prometheus_client.openmetrics.exposition import generate_latest as generate_latest_openmetrics
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from exporter import __version__
from exporter.exposition import Format, render
from exporter.metrics import exporter_rows, workspace_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from starlette.requests import Request

    from exporter.exposition import Exposition
    from exporter.poller import CampaignState, Poller, WorkspaceState

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What every answer carries."""

_GZIP_WINDOW_BITS = 31
_SHORT = 36  # characters of an identifier; what is longer may break over lines


def application(poller: Poller, exposition: Exposition, *, telemetry_path: str, loaded_at: float) -> Starlette:
    """Return the ASGI application; `loaded_at` is the Unix time at which the configuration was loaded."""
    scrape = _Scrape(poller, exposition, loaded_at)

    async def metrics(request: Request) -> Response:
        form = negotiate(",".join(request.headers.getlist("Accept")))
        gzip = accepts_gzip(",".join(request.headers.getlist("Accept-Encoding")))
        # In a thread, so that probes and small requests are answered meanwhile.
        body = await asyncio.to_thread(scrape.gzipped if gzip else scrape.plain, form)
        headers = {"Content-Type": form.value, "Vary": "Accept, Accept-Encoding"}
        return Response(body, headers=headers | ({"Content-Encoding": "gzip"} if gzip else {}))

    def page() -> str:
        shown = {state.key: exposition.shown(state.key) for state in poller.campaigns}
        return landing_page(poller.workspaces, poller.campaigns, shown, telemetry_path)

    async def landing(_: Request) -> Response:
        return HTMLResponse(await asyncio.to_thread(page))

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("braze-exporter is healthy.\n")

    async def ready(_: Request) -> Response:
        if poller.ready:
            return PlainTextResponse("braze-exporter is ready.\n")
        return PlainTextResponse("Not every campaign has been polled yet.\n", status_code=503)

    pages = {"/": landing, telemetry_path: metrics, "/-/healthy": healthy, "/-/ready": ready}
    starlette = Starlette(routes=[Route(path, answer, methods=["GET"]) for path, answer in pages.items()])
    starlette.router.redirect_slashes = False  # /metrics/ is unknown, not a redirect to what Host names
    return starlette


def negotiate(accept: str) -> Format:
    """Choose the format by an Accept header; one that fits nothing gets text.

    OpenMetrics is for those who name it and want it as much as text.
    """
    qualities: dict[str, float] = {}
    for media_type, parameters, quality in _preferences(accept):
        if parameters.get("version") in {None, _VERSIONS.get(media_type)}:
            qualities[media_type] = max(quality, qualities.get(media_type, 0.0))
    openmetrics = qualities.get("application/openmetrics-text", 0.0)
    text = next((qualities[name] for name in ("text/plain", "text/*", "*/*") if name in qualities), 0.0)
    return Format.OPENMETRICS if 0 < openmetrics >= text else Format.TEXT


def accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether an Accept-Encoding header allows gzip, by its name or by a star."""
    qualities = {coding: quality for coding, _, quality in _preferences(accept_encoding)}
    return qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0))) > 0


def landing_page(
    workspaces: Sequence[WorkspaceState],
    campaigns: Sequence[CampaignState],
    shown: Mapping[tuple[str, str], int],
    telemetry_path: str,
) -> str:
    """Return the page for people: what this is, where the metrics are, and how polling goes."""
    workspace_rows = (
        (
            workspace.workspace,
            "up" if workspace.up else "down",
            f"paused: {workspace.closed.value}" if workspace.closed else "polling",
            workspace.campaigns,
            workspace.timezone,
        )
        for workspace in workspaces
    )
    campaign_rows = (
        (
            campaign.workspace,
            campaign.campaign_name,
            campaign.campaign_id,
            _state(campaign),
            _time(campaign.last_success),
            campaign.latest.date.isoformat() if campaign.latest else "none",
            shown[campaign.key],
        )
        for campaign in campaigns
    )
    return _PAGE.format(
        version=html.escape(__version__),
        metrics=html.escape(telemetry_path),
        workspaces=_table(("Workspace", "Up", "State", "Campaigns", "Time zone"), workspace_rows),
        campaigns=_table(
            ("Workspace", "Campaign", "API identifier", "Last poll", "Last success", "Latest day", "Samples"),
            campaign_rows,
        ),
    )


_VERSIONS = {"application/openmetrics-text": "1.0.0", "text/plain": "0.0.4"}


class _Scrape:
    """Joins what is ready with the exporter's own metrics, read at that moment."""

    def __init__(self, poller: Poller, exposition: Exposition, loaded_at: float) -> None:
        self._poller = poller
        self._exposition = exposition
        self._loaded_at = loaded_at
        self._process = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._process)
        prometheus_client.PlatformCollector(registry=self._process)
        prometheus_client.GCCollector(registry=self._process)

    def plain(self, form: Format) -> bytes:
        """Return the whole exposition."""
        rows = chain(
            chain.from_iterable(workspace_rows(workspace) for workspace in self._poller.workspaces),
            exporter_rows(
                version=__version__,
                python_version=platform.python_version(),
                reload_successful=True,
                reload_time=self._loaded_at,
                series=self._exposition.series,
            ),
        )
        generate_latest = prometheus_client.generate_latest if form is Format.TEXT else generate_latest_openmetrics
        return b"".join((*self._exposition.parts(form, render(rows)), generate_latest(self._process)))

    def gzipped(self, form: Format) -> bytes:
        """Return the whole exposition as one gzip member."""
        compressor = isal_zlib.compressobj(wbits=_GZIP_WINDOW_BITS)
        return compressor.compress(self.plain(form)) + compressor.flush()


def _preferences(header: str) -> Iterable[tuple[str, dict[str, str], float]]:
    """Yield what a header of the Accept family names: the value, its parameters and its quality from 0 to 1."""
    for part in header.split(","):
        value, *rest = (piece.strip() for piece in part.split(";"))
        pairs = (piece.partition("=") for piece in rest)
        parameters = {name.strip().lower(): text.strip().strip('"') for name, _, text in pairs}
        yield value.lower(), parameters, _quality(parameters.get("q", "1"))


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


def _state(campaign: CampaignState) -> str:
    if campaign.failure is not None:
        return f"{campaign.failure.reason.value}: {campaign.failure.detail}"
    return "not polled yet" if campaign.up is None else "succeeded"


def _time(unix: float | None) -> str:
    return "never" if unix is None else f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join(f"<tr>{''.join(_cell(str(cell)) for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def _cell(text: str) -> str:
    kind = ' class="long"' if len(text) > _SHORT else ""
    return f"<td{kind}>{html.escape(text)}</td>"


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>braze-exporter</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; }}
th, td {{ border-bottom: 1px solid #8886; padding: .3rem 1.2rem .3rem 0; text-align: left; vertical-align: top; }}
th, td {{ white-space: nowrap; }}
.long {{ min-width: 18rem; overflow-wrap: anywhere; white-space: normal; }}
</style>
</head>
<body>
<h1>braze-exporter</h1>
<p>Prometheus metrics of Braze campaigns, version {version}.</p>
<ul>
<li><a href="{metrics}">Metrics</a></li>
<li><a href="/-/healthy">Health</a> and <a href="/-/ready">readiness</a></li>
</ul>
<h2>Workspaces</h2>
{workspaces}
<h2>Campaigns</h2>
{campaigns}
</body>
</html>
"""
