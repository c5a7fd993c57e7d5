"""Rows as keys of etcd, and batches of changes as transactions within its limits. Pure.

    PREFIX/rows/TABLE/KEY IN HEX/PIECE    a value in pieces of 512 KiB; hex keeps the order of keys, and a key apart from those it begins
    PREFIX/batch/PIECE                    a batch that is too large for one transaction, until all of it is in the rows
    PREFIX/batch_pieces                   how many pieces it has: with this key the batch is durable as a whole
    PREFIX/writer                         changed by every transaction: see ``etcd.py``

etcd's limits, as it is delivered: 1.5 MiB per request, and 128 operations on the way from the root of a transaction to a leaf. Transactions
nest, so a thousand rows of a few hundred bytes are still one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from .etcd_client import KeyValue, delete, end_of, nested, put
from .interface import Change

#: Bytes of a value per key, and of a large batch per piece. Two fit a transaction.
PIECE_BYTES = 512 << 10
#: Bytes of keys and values per transaction.
LIMIT_BYTES = 1 << 20
#: Operations per nested transaction, and nested transactions per transaction: their sum is less than 128.
INNER, OUTER = 64, 60
#: Bytes that an operation takes beside its key and value.
_OVERHEAD = 32

Operation = dict[str, Any]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Change]).decode


class Keys:
    """Names of everything that one cluster has in etcd."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.leader = self.prefix + b"/leader"
        self.candidates = self.prefix + b"/candidates/"
        self.rows = self.prefix + b"/rows/"
        self.writer = self.prefix + b"/writer"
        self.batch = self.prefix + b"/batch/"
        self.batch_pieces = self.prefix + b"/batch_pieces"

    def table(self, table: str) -> bytes:
        return b"%s%s/" % (self.rows, table.encode())

    def row(self, table: str, key: bytes) -> bytes:
        return b"%s%s/" % (self.table(table), key.hex().encode())

    def batch_piece(self, number: int) -> bytes:
        return self.batch + _number(number)


def operations(keys: Keys, changes: Iterable[Change]) -> list[Operation]:
    """Return what makes the changes, each row once: of two changes of one row the later counts."""
    found: list[Operation] = []
    for (table, key), value in {(table, key): value for table, key, value in changes}.items():
        row = keys.row(table, key)
        if value is None:
            found.append(delete(row, end_of(row)))
            continue
        pieces = _pieces(value)
        found += (put(row + _number(number), piece) for number, piece in enumerate(pieces))
        found.append(delete(row + _number(len(pieces)), end_of(row)))  # the value before it may have been longer
    return found


def transactions(found: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Cut operations into as few transactions as the limits allow; an operation alone is never over them."""
    group: list[Operation] = []
    size = 0
    for operation in found:
        nbytes = _size(operation)
        if group and (size + nbytes > LIMIT_BYTES or len(group) == INNER * OUTER):
            yield _nest(group)
            group, size = [], 0
        group.append(operation)
        size += nbytes
    if group:
        yield _nest(group)


def rows(keys: Keys, found: Iterable[KeyValue]) -> Iterator[Change]:
    """Put pieces, in the order of their keys, together to rows."""
    start = len(keys.rows)
    current, pieces = b"", list[bytes]()
    for item in found:
        name, _, _ = item.key[start:].rpartition(b"/")
        if name != current and pieces:
            yield _row(current, pieces)
            pieces = []
        current = name
        pieces.append(item.value)
    if pieces:
        yield _row(current, pieces)


def batch_pieces(keys: Keys, changes: Sequence[Change]) -> list[Operation]:
    """Return what writes a batch down as one value in pieces."""
    return [put(keys.batch_piece(number), piece) for number, piece in enumerate(_pieces(_encode(list(changes))))]


def read_batch(pieces: Iterable[KeyValue]) -> list[Change]:
    return _decode(b"".join(piece.value for piece in pieces))


def _row(name: bytes, pieces: list[bytes]) -> Change:
    table, _, key = name.decode().partition("/")
    return Change(table, bytes.fromhex(key), b"".join(pieces))


def _pieces(value: bytes) -> list[bytes]:
    if len(value) <= PIECE_BYTES:
        return [bytes(value)]
    return [value[start : start + PIECE_BYTES] for start in range(0, len(value), PIECE_BYTES)]


def _number(number: int) -> bytes:
    return b"%08x" % number


def _size(operation: Operation) -> int:
    ((_, request),) = operation.items()
    return _OVERHEAD + len(request["key"]) + len(request.get("value", b"")) + len(request.get("range_end", b""))


def _nest(group: list[Operation]) -> list[Operation]:
    if len(group) <= INNER:
        return group
    return [nested(group[start : start + INNER]) for start in range(0, len(group), INNER)]
