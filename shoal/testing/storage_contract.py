"""What every storage backend of the control store must do. Inherit ``StorageContract`` and say how to open one.

class TestMyStorage(StorageContract):
    durable = True

    def open(self, tmp_path):
        return MyStorage(tmp_path / "tables")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shoal._base.optional import try_import
from shoal._core.control_store.storage import Change, Storage

if TYPE_CHECKING:
    import pytest
else:
    pytest = try_import("pytest", "shoal[test]")


class StorageContract:
    #: Whether ``open`` with the same path finds what the one before wrote.
    durable = True

    def open(self, tmp_path: Path) -> Storage:
        """Open the backend; called again with the same path after ``close``."""
        raise NotImplementedError

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return self.open(tmp_path)

    def test_an_unknown_table_is_empty(self, storage: Storage) -> None:
        assert storage.get("nothing", b"k") is None
        assert list(storage.scan("nothing")) == []
        storage.delete("nothing", b"k")
        assert list(storage.scan("nothing")) == []
        storage.close()

    def test_what_was_put_is_there(self, storage: Storage) -> None:
        storage.put("t", b"k", b"value")
        storage.put("u", b"k", b"other")
        assert (storage.get("t", b"k"), storage.get("u", b"k"), storage.get("t", b"x")) == (b"value", b"other", None)
        storage.delete("t", b"k")
        assert storage.get("t", b"k") is None
        storage.close()

    def test_keys_and_values_may_be_any_bytes(self, storage: Storage) -> None:
        rows = {b"": b"", b"\0": b"\0" * 10, b"\xff\x00'\"": b"--", b"k" * 1000: b"v" * (3 << 20)}
        storage.apply([Change("t", key, value) for key, value in rows.items()])
        assert dict(storage.scan("t")) == rows
        storage.close()

    def test_a_scan_is_in_the_order_of_keys(self, storage: Storage) -> None:
        keys = [bytes([n * 37 % 256]) for n in range(200)]
        storage.apply([Change("t", key, key) for key in keys])
        assert [key for key, _ in storage.scan("t")] == sorted(keys)
        storage.close()

    def test_the_later_change_of_a_row_wins(self, storage: Storage) -> None:
        storage.apply(
            [Change("t", b"a", b"1"), Change("t", b"a", None), Change("t", b"b", None), Change("t", b"b", b"2"), Change("t", b"b", b"3")]
        )
        assert list(storage.scan("t")) == [(b"b", b"3")]
        storage.close()

    def test_a_batch_that_fails_changes_nothing(self, storage: Storage) -> None:
        storage.put("t", b"a", b"old")
        bad = Change("t", b"b", object())  # type: ignore[arg-type]
        try:
            storage.apply([Change("t", b"a", b"new"), Change("fresh", b"c", b"new"), bad])
        except Exception:  # whatever the backend raises
            assert storage.get("t", b"a") == b"old"
            assert list(storage.scan("fresh")) == []
        storage.put("fresh", b"d", b"usable")
        assert storage.get("fresh", b"d") == b"usable"
        storage.close()

    def test_closing_and_opening_loses_nothing(self, tmp_path: Path) -> None:
        if not self.durable:
            pytest.skip("this backend does not outlive its process")
        storage = self.open(tmp_path)
        storage.apply([Change("t", b"%d" % n, b"x" * n) for n in range(300)])
        storage.apply([Change("t", b"%d" % n, None) for n in range(0, 300, 2)])
        storage.close()
        storage = self.open(tmp_path)
        assert dict(storage.scan("t")) == {b"%d" % n: b"x" * n for n in range(1, 300, 2)}
        storage.close()

    def test_compact_keeps_the_rows(self, storage: Storage) -> None:
        storage.apply([Change("t", b"%d" % n, b"x" * 1000) for n in range(3000)])
        storage.apply([Change("t", b"%d" % n, None) for n in range(2990)])
        storage.compact()
        assert sorted(key for key, _ in storage.scan("t")) == [b"%d" % n for n in range(2990, 3000)]
        storage.close()
