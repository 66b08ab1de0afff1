"""A disk whose power can be cut, and the product's own database on it: its statements and pragmas, by SQLAlchemy.

The disk forgets, on a cut, a random part of what was not flushed: any of the writes to a file, whole or torn at a
sector, and any of the names made or deleted in its folder. Only `xSync` makes a file's content (and, when it is new,
its name) last, and only a delete with the folder flushed is final. It is SQLite's own interface to a system (a VFS).
"""

import contextlib
import random
import sqlite3
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import apsw
from sqlalchemy import create_engine

from multimoe.feedback import FeedbackLog, database

SECTOR = 512
NAME = "power"
STORE = "/store.db"


class PowerCut(Exception):
    """Raised into SQLite from the moment on; it makes an I/O error of it."""


class File:
    """What its cache shows, what the disk has, and the writes that are only in the cache."""

    def __init__(self, content: bytes = b"") -> None:
        self.seen, self.kept = bytearray(content), bytearray(content)
        self.pending: list[tuple[int, bytes | None]] = []  # where and what; None cuts the file there

    def write(self, at: int, data: bytes | None) -> None:
        self.pending.append((at, data))
        _apply(self.seen, at, data)

    def sync(self) -> None:
        self.kept, self.pending = bytearray(self.seen), []

    def after_cut(self, chance: random.Random) -> bytes:
        left = bytearray(self.kept)
        for at, data in self.pending:
            fate = chance.random()
            if data is None or len(data) <= SECTOR or fate < 0.8:
                if fate < 0.5:
                    _apply(left, at, data)
            else:  # torn: each sector for itself
                for begin in range(0, len(data), SECTOR):
                    if chance.random() < 0.5:
                        _apply(left, at + begin, data[begin : begin + SECTOR])
        return bytes(left)


class Disk:
    """Files by name. `left` counts the operations until the power goes; negative for never."""

    def __init__(self, files: dict[str, bytes] | None = None, left: int = -1) -> None:
        self.files = {name: File(content) for name, content in (files or {}).items()}
        self.last = dict(self.files)  # the names that are in the folder for good
        self.left = left
        self.off = False
        self.operations = 0

    def step(self) -> None:
        """Before each operation that changes something."""
        if self.left == 0:
            self.off = True
        if self.off:
            raise PowerCut
        self.left -= 1
        self.operations += 1

    def after_cut(self, chance: random.Random) -> dict[str, bytes]:
        names = {}
        for name in self.files.keys() | self.last.keys():
            old, new = self.last.get(name), self.files.get(name)
            there = old if old is new or chance.random() < 0.5 else new
            if there is not None:
                names[name] = there
        return {name: file.after_cut(chance) for name, file in sorted(names.items())}


class Handle:
    """An open file, as SQLite uses one. One process, one connection: locks have nobody to keep out."""

    def __init__(self, disk: Disk, name: str, new: bool) -> None:
        self.disk, self.name, self.new = disk, name, new
        self.file = disk.files[name]

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self.file.seen[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        self.disk.step()
        self.file.write(offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        self.disk.step()
        self.file.write(size, None)

    def xSync(self, flags: int) -> bool:
        self.disk.step()
        self.file.sync()
        if self.new and self.disk.files.get(self.name) is self.file:
            self.disk.last[self.name] = self.file  # SQLite flushes the folder of a new journal with it
            self.new = False
        return True

    def xFileSize(self) -> int:
        return len(self.file.seen)

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xSectorSize(self) -> int:
        return SECTOR

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False

    def xClose(self) -> None:
        pass


class Filesystem(apsw.VFS):
    """Names and handles over whichever `disk` is in it."""

    def __init__(self) -> None:
        self.disk = Disk()
        super().__init__(NAME, "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        path = name.filename() if hasattr(name, "filename") else str(name)
        new = path not in self.disk.files
        if new:
            self.disk.step()
            self.disk.files[path] = File()
        flags[1] = flags[0]
        return Handle(self.disk, path, new)

    def xDelete(self, name: str, syncdir: bool) -> None:
        self.disk.step()
        self.disk.files.pop(name, None)
        if syncdir:
            self.disk.last.pop(name, None)

    def xAccess(self, name: str, flags: int) -> bool:
        return name in self.disk.files

    def xFullPathname(self, name: str) -> str:
        return name

    def xRandomness(self, amount: int) -> bytes:
        return random.randbytes(amount)

    def xCurrentTime(self) -> float:
        return 2_461_000.5

    def xSleep(self, microseconds: int) -> int:
        return microseconds


class Cursor:
    """As SQLAlchemy uses the standard library's."""

    def __init__(self, connection: "Connection") -> None:
        self._connection, self._rows = connection, list[Any]()
        self.description: Any = None
        self.rowcount, self.lastrowid, self.arraysize = -1, None, 1

    def execute(self, statement: str, parameters: Any = ()) -> "Cursor":
        own = self._connection.own
        with _own_errors():
            cursor = own.cursor()
            cursor.exec_trace = self._described
            self._rows = cursor.execute(statement, parameters).fetchall()
        self.rowcount, self.lastrowid = own.changes(), own.last_insert_rowid()
        return self

    def _described(self, cursor: apsw.Cursor, *_: Any) -> bool:
        """The only moment at which a statement without a row tells its columns."""
        self.description = tuple((c[0], *(None,) * 6) for c in cursor.get_description()) or None
        return True

    def executemany(self, statement: str, many: Any) -> "Cursor":
        for parameters in many:
            self.execute(statement, parameters)
        return self

    def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: int = 1) -> list[Any]:
        taken, self._rows = self._rows[:size], self._rows[size:]
        return taken

    def fetchall(self) -> list[Any]:
        taken, self._rows = self._rows, []
        return taken

    def close(self) -> None:
        self._rows = []


class Connection:
    isolation_level: str | None = None  # transactions begin where the product says

    def __init__(self, path: str, **_: Any) -> None:
        with _own_errors():
            self.own = apsw.Connection(STORE, vfs=NAME)

    def cursor(self) -> Cursor:
        return Cursor(self)

    def execute(self, statement: str) -> Cursor:
        return self.cursor().execute(statement)

    def create_function(self, *_: Any, **__: Any) -> None:
        pass

    def commit(self) -> None:
        if self.own.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        if self.own.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        self.own.close(True)


DRIVER: Any = SimpleNamespace(  # a DBAPI module
    **{name: getattr(sqlite3, name) for name in dir(sqlite3) if name.endswith("Error") or name.startswith("PARSE_")},
    connect=Connection,
    paramstyle="qmark",
    sqlite_version=apsw.sqlite_lib_version(),
    sqlite_version_info=tuple(map(int, apsw.sqlite_lib_version().split("."))),
    Binary=bytes,
)


@contextlib.contextmanager
def powered(disk: Disk, filesystem: Filesystem, pragmas: tuple[str, ...] | None = None) -> Iterator[FeedbackLog]:
    """The product's log on that disk, set up as the product does, or by other `pragmas`."""
    filesystem.disk = disk
    with contextlib.ExitStack() as patched:
        patched.enter_context(mock.patch.object(database, "create_engine", partial(create_engine, module=DRIVER)))
        patched.enter_context(mock.patch.object(database, "_create_private"))
        if pragmas is not None:
            patched.enter_context(mock.patch.object(database, "PRAGMAS", pragmas))
        log = FeedbackLog.open(f"sqlite://{STORE}")
        try:
            yield log
        finally:
            log.close()


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except (apsw.Error, PowerCut) as error:
        raise sqlite3.OperationalError(f"{type(error).__name__}: {error}") from error


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del content[at:]
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data
