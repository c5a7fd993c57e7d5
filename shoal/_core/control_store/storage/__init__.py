"""Where the control store's tables live.

Owns: durable tables of key -> bytes. Must not know: what the bytes mean. Runs in the process of the control store.
``interface`` is the contract (tested by ``shoal.testing.storage_contract``), ``sqlite`` the embedded default, ``memory`` for tests,
``etcd`` for clusters that outlive the machine of their control store (imported where it is used).
"""

from __future__ import annotations

from .interface import Change, Deposed, Storage, StorageUnavailable, TablesDamaged
from .memory import MemoryStorage
from .sqlite import SqliteStorage

__all__ = ["Change", "Deposed", "MemoryStorage", "SqliteStorage", "Storage", "StorageUnavailable", "TablesDamaged"]
