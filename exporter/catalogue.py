"""Catalogue of the statistics that Braze documents: their HELP, and their conversion events. Pure."""

from __future__ import annotations

import re
import string

MESSAGE_STATISTICS = {
    "sent": "Messages sent; rate-limited ones count at once, webhook errors too",
    "delivered": "Messages that the receiving side accepted",
    "opens": "Opens of e-mails, repeated and machine opens included",
    "unique_opens": "Recipients who opened an e-mail, tracked for seven days",
    "machine_open": "Opens of e-mails by machines, such as mail privacy proxies",
    "machine_amp_open": "Opens of AMP e-mails by machines",
    "clicks": "Clicks, repeated ones included",
    "unique_clicks": "Recipients who clicked",
    "bounces": "Messages that bounced; soft bounces of e-mail are not counted",
    "unsubscribes": "Recipients who unsubscribed",
    "reported_spam": "Messages reported as spam, as far as providers report it: Gmail does not",
    "errors": "Webhooks that ended in an error; they are part of sent",
    "direct_opens": "Opens by a tap on the push notification itself",
    "total_opens": "Opens of the app by the push notification or shortly after it",
    "body_clicks": "Clicks on the body of the push notification",
    "sent_to_carrier": "Text messages handed to the carrier",
    "rejected": "Text messages that the carrier rejected",
    "delivery_failed": "Text messages that could not be delivered",
    "undelivered": "Messages that were not delivered",
    "opt_out": "Recipients who opted out by a reply",
    "help": "Recipients who asked for help by a reply",
    "failed": "WhatsApp messages that could not be delivered",
    "read": "Messages that were read",
    "total_clicks": "Clicks on content cards",
    "total_dismissals": "Dismissals of content cards",
    "total_impressions": "Views of content cards",
    "unique_dismissals": "Recipients who dismissed a content card",
    "unique_impressions": "Recipients who saw a content card",
    "impressions": "Views of in-app messages",
    "first_button_clicks": "Clicks on the first button of an in-app message",
    "second_button_clicks": "Clicks on the second button of an in-app message",
    "enrolled": "Users put into the control group",
    "unique_recipients": "Users who received the message, unique within the day",
}
"""HELP of each statistic of a row in `messages.<channel>`, by Braze's name."""

CAMPAIGN_STATISTICS = {"unique_recipients": "Users who received the campaign, unique within the day"}
"""HELP of each statistic of a whole campaign, by Braze's name."""

REVENUE = "revenue"

CONVERSIONS = {
    f"conversions{number or ''}{ending}": (f"conversions{ending}", letter)
    for ending in ("", "_by_send_time")
    for number, letter in enumerate(string.ascii_uppercase)
}
"""The statistics that are conversions: without Braze's number, and by the letter of the conversion event."""

_OTHER_EVENT = "other"
_BEYOND = re.compile(r"conversions[1-9]\d+(_by_send_time)?", re.ASCII)


def conversion(statistic: str) -> tuple[str, str] | None:
    """Return a conversion's name without Braze's number, and its event; None for any other statistic.

    Braze numbers conversion events from nothing on, and its dashboard calls them A, B and so on. Those that have no
    letter are the event `other`.
    """
    known = CONVERSIONS.get(statistic)
    if known is None and (beyond := _BEYOND.fullmatch(statistic)):
        return f"conversions{beyond[1] or ''}", _OTHER_EVENT
    return known


def is_statistic(name: str) -> bool:
    """Return whether Braze documents a statistic of this name."""
    return name in MESSAGE_STATISTICS or name in CAMPAIGN_STATISTICS or name == REVENUE or conversion(name) is not None
