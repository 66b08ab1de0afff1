"""The database beneath the log: opened so that a commit survives a power cut, migrated, and its errors made ours.

SQLite runs with a rollback journal, never WAL: up to 3.51.2 its "WAL-reset" race loses commits when two connections
write (https://sqlite.org/wal.html#walresetbug). `synchronous=EXTRA` also flushes the folder after the journal is
deleted; with FULL a power cut just after a commit can bring the journal, and so the old state, back. PostgreSQL waits
for its disk before it says that something is committed, whatever its own default is.
"""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

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
DURABLE: Final = ("fsync", "full_page_writes")  # of PostgreSQL's server; what is left of it a session may set itself
WAIT_FOR_DISK: Final = (
    "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'"
)
KEEP_ALIVE: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}

LOCKED: Final = "the store is locked by another writer; try again in a few seconds"
GONE: Final = "the store does not answer; check that its server runs and that store.url is right, then try again"
OTHER_SCHEMA: Final = "the store's tables are not those of this multimoe; was it upgraded elsewhere, or emptied?"
ALIEN: Final = ("no such table", "no such column", "has no column", 'relation "', 'column "', "NOT NULL constraint")
ADVICE: Final = (  # pieces of the driver's message -> what happened and what to do
    (("locked", "lock timeout"), LOCKED),
    (("QueuePool limit",), "every connection to the store is busy; try again in a few seconds"),
    (("disk is full", "No space left"), "the disk of the store is full; free some space"),
    (("DBMOVED",), "the store's file was moved or deleted; put it back, or restart to begin an empty one"),
    (("readonly", "read-only"), "the store is read-only; make its file and folder writable, or change store.url"),
    (("malformed",), "the store's file is damaged; restore a backup"),
    (("not a database",), "the store's file is no SQLite database; change store.url"),
    (("unable to open",), "the store's file cannot be opened; see that store.url names a folder that can be written"),
    (("disk I/O error",), "the disk of the store reports an error; check the disk"),
    (("password authentication",), "the store refuses the login; check user and password in store.url"),
    (ALIEN, OTHER_SCHEMA),
    (("does not exist",), "the store's database is missing; create it or check store.url"),
)


class Database:
    """One engine, and transactions that either commit or raise `Unavailable`. Safe to use from many threads.

    With `at_once` False a store that is away when this is made is opened by whoever uses it first once it is back.
    """

    def __init__(self, url: str, timeout_s: float = 5.0, at_once: bool = True) -> None:
        checked = _checked(url)
        self.engine = _engine(checked, timeout_s)
        self._writer = self.engine.execution_options(immediate=True)
        self._file = _file(checked)
        self._timeout_s = timeout_s
        self._turn = threading.Lock()
        self._opening = threading.Lock()
        self._opened = False
        try:
            self._open()
        except BaseException as error:
            if isinstance(error, Unavailable) and not at_once:
                logger.warning("the store is opened later: %s", error)
                return
            self.close()
            raise

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A short transaction; a long one would keep SQLite's writers waiting."""
        self._open()
        with self._as_unavailable(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is on disk when the block has been left. On SQLite it holds the only writer's place."""
        self._open()
        with self._as_unavailable(), self._my_turn(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def alone(self, name: str, patience_s: float) -> Iterator[None]:
        """One at a time, of all machines that share this PostgreSQL. SQLite is of one machine: lock a file there.

        The end of a process, or of its connection, lets go. Raises Unavailable when another holds it for longer.
        """
        if self.engine.dialect.name != "postgresql":
            yield
            return
        with ExitStack() as held:
            with self._as_unavailable():
                connection = self.engine.connect()
                held.callback(_let_go, connection)
                connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                connection.execute(text(f"SET LOCAL lock_timeout = {int(patience_s * 1000)}"))
                locked = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, :seed))")
                connection.execute(locked, {"name": name, "seed": MIGRATION_LOCK})
            yield

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

    def _open(self) -> None:
        """Once. What is slow about a store that is away is the waiting, so one thread waits and the others are told."""
        if self._opened:
            return
        if not self._opening.acquire(blocking=False):
            raise Unavailable(GONE, code="store_unavailable")
        try:
            with self._as_unavailable():
                self._migrate()
                if self.engine.dialect.name == "postgresql":
                    self._warn_unless_durable()
            self._opened = True
        finally:
            self._opening.release()

    def _migrate(self) -> None:
        if self._file is not None:
            _create_private(self._file)
        with self.engine.begin() as connection:
            if _is_current(connection):
                return
        with self._writer.begin() as connection:
            _wait_for_other_migrations(connection)
            if not _is_current(connection):
                _upgrade(connection)

    def _warn_unless_durable(self) -> None:
        with self.engine.begin() as connection:
            for setting in DURABLE:
                value = connection.execute(text(f"SHOW {setting}")).scalar_one()
                if value in ("off", "false"):
                    logger.warning(
                        "PostgreSQL runs with %s=%s: a crash can lose ratings that were acknowledged; set it to on",
                        setting,
                        value,
                    )

    @contextmanager
    def _as_unavailable(self) -> Iterator[None]:
        """Trouble of the database becomes Unavailable; a statement that was wrong stays the bug it is."""
        try:
            yield
        except (exc.DBAPIError, exc.TimeoutError) as error:
            said = _said(error)
            advice = next((advice for pieces, advice in ADVICE if any(piece in said for piece in pieces)), GONE)
            if isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError) and advice != OTHER_SCHEMA:
                raise
            logger.warning("the store failed: %s", said)
            if self.engine.dialect.name == "sqlite" and advice != LOCKED:
                self.engine.dispose()  # a connection to a file that was replaced would never see the new one
            raise Unavailable(advice, code="store_unavailable") from error


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
        engine = create_engine(_existing(url), connect_args={"timeout": timeout_s}, pool_timeout=timeout_s)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    arguments = postgres_arguments(url, timeout_s)
    try:
        engine = create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_timeout=timeout_s)
    except ImportError as error:
        raise BadConfig(f"store.url needs a driver: pip install 'multimoe[postgres]' ({error})", "store.url") from error
    event.listen(engine, "connect", _set_up_postgres)
    return engine


def postgres_arguments(url: URL, timeout_s: float) -> dict[str, Any]:
    """How a connection is made, where the URL does not say it itself."""
    options = f"-c lock_timeout={int(timeout_s * 1000)} -c idle_in_transaction_session_timeout=60000"
    arguments = {"connect_timeout": max(2, round(timeout_s)), "options": options, **KEEP_ALIVE}
    return {key: value for key, value in arguments.items() if key not in url.query}


def _file(url: URL) -> Path | None:
    """SQLite's file, where we are to make it; by a URI of its own SQLite opens one that is there."""
    if url.get_backend_name() != "sqlite" or str(url.database).startswith("file:"):
        return None
    return Path(str(url.database))


def _existing(url: URL) -> URL:
    """So that SQLite makes no file: in place of one that was deleted under a running product an empty one would spring
    up, without a key in it.
    """
    if _file(url) is None:
        return url
    return url.set(database=f"file:{quote(str(url.database))}", query={**url.query, "mode": "rw", "uri": "true"})


def _create_private(path: Path) -> None:
    """The file holds what people asked, so nobody else on the machine may read it."""
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
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":  # somebody has it open so, and SQLite then leaves it as it is without a word
        raise Unavailable(
            "the store's file is in WAL mode, in which SQLite can lose commits; close the program that has it open",
            code="store_unavailable",
        )


def _set_up_postgres(connection: Any, record: Any) -> None:
    connection.execute(WAIT_FOR_DISK)
    connection.commit()


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


def _said(error: exc.SQLAlchemyError) -> str:
    """What the driver says, and SQLite's own name for it, which says more."""
    original = getattr(error, "orig", None)
    return f"{original or error} {getattr(original, 'sqlite_errorname', '')}".strip()


def _let_go(connection: Connection) -> None:
    with suppress(exc.DBAPIError):  # whoever took the connection away took the lock with it
        connection.close()
