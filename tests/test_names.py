"""What rules, dashboards and runbooks read exists in the catalogue of the exporter or among the recorded series."""

import re
from collections.abc import Iterator

import promql_parser
import yaml

from exporter.polled import FAMILIES
from tests.support.dashboards import UIDS, as_list, filled_in, object_at, panel_queries, read_dashboard
from tests.test_rules import PROMETHEUS, RECORDED, RULES, RUNBOOK

# Made by Prometheus, by prometheus_client, and by the user's own overrides.
FOREIGN = re.compile(r"ALERTS|ALERTS_FOR_STATE|up|scrape_\w+|process_\w+|campaign:braze_threshold:override")


def queries() -> Iterator[tuple[str, str]]:
    """Yield every PromQL expression with where it is."""
    for path in (*RULES.glob("*.yml"), PROMETHEUS / "overrides.example.yml"):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from ((path.name, rule["expr"]) for rule in group["rules"])
    for uid in UIDS:
        yield from ((uid, query) for _, query in panel_queries(uid))
        for annotation in as_list(object_at(read_dashboard(uid), "annotations")["list"]):
            yield uid, filled_in(str(object_at(annotation, "target")["expr"]))
        for variable in as_list(object_at(read_dashboard(uid), "templating")["list"]):
            if match := re.fullmatch(
                r"query_result\((.*)\)|label_values\((.*), \w+\)", str(variable.get("definition")), re.DOTALL
            ):
                yield uid, filled_in(match[1] or match[2])
    yield from (("runbooks", query) for query in re.findall(r"```promql\n(.+?)```", RUNBOOK, re.DOTALL))


def selected(query: str) -> set[str]:
    """Return the names of the series that an expression selects."""
    found: set[str] = set()

    def visit(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            by_pattern = [one.value for one in node.matchers.matchers if one.name == "__name__"]
            expanded = [re.sub(r"\((.+)\)", part, text) for text in by_pattern for part in _parts(text)]
            found.update([str(node.name)] if node.name else expanded)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def _parts(pattern: str) -> list[str]:
    alternatives = re.search(r"\((.+)\)", pattern)
    return alternatives[1].split("|") if alternatives else [""]


def test_every_series_that_is_read_exists() -> None:
    """No rule, panel, variable or runbook reads a metric that nobody exports or a series that nobody records."""
    catalogue = {family.name for family in FAMILIES}
    known = catalogue | {f"{name}_bucket" for name in catalogue} | {rule["record"] for rule in RECORDED}
    read = {(where, name) for where, query in queries() for name in selected(query)}

    assert len(read) > 200
    assert sorted((where, name) for where, name in read if name not in known and not FOREIGN.fullmatch(name)) == []
