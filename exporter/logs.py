"""Log lines for people and machines: one event a line, in logfmt or JSON, without secrets."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("logfmt", "json")

Form = Literal["logfmt", "json"]

_OF_EVERY_RECORD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_QUIET = {
    "urllib3": logging.CRITICAL,  # what fails is logged by us, in words that hold nothing of an answer
    "uvicorn": logging.ERROR,  # it warns of each request that is none
    "asyncio": logging.WARNING,
}


def configure(*, level: str, form: str, stream: TextIO, secrets: Callable[[], Iterable[str]]) -> None:
    """Send all logging of the process to a stream; what `secrets` returns at that moment is replaced in every value."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter(form, secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(quiet)


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
