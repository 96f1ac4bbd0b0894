"""Campaign detail: how does this campaign do today, over time, variation against variation? Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    bar_gauge,
    fixed_color,
    matrix_panel,
    noon,
    override,
    repeated,
    share_column,
    stat_panel,
    table_panel,
    threshold_lines,
    time_series,
)
from grafana.source.promql import EMAIL, EVENT, SMS, Selection, ratio, total

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

CHOSEN = Selection(('channel=~"$channel"', 'variation_name=~"$variation"'))
YESTERDAY = CHOSEN.yesterday
ROWS = ("channel", "variation_id", "variation_name")

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
            Row("History", _history()),
            Row(
                "Variations compared, the last 28 complete days",
                _variations(),
                collapsed=True,
            ),
        ),
        since="now-28d",
        refresh="30m",
        marks_day_change=("Today against the last four weeks", "Messages per hour", "Opens, reads and clicks per hour"),
    )


def _today() -> tuple[dashboard.Panel, ...]:
    no_sends = "The campaign has neither sends nor impressions today."
    volume = CHOSEN.volume()
    return (
        stat_panel(
            Panel(
                "Day shown",
                "The newest day in Braze's responses, in the workspace's time zone. Right where yours is less than "
                "12 hours away.",
                "The campaign has no data: see the dashboard Exporter health.",
                unit=DATE,
                first="text",
                width=8,
            ),
            Query("day", noon(f"max({CHOSEN.day()})")),
        ),
        stat_panel(
            Panel(
                "Volume today",
                "Messages so far: sends, and views where a channel sends none.",
                no_sends,
                first="text",
                width=8,
            ),
            Query("messages", total(volume)),
        ),
        stat_panel(
            Panel(
                "Usual by this time",
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
    def recorded(statistic: str, *, of: str = "variation") -> str:
        return CHOSEN.recorded(f"{of}:braze_message_conversions:{statistic}", EVENT)

    counted = (
        f"{CHOSEN.recorded('variation:braze_variation:counted')}\n"
        f"or {CHOSEN.recorded('variation:braze_control_group:group')}"
    )

    def counted_once(expression: str) -> str:
        return f"{expression}\nand on (workspace, campaign_id, channel, variation_id, variation_name) ({counted})"

    recipients = CHOSEN.recorded("variation:braze_message_unique_recipients:sum28d")
    revenue = CHOSEN.recorded("variation:braze_message_revenue_dollars:sum28d")
    unknown = (
        "Nothing to compare: Braze reports recipients and conversions of variations where a campaign has several. If "
        "it has, the rules braze-ab of deploy/prometheus/rules are not loaded, or there is no complete day yet."
    )
    return (
        table_panel(
            Panel(
                "Variations compared",
                "Conversions of event $event that happened / unique recipients of each day, over 28 complete days, "
                "with the 95 % interval of the rate (Wilson's). Lift: the rate over that of the reference, minus 1, "
                "with its interval. The reference is the control group of the channel, else of the campaign, else "
                "the best other variation. A winner needs 95 % confidence, ten conversions in both groups and seven "
                "days. Who looks every day, or compares several variations, finds a winner by chance far more often "
                "than once in 20 times: wait for the day planned before, or require 99 %. People of a variation that "
                "is sent in several channels are counted in one of them; who converted on several days counts on "
                "each.",
                unknown,
                width=24,
                height=9,
            ),
            Column("Unique Recipients", counted_once(recipients)),
            Column("Conversions", counted_once(recorded("sum28d")), width=105),
            share_column("Conversion Rate", counted_once(recorded("ratio28d")), decimals=2, width=100),
            share_column("at least", counted_once(recorded("ratio28d_lower")), decimals=2),
            share_column("at most", counted_once(recorded("ratio28d_upper")), decimals=2),
            Column(
                "Revenue per recipient",
                counted_once(f"{revenue}\n/ ({recipients} > 0)"),
                unit="currencyUSD",
                decimals=2,
            ),
            share_column("Rate of the reference", recorded("ratio28d", of="reference"), decimals=2),
            share_column("Lift", recorded("lift28d")),
            share_column("Lift, at least", recorded("lift28d_lower")),
            share_column("Lift, at most", recorded("lift28d_upper")),
            share_column("Confidence", recorded("confidence28d"), most=(0.9995, ">99.9 %"), width=100),
            Column(
                "Verdict",
                recorded("verdict28d"),
                words=(
                    ("1", "leads, 95 %", "green"),
                    ("0", "no winner yet", "text"),
                    ("-1", "is behind, 95 %", "red"),
                    ("8", "control group", "text"),
                    ("9", "too few conversions", "text"),
                ),
                width=150,
            ),
            Column("More recipients needed, about", f"{recorded('needed28d')}\nand ({recorded('verdict28d')} == 0)"),
            labels={"variation_name": "Variation"},
            hidden=("channel", "variation_id", "campaign_id", "workspace"),
        ),
        time_series(
            Panel(
                "Conversion rate by day and variation",
                "Is the difference there day after day? Conversions of event $event on the day / unique recipients "
                "of the day, of the channel with the most. Blank below 50 recipients.",
                "No variation had 50 recipients on a complete day and the conversion event chosen above.",
                unit="percentunit",
                interval="1d",
                least=0,
                width=16,
            ),
            Query(
                "{{variation_name}}",
                ratio(
                    _of_people(CHOSEN.days("message_conversions", ROWS, EVENT)),
                    _of_people(CHOSEN.days("message_unique_recipients", ROWS)),
                    least=50,
                ),
            ),
            look=Look("points and lines"),
        ),
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
    )


def _history() -> tuple[dashboard.Panel, ...]:
    return (
        time_series(
            Panel(
                "Volume per day",
                "Messages of each complete day: sends, and views where a channel sends none. Drawn at the day's own "
                "date; yesterday appears when the workspace's day is six hours old.",
                "No complete day in these channels yet.",
                interval="1d",
                least=0,
            ),
            Query("{{channel}}", CHOSEN.days_volume(("channel",))),
            look=Look("bars", stacked=True),
        ),
        _rates_per_day(
            "Delivery and open rate per day (Email)",
            "Deliveries / sends, and unique opens / deliveries. Blank below 100, as opens also come on days without "
            "sends.",
            {"delivery rate": ("delivered", "sent"), "unique open rate": ("unique_opens", "delivered")},
        ),
        _rates_per_day(
            "Clicks, bounces, unsubscribes and spam reports per day (Email)",
            "Unique clicks and unsubscribes / deliveries, bounces and spam reports / sends. Dashed: where the alerts "
            "of this campaign begin. Blank below 100.",
            {
                "unique click rate": ("unique_clicks", "delivered"),
                "bounce rate": ("bounces", "sent"),
                "unsubscribe rate": ("unsubscribes", "delivered"),
                "spam rate": ("reported_spam", "sent"),
            },
            {
                "threshold of bounces": "email_bounce_ratio",
                "threshold of unsubscribes": "email_unsubscribe_ratio",
                "threshold of spam": "email_spam_ratio",
            },
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
                "Late corrections by Braze",
                "Yesterday's numbers while Braze restates them: how far the value at six hours can be trusted. A step "
                "at the workspace's midnight is the next day.",
                "No complete day yet.",
                span="3d",
                least=0,
                width=24,
            ),
            Query("deliveries", total(YESTERDAY("delivered"))),
            Query(
                "conversions by send time",
                total(CHOSEN.campaign_yesterday("conversions_by_send_time", EVENT)),
            ),
            look=Look(overrides=(override("conversions by send time", custom__axisPlacement="right"),)),
        ),
    )


def _of_people(expression: str) -> str:
    """Count the people of a variation once, in the channel with the most."""
    return f"max by (variation_id, variation_name) ({expression})"


def _rates_per_day(
    title: str, description: str, rates: dict[str, tuple[str, str]], thresholds: dict[str, str] | None = None
) -> dashboard.Panel:
    lines = {
        name: f"max({CHOSEN.rule('campaign:braze_threshold:effective', f'threshold={chr(34)}{threshold}{chr(34)}')})"
        for name, threshold in (thresholds or {}).items()
    }
    return time_series(
        Panel(
            title,
            description,
            "Sends no Email, or under 100 on every complete day.",
            unit="percentunit",
            interval="1d",
            least=0,
        ),
        *(
            Query(name, CHOSEN.days_ratio((), f"message_{one}", f"message_{other}", EMAIL, least=100))
            for name, (one, other) in rates.items()
        ),
        *(Query(name, line) for name, line in lines.items()),
        look=Look("points and lines", overrides=(threshold_lines(),) if lines else ()),
    )
