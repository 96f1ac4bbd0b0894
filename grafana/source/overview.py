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
    series_link,
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
    fixed_color,
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
USUAL = (
    "quantile by (workspace, campaign_id) (0.5,"
    f" campaign:braze_previous_day_message_volume:weeks_ago{{{CHOSEN.campaigns}}})"
)
HEALTH = (("2", "broken", "red"), ("1", "look at it", "orange"), ("0", "fine", "green"))
REASONS = {
    "ok": "",
    "unauthorized": "Braze refuses the API key",
    "workspace_down": "the workspace cannot be polled",
    "failing": "its polls fail",
    "stale": "it is polled too seldom",
    "nothing_sent": "nothing sent today",
    "nothing_sent_yesterday": "nothing sent yesterday",
    "volume_over_limit": "more than its limit today",
    "volume_high": "far more than usual today",
    "volume_low": "far less than usual yesterday",
    "conversions_dropped": "far fewer conversions yesterday",
    "revenue_dropped": "far less revenue yesterday",
    "email_bounce_ratio_1h": "emails bounce now",
    "webhook_error_ratio_1h": "webhooks fail now",
    "email_bounce_ratio": "many emails bounced yesterday",
    "email_spam_ratio": "many spam reports in three days",
    "email_unsubscribe_ratio": "many unsubscribes in three days",
    "email_unaccounted_ratio": "emails neither delivered nor bounced",
    "sms_failure_ratio": "many text messages failed yesterday",
    "sms_opt_out_ratio": "many opt-outs in three days",
    "whats_app_failure_ratio": "many WhatsApp messages failed yesterday",
    "webhook_error_ratio": "many webhooks failed yesterday",
    "push_bounce_ratio": "many pushes bounced yesterday",
}
"""What the label `reason` of a campaign's health means: all of its values."""


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
            Row("Health of each campaign, in days of ${zone:csv}", (_health(), _counted(), _attention())),
            Row("Yesterday, against the median of the same weekday of four weeks", _yesterday()),
            Row("Today", _today()),
            Row("Campaigns", (_below_usual(), _campaigns())),
            Row("What changed between yesterday and the same weekday before", _changes()),
            Row("Over time", _history()),
        ),
        since="now-30d",
        refresh="30m",
        marks_day_change=("Sends per hour by channel",),
    )


def _health() -> dashboard.Panel:
    return campaign_table(
        Panel(
            "Health of each campaign",
            "The worst that is known of each campaign now, worst first: red where a critical alert fires or is about "
            "to, yellow where a warning does, and why. It comes from the conditions of the alerts themselves. A "
            "click on the name leads to the campaign.",
            "Nothing is recorded: the rules braze-health of deploy/prometheus/rules are not loaded.",
            width=16,
            height=11,
        ),
        Column(
            "Health", CHOSEN.rule("campaign:braze_campaign_health", by=(*CAMPAIGN, "reason")), words=HEALTH, width=110
        ),
        selection=CHOSEN,
        labels={"reason": "Why"},
        last=("reason", "workspace"),
        sort="Health",
        limit=200,
        words={"Why": REASONS},
    )


def _counted() -> dashboard.Panel:
    health = CHOSEN.rule("campaign:braze_campaign_health")
    return stat_panel(
        Panel(
            "Campaigns by health",
            "How many campaigns are red, yellow and green now.",
            "Nothing is recorded: the rules braze-health of deploy/prometheus/rules are not loaded.",
            decimals=0,
            first="text",
            width=8,
            height=11,
        ),
        *(Query(word, f"count({health} == {value})") for value, word, _ in HEALTH),
        overrides=tuple(override(word, color=fixed_color(color)) for _, word, color in HEALTH),
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


def _against(panel: Panel, value: str, usual: str, *, least: int) -> dashboard.Panel:
    """Make a panel of yesterday's number and of how much it is above or below the usual one, from a least one on."""
    return stat_panel(
        panel,
        Query("yesterday", value),
        Query("against usual", f"{ratio(value, usual, least=least)}\n- 1"),
        color=False,
        overrides=(override("against usual", unit="percentunit", decimals=0),),
    )


def _yesterday() -> tuple[dashboard.Panel, ...]:
    none = "No complete day yet."
    usual = " Against usual: the median of the same weekday of the last four weeks, of the campaigns chosen above"
    return (
        _against(
            Panel(
                "Volume yesterday",
                "Messages of the last complete day: sends, and views where a channel sends none, as for in-app "
                f"messages.{usual}; blank below 100.",
                none,
                first="text",
                width=6,
                height=5,
            ),
            total(CHOSEN.volume_yesterday()),
            CHOSEN.usual_of_campaigns("campaign:braze_previous_day_message_volume"),
            least=100,
        ),
        _against(
            Panel(
                "Delivered yesterday",
                f"Deliveries of the last complete day, of all channels that report them.{usual}; blank below 100.",
                none,
                first="text",
                width=6,
                height=5,
            ),
            total(YESTERDAY("delivered")),
            CHOSEN.usual("message_delivered"),
            least=100,
        ),
        _against(
            Panel(
                "Converted yesterday",
                f"Conversions of event $event that happened on the last complete day, in all channels.{usual}; blank "
                "below 30.",
                "Not the conversion event chosen above on a complete day yet.",
                first="text",
                width=6,
                height=5,
            ),
            total(CHOSEN.campaign_yesterday("conversions", EVENT)),
            CHOSEN.usual("campaign_conversions", EVENT),
            least=30,
        ),
        _against(
            Panel(
                "Revenue yesterday",
                "Revenue of the last complete day. Braze attributes a purchase to every campaign whose window it falls "
                f"into, so this sum over campaigns is an upper bound.{usual}; blank below $ 1.",
                "No campaign reports revenue.",
                unit="currencyUSD",
                first="text",
                width=6,
                height=5,
            ),
            total(REVENUE),
            CHOSEN.usual_of_campaigns("campaign:braze_previous_day_campaign_revenue_dollars"),
            least=1,
        ),
        *_rates(),
    )


def _rates() -> tuple[dashboard.Panel, ...]:
    return (
        stat_panel(
            Panel(
                "Email delivery rate yesterday",
                "Deliveries / sends of the last complete day: what the receiving servers accepted. Blank below 100 "
                "sends.",
                "Under 100 emails yesterday.",
                unit="percentunit",
                decimals=2,
                first="red",
                steps=((0.95, "orange"), (0.98, "green")),
                width=6,
            ),
            Query("delivery rate", CHOSEN.yesterday_rate("delivered", "sent", EMAIL)),
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
            Query("unique open rate", CHOSEN.yesterday_rate("unique_opens", "delivered", EMAIL)),
        ),
        stat_panel(
            Panel(
                "Unique click rate yesterday",
                "Unique clicks / deliveries of emails. Clicks may belong to earlier sends. Blank below 100 deliveries.",
                "Under 100 deliveries yesterday.",
                unit="percentunit",
                decimals=2,
                first="text",
                width=6,
            ),
            Query("unique click rate", CHOSEN.yesterday_rate("unique_clicks", "delivered", EMAIL)),
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
                width=6,
            ),
            Query("conversion rate", ratio(total(CONVERSIONS), total(RECIPIENTS), least=100)),
        ),
    )


def _today() -> tuple[dashboard.Panel, ...]:
    volume = total(CHOSEN.today(CHOSEN.volume()))
    return (
        stat_panel(
            Panel(
                "Volume today",
                "Messages of the running day so far, of campaigns that are on their workspace's newest day already: "
                "sends, and views where a channel sends none.",
                "No campaign has messages today.",
                first="text",
                width=12,
            ),
            Query("messages", volume),
        ),
        stat_panel(
            Panel(
                "Volume today vs. same time last week",
                "Messages of the running day against the same weekday a week ago at this time. Blank below 100 "
                "messages then, and until the exporter has run for a week.",
                "Under 100 messages a week ago, or no data of then.",
                unit="percentunit",
                decimals=0,
                first="text",
                width=12,
            ),
            Query("change", f"{ratio(volume, total(CHOSEN.volume(offset='7d')), least=100)}\n- 1"),
            color=False,
        ),
    )


def _below_usual() -> dashboard.Panel:
    yesterday = CHOSEN.rule("campaign:braze_previous_day_message_volume:sum")
    below = f"1 - {yesterday}\n/ ({USUAL} > 0)"
    expected = f"and {CHOSEN.rule('campaign:braze_previous_day_message_volume:usual')}"
    return campaign_table(
        Panel(
            "Below usual",
            "Campaigns that had fewer messages yesterday than the median of the same weekday of the last four weeks, "
            "of those that usually send on it and did so last week: finished campaigns and single sends are not in "
            "it. The largest fall first.",
            "No campaign that usually sends on this weekday is below its usual volume.",
            width=24,
            height=8,
        ),
        share_column("Below usual by", f"({below}\n{expected}) > 0", decimals=0),
        Column("Volume yesterday", f"{yesterday}\nand ({below} > 0)\n{expected}"),
        Column("Usual", f"{USUAL}\nand ({below} > 0)\n{expected}"),
        selection=CHOSEN,
        sort="Below usual by",
        limit=100,
        named=("Below usual by",),
    )


def _campaigns() -> dashboard.Panel:
    yesterday = total(CHOSEN.volume_yesterday(), CAMPAIGN)
    columns = (
        share_column("Below usual by", f"1 - {yesterday}\n/ ({USUAL} >= 100)", decimals=0, width=_NUMBER),
        Column("Volume yesterday", yesterday, width=_NUMBER),
        Column("Volume today", total(CHOSEN.today(CHOSEN.volume()), CAMPAIGN), width=_NUMBER),
        Column("Same time last week", total(CHOSEN.volume(offset="7d"), CAMPAIGN), width=_NUMBER),
        share_column(
            "Delivery rate",
            CHOSEN.yesterday_rate("delivered", "sent", EMAIL, CAMPAIGN),
            steps=((0, "red"), (0.95, "orange"), (0.98, "text")),
            width=_NUMBER,
        ),
        share_column("Unique open rate", CHOSEN.yesterday_rate("unique_opens", "delivered", EMAIL, CAMPAIGN), bar=1.0),
        share_column(
            "Unique click rate",
            CHOSEN.yesterday_rate("unique_clicks", "delivered", EMAIL, CAMPAIGN),
            decimals=2,
            bar=0.2,
        ),
        share_column("Conversion rate", ratio(CONVERSIONS, RECIPIENTS, least=100), decimals=2, bar=0.2),
        Column("Revenue", REVENUE, unit="currencyUSD", width=_NUMBER),
        age_column("Data age", f"time() - {CHOSEN.status('last_success_timestamp_seconds')}"),
    )
    return campaign_table(
        Panel(
            "Campaigns",
            "One line for each campaign, those furthest below their usual volume first: 200 of them. Below usual by: "
            "yesterday against the median of the same weekday of four weeks, below 0 where it was more. Volume: sends, "
            "and views where a channel sends none. Rates are of emails of yesterday; conversion rate: event $event by "
            "send time. Rates are blank below 100. A click on the name leads to the campaign.",
            "No campaign: does Prometheus scrape the exporter, and has its first round of polls ended?",
            width=24,
            height=12,
        ),
        *columns,
        selection=CHOSEN,
        sort="Below usual by",
        limit=200,
        named=("Data age",),
    )


def _changes() -> tuple[dashboard.Panel, ...]:
    yesterday = CHOSEN.rule("campaign:braze_previous_day_message_volume:sum")
    before = CHOSEN.rule("campaign:braze_previous_day_message_volume:weeks_ago", 'weeks="1"')
    usually = CHOSEN.rule("campaign:braze_previous_day_message_volume:usual")
    rise = f"{yesterday}\n- ({before}\nor {yesterday} * 0)"
    fall = f"({before}\n- ({yesterday}\nor {before} * 0))\nand {usually}"
    rate = ratio(CONVERSIONS, RECIPIENTS, least=500)
    best, worst = (wilson(CONVERSIONS, f"({RECIPIENTS} >= 500)", sign) for sign in "-+")
    few = "No campaign had 500 unique recipients and the conversion event chosen above."
    return (
        bar_gauge(
            Panel(
                "Biggest increase",
                "The ten campaigns with the most more messages yesterday than a week before, in messages and not in "
                "per cent: from 2 to 20 is no news.",
                NO_CAMPAIGN,
                first="blue",
            ),
            Query("{{campaign_name}}", _ranked(highest(10, f"({rise}) > 0"))),
            links=(series_link(),),
        ),
        bar_gauge(
            Panel(
                "Biggest decrease",
                "The ten campaigns with the most fewer messages yesterday than a week before, in messages and not in "
                "per cent, of those that usually send on this weekday: finished campaigns and single sends are not "
                "in it.",
                NO_CAMPAIGN,
                first="orange",
            ),
            Query("{{campaign_name}}", _ranked(highest(10, f"({fall}) > 0"))),
            links=(series_link(),),
        ),
        bar_gauge(
            Panel(
                "Best conversion rate yesterday",
                "Conversion event $event by send time, campaigns with at least 500 unique recipients. The ten with "
                "the highest lower end of the 95 % interval (Wilson), so that a lucky small campaign does not win; "
                "the bar is the rate itself.",
                few,
                unit="percentunit",
                decimals=2,
                first="blue",
            ),
            Query("{{campaign_name}}", f"sort_desc({CHOSEN.named(f'{rate}{chr(10)}and {highest(10, best)}')})"),
            links=(series_link(),),
        ),
        bar_gauge(
            Panel(
                "Worst conversion rate yesterday",
                "The twin of the best: the ten with the lowest upper end of the 95 % interval (Wilson), so that an "
                "unlucky small campaign is not blamed; the bar is the rate itself.",
                few,
                unit="percentunit",
                decimals=2,
                first="orange",
            ),
            Query("{{campaign_name}}", f"sort({CHOSEN.named(f'{rate}{chr(10)}and {lowest(10, worst)}')})"),
            links=(series_link(),),
        ),
    )


def _ranked(expression: str) -> str:
    """Name the campaigns of a few values, the largest first."""
    return f"sort_desc({CHOSEN.named(expression)})"


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
            Query("{{channel}}", CHOSEN.hour("sent", ("channel",))),
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
                "Revenue that Braze attributes to each campaign, of the ten with the most in the time shown. "
                "Not stacked: windows of campaigns overlap, and a stack would claim a total. All "
                "channels.",
                "No campaign reports revenue on a complete day yet.",
                unit="currencyUSD",
                interval="1d",
                least=0,
                height=10,
            ),
            Query("{{campaign_name}}", CHOSEN.named_over_time(f"{revenue}\nand on (workspace, campaign_id) {largest}")),
            look=Look("points and lines", calculations=("sum",)),
            links=(series_link(),),
        ),
    )


_NUMBER = 90  # pixels that a number needs; the bars share the rest
