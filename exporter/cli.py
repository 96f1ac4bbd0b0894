"""The command line: parses, dispatches to the command, and makes its errors an exit status."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from exporter.commands.check import check
from exporter.commands.demo import demo, simulate
from exporter.commands.print import print_once
from exporter.commands.serve import serve
from exporter.config import ConfigError
from exporter.flags import DEFAULT_CONFIG, flag_parser, parsed
from exporter.system.command import CommandError, Surroundings, UsageError
from exporter.system.output import Output
from exporter.system.threads import NoThreadError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from exporter.system.signals import Signals

_COMMANDS: dict[str, Callable[[argparse.Namespace, Surroundings], int]] = {
    "": serve,
    "demo": demo,
    "simulate": simulate,
    "check": check,
    "print": print_once,
}


_NO_CONFIGURATION = (
    "Name your configuration file with --config.file, begin with config.example.yaml, "
    "or see the exporter at work without any configuration: braze-exporter demo"
)


def main(
    arguments: Sequence[str] | None = None, *, signals: Signals | None = None, errors: Output | None = None
) -> int:
    """Run the command and return the exit status.

    It is 0 when all is done, 1 after an error of the configuration or at run time, 2 after wrong usage, and 78 where a
    configuration keeps the exporter from starting. The log goes to `errors`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given.pop(0) if given and given[0] and given[0] in _COMMANDS else ""
    flags = parsed(name, given)
    surroundings = Surroundings(signals, errors or Output(sys.stderr.fileno()))
    try:
        return _COMMANDS[name](flags, surroundings)
    except UsageError as error:
        flag_parser(name).error(str(error))
    except (CommandError, ConfigError, NoThreadError) as error:
        print(error, file=sys.stderr)
        if "config_file" in flags and flags.config_file == DEFAULT_CONFIG and not DEFAULT_CONFIG.exists():
            print(_NO_CONFIGURATION, file=sys.stderr)
        return error.status if isinstance(error, CommandError) else 1
