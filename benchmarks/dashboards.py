"""Measure how long the dashboards take to open, through the HTTP API of a real Prometheus.

It holds 35 days of 2,000 campaigns: at every hour what panels of days would read of the raw series, all series of the
last three days, and what the rules record. It scrapes the present state and evaluates the rules. Every query of every
panel is sent with All selected and the dashboard's own time range, Campaign detail for one campaign; one after the
other, to a Prometheus that was just started and has answered nothing before.

`--against=FOLDER` measures other dashboards on the same data, such as those of an older commit. Needs the programs of
`make programs`.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import requests

from benchmarks.rules import campaigns_by_workspace, evaluated, expressions, looked_back_at, prepared, seconds
from grafana.source.generate import FOLDER
from tests.support.dashboards import Json, as_list, filled_in, object_at
from tests.support.servers import Prometheus

_DAY = 86_400
_POINTS = 1000  # Grafana asks for one a pixel
_SLOW = 1.0
_SLOW_DASHBOARD = 3.0
_PATIENCE = 1800
_ONE_CAMPAIGN = "braze-campaign"
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """How long a query of a panel took, in seconds, and how many bytes came back."""

    dashboard: str
    panel: str
    took: float
    size: int


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--campaigns", type=int, default=2_000, help="so many (default: %(default)s)")
    parser.add_argument("--days", type=int, default=35, help="of history (default: %(default)s)")
    parser.add_argument("--every", type=int, default=120, help="longest interval of a rule group, seconds")
    parser.add_argument("--against", type=Path, help="a folder with other dashboards")
    flags = parser.parse_args()
    folders = [folder for folder in (flags.against, FOLDER) if folder]
    dashboards = {folder: _read(folder) for folder in folders}
    texts = [target["expr"] for found in dashboards.values() for _, target in _targets(found)]
    look_back = looked_back_at("\n".join((expressions(), *map(str, texts))), day_by_day=True)
    with ExitStack() as stack:
        world = campaigns_by_workspace(flags.campaigns)
        one = next(iter(world.values()))[0].id
        start = prepared(stack, world, look_back, days=flags.days, every=flags.every)
        with start() as server:
            evaluated(server, 1)
        measured = []
        for folder in folders:
            with start() as server:
                evaluated(server, 1)
                measured.append(list(asked(server, dashboards[folder], one)))
    print_table(measured)
    print_slowest(measured[-1])


def asked(server: Prometheus, dashboards: Sequence[Json], one: str) -> Iterator[Asked]:
    """Ask each query of each panel once, Campaign detail for the campaign of the given id."""
    now = int(time.time())
    for panel, target in _targets(dashboards):
        uid = str(panel["dashboard"])
        expression = filled_in(str(target["expr"]))
        if uid == _ONE_CAMPAIGN:
            expression = expression.replace('campaign_id=~".+"', f'campaign_id=~"{one}"')
        query = {"query": expression, "time": str(now)}
        path = "query"
        if not target.get("instant"):
            path = "query_range"
            span = _seconds_of(str(panel.get("timeFrom") or panel["from"]))
            step = max(seconds(str(panel.get("interval") or "1m")), span // _POINTS // 60 * 60)
            end = now // step * step
            query = {"query": expression, "start": str(end - span), "end": str(end), "step": str(step)}
        started = time.perf_counter()
        answer = _post(f"{server.url}/api/v1/{path}", query)
        took = time.perf_counter() - started
        if not answer.ok:
            raise SystemExit(f"expected an answer to {query}, got {answer.text}")
        yield Asked(uid, f"{panel['title']}, {target['refId']}", took, len(answer.content))


def print_table(measured: Sequence[Sequence[Asked]]) -> None:
    """Print a line for each dashboard: median, worst and sum of its queries, for each folder."""
    head = f"{'queries':>9}{'p50':>9}{'worst':>9}{'sum':>9}"
    print(f"\n{'seconds':22}" + "".join(head for _ in measured))
    for uid in sorted({one.dashboard for found in measured for one in found}):
        line = f"{uid:22}"
        for found in measured:
            times = [one.took for one in found if one.dashboard == uid]
            line += f"{len(times):9}{statistics.median(times):9.3f}{max(times):9.3f}{sum(times):9.3f}"
        print(line)


def print_slowest(found: Sequence[Asked]) -> None:
    """Print the slowest queries, and what is slower than it should be."""
    print("\nthe slowest queries")
    for one in sorted(found, key=lambda one: -one.took)[:_SHOWN]:
        print(f"{one.took:8.3f} s  {one.dashboard}: {one.panel} ({one.size:,} bytes)")
    opened: dict[str, float] = defaultdict(float)
    for one in found:
        opened[one.dashboard] += one.took
    slow = [
        *(f"{one.dashboard}: {one.panel}" for one in found if one.took > _SLOW),
        *(uid for uid, took in opened.items() if took > _SLOW_DASHBOARD),
    ]
    print(f"\nabove a second, or dashboards above three: {', '.join(slow) or 'none'}")


def _read(folder: Path) -> list[Json]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def _targets(dashboards: Sequence[Json]) -> Iterator[tuple[Json, Json]]:
    """Yield each target of each panel, which has its dashboard's uid and time range beside what is its own."""
    for dashboard in dashboards:
        of_dashboard = {"dashboard": dashboard["uid"], "from": object_at(dashboard, "time")["from"]}
        for top in as_list(dashboard["panels"]):
            for panel in (top, *as_list(top.get("panels", []))):
                for target in as_list(panel.get("targets", [])):
                    yield {**panel, **of_dashboard}, target


def _seconds_of(span: str) -> int:
    return _DAY if span == "now/d" else seconds(span.removeprefix("now-"))


def _post(url: str, data: Mapping[str, str]) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.post(url, data=data, timeout=_PATIENCE)


if __name__ == "__main__":
    main()
