"""Read the configuration file and report all that is wrong with it at once: where, what came, what is right, no secret.

    file ─ yamlfile ─► plain values ─┬─ pydantic: each setting by itself ──► Config
               │                     └─ _check_between: settings together
               └─ structure                 both ─► Finding ─► ConfigError

The models say what a setting is. How a file writes it (`5m` for 300.0) is read by validators that run only when `load`
passes its `_Source` as the context: code that builds a model passes the values themselves. What involves several
settings is checked on the plain values: pydantic skips a model's own checks as soon as one of its fields is wrong.
"""

import difflib
import functools
import ipaddress
import math
import re
import typing
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, TypeAlias
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from exporter.system import files
from exporter.system.files import Budget, Read
from exporter.yamlfile import (
    Document,
    Finding,
    Location,
    SyntaxProblemError,
    expected,
    finding,
    names_secret,
    quoted,
    read_document,
    sentence,
    unknown_key,
)

STALE_INTERVALS = 4
"""The default of `stale_after`, in intervals."""

MOST_CONCURRENCY = 1024
"""The largest `concurrency`."""

INSTANCES: Mapping[str, str] = MappingProxyType(
    {f"US-{number:02}": f"rest.iad-{number:02}.braze.com" for number in range(1, 9)}
    | {"US-10": "rest.us-10.braze.com"}
    | {f"EU-{number:02}": f"rest.fra-{number:02}.braze.eu" for number in (1, 2)}
    | {f"{region}-01": f"rest.{region.lower()}-01.braze.com" for region in ("AU", "ID", "JP", "KR")}
)
"""The REST host of each of Braze's instances: https://www.braze.com/docs/api/basics/#endpoints."""

_LONGEST_KEY = 4096  # bytes of a key file that are read; Braze's keys have 36

_UNITS = {"y": 31_536_000_000, "w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile("".join(f"(?:(?P<{unit}>[0-9]{{1,15}}){unit})?" for unit in _UNITS))
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_DASHBOARD_ID = re.compile(r"[0-9a-f]{24}", re.IGNORECASE)
_WHERE_IDS_ARE = "the API identifier is on the campaign's details page"
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?P<port>:[0-9]{1,5})?(?P<path>/.*)?", re.IGNORECASE
)
_SHORTEST_TYPO = 6  # characters: shorter names are abbreviations, and many are alike
_CITIES = MappingProxyType(
    dict.fromkeys(("pst", "pdt", "pacific"), "America/Los_Angeles")
    | dict.fromkeys(("mdt", "mountain"), "America/Denver")
    | dict.fromkeys(("cdt", "central"), "America/Chicago")
    | dict.fromkeys(("edt", "eastern"), "America/New_York")
    | {"bst": "Europe/London", "cest": "Europe/Berlin", "jst": "Asia/Tokyo", "aest": "Australia/Sydney"}
)
"""Cities by the names of clocks that people write, without "standard time"."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY_VARIABLE = "an environment variable with an API key"
_KEY_WITH_MORE = (
    (re.compile("^(\xef\xbb\xbf|\xff\xfe|\xfe\xff|\ufeff)"), "a byte order mark", "save it as ASCII, without the mark"),
    (re.compile(r"[\r\n]"), "several lines", "write the key alone, in one line"),
    (re.compile(r"^Bearer\s", re.IGNORECASE), "one that begins with `Bearer `", "write the key alone"),
    (re.compile(r"^(export\s+)?[A-Za-z_]\w*\s*=\s*[^=\s]"), "one that begins with `NAME=`", "write the key alone"),
    (re.compile("^[\"'`]|[\"'`]$"), "one in quotes", "leave the quotes out"),
)
"""Looks of a key that was stored with more than itself, what to say of it, and what mends it."""


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds one line for each reason, none with a secret in it."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file as documentation lists it: `default` is as YAML writes it, "required", or "" without one."""

    path: str
    default: str
    description: str


@dataclass(frozen=True, slots=True)
class _Source:
    """Context of a file's values: the folder of its relative paths, the environment, the time left to read files.

    `remarks` are warnings about the text of the file.
    """

    folder: Path
    environ: Mapping[str, str]
    budget: Budget
    remarks: tuple[str, ...] = ()


_Info: TypeAlias = ValidationInfo[_Source | None]


def _from_file(read: Callable[[object], object]) -> BeforeValidator:
    """Return a validator that reads what a file wrote and leaves alone what code passes."""

    def validate(value: object, info: _Info) -> object:
        return value if info.context is None else read(value)

    return BeforeValidator(validate)


def _text(what: str, longest: int | None = None) -> Callable[[object], str]:
    """Return a reader of text that is not blank; with `longest`, of one line of printable characters."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise expected(what, hint="put it in quotes" if isinstance(value, bool | int | float) else "")
        if not value.strip() or (longest is not None and not (value.isprintable() and len(value) <= longest)):
            raise expected(what)
        return value

    return read


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise expected("true or false")
    return value


def _filled(value: object) -> object:
    if value == ():
        raise expected("at least one entry")
    return value


def _whole_number(low: int, high: int) -> BeforeValidator:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise expected(f"a whole number from {low} to {high}")
        return value

    return _from_file(read)


def _duration(low: str, high: str) -> BeforeValidator:
    what = f"a duration from {low} to {high} such as 90s or 1h30m"
    bounds = seconds(low), seconds(high)

    def read(value: object) -> float:
        if isinstance(value, int) and not isinstance(value, bool):
            raise expected(what, hint=f"write {value}s for seconds" if value > 0 else "")
        if not isinstance(value, str) or not bounds[0] <= (taken := seconds(value)) <= bounds[1]:
            raise expected(what)
        return taken

    return _from_file(read)


def seconds(text: str) -> float:
    """Return a duration of Prometheus in seconds, NaN where `text` is none: it is in no range."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return math.nan
    return sum(int(match[unit] or 0) * size for unit, size in _UNITS.items()) / 1000


def _campaign_id(value: object) -> str:
    what = "a campaign's API identifier such as 3bbc4555-8fa0-4c9b-a5c0-4505edf3e064"
    text = _text(what)(value)
    if _UUID.fullmatch(text):
        return text.lower()
    raise expected(what, hint=_id_hint(text))


def _id_hint(text: str) -> str:
    if _DASHBOARD_ID.fullmatch(text):
        return f"that is the id in the dashboard's address; {_WHERE_IDS_ARE}"
    if "://" in text or "braze." in text:
        return f"that is an address; {_WHERE_IDS_ARE}"
    digits = re.sub(r"[\s{}()<>\"'-]", "", text).lower()  # what is copied along with an id
    uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return f"write {uuid}" if _UUID.fullmatch(uuid) else ""


def _instance(value: object) -> str:
    what = f"one of {', '.join(INSTANCES)}"
    text = _text(what)(value)
    if text.upper() in INSTANCES:
        return text.upper()
    host = _rest_host(text.lower().removeprefix("https://").partition("/")[0])
    written = re.fullmatch(r"([A-Z]{2})[ _-]?0?([0-9]{1,2})", text.upper())
    wanted = f"{written[1]}-{int(written[2]):02}" if written else ""
    close = [name for name in INSTANCES if name == wanted or INSTANCES[name] == host]
    raise expected(what, hint=f"write {close[0]}" if close else "")


def _zone(value: object) -> ZoneInfo:
    what = "an IANA time zone such as UTC or Europe/Berlin"
    name = _text(what)(value)
    try:
        return ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a folder, or too long a one
        pass
    raise expected(what, hint=_zone_hint(name))


def _zone_hint(name: str) -> str:
    """Return how to write the zone that is meant. An offset gets no proposal: IANA inverts its sign."""
    zones = {zone.lower(): zone for zone in sorted(zoneinfo.available_timezones())}
    wanted = name.strip().lower().replace(" ", "_")
    offset = re.search(r"[+-]\d", wanted)
    close = [
        zone for lower, zone in zones.items() if wanted == lower or (wanted == lower.rpartition("/")[2] and not offset)
    ]
    clock = wanted.removesuffix("_time").removesuffix("_standard").removesuffix("_daylight")
    if not close and clock in _CITIES:
        return f"write {_CITIES[clock]}, if the company's time is that city's"
    if not close and len(wanted) >= _SHORTEST_TYPO and not offset and not wanted.endswith("_time"):
        cities = {lower if "/" in wanted else lower.rpartition("/")[2]: zone for lower, zone in zones.items()}
        close = [cities[lower] for lower in difflib.get_close_matches(wanted, cities, cutoff=0.8)]
    if close:
        return f"did you mean {' or '.join(close[:3])}?"
    return "name a city with the company's time, such as America/New_York; offsets and abbreviations are not time zones"


def _endpoint(value: object) -> str:
    """Return the scheme, host and port of a URL that has nothing else, in lower case."""
    what = f"the URL of a REST host such as https://{INSTANCES['US-01']}"
    text = _text(what)(value)
    if "@" in text:
        raise expected(what, "a URL with a user or password, which is not shown", "leave them out")
    if "?" in text or "#" in text:
        raise expected(what, "a URL with a query or fragment, which is not shown", "leave it out")
    url = _URL.fullmatch(text) or _URL.fullmatch(f"https://{text}")
    if url is None:
        raise expected(what)
    scheme, host, port = url["scheme"].lower(), url["host"].lower(), url["port"] or ""
    if not _is_host(host) or (port and not 0 < int(port[1:]) < 1 << 16):
        raise expected(what)
    if _is_braze(host) and re.match(r"(dashboard|sdk)\b", host):
        rest = _rest_host(host)
        raise expected(what, hint=f"write https://{rest}" if rest else "the REST host begins with rest.")
    origin = f"{scheme}://{host}{port}"
    if "://" not in text or (url["path"] or "/") != "/":
        raise expected(what, hint=f"write {origin}")
    if scheme == "http" and not is_loopback(host):
        raise expected("https://, as the key must not travel in the clear (http:// is for loopback addresses)")
    return origin


def _key_file(value: object, info: _Info) -> object:
    """Return the path of a key file that holds a key now."""
    if info.context is None:
        return value
    text = _text("the path of a file with the API key")(value)
    path = info.context.folder / text
    _key_from_file(path, info.context.budget.read, looked_at=path.absolute() if _is_plainly_a_path(text) else None)
    return path


def _key_variable(value: object, info: _Info) -> object:
    """Return the name of an environment variable that holds a key now."""
    if info.context is None:
        return value
    what = "the name of an environment variable with the API key"
    variable = _text(what)(value)
    if not _VARIABLE.fullmatch(variable):
        raise expected(what)
    if variable not in info.context.environ:
        close = difflib.get_close_matches(variable, info.context.environ, n=1, cutoff=0.8)
        hint = (
            f"did you mean {close[0]}?" if close else "set it in the environment of this process, or use api_key_file"
        )
        raise expected(_KEY_VARIABLE, "one that is not set", hint)
    _key_from_variable(variable, info.context.environ)
    return variable


class Campaign(BaseModel):
    """One campaign to poll."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    id: Annotated[str, _from_file(_campaign_id)] = Field(
        description="the campaign's API identifier (a UUID), not the id in the dashboard's address"
    )
    name: Annotated[str, _from_file(_text("a name"))] = Field(
        default_factory=lambda data: str(data.get("id", "")),
        description="the label `campaign_name`; default: the id",
    )


class Workspace(BaseModel):
    """One workspace of Braze, its key and its campaigns."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: Annotated[str, _from_file(_text("a name of 1 to 128 printable characters", 128))] = Field(
        description="the label `workspace`, unique"
    )
    instance: Annotated[str | None, _from_file(_instance)] = Field(
        default=None, description="the instance as Braze names it; or use `endpoint`"
    )
    endpoint: Annotated[str, _from_file(_endpoint)] = Field(
        default_factory=lambda data: f"https://{INSTANCES[data['instance']]}" if data.get("instance") else "",
        description="URL of the REST host; or use `instance`",
    )
    api_key_file: Annotated[Path | None, BeforeValidator(_key_file)] = Field(
        default=None, description="file with the API key, read again when it changes; or use `api_key_env`"
    )
    api_key_env: Annotated[str | None, BeforeValidator(_key_variable)] = Field(
        default=None, description="environment variable with the API key; or use `api_key_file`"
    )
    timezone: Annotated[ZoneInfo, _from_file(_zone)] = Field(
        default=ZoneInfo("UTC"), description="time zone of the company in Braze, in which its days begin"
    )
    requests_per_minute: Annotated[int, _whole_number(1, 50_000)] = Field(
        default=10_000, description="maximum number of requests per minute"
    )
    campaigns: Annotated[tuple[Campaign, ...], _from_file(_filled)] = Field(description="the campaigns to poll")


class Poll(BaseModel):
    """When and how campaigns are polled; times are in seconds."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    interval: Annotated[float, _duration("1s", "24h")] = Field(
        default=seconds("5m"), description="interval at which each campaign is polled"
    )
    timeout: Annotated[float, _duration("1s", "1h")] = Field(
        default=seconds("30s"), description="maximum time of one poll of one campaign, retries included"
    )
    stale_after: Annotated[float, _duration("1s", "1w")] = Field(
        default_factory=lambda data: STALE_INTERVALS * float(data["interval"]),
        description=f"maximum age of numbers without a successful poll; default: {STALE_INTERVALS} intervals",
    )
    days: Annotated[int, _whole_number(2, 100)] = Field(default=3, description="number of days requested from Braze")
    previous_day: Annotated[bool, _from_file(_flag)] = Field(
        default=True, description="expose the day before the latest as well"
    )
    concurrency: Annotated[int, _whole_number(1, MOST_CONCURRENCY)] = Field(
        default=32, description="maximum number of requests in flight per workspace"
    )


class Limits(BaseModel):
    """Limits on the exposition of Braze's series."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    series: Annotated[int, _whole_number(1, 100_000_000)] = Field(
        default=2_000_000, description="maximum number of series of all campaigns together"
    )
    series_per_campaign: Annotated[int, _whole_number(1, 10_000_000)] = Field(
        default=10_000, description="maximum number of series of one campaign"
    )


class Config(BaseModel):
    """The whole configuration."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    poll: Poll = Field(default=Poll(), description="when and how campaigns are polled")
    limits: Limits = Field(default=Limits(), description="limits on the exposition")
    workspaces: Annotated[tuple[Workspace, ...], _from_file(_filled)] = Field(description="the workspaces")
    _remarks: tuple[str, ...] = PrivateAttr(default=())

    def model_post_init(self, context: _Source | None, /) -> None:
        """Keep what the file's text says beyond its values."""
        self._remarks = context.remarks if context is not None else ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """Warnings about how the file is written."""
        return self._remarks


def load(path: Path, environ: Mapping[str, str], *, budget: Budget | None = None) -> Config:
    """Return the configuration that the file at `path` contains.

    `environ` is where keys named by `api_key_env` are looked up; every key must be there and valid. `budget` is the
    time for all files together. Raises ConfigError with all problems, by line.
    """
    source = _Source(path.parent, environ, budget or Budget())
    document = _read(path, source.budget.read)
    source = replace(source, remarks=tuple(_cut_names(document)))
    config = None
    findings = list(_check_between(document, source))
    try:
        config = Config.model_validate(document.value, context=source)
    except ValidationError as error:
        findings += _findings(error.errors(include_url=False, include_input=False), document)
    problems = sorted({*document.problems, *map(document.problem, findings)})
    if config is None or problems:  # raised out here: inside, the error would bring along pydantic's with the values
        raise ConfigError(f"{path}:{line}: {text}" for line, text in problems)
    return config


def read_api_key(workspace: Workspace, environ: Mapping[str, str], *, read: Read = files.read) -> str:
    """Return the current key of `workspace`, without white space around it.

    A file that hangs takes the timeout of `read`. Raises ConfigError, with neither the key nor where it was looked for
    in it.
    """
    try:
        if workspace.api_key_file is not None:
            return _key_from_file(workspace.api_key_file, read)
        return _key_from_variable(workspace.api_key_env or "", environ)
    except PydanticCustomError as error:
        problem = f"workspace {quoted(workspace.name)}: {sentence(**(error.context or {}))}"
    raise ConfigError([problem])


@functools.cache
def settings() -> tuple[Setting, ...]:
    """Return every key of the file that takes a value, in the order of the models."""
    return tuple(_settings(Config, ""))


def warnings(config: Config, *, total_shards: int = 1) -> tuple[str, ...]:
    """Return warnings about what is valid but probably a mistake, such as more campaigns than fit in the interval.

    The campaigns are those of one of `total_shards`, which share the pace.
    """
    found = list(config.remarks)
    of_shard, divided = (" of this shard", f" / {total_shards}") if total_shards > 1 else ("", "")
    for workspace in config.workspaces:
        host = urlsplit(workspace.endpoint).hostname or ""
        if not (_is_braze(host) or is_loopback(host)):
            found.append(f"workspace {quoted(workspace.name)}: {host} is not a host of braze.com or braze.eu")
        needed = len(workspace.campaigns) * 60 * total_shards / workspace.requests_per_minute
        if needed > config.poll.interval:
            found.append(
                f"workspace {quoted(workspace.name)}: {len(workspace.campaigns)} campaigns{of_shard} at "
                f"{workspace.requests_per_minute}{divided} requests a minute are polled every "
                f"{duration_text(needed)}, not every {duration_text(config.poll.interval)}; "
                "raise requests_per_minute or interval"
            )
    return tuple(found)


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or an address with or without brackets, is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _read(path: Path, read: Callable[[Path], bytes]) -> Document:
    try:
        return read_document(path, read)
    except SyntaxProblemError as error:
        problem = f"{path}{error}"
    raise ConfigError([problem])


def _findings(errors: Iterable[ErrorDetails], document: Document) -> Iterator[Finding]:
    """Yield what pydantic found, in our words; of a list of bare ids only the first, with how many there are."""
    bare: dict[Location, list[Location]] = {}
    for error in errors:
        kind, location = error["type"], error["loc"]
        if kind == "model_type" and location[-2:-1] == ("campaigns",) and document.is_scalar(location):
            bare.setdefault(location[:-1], []).append(location)
            continue
        if kind == "default_factory_not_called":
            continue  # the setting that the default depends on is wrong, and reported
        if kind == "extra_forbidden":
            yield _unknown_key(location)
        else:
            yield finding(error)
    for first, *others in bare.values():
        got = document.describe(first) + (f", and {len(others)} more like it" if others else "")
        yield Finding(first, "a mapping of keys to values", got, "write - id: before each id")


def _unknown_key(location: Location) -> Finding:
    *above, last = location
    around = "".join("[]" if isinstance(part, int) else f".{part}" for part in above).removeprefix(".")
    inside = [setting.path for setting in settings() if setting.path.startswith(around)]
    known = sorted({re.split(r"[.\[]", path.removeprefix(around).removeprefix("."))[0] for path in inside})
    if around == "workspaces[]" and names_secret(last):
        hint = "an API key belongs in a file or an environment variable"
        return Finding(location, "api_key_file or api_key_env", "an unknown key whose value is not shown", hint)
    return unknown_key(location, known)


def _check_between(document: Document, source: _Source) -> Iterator[Finding]:
    """Yield contradictions between settings that are present and valid."""
    settings_by_name = _mapping(document.value)
    yield from _check_stale_after(_mapping(settings_by_name.get("poll")), source)
    workspaces = _mappings(("workspaces",), settings_by_name.get("workspaces"))
    yield from _check_repeated(document, workspaces, "name")
    for location, workspace in workspaces.items():
        yield from _check_one_of(location, workspace, "endpoint", "instance")
        yield from _check_one_of(location, workspace, "api_key_file", "api_key_env")
        campaigns = _mappings((*location, "campaigns"), workspace.get("campaigns"))
        yield from _check_repeated(document, campaigns, "id")


def _check_stale_after(poll: Mapping[str, object], source: _Source) -> Iterator[Finding]:
    involved = {name: poll[name] for name in ("interval", "timeout", "stale_after") if name in poll}
    try:
        times = Poll.model_validate(involved, context=source)
    except ValidationError:
        return
    least = times.interval + times.timeout
    if times.stale_after < least:
        default = f"the default of {STALE_INTERVALS} intervals, {duration_text(times.stale_after)}"
        yield Finding(
            ("poll", "stale_after"),
            f"at least interval + timeout, {duration_text(least)}",
            "" if "stale_after" in poll else default,
            "raise stale_after or lower timeout",
        )


def _check_one_of(location: Location, workspace: Mapping[str, object], one: str, other: str) -> Iterator[Finding]:
    if one in workspace and other in workspace:
        yield Finding((*location, other), f"either {one} or {other}", "both")
    if one not in workspace and other not in workspace:
        yield Finding(location, f"{one} or {other}", "neither")


def _check_repeated(document: Document, items: Mapping[Location, Mapping[str, object]], key: str) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for location, item in items.items():
        value = item.get(key)
        if not isinstance(value, str):
            continue
        same = value.lower() if key == "id" else value
        if same in first:
            got = f"{document.describe((*location, key))} again; it is in line {first[same]} already"
            yield Finding((*location, key), f"each {key} once", got)
        else:
            first[same] = document.line((*location, key))


def _cut_names(document: Document) -> Iterator[str]:
    """Yield a warning for each campaign's name that may have lost its end: in YAML ` #` begins a comment."""
    for location, workspace in _mappings(("workspaces",), _mapping(document.value).get("workspaces")).items():
        for campaign in _mappings((*location, "campaigns"), workspace.get("campaigns")):
            if document.is_cut(name := (*campaign, "name")):
                got = f"{document.describe(name)} and a comment"
                yield document.problem(Finding(name, "a name in quotes", got, "without them a name ends before ` #`"))[
                    1
                ]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _mappings(location: Location, value: object) -> dict[Location, Mapping[str, object]]:
    """Return those items of a list that are mappings, by their location."""
    items = value if isinstance(value, tuple) else ()
    return {(*location, index): item for index, item in enumerate(items) if isinstance(item, dict)}


def _is_plainly_a_path(text: str) -> bool:
    """Return whether `text` can be shown: it is written as a path, and is neither a key nor a URL with a password."""
    key = re.search(r"[0-9a-f-]{24}|[\w+=-]{40}", text, re.IGNORECASE)
    return ("/" in text or "." in text) and text.isprintable() and "@" not in text and "://" not in text and not key


def _key_from_file(path: Path, read: Read, *, looked_at: Path | None = None) -> str:
    what = "a file with an API key"
    try:
        content = read(path, limit=_LONGEST_KEY + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) else None
        where = f" at {str(looked_at)!r}" if looked_at else ""
        raise expected(what, f"one that cannot be read ({reason or 'not a path'}){where}") from None
    return _checked_key(content.decode("latin-1"), what)


def _key_from_variable(variable: str, environ: Mapping[str, str]) -> str:
    if variable not in environ:
        raise expected(_KEY_VARIABLE, "one that is not set")
    return _checked_key(environ[variable], _KEY_VARIABLE)


def _checked_key(text: str, what: str) -> str:
    key = text.strip()
    if not key:
        raise expected(what, got="an empty one")
    for look, got, hint in _KEY_WITH_MORE:
        if look.search(key):
            raise expected(f"{what} and nothing else", got, hint)
    if len(key) > _LONGEST_KEY or not all("!" <= character <= "~" for character in key):
        raise expected(f"{what} of printable ASCII characters without blanks", "another content, which is not shown")
    return key


def _settings(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    defaults: dict[str, object] = {}
    for name, field in model.model_fields.items():
        nested, suffix = field.annotation, "."
        if typing.get_origin(nested) is tuple:
            nested, suffix = typing.get_args(nested)[0], "[]."
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from _settings(nested, f"{prefix}{name}{suffix}")
            continue
        if field.is_required():
            default = "required"
        else:
            defaults[name] = field.get_default(call_default_factory=True, validated_data=defaults)
            default = _as_yaml(defaults[name])
        yield Setting(f"{prefix}{name}", default, field.description or "")


def _as_yaml(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return duration_text(value) if isinstance(value, float) else str(value)


def duration_text(seconds: float) -> str:
    """Return seconds as the file writes them: `1h30m`."""
    rest = round(seconds * 1000)
    text = ""
    for unit, size in _UNITS.items():
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def _is_host(host: str) -> bool:
    try:
        return not host.startswith("[") or ipaddress.ip_address(host[1:-1]).version > 0
    except ValueError:
        return False


def _is_braze(host: str) -> bool:
    return host.endswith((".braze.com", ".braze.eu"))


def _rest_host(host: str) -> str:
    """Return the REST host of the instance that a host of the dashboard, the SDKs or the API belongs to, or ""."""
    numbered = re.fullmatch(r"dashboard-(\d\d)\.braze\.(com|eu)", host)
    if numbered:
        rest = f"rest.{'iad' if numbered[2] == 'com' else 'fra'}-{numbered[1]}.braze.{numbered[2]}"
    else:
        rest = f"rest.{host.partition('.')[2]}"
    return rest if rest in INSTANCES.values() else ""
