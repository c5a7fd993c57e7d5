"""Tables in a dict: for tests, simulation, and sessions that nobody will read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .interface import Change


class MemoryStorage:
    is_remote = False

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {}

    def is_current(self) -> bool:
        return True

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.tables.get(table, {}).get(key)

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        yield from sorted(self.tables.get(table, {}).items())

    def apply(self, changes: Sequence[Change]) -> None:
        for table, key, value in changes:
            rows = self.tables.setdefault(table, {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.apply([Change(table, key, value)])

    def delete(self, table: str, key: bytes) -> None:
        self.apply([Change(table, key, None)])

    def compact(self) -> None:
        pass

    def close(self) -> None:
        pass
