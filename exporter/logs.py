"""Log lines for people and machines: one event a line, in logfmt or JSON, without secrets."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("logfmt", "json")

Form = Literal["logfmt", "json"]

_OF_EVERY_RECORD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_QUIET = {
    "urllib3": logging.CRITICAL,  # failures are logged by us, without any part of a response
    "uvicorn": logging.ERROR,  # it warns about every malformed request
    "asyncio": logging.WARNING,
}


def configure(
    *, level: str, form: str, write: Callable[[str], object], secrets: Callable[[], Iterable[str]]
) -> Callable[[int], str]:
    """Send all logging of the process to `write`, one line per call.

    This includes warnings and exceptions of destructors, which Python would write to stderr unchanged. Every value that
    contains one of the current `secrets` has it replaced. Return the function that formats the number of dropped lines
    as a line, whatever the level.
    """
    formatter = Formatter(form, secrets)
    logging.basicConfig(level=level.upper(), handlers=[_Handler(formatter, write)], force=True)
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _log_unraisable
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(quiet)

    def notice(lines: int) -> str:
        fields = {"msg": "log lines were dropped because they could not be written", "levelname": "WARNING"}
        return formatter.format(logging.makeLogRecord({**fields, "levelno": logging.WARNING, "lines": lines})) + "\n"

    return notice


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    error = unraisable.exc_value or unraisable.exc_type()
    logger.error("an exception was ignored", exc_info=error)


class _Handler(logging.Handler):
    """Handler that formats a record in the thread that logs it, without a lock, and writes the line."""

    def __init__(self, formatter: logging.Formatter, write: Callable[[str], object]) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._write = write

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record. One that cannot be formatted is reported as a line and never raises where it was logged."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - whatever a value's text raises
            line = self.format(_unformatted(record, error))
        self._write(f"{line}\n")
        return True


def _unformatted(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return a record that says where a record that cannot be formatted was logged."""
    where = f"{record.name}:{record.lineno}"
    fields = {"msg": "a log line cannot be formatted", "logger": where, "error": type(error).__name__}
    return logging.makeLogRecord({"levelname": "ERROR", "levelno": logging.ERROR, **fields})


class Formatter(logging.Formatter):
    """Formats a record and its `extra` fields as one line."""

    def __init__(self, form: str, secrets: Callable[[], Iterable[str]]) -> None:
        super().__init__()
        self._line = _json if form == "json" else _logfmt
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time, level and message first, then the fields, then a traceback as a field."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
        }
        fields.update((name, value) for name, value in vars(record).items() if name not in _OF_EVERY_RECORD)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        secrets = sorted(self._secrets(), key=len, reverse=True)
        return self._line({name: _concealed(value, secrets) for name, value in fields.items()})


def _concealed(value: object, secrets: list[str]) -> object:
    if isinstance(value, int | float):
        return value
    text = str(value)
    for secret in secrets:
        text = text.replace(secret, "<secret>")
    return text


def _json(fields: dict[str, object]) -> str:
    return json.dumps(fields)


def _logfmt(fields: dict[str, object]) -> str:
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in fields.items())


def _quoted(text: str) -> str:
    """Quote what would not be one word; what does not print is escaped, so that a line stays a line."""
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
