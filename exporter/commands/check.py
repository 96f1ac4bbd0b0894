"""`braze-exporter check`: polls every campaign once and reports what works, what fails and how to fix it.

Config ─ poll_once ─► Checked, one of each workspace ─► diagnoses ┬─ lines ───► for people
                                                                  └─ as_json ─► for scripts
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
import threading
import time
import unicodedata
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from exporter import config as configuration
from exporter.advice import ADVICE
from exporter.braze.client import Client
from exporter.braze.data_series import EXAMPLES, SAMPLES
from exporter.braze.errors import BrazeError, Reason
from exporter.braze.rate_limiter import Permit
from exporter.commands.progress import Progress
from exporter.config import INSTANCES, ConfigError, is_loopback
from exporter.polled import DATA_SERIES
from exporter.state import Failure, system_clock
from exporter.system.command import print_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import date

    from exporter.braze.counters import ApiStatistics
    from exporter.braze.data_series import DataSeries
    from exporter.config import Campaign, Config, Poll, Workspace
    from exporter.state import Clock
    from exporter.system.command import Surroundings

_WHOLE_WORKSPACE = {
    Reason.UNAUTHORIZED,
    Reason.FORBIDDEN,
    Reason.NOT_FOUND,
    Reason.RATE_LIMITED,
    Reason.CONNECTION,
    Reason.TLS,
    Reason.TIMEOUT,
    Reason.REDIRECT,
}
"""Failures whose cause is in the workspace's settings or in the network, rarely in one campaign."""

_ALIKE = 3  # campaigns that fail alike have a line each up to so many; of more so many are examples
_GIVE_UP = 10  # failures of the whole workspace in a row
_LOOK = 0.1  # seconds between two looks at how far it is
_LONGEST_NAME = 40
_LINE = 110
_INDENT = " " * 10
_QUARTER = timedelta(minutes=15)
_OFFSETS = tuple(quarter * _QUARTER for quarter in range(-12 * 4, 14 * 4 + 1))
_ZONES = (
    "America/Los_Angeles",
    "America/New_York",
    "America/Sao_Paulo",
    "UTC",
    "Europe/London",
    "Europe/Berlin",
    "Asia/Dubai",
    "Asia/Kolkata",
    "Asia/Singapore",
    "Asia/Tokyo",
    "Australia/Sydney",
    "Pacific/Auckland",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one campaign: a response or a failure, neither where it was not polled."""

    campaign: Campaign
    response: DataSeries | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """Results of a workspace's campaigns, in the order of the configuration; times are Unix seconds."""

    workspace: Workspace
    outcomes: tuple[Outcome, ...]
    statistics: ApiStatistics
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that works (`ok`), fails, or is a note (None), and advice about it."""

    ok: bool | None
    text: str
    advice: tuple[str, ...] = ()


def check(flags: argparse.Namespace, _: Surroundings) -> int:
    """Run the command and return its exit status: 0 where everything works. Raises ConfigError."""
    logging.getLogger().addHandler(logging.NullHandler())  # the report says it all
    try:
        loaded = configuration.load(flags.config_file, os.environ)
        progress = Progress(sys.stderr, time.monotonic)
        try:
            checks = poll_once(loaded, environ=os.environ, clock=system_clock(), progress=progress.show)
        finally:
            progress.clear()
    except ConfigError as error:
        if flags.json:
            print_lines([_json({"ok": False, "problems": error.problems, "warnings": [], "workspaces": []})])
        raise
    report = as_json(checks, os.environ)
    warnings = configuration.warnings(loaded)
    if flags.json:
        print_lines([_json({"problems": [], "warnings": warnings, **report})])
    else:
        remarks = (f"{flags.config_file}: warning: {warning}" for warning in warnings)
        print_lines([*remarks, *lines(checks, os.environ)])
    return 0 if report["ok"] else 1


def _json(report: dict[str, object]) -> str:
    return json.dumps(report, indent=2)


def poll_once(
    config: Config, *, environ: Mapping[str, str], clock: Clock, progress: Callable[[int, int], None]
) -> tuple[Checked, ...]:
    """Poll one campaign of each workspace and then, unless its failure concerns all of them, the others.

    `progress` is called now and then with how many campaigns are done and how many there are.

    Raises:
        ConfigError: a key cannot be read.

    """
    total = sum(len(workspace.campaigns) for workspace in config.workspaces)
    done = 0
    checked = []
    for workspace in config.workspaces:
        polls = _WorkspaceRound(workspace, config.poll, environ, clock)
        checked.append(polls.run(lambda count, done=done: progress(done + count, total)))  # type: ignore[misc]
        done += len(workspace.campaigns)
    return tuple(checked)


class _WorkspaceRound:
    """One workspace's campaigns while they are polled, with as many threads as requests may be in flight."""

    def __init__(self, workspace: Workspace, poll: Poll, environ: Mapping[str, str], clock: Clock) -> None:
        self._workspace = workspace
        self._poll = poll
        self._clock = clock
        self._waiting = deque(workspace.campaigns)
        self._outcomes: dict[str, Outcome] = {}
        self._in_a_row = 0
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._client = Client(
            workspace,
            [DATA_SERIES.api],
            interval=poll.interval,
            environ=environ,
            wall=clock.wall,
            monotonic=clock.monotonic,
            random=Random(),  # noqa: S311 - jitter
            stopped=self._stopped,
        )

    def run(self, progress: Callable[[int], None]) -> Checked:
        began_at = self._clock.wall()
        try:
            self._work(1, progress, campaigns=1)
            (first,) = self._outcomes.values() or (Outcome(self._workspace.campaigns[0]),)
            if first.failure is None or first.failure.reason not in _WHOLE_WORKSPACE:
                self._work(self._poll.concurrency, progress)
        finally:
            self._stopped.set()
            self._client.close()
        return Checked(
            self._workspace,
            tuple(self._outcomes.get(campaign.id) or Outcome(campaign) for campaign in self._workspace.campaigns),
            self._client.statistics[DATA_SERIES.api.name],
            began_at,
            self._clock.wall(),
        )

    def _work(self, threads: int, progress: Callable[[int], None], campaigns: int | None = None) -> None:
        """Poll this number of campaigns, or all that are left, and wait for them."""
        waiting = deque(self._waiting.popleft() for _ in range(campaigns or len(self._waiting)))
        running = [
            threading.Thread(target=self._run, args=(waiting,), name=f"check {number}", daemon=True)
            for number in range(min(threads, len(waiting)))
        ]
        for thread in running:
            thread.start()
        for thread in running:
            while thread.is_alive():
                progress(len(self._outcomes))
                thread.join(_LOOK)
        if self._error is not None:
            raise self._error

    def _run(self, waiting: deque[Campaign]) -> None:
        try:
            while waiting and (permit := self._permit()) is not None:
                try:
                    campaign = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                self._outcomes[campaign.id] = outcome = self._poll_one(campaign, permit)
                whole = outcome.failure is not None and outcome.failure.reason in _WHOLE_WORKSPACE
                self._in_a_row = self._in_a_row + 1 if whole else 0
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
            self._stopped.set()

    def _permit(self) -> Permit | None:
        """Wait for a permit; None when the rest is to be skipped."""
        limiter = self._client.limiter(DATA_SERIES.api)
        while not (limiter.paused or self._in_a_row >= _GIVE_UP or self._stopped.is_set()):
            permit = limiter.acquire(self._clock.monotonic())
            if isinstance(permit, Permit):
                return permit
            self._stopped.wait(min(permit, _LOOK))
        return None

    def _poll_one(self, campaign: Campaign, permit: Permit) -> Outcome:
        try:
            received = self._client.request(DATA_SERIES.api, campaign.id, poll=self._poll, permit=permit)
            return Outcome(campaign, response=self._client.read(received, samples=SAMPLES))
        except BrazeError as error:
            return Outcome(campaign, failure=Failure(error.reason, str(error)))


def diagnoses(checked: Checked, environ: Mapping[str, str]) -> tuple[Diagnosis, ...]:
    """Return the diagnoses about a workspace as a whole. Pure."""
    failures = [outcome.failure for outcome in checked.outcomes if outcome.failure is not None]
    responses = [outcome.response for outcome in checked.outcomes if outcome.response is not None]
    found: list[Diagnosis] = []
    if responses:
        found.append(Diagnosis(ok=True, text="Braze accepts the key, and it may read campaigns.data_series"))
        found.extend(_newest_day(responses, checked))
    for reason in dict.fromkeys(failure.reason for failure in failures):
        details = dict.fromkeys(failure.detail for failure in failures if failure.reason is reason)
        of_one = next(iter(details)) if len(details) == 1 else f"{len(details)} different responses, see above"
        count = sum(failure.reason is reason for failure in failures)
        text = f"{_counted(count)}: {_words(reason)}: {of_one}"
        found.append(Diagnosis(ok=False, text=text, advice=tuple(_advice(reason, checked, environ))))
    left = len(checked.outcomes) - len(failures) - len(responses)
    if left:
        found.append(Diagnosis(ok=False, text=f"{_counted(left)} skipped: the same failure is expected"))
    skipped = [response for response in responses if response.skipped]
    if skipped:
        text = (
            f"{_counted(len(skipped))} with parts that are not of the documented form, such as {skipped[0].skipped[0]}"
        )
        found.append(Diagnosis(ok=None, text=text, advice=("The rest is exposed. Please report it.",)))
    no_numbers = dict.fromkeys(name for response in responses for name in response.no_numbers)
    if no_numbers:
        text = f"statistics that are no numbers and are skipped: {', '.join([*no_numbers][:EXAMPLES])}"
        found.append(Diagnosis(ok=None, text=text, advice=("Braze documents them as numbers. Please report it.",)))
    found.extend(_rate_limit(checked.statistics))
    return tuple(found)


def works(checked: Checked, environ: Mapping[str, str]) -> bool:
    """Tell whether nothing of a workspace fails. Pure."""
    return all(diagnosis.ok is not False for diagnosis in diagnoses(checked, environ))


def lines(checks: Sequence[Checked], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the report for people. Pure."""
    for checked in checks:
        yield f"Workspace {_shown(checked.workspace.name)} at {_where(checked.workspace)}"
        yield from _table([outcome for outcome in checked.outcomes if _is_polled(outcome)])
        yield ""
        for diagnosis in diagnoses(checked, environ):
            mark = {True: "ok", False: "FAILED", None: "note"}[diagnosis.ok]
            yield f"  {mark:8}{diagnosis.text}"
            for advice in diagnosis.advice:
                yield from textwrap.wrap(advice, _LINE, initial_indent=_INDENT, subsequent_indent=f"{_INDENT}  ")
        yield ""
    outcomes = [outcome for checked in checks for outcome in checked.outcomes]
    well = sum(outcome.response is not None for outcome in outcomes)
    yield f"{well:,} of {_counted(len(outcomes))} can be polled."


def as_json(checks: Sequence[Checked], environ: Mapping[str, str]) -> dict[str, object]:
    """Return the report for scripts. Pure."""
    workspaces = [_workspace_json(checked, environ) for checked in checks]
    return {"ok": all(workspace["ok"] for workspace in workspaces), "workspaces": workspaces}


def _workspace_json(checked: Checked, environ: Mapping[str, str]) -> dict[str, object]:
    limits = checked.statistics
    return {
        "workspace": checked.workspace.name,
        "endpoint": checked.workspace.endpoint,
        "ok": works(checked, environ),
        "timezone": checked.workspace.timezone.key,
        "newest_day": _iso(_newest(outcome.response for outcome in checked.outcomes)),
        "rate_limit": limits.rate_limit,
        "rate_limit_remaining": limits.rate_limit_remaining,
        "rate_limit_reset": limits.rate_limit_reset,
        "findings": [
            {"ok": diagnosis.ok, "text": diagnosis.text, "advice": list(diagnosis.advice)}
            for diagnosis in diagnoses(checked, environ)
        ],
        "campaigns": [
            {
                "id": outcome.campaign.id,
                "name": outcome.campaign.name,
                "asked": _is_polled(outcome),
                "ok": outcome.response is not None,
                "newest_day": _iso(_newest([outcome.response])),
                "skipped": list(outcome.response.skipped) if outcome.response is not None else [],
                "reason": outcome.failure.reason.value if outcome.failure is not None else None,
                "detail": outcome.failure.detail if outcome.failure is not None else None,
            }
            for outcome in checked.outcomes
        ],
    }


def _newest(responses: Iterable[DataSeries | None]) -> date | None:
    days = (response.latest.date for response in responses if response is not None and response.latest is not None)
    return max(days, default=None)


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _newest_day(responses: Sequence[DataSeries], checked: Checked) -> Iterator[Diagnosis]:
    """Yield what the newest day of all says about the time zone."""
    newest = _newest(responses)
    zone = checked.workspace.timezone
    if newest is None:
        yield Diagnosis(ok=None, text="no campaign has any day, so the time zone cannot be verified")
        return
    # The responses may have come around midnight.
    days = [datetime.fromtimestamp(moment, zone).date() for moment in (checked.began_at, checked.ended_at)]
    span, zones = _fitting(newest, checked.ended_at)
    fitting = f"it is that day {span}, for example in {zones}"
    if newest in days:
        yield Diagnosis(
            ok=True,
            text=f"the newest day is {newest}, today in {zone.key}, as now {span}",
            advice=("After the next midnight braze_workspace_day_rollover_offset_seconds proves the zone.",),
        )
    elif newest > days[1]:
        yield Diagnosis(
            ok=False,
            text=f"the newest day is {newest}, which has not begun in {zone.key}",
            advice=(
                f"The workspace's timezone lies west of the zone in which Braze counts: now {fitting}.",
                "Set timezone to the time zone of the company, which Braze's dashboard shows in its settings.",
            ),
        )
    elif newest == days[0] - timedelta(days=1):
        yield Diagnosis(
            ok=None,
            text=f"the newest day is {newest}, yesterday in {zone.key}",
            advice=(
                "Either Braze's responses end with yesterday, which is all right: both days are complete then;",
                f"or timezone lies east of the zone in which Braze counts: now {fitting}.",
                "Check again at another time of the day: in the right zone the day changes at midnight.",
                "An exporter that runs at that time says which: braze_workspace_day_rollover_offset_seconds.",
            ),
        )
    else:
        yield Diagnosis(
            ok=None,
            text=f"the newest day is {newest}, {(days[0] - newest).days} days before today in {zone.key}",
            advice=("No time zone explains that. Look at the campaigns in Braze's dashboard, and at this clock.",),
        )


def _fitting(day: date, now: float) -> tuple[str, str]:
    """Say from which offset to which that day is today, and name some zones."""
    moment = datetime.fromtimestamp(now, UTC)
    offsets = [offset for offset in _OFFSETS if (moment + offset).date() == day]
    zones = [zone for zone in _ZONES if datetime.fromtimestamp(now, ZoneInfo(zone)).date() == day]
    span = f"from {_offset(offsets[0])} to {_offset(offsets[-1])}" if offsets else "nowhere"
    return span, ", ".join(zones) or "none that is common"


def _offset(offset: timedelta) -> str:
    minutes = round(offset.total_seconds() / 60)
    hours, minutes = divmod(abs(minutes), 60)
    return f"UTC{'-' if offset < timedelta() else '+'}{hours:02}:{minutes:02}"


def _rate_limit(statistics: ApiStatistics) -> Iterator[Diagnosis]:
    if statistics.rate_limit is not None and statistics.rate_limit_remaining is not None:
        text = (
            f"{statistics.rate_limit_remaining:,.0f} of {statistics.rate_limit:,.0f} requests are left in this window"
        )
        yield Diagnosis(ok=None, text=text)


def _advice(reason: Reason, checked: Checked, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield sentences about what usually leads to a failure, and what mends it."""
    workspace = checked.workspace
    cause, remedy = ADVICE[reason]
    yield f"{_sentence(cause)} What to do: {remedy}."
    match reason:
        case Reason.UNAUTHORIZED:
            yield f"The key is read from {_key_source(workspace)}. Only its own instance accepts a valid key."
            yield from _hosts(checked)
        case Reason.FORBIDDEN:
            yield "Braze may see the address of a proxy or a gateway, not this machine's own."
        case Reason.BAD_REQUEST:
            yield "The API identifier is on the campaign's details page. Canvases have such identifiers, too."
            if not any(outcome.response is not None for outcome in checked.outcomes):
                yield "As no campaign works, the key is perhaps that of another workspace."
        case Reason.NOT_FOUND | Reason.REDIRECT | Reason.BAD_PAYLOAD:
            yield from _proxies(environ)
            yield from _hosts(checked)
        case Reason.CONNECTION:
            host = urlsplit(workspace.endpoint).hostname
            yield f"Does the name {host} have an address here, and may this machine connect to it?"
            yield from _proxies(environ)
            yield from _hosts(checked)
        case Reason.TLS:
            names = [name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if environ.get(name)]
            yield f"The CA bundle in use is that of {names[0]}." if names else "No variable names a CA bundle."
            yield from _proxies(environ)
        case Reason.TIMEOUT:
            yield from _proxies(environ)
        case _:
            pass


def _key_source(workspace: Workspace) -> str:
    if workspace.api_key_file is not None:
        return f"the file {_shown(str(workspace.api_key_file))}"
    return f"the variable {workspace.api_key_env}"


def _hosts(checked: Checked) -> Iterator[str]:
    """Name Braze's instances, unless a campaign has succeeded or a simulator is polled."""
    host = urlsplit(checked.workspace.endpoint).hostname or ""
    if not is_loopback(host) and not any(outcome.response is not None for outcome in checked.outcomes):
        yield f"Braze's instances: {', '.join(f'{name} {host}' for name, host in INSTANCES.items())}."


def _proxies(environ: Mapping[str, str]) -> Iterator[str]:
    """Name the variables that choose a proxy; their values may hold a password."""
    names = [
        name
        for name in sorted(environ)
        if name.lower() in {"http_proxy", "https_proxy", "all_proxy", "no_proxy"} and environ[name]
    ]
    yield f"In force for proxies: {', '.join(names)}." if names else "No variable names a proxy."


def _where(workspace: Workspace) -> str:
    host = urlsplit(workspace.endpoint).hostname
    instance = next((name for name, own in INSTANCES.items() if own == host), None)
    return f"{workspace.endpoint}{f' ({instance})' if instance else ''}, key from {_key_source(workspace)}"


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield a line for each campaign, the failed ones first; many that fail alike are one line, before all others."""
    alike: dict[Failure | None, list[Outcome]] = {}
    for outcome in outcomes:
        alike.setdefault(outcome.failure, []).append(outcome)
    single = alike.pop(None, [])
    for failure, failed in alike.items():
        if len(failed) <= _ALIKE:
            single += failed
        elif failure is not None:
            examples = ", ".join(f"{_name(outcome)} ({outcome.campaign.id})" for outcome in failed[:_ALIKE])
            text = f"{_counted(len(failed))}: {_words(failure.reason)}: {failure.detail}; for example {examples}"
            yield from textwrap.wrap(text, _LINE, initial_indent="  FAILED  ", subsequent_indent=_INDENT)
    rows = sorted(map(_row, single), key=lambda row: row[0])  # in ASCII capital letters come first
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, last in rows:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True))
        yield f"  {'  '.join(padded)}  {last}"


def _is_polled(outcome: Outcome) -> bool:
    return outcome.response is not None or outcome.failure is not None


def _row(outcome: Outcome) -> tuple[str, str, str, str]:
    name = _name(outcome)
    if outcome.failure is not None:
        return "FAILED", name, outcome.campaign.id, f"{_words(outcome.failure.reason)}: {outcome.failure.detail}"
    if (day := outcome.response.latest if outcome.response else None) is None:
        return "ok", name, outcome.campaign.id, "no days: Braze has no numbers of it"
    return "ok", name, outcome.campaign.id, f"newest day {day.date}, rows: {len(day.variations)}"


def _name(outcome: Outcome) -> str:
    name = _shown(outcome.campaign.name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _shown(text: str) -> str:
    """Return a text that can do nothing to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _width(text: str) -> int:
    """Return how many columns a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _counted(count: int) -> str:
    return f"{count:,} {'campaign' if count == 1 else 'campaigns'}"


def _words(reason: Reason) -> str:
    return reason.value.replace("_", " ")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
