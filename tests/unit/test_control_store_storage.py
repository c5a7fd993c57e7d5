"""Both storage backends keep the contract; SQLite also survives a kill and gives space back."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from shoal._core.control_store.storage import Change, MemoryStorage, SqliteStorage, Storage
from shoal.testing.storage_contract import StorageContract

WRITER = """
import sys
from shoal._core.control_store.storage import Change, SqliteStorage
storage = SqliteStorage(sys.argv[1])
n = 0
while True:
    storage.apply([Change("t", b"%d" % (n + i), b"x" * 500) for i in range(3)] + [Change("t", b"last", b"%d" % (n + 2))])
    n += 3
    print(n - 1, flush=True)  # the acknowledgement
"""


class TestMemoryStorage(StorageContract):
    durable = False

    def open(self, tmp_path: Path) -> Storage:
        return MemoryStorage()


class TestSqliteStorage(StorageContract):
    def open(self, tmp_path: Path) -> Storage:
        return SqliteStorage(tmp_path / "tables.sqlite")

    def test_a_killed_writer_loses_nothing_that_it_acknowledged(self, tmp_path: Path) -> None:
        path = tmp_path / "tables.sqlite"
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        acknowledged = int((lines + rest.split())[-1])
        storage = SqliteStorage(path)
        rows = dict(storage.scan("t"))
        last = int(rows.pop(b"last"))
        assert last >= acknowledged > 500
        assert rows.keys() == {b"%d" % n for n in range(last + 1)}, "a batch is all or nothing"
        storage.close()

    def test_deleted_rows_give_their_space_back(self, tmp_path: Path) -> None:
        path = tmp_path / "tables.sqlite"
        storage = SqliteStorage(path)
        for _ in range(20):
            storage.apply([Change("t", os.urandom(16), b"x" * 2000) for _ in range(1000)])
            storage.apply([Change("t", key, None) for key, _ in list(storage.scan("t"))])
            storage.compact()
        storage.close()
        assert path.stat().st_size < 1 << 20

    def test_a_second_opener_is_refused(self, tmp_path: Path) -> None:
        storage = self.open(tmp_path)
        storage.put("t", b"k", b"v")
        other = sqlite3.connect(tmp_path / "tables.sqlite", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT 1 FROM t").fetchall()
        other.close()
        storage.close()


class TestPowerSafeSqliteStorage(StorageContract):
    def open(self, tmp_path: Path) -> Storage:
        return SqliteStorage(tmp_path / "tables.sqlite", power_safe=True)
