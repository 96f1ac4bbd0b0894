"""Deliverability: do messages arrive, and does anybody complain? Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana.source.dashboards import (
    Row,
    campaign_table,
    campaign_variable,
    make_dashboard,
    series_link,
    workspace_variable,
    zone_variable,
)
from grafana.source.panels import (
    Column,
    Look,
    Panel,
    Query,
    bar_gauge,
    share_column,
    stat_panel,
    threshold_lines,
    time_series,
)
from grafana.source.promql import CAMPAIGN, EMAIL, PUSH, SMS, WEBHOOK, WHATSAPP, Selection, highest, ratio

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

    from grafana.source.panels import Steps

CHOSEN = Selection()
YESTERDAY = CHOSEN.yesterday
WORKSPACE = ("workspace",)

# Shares from which on the alerts warn, and page: those of rules/braze-thresholds.yml.
BOUNCES = ((0.02, "orange"),)
BOUNCES_OF_HOUR = ((0.05, "red"),)
SPAM = ((0.001, "orange"), (0.003, "red"))  # what Gmail and Yahoo ask of bulk senders
UNSUBSCRIBES = ((0.005, "orange"),)
SMS_FAILURES = ((0.07, "orange"),)
OPT_OUTS = ((0.02, "orange"),)
WHATSAPP_FAILURES = ((0.05, "orange"),)
PUSH_BOUNCES = ((0.1, "orange"),)
WEBHOOK_ERRORS_OF_HOUR = ((0.05, "red"),)


def deliverability() -> dashboard.Dashboard:
    """Return the dashboard."""
    return make_dashboard(
        "braze-deliverability",
        "Braze / Deliverability",
        "Do messages arrive, and does anybody complain? Rates are of complete days where nothing else is said.",
        variables=(workspace_variable(), campaign_variable(), zone_variable()),
        rows=(
            Row("Email, in days of ${zone:csv}", (*_email_now(), *_email_by_day(), _bouncing_now())),
            Row("SMS and WhatsApp", _text_messages()),
            Row("Push and webhooks", _push_and_webhooks()),
        ),
        since="now-30d",
        refresh="30m",
        marks_day_change=(
            "Emails bouncing now",
            "Webhook error rate, last hour",
            "Webhook errors per hour",
        ),
    )


def _email_now() -> tuple[dashboard.Panel, ...]:
    enough = f"{_judged('failures', 'email_spam_ratio', CAMPAIGN)} >= 5"
    return (
        stat_panel(
            Panel(
                "Bounce rate yesterday",
                "Bounces / sends of emails. Soft bounces are not in Braze's campaign analytics. Blank below 100 sends.",
                "Under 100 emails yesterday.",
                unit="percentunit",
                decimals=2,
                steps=BOUNCES,
                width=8,
            ),
            Query("bounces", CHOSEN.yesterday_rate("bounces", "sent", EMAIL)),
        ),
        stat_panel(
            Panel(
                "Spam rate, 7 days",
                "Spam reports / sends of seven complete days, for each workspace. Only providers with a feedback loop "
                "report, and Gmail does not: keep Google Postmaster Tools beside it. Blank below 1,000 sends.",
                "Under 1,000 emails in seven complete days.",
                unit="percentunit",
                decimals=3,
                steps=SPAM,
                width=8,
            ),
            Query("{{workspace}}", ratio(_week("message_reported_spam"), _week("message_sent"), least=1000)),
        ),
        stat_panel(
            Panel(
                "Unsubscribe rate yesterday",
                "Unsubscribes / deliveries of emails. Blank below 100 deliveries.",
                "Under 100 emails delivered yesterday.",
                unit="percentunit",
                decimals=2,
                steps=UNSUBSCRIBES,
                width=8,
            ),
            Query("unsubscribes", CHOSEN.yesterday_rate("unsubscribes", "delivered", EMAIL)),
        ),
        _worst("Bounce rate by campaign, yesterday", "Bounces", "bounces", EMAIL, "emails", BOUNCES, width=12),
        campaign_table(
            Panel(
                "Spam reports by campaign, 3 days",
                "Campaigns with at least five reports in three complete days, and reports / sends where there were 100 "
                "sends: the numbers that the alert judges.",
                "No campaign had five spam reports.",
            ),
            Column("Reports", enough),
            share_column(
                "Spam rate",
                f"{_judged('ratio', 'email_spam_ratio', CAMPAIGN)}\nand {enough}",
                decimals=3,
                steps=SPAM,
            ),
            selection=CHOSEN,
            sort="Reports",
            event=False,
        ),
    )


def _email_by_day() -> tuple[dashboard.Panel, ...]:
    entries = (
        ("Bounce rate by day", "bounces", "sent", "Bounces / sends", BOUNCES),
        ("Spam rate by day", "reported_spam", "sent", "Spam reports / sends", SPAM),
        ("Unsubscribe rate by day", "unsubscribes", "delivered", "Unsubscribes / deliveries", UNSUBSCRIBES),
    )
    return tuple(
        time_series(
            Panel(
                title,
                f"{words} of emails, for each complete day and workspace. Blank below 1,000: reports and "
                "unsubscribes also come on days without sends.",
                "No complete day with 1,000 emails yet.",
                unit="percentunit",
                steps=steps,
                interval="1d",
                least=0,
                width=8,
            ),
            Query(
                "{{workspace}}",
                CHOSEN.days_ratio(WORKSPACE, f"message_{one}", f"message_{other}", EMAIL, least=1000),
            ),
            look=Look("points and lines", threshold_lines=True),
        )
        for title, one, other, words, steps in entries
    )


def _bouncing_now() -> dashboard.Panel:
    return time_series(
        Panel(
            "Emails bouncing now",
            "Bounces of the last hour / sends of the last hour, also across midnight: at each time the ten worst "
            "campaigns. Dashed: from where on the alert fires. Blank below 100 sends, as the alert is.",
            "No campaign sent 100 emails within an hour.",
            unit="percentunit",
            span="24h",
            interval="5m",
            least=0,
            width=24,
        ),
        _worst_hour("email_bounce_ratio_1h"),
        *_thresholds("email_bounce_ratio_1h"),
        look=Look("broken line", overrides=(threshold_lines(),)),
        links=(series_link(event=False),),
    )


def _text_messages() -> tuple[dashboard.Panel, ...]:
    rejected, failed, sent = (
        CHOSEN.days(f"message_{name}", WORKSPACE, SMS) for name in ("rejected", "delivery_failed", "sent")
    )
    return (
        time_series(
            Panel(
                "SMS failure rate by day",
                "(Rejections + delivery failures) / sends, for each complete day and workspace. Blank below 100 sends.",
                "No complete day with 100 text messages yet.",
                unit="percentunit",
                steps=SMS_FAILURES,
                interval="1d",
                least=0,
                width=8,
            ),
            Query("{{workspace}}", ratio(f"({rejected}\n+ {failed})", sent, least=100)),
            look=Look("points and lines", threshold_lines=True),
        ),
        _worst("SMS opt-out rate yesterday", "Opt-outs", "opt_out", SMS, "text messages", OPT_OUTS),
        _worst(
            "WhatsApp failure rate yesterday", "Failures", "failed", WHATSAPP, "WhatsApp messages", WHATSAPP_FAILURES
        ),
    )


def _push_and_webhooks() -> tuple[dashboard.Panel, ...]:
    return (
        bar_gauge(
            Panel(
                "Push bounce rate yesterday",
                "Bounces / sends for each kind of push. The first send after a long pause finds many uninstalled "
                "apps. Blank below 100 sends.",
                "No 100 push notifications of a kind yesterday.",
                unit="percentunit",
                decimals=2,
                steps=PUSH_BOUNCES,
                most=2 * PUSH_BOUNCES[-1][0],
                width=8,
            ),
            Query("{{channel}}", CHOSEN.yesterday_rate("bounces", "sent", PUSH, ("channel",))),
        ),
        time_series(
            Panel(
                "Webhook error rate, last hour",
                "Errors / sends of the last hour, also across midnight: at each time the ten worst campaigns. "
                "Dashed: from where on the alert fires. Braze itself warns only above 100,000 errors a day. Blank "
                "below 100 sends.",
                "No campaign called 100 webhooks within an hour.",
                unit="percentunit",
                span="24h",
                interval="5m",
                least=0,
                width=8,
            ),
            _worst_hour("webhook_error_ratio_1h"),
            *_thresholds("webhook_error_ratio_1h"),
            look=Look("broken line", overrides=(threshold_lines(),)),
            links=(series_link(event=False),),
        ),
        time_series(
            Panel(
                "Webhook errors per hour",
                "Errors in the hour before each point, exact across midnight: at each time the ten campaigns with the "
                "most.",
                "No campaign calls webhooks.",
                interval="1h",
                span="3d",
                least=0,
                width=8,
            ),
            Query("{{campaign_name}}", CHOSEN.named_over_time(highest(10, CHOSEN.hour("errors", CAMPAIGN, WEBHOOK)))),
            look=Look("bars", stacked=True),
            links=(series_link(event=False),),
        ),
    )


def _week(statistic: str) -> str:
    return CHOSEN.sum_of_days(statistic, WORKSPACE, 7, EMAIL)


def _judged(what: str, threshold: str, by: tuple[str, ...]) -> str:
    """Return what the alert of a threshold judges: `ratio` or `failures`, the first from a hundred messages on."""
    return CHOSEN.rule(f"campaign_channel:braze_rate:{what}", f'threshold="{threshold}"', by=by)


def _thresholds(threshold: str) -> tuple[Query, ...]:
    """Draw where the alert begins: for each workspace, and for campaigns with an override of their own."""
    matcher = f'threshold="{threshold}"'
    own = CHOSEN.rule("campaign:braze_threshold:override", matcher)
    return (
        Query(
            "threshold of {{workspace}}",
            f'max by (workspace) (workspace:braze_threshold:effective{{workspace=~"$workspace",{matcher}}})',
        ),
        Query("threshold of {{campaign_name}}", CHOSEN.named(own)),
    )


def _worst_hour(threshold: str) -> Query:
    return Query("{{campaign_name}}", CHOSEN.named_over_time(highest(10, _judged("ratio", threshold, CAMPAIGN))))


def _worst(
    title: str, words: str, statistic: str, matcher: str, messages: str, steps: Steps, *, width: int = 8
) -> dashboard.Panel:
    return bar_gauge(
        Panel(
            title,
            f"{words} / sends of {messages}, the ten worst campaigns of those with at least 100 sends.",
            f"No campaign sent 100 {messages} yesterday.",
            unit="percentunit",
            decimals=2,
            steps=steps,
            most=2 * steps[-1][0],  # half a bar is where the alert begins, whatever the worst campaign has
            width=width,
        ),
        Query(
            "{{campaign_name}}",
            f"sort_desc({CHOSEN.named(highest(10, CHOSEN.yesterday_rate(statistic, 'sent', matcher, CAMPAIGN)))})",
        ),
        links=(series_link(event=False),),
    )
