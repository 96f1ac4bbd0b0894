"""Sharding: each campaign belongs to one of several exporters, whatever else is configured. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.config import Config

MOST_SHARDS = 1024
"""Braze allows a workspace 50,000 requests a minute: more shards would each have less than one a second."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `total` shards, counted from 0; a single shard has every campaign."""

    number: int = 0
    total: int = 1


WHOLE = Shard()


def part(config: Config, shard: Shard) -> Config:
    """Return the configuration with the shard's campaigns only; a workspace may have none."""
    if shard.total == 1:
        return config
    workspaces = tuple(
        workspace.model_copy(
            update={
                "campaigns": tuple(
                    campaign
                    for campaign in workspace.campaigns
                    if jump_hash(stable_hash(campaign.id), shard.total) == shard.number
                )
            }
        )
        for workspace in config.workspaces
    )
    return config.model_copy(update={"workspaces": workspaces})


def stable_hash(campaign_id: str) -> int:
    """Return 64 bits that depend on nothing but the id; its slot in the interval comes from other bits."""
    return int.from_bytes(hashlib.sha256(campaign_id.encode()).digest()[8:16])


def jump_hash(key: int, buckets: int) -> int:
    """Return the bucket of a 64-bit key; with one bucket more, only keys that move into the new one move.

    The algorithm of Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", https://arxiv.org/abs/1406.2294.
    """
    bucket, following = 0, 0
    while following < buckets:
        bucket = following
        key = (key * 2862933555777941757 + 1) % 2**64
        following = int((bucket + 1) * (2**31 / ((key >> 33) + 1)))
    return bucket
