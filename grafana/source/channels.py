"""Braze's words for the channels, by the key that its API and the label `channel` have, and their colours. Pure."""

CHANNELS = {
    "email": "Email",
    "sms": "SMS",
    "rcs": "RCS",
    "whats_app": "WhatsApp",
    "ios_push": "iOS Push",
    "android_push": "Android Push",
    "web_push": "Web Push",
    "kindle_push": "Kindle Push",
    "webhook": "Webhook",
    "content_cards": "Content Cards",
    "trigger_in_app_message": "In-App Message",
    "in_app_message": "In-App Message (original)",
}

COLORS = {
    "email": "blue",
    "sms": "green",
    "rcs": "dark-green",
    "whats_app": "light-green",
    "ios_push": "orange",
    "android_push": "yellow",
    "web_push": "light-orange",
    "kindle_push": "dark-yellow",
    "webhook": "purple",
    "content_cards": "light-purple",
    "trigger_in_app_message": "light-blue",
    "in_app_message": "super-light-blue",
}
"""Grafana's names: a channel has the same colour wherever it is drawn. Red is left to what is wrong."""
