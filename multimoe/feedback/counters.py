"""What is counted for a while and may be lost: how much of its quota a key has used, and how much of it is under way.

Counting must not cost a flush of the disk for every request, so it is kept apart from the log: on SQLite in a file of
its own beside it, never flushed; on PostgreSQL in an unlogged table. A crash of the machine may empty or damage it, and
then counting begins anew. It knows no limits: what is counted is for the caller to say.
"""

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, text

from multimoe.errors import BadConfig, Unavailable
from multimoe.feedback.database import postgres_arguments

PRAGMAS: Final = ("journal_mode=PERSIST", "synchronous=OFF")  # a journal all the same: for a process that is killed
LOCK: Final = 0x6D6D636F756E74  # "mmcount" as a number; gateways count one after the other
TABLE: Final = """CREATE {kind} TABLE IF NOT EXISTS counters (
    who TEXT NOT NULL, what TEXT NOT NULL,
    began DOUBLE PRECISION NOT NULL, used DOUBLE PRECISION NOT NULL, earlier DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (who, what))"""
SHORT: Final = text(  # for this transaction: the URL may have `options` of its own, which stay as they are
    "SELECT set_config('lock_timeout', :wait, true), set_config('statement_timeout', :wait, true), "
    "set_config('synchronous_commit', 'off', true)"
)
NOW: Final = text("SELECT extract(epoch FROM clock_timestamp())")
READ: Final = text("SELECT who, what, began, used, earlier FROM counters WHERE who = :who")
WRITE: Final = text(
    "INSERT INTO counters (who, what, began, used, earlier) VALUES (:who, :what, :began, :used, :earlier) "
    "ON CONFLICT (who, what) DO UPDATE SET began = excluded.began, used = excluded.used, earlier = excluded.earlier"
)
FORGET: Final = text("DELETE FROM counters WHERE who = :who AND what = :what")

Result = TypeVar("Result")
Name = tuple[str, str]  # who, and what


@dataclass(frozen=True)
class Window:
    """`used` since `began` (seconds since the epoch), and `earlier` in the window before."""

    began: float
    used: float = 0.0
    earlier: float = 0.0


Windows = dict[Name, Window]


class Counters:
    """Safe to use from many threads and processes. `url` is the log's, which has been opened with it.

    `now` is the clock of SQLite's only machine; PostgreSQL has one for all gateways.
    """

    def __init__(self, url: str, timeout_s: float = 2.0, now: Callable[[], float] = time.time) -> None:
        self._url = make_url(url)
        self._timeout_s = timeout_s
        self._now = now
        self._engine: Engine | None = None
        self._inode = 0  # of SQLite's file, as it was opened

    def update(self, whose: Collection[str], change: Callable[[Windows, float], Result]) -> Result:
        """What `change` makes of all that is counted for `whose` and of the time; what it edits is kept.

        Nobody counts for anybody meanwhile, on any gateway. Raises Unavailable.
        """
        try:
            engine = self._opened()
            with engine.begin() as connection:
                self._lock(connection)
                return _change(connection, whose, change, self._time(connection))
        except (exc.SQLAlchemyError, OSError) as error:
            said = str(getattr(error, "orig", None) or error)
            self._begin_anew(said)
            raise Unavailable(f"what keys have used cannot be counted: {said}", code="store_unavailable") from error

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _time(self, connection: Connection) -> float:
        if connection.dialect.name == "sqlite":
            return self._now()
        return float(connection.execute(NOW).scalar_one())

    def _opened(self) -> Engine:
        """Raises Unavailable, BadConfig. The table is made where it is missing; it is never migrated."""
        if self._engine is None:
            engine = _engine(self._url, self._timeout_s)
            kind = "" if engine.dialect.name == "sqlite" else "UNLOGGED"
            self._inode = _inode(counters_file(self._url))
            try:
                with engine.begin() as connection:
                    self._lock(connection)  # two at once would both find it missing
                    connection.execute(text(TABLE.format(kind=kind)))
            except BaseException:
                engine.dispose()
                raise
            self._engine = engine
        return self._engine

    def _lock(self, connection: Connection) -> None:
        """On SQLite the transaction is the lock."""
        if connection.dialect.name == "postgresql":
            connection.execute(SHORT, {"wait": f"{int(self._timeout_s * 1000)}ms"})
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})

    def _begin_anew(self, said: str) -> None:
        """SQLite's file may be damaged after a crash of the machine, or gone while it was open: it is made again.

        Where it is another by now, that is a fresh one of another gateway.
        """
        path = counters_file(self._url)
        if path is None or "locked" in said:
            return
        damaged = any(why in said for why in ("malformed", "not a database")) and self._inode == _inode(path)
        self.close()  # a connection to a file that was replaced would never see the new one
        if not damaged:
            return
        for name in (path, path.with_name(f"{path.name}-journal")):
            with suppress(OSError):
                name.unlink(missing_ok=True)


def counters_file(url: URL) -> Path | None:
    """Beside the log's own file; None on PostgreSQL."""
    if url.get_backend_name() != "sqlite":
        return None
    log = Path(str(url.database).removeprefix("file:"))
    return log.with_name(f"{log.stem}.counters{log.suffix}")


def _inode(path: Path | None) -> int:
    return path.stat().st_ino if path is not None and path.exists() else 0


def _engine(url: URL, timeout_s: float) -> Engine:
    path = counters_file(url)
    if path is not None:
        path.touch(mode=0o600)
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": timeout_s}, pool_timeout=timeout_s)
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine
    arguments = postgres_arguments(url, timeout_s)
    try:
        return create_engine(url, connect_args=arguments, pool_size=2, max_overflow=0, pool_timeout=timeout_s)
    except ImportError as error:
        raise BadConfig(f"store.url needs a driver: pip install 'multimoe[postgres]' ({error})", "store.url") from error


def _set_up(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_engine` says, not where the driver guesses
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _change(
    connection: Connection, whose: Collection[str], change: Callable[[Windows, float], Result], now: float
) -> Result:
    before = {
        (row.who, row.what): Window(row.began, row.used, row.earlier)
        for who in sorted(whose)
        for row in connection.execute(READ, {"who": who})
    }
    after = dict(before)
    result = change(after, now)
    gone = [{"who": who, "what": what} for who, what in before.keys() - after.keys()]
    changed = [
        {"who": who, "what": what, "began": window.began, "used": window.used, "earlier": window.earlier}
        for (who, what), window in after.items()
        if before.get((who, what)) != window
    ]
    for statement, rows in ((FORGET, gone), (WRITE, changed)):
        if rows:
            connection.execute(statement, rows)
    return result
