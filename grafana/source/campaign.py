"""Campaign detail: how does this campaign do today, over time, variation against variation? Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana.source.channels import CHANNELS
from grafana.source.dashboards import (
    CAMPAIGN_UID,
    Row,
    campaign_variable,
    channel_variable,
    event_variable,
    make_dashboard,
    variation_variable,
    workspace_variable,
    zone_variable,
)
from grafana.source.panels import (
    Column,
    Look,
    Panel,
    Query,
    bar_chart,
    bar_gauge,
    override,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import (
    CONTENT_CARDS,
    EMAIL,
    EVENT,
    IN_APP,
    PUSH,
    SMS,
    VARIATION,
    WEBHOOK,
    WHATSAPP,
    Selection,
    total,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from grafana_foundation_sdk.models import dashboard

CHOSEN = Selection(('channel=~"$channel"', 'variation_name=~"$variation"'))
YESTERDAY = CHOSEN.yesterday
ROWS = ("channel", "variation_id", "variation_name")
LABELS = {"channel": "Channel", "variation_name": "Variation"}

# Each table's channel, and the statistics that it has with Braze's words for them.
CHANNEL_TABLES = (
    (
        "Email",
        EMAIL,
        {
            "sent": "Sends",
            "delivered": "Deliveries",
            "unique_opens": "Unique Opens",
            "opens": "Opens",
            "machine_open": "Machine Opens",
            "unique_clicks": "Unique Clicks",
            "clicks": "Clicks",
            "bounces": "Bounces",
            "unsubscribes": "Unsubscribes",
            "reported_spam": "Spam",
        },
        "Opens contain machine opens; opens and clicks may belong to earlier sends.",
    ),
    (
        "Push",
        PUSH,
        {
            "sent": "Sends",
            "bounces": "Bounces",
            "direct_opens": "Direct Opens",
            "total_opens": "Opens",
            "body_clicks": "Body Clicks",
        },
        "Opens are direct ones and those that Braze attributes to the notification.",
    ),
    (
        "SMS",
        SMS,
        {
            "sent": "Sends",
            "delivered": "Confirmed Deliveries",
            "rejected": "Rejections",
            "delivery_failed": "Delivery Failures",
            "clicks": "Clicks",
            "opt_out": "Opt-Out",
        },
        "Carriers do not confirm every delivery.",
    ),
    (
        "WhatsApp",
        WHATSAPP,
        {"sent": "Sends", "delivered": "Deliveries", "read": "Reads", "failed": "Failures"},
        "Reads are known of people who send read receipts.",
    ),
    (
        "In-App Message",
        IN_APP,
        {
            "impressions": "Impressions",
            "clicks": "Clicks",
            "first_button_clicks": "Button 1 Clicks",
            "second_button_clicks": "Button 2 Clicks",
        },
        "In-app messages have impressions instead of sends.",
    ),
    (
        "Content Cards",
        CONTENT_CARDS,
        {
            "sent": "Sends",
            "unique_impressions": "Unique Impressions",
            "unique_clicks": "Unique Clicks",
            "unique_dismissals": "Unique Dismissals",
        },
        "Uniques count people once a day.",
    ),
    (
        "Webhook",
        WEBHOOK,
        {"sent": "Sends", "errors": "Errors"},
        "Errors are part of the sends.",
    ),
)


def campaign() -> dashboard.Dashboard:
    """Return the dashboard."""
    return make_dashboard(
        CAMPAIGN_UID,
        "Braze / Campaign detail",
        "How does one campaign do: today, over time, variation against variation?",
        variables=(
            workspace_variable(),
            campaign_variable(single=True),
            channel_variable(),
            variation_variable(),
            event_variable(),
            zone_variable(),
        ),
        rows=(
            Row("Today, in days of ${zone:csv}", _today()),
            Row("Yesterday, complete", (*map(_channel_table, CHANNEL_TABLES), _funnel())),
            Row("Variations against the control group, the last 28 complete days", _variations()),
            Row("History", _history()),
        ),
        since="now-28d",
        marks_day_change=("Today against the last four weeks", "Sends per hour", "Opens and clicks per hour (Email)"),
    )


def _today() -> tuple[dashboard.Panel, ...]:
    no_sends = "The campaign has neither sends nor impressions today."
    volume = CHOSEN.volume()
    return (
        stat_panel(
            Panel(
                "Day shown",
                "Start of the newest day that Braze answers with, in the workspace's time zone, written in yours.",
                "The campaign has no data: see the dashboard Exporter health.",
                unit="dateTimeAsIso",
                first="text",
                width=8,
            ),
            Query("day", f"max({CHOSEN.day()}) * 1000"),
        ),
        stat_panel(
            Panel("Sent today", "Sends so far; of in-app messages the impressions.", no_sends, first="text", width=8),
            Query("messages", total(volume)),
        ),
        stat_panel(
            Panel(
                "Usual by now",
                "Median of the same weekday at this time in the last four weeks. Braze keeps days and not hours, so "
                "this fills week by week while the exporter runs, and needs a Prometheus that keeps 30 days.",
                "No week of history yet.",
                first="text",
                width=8,
            ),
            Query("messages", f"quantile(0.5, {CHOSEN.four_weeks()})"),
            color=False,
        ),
        time_series(
            Panel(
                "Today against the last four weeks",
                "Messages of the day so far (of in-app messages the impressions), since your midnight. Inside the "
                "band from the lowest to the highest of four same weekdays is usual. Where the "
                "workspace's midnight is another than yours, the lines begin there.",
                no_sends,
                interval="5m",
                span="now/d",
                least=0,
                width=24,
                height=9,
            ),
            Query("today", total(CHOSEN.of_last_day(volume))),
            Query("a week ago", total(CHOSEN.weeks_ago(1))),
            Query("lowest", f"min({CHOSEN.four_weeks()})"),
            Query("highest", f"max({CHOSEN.four_weeks()})"),
            look=Look(
                null_after=600_000,
                overrides=(
                    override("today", custom__lineWidth=3, color=_fixed("blue")),
                    override(
                        "a week ago",
                        custom__lineStyle={"fill": "dash", "dash": [10, 10]},
                        custom__lineWidth=1,
                        color=_fixed("text"),
                    ),
                    override("lowest", custom__lineWidth=0, color=_fixed("green")),
                    override(
                        "highest",
                        custom__lineWidth=0,
                        custom__fillBelowTo="lowest",
                        custom__fillOpacity=15,
                        color=_fixed("green"),
                    ),
                ),
            ),
        ),
        time_series(
            Panel(
                "Sends per hour",
                "Messages sent in the hour before each point, exact across midnight.",
                "No sends in these channels, or under an hour of history. In-app messages have no sends.",
                interval="1h",
                span="2d",
                least=0,
            ),
            Query("{{channel}}", CHOSEN.hourly(("channel",), "sent")),
            look=Look("bars", stacked=True),
        ),
        time_series(
            Panel(
                "Opens and clicks per hour (Email)",
                "When people react. Opens contain the machine opens, which are shown beside them.",
                "The campaign has no emails.",
                interval="1h",
                span="2d",
                least=0,
            ),
            Query("opens", CHOSEN.hourly((), "opens", EMAIL)),
            Query("machine opens", CHOSEN.hourly((), "machine_open", EMAIL)),
            Query("clicks", CHOSEN.hourly((), "clicks", EMAIL)),
            look=Look("bars"),
        ),
    )


def _channel_table(entry: tuple[str, str, dict[str, str], str]) -> dashboard.Panel:
    name, matcher, statistics, remark = entry
    return table_panel(
        Panel(
            f"{name} by variation",
            f"Yesterday, a line for each variation. {remark} The control group is absent: it receives nothing.",
            f"Sends no {name}, or none yesterday.",
            width=24 if name == "Email" else 12,
            height=6,
        ),
        *(Column(word, total(YESTERDAY(statistic, matcher), ROWS)) for statistic, word in statistics.items()),
        labels=LABELS,
        hidden=("variation_id",),
    )


def _funnel() -> dashboard.Panel:
    stages = {
        "Sends": "sent",
        "Deliveries": "delivered",
        "Unique Opens": "unique_opens",
        "Unique Clicks": "unique_clicks",
    }
    return bar_gauge(
        Panel(
            "Funnel (Email)",
            "Yesterday from sends to conversions. Opens and clicks may belong to earlier sends; conversions are those "
            "of event $event that Braze attributes to yesterday's sends of the whole campaign, in all channels.",
            "Sends no Email, or none yesterday.",
            first="blue",
            least=0,
            width=24,
            height=7,
        ),
        *(Query(word, total(YESTERDAY(statistic, EMAIL))) for word, statistic in stages.items()),
        Query("Conversions", total(CHOSEN.campaign_yesterday("conversions_by_send_time", EVENT))),
    )


def _variations() -> tuple[dashboard.Panel, ...]:
    def recorded(statistic: str) -> str:
        return CHOSEN.recorded(f"variation:braze_message_conversions:{statistic}", EVENT)

    recipients = CHOSEN.recorded("variation:braze_message_unique_recipients:sum28d")
    revenue = CHOSEN.recorded("variation:braze_message_revenue_dollars:sum28d")
    unknown = (
        "Nothing recorded: the rules braze-ab of deploy/prometheus/rules are not loaded, or there is no complete day."
    )
    verdict = f"(({recorded('z28d')} > bool 1.96) - ({recorded('z28d')} < bool -1.96))\nor {recorded('sum28d')} * 0 + 9"
    return (
        table_panel(
            Panel(
                "Variations against the control group",
                "Conversions of event $event that happened / unique recipients of each day, over the last 28 complete "
                "days. Lift: the rate over the control group's, minus 1, with its 95 % interval (of the log ratio). "
                "Confidence: two-sided. All from ten conversions in both groups on. Neither corrected for looking "
                "every day nor for several variations: 95 % is worth a look, the decision is due on the date planned "
                "before. Who converted on several days counts on each.",
                unknown,
                width=24,
            ),
            Column("Unique Recipients", recipients),
            Column("Conversions", recorded("sum28d")),
            Column("Conversion Rate", recorded("ratio28d"), unit="percentunit", decimals=2),
            Column("Revenue per recipient", f"{revenue}\n/ ({recipients} > 0)", unit="currencyUSD", decimals=2),
            Column("Lift", recorded("lift28d"), unit="percentunit", decimals=1),
            Column("Lift, lower", recorded("lift28d_lower"), unit="percentunit", decimals=1),
            Column("Lift, upper", recorded("lift28d_upper"), unit="percentunit", decimals=1),
            Column("Confidence", recorded("confidence28d"), unit="percentunit", decimals=1),
            Column(
                "Verdict",
                verdict,
                words=(
                    ("1", "better than control", "green"),
                    ("0", "no difference shown", "text"),
                    ("-1", "worse than control", "red"),
                    ("9", "control group, or not enough data yet", "semi-dark-blue"),
                ),
                width=260,
            ),
            labels=LABELS,
            hidden=("variation_id", "campaign_id", "workspace"),
        ),
        _intervals(recorded, unknown),
        stat_panel(
            Panel(
                "Extra conversions against the control group",
                "(rate - rate of the control group) x recipients, added up over the variations: what would not have "
                "happened without the campaign, in 28 complete days. From ten conversions in both groups on.",
                "No control group, or not enough data yet.",
                first="red",
                steps=((0, "green"),),
                width=8,
                height=8,
            ),
            Query("conversions", total(recorded("extra28d"))),
        ),
        time_series(
            Panel(
                "Conversion rate by day and variation",
                "Does the difference hold day after day? Conversions of event $event on the day / unique recipients "
                "of the day. Blank below 50 recipients.",
                "No variation had 50 recipients on a complete day and conversion event $event.",
                unit="percentunit",
                decimals=2,
                interval="1d",
                least=0,
                width=24,
            ),
            Query(
                "{{channel}} {{variation_name}}",
                CHOSEN.daily_ratio(ROWS, YESTERDAY("conversions", EVENT), YESTERDAY("unique_recipients"), least=50),
            ),
            look=Look("points and lines"),
        ),
    )


def _intervals(recorded: Callable[[str], str], unknown: str) -> dashboard.Panel:
    def joined(statistic: str) -> str:
        return f'label_join({recorded(statistic)}, "row", "{_BETWEEN}", "channel", "variation_name")'

    return bar_chart(
        Panel(
            "Conversion rate with its 95 % interval",
            "Rate of event $event over 28 complete days, with the ends of Wilson's interval. Widely overlapping "
            "intervals: no difference shown yet.",
            unknown,
            unit="percentunit",
            decimals=2,
            least=0,
            width=16,
        ),
        Column("lower", joined("ratio28d_lower")),
        Column("rate", joined("ratio28d")),
        Column("upper", joined("ratio28d_upper")),
        label="row",
        hidden=VARIATION,
        words={f"^{key}{_BETWEEN}(.*)$": f"{word}{_BETWEEN}$1" for key, word in CHANNELS.items()},
    )


def _history() -> tuple[dashboard.Panel, ...]:
    rates = {
        "delivered": ("delivered", "sent"),
        "unique opens": ("unique_opens", "delivered"),
        "unique clicks": ("unique_clicks", "delivered"),
        "unsubscribes": ("unsubscribes", "delivered"),
    }
    return (
        time_series(
            Panel(
                "Sends per day",
                "One value for each complete day, drawn at its own date; yesterday appears when the workspace's day "
                "is six hours old. In-app messages have impressions instead.",
                "No complete day of sends in these channels yet.",
                interval="1d",
                least=0,
            ),
            Query("{{channel}}", CHOSEN.daily(("channel",), YESTERDAY("sent"))),
            look=Look("bars", stacked=True),
        ),
        time_series(
            Panel(
                "Rates per day (Email)",
                "Deliveries / sends; unique opens, unique clicks and unsubscribes / deliveries. Blank below 100, as "
                "opens and clicks also come on days without sends.",
                "Sends no Email, or under 100 on every complete day.",
                unit="percentunit",
                decimals=2,
                interval="1d",
                least=0,
            ),
            *(
                Query(name, CHOSEN.daily_ratio((), YESTERDAY(one, EMAIL), YESTERDAY(other, EMAIL), least=100))
                for name, (one, other) in rates.items()
            ),
            look=Look("points and lines"),
        ),
        time_series(
            Panel(
                "Conversions and revenue per day",
                "Conversions of event $event on the day they happened, and the revenue that Braze attributes to the "
                "campaign. All channels and variations.",
                "No conversion event $event and no revenue on a complete day yet.",
                interval="1d",
                least=0,
            ),
            Query("conversions", CHOSEN.daily((), CHOSEN.campaign_yesterday("conversions", EVENT))),
            Query("revenue", CHOSEN.daily((), CHOSEN.campaign_yesterday("revenue_dollars"))),
            look=Look(
                "bars",
                overrides=(
                    override(
                        "revenue",
                        unit="currencyUSD",
                        custom__drawStyle="line",
                        custom__lineWidth=2,
                        custom__fillOpacity=0,
                        custom__showPoints="always",
                        custom__axisPlacement="right",
                    ),
                ),
            ),
        ),
        time_series(
            Panel(
                "What Braze changed afterwards",
                "Yesterday's numbers while Braze restates them: how far the value at six hours can be trusted. A step "
                "at the workspace's midnight is the next day.",
                "No complete day yet.",
                span="3d",
                least=0,
            ),
            Query("deliveries", total(YESTERDAY("delivered"))),
            Query(
                "conversions by send time",
                total(CHOSEN.campaign_yesterday("conversions_by_send_time", EVENT)),
            ),
            look=Look(overrides=(override("conversions by send time", custom__axisPlacement="right"),)),
        ),
    )


def _fixed(color: str) -> dict[str, str]:
    return {"mode": "fixed", "fixedColor": color}


_BETWEEN = " · "
