"""Braze's words for the channels, by the key that its API and the label `channel` have. Pure."""

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
