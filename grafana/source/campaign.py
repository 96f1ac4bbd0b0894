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
    DATE,
    Column,
    Look,
    Panel,
    Query,
    bar_chart,
    bar_gauge,
    fixed_color,
    matrix_panel,
    noon,
    override,
    repeated,
    share_column,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import CAMPAIGN, EMAIL, EVENT, SMS, VARIATION, Selection, ratio, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from grafana_foundation_sdk.models import dashboard

CHOSEN = Selection(('channel=~"$channel"', 'variation_name=~"$variation"'))
YESTERDAY = CHOSEN.yesterday
ROWS = ("channel", "variation_id", "variation_name")
LABELS = {"channel": "Channel", "variation_name": "Variation"}

NOT_SMS = 'channel!="sms"'

# What Braze reports of messages, in the order in which a person reads it: Braze's word, the statistic, and the channels
# that have this word for it where others have another. A channel has some of them.
STATISTICS = (
    ("Sends", "sent", ()),
    ("Impressions", "impressions", ()),
    ("Deliveries", "delivered", (NOT_SMS,)),
    ("Confirmed Deliveries", "delivered", (SMS,)),
    ("Unique Impressions", "unique_impressions", ()),
    ("Unique Opens", "unique_opens", ()),
    ("Opens", "opens", ()),
    ("Machine Opens", "machine_open", ()),
    ("Direct Opens", "direct_opens", ()),
    ("Opens", "total_opens", ()),
    ("Reads", "read", ()),
    ("Unique Clicks", "unique_clicks", ()),
    ("Clicks", "clicks", ()),
    ("Body Clicks", "body_clicks", ()),
    ("Button 1 Clicks", "first_button_clicks", ()),
    ("Button 2 Clicks", "second_button_clicks", ()),
    ("Unique Dismissals", "unique_dismissals", ()),
    ("Conversions", "conversions", (EVENT,)),
    ("Bounces", "bounces", ()),
    ("Rejections", "rejected", ()),
    ("Delivery Failures", "delivery_failed", ()),
    ("Failures", "failed", ()),
    ("Errors", "errors", ()),
    ("Unsubscribes", "unsubscribes", ()),
    ("Opt-Out", "opt_out", ()),
    ("Spam", "reported_spam", ()),
)
REACTIONS = {
    "opens": "opens",
    "machine opens": "machine_open",
    "push opens": "total_opens",
    "reads": "read",
    "clicks": "clicks",
    "push body clicks": "body_clicks",
    "card clicks": "total_clicks",
}
# The way of a message from the sender to what it is for. A channel has some of the stages.
STAGES = {
    "Sends": "sent",
    "Impressions": "impressions",
    "Deliveries": "delivered",
    "Unique Impressions": "unique_impressions",
    "Unique Opens": "unique_opens",
    "Opens": "total_opens",
    "Reads": "read",
    "Unique Clicks": "unique_clicks",
    "Body Clicks": "body_clicks",
}


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
            Row("Yesterday, complete, by channel", _yesterday()),
            Row("Variations against the control group, the last 28 complete days", _variations()),
            Row("History", _history()),
        ),
        since="now-28d",
        marks_day_change=("Today against the last four weeks", "Messages per hour", "Opens, reads and clicks per hour"),
    )


def _today() -> tuple[dashboard.Panel, ...]:
    no_sends = "The campaign has neither sends nor impressions today."
    volume = CHOSEN.volume()
    return (
        stat_panel(
            Panel(
                "Day shown",
                "The newest day that Braze answers with, in the workspace's time zone. Right where yours is less than "
                "12 hours away.",
                "The campaign has no data: see the dashboard Exporter health.",
                unit=DATE,
                first="text",
                width=8,
            ),
            Query("day", noon(f"max({CHOSEN.day()})")),
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
                    override("today", custom__lineWidth=3, color=fixed_color("blue")),
                    override(
                        "a week ago",
                        custom__lineStyle={"fill": "dash", "dash": [10, 10]},
                        custom__lineWidth=1,
                        color=fixed_color("text"),
                    ),
                    override("lowest", custom__lineWidth=0, color=fixed_color("green")),
                    override(
                        "highest",
                        custom__lineWidth=0,
                        custom__fillBelowTo="lowest",
                        custom__fillOpacity=15,
                        color=fixed_color("green"),
                    ),
                ),
            ),
        ),
        time_series(
            Panel(
                "Messages per hour",
                "Sends in the hour before each point, exact across midnight; of in-app messages the impressions.",
                "Nothing in these channels, or under an hour of history.",
                interval="1h",
                span="2d",
                least=0,
            ),
            Query("{{channel}}", CHOSEN.hourly(("channel",), "sent")),
            Query("{{channel}}", CHOSEN.hourly(("channel",), "impressions")),
            look=Look("bars", stacked=True),
        ),
        time_series(
            Panel(
                "Opens, reads and clicks per hour",
                "When people react, in the chosen channels together. Opens of emails contain the machine opens, which "
                "are drawn beside them, too.",
                "Nothing was opened, read or clicked in these channels.",
                interval="1h",
                span="2d",
                least=0,
            ),
            *(Query(name, CHOSEN.hourly((), statistic)) for name, statistic in REACTIONS.items()),
            look=Look(overrides=(override("machine opens", custom__lineStyle={"fill": "dash", "dash": [10, 10]}),)),
        ),
    )


def _yesterday() -> tuple[dashboard.Panel, ...]:
    channel = ('channel=~"$channel"',)
    statistics = tuple(
        (word, statistic, (*channel, *matchers) if matchers else ()) for word, statistic, matchers in STATISTICS
    )
    conversions = total(YESTERDAY("conversions_by_send_time", EVENT))
    of_campaign = total(CHOSEN.campaign_yesterday("conversions_by_send_time", EVENT))
    return (
        repeated(
            matrix_panel(
                Panel(
                    "${channel:text} by variation, yesterday",
                    "Each variation's numbers of the last complete day; variations of one name are added up. Opens "
                    "of emails contain machine opens; those of push are direct ones and others that Braze attributes "
                    "to it. Carriers do not confirm every delivery. Opens and clicks may belong to earlier sends. "
                    "Conversions: event $event, on the day they happened, where the campaign has several variations. "
                    "The control group receives nothing.",
                    "Nothing in this channel yesterday.",
                    width=24,
                    height=6,
                ),
                CHOSEN.statistics_yesterday(("channel", "variation_name"), statistics),
                row=("variation_name", "Variation"),
                column="statistic",
                order=list(dict.fromkeys(word for word, _, _ in STATISTICS)),
            ),
            "channel",
        ),
        repeated(
            bar_gauge(
                Panel(
                    "${channel:text}: from sends to conversions, yesterday",
                    "How many of the last complete day's messages came how far. Opens and clicks may belong to earlier "
                    "sends. Conversions are those of event $event that Braze attributes to the day's sends, of the "
                    "whole campaign where Braze does not report them of the channel; they grow until the conversion "
                    "window closes.",
                    "Nothing in this channel yesterday.",
                    first="blue",
                    width=24,
                    height=7,
                ),
                *(Query(word, total(YESTERDAY(statistic))) for word, statistic in STAGES.items()),
                Query("Conversions", conversions),
                Query("Conversions, all channels", f"{of_campaign}\nunless on () {conversions}"),
            ),
            "channel",
            across=3,
        ),
    )


def _variations() -> tuple[dashboard.Panel, ...]:
    def recorded(statistic: str) -> str:
        return CHOSEN.recorded(f"variation:braze_message_conversions:{statistic}", EVENT)

    recipients = CHOSEN.recorded("variation:braze_message_unique_recipients:sum28d")
    revenue = CHOSEN.recorded("variation:braze_message_revenue_dollars:sum28d")
    unknown = (
        "Nothing to compare: Braze reports recipients and conversions of variations where a campaign has several. If "
        "it has, the rules braze-ab of deploy/prometheus/rules are not loaded, or there is no complete day yet."
    )
    control = CHOSEN.recorded("variation:braze_control_group:group")
    has_control = CHOSEN.recorded("control_group:braze_message_unique_recipients:sum28d", of=(*CAMPAIGN, "channel"))
    compared = recorded("sum28d")
    verdict = (
        f"({recorded('z28d')} > bool 1.96) - ({recorded('z28d')} < bool -1.96)\n"
        f"or {control} * 0 + 8\n"
        f"or ({compared} * 0 + 7 unless on (workspace, campaign_id, channel) {has_control})\n"
        f"or {compared} * 0 + 9"
    )
    return (
        table_panel(
            Panel(
                "Variations against the control group",
                "Conversions of event $event that happened / unique recipients of each day, over the last 28 complete "
                "days. Lift: the rate over the control group's, minus 1, with its 95 % interval (of the log ratio). "
                "Confidence: two-sided. All from ten conversions in both groups on. Neither corrected for looking "
                "every day nor for several variations: 95 % is worth a look, the decision is due on the date planned "
                "before. Better or worse than control: from 95 % confidence on. Who converted on several days counts "
                "on each.",
                unknown,
                width=24,
            ),
            Column("Unique Recipients", recipients),
            Column("Conversions", recorded("sum28d")),
            share_column("Conversion Rate", recorded("ratio28d"), decimals=2),
            Column("Revenue per recipient", f"{revenue}\n/ ({recipients} > 0)", unit="currencyUSD", decimals=2),
            share_column("Lift", recorded("lift28d")),
            share_column("Lift, lower", recorded("lift28d_lower")),
            share_column("Lift, upper", recorded("lift28d_upper")),
            share_column("Confidence", recorded("confidence28d")),
            Column(
                "Verdict",
                verdict,
                words=(
                    ("1", "better than control", "green"),
                    ("0", "no difference shown", "text"),
                    ("-1", "worse than control", "red"),
                    ("8", "control group", "text"),
                    ("7", "no control group", "text"),
                    ("9", "not enough data yet", "text"),
                ),
                width=180,
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
                first="text",
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
                "No variation had 50 recipients on a complete day and the conversion event chosen above.",
                unit="percentunit",
                interval="1d",
                least=0,
                width=24,
            ),
            Query(
                "{{channel}} {{variation_name}}",
                ratio(
                    CHOSEN.days("message_conversions", ROWS, EVENT),
                    CHOSEN.days("message_unique_recipients", ROWS),
                    least=50,
                ),
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
                "Messages per day",
                "Sends of each complete day, of in-app messages the impressions, drawn at the day's own date; "
                "yesterday appears when the workspace's day is six hours old.",
                "No complete day in these channels yet.",
                interval="1d",
                least=0,
            ),
            Query("{{channel}}", CHOSEN.days_volume(("channel",))),
            look=Look("bars", stacked=True),
        ),
        time_series(
            Panel(
                "Rates per day (Email)",
                "Deliveries / sends; unique opens, unique clicks and unsubscribes / deliveries. Blank below 100, as "
                "opens and clicks also come on days without sends.",
                "Sends no Email, or under 100 on every complete day.",
                unit="percentunit",
                interval="1d",
                least=0,
            ),
            *(
                Query(name, CHOSEN.days_ratio((), f"message_{one}", f"message_{other}", EMAIL, least=100))
                for name, (one, other) in rates.items()
            ),
            look=Look("points and lines"),
        ),
        time_series(
            Panel(
                "Conversions and revenue per day",
                "Conversions of event $event on the day they happened, and the revenue that Braze attributes to the "
                "campaign. All channels and variations.",
                "Neither the conversion event chosen above nor revenue on a complete day yet.",
                interval="1d",
                least=0,
            ),
            Query("conversions", CHOSEN.days("campaign_conversions", (), EVENT)),
            Query("revenue", CHOSEN.days("campaign_revenue_dollars", ())),
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


_BETWEEN = " · "
