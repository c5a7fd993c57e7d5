"""Key-values per namespace: a small shared memory for libraries (`shoal.experimental.internal_kv`)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .instructions import Instruction
from .rows import KEY_VALUES, decode_key, encode
from .storage.interface import Change


class KeyValueStatistics(msgspec.Struct, frozen=True):
    keys: int
    nbytes: int


class KeyValueTable:
    def __init__(self) -> None:
        self._spaces: dict[str, dict[bytes, bytes]] = {}

    def get(self, namespace: str, key: bytes) -> bytes | None:
        return self._spaces.get(namespace, {}).get(key)

    def put(self, namespace: str, key: bytes, value: bytes, overwrite: bool) -> tuple[bool, list[Instruction]]:
        """Return whether the key is new, and what to write."""
        space = self._spaces.setdefault(namespace, {})
        added = key not in space
        if not added and not overwrite:
            return False, []
        space[key] = value
        return added, [Change(KEY_VALUES, encode((namespace, key)), value)]

    def delete(self, namespace: str, key: bytes) -> tuple[bool, list[Instruction]]:
        space = self._spaces.get(namespace, {})
        if key not in space:
            return False, []
        del space[key]
        if not space:
            del self._spaces[namespace]
        return True, [Change(KEY_VALUES, encode((namespace, key)), None)]

    def keys(self, namespace: str, prefix: bytes) -> list[bytes]:
        """List the keys that start with ``prefix``, sorted. O(keys of the namespace)."""
        return sorted(key for key in self._spaces.get(namespace, ()) if key.startswith(prefix))

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in rows:
            namespace, key = decode_key(name)
            self._spaces.setdefault(namespace, {})[key] = value

    def statistics(self) -> KeyValueStatistics:
        spaces = self._spaces.values()
        return KeyValueStatistics(sum(map(len, spaces)), sum(len(k) + len(v) for space in spaces for k, v in space.items()))

    def check(self) -> None:
        assert all(self._spaces.values()), "an empty namespace is kept"
