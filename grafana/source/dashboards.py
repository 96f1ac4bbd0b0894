"""A dashboard of titled rows of panels, its variables and its links; the layout is made here. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import dashboard, prometheus

from grafana.source.channels import CHANNELS
from grafana.source.panels import DATASOURCE, WIDTH, table_panel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from grafana.source.panels import Column, DataLink, Panel
    from grafana.source.promql import Selection

TAG = "braze"
CAMPAIGN_UID = "braze-campaign"
RUNBOOKS = "https://github.com/braze-exporter/braze-exporter/blob/main/docs/runbooks.md"
DAY_CHANGE = (
    'max by (workspace) (braze_campaign_day_timestamp_seconds{workspace=~"$workspace"})'
    '\n!= max by (workspace) (braze_campaign_day_timestamp_seconds{workspace=~"$workspace"} offset $__interval)'
)


@dataclass(frozen=True, slots=True)
class Row:
    """A title and the panels below it, from left to right and on the next line where they do not fit.

    A collapsed row shows its panels after a click on the title, and asks for nothing before.
    """

    title: str
    panels: tuple[dashboard.Panel, ...]
    collapsed: bool = False


def make_dashboard(
    uid: str,
    title: str,
    description: str,
    *,
    variables: Sequence[dashboard.VariableModel],
    rows: Iterable[Row],
    since: str,
    refresh: str,
    marks_day_change: Sequence[str] = (),
) -> dashboard.Dashboard:
    """Lay the rows out and number the panels; `since` is the start of the time range shown at first.

    `refresh` is a duration, after which every open browser repeats all queries. `marks_day_change` are the titles of
    panels in which a line marks the workspaces' midnights.
    """
    panels = _laid_out(rows)
    marked = [panel.id_val for panel in panels if panel.title in marks_day_change and panel.id_val is not None]
    return dashboard.Dashboard(
        uid=uid,
        title=title,
        description=description,
        tags=[TAG],
        editable=False,
        graph_tooltip=dashboard.DashboardCursorSync.CROSSHAIR,
        time=dashboard.DashboardDashboardTime(from_val=since, to="now"),
        timepicker=dashboard.TimePickerConfig(),
        refresh=refresh,
        panels=panels,
        templating=dashboard.DashboardDashboardTemplating([_datasource(), *variables]),
        annotations=dashboard.AnnotationContainer([_day_change(marked)] if marked else []),
        links=[_dashboard_links()],
    )


def query_variable(name: str, label: str, query: str, description: str) -> dashboard.VariableModel:
    """Make a variable with several values out of a query; at first all of them, whatever they are."""
    return dashboard.VariableModel(
        type_val=dashboard.VariableType.QUERY,
        name=name,
        label=label,
        description=description,
        query={"query": query, "refId": name, "qryType": 5 if query.startswith("query_result") else 1},
        definition=query,
        datasource=DATASOURCE,
        refresh=dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED,
        sort=dashboard.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC,
        multi=True,
        include_all=True,
        all_value=".+",
        current=dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]),
    )


def workspace_variable() -> dashboard.VariableModel:
    """Make the variable of the workspaces, named as in the exporter's configuration."""
    return query_variable(
        "workspace", "Workspace", "label_values(braze_workspace_up, workspace)", "Names in the exporter's configuration"
    )


def campaign_variable(*, single: bool = False) -> dashboard.VariableModel:
    """Make the variable of the campaigns: the value is the id, which survives a rename, the text is the name."""
    variable = query_variable(
        "campaign",
        "Campaign",
        "query_result(label_join(group by (workspace, campaign_id, campaign_name)"
        ' (braze_campaign_up{workspace=~"$workspace"}), "name", " · ", "campaign_name", "workspace"))',
        "Campaigns of the chosen workspaces, by name and workspace",
    )
    # Grafana writes the series with labels in alphabetical order and does not escape quotes in them.
    variable.regex = r'/campaign_id="(?<value>[^"]+)",\s*campaign_name=".*",\s*name="(?<text>.*)",\s*workspace="/'
    if single:
        variable.multi = variable.include_all = False
        variable.all_value = variable.current = None
        variable.allow_custom_value = False  # "All", carried over by a link, must not become an id
    return variable


def channel_variable() -> dashboard.VariableModel:
    """Make the variable of the channels that the chosen campaigns use.

    The value is the key that Braze's API has, the text Braze's word, or the key where none is known.
    """
    channels = (
        'group by (channel) ({__name__=~"braze_message_(sent|impressions)",workspace=~"$workspace",'
        'campaign_id=~"$campaign"})'
    )
    named = f'label_join({channels}, "name", "", "channel")'
    for key, word in CHANNELS.items():
        named = f'label_replace({named}, "name", "{word}", "channel", "{key}")'
    variable = query_variable(
        "channel",
        "Channel",
        f"query_result({named})",
        "Channels of the chosen campaigns; totals of campaigns and panels about one channel do not follow it",
    )
    variable.regex = r'/channel="(?<value>[^"]+)",\s*name="(?<text>[^"]+)"/'
    return variable


def variation_variable() -> dashboard.VariableModel:
    """Make the variable of the campaign's variations by name; all of them include those without a name."""
    variable = query_variable(
        "variation",
        "Variation",
        'label_values({__name__=~"braze_message_(sent|impressions|enrolled)",workspace=~"$workspace",'
        'campaign_id=~"$campaign"}, variation_name)',
        "Variations by name; All includes those without a name",
    )
    variable.all_value = ".*"
    return variable


def event_variable() -> dashboard.VariableModel:
    """Make the variable of the conversion event."""
    return dashboard.VariableModel(
        type_val=dashboard.VariableType.CUSTOM,
        name="event",
        label="Conversion event",
        description="A is the primary conversion event",
        query="A,B,C,D",
        options=[
            dashboard.VariableOption(selected=event == "A", text=event, value=event) for event in ("A", "B", "C", "D")
        ],
        current=dashboard.VariableOption(selected=True, text="A", value="A"),
    )


def zone_variable() -> dashboard.VariableModel:
    """Make the hidden variable that titles take the workspaces' time zones from."""
    variable = query_variable(
        "zone",
        "Time zone",
        'label_values(braze_workspace_info{workspace=~"$workspace"}, timezone)',
        "Time zones in which the workspaces count days",
    )
    variable.hide = dashboard.VariableHide.HIDE_VARIABLE
    variable.all_value = None  # so that All is a list of them
    variable.skip_url_sync = True
    return variable


def campaign_table(
    panel: Panel,
    *columns: Column,
    selection: Selection,
    sort: str,
    labels: Mapping[str, str] | None = None,
    last: Sequence[str] = (),
    limit: int | None = None,
    event: bool = True,
    words: Mapping[str, Mapping[str, str]] | None = None,
    named: Sequence[str] = (),
) -> dashboard.Panel:
    """Make a table with a row for each campaign by its name, which leads to the campaign.

    `named` are the columns that have every campaign of the table, if not all do: only these join the names.

    The columns' expressions are by workspace and campaign, and by `labels` that are shown beside these; `event` says
    whether the dashboard has the variable of that name. The rest is as for all tables.
    """
    return table_panel(
        panel,
        *(
            replace(column, expression=selection.named(column.expression))
            if not named or column.name in named
            else column
            for column in columns
        ),
        labels={"campaign_name": "Campaign", "workspace": "Workspace", **(labels or {})},
        hidden=("campaign_id",),
        links=(campaign_link(event=event),),
        last=last,
        sort=sort,
        limit=limit,
        words=words,
    )


def campaign_link(*, event: bool = True) -> DataLink:
    """Make the link of a table's cell to the campaign in its row, with the time range and the other variables.

    `event` says whether the dashboard has the variable of that name.
    """
    variables = "${datasource:queryparam}" + ("&${event:queryparam}" if event else "")
    row = "var-workspace=${__data.fields.workspace}&var-campaign=${__data.fields.campaign_id}"
    return {"title": "Campaign detail", "url": f"/d/{CAMPAIGN_UID}?{variables}&{row}&${{__url_time_range}}"}


def series_link(*, event: bool = True) -> DataLink:
    """Make the link of a bar or line to the campaign that it is about, as that of a table's cell."""
    link = campaign_link(event=event)
    return {**link, "url": str(link["url"]).replace("__data.fields", "__field.labels")}


def runbook_link() -> DataLink:
    """Make the link of a table's cell to the runbook of the alert in its row."""
    return {"title": "Runbook", "url": f"{RUNBOOKS}#${{__data.fields.alertname}}", "targetBlank": True}


def _datasource() -> dashboard.VariableModel:
    return dashboard.VariableModel(
        type_val=dashboard.VariableType.DATASOURCE,
        name="datasource",
        label="Data source",
        description="The Prometheus that scrapes the exporter",
        query="prometheus",
        refresh=dashboard.VariableRefresh.ON_DASHBOARD_LOAD,
    )


def _dashboard_links() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink(
        title="Braze",
        type_val=dashboard.DashboardLinkType.DASHBOARDS,
        icon="external link",
        tooltip="The dashboards of the Braze exporter",
        tags=[TAG],
        include_vars=True,
        keep_time=True,
    )
    link.placement = ""  # in sight, instead of the menu that the SDK puts it into
    return link


def _day_change(panels: list[int]) -> dashboard.AnnotationQuery:
    query = dashboard.AnnotationQuery(
        name="Day change",
        datasource=DATASOURCE,
        enable=True,
        icon_color="blue",
        filter_val=dashboard.AnnotationPanelFilter(exclude=False, ids=panels),
        target=prometheus.Dataquery(ref_id="A", expr=DAY_CHANGE, legend_format="{{workspace}}", range_val=True),
        title_format="A new day in {{workspace}}",
        text_format="The running day became the previous one.",
        tag_keys="workspace",
    )
    query.placement = ""  # as the links
    return query


def _laid_out(rows: Iterable[Row]) -> list[dashboard.Panel | dashboard.RowPanel]:
    placed: list[dashboard.Panel | dashboard.RowPanel] = []
    top = number = 0
    for row in rows:
        number += 1
        position = dashboard.GridPos(h=1, w=WIDTH, x=0, y=top)
        made = dashboard.RowPanel(title=row.title, id_val=number, grid_pos=position, collapsed=row.collapsed)
        placed.append(made)
        top += 1
        left = height = 0
        for panel in row.panels:
            number += 1
            position = panel.grid_pos or dashboard.GridPos()
            if left + position.w > WIDTH:
                top, left, height = top + height, 0, 0
            position.x, position.y = left, top
            panel.id_val = number
            left, height = left + position.w, max(height, position.h)
        if row.collapsed:
            made.panels = list(row.panels)
        else:
            placed.extend(row.panels)
            top += height
    return placed
