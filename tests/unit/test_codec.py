"""The codec takes any bytes in any pieces, and answers with messages or ProtocolError, nothing else."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._core.wire import codec
from shoal._core.wire import messages as wire
from shoal._core.wire.codec import Attached, FrameDecoder, FrameTooLarge, ProtocolError, VersionError, encode

OWNER = wire.Address(b"w" * 16, b"n" * 16, "unix:/tmp/w.sock")
SAMPLES: list[wire.Message] = [
    wire.Ack(7),
    wire.Failed(8, "ValueError", "no", b"\x00"),
    wire.PushTask(b"t" * 24, 3, b"args", [wire.Dep(b"o" * 28, OWNER), wire.Dep(b"p" * 28, None, b"value")], attempt=2),
    wire.TaskDone(b"t" * 24, [wire.Value(wire.INLINE, b"x" * 50, 50, [wire.ObjectRefInfo(b"o" * 28, OWNER)])], 1234),
    wire.RequestLease(1, wire.Shape(b"j", (("CPU", 10000),), ("spread",), label_selector=(("zone", "a"),))),
    wire.KvValue(3, None),
    wire.PrepareBundles(4, b"g", {0: {"CPU": 10000}}),
]
#: Small enough that a corrupted length cannot slow the test down.
LIMIT = 1 << 20

messages = st.lists(st.sampled_from(SAMPLES), max_size=5)
frames = st.tuples(messages, st.just(())) | st.tuples(
    st.sampled_from(SAMPLES).map(lambda m: [m]), st.lists(st.binary(max_size=300), min_size=1, max_size=4).map(tuple)
)


def frame(batch: Sequence[wire.Message], buffers: Sequence[bytes] = ()) -> bytes:
    return b"".join(encode(batch, buffers))


def feed_pieces(data: bytes, cuts: list[int], limit_bytes: int = LIMIT) -> tuple[list[wire.Message | Attached], FrameDecoder]:
    decoder = FrameDecoder(limit_bytes)
    found: list[wire.Message | Attached] = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            found += decoder.feed(data[start:end])
    return found, decoder


def plain(found: Sequence[wire.Message | Attached]) -> list[object]:
    return [(m.message, [bytes(b) for b in m.buffers]) if isinstance(m, Attached) else m for m in found]


@given(st.lists(frames, max_size=6), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_split_gives_the_same_messages(sent: list[tuple[list[wire.Message], tuple[bytes, ...]]], cuts: list[int]) -> None:
    data = b"".join(frame(batch, buffers) for batch, buffers in sent)
    expected: list[object] = []
    for batch, buffers in sent:
        expected += [(batch[0], list(buffers))] if buffers else batch
    found, decoder = feed_pieces(data, cuts)
    assert plain(found) == expected
    assert decoder.pending_bytes == 0


@given(frames, st.data())
def test_truncated_frame_gives_nothing_and_stays_pending(sent: tuple[list[wire.Message], tuple[bytes, ...]], data: st.DataObject) -> None:
    whole = frame(*sent)
    cut = data.draw(st.integers(0, len(whole) - 1))
    found, decoder = feed_pieces(whole[:cut], [])
    assert found == []
    assert decoder.pending_bytes == cut


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=5))
def test_garbage_is_nothing_but_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    with_error(data, cuts)


@settings(max_examples=500)
@given(st.lists(frames, min_size=1, max_size=3), st.data(), st.lists(st.integers(0, 4000), max_size=5))
def test_mutated_frames_are_nothing_but_a_protocol_error(
    sent: list[tuple[list[wire.Message], tuple[bytes, ...]]], data: st.DataObject, cuts: list[int]
) -> None:
    raw = bytearray(b"".join(frame(batch, buffers) for batch, buffers in sent))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with_error(bytes(raw), cuts)


@given(st.binary(max_size=500))
def test_well_framed_garbage_is_nothing_but_a_protocol_error(body: bytes) -> None:
    with_error(struct.pack("<3sBIH", b"shl", codec.PROTOCOL_VERSION, len(body), 0) + body, [])


def with_error(data: bytes, cuts: list[int]) -> None:
    with contextlib.suppress(ProtocolError):
        feed_pieces(data, cuts)


@pytest.mark.parametrize(
    "body", [b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"\xc6\xff\xff\xff\xff", b"\x91\x91\xcf" + b"\xff" * 8, b"\x90\x90", b""]
)
def test_hostile_msgpack(body: bytes) -> None:
    decoder = FrameDecoder()
    with pytest.raises(ProtocolError):
        decoder.feed(struct.pack("<3sBIH", b"shl", codec.PROTOCOL_VERSION, len(body), 0) + body)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x80\x04\x95cos\nsystem\n", b"S", b"\0" * 10])
def test_strangers_are_named(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="does not speak this protocol"):
        FrameDecoder().feed(data)


def test_other_version_has_its_own_error() -> None:
    data = bytearray(frame([wire.Ack(1)]))
    data[3] += 1
    for piece in (bytes(data), bytes(data[:4])):
        with pytest.raises(VersionError, match=f"version {codec.PROTOCOL_VERSION + 1}; this process speaks {codec.PROTOCOL_VERSION}"):
            FrameDecoder().feed(piece)


def test_announced_size_above_the_limit_is_refused_before_it_arrives() -> None:
    with pytest.raises(FrameTooLarge, match="limit is 4,096"):
        FrameDecoder(4096).feed(struct.pack("<3sBIH", b"shl", codec.PROTOCOL_VERSION, 5000, 0))
    lengths = struct.pack("<2Q", 1 << 63, 1 << 63)
    with pytest.raises(FrameTooLarge):
        FrameDecoder().feed(struct.pack("<3sBIH", b"shl", codec.PROTOCOL_VERSION, 1, 2) + lengths)
    with pytest.raises(ProtocolError, match="65535 raw buffers"):
        FrameDecoder().feed(struct.pack("<3sBIH", b"shl", codec.PROTOCOL_VERSION, 1, 65535))


def test_encode_refuses_what_the_peer_would_refuse() -> None:
    with pytest.raises(FrameTooLarge, match="KvValue"):
        encode([wire.KvValue(1, b"x" * 5000)], limit_bytes=4096)
    with pytest.raises(FrameTooLarge):
        encode([wire.Ack(1)], [b"x" * 5000], limit_bytes=4096)
    with pytest.raises(ValueError, match="exactly one message"):
        encode([wire.Ack(1), wire.Ack(2)], [b"x"])


def test_failed_message_is_named() -> None:
    bad = msgspec.msgpack.encode([[1, 5], [62, b"t", "not a number", b""]])
    with pytest.raises(ProtocolError, match=r"message 1 of a frame, tag 62 \(PushTask\)"):
        FrameDecoder().feed(struct.pack("<3sBIH", b"shl", codec.PROTOCOL_VERSION, len(bad), 0) + bad)
    unknown = msgspec.msgpack.encode([[9999, 5]])
    with pytest.raises(ProtocolError, match=r"tag 9999 \(unknown\)"):
        FrameDecoder().feed(struct.pack("<3sBIH", b"shl", codec.PROTOCOL_VERSION, len(unknown), 0) + unknown)


def test_buffers_are_not_copied_into_messages() -> None:
    big = bytearray(1 << 20)
    pieces = encode([wire.Ack(1)], [big])
    assert isinstance(pieces[1], memoryview)
    assert pieces[1].obj is big


def test_large_frames_survive_the_next_ones() -> None:
    big = bytes(range(256)) * 8192
    data = frame([wire.Ack(1)], [big]) + frame([wire.Ack(2)], [b"small"])
    found, _ = feed_pieces(data, [5, 100_000, 1_500_000], codec.FRAME_LIMIT_BYTES)
    first, second = found
    assert isinstance(first, Attached)
    assert isinstance(second, Attached)
    assert bytes(first.buffers[0]) == big
    assert bytes(second.buffers[0]) == b"small"
    assert first.buffers[0].readonly  # type: ignore[union-attr]


def test_every_message_type_is_in_the_union_once() -> None:
    tags = [cls.__struct_config__.tag for cls in wire.Message.__subclasses__()]
    assert len(tags) == len(set(tags))
    assert set(tags) == set(codec._NAMES)
