"""Tables in one SQLite file: the embedded default.

Write-ahead log, one transaction per batch. Measured on the development machine (virtual disk, ext4, rows of 600 bytes):

    synchronous   one row per commit     100 rows per commit     survives
    NORMAL        27 us                  1.1 ms                  death of the process, whatever killed it
    FULL          180 us                 1.4-1.9 ms              loss of power, too

NORMAL is the default: the data of a commit is in the kernel when ``apply`` returns, so ``kill -9`` of the head loses nothing, and what
power loss takes along is the machine whose workers the rows describe. A head that is meant to come back after a loss of power passes
``power_safe=True`` and pays one fsync per loop iteration, which group commit keeps off the per-row cost.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from .interface import Change, TablesDamaged

#: Bytes that the write-ahead log is cut back to after a checkpoint.
LOG_LIMIT_BYTES = 16 << 20
#: Pages of 4 KiB given back per ``compact``: about 8 MiB, a few milliseconds.
COMPACT_PAGES = 2048


class SqliteStorage:
    """One file, opened by one process at a time: a second opener gets ``sqlite3.OperationalError`` (database is locked).

    Raises TablesDamaged when the file is no database, or pages of it are torn.
    """

    is_remote = False

    def __init__(self, path: str | Path, *, power_safe: bool = False) -> None:
        self.path = str(path)
        # Functions, arguments of actors and key-values of the user lie in it. SQLite gives its log the same mode.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._prepare(power_safe)
        except sqlite3.OperationalError:  # in use, unreadable, no room: not the tables' fault
            self._db.close()
            raise
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise TablesDamaged(str(error)) from error

    def _prepare(self, power_safe: bool) -> None:
        for pragma in (
            "auto_vacuum=INCREMENTAL",  # has an effect on a new file only, and must come before the first table
            "locking_mode=EXCLUSIVE",  # no shared-memory index file, and nobody else can write beside us
            "journal_mode=WAL",
            f"synchronous={'FULL' if power_safe else 'NORMAL'}",
            f"journal_size_limit={LOG_LIMIT_BYTES}",
        ):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        # Reads every page: a second per gigabyte.
        found = [line for (line,) in self._db.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise TablesDamaged("; ".join(found))
        self._tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def is_current(self) -> bool:
        return True

    def get(self, table: str, key: bytes) -> bytes | None:
        if table not in self._tables:
            return None
        row = self._db.execute(f'SELECT value FROM "{table}" WHERE key = ?', (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        if table in self._tables:
            for key, value in self._db.execute(f'SELECT key, value FROM "{table}" ORDER BY key'):
                yield bytes(key), bytes(value)

    def apply(self, changes: Sequence[Change]) -> None:
        # Only the last change of a row counts: an actor that is created and started in one iteration is written once.
        final = {(table, key): value for table, key, value in changes}
        puts: dict[str, list[tuple[bytes, bytes]]] = {}
        deletes: dict[str, list[tuple[bytes]]] = {}
        for (table, key), value in final.items():
            if value is None:
                deletes.setdefault(table, []).append((key,))
            else:
                puts.setdefault(table, []).append((key, value))
        created = (puts.keys() | deletes.keys()) - self._tables
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for table in created:
                self._create(table)
            for table, rows in puts.items():
                self._db.executemany(f'INSERT OR REPLACE INTO "{table}" (key, value) VALUES (?, ?)', rows)
            for table, keys in deletes.items():
                self._db.executemany(f'DELETE FROM "{table}" WHERE key = ?', keys)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._tables |= created

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.apply([Change(table, key, value)])

    def delete(self, table: str, key: bytes) -> None:
        self.apply([Change(table, key, None)])

    def compact(self) -> None:
        # Not execute: it makes one step of the statement, and this one frees one page per step.
        self._db.executescript(f"PRAGMA incremental_vacuum({COMPACT_PAGES})")

    def close(self) -> None:
        self._db.close()

    def _create(self, table: str) -> None:
        if not table.isidentifier():
            raise ValueError(f"A table name must be an identifier, got {table!r}.")
        # A table with row numbers: functions may have megabytes, and wide rows inside the key's tree would slow down every look-up.
        self._db.execute(f'CREATE TABLE "{table}" (key BLOB PRIMARY KEY, value BLOB NOT NULL)')
