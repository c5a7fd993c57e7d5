"""Tables in etcd, for clusters that outlive the machine of their control store.

A batch is one transaction; one that is too large for etcd is written down in pieces, declared whole by one key, and then brought into the
rows. Whoever opens the tables first finishes what was declared.

    apply ─┬─ fits ───────▶ rows
           └─ too large ──▶ batch/0, batch/1, ... ─▶ batch_pieces: durable ─▶ rows ... ─▶ batch/*, batch_pieces gone

Every transaction has two conditions:

- The **fence**: the key by which its writer was elected is still the one that was created at that time. A leader who has lost his lease
  writes nothing any more, whatever he believes.
- The **mark**: each transaction changes PREFIX/writer, and is done only if the one before it was the last. So a transaction whose answer
  was lost can be sent again, to another member, too, and is done once; one that arrives late, after later ones, is not done at all.

Measured on the development machine (one member, both cores busy with other work): 1.8 ms for one row of 600 bytes, 10-20 ms for 60, 170 ms
for 1,000; most of it is bytes through the gateway, so operations are nested rather than packed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import msgspec

from .etcd_client import EtcdClient, EtcdRefused, KeyValue, created_at, delete, end_of, fetch, put, value_is
from .etcd_rows import Keys, Operation, batch_pieces, operations, read_batch, rows, transactions
from .interface import Change, Deposed, StorageUnavailable

log = logging.getLogger("shoal.control_store")

#: Keys per answer while tables are read: 32 MiB at most.
SCAN_LIMIT = 64
#: Transactions between two compactions, which keep the values of the last so many.
COMPACT_EVERY = 5000


class Fence(msgspec.Struct):
    """The right to write: won in an election. ``holds`` is asked from the loop, and says whether the lease must still be there."""

    key: bytes
    #: When the key was created: the fencing number, higher with every leader.
    revision: int
    holds: Callable[[], bool]


class EtcdStorage:
    """Opening makes all earlier writers' transactions fail, finishes a large batch of theirs, and reads all rows: it blocks that long.

    Raises:
        Deposed: the fence is not the elected one's any more.
        StorageUnavailable: etcd does not answer.
    """

    is_remote = True

    def __init__(self, client: EtcdClient, prefix: str, fence: Fence) -> None:
        self._client = client
        self._keys = Keys(prefix)
        self._fence = fence
        self._count = 0
        self._mark = b""
        #: An attempt has failed: it may have been done, half done, or may still arrive.
        self._in_doubt = True
        #: etcd's revisions at the last compaction and now, and transactions since then.
        self._compacted_at = self._revision = self._written = 0
        #: All rows by table, until the first ``apply``: ``get`` and ``scan`` of a start ask nobody.
        self._ahead: dict[str, dict[bytes, bytes]] | None = None
        self._recover()
        self._ahead = self._read_ahead()

    def is_current(self) -> bool:
        return self._fence.holds()

    def get(self, table: str, key: bytes) -> bytes | None:
        if self._ahead is not None:
            return self._ahead.get(table, {}).get(key)
        row = self._keys.row(table, key)
        return next((change.value for change in rows(self._keys, self._range(row, end_of(row)))), None)

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        if self._ahead is not None:
            yield from self._ahead.get(table, {}).items()
            return
        start = self._keys.table(table)
        for _, key, value in rows(self._keys, self._range(start, end_of(start))):
            assert value is not None
            yield key, value

    def apply(self, changes: Sequence[Change]) -> None:
        self._ahead = None
        if self._in_doubt:
            self._recover()
        groups = list(transactions(operations(self._keys, changes)))
        if len(groups) == 1:
            self._write(groups[0])
        elif groups:
            self._write_down(changes)
            self._bring_in(groups)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.apply([Change(table, key, value)])

    def delete(self, table: str, key: bytes) -> None:
        self.apply([Change(table, key, None)])

    def compact(self) -> None:
        """Nothing: old values are dropped as transactions go by."""

    def close(self) -> None:
        self._client.close()

    # --- batches that are too large for one transaction

    def _write_down(self, changes: Sequence[Change]) -> None:
        pieces = batch_pieces(self._keys, changes)
        for group in transactions(pieces):
            self._write(group)
        self._write([put(self._keys.batch_pieces, b"%d" % len(pieces))])

    def _bring_in(self, groups: Sequence[list[Operation]]) -> None:
        for group in groups:
            self._write(group)
        self._write(self._batch_gone())

    def _batch_gone(self) -> list[Operation]:
        return [delete(self._keys.batch, end_of(self._keys.batch)), delete(self._keys.batch_pieces)]

    # --- one transaction

    def _recover(self) -> None:
        """Set a mark of our own, so that nothing from before can arrive any more; then see whether a large batch is unfinished."""
        self._in_doubt = True
        mark = self._next_mark()
        fence = created_at(self._fence.key, self._fence.revision)
        result = self._client.txn([fence], [put(self._keys.writer, mark), fetch(self._keys.batch_pieces)])
        if not result.succeeded:
            raise self._deposed()
        self._mark, self._in_doubt, self._revision = mark, False, result.header.revision
        self._compacted_at = self._compacted_at or self._revision
        if whole := result.rows(1):
            pieces = list(self._range(self._keys.batch, end_of(self._keys.batch)))[: int(whole[0].value)]
            self._bring_in(list(transactions(operations(self._keys, read_batch(pieces)))))
        else:
            self._write(self._batch_gone())

    def _read_ahead(self) -> dict[str, dict[bytes, bytes]]:
        tables: dict[str, dict[bytes, bytes]] = {}
        for table, key, value in rows(self._keys, self._range(self._keys.rows, end_of(self._keys.rows))):
            assert value is not None
            tables.setdefault(table, {})[key] = value
        return tables

    def _write(self, group: list[Operation]) -> None:
        mark = self._next_mark()
        self._in_doubt = True
        result = self._client.txn(
            [created_at(self._fence.key, self._fence.revision), value_is(self._keys.writer, self._mark)],
            [put(self._keys.writer, mark), *group],
            [fetch(self._fence.key), fetch(self._keys.writer)],
        )
        if not result.succeeded:
            elected, writer = result.rows(0), result.rows(1)
            if not elected or elected[0].create_revision != self._fence.revision:
                raise self._deposed()
            if not writer or writer[0].value != mark:  # else: done at the first attempt, whose answer was lost
                raise StorageUnavailable("An earlier transaction of this control store arrived late.")
        self._mark, self._in_doubt, self._revision = mark, False, result.header.revision
        self._written += 1
        if self._written >= COMPACT_EVERY:
            self._forget_old_values()

    def _forget_old_values(self) -> None:
        """Never a reason for a write to fail: it is tried again when as many have followed."""
        revision, self._compacted_at, self._written = self._compacted_at, self._revision, 0
        try:
            self._client.compact(revision)
        except (EtcdRefused, StorageUnavailable) as error:
            log.warning("etcd keeps values that nobody needs: %s", error)

    def _next_mark(self) -> bytes:
        self._count += 1
        return b"%d.%d" % (self._fence.revision, self._count)

    def _deposed(self) -> Deposed:
        return Deposed(f"Another control store has taken over: the election of revision {self._fence.revision} has ended.")

    def _range(self, start: bytes, end: bytes) -> Iterator[KeyValue]:
        more = True
        while more:
            found = self._client.range(start, end, limit=SCAN_LIMIT)
            yield from found.kvs
            more = found.more
            if more:
                start = found.kvs[-1].key + b"\0"
