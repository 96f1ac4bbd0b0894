"""Pages for people: the overview of all campaigns, failing ones first, and the configuration in use. Pure.

They load no other file and no other host: overview.css and overview.js are inlined into overview.html. Browsers run and
apply nothing else, as the Content-Security-Policy names their hashes. Without scripts only sorting and searching lack.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections import Counter
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel

from exporter import __version__
from exporter.advice import ADVICE
from exporter.braze.errors import Reason
from exporter.config import duration_text
from exporter.rollover import hours_off, meaning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from exporter.braze.data_series import Day
    from exporter.config import Config
    from exporter.reload import CurrentConfig
    from exporter.state import CampaignKey, CampaignState, WorkspaceState

FAILING, NO_DAYS, UNPOLLED, STALE, UP = _STATES = ("failing", "no days", "not polled yet", "stale", "up")
"""States of polling a campaign, in the order of the page, which is alphabetical."""

RELOAD_INTERVALS = (10, 60, 300)
"""Intervals in seconds at which the page reloads itself, if the query names one: `?refresh=60`."""

_SHORT = 120  # characters
_VOLUMES = ("sent", "impressions")  # in-app messages are not sent but shown


def landing_page(
    workspaces: Sequence[WorkspaceState],
    campaigns: Sequence[CampaignState],
    shown: Mapping[CampaignKey, int],
    configuration: CurrentConfig,
    *,
    telemetry_path: str,
    now: float,
    reload_interval: int | None = None,
) -> str:
    """Return the overview as HTML; `shown` is the number of samples of each campaign, `now` the page's Unix time.

    Links are relative, so that they work behind a proxy that serves the exporter below a path of its own.
    `reload_interval` is in seconds, None for a page that does not reload itself.
    """
    states = Counter(map(_state, campaigns))
    failing = Counter(campaign.workspace for campaign in campaigns if campaign.failure is not None)
    ordered = sorted(campaigns, key=_state)
    return _PAGE.substitute(
        title=f"{states[FAILING]:,} failing - braze-exporter" if states[FAILING] else "braze-exporter",
        style=STYLE,
        version=html.escape(__version__),
        metrics=html.escape(telemetry_path.removeprefix("/")),
        shard=f" This is shard {shard.number} of {shard.total}." if (shard := configuration.shard).total > 1 else "",
        summary="\n".join(_summary(workspaces, campaigns, states, configuration)),
        time=_time(now),
        refresh=f'<meta http-equiv="refresh" content="{reload_interval}">' if reload_interval else "",
        workspaces="\n".join(
            _workspace(workspace, failing[workspace.workspace], configuration.current.poll.interval, now)
            for workspace in workspaces
        ),
        options="".join(f'<option value="{state}">{state} ({states[state]:,})</option>' for state in _STATES),
        total=f"{len(campaigns):,}",
        campaigns="\n".join(_campaign(campaign, shown.get(campaign.key, 0), now) for campaign in ordered),
        script=SCRIPT,
    )


def config_page(config: Config) -> str:
    """Return the configuration in use as YAML that could be loaded again, with all defaults and without keys."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_ENDLESS)


_ENDLESS = 1 << 20


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes texts that are numbers in YAML 1.2 only: with an exponent and without a point.

    PyYAML's own and not libyaml's, which escapes emojis.
    """


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+\Z"), list("-+.0123456789")
)
_Dumper.add_representer(
    str,  # only double quotes escape unprintable characters; line breaks other than \n would be lost
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def _plain(value: object) -> object:
    """Return a setting as YAML has it. The models have the place of a key, never the key."""
    match value:
        case BaseModel():
            # The endpoint says the same as the instance, and no file may have both.
            return {name: _plain(setting) for name, setting in value if setting is not None and name != "instance"}
        case tuple():
            return [_plain(item) for item in value]
        case float():
            return duration_text(value)
        case Path() | ZoneInfo():
            return str(value)
        case _:
            return value


def _state(campaign: CampaignState) -> str:
    if campaign.failure is not None:
        return FAILING
    if campaign.up is None:
        return UNPOLLED
    if not campaign.up:
        return STALE
    return NO_DAYS if campaign.latest is None else UP


def _summary(
    workspaces: Sequence[WorkspaceState],
    campaigns: Sequence[CampaignState],
    states: Counter[str],
    configuration: CurrentConfig,
) -> Iterator[str]:
    """Yield the paragraphs that an on-call engineer needs first."""
    if not configuration.successful:
        yield (
            '<p class="bad">The last reload of the configuration failed; the log has the reason. '
            f"The configuration loaded at {_time(configuration.succeeded_at)} UTC is still in use.</p>"
        )
    for workspace in workspaces:
        if workspace.paused is not None:
            name = html.escape(workspace.workspace)
            yield f'<p class="bad">Workspace <bdi>{name}</bdi> is {_workspace_state(workspace)}.</p>'
    reasons = Counter(campaign.failure.reason for campaign in campaigns if campaign.failure is not None)
    total = f"{len(campaigns):,} {'campaign' if len(campaigns) == 1 else 'campaigns'}"
    if reasons:
        counts = ", ".join(f"{count:,} {_words(reason)}" for reason, count in reasons.most_common())
        yield f'<p class="bad">{states[FAILING]:,} of {total} failing: {counts}.</p>'
        yield f"<ul>{''.join(_advice(reason) for reason, _ in reasons.most_common())}</ul>"
    elif states[UP] == len(campaigns):
        yield f'<p class="good">None of {total} failing.</p>'
    else:
        yield f"<p>None of {total} failing.</p>"
    rest = [f"{states[state]:,} {state}" for state in (UNPOLLED, STALE) if states[state]]
    if rest:
        yield f"<p>{', '.join(rest).capitalize()}.</p>"
    if states[NO_DAYS]:
        yield f"<p>No days from Braze for {states[NO_DAYS]:,} of {total}: polling works, but there are no numbers.</p>"


def _words(reason: Reason) -> str:
    return reason.value.replace("_", " ")


def _advice(reason: Reason) -> str:
    cause, remedy = map(html.escape, ADVICE[reason])
    return f"<li><b>{_words(reason)}</b>: {cause}. <i>What to do: {remedy}.</i></li>\n"


def _workspace(workspace: WorkspaceState, failing: int, interval: float, now: float) -> str:
    limits = [
        f"{api}: {statistics.rate_limit_remaining:,.0f} of {statistics.rate_limit:,.0f}"
        + ("" if statistics.rate_limit_reset is None else _reset(statistics.rate_limit_reset, now))
        for api, statistics in workspace.apis.items()
        if statistics.rate_limit is not None and statistics.rate_limit_remaining is not None
    ]
    cells = (
        html.escape(workspace.workspace),
        _workspace_state(workspace),
        f"{workspace.campaigns:,}",
        f"{failing:,}",
        "<br>".join(limits) or "not known",
        html.escape(workspace.timezone) + _rollover(workspace.rollover_offset, interval),
    )
    off = workspace.rollover_offset is not None and hours_off(workspace.rollover_offset, interval)
    return _row(cells, bad=workspace.up is False or workspace.paused is not None or bool(off))


def _rollover(offset: float | None, interval: float) -> str:
    """Return the sentence about the last day that began, empty until one does."""
    if offset is None:
        return ""
    minutes = f"{abs(offset) / 60:,.0f} min {'before' if offset < 0 else 'after'} midnight"
    return f"<br><i>The last new day came {minutes}: {html.escape(meaning(offset, interval))}.</i>"


def _workspace_state(workspace: WorkspaceState) -> str:
    if workspace.paused is Reason.UNAUTHORIZED:
        return "down: Braze rejects the API key. One request per interval checks whether it is accepted again"
    if workspace.paused is not None:
        return (
            "paused: the rate limit is used up. When the pause is over, one request checks whether Braze accepts more"
        )
    if workspace.up is None:
        return "no campaigns in this shard"
    return "up" if workspace.up else "down: no poll of any campaign succeeded within two intervals"


def _reset(unix: float, now: float) -> str:
    """Return when the rate limit is reset; what was left before a reset in the past is not what is left now."""
    try:
        clock = f"{datetime.fromtimestamp(unix, UTC):%H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):  # the header can hold any number
        return ", reset at an invalid time"
    return f", reset at {clock}" if unix > now else f" before the reset at {clock}"


def _campaign(campaign: CampaignState, samples: int, now: float) -> str:
    state = _state(campaign)
    name, identifier = html.escape(campaign.campaign_name), html.escape(campaign.campaign_id)
    cells = (
        f"<b>{state}</b>",
        f"{_text(campaign.campaign_name)} <code>{identifier}</code>"
        if name != identifier
        else f"<code>{identifier}</code>",
        _text(campaign.workspace),
        _failure(campaign),
        "never"
        if campaign.last_success is None
        else f"{_time(campaign.last_success)} {_ago(campaign.last_success, now)}",
        "none" if campaign.latest is None else campaign.latest.date.isoformat(),
        _volume(campaign.latest),
        _volume(campaign.previous),
        f"{samples:,}",
    )
    return _row(cells, bad=state in {FAILING, STALE})


def _volume(day: Day | None) -> str:
    """Return the number of messages of a day, of all variations together; empty where Braze returned none."""
    for statistic in _VOLUMES:
        numbers = [each.statistics.get(statistic) for each in ([] if day is None else day.variations)]
        known = [number for number in numbers if number is not None]
        if known:
            return f"{sum(known):,.0f}{'' if statistic == _VOLUMES[0] else f' {statistic}'}"
    return ""


def _failure(campaign: CampaignState) -> str:
    """Return why the last poll failed, or else the failures of earlier ones, so that rare failures are seen too."""
    if campaign.failure is not None:
        return f"<div><b>{_words(campaign.failure.reason)}</b> {html.escape(campaign.failure.detail)}</div>"
    if campaign.failures:
        earlier = ", ".join(f"{count:,} {_words(reason)}" for reason, count in campaign.failures.items())
        return f"<i>earlier polls: {earlier}</i>"
    return ""


def _text(text: str) -> str:
    """Return an untrusted text in a box, which isolates its direction and limits its height."""
    kind = " class=long" if len(text) > _SHORT else ""
    return f"<div{kind}>{html.escape(text)}</div>"


def _time(unix: float) -> str:
    return f"<time>{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M:%S}</time>"


def _ago(unix: float, now: float) -> str:
    seconds = max(0, int(now - unix))
    count, unit = next(
        ((seconds // size, unit) for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)) if seconds >= 2 * size),
        (seconds, "s"),
    )
    return f"<i>{count}{unit} ago</i>"


def _row(cells: Sequence[str], *, bad: bool) -> str:
    """Return a row without optional end tags, as there are thousands of rows."""
    return f"<tr{' class=bad' if bad else ''}><td>{'<td>'.join(cells)}"


def _source(text: str) -> str:
    """Return a source of a Content-Security-Policy that allows this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return resources.files("exporter.web").joinpath(name).read_text(encoding="utf-8")


STYLE = _file("overview.css")
"""A table, or on narrow screens a card for each row."""

SCRIPT = _file("overview.js")
"""Sorting and searching; the search is kept in the address, so that it survives a reload of the page."""

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_source(SCRIPT)}; style-src {_source(STYLE)}; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Allows a browser nothing but this script and this style."""

_PAGE = Template(_file("overview.html"))
