"""Campaign overview: is everything going out as usual, and what needs attention this morning? Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import common

from grafana.source.dashboards import (
    Row,
    campaign_link,
    campaign_table,
    campaign_variable,
    channel_variable,
    event_variable,
    make_dashboard,
    runbook_link,
    workspace_variable,
    zone_variable,
)
from grafana.source.panels import (
    Column,
    Look,
    Panel,
    Query,
    age_column,
    bar_gauge,
    colored_words,
    override,
    share_column,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import CAMPAIGN, EMAIL, EVENT, Selection, highest, lowest, ratio, total, wilson

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

CHOSEN = Selection(('channel=~"$channel"',))
YESTERDAY = CHOSEN.yesterday
CONVERSIONS = CHOSEN.campaign_yesterday("conversions_by_send_time", EVENT)
RECIPIENTS = CHOSEN.campaign_yesterday("unique_recipients")
REVENUE = CHOSEN.campaign_yesterday("revenue_dollars")
SEVERITIES = (("critical", "critical", "red"), ("warning", "warning", "orange"), ("info", "info", "blue"))
NO_CAMPAIGN = "No campaign has data for this."


def overview() -> dashboard.Dashboard:
    """Return the dashboard."""
    return make_dashboard(
        "braze-overview",
        "Braze / Campaign overview",
        "Is everything going out as usual, and what needs attention this morning? Braze counts by day, in the "
        "workspace's time zone: yesterday is complete, today is running.",
        variables=(
            workspace_variable(),
            campaign_variable(),
            channel_variable(),
            event_variable(),
            zone_variable(),
        ),
        rows=(
            Row("Right now, in days of ${zone:csv}", (_attention(), *_stats())),
            Row("Campaigns", (_campaigns(),)),
            Row("What changed between yesterday and the same weekday before", _changes()),
            Row("Over time", _history()),
        ),
        since="now-30d",
        marks_day_change=("Sends per hour by channel",),
    )


def _attention() -> dashboard.Panel:
    since = (
        "max by (alertname, severity, workspace, campaign_id, campaign_name, channel) (\n"
        '  ALERTS_FOR_STATE{alertname=~"Braze.+"}\n'
        '  and ignoring (alertstate) ALERTS{alertname=~"Braze.+",alertstate="firing"}\n) * 1000'
    )
    return table_panel(
        Panel(
            "Needs attention",
            "Every firing alert of the exporter's rules: which, for which campaign and since when. All workspaces, "
            "whatever is chosen above. A click on the alert leads to its runbook and to the campaign.",
            "Nothing needs attention.",
            unit="none",
            width=24,
            height=6,
        ),
        Column("Since", since, unit="dateTimeFromNow"),
        labels={
            "alertname": "Alert",
            "severity": "Severity",
            "campaign_name": "Campaign",
            "channel": "Channel",
            "workspace": "Workspace",
        },
        hidden=("campaign_id",),
        links=(runbook_link(), campaign_link()),
        overrides=(
            override("Since", custom__align="left"),
            override(
                "Severity", mappings=[colored_words(SEVERITIES)], custom__cellOptions=common.TableColorTextCellOptions()
            ),
        ),
        sort="Since",
    )


def _stats() -> tuple[dashboard.Panel, ...]:
    sent_today = total(CHOSEN.today(CHOSEN.message("sent")))
    return (
        stat_panel(
            Panel(
                "Sends today",
                "Messages sent on the running day, of campaigns that are on their workspace's newest day already. "
                "In-app messages are not in it: Braze counts their impressions instead.",
                "No campaign has sends today.",
                first="text",
                width=6,
            ),
            Query("sends", sent_today),
        ),
        stat_panel(
            Panel(
                "Against last week by now",
                "Sends of the running day against the same weekday a week ago at this time. Blank below 100 sends "
                "then, and until the exporter has run for a week.",
                "Under 100 sends a week ago, or no data of then.",
                unit="percentunit",
                decimals=0,
                first="text",
                width=6,
            ),
            Query("change", f"{ratio(sent_today, total(CHOSEN.message('sent', offset='7d')), least=100)}\n- 1"),
            color=False,
        ),
        stat_panel(
            Panel(
                "Email deliveries yesterday",
                "Deliveries / sends of the last complete day: what the receiving servers accepted. Blank below 100 "
                "sends.",
                "Under 100 emails yesterday.",
                unit="percentunit",
                decimals=2,
                first="red",
                steps=((0.95, "orange"), (0.98, "green")),
                width=6,
            ),
            Query("deliveries", CHOSEN.yesterday_rate("delivered", "sent", EMAIL)),
        ),
        stat_panel(
            Panel(
                "Unique open rate yesterday",
                "Unique opens / deliveries of emails. Machine opens (Apple Mail Privacy Protection) are in it. Opens "
                "may belong to earlier sends, so over 100 % is possible on a quiet day. Blank below 100 deliveries.",
                "Under 100 deliveries yesterday.",
                unit="percentunit",
                decimals=1,
                first="text",
                width=6,
            ),
            Query("unique opens", CHOSEN.yesterday_rate("unique_opens", "delivered", EMAIL)),
        ),
        stat_panel(
            Panel(
                "Unique click rate yesterday",
                "Unique clicks / deliveries of emails. Clicks may belong to earlier sends. Blank below 100 deliveries.",
                "Under 100 deliveries yesterday.",
                unit="percentunit",
                decimals=2,
                first="text",
                width=8,
            ),
            Query("unique clicks", CHOSEN.yesterday_rate("unique_clicks", "delivered", EMAIL)),
        ),
        stat_panel(
            Panel(
                "Conversion rate yesterday (so far)",
                "Conversion event $event: conversions that Braze attributes to yesterday's sends / yesterday's unique "
                "recipients, added up over campaigns (people are counted once per campaign and day). It grows until "
                "the conversion windows close. All channels. Blank below 100 recipients.",
                "Under 100 recipients yesterday, or not the conversion event chosen above.",
                unit="percentunit",
                decimals=2,
                first="text",
                width=8,
            ),
            Query("conversion rate", ratio(total(CONVERSIONS), total(RECIPIENTS), least=100)),
        ),
        stat_panel(
            Panel(
                "Revenue yesterday",
                "Braze attributes a purchase to every campaign whose window it falls into, so the sum over campaigns "
                "is an upper bound of what they brought together; the largest campaign's is a lower one. All channels.",
                "No campaign reports revenue.",
                unit="currencyUSD",
                first="text",
                width=8,
            ),
            Query("at most (sum of campaigns)", total(REVENUE)),
            Query("largest campaign", f"max({REVENUE})"),
        ),
    )


def _campaigns() -> dashboard.Panel:
    sent = total(YESTERDAY("sent"), CAMPAIGN)
    columns = (
        Column("Sent today", total(CHOSEN.today(CHOSEN.volume()), CAMPAIGN), width=_NUMBER),
        Column("Last week by now", total(CHOSEN.volume(offset="7d"), CAMPAIGN), width=_NUMBER),
        Column("Sent yesterday", total(CHOSEN.volume_yesterday(), CAMPAIGN), width=_NUMBER),
        share_column(
            "Against same weekday",
            f"{ratio(sent, total(YESTERDAY('sent', offset='7d'), CAMPAIGN), least=100)}\n- 1",
            decimals=0,
            width=_NUMBER,
        ),
        share_column(
            "Delivered",
            CHOSEN.yesterday_rate("delivered", "sent", EMAIL, CAMPAIGN),
            steps=((0, "red"), (0.95, "orange"), (0.98, "text")),
            width=_NUMBER,
        ),
        share_column("Unique opens", CHOSEN.yesterday_rate("unique_opens", "delivered", EMAIL, CAMPAIGN), bar=1.0),
        share_column(
            "Unique clicks", CHOSEN.yesterday_rate("unique_clicks", "delivered", EMAIL, CAMPAIGN), decimals=2, bar=0.2
        ),
        share_column("Conversion rate", ratio(CONVERSIONS, RECIPIENTS, least=100), decimals=2, bar=0.2),
        Column("Revenue", REVENUE, unit="currencyUSD", width=_NUMBER),
        age_column("Data age", f"time() - {CHOSEN.status('last_success_timestamp_seconds')}"),
    )
    return campaign_table(
        Panel(
            "Campaigns",
            "One line for each campaign, the 200 that sent most yesterday. Sent: messages, of in-app messages the "
            "impressions. Delivered, unique opens and clicks: emails of yesterday; conversion rate: event $event by "
            "send time. Rates are blank below 100. A click on the name leads to the campaign.",
            "No campaign: does Prometheus scrape the exporter, and has its first round of polls ended?",
            width=24,
            height=12,
        ),
        *columns,
        selection=CHOSEN,
        sort="Sent yesterday",
        limit=200,
    )


def _changes() -> tuple[dashboard.Panel, ...]:
    sent = total(CHOSEN.volume_yesterday(), CAMPAIGN)
    before = total(CHOSEN.volume_yesterday(offset="7d"), CAMPAIGN)
    change = CHOSEN.named(f"{sent}\n- ({before}\nor {sent} * 0)")
    fall = CHOSEN.named(f"{before}\n- ({sent}\nor {before} * 0)")
    enough = f"\nand {RECIPIENTS} >= 500"
    return (
        bar_gauge(
            Panel(
                "Most risen",
                "The ten campaigns that sent the most more yesterday than a week before, in messages and not in per "
                "cent: from 2 to 20 is no news. In-app messages count with their impressions.",
                NO_CAMPAIGN,
                first="blue",
            ),
            Query("{{campaign_name}}", highest(10, f"{change} > 0")),
        ),
        bar_gauge(
            Panel(
                "Most fallen",
                "The ten campaigns that sent the most less yesterday than a week before, in messages and not in per "
                "cent. One that Braze had no numbers of counts as none sent.",
                NO_CAMPAIGN,
                first="orange",
            ),
            Query("{{campaign_name}}", highest(10, f"{fall} > 0")),
        ),
        bar_gauge(
            Panel(
                "Best conversion rate yesterday",
                "Conversion event $event by send time, campaigns with at least 500 unique recipients. Ranked by and "
                "drawn at the lower end of the 95 % interval (Wilson), so that a lucky small campaign does not win.",
                "No campaign had 500 unique recipients and the conversion event chosen above.",
                unit="percentunit",
                decimals=2,
                first="blue",
            ),
            Query(
                "{{campaign_name}}",
                highest(10, CHOSEN.named(f"{wilson(CONVERSIONS, RECIPIENTS, '-')}{enough}")),
            ),
        ),
        bar_gauge(
            Panel(
                "Worst conversion rate yesterday",
                "The twin of the best: ranked by and drawn at the upper end of the 95 % interval (Wilson), so that an "
                "unlucky small campaign is not blamed.",
                "No campaign had 500 unique recipients and the conversion event chosen above.",
                unit="percentunit",
                decimals=2,
                first="orange",
            ),
            Query("{{campaign_name}}", lowest(10, CHOSEN.named(f"{wilson(CONVERSIONS, RECIPIENTS, '+')}{enough}"))),
        ),
    )


def _history() -> tuple[dashboard.Panel, ...]:
    revenue = CHOSEN.days("campaign_revenue_dollars", CAMPAIGN)
    # The same ten for the whole time: a choice for each day would be a new line each day.
    largest = highest(10, CHOSEN.total_of_range("campaign_revenue_dollars", CAMPAIGN))
    return (
        time_series(
            Panel(
                "Sends per hour by channel",
                "Messages sent in the hour before each point, exact across midnight: in the hour of the day change "
                "yesterday's final number fills the gap. A line marks each workspace's midnight. In-app messages have "
                "no sends.",
                "No sends in these channels, or under an hour of history.",
                interval="1h",
                span="3d",
                least=0,
                width=24,
            ),
            Query("{{channel}}", CHOSEN.hourly(("channel",), "sent")),
            look=Look("bars", stacked=True),
        ),
        time_series(
            Panel(
                "Sends per day by channel",
                "One value for each complete day, drawn at its own date and read when the next day is six hours old in "
                "the workspace's zone: yesterday appears then. Exact for dashboards in a zone up to 12 hours away.",
                "No complete day of sends in these channels yet.",
                interval="1d",
                least=0,
                width=24,
                height=10,
            ),
            Query("{{channel}}", CHOSEN.days("message_sent", ("channel",))),
            look=Look("bars", stacked=True, calculations=("sum", "mean")),
        ),
        time_series(
            Panel(
                "Conversions per day",
                "Conversion event $event, on the day it happened. All channels.",
                "Not the conversion event chosen above on a complete day yet.",
                interval="1d",
                least=0,
                height=10,
            ),
            Query("{{workspace}}", CHOSEN.days("campaign_conversions", ("workspace",), EVENT)),
            look=Look("bars", stacked=True),
        ),
        time_series(
            Panel(
                "Revenue per day by campaign",
                "Revenue that Braze attributes to each campaign, of the ten with the most in the time shown, and of "
                "all others together. Not stacked: windows of campaigns overlap, and a stack would claim a total. All "
                "channels.",
                "No campaign reports revenue on a complete day yet.",
                unit="currencyUSD",
                interval="1d",
                least=0,
                height=10,
            ),
            Query("{{campaign_name}}", CHOSEN.named(f"{revenue}\nand on (workspace, campaign_id) {largest}")),
            Query("all others", total(f"{revenue}\nunless on (workspace, campaign_id) {largest}")),
            look=Look("points and lines", calculations=("sum",)),
        ),
    )


_NUMBER = 90  # pixels that a number needs; the bars share the rest
