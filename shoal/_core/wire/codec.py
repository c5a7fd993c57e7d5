"""Frames: bytes in, messages out. No socket in sight, so it can be fuzzed and replayed.

    frame = header | buffer lengths | body | raw buffers
    header          4 bytes magic and version, u32 length of the body, u16 number of raw buffers; little-endian
    buffer lengths  one u64 per raw buffer
    body            msgpack array of messages: all that one side had to say in one iteration of its loop
    raw buffers     bytes that are never copied into the message; they belong to the one message of their body

A frame that arrives in one piece is decoded where it lies; one that arrives in many is put together once, in memory of its own size.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from shoal._core.wire import messages as wire
from shoal._core.wire.messages import AnyMessage, Message

#: Rises with every change that an older peer would misread; the handshake compares it before any frame.
PROTOCOL_VERSION = 1
#: Bytes of one frame, header included. Larger values belong in the object store.
FRAME_LIMIT_BYTES = 1 << 30
#: Messages per frame at most: keeps a burst of large messages far below the limit and lets the receiver start early.
BATCH_LIMIT = 256

_MAGIC = b"shl"
_HEADER = struct.Struct("<IIH")
_HEADER_BYTES = _HEADER.size
_MAGIC_AND_VERSION = int.from_bytes(_MAGIC + bytes([PROTOCOL_VERSION]), "little")
#: Raw buffers per frame.
BUFFERS_LIMIT = 1024
#: Below this size a frame is copied rather than viewed: a slice of bytes costs 50 ns, a slice of a memoryview 130.
_SLICE_BYTES = 4096
#: Above this size an incomplete frame gets an anonymous map.
_MAP_BYTES = 256 * 1024
#: Below this size one joined write beats a vectored one (measured: two pieces cost about 0.5 us more in uvloop).
_JOIN_BYTES = 32 * 1024

Buffer = bytes | bytearray | memoryview

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[AnyMessage])
_NAMES = {cls.__struct_config__.tag: cls.__name__ for cls in get_args(wire.AnyMessage)}


class ProtocolError(Exception):
    """The peer sent what this protocol does not allow. The connection cannot go on."""


class VersionError(ProtocolError):
    """The peer speaks another version of the protocol."""


class FrameTooLarge(ProtocolError):
    """A frame is above the limit: received, or about to be sent."""


class Attached(msgspec.Struct, frozen=True):
    """A message with its raw buffers. Received buffers are read-only views of the frame and keep it alive."""

    message: Message
    buffers: tuple[Buffer, ...]


def encode(messages: Sequence[Message], buffers: Sequence[Buffer] = (), limit_bytes: int = FRAME_LIMIT_BYTES) -> list[Buffer]:
    """Encode one frame; return the pieces to write, in order. Buffers are passed on as they are and must not change until sent.

    With ``buffers`` there must be exactly one message. Raises FrameTooLarge above the limit, TypeError for a field that is not wire data.
    """
    if buffers:
        return _encode_attached(messages, buffers, limit_bytes)
    body = _encoder.encode(messages)
    nbytes = len(body)
    if nbytes + _HEADER_BYTES > limit_bytes:
        raise FrameTooLarge(_too_large(nbytes + _HEADER_BYTES, limit_bytes, messages))
    header = _HEADER.pack(_MAGIC_AND_VERSION, nbytes, 0)
    return [header + body] if nbytes < _JOIN_BYTES else [header, body]


def _encode_attached(messages: Sequence[Message], buffers: Sequence[Buffer], limit_bytes: int) -> list[Buffer]:
    if len(messages) != 1:
        raise ValueError(f"A frame with raw buffers holds exactly one message, got {len(messages)}.")
    if len(buffers) > BUFFERS_LIMIT:
        raise FrameTooLarge(f"A frame holds at most {BUFFERS_LIMIT} raw buffers, got {len(buffers)}.")
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    body = _encoder.encode(messages)
    header = _HEADER.pack(_MAGIC_AND_VERSION, len(body), len(views)) + struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    total = len(header) + len(body) + sum(view.nbytes for view in views)
    if total > limit_bytes:
        raise FrameTooLarge(_too_large(total, limit_bytes, messages))
    return [header + body, *(view for view in views if view.nbytes)]


def _too_large(nbytes: int, limit_bytes: int, messages: Sequence[Message]) -> str:
    names = ", ".join(sorted({type(message).__name__ for message in messages}))
    return f"A frame of {nbytes:,} bytes ({names}) is above the limit of {limit_bytes:,}. Put large values into the object store."


class FrameDecoder:
    """Turn a stream of bytes into messages, for one direction of one connection.

    After an exception the stream is lost and the decoder must not be used again.
    """

    __slots__ = ("_filled", "_head", "_limit", "_region")

    def __init__(self, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        #: The beginning of a frame, too short to tell its size.
        self._head = b""
        #: A frame that is not complete: memory of its size, of which ``_filled`` bytes have arrived.
        self._region: memoryview | None = None
        self._filled = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete frame: not 0 at the end of a stream means that it was cut off."""
        return len(self._head) + self._filled

    def feed(self, data: bytes) -> list[Message | Attached]:
        """Decode what ``data`` completed. Raises ProtocolError.

        The common case is one small frame per read, which costs about 0.3 us on top of msgpack.
        """
        if self._region is None and not self._head:
            nbytes = len(data)
            if _HEADER_BYTES <= nbytes < _SLICE_BYTES:
                magic, body_bytes, num_buffers = _HEADER.unpack_from(data)
                if body_bytes + _HEADER_BYTES == nbytes <= self._limit and not num_buffers and magic == _MAGIC_AND_VERSION:
                    return _decode(data[_HEADER_BYTES:])
        found: list[Message | Attached] = []
        rest = memoryview(data)
        if self._region is not None:
            rest = self._fill(self._region, rest, found)
        elif self._head:
            rest = memoryview(self._head + data)
            self._head = b""
        if rest.nbytes:
            self._split(rest, found)
        return found

    def _fill(self, region: memoryview, data: memoryview, found: list[Message | Attached]) -> memoryview:
        """Add ``data`` to the incomplete frame; return what does not belong to it."""
        take = min(data.nbytes, region.nbytes - self._filled)
        region[self._filled : self._filled + take] = data[:take]
        self._filled += take
        if self._filled == region.nbytes:
            self._region, self._filled = None, 0
            self._split(region, found)
        return data[take:]

    def _split(self, data: memoryview, found: list[Message | Attached]) -> None:
        """Decode all complete frames of ``data`` and keep the rest."""
        while data.nbytes:
            total, body_start, body_bytes = self._measure(data)
            if not total:
                self._head = bytes(data)
                return
            if data.nbytes < total:
                # Above some size an anonymous map: its pages appear as data arrives, so a lying header costs address space only.
                self._region = memoryview(bytearray(total) if total <= _MAP_BYTES else mmap.mmap(-1, total))
                self._region[: data.nbytes] = data
                self._filled = data.nbytes
                return
            body = _decode(data[body_start : body_start + body_bytes])
            found += body if body_start == _HEADER_BYTES else [_attach(body, data[:total], body_start, body_bytes)]
            data = data[total:]

    def _measure(self, data: memoryview) -> tuple[int, int, int]:
        """Return (bytes of the frame, where its body starts, bytes of the body); (0, 0, 0) if too little is there to tell."""
        if data.nbytes < _HEADER_BYTES:
            _check_magic(bytes(data[:4]))
            return 0, 0, 0
        magic, body_bytes, num_buffers = _HEADER.unpack_from(data)
        if magic != _MAGIC_AND_VERSION:
            _check_magic(bytes(data[:4]))
        if num_buffers > BUFFERS_LIMIT:
            raise ProtocolError(f"The peer announced a frame of {num_buffers} raw buffers; the limit is {BUFFERS_LIMIT}.")
        body_start = _HEADER_BYTES + 8 * num_buffers
        total = body_start + body_bytes
        if num_buffers and total <= self._limit:
            if data.nbytes < body_start:
                return 0, 0, 0
            total += sum(struct.unpack_from(f"<{num_buffers}Q", data, _HEADER_BYTES))
        if total > self._limit:
            raise FrameTooLarge(f"The peer announced a frame of {total:,} bytes; the limit is {self._limit:,}.")
        return total, body_start, body_bytes


def _attach(body: list[Any], frame: memoryview, body_start: int, body_bytes: int) -> Attached:
    """Pair the one message of the frame with views of its buffers. The frame's memory is used for nothing else, so nothing is copied."""
    if len(body) != 1:
        raise ProtocolError(f"A frame with raw buffers must hold exactly one message; the peer sent {len(body)}.")
    buffers = []
    at = body_start + body_bytes
    for length in struct.unpack_from(f"<{(body_start - _HEADER_BYTES) // 8}Q", frame, _HEADER_BYTES):
        buffers.append(frame[at : at + length].toreadonly())
        at += length
    return Attached(body[0], tuple(buffers))


def _check_magic(start: bytes) -> None:
    """Raise unless ``start`` can be the beginning of a frame."""
    if start[:3] != _MAGIC[: len(start[:3])]:
        raise ProtocolError(f"Expected a frame of shoal, got {start!r}. The stream is corrupt, or the peer does not speak this protocol.")
    if len(start) > 3 and start[3] != PROTOCOL_VERSION:
        raise VersionError(
            f"The peer sent a frame of protocol version {start[3]}; this process speaks {PROTOCOL_VERSION}. "
            "Use the same release of shoal in all processes of a cluster."
        )


def _decode(body: bytes | memoryview) -> list[Any]:
    try:
        return _decoder.decode(body)
    # Not only msgspec's errors: deep nesting ends in RecursionError, absurd lengths in MemoryError or OverflowError.
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise ProtocolError(f"Cannot decode {_culprit(body, str(error))}: {str(error) or type(error).__name__}") from error


def _culprit(body: bytes | memoryview, text: str) -> str:
    """Name the message that failed to decode, as well as can be told from what is left of it. For error texts only: slow."""
    try:
        raw = msgspec.msgpack.decode(body)
        index = int(text.partition("$[")[2].partition("]")[0])
        tag = raw[index][0]
    except Exception:  # anything may be wrong with it; the first error is the one that counts
        return f"a frame of {len(body):,} bytes"
    known = _NAMES.get(tag) if isinstance(tag, int) else None
    return f"message {index} of a frame, tag {tag!r} ({known or 'unknown'})"
