"""The database beneath the log: opened so that a commit survives a power cut, migrated, and its errors made ours.

SQLite runs with a rollback journal, never WAL: up to 3.51.2 its "WAL-reset" race loses commits when two connections
write (https://sqlite.org/wal.html#walresetbug). `synchronous=EXTRA` also flushes the folder after the journal is
deleted; with FULL a power cut just after a commit can bring the journal, and so the old state, back.
"""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import alembic.command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, inspect, make_url, text

from multimoe.errors import BadConfig, Unavailable

logger = logging.getLogger(__name__)

MIGRATIONS: Final = Path(__file__).parent.parent / "migrations"
VERSION_TABLE: Final = "multimoe_version"  # not Alembic's default, so that MLflow and others fit in the same database
MIGRATION_LOCK: Final = 0x6D756C74696D6F65  # "multimoe" as a 64-bit number
PRAGMAS: Final = ("journal_mode=DELETE", "synchronous=EXTRA", "foreign_keys=ON")
DURABLE: Final = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}

LOCKED: Final = "the store is locked by another writer; try again in a few seconds"
GONE: Final = "the store does not answer; check that its server runs and that store.url is right, then try again"
ADVICE: Final = (  # pieces of the driver's message -> what happened and what to do
    (("locked", "lock timeout"), LOCKED),
    (("QueuePool limit",), "every connection to the store is busy; try again in a few seconds"),
    (("disk is full", "No space left"), "the disk of the store is full; free some space"),
    (("readonly", "read-only"), "the store is read-only; make its file and folder writable, or change store.url"),
    (("malformed",), "the store's file is damaged; restore a backup"),
    (("not a database",), "the store's file is no SQLite database; change store.url"),
    (("unable to open",), "the store's file cannot be opened; see that store.url names a folder that can be written"),
    (("disk I/O error",), "the disk of the store reports an error; check the disk"),
    (("password authentication",), "the store refuses the login; check user and password in store.url"),
    (("does not exist",), "the store's database is missing; create it or check store.url"),
)


class Database:
    """One engine, and transactions that either commit or raise `Unavailable`. Safe to use from many threads."""

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        self.engine = _engine(_checked(url), timeout_s)
        self._writer = self.engine.execution_options(immediate=True)
        self._timeout_s = timeout_s
        self._turn = threading.Lock()
        try:
            self._migrate()
            if self.engine.dialect.name == "postgresql":
                self._warn_unless_durable()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A short transaction; a long one would keep SQLite's writers waiting."""
        with _as_unavailable(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is on disk when the block has been left. On SQLite it holds the only writer's place."""
        with _as_unavailable(), self._my_turn(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """Threads of one process queue here: SQLite's own waiting is by sleeping and lets the unlucky starve."""
        if self.engine.dialect.name != "sqlite":
            yield
            return
        if not self._turn.acquire(timeout=self._timeout_s):
            raise Unavailable(LOCKED, code="store_unavailable")
        try:
            yield
        finally:
            self._turn.release()

    def _migrate(self) -> None:
        with self.reading() as connection:
            if _is_current(connection):
                return
        with self.writing() as connection:
            _wait_for_other_migrations(connection)
            if not _is_current(connection):
                _upgrade(connection)

    def _warn_unless_durable(self) -> None:
        with self.reading() as connection:
            for setting, wanted in DURABLE.items():
                value = connection.execute(text(f"SHOW {setting}")).scalar_one()
                if value in ("off", "false"):
                    logger.warning(
                        "PostgreSQL runs with %s=%s: a crash can lose ratings that were acknowledged; set it to %s",
                        setting,
                        value,
                        wanted,
                    )


def _checked(url: str) -> URL:
    """Raises BadConfig for anything but a SQLite file or PostgreSQL."""
    allowed = "allowed are sqlite:///FILE and postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except exc.ArgumentError as error:
        raise BadConfig(f"store.url is not a database URL; {allowed}", "store.url") from error
    if backend not in ("sqlite", "postgresql"):
        raise BadConfig(f"store.url names the database {backend!r}; {allowed}", "store.url")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise BadConfig(f"store.url names no file, and a store in memory would forget every rating; {allowed}")
    return parsed


def _engine(url: URL, timeout_s: float) -> Engine:
    if url.get_backend_name() == "sqlite":
        _create_private(Path(str(url.database)))
        engine = create_engine(url, connect_args={"timeout": timeout_s}, pool_timeout=timeout_s)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    options = f"-c lock_timeout={int(timeout_s * 1000)} -c idle_in_transaction_session_timeout=60000"
    arguments = {"connect_timeout": max(2, round(timeout_s)), "options": options}
    arguments = {key: value for key, value in arguments.items() if key not in url.query}
    try:
        return create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_timeout=timeout_s)
    except ImportError as error:
        raise BadConfig(f"store.url needs a driver: pip install 'multimoe[postgres]' ({error})", "store.url") from error


def _create_private(path: Path) -> None:
    """The file holds what people asked, so nobody else on the machine may read it."""
    if str(path).startswith("file:"):
        return  # a URI, by which SQLite itself opens a file that is there
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)
    except OSError as error:
        raise Unavailable(
            f"the store cannot be created: {error.strerror}; check that store.url names a folder that can be written",
            code="store_unavailable",
        ) from error


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not where the driver guesses
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes its place at once: one that reads first and writes later fails instead of waiting its turn."""
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _is_current(connection: Connection) -> bool:
    """Raises BadConfig for a schema that this code does not know."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    revision, head = _revision(connection), scripts.get_current_head()
    if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise BadConfig(
            f"the store was written by a newer multimoe: its schema is {revision!r}, this one knows up to {head!r}; "
            "upgrade multimoe or point store.url at another store",
            "store.url",
        )
    return revision == head


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def _wait_for_other_migrations(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # on SQLite the write transaction is the lock
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    alembic.command.upgrade(config, "head")


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """Trouble of the database becomes Unavailable; a statement that was wrong stays the bug it is."""
    try:
        yield
    except (exc.IntegrityError, exc.ProgrammingError, exc.DataError):
        raise
    except (exc.DBAPIError, exc.TimeoutError) as error:
        said = str(getattr(error, "orig", None) or error)
        advice = next((advice for pieces, advice in ADVICE if any(piece in said for piece in pieces)), GONE)
        logger.warning("the store failed: %s", said)
        raise Unavailable(advice, code="store_unavailable") from error
