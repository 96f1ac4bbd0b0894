"""Panels, variables and links as Grafana's classic JSON has them, in the few forms that the dashboards use. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from grafana_foundation_sdk.models import bargauge, common, dashboard, prometheus, stat, table, timeseries

from grafana.source.channels import CHANNELS, COLORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
"""Columns of Grafana's grid."""

DATE = "time:YYYY-MM-DD"
"""Grafana's unit of a day, for milliseconds as `noon` makes them."""

Steps = tuple[tuple[float, str], ...]
Mappings = tuple[tuple[str, str, str], ...]
DataLink = dict[str, str | bool]


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression, and the name of what it returns: a legend with labels in double braces."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: what is asked, its unit, and how its cells look.

    `steps` colour the text of a cell from a value on, `bar` draws its share of `bar`, `words` are texts for values,
    `most` is a value from which on a text stands instead, `width` is in pixels; columns without one share what is left.
    """

    name: str
    expression: str
    unit: str = "short"
    decimals: int | None = None
    steps: Steps = ()
    bar: float | None = None
    words: Mappings = ()
    most: tuple[float, str] | None = None
    width: int | None = None


def share_column(
    name: str,
    expression: str,
    *,
    decimals: int = 1,
    steps: Steps = (),
    bar: float | None = None,
    most: tuple[float, str] | None = None,
    width: int | None = None,
) -> Column:
    """Make a column of shares, written in per cent."""
    return Column(name, expression, "percentunit", decimals, steps=steps, bar=bar, most=most, width=width)


def age_column(name: str, expression: str, steps: Steps = ((1200, "orange"), (7200, "red"))) -> Column:
    """Make a column of times in seconds since something; by themselves orange from where numbers count as old."""
    return Column(name, expression, unit="s", decimals=0, steps=steps, width=110)


@dataclass(frozen=True, slots=True)
class Panel:
    """What all panels have, in the order in which a person reads it.

    `steps` are thresholds, colours from a value on; `first` is the colour below them. `least` and `most` end the scale,
    `room` is what it shows even if no value is so large. `interval` is the least step, `span` the time that the panel
    shows instead of the dashboard's, `height` 0 the usual of its kind.
    """

    title: str
    description: str
    no_value: str
    unit: str = "short"
    decimals: int | None = None
    steps: Steps = ()
    first: str = "green"
    words: Mappings = ()
    least: float | None = None
    most: float | None = None
    room: float | None = None
    interval: str = ""
    span: str = ""
    width: int = 12
    height: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """How a time series panel draws: bars or lines, stacked or not, with a table of totals instead of a list.

    A broken line has points where its neighbours are missing.
    """

    draw: Literal["line", "broken line", "bars", "points and lines"] = "line"
    stacked: bool = False
    calculations: tuple[str, ...] = ()
    logarithmic: bool = False
    threshold_lines: bool = False
    null_after: float | None = None
    overrides: tuple[dashboard.DashboardFieldConfigSourceOverrides, ...] = field(default=())


def stat_panel(
    panel: Panel,
    *queries: Query,
    color: bool = True,
    overrides: Sequence[dashboard.DashboardFieldConfigSourceOverrides] = (),
) -> dashboard.Panel:
    """Make a panel of one or a few big numbers, evaluated at the end of the time range; with `steps`, 0 or more."""
    options = stat.Options(
        graph_mode=common.BigValueGraphMode.NONE,
        color_mode=common.BigValueColorMode.VALUE if color else common.BigValueColorMode.NONE,
        text_mode=common.BigValueTextMode.VALUE_AND_NAME if len(queries) > 1 else common.BigValueTextMode.AUTO,
        reduce_options=_last_value(),
    )
    # The colour below all thresholds is that of the text for no value, too, which is not an alarm.
    steps = ((0, panel.first), *panel.steps) if panel.steps else ()
    panel = replace(panel, first="text" if steps else panel.first, steps=steps, height=panel.height or _STAT_HEIGHT)
    return _panel("stat", panel, options, _targets(queries, instant=True), overrides=overrides)


def bar_gauge(
    panel: Panel,
    *queries: Query,
    links: Sequence[DataLink] = (),
    overrides: Sequence[dashboard.DashboardFieldConfigSourceOverrides] = (),
) -> dashboard.Panel:
    """Make a panel of horizontal bars, evaluated at the end of the time range; a click on one follows `links`."""
    options = bargauge.Options(
        display_mode=common.BarGaugeDisplayMode.BASIC,
        value_mode=common.BarGaugeValueMode.COLOR,
        name_placement=common.BarGaugeNamePlacement.LEFT,
        orientation=common.VizOrientation.HORIZONTAL,
        sizing=common.BarGaugeSizing.MANUAL,
        max_viz_height=_BAR_HEIGHT,
        text=common.VizTextDisplayOptions(title_size=_BAR_NAME, value_size=_BAR_VALUE),
        reduce_options=_last_value(),
    )
    targets = _targets(queries, instant=True)
    # Without a least value Grafana begins all bars at the smallest one, which then looks like nothing.
    panel = replace(panel, least=0)
    made = _panel("bargauge", panel, options, targets, overrides=(*channel_names(queries, colored=False), *overrides))
    return _linked(made, links)


def time_series(
    panel: Panel, *queries: Query, look: Look | None = None, links: Sequence[DataLink] = ()
) -> dashboard.Panel:
    """Make a panel of lines or bars over time; a click on one offers `links`."""
    look = look or Look()
    options = timeseries.Options(
        legend=common.VizLegendOptions(
            display_mode=common.LegendDisplayMode.TABLE if look.calculations else common.LegendDisplayMode.LIST,
            placement=common.LegendPlacement.RIGHT if look.calculations else common.LegendPlacement.BOTTOM,
            show_legend=True,
            calcs=list(look.calculations),
            sort_by={"sum": "Total", "lastNotNull": "Last *"}.get(look.calculations[0]) if look.calculations else None,
            sort_desc=True if look.calculations else None,
        ),
        tooltip=common.VizTooltipOptions(
            mode=common.TooltipDisplayMode.MULTI, sort=common.SortOrder.DESCENDING, hide_zeros=look.stacked
        ),
    )
    made = _panel(
        "timeseries",
        panel,
        options,
        _targets(queries, instant=False),
        custom=_drawing(look, panel),
        overrides=(*channel_names(queries), *look.overrides),
        color=dashboard.FieldColorModeId.PALETTE_CLASSIC,
    )
    made.interval = panel.interval or None
    made.time_from = panel.span or None
    return _linked(made, links)


def table_panel(
    panel: Panel,
    *columns: Column,
    labels: Mapping[str, str],
    hidden: Sequence[str] = (),
    links: Sequence[DataLink] = (),
    overrides: Sequence[dashboard.DashboardFieldConfigSourceOverrides] = (),
    last: Sequence[str] = (),
    sort: str = "",
    limit: int | None = None,
    words: Mapping[str, Mapping[str, str]] | None = None,
) -> dashboard.Panel:
    """Make a table with one row for each set of labels and one column for each query.

    `labels` are the labels shown with their titles, in their order, those of `last` behind the numbers. `words` are
    texts for their values, by title. `hidden` ones are there for `links`, which every cell of the first label has.
    `sort` is the column whose largest values come first, `limit` the number of rows.
    """
    names = {**labels, **_value_names(columns)}
    if len(columns) == 1:
        names["Value"] = columns[0].name  # Grafana's name for it where a table has one query
    first = [label for label in labels if label not in last]
    order = [*first, *hidden, *(name for name in names if name not in labels), *last]
    transformations = [
        dashboard.DataTransformerConfig("merge", options={}),
        _organize(order, names, excluded=("Time",)),
    ]
    if sort:
        transformations.append(
            dashboard.DataTransformerConfig("sortBy", options={"sort": [{"field": sort, "desc": True}]})
        )
    if limit:
        transformations.append(dashboard.DataTransformerConfig("limit", options={"limitField": limit}))
    column_overrides = [
        # The panel's text is for an empty table, a cell without a number is a dash.
        _override("byRegexp", ".*", noValue="-"),
        *(
            _override("byName", name, **{"custom.width": round(_WIDTHS[name] * _share(panel))})
            for name in labels.values()
            if name in _WIDTHS
        ),
        *(_override("byName", name, **{"custom.hidden": True, "custom.hideFrom": _HIDDEN}) for name in hidden),
        *(_column(column) for column in columns),
    ]
    for title, texts in (words or {}).items():
        column_overrides.append(_override("byName", title, mappings=[_words(texts)]))
    if "channel" in labels:
        column_overrides.append(_override("byName", labels["channel"], mappings=[_words(CHANNELS)]))
    if links:
        column_overrides.append(_override("byName", next(iter(labels.values())), links=list(links)))
    made = _panel(
        "table",
        panel,
        table.Options(footer=common.TableFooterOptions(enable_pagination=bool(limit)), cell_height=_SMALL),
        _targets([Query(column.name, column.expression) for column in columns], instant=True, table=True),
        custom=common.TableFieldOptions(filterable=True, min_width=_LEAST_WIDTH),
        overrides=(*column_overrides, *overrides),
    )
    made.transformations = transformations
    return made


def matrix_panel(
    panel: Panel, expression: str, *, row: tuple[str, str], column: str, order: Sequence[str]
) -> dashboard.Panel:
    """Make a table out of one query, with a column for each value of the label `column` that it returns.

    So there is no column without a value, as a query of its own would leave. `row` is the label of the rows and its
    title, `order` the order of the columns.
    """
    label, title = row
    corner = f"{label}\\{column}"  # Grafana's name for the column of rows
    made = _panel(
        "table",
        panel,
        table.Options(cell_height=_SMALL),
        _targets([Query(title, expression)], instant=True, table=True),
        custom=common.TableFieldOptions(min_width=_LEAST_WIDTH),
        overrides=[
            _override("byRegexp", ".*", noValue="-"),
            _override("byRegexp", ".*", **{"custom.wrapHeaderText": True}),
            _override("byName", title, **{"custom.width": _WIDTHS[title]}),
        ],
    )
    made.transformations = [
        dashboard.DataTransformerConfig(
            "groupingToMatrix",
            options={"columnField": column, "rowField": label, "valueField": "Value", "emptyValue": "null"},
        ),
        _organize((corner, *order), {corner: title}),
    ]
    return made


def repeated(panel: dashboard.Panel, variable: str, *, across: int = 0) -> dashboard.Panel:
    """Repeat a panel for each chosen value of a variable: below each other, or so many of them side by side."""
    panel.repeat = variable
    panel.repeat_direction = "h" if across else "v"
    panel.max_per_row = across or None
    return panel


def override(
    name: str, *, pattern: bool = False, **properties: object
) -> dashboard.DashboardFieldConfigSourceOverrides:
    """Set properties of the series of a name, or of those whose names match it as a pattern.

    A dot in a property's name is written as two underscores.
    """
    matcher = "byRegexp" if pattern else "byName"
    return _override(matcher, name, **{key.replace("__", "."): value for key, value in properties.items()})


def threshold_lines() -> dashboard.DashboardFieldConfigSourceOverrides:
    """Draw series whose names begin with "threshold" as dashed lines."""
    return override(
        "/^threshold.*/",
        pattern=True,
        color=fixed_color("red"),
        custom__lineStyle={"fill": "dash", "dash": [10, 10]},
        custom__lineWidth=1,
        custom__showPoints="never",
    )


def channel_names(
    queries: Sequence[Query], *, colored: bool = True
) -> list[dashboard.DashboardFieldConfigSourceOverrides]:
    """Give series named by their channel Braze's words, and its colour where values have none."""
    names = {query.name for query in queries}
    if "{{channel}}" in names:
        colors = {key: {"color": fixed_color(COLORS[key])} if colored else {} for key in CHANNELS}
        return [_override("byName", key, displayName=word, **colors[key]) for key, word in CHANNELS.items()]
    return []


def fixed_color(color: str) -> dict[str, str]:
    """Return a color that no value changes."""
    return {"mode": "fixed", "fixedColor": color}


def colored_words(words: Mappings) -> dashboard.ValueMap:
    """Return value mappings out of values, texts and colours."""
    return dashboard.ValueMap(
        {
            value: dashboard.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, text, color) in enumerate(words)
        }
    )


def noon(midnight: str) -> str:
    """Return the milliseconds of a day's noon: the same date for all viewers within 12 hours of time zone."""
    return f"({midnight} + 43200) * 1000"


def threshold_steps(first: str, steps: Steps) -> dashboard.ThresholdsConfig:
    """Return thresholds: a colour from minus infinity on, then others from values on."""
    return dashboard.ThresholdsConfig(
        mode=dashboard.ThresholdsMode.ABSOLUTE,
        steps=[
            dashboard.Threshold(value=None, color=first),
            *(dashboard.Threshold(value=value, color=color) for value, color in steps),
        ],
    )


def _linked(panel: dashboard.Panel, links: Sequence[DataLink]) -> dashboard.Panel:
    if links and panel.field_config is not None:
        panel.field_config.overrides = [*panel.field_config.overrides, _override("byRegexp", ".*", links=list(links))]
    return panel


def _panel(
    kind: str,
    panel: Panel,
    options: object,
    targets: list[prometheus.Dataquery],
    *,
    custom: object = None,
    overrides: Sequence[dashboard.DashboardFieldConfigSourceOverrides] = (),
    color: dashboard.FieldColorModeId = dashboard.FieldColorModeId.THRESHOLDS,
) -> dashboard.Panel:
    return dashboard.Panel(
        type_val=kind,
        title=panel.title,
        description=panel.description,
        datasource=DATASOURCE,
        targets=[*targets],
        grid_pos=dashboard.GridPos(w=panel.width, h=panel.height or _HEIGHT),
        options=options,
        field_config=dashboard.FieldConfigSource(
            defaults=dashboard.FieldConfig(
                unit=panel.unit,
                decimals=panel.decimals,
                min_val=panel.least,
                max_val=panel.most,
                mappings=[colored_words(panel.words)] if panel.words else [],
                thresholds=threshold_steps(panel.first, panel.steps),
                color=dashboard.FieldColor(mode=color),
                no_value=panel.no_value,
                custom=custom,
            ),
            overrides=list(overrides),
        ),
    )


def _targets(queries: Sequence[Query], *, instant: bool, table: bool = False) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery(
            ref_id=reference,
            datasource=DATASOURCE,
            expr=query.expression,
            legend_format=query.name,
            instant=instant,
            range_val=not instant,
            format_val=prometheus.PromQueryFormat.TABLE if table else prometheus.PromQueryFormat.TIME_SERIES,
            editor_mode=prometheus.QueryEditorMode.CODE,
        )
        for reference, query in zip(_references(), queries, strict=False)
    ]


def _value_names(columns: Sequence[Column]) -> dict[str, str]:
    """Return the columns' names by those that Grafana gives the values of their queries."""
    return {f"Value #{reference}": column.name for reference, column in zip(_references(), columns, strict=False)}


def _organize(
    order: Sequence[str], names: Mapping[str, str], *, excluded: Sequence[str] = ()
) -> dashboard.DataTransformerConfig:
    """Order fields, rename some and leave out others."""
    return dashboard.DataTransformerConfig(
        "organize",
        options={
            "excludeByName": dict.fromkeys(excluded, True),
            "indexByName": {name: index for index, name in enumerate(order)},
            "renameByName": dict(names),
        },
    )


def _references() -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _last_value() -> common.ReduceDataOptions:
    return common.ReduceDataOptions(values=False, calcs=["lastNotNull"], fields="")


def _drawing(look: Look, panel: Panel) -> timeseries.FieldConfig:
    bars = look.draw == "bars"
    points = {"points and lines": common.VisibilityMode.ALWAYS, "broken line": common.VisibilityMode.AUTO}
    return timeseries.FieldConfig(
        draw_style=common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE,
        line_width=0 if bars else 2,
        fill_opacity=80 if bars else 0,
        show_points=points.get(look.draw, common.VisibilityMode.NEVER),
        point_size=6 if look.draw == "points and lines" else None,
        bar_width_factor=0.8 if bars else None,
        axis_soft_min=None if panel.room is None else 0,
        axis_soft_max=panel.room,
        stacking=common.StackingConfig(
            mode=common.StackingMode.NORMAL if look.stacked else common.StackingMode.NONE, group="A"
        ),
        scale_distribution=common.ScaleDistributionConfig(type_val=common.ScaleDistribution.LOG, log=10)
        if look.logarithmic
        else None,
        thresholds_style=common.GraphThresholdsStyleConfig(
            mode=common.GraphThresholdsStyleMode.DASHED if look.threshold_lines else common.GraphThresholdsStyleMode.OFF
        ),
        insert_nulls=look.null_after,
        span_nulls=False,
    )


def _column(column: Column) -> dashboard.DashboardFieldConfigSourceOverrides:
    properties: dict[str, object] = {"unit": column.unit, "custom.filterable": False, "custom.wrapHeaderText": True}
    if column.width is not None:
        properties["custom.width"] = column.width
    if column.decimals is not None:
        properties["decimals"] = column.decimals
    if column.steps:
        properties["thresholds"] = threshold_steps("text", column.steps)
        properties["custom.cellOptions"] = common.TableColorTextCellOptions()
    if column.bar is not None:
        properties.update(min=0, max=column.bar, color=fixed_color("blue"))
        properties["custom.cellOptions"] = common.TableBarGaugeCellOptions(
            mode=common.BarGaugeDisplayMode.BASIC, value_display_mode=common.BarGaugeValueMode.TEXT
        )
    if column.words:
        properties["mappings"] = [colored_words(column.words)]
        properties["custom.cellOptions"] = common.TableColorTextCellOptions()
    if column.most:
        least, text = column.most
        options = dashboard.DashboardRangeMapOptions(least, None, dashboard.ValueMappingResult(text=text, index=0))
        properties["mappings"] = [dashboard.RangeMap(options)]
    return _override("byName", column.name, **properties)


def _override(matcher: str, name: str, **properties: object) -> dashboard.DashboardFieldConfigSourceOverrides:
    return dashboard.DashboardFieldConfigSourceOverrides(
        matcher=dashboard.MatcherConfig(matcher, name),
        properties=[dashboard.DynamicConfigValue(key, value) for key, value in properties.items()],
    )


def _share(panel: Panel) -> float:
    """Return how wide columns of names are, compared with those of a table over the whole width."""
    return 1 if panel.width == WIDTH else 0.9


def _words(words: Mapping[str, str]) -> dashboard.ValueMap:
    return dashboard.ValueMap(
        {key: dashboard.ValueMappingResult(text=word, index=index) for index, (key, word) in enumerate(words.items())}
    )


# Pixels: else it grows with the space, and differs from panel to panel. Grafana gives a name at least the room that it
# needs in 12 pixels.
_BAR_NAME = 12
_BAR_VALUE = 14
_BAR_HEIGHT = 32  # pixels: a few bars would otherwise fill the panel, with names too large to be read whole
# Pixels of a table's columns of names; the columns of numbers share the rest, and have the least width at least.
_WIDTHS = {"Alert": 240, "Campaign": 220, "Channel": 130, "Severity": 110, "Variation": 160, "Workspace": 130}
_LEAST_WIDTH = 80
_STAT_HEIGHT = 4
_HEIGHT = 8
_HIDDEN = common.HideSeriesConfig(tooltip=True, legend=True, viz=True)
_SMALL = common.TableCellHeight.SM
