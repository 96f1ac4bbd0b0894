"""The flags of each command: what there is, what may be given, and what holds where nothing is given."""

from __future__ import annotations

import argparse
import difflib
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from exporter import PORT, __version__, config, logs
from exporter.shards import MOST_SHARDS
from exporter.web.client_limits import ClientLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIMULATED_KEY = "simulated-braze-key"
"""The key of the simulated Braze where no other is given; it opens nothing else."""

CAMPAIGNS = 12
"""The default number of campaigns of the simulated Braze."""

DEFAULT_CONFIG = Path("config.yaml")
"""The configuration file without the flag `--config.file`."""

COMMANDS = ("demo", "simulate", "health", "check", "print")
"""The commands that have a name."""

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]/\s]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_PATH = re.compile(r"/|(?:/[A-Za-z0-9_~][A-Za-z0-9._~-]*)+")
_LARGEST_PORT = 65535
_MOST_CAMPAIGNS = 100_000
_MOST_CONNECTIONS = 100_000
_LIMITS = ClientLimits()


def flag_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command's flags; the command that has no name serves."""
    parser = argparse.ArgumentParser(
        prog=f"braze-exporter {command}".strip(),
        usage=None if command else _USAGE,
        description=_DESCRIPTIONS[command],
        epilog=_EPILOG if not command else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"braze-exporter, version {__version__} (python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    _FLAGS[command](parser)
    return parser


def parsed(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags of a command; wrong usage ends the process with status 2, its message on stderr."""
    parser = flag_parser(command)
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_suggestion(command, unknown, parser)}")
    return flags


def _suggestion(command: str, unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Return what is probably meant by arguments that no command or flag has, as the end of a message, or ""."""
    first = unknown[0]
    flag = first.partition("=")[0]
    known = sorted(set(re.findall(r"^  (--[a-z.-]+)", parser.format_help(), re.MULTILINE)), reverse=True)
    named = [name for name in unknown if name in COMMANDS]
    if named and not command:
        return f"; a command comes before its flags: braze-exporter {named[0]} [FLAGS]"
    if first.startswith("-"):
        close = [name for name in known if name.startswith(f"{flag}.")] or difflib.get_close_matches(flag, known, n=1)
    else:
        close = [] if command else [f"the command {name}" for name in difflib.get_close_matches(first, COMMANDS, n=1)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _serve_flags(parser: argparse.ArgumentParser) -> None:
    _add_config_flag(parser)
    parser.add_argument(
        "--config.check",
        dest="config_check",
        action="store_true",
        help="check the configuration file, report all errors in it and exit",
    )
    parser.add_argument(
        "--config.auto-reload-interval",
        dest="auto_reload_interval",
        type=_duration("1s", "24h", "30s"),
        metavar="DURATION",
        help="check the configuration file for changes at this interval and reload it",
    )
    _add_listen_flag(parser, _address, f"address to listen on, may be repeated (default: :{PORT}, all addresses)")
    _add_web_flags(parser)
    parser.add_argument(
        "--web.enable-lifecycle",
        dest="enable_lifecycle",
        action="store_true",
        help="enable reloads by POST /-/reload, for everybody who can reach the exporter",
    )
    parser.add_argument(
        "--shard",
        type=_number(0, MOST_SHARDS - 1),
        default=0,
        metavar="NUMBER",
        help="number of this exporter's shard, counted from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--total-shards",
        dest="total_shards",
        type=_number(1, MOST_SHARDS),
        default=1,
        metavar="NUMBER",
        help="number of shards; each exporter polls the campaigns of one (default: %(default)s)",
    )
    _add_page_and_log_flags(parser, level="info")


def _demo_flags(parser: argparse.ArgumentParser) -> None:
    _add_listen_flag(parser, _loopback_address, f"loopback address to listen on (default: 127.0.0.1:{PORT})")
    parser.set_defaults(
        default_listen_address=("127.0.0.1", PORT),
        auto_reload_interval=None,
        enable_lifecycle=False,
        web_config_file=None,
        health_addresses=None,
        max_connections=_LIMITS.connections,
        header_timeout=_LIMITS.header_timeout,
        write_timeout=_LIMITS.write_timeout,
    )
    _add_newest_day_flag(parser)
    _add_page_and_log_flags(parser, level="warning")


def _simulate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--web.listen-address",
        dest="listen_address",
        type=_loopback_address,
        default=("127.0.0.1", PORT + 1),
        metavar="ADDRESS",
        help=f"loopback address to listen on (default: 127.0.0.1:{PORT + 1})",
    )
    parser.add_argument(
        "--campaigns",
        type=_number(1, _MOST_CAMPAIGNS),
        default=CAMPAIGNS,
        help="number of campaigns (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed of the numbers; the same seed gives the same numbers (default: %(default)s)",
    )
    parser.add_argument(
        "--timezone", type=_zone, default=ZoneInfo("UTC"), metavar="ZONE", help="time zone of its days (default: UTC)"
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"file with the API key to accept (default: the key {SIMULATED_KEY})",
    )
    _add_newest_day_flag(parser)


def _add_web_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--web.config.file",
        dest="web_config_file",
        type=Path,
        metavar="FILE",
        help="file with TLS, users and headers, in the format of the Prometheus exporter toolkit's web-config.yml",
    )
    parser.add_argument(
        "--web.health.listen-address",
        dest="health_addresses",
        type=_address,
        action="append",
        metavar="ADDRESS",
        help="address of a second server without TLS and users, only for /-/healthy and /-/ready, may be repeated",
    )
    parser.add_argument(
        "--web.max-connections",
        dest="max_connections",
        type=_number(1, _MOST_CONNECTIONS),
        default=_LIMITS.connections,
        metavar="NUMBER",
        help="maximum number of connections; above it the oldest idle one is closed, or else the slowest response"
        " (default: %(default)s)",
    )
    for flag, default, text in (
        ("header", _LIMITS.header_timeout, "maximum time for the TLS handshake and the request of a connection"),
        ("write", _LIMITS.write_timeout, "maximum time for a client to receive a response"),
    ):
        parser.add_argument(
            f"--web.{flag}-timeout",
            dest=f"{flag}_timeout",
            type=_duration("100ms", "1h", "10s"),
            default=f"{default:g}s",
            metavar="DURATION",
            help=f"{text} (default: %(default)s)",
        )


def _add_listen_flag(parser: argparse.ArgumentParser, kind: Callable[[str], tuple[str, int]], text: str) -> None:
    parser.add_argument(
        "--web.listen-address",
        dest="listen_addresses",
        type=kind,
        action="append",
        metavar="ADDRESS",
        help=text,
    )
    parser.set_defaults(default_listen_address=("", PORT))


def _check_flags(parser: argparse.ArgumentParser) -> None:
    _add_config_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON, for scripts")


def _print_flags(parser: argparse.ArgumentParser) -> None:
    _add_config_flag(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write, replaced atomically (default: stdout)"
    )
    _add_log_flags(parser, level="error")


def _add_config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config.file",
        dest="config_file",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="configuration file (default: %(default)s)",
    )


def _add_page_and_log_flags(parser: argparse.ArgumentParser, level: str) -> None:
    parser.add_argument(
        "--web.telemetry-path",
        dest="telemetry_path",
        type=_telemetry_path,
        default="/metrics",
        metavar="PATH",
        help="path of the metrics (default: %(default)s)",
    )
    _add_log_flags(parser, level)


def _add_log_flags(parser: argparse.ArgumentParser, level: str) -> None:
    parser.add_argument(
        "--log.level",
        dest="log_level",
        choices=logs.LEVELS,
        default=level,
        help="lowest level that is logged (default: %(default)s)",
    )
    parser.add_argument(
        "--log.format",
        dest="log_format",
        choices=logs.FORMATS,
        default="logfmt",
        help="format of log lines (default: %(default)s)",
    )


def _add_newest_day_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--newest-day",
        choices=("today", "yesterday"),
        default="today",
        help="newest day in responses: the current day, or the day before, as Braze documents neither"
        " (default: %(default)s)",
    )


def _address(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if not match or int(match["port"]) > _LARGEST_PORT or not _is_host(match["host"] or ""):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, [IPV6]:PORT or :PORT, got {text!r}")
    return match["ipv6"] or match["host"] or "", int(match["port"])


def _is_host(text: str) -> bool:
    """Tell whether the text can be looked up at all."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def _loopback_address(text: str) -> tuple[str, int]:
    host, port = _address(text)
    if not config.is_loopback(host):
        raise argparse.ArgumentTypeError(f"expected a loopback address such as 127.0.0.1:{port}, got {text!r}")
    return "127.0.0.1" if host.lower() == "localhost" else host, port


def _telemetry_path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected a path such as /metrics, not below /-/, got {text!r}")
    return text


def _duration(low: str, high: str, example: str) -> Callable[[str], float]:
    def seconds(text: str) -> float:
        found = config.seconds(text)
        if not config.seconds(low) <= found <= config.seconds(high):
            raise argparse.ArgumentTypeError(
                f"expected a duration from {low} to {high} such as {example}, got {text!r}"
            )
        return found

    return seconds


def _number(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(high)) and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}, got {text!r}")
        return int(text)

    return number


def _zone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text)
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
        raise argparse.ArgumentTypeError(f"expected an IANA time zone such as Europe/Berlin, got {text!r}") from None


_FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "": _serve_flags,
    "demo": _demo_flags,
    "simulate": _simulate_flags,
    "check": _check_flags,
    "print": _print_flags,
}

_DESCRIPTIONS = {
    "": "Polls Braze's campaign analytics and serves the latest days' counts as Prometheus metrics.",
    "demo": "Runs the exporter against a simulated Braze: no account, no configuration file, nothing but loopback.",
    "simulate": "Runs a simulated Braze alone and prints a configuration that polls it.",
    "check": "Polls every campaign once and reports what works, what fails and how to fix it.",
    "print": "Polls every campaign once and prints the metrics of workspaces and campaigns, or writes them to a file.",
}

_USAGE = f"""braze-exporter [FLAGS]
       braze-exporter {{{",".join(COMMANDS)}}} [FLAGS]
       braze-exporter --help"""

_EPILOG = """\
commands:
  demo        run the exporter against a simulated Braze
  simulate    run the simulated Braze alone
  health      query a running exporter's health
  check       poll every campaign once and report what works, what fails and how to fix it
  print       poll every campaign once and print the metrics, or write them to a file

`braze-exporter COMMAND --help` shows the flags of a command."""
