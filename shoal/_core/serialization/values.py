"""The binary form of a value, and back.

The first byte tells the kind:

    0x80   a pickle (its own first byte): nothing inside needs a buffer
    0x01   a pickle with buffers:
               u8 kind | 3 x pad | u32 count | u64 nbytes of pickle | count x (u64 offset, u64 nbytes) | pickle | pad | buffer | pad | ...
           little-endian; offsets count from the first byte of the value and are multiples of 64, so that arrays stay aligned in
           memory; the top bit of a buffer's nbytes marks it private: its reader must be able to write to it, without effect on others
    0x02   bytes as they are

Reading copies no buffer: arrays point into the view that is given, and keep it alive.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

from shoal._base.references import ObjectRef

from .copying import copy_into
from .inspect import describe, short
from .pickling import PROTOCOL, UNPICKLABLE, Pickled, pickle_value

KIND_PICKLE, KIND_BUFFERS, KIND_BYTES = 0x80, 0x01, 0x02
ALIGNMENT = 64
#: From this size bytes are written as they are; below it, pickling them costs no more.
RAW_BYTES_MIN = 4096
#: One write at most: the kernel holds the file's lock meanwhile, and a signal can be handled between two.
WRITE_BYTES = 64 << 20
_WRITE_PIECES = 512  # Linux takes 1024 at once
_PRIVATE = 1 << 63
_HEADER = struct.Struct("<B3xIQ")
_ENTRY = struct.Struct("<QQ")
#: Values of exactly these types hold neither references nor code.
SCALARS = frozenset({int, float, bool, str, bytes, type(None)})

Piece = bytes | memoryview


class Serialized:
    """A value in pieces that still point into the user's arrays: write it out before the user can change them."""

    __slots__ = ("nbytes", "pieces", "refs")

    def __init__(self, pieces: list[Piece], nbytes: int, refs: list[ObjectRef[Any]]) -> None:
        self.pieces = pieces
        #: Of the contiguous form.
        self.nbytes = nbytes
        #: References pickled inside the value.
        self.refs = refs

    def to_bytes(self) -> bytes:
        """Return the contiguous form. Copies only if there are buffers."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], bytes):
            return self.pieces[0]
        return b"".join(self.pieces)

    def write_into(self, target: memoryview) -> None:
        """Copy the contiguous form to the beginning of a writable mapping; twice as fast as ``write_to`` into the same memory file."""
        position = 0
        for piece in self.pieces:
            copy_into(target[position : position + len(piece)], piece)
            position += len(piece)

    def write_to(self, fd: int, offset: int) -> None:
        """Write the contiguous form into a file at ``offset``; blocks without the GIL. OSError if the file takes no more."""
        batch: list[Piece] = []
        size = 0
        for piece in self.pieces:
            for start in range(0, len(piece), WRITE_BYTES):
                part = piece if len(piece) <= WRITE_BYTES else memoryview(piece)[start : start + WRITE_BYTES]
                if size + len(part) > WRITE_BYTES or len(batch) == _WRITE_PIECES:
                    _write_all(fd, batch, offset)
                    offset += size
                    batch, size = [], 0
                batch.append(part)
                size += len(part)
        _write_all(fd, batch, offset)


def serialize(value: Any) -> Serialized:
    """Turn a value into its binary form, with the references inside it. TypeError says which part cannot be pickled."""
    kind = type(value)
    if kind in SCALARS:
        if kind is bytes and len(value) >= RAW_BYTES_MIN:
            return Serialized([b"\x02", value], len(value) + 1, [])
        data = pickle.dumps(value, PROTOCOL)
        return Serialized([data], len(data), [])
    try:
        return assemble(pickle_value(value))
    except (*UNPICKLABLE, RecursionError) as error:
        raise TypeError(f"Could not serialize the value {short(value)}: {error}\n{describe(value, 'value')}") from error


def deserialize(data: bytes | memoryview, writable_view: Callable[[], memoryview] | None = None) -> Any:
    """Return the value. Its arrays are read-only views of ``data`` and keep ``data.obj`` alive.

    Args:
        data: the contiguous form.
        writable_view: called at most once, and only if the value has private buffers (tensors). Returns a view of the same range that may
            be written to without others seeing it (a MAP_PRIVATE mapping), and that keeps the range in place as ``data`` does. None:
            such buffers are copied.
    """
    kind = data[0]
    if kind == KIND_PICKLE:
        return pickle.loads(data)
    if kind == KIND_BYTES:
        return bytes(data[1:])
    if kind != KIND_BUFFERS:
        raise ValueError(f"This is not a serialized value: its first byte is {kind:#x}; expected 0x80, 0x1 or 0x2.")
    view = memoryview(data).toreadonly()
    writable: memoryview | None = None
    _, count, pickle_nbytes = _HEADER.unpack_from(view)
    begin = _HEADER.size + count * _ENTRY.size
    buffers: list[Any] = []
    for offset, nbytes in _ENTRY.iter_unpack(view[_HEADER.size : begin]):
        if nbytes & _PRIVATE:
            end = offset + nbytes - _PRIVATE
            if writable is None and writable_view is not None:
                writable = writable_view()
            buffers.append(bytearray(view[offset:end]) if writable is None else writable[offset:end])
        else:
            buffers.append(view[offset : offset + nbytes])
    return pickle.loads(view[begin : begin + pickle_nbytes], buffers=buffers)


def assemble(pickled: Pickled) -> Serialized:
    """Lay out a pickle and its buffers."""
    data, buffers, private, refs = pickled
    if not buffers:
        return Serialized([data], len(data), refs)
    position = _HEADER.size + len(buffers) * _ENTRY.size + len(data)
    head = bytearray(_HEADER.pack(KIND_BUFFERS, len(buffers), len(data)))
    tail: list[Piece] = []
    for buffer in buffers:
        view = buffer.raw()
        padding = -position % ALIGNMENT
        position += padding
        is_private = private and any(buffer is other for other in private)
        head += _ENTRY.pack(position, view.nbytes | _PRIVATE if is_private else view.nbytes)
        if padding:
            tail.append(bytes(padding))
        tail.append(view)
        position += view.nbytes
    return Serialized([bytes(head), data, *tail], position, refs)


def _write_all(fd: int, pieces: list[Piece], offset: int) -> None:
    while pieces:
        written = os.pwritev(fd, pieces, offset)
        if not written and any(map(len, pieces)):
            raise OSError(f"Writing a value at offset {offset} made no progress; the file takes no more.")
        offset += written
        while pieces and written >= len(pieces[0]):
            written -= len(pieces.pop(0))
        if pieces:
            pieces[0] = memoryview(pieces[0])[written:]
