"""What happened, for whoever runs the product: one line of JSON an event, safe to read, with nothing secret in it.

Line ends, escape sequences and other control characters stay inside their JSON string; long texts are cut; the secrets
that a process holds, and what looks like an API key, a bearer token or a password in an address, are blacked out,
wherever they came from. Each Serve replica writes to a file of its application under the catalog's `home/logs`, and
what is wrong to its standard error as well, which Ray collects.
"""

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from gateway.locks import lock

FOLDER = "logs"
LOCK = ".lock"
MOST_BYTES = 16 * 2**20  # of one file, before it becomes NAME.jsonl.1
KEPT = 4  # older files
QUIET_SECONDS = 60.0  # between two words that it cannot be written
TEXT_CHARS = 2_000  # of one value
TRACE_CHARS = 8_000
LINE_BYTES = 32_768  # one write of this size to a file opened for appending is not torn by another process's
OURS = ("gateway", "multimoe", "experts")  # told from INFO on; everybody else from WARNING on
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
SECRET_CHARS = 6  # shorter ones would black out half the log
NAMED_SECRET = re.compile(r"key|token|secret|password|passwd|credential", re.I)
SECRETS = re.compile(
    r"(?P<key>\bmm-[A-Za-z0-9_]{4,32}-)[\w-]{8,}"  # ours: the id may be known
    r"|(?P<auth>\b(?:bearer|basic)\s+)[^\s'\",;]{4,}"
    r"|(?P<url>\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@'\"]*:)[^\s@/'\"]+(?=@)"
    r"|(?P<named>\b(?:api[_-]?key|password|passwd|secret|token)\b['\"]?\s*[=:]\s*['\"]?)[^\s'\",;&})]{4,}"
    r"|\b(?P<sk>sk-)[\w-]{8,}",
    re.I,
)
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class Lines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, event, then whatever `extra` it was given.

    `hidden` are secrets known word for word.
    """

    def __init__(self, hidden: Iterable[str] = ()) -> None:
        super().__init__()
        longest_first = sorted({secret for secret in hidden if len(secret) >= SECRET_CHARS}, key=len, reverse=True)
        self._hidden = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": self._plain(_message(record)),
        }
        extra = {name: value for name, value in vars(record).items() if name not in STANDARD and name[:1] != "_"}
        told |= {name: self._value(value) for name, value in extra.items() if name not in told}
        if record.exc_info and record.exc_info[0]:
            told["error_type"] = record.exc_info[0].__name__
            trace = "".join(traceback.format_exception(*record.exc_info))
            told["trace"] = self._plain(trace if len(trace) < TRACE_CHARS else "…" + trace[-TRACE_CHARS:], TRACE_CHARS)
        line = orjson.dumps(told)
        if len(line) > LINE_BYTES:
            kept = ("time", "level", "logger", "event", "request_id")
            line = orjson.dumps({name: told[name] for name in kept if name in told} | {"cut": len(line)})
        return line.decode()

    def _plain(self, text: str, most: int = TEXT_CHARS) -> str:
        return plain(self._hidden.sub("***", text[: 4 * most]), most, len(text))

    def _value(self, value: object) -> object:
        """As JSON has it; what is not of its own kinds as text."""
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if abs(value) < 2**53 else str(value)
        if isinstance(value, dict):
            return {self._plain(str(name), 100): self._value(inner) for name, inner in list(value.items())[:50]}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value(inner) for inner in list(value)[:50]]
        try:
            return self._plain(str(value))
        except Exception:  # whose text cannot even be made
            return f"<{type(value).__name__}>"


class File(WatchedFileHandler):
    """Appends whole lines to a file that other processes append to as well; the one that finds it full moves it on."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self.path = path
        self.most_bytes = most_bytes
        self._told = float("-inf")
        super().__init__(path, encoding="utf-8", delay=True)

    def _open(self) -> Any:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return os.fdopen(opened, "a", encoding="utf-8", buffering=LINE_BYTES * 2)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.path.exists() and self.path.stat().st_size > self.most_bytes:
                self._move_on()
        except Exception:  # a log that cannot be turned over goes on growing; what it tells of comes first
            self.handleError(record)
        try:
            super().emit(record)
        except Exception:  # the file cannot be opened anew: no folder, no space, no file left; requests go on
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Says on standard error, now and then, what is wrong with the file; never what was to be logged."""
        if time.monotonic() - self._told < QUIET_SECONDS:
            return
        self._told = time.monotonic()
        with suppress(OSError, ValueError):  # standard error may be gone as well
            told = {"level": "error", "logger": __name__, "event": "the log cannot be written"}
            sys.stderr.write(orjson.dumps(told | {"error": plain(str(sys.exc_info()[1]))}).decode() + "\n")

    def _move_on(self) -> None:
        with lock(self.path.parent / LOCK):
            if self.path.stat().st_size <= self.most_bytes:
                return  # another process did it
            for age in range(KEPT, 0, -1):
                older = self.path.with_name(f"{self.path.name}.{age - 1}") if age > 1 else self.path
                if older.exists():
                    older.replace(self.path.with_name(f"{self.path.name}.{age}"))


def start(path: Path | None, hidden: Iterable[str] = ()) -> None:
    """Have this process log to the file, if there is one, and warnings to standard error. Again, it changes nothing."""
    root = logging.getLogger()
    if any(isinstance(handler.formatter, Lines) for handler in root.handlers):
        return
    lines = Lines(hidden)
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.WARNING)
    root.handlers[:] = [errors] if path is None else [errors, File(path)]
    for handler in root.handlers:
        handler.setFormatter(lines)
    root.setLevel(logging.WARNING)
    for ours in OURS:
        logging.getLogger(ours).setLevel(logging.INFO)


def plain(text: str, most: int = TEXT_CHARS, chars: int | None = None) -> str:
    """`text` without what looks like a secret, what was unseen in it shown, at most that long.

    `chars` is how long it was, where it was cut already.
    """
    shown = UNSEEN.sub(_shown, SECRETS.sub(_black, text[: 4 * most]))
    return shown if len(shown) <= most else f"{shown[:most]}… ({chars or len(text)} characters)"


def secrets_in(environment: Mapping[str, str], *urls: str) -> tuple[str, ...]:
    """What is secret in a process: variables that are named so, and passwords in addresses."""
    named = [value.strip() for name, value in environment.items() if NAMED_SECRET.search(name)]
    return (*named, *(password for url in urls if (password := urlsplit(url).password)))


def _shown(found: re.Match[str]) -> str:
    return "\\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}"


def _black(found: re.Match[str]) -> str:
    return next((kept for kept in found.groups() if kept is not None), "") + "***"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # somebody's text stands where a format was meant
        return str(record.msg)
