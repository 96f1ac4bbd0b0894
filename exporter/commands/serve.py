"""`braze-exporter` without a command: polls and serves, or checks the configuration and exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter import app, config, shards
from exporter.shards import Shard
from exporter.system.command import UsageError, print_lines

if TYPE_CHECKING:
    import argparse

    from exporter.config import Config
    from exporter.system.command import Surroundings


def serve(flags: argparse.Namespace, surroundings: Surroundings) -> int:
    """Serve, or check the configuration; return the exit status. Raises UsageError, ConfigError, CommandError."""
    shard = _shard(flags)
    if not flags.config_check:
        return app.run(flags.config_file, flags, surroundings, shard=shard)
    loaded, web_config = app.load_both(flags.config_file, flags.web_config_file, refused=1)
    own = shards.part(loaded, shard)
    lines = [f"{flags.config_file}: warning: {remark}" for remark in config.warnings(own, total_shards=shard.total)]
    if web_config is not None:
        lines += [f"{flags.web_config_file}: warning: {remark}" for remark in web_config.current.warnings]
        lines.append(f"{flags.web_config_file}: valid")
    counted = f"workspaces: {len(loaded.workspaces)}, campaigns: {_campaigns(loaded)}"
    if shard.total > 1:
        counted += f", of which shard {shard.number} of {shard.total} has {_campaigns(own)}"
    lines.append(f"{flags.config_file}: valid; {counted}")
    print_lines(lines)
    return 0


def _shard(flags: argparse.Namespace) -> Shard:
    if flags.shard >= flags.total_shards:
        raise UsageError(
            f"argument --shard: expected a number below --total-shards, which is {flags.total_shards}, "
            f"got {flags.shard}; shards are counted from 0"
        )
    return Shard(flags.shard, flags.total_shards)


def _campaigns(loaded: Config) -> int:
    return sum(len(workspace.campaigns) for workspace in loaded.workspaces)
