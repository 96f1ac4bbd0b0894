"""The dashboards: generated as committed, correct PromQL over metrics that exist, and kind to whoever reads them."""

import json
import re
from collections.abc import Callable, Iterator

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from exporter.polled import FAMILIES
from exporter.simulator.world import STATISTICS
from grafana.source.channels import CHANNELS, COLORS
from grafana.source.generate import FOLDER, files
from tests.support.dashboards import (
    UIDS,
    VARIABLES,
    Json,
    as_list,
    filled_in,
    object_at,
    objects_in,
    panel_queries,
    panels,
    read_dashboard,
)
from tests.support.found import some
from tests.support.servers import ROOT

RULES = ROOT / "deploy/prometheus/rules"
# Series that Prometheus makes itself, and prometheus_client of every process.
FOREIGN = re.compile(r"ALERTS|ALERTS_FOR_STATE|scrape_.+|process_.+")
TARGET_LABELS = {"job", "instance"}
RAW_RANGES = re.compile(r".+(_total|_bucket|_remaining)|process_.+|(variation|control_group|reference|campaign):.+")


def test_committed_dashboards_are_what_the_code_generates() -> None:
    """`make generate` would change nothing, and there is no other file beside its own."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}

    assert committed == files()


@pytest.mark.parametrize("uid", UIDS)
def test_every_key_is_known_to_grafana(uid: str) -> None:
    """Reading a dashboard into the SDK's model and writing it again loses nothing."""
    register_default_plugins()
    text = (FOLDER / f"{uid}.json").read_text(encoding="utf-8")
    model = Dashboard.from_json(json.loads(text))
    # The SDK sets the place of links and annotations itself and does not read it.
    for link in model.links or []:
        link.placement = ""
    assert model.annotations is not None
    for query in model.annotations.list_val or []:
        query.placement = ""

    assert json.loads(json.dumps(model, cls=JSONEncoder)) == json.loads(text)


@pytest.mark.parametrize("uid", UIDS)
def test_dashboards_are_classic_and_portable(uid: str) -> None:
    """Stable uid, a database id for nobody, read-only, the viewer's time zone, a title and a description."""
    dashboard = read_dashboard(uid)

    assert dashboard["uid"] == uid
    assert dashboard.get("id") is None
    assert dashboard["schemaVersion"] == 42
    assert dashboard["editable"] is False
    assert dashboard["timezone"] == "browser"
    assert str(dashboard["title"]).startswith("Braze / ")
    assert dashboard["description"]


@pytest.mark.parametrize("uid", UIDS)
def test_panels_explain_themselves(uid: str) -> None:
    """Every panel has a title of its own, a description, a unit, and a text for when there is nothing to show."""
    found = panels(uid)
    titles = [panel["title"] for panel in found]

    assert len(titles) == len(set(titles))
    for panel in found:
        defaults = object_at(panel, "fieldConfig", "defaults")
        assert len(str(panel["description"])) > 15, panel["title"]
        assert str(panel["description"]).endswith("."), panel["title"]
        assert defaults["unit"], panel["title"]
        assert str(defaults["noValue"]).endswith((".", "?")), panel["title"]
        assert "$" not in str(defaults["noValue"]), "Grafana fills in no variables there"


@pytest.mark.parametrize("uid", UIDS)
def test_panels_fill_the_grid_without_overlap(uid: str) -> None:
    """Ids are unique; no two panels share a cell, none leaves the 24 columns, and rows come before their panels."""
    everything = as_list(read_dashboard(uid)["panels"])
    cells: set[tuple[int, int]] = set()

    assert len({panel["id"] for panel in everything}) == len(everything)
    assert everything[0]["type"] == "row"
    assert len(everything) > len(panels(uid))
    for panel in everything:
        place = object_at(panel, "gridPos")
        left, top, width, height = (int(str(place[key])) for key in ("x", "y", "w", "h"))
        own = {(x, y) for x in range(left, left + width) for y in range(top, top + height)}
        assert left + width <= 24, panel["title"]
        assert not own & cells, panel["title"]
        cells |= own


@pytest.mark.parametrize("uid", UIDS)
def test_every_query_is_valid_promql(uid: str) -> None:
    """With the variables filled in, every expression parses and no variable is left."""
    for title, query in _queries(uid):
        assert "$" not in query, title
        promql_parser.parse(query)


@pytest.mark.parametrize("uid", UIDS)
def test_queries_name_metrics_and_labels_that_exist(uid: str) -> None:
    """Selectors use metrics of the catalogue, of the recording rules or of Prometheus, and labels that these have."""
    known = {family.name: {*family.labels, *TARGET_LABELS} for family in FAMILIES}
    known |= {f"{name}_bucket": {*labels, "le"} for name, labels in known.items()}
    recorded = {str(rule["record"]) for rule in some(_rules(), "rules") if "record" in rule}

    assert recorded
    for title, query in _queries(uid):
        for selector in _selectors(query):
            name = selector.name
            labels = {matcher.name for matcher in selector.matchers.matchers}
            assert name is not None, title
            if name not in recorded and name != "campaign:braze_threshold:override" and not FOREIGN.fullmatch(name):
                assert name in known, title
                assert labels <= known[name], f"{title}: {name}"


@pytest.mark.parametrize("uid", UIDS)
def test_counters_are_only_read_as_rates(uid: str) -> None:
    """A counter stands under rate or increase, and over time with Grafana's own interval."""
    for panel, query in panel_queries(uid):
        rated: list[str] = []

        def visit(node: object, rated: list[str] = rated, panel: Json = panel) -> None:
            if isinstance(node, promql_parser.Call) and node.func.name in {"rate", "increase"}:
                argument = node.args[0]
                assert isinstance(argument, promql_parser.MatrixSelector)
                rated.append(str(argument.vector_selector.name))
                if panel["type"] == "timeseries":
                    assert promql_parser.display_duration(argument.range) == VARIABLES["__rate_interval"]

        promql_parser.walk(promql_parser.parse(query), visit)
        counters = [
            str(selector.name)
            for selector in _selectors(query)
            if re.search(r"_(total|bucket|sum|count)$", str(selector.name))
        ]
        assert sorted(counters) == sorted(rated), panel["title"]


@pytest.mark.parametrize("uid", UIDS)
def test_gauges_of_days_are_never_read_over_a_range(uid: str) -> None:
    """A range over a raw series would be split by each restart and doubled by replicas: only subqueries look back."""
    for title, query in _queries(uid):
        for name in _range_selectors(query):
            assert RAW_RANGES.fullmatch(name), f"{title}: {name}"


def test_ranges_are_found() -> None:
    """There are queries over a range, and they are seen: a counter under rate, a recorded series over time."""
    assert _range_selectors("rate(a_total[5m]) / max_over_time(b[1h])") == ["a_total", "b"]
    assert some((name for uid in UIDS for _, query in _queries(uid) for name in _range_selectors(query)), "ranges")


def test_days_over_time_are_complete_days() -> None:
    """A panel with a value for each day reads what is recorded of complete days, and beside it only names."""
    for panel, query in _queries_of(lambda panel: panel.get("interval") == "1d"):
        names = {str(selector.name) for selector in _selectors(query)}
        days = {name for name in names if re.fullmatch(r"(variation|campaign):braze_previous_day_\w+:day", name)}
        beside = {"braze_campaign_up", "campaign:braze_campaign_name:date", "campaign:braze_recorded_day:date"}
        assert days or names == {"campaign:braze_threshold:effective"}, panel["title"]
        assert not days or names - days <= beside, panel["title"]


def test_titles_that_say_yesterday_read_the_previous_day() -> None:
    """A panel about yesterday asks for no number of the running day."""
    for panel, query in _queries_of(lambda panel: "yesterday" in str(panel["title"])):
        running = [str(selector.name) for selector in _selectors(query)]
        assert not [name for name in running if name.startswith("braze_message_")], panel["title"]


def test_rates_have_a_least_denominator() -> None:
    """No ratio of two counts is drawn where the second is small: a rate of a handful tells nothing."""
    denominators: list[tuple[object, str]] = []
    # Wilson's interval says itself how little a handful tells.
    for panel, query in _queries_of(lambda panel: not re.search("interval|conversion rate", str(panel["title"]))):

        def visit(node: object, panel: Json = panel) -> None:
            if isinstance(node, promql_parser.BinaryExpr) and str(node.op) == "/":
                denominators.append((panel["title"], str(node.rhs)))

        promql_parser.walk(promql_parser.parse(query), visit)

    for title, denominator in some(denominators, "ratios"):
        # A plain number makes another unit.
        assert re.search(r"(>=|>) \d+\)$|^braze_api_rate_limit|^\d+$", denominator), title


@pytest.mark.parametrize("uid", UIDS)
def test_no_data_source_is_hard_coded(uid: str) -> None:
    """Everything that asks something asks the data source that the viewer chose."""
    dashboard = read_dashboard(uid)
    named = [value["datasource"] for value in objects_in(dashboard) if "datasource" in value]
    first = as_list(object_at(dashboard, "templating")["list"])[0]

    assert (first["name"], first["type"], first["query"], first["label"]) == (
        "datasource",
        "datasource",
        "prometheus",
        "Data source",
    )
    assert all(value == {"type": "prometheus", "uid": "${datasource}"} for value in some(named, "data sources"))
    assert all("datasource" in target for panel in panels(uid) for target in as_list(panel["targets"]))


@pytest.mark.parametrize("uid", UIDS)
def test_variables_are_defined_used_and_labelled(uid: str) -> None:
    """Whatever is used is defined and the other way round; queries follow the time range, All is a pattern."""
    dashboard = read_dashboard(uid)
    variables = {str(variable["name"]): variable for variable in as_list(object_at(dashboard, "templating")["list"])}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
    used = {name for name in used if not name.startswith("__") and not name.isdigit()}

    assert used == set(variables)
    for variable in some(variables.values(), "variables"):
        assert variable["label"]
        if variable["type"] == "query":
            assert variable["refresh"] == 2
        if variable.get("includeAll") and variable["name"] != "zone":
            assert variable["allValue"] in {".+", ".*"}


@pytest.mark.parametrize("uid", ["braze-overview", "braze-campaign", "braze-deliverability"])
def test_the_campaign_variable_reads_id_and_name_out_of_a_series(uid: str) -> None:
    """The value is the id and the text name and workspace, whatever the name contains; Grafana does not escape it."""
    variables = {one["name"]: one for one in as_list(object_at(read_dashboard(uid), "templating")["list"])}
    pattern = str(variables["campaign"]["regex"]).strip("/").replace("(?<", "(?P<")
    name = 'Cart "48h", \\ A/B'
    series = f'{{campaign_id="3bbc",campaign_name="{name}",name="{name} · main",workspace="main"}} 1 1700000000000'
    match = re.search(pattern, series)

    assert match is not None
    assert (match["value"], match["text"]) == ("3bbc", f"{name} · main")


@pytest.mark.parametrize("uid", UIDS)
def test_dashboards_lead_to_each_other(uid: str) -> None:
    """Links in the header carry variables and time range."""
    dashboard = read_dashboard(uid)
    header = as_list(dashboard["links"])

    assert [(link["type"], link["tags"], link["includeVars"], link["keepTime"]) for link in header] == [
        ("dashboards", ["braze"], True, True)
    ]
    assert dashboard["tags"] == ["braze"]


def test_tables_lead_to_dashboards() -> None:
    """Links in tables name a dashboard and pass what they know."""
    cells = [
        str(value["url"])
        for uid in UIDS
        for panel in panels(uid)
        for value in objects_in(panel)
        if str(value.get("url", "")).startswith("/d/")
    ]

    for url in some(cells, "links in tables"):
        assert url.split("?")[0].removeprefix("/d/") in UIDS
        assert "${datasource:queryparam}" in url
        assert re.search(r"var-campaign=\$\{__(data\.fields|field\.labels)\.campaign_id\}", url)
        assert "${__url_time_range}" in url


def test_the_link_to_runbooks_is_the_alerts_own() -> None:
    """The alerts' runbook_url and the link of the table of alerts lead to the same page."""
    text = (FOLDER / "braze-overview.json").read_text(encoding="utf-8")
    pages = {
        str(object_at(rule, "annotations")["runbook_url"]).partition("#")[0] for rule in _rules() if "alert" in rule
    }

    assert pages
    assert all(f"{page}#${{__data.fields.alertname}}" in text for page in pages)


def test_runbooks_are_found_by_an_alerts_name() -> None:
    """The link can only pass the name as it is, and headings are found in lower case: each has an anchor of its own."""
    text = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
    alerts = {str(rule["alert"]) for rule in _rules() if "alert" in rule}
    assert alerts
    anchors = re.findall(r'^<a name="(\w+)"></a>\n\n### (\w+)$', text, flags=re.MULTILINE)

    assert all(anchor == heading for anchor, heading in anchors)
    assert sorted(anchor for anchor, _ in anchors) == sorted(alerts)


def test_channels_have_brazes_words() -> None:
    """Every channel that the simulator knows has a word and a colour, and no two share one."""
    assert set(STATISTICS) == set(CHANNELS) == set(COLORS)
    assert len(set(CHANNELS.values())) == len(set(COLORS.values())) == len(CHANNELS)


def test_repeated_panels_show_one_value_of_a_variable() -> None:
    """A panel that repeats does so for a variable of several values, and shows it in its title and in every query."""
    for uid, panel in _panels_where(lambda panel: bool(panel.get("repeat"))):
        listed = as_list(object_at(read_dashboard(uid), "templating")["list"])
        several = {str(one["name"]) for one in listed if one.get("multi") and one.get("includeAll")}
        variable = panel["repeat"]
        assert variable in several, panel["title"]
        assert f"${{{variable}:text}}" in str(panel["title"])
        assert all(f'"${variable}"' in str(target["expr"]) for target in as_list(panel["targets"])), panel["title"]


@pytest.mark.parametrize("shown", ["{{channel}}", '"channel": "Channel"'])
def test_channels_are_shown_in_brazes_words(shown: str) -> None:
    """Wherever a panel shows a channel, in a legend or a column, all API keys are mapped to words."""
    for _, panel in _panels_where(lambda panel: shown in json.dumps(panel, ensure_ascii=False)):
        overrides = json.dumps(object_at(panel, "fieldConfig")["overrides"], ensure_ascii=False)
        missing = [key for key, word in CHANNELS.items() if key not in overrides or word not in overrides]
        assert not missing, panel["title"]


@pytest.mark.parametrize("uid", UIDS)
def test_thresholds_ascend_and_fit_their_unit(uid: str) -> None:
    """A base step, then rising values; shares lie between 0 and 1; threshold lines have thresholds."""
    for panel in panels(uid):
        defaults = object_at(panel, "fieldConfig", "defaults")
        steps = [step["value"] for step in as_list(object_at(defaults, "thresholds")["steps"])]
        values = [float(str(value)) for value in steps[1:]]
        assert steps[0] is None
        assert values == sorted(set(values)), panel["title"]
        if defaults["unit"] == "percentunit":
            assert all(0 <= value < 1 for value in values), panel["title"]


def test_threshold_lines_have_thresholds() -> None:
    """A panel that draws its thresholds as lines has some."""
    for _, panel in _panels_where(lambda panel: '"mode": "dashed"' in json.dumps(panel["fieldConfig"])):
        steps = as_list(object_at(panel, "fieldConfig", "defaults", "thresholds")["steps"])
        assert steps[1:], panel["title"]


def test_tables_keep_the_text_for_no_data_out_of_their_cells() -> None:
    """The text for an empty table is not repeated in each empty cell, and each column's unit is its own."""
    found: list[object] = []
    for _, panel in _panels_where(lambda panel: panel["type"] == "table"):
        overrides = as_list(object_at(panel, "fieldConfig")["overrides"])
        named = [object_at(one, "matcher")["options"] for one in overrides]
        renamed = object_at(as_list(panel["transformations"])[1], "options", "renameByName")
        columns = {name for key, name in renamed.items() if key.startswith("Value")}
        assert overrides[0]["properties"] == [{"id": "noValue", "value": "-"}], panel["title"]
        assert columns <= set(named), panel["title"]
        assert all(target["instant"] for target in as_list(panel["targets"])), panel["title"]
        found += columns
    assert found


def test_provisioning_gives_grafana_the_data_source_and_the_folder() -> None:
    """One Prometheus with the documented scrape interval as step; one folder that browsers cannot change."""
    provisioning = ROOT / "grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text(encoding="utf-8"))
    provider = yaml.safe_load((provisioning / "dashboards/braze.yaml").read_text(encoding="utf-8"))

    assert source["apiVersion"] == provider["apiVersion"] == 1
    assert [(one["type"], one["jsonData"]["timeInterval"]) for one in source["datasources"]] == [("prometheus", "1m")]
    assert [(one["type"], one["allowUiUpdates"]) for one in provider["providers"]] == [("file", False)]


def _panels_where(condition: Callable[[Json], bool]) -> list[tuple[str, Json]]:
    """Return the panels of all dashboards that fulfil a condition, each with the uid of its dashboard."""
    return some(((uid, panel) for uid in UIDS for panel in panels(uid) if condition(panel)), "such panels")


def _queries_of(condition: Callable[[Json], bool]) -> list[tuple[Json, str]]:
    """Return the queries of the panels of all dashboards that fulfil a condition."""
    queries = (query for uid in UIDS for query in panel_queries(uid))
    return some(((panel, query) for panel, query in queries if condition(panel)), "queries of such panels")


def _queries(uid: str) -> list[tuple[str, str]]:
    """Return the queries of panels and annotations with the title of what they are for."""
    annotations = as_list(object_at(read_dashboard(uid), "annotations")["list"])
    return [
        *some(((str(panel["title"]), query) for panel, query in panel_queries(uid)), "queries"),
        *((str(one["name"]), filled_in(str(object_at(one, "target")["expr"]))) for one in annotations),
    ]


def _selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Return the selectors of a query, of which each has one."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return some(found, f"selectors in {query}")


def _range_selectors(query: str) -> list[str]:
    """Return the names of the series that a query reads over a range, if any."""
    found: list[str] = []

    def visit(node: object) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(str(node.vector_selector.name))

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def _rules() -> Iterator[Json]:
    """Yield the rules of all files, of which each has some."""
    for path in some(RULES.glob("*.yml"), "files of rules"):
        for group in some(yaml.safe_load(path.read_text(encoding="utf-8"))["groups"], f"groups in {path.name}"):
            yield from some(group["rules"], f"rules in {group['name']}")
