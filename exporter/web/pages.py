"""The pages for people: how polling goes, the failing first, and the configuration in force. Pure.

They need no other file and no other host. The browser is told to run and apply nothing but SCRIPT and STYLE, which it
knows by their hashes; without them everything is there, except for sorting and searching.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel

from exporter import __version__
from exporter.advice import ADVICE
from exporter.braze.client import Reason
from exporter.config import duration_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from exporter.config import Config
    from exporter.poller import CampaignKey, CampaignState, WorkspaceState
    from exporter.reload import CurrentConfig

FAILING, UNPOLLED, STALE, UP = _STATES = ("failing", "not polled yet", "stale", "up")
"""A campaign's state in words; the order of the alphabet is the order of the page."""

_HEADS = ("State", "Campaign", "Workspace", "Last poll's failure", "Last success, UTC", "Latest day", "Samples")
_SHORT = 120  # characters
_WORKSPACE_HEADS = ("Workspace", "State", "Campaigns", "Failing", "Rate limit left", "Time zone")


def landing_page(
    workspaces: Sequence[WorkspaceState],
    campaigns: Sequence[CampaignState],
    shown: Mapping[CampaignKey, int],
    configuration: CurrentConfig,
    *,
    telemetry_path: str,
    now: float,
) -> str:
    """Return the overview as HTML; `shown` is how many samples each campaign has, `now` the page's Unix time.

    Links are relative, so that they work behind a proxy that serves the exporter below a path of its own.
    """
    states = Counter(map(_state, campaigns))
    failing = Counter(campaign.workspace for campaign in campaigns if campaign.failure is not None)
    ordered = sorted(campaigns, key=_state)
    return _PAGE.format(
        title=f"{states[FAILING]:,} failing - braze-exporter" if states[FAILING] else "braze-exporter",
        style=STYLE,
        version=html.escape(__version__),
        metrics=html.escape(telemetry_path.removeprefix("/")),
        shard=f" This is shard {shard.number} of {shard.total}." if (shard := configuration.shard).total > 1 else "",
        summary="\n".join(_summary(workspaces, campaigns, states, configuration)),
        time=_time(now),
        workspace_heads=_heads(_WORKSPACE_HEADS),
        workspaces="\n".join(_workspace(workspace, failing[workspace.workspace], now) for workspace in workspaces),
        options="".join(f'<option value="{state}">{state} ({states[state]:,})</option>' for state in _STATES),
        total=f"{len(campaigns):,}",
        heads=_heads(_HEADS),
        campaigns="\n".join(_campaign(campaign, shown.get(campaign.key, 0), now) for campaign in ordered),
        script=SCRIPT,
    )


def config_page(config: Config) -> str:
    """Return the configuration in force as YAML that could be loaded again: defaults filled in, and no key in it."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_ENDLESS)


_ENDLESS = 1 << 20


class _Dumper(yaml.SafeDumper):
    """Quotes every text that is a number in YAML 1.2, too: 1.1 knows none with an exponent and without a point.

    In Python, as libyaml writes an emoji as a number.
    """


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+\Z"), list("-+.0123456789")
)
_Dumper.add_representer(
    str,  # what does not print is escaped, which only double quotes do: other line breaks than \n would be lost
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def _plain(value: object) -> object:
    """Return a setting as YAML has it. The models hold where a key is, never the key."""
    match value:
        case BaseModel():
            # An instance is only another way to write the endpoint, and no file may have both.
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
    return UP if campaign.up else STALE


def _summary(
    workspaces: Sequence[WorkspaceState],
    campaigns: Sequence[CampaignState],
    states: Counter[str],
    configuration: CurrentConfig,
) -> Iterator[str]:
    """Yield what somebody who was woken up needs to know first."""
    if not configuration.successful:
        yield (
            '<p class="bad">The last reload of the configuration failed, the log says why. '
            f"What was loaded at {_time(configuration.succeeded_at)} UTC is in force.</p>"
        )
    for workspace in workspaces:
        if workspace.closed is not None:
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


def _words(reason: Reason) -> str:
    return reason.value.replace("_", " ")


def _advice(reason: Reason) -> str:
    cause, remedy = map(html.escape, ADVICE[reason])
    return f"<li><b>{_words(reason)}</b>: {cause}. <i>What to do: {remedy}.</i></li>\n"


def _workspace(workspace: WorkspaceState, failing: int, now: float) -> str:
    limits = [
        f"{api}: {statistics.rate_limit_remaining:,.0f} of {statistics.rate_limit:,.0f}"
        + (f", {_reset(statistics.rate_limit_reset, now)}" if statistics.rate_limit_reset is not None else "")
        for api, statistics in workspace.apis.items()
        if statistics.rate_limit is not None and statistics.rate_limit_remaining is not None
    ]
    cells = (
        html.escape(workspace.workspace),
        _workspace_state(workspace),
        f"{workspace.campaigns:,}",
        f"{failing:,}",
        "<br>".join(limits) or "not known",
        html.escape(workspace.timezone),
    )
    return _row(cells, bad=workspace.up is False or workspace.closed is not None)


def _workspace_state(workspace: WorkspaceState) -> str:
    if workspace.closed is Reason.UNAUTHORIZED:
        return "down: Braze refuses the API key. One request an interval finds out when it is accepted"
    if workspace.closed is not None:
        return "paused: the rate limit is used up. One request finds out when it is free again"
    if workspace.up is None:
        return "no campaigns in this shard"
    return "up" if workspace.up else "down: no campaign was polled with success within two intervals"


def _reset(unix: float, now: float) -> str:
    try:
        clock = f"{datetime.fromtimestamp(unix, UTC):%H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):  # what a header said may be no time
        return "until a time that is none"
    return f"full again at {clock}" if unix > now else f"full again since {clock}"


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
        str(samples),
    )
    return _row(cells, bad=state in {FAILING, STALE})


def _failure(campaign: CampaignState) -> str:
    """Return how the last poll failed, or how earlier ones did: what comes and goes should be seen, too."""
    if campaign.failure is not None:
        return f"<div><b>{_words(campaign.failure.reason)}</b> {html.escape(campaign.failure.detail)}</div>"
    if campaign.failures:
        earlier = ", ".join(f"{count:,} {_words(reason)}" for reason, count in campaign.failures.items())
        return f"<i>earlier: {earlier}</i>"
    return ""


def _text(text: str) -> str:
    """Return anybody's text, in a box of its own: its direction is no other text's, and its height is limited."""
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


def _heads(heads: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{head}' for head in heads)


def _row(cells: Sequence[str], *, bad: bool) -> str:
    """Return a row without the end tags that HTML does without: there are thousands of them."""
    return f"<tr{' class=bad' if bad else ''}><td>{'<td>'.join(cells)}"


def _labels(table: str, heads: Sequence[str]) -> str:
    """Return the rules that name each cell where a row is shown as a card."""
    return "\n".join(
        f'  #{table} td:nth-child({place})::before {{ content: "{head}"; }}' for place, head in enumerate(heads, 1)
    )


def _source(text: str) -> str:
    """Return how a Content-Security-Policy names a text that stands in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


STYLE = f"""
:root {{
  color-scheme: light dark;
  --bad: #b3261e; --bad-ground: #fdecea; --good: #1b6e33; --faint: #5f6368; --line: #8885; --ground: #fff;
  font: 15px/1.45 system-ui, sans-serif;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --bad: #ff8a80; --bad-ground: #3b1a18; --good: #81c995; --faint: #9aa0a6; --ground: #16181b; }}
}}
html {{ background: var(--ground); }}
body {{ margin: 1.5rem auto; max-width: 100rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin: 0; }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 .5rem; }}
h1 small, i, code, .note {{ color: var(--faint); font-weight: normal; }}
i {{ font-style: normal; }}
ul {{ margin: .5rem 0; padding-left: 1.25rem; }}
nav {{ display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .5rem 0 1rem; }}
p {{ margin: .5rem 0; }}
p.bad, p.good {{ border-left: .3rem solid; color: var(--bad); font-weight: 600; padding: .1rem 0 .1rem .75rem; }}
p.good {{ color: var(--good); }}
form {{ align-items: center; display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: .5rem 0; }}
input, select, button {{ font: inherit; }}
label, input, select {{ box-sizing: border-box; max-width: 100%; }}
input, select {{ padding: .25rem .4rem; }}
input {{ width: 22rem; }}
[hidden] {{ display: none !important; }}
table {{ border-collapse: collapse; font-size: .875rem; width: 100%; }}
th, td {{ border-bottom: 1px solid var(--line); overflow-wrap: break-word; padding: .35rem .75rem .35rem 0; }}
th, td {{ text-align: left; vertical-align: top; }}
th button {{ background: none; border: 0; color: inherit; cursor: pointer; font-weight: inherit; padding: 0; }}
th button {{ text-align: left; }}
th[aria-sort=ascending] button::after {{ content: " \\25B2"; }}
th[aria-sort=descending] button::after {{ content: " \\25BC"; }}
td b {{ font-weight: 600; }}
td code {{ display: block; font-size: .8rem; overflow-wrap: anywhere; }}
.long {{ max-height: 6em; overflow: auto; }}
time {{ white-space: nowrap; }}
tr.bad {{ background: var(--bad-ground); box-shadow: inset .25rem 0 var(--bad); }}
tr.bad td:first-child {{ padding-left: .6rem; }}
tr.bad b {{ color: var(--bad); }}
/* Not a table's own layout, in which thousands of rows are measured at each change, seen or not. */
#campaigns, #campaigns thead, #campaigns tbody {{ display: block; }}
#campaigns thead {{ background: var(--ground); position: sticky; top: 0; z-index: 1; }}
#campaigns tr {{ border-bottom: 1px solid var(--line); display: grid; }}
#campaigns tr {{ grid-template-columns: 8rem minmax(0, 5fr) minmax(0, 2fr) minmax(0, 5fr) 10.5rem 6.5rem 5rem; }}
#campaigns tbody tr {{ contain-intrinsic-size: auto 3.2rem; content-visibility: auto; }}
#campaigns th, #campaigns td {{ border: 0; }}
@media (max-width: 60rem) {{
  #workspaces, #workspaces tbody, #workspaces tr, #campaigns tr {{ display: block; }}
  #workspaces thead {{ display: none; }}
  #campaigns thead {{ position: static; }}
  #campaigns thead tr {{ border: 0; display: flex; flex-wrap: wrap; gap: 0 1rem; }}
  #campaigns tbody tr {{ contain-intrinsic-size: auto 11rem; }}
  table tbody tr {{ border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: .35rem .6rem; }}
  td, tr.bad td:first-child {{ border: 0; padding: .1rem 0; }}
  td {{ display: grid; gap: 0 .5rem; grid-template-columns: 8.5rem minmax(0, 1fr); }}
  td > * {{ grid-column: 2; }}
  td:empty {{ display: none; }}
  td::before {{ color: var(--faint); grid-column: 1; grid-row: 1 / span 9; }}
{_labels("workspaces", _WORKSPACE_HEADS)}
{_labels("campaigns", _HEADS)}
}}
"""
"""The looks of the overview: a table, or a card for each row where there is little room."""

SCRIPT = """
"use strict";
const table = document.getElementById("campaigns");
const heads = [...table.tHead.rows[0].cells];
const rows = [...table.tBodies[0].rows].map((row) => ({row, state: row.cells[0].textContent, text: ""}));
const form = document.forms[0];
const {search, state, count} = form.elements;
const order = new Intl.Collator("en", {numeric: true}).compare;

function sort(column, direction) {
  heads.forEach((head, place) => {
    if (place === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
  for (const each of rows) each.key = each.row.cells[column].textContent;
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort((one, other) => sign * order(one.key, other.key));
  table.tBodies[0].replaceChildren(...rows.map((each) => each.row));
}

function filter() {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const each of rows) {
    each.text ||= each.row.textContent.toLowerCase();
    const fits = (!state.value || each.state === state.value) && words.every((word) => each.text.includes(word));
    each.row.hidden = !fits;
    shown += fits;
  }
  count.value = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
  const wanted = new URLSearchParams(new FormData(form)).toString();
  history.replaceState(null, "", wanted === "search=&state=" ? location.pathname : `#${wanted}`);
}

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => {
    sort(column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
  });
  head.append(button);
});
heads[0].setAttribute("aria-sort", "ascending");
const wanted = new URLSearchParams(location.hash.slice(1));
search.value = wanted.get("search") ?? "";
state.value = wanted.get("state") ?? "";
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
"""
"""Sorting and searching; what is wanted stands in the address, so that it outlives a reload of the page."""

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_source(SCRIPT)}; style-src {_source(STYLE)}; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may do with a page: nothing but this script and this style."""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>braze-exporter <small>{version}</small></h1>
<p>Polls the analytics of Braze campaigns and serves their latest days' counts as Prometheus metrics.{shard}</p>
<nav>
<a href="{metrics}">Metrics</a>
<a href="config">Configuration</a>
<a href="-/healthy">Health</a>
<a href="-/ready">Readiness</a>
</nav>
</header>
<main>
{summary}
<p class="note">As of {time} UTC.</p>
<h2>Workspaces</h2>
<table id="workspaces">
<thead><tr>{workspace_heads}</thead>
<tbody>
{workspaces}
</tbody>
</table>
<h2>Campaigns</h2>
<form hidden>
<label>Search <input type="search" name="search" autocomplete="off" spellcheck="false"></label>
<label>State <select name="state" autocomplete="off"><option value="">all ({total})</option>{options}</select></label>
<output name="count"></output>
</form>
<table id="campaigns">
<thead><tr>{heads}</thead>
<tbody>
{campaigns}
</tbody>
</table>
</main>
<script>{script}</script>
</body>
</html>
"""
