"""The committed dashboards, read as Grafana reads them."""

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from grafana.source.generate import FOLDER
from tests.support.found import some

Json = dict[str, object]

UIDS = ("braze-campaign", "braze-deliverability", "braze-exporter", "braze-overview")
# What a viewer of everything has chosen, and what Grafana fills in.
VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "workspace": ".+",
        "campaign": ".+",
        "channel": ".+",
        "variation": ".*",
        "event": "A",
        "job": ".+",
        "__interval": "5m",
        "__range": "30d",
        "__rate_interval": "4m",
    }
)


def read_dashboard(uid: str) -> Json:
    """Return a dashboard by its uid."""
    dashboard: Json = json.loads((FOLDER / f"{uid}.json").read_text(encoding="utf-8"))
    return dashboard


def panels(uid: str) -> list[Json]:
    """Return the panels of a dashboard without its rows, with those of collapsed ones."""
    return some((panel for panel in everything(uid) if panel["type"] != "row"), "panels")


def everything(uid: str) -> list[Json]:
    """Return the rows and panels of a dashboard, those of collapsed rows behind their row."""
    top = as_list(read_dashboard(uid)["panels"])
    return [one for panel in top for one in (panel, *as_list(panel.get("panels", [])))]


def panel_queries(uid: str) -> Iterator[tuple[Json, str]]:
    """Yield each query of each panel, of which each has one, with the variables filled in."""
    for panel in panels(uid):
        for target in some(as_list(panel["targets"]), f"queries of {panel['title']}"):
            yield panel, filled_in(str(target["expr"]))


def filled_in(query: str) -> str:
    """Put values in place of the variables."""
    return re.sub(r"\$(\w+)", lambda match: VARIABLES[match[1]], query)


def objects_in(value: object) -> Iterator[Json]:
    """Yield every object of a JSON value, the outer ones first."""
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from objects_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from objects_in(child)


def object_at(value: Json, *keys: str) -> Json:
    """Return the object that the keys lead to."""
    for key in keys:
        child = value[key]
        assert isinstance(child, dict), f"expected an object at {key}, got {child!r}"
        value = child
    return value


def as_list(value: object) -> list[Json]:
    """Return a value that is a list."""
    assert isinstance(value, list), f"expected a list, got {value!r}"
    return value
