"""Braze's REST API: requests, rate limits, errors and what its responses say."""
