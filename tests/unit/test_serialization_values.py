"""Values as bytes and back: the layout, the fast paths, references inside, zero-copy reading."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import os
import pickle
import sys
import tempfile
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._base import runtime
from shoal._base.references import ObjectRef
from shoal._core.serialization import deserialize, deserialize_error, record, serialize, serialize_error
from shoal._core.serialization.capture import capture
from shoal._core.serialization.values import ALIGNMENT, KIND_BUFFERS, KIND_BYTES, KIND_PICKLE, RAW_BYTES_MIN


class Runtime:
    """Only what references need."""

    address = "here"

    def __init__(self):
        self.counts = collections.Counter()
        self.pinned = []

    def ref_added(self, object_id, owner):
        self.counts[object_id] += 1

    def ref_dropped(self, object_id):
        self.counts[object_id] -= 1

    def ref_pickled(self, ref):
        if not record(ref):
            self.pinned.append(ref.binary())


@pytest.fixture
def rt():
    fake = Runtime()
    before = runtime.current_or_none()
    runtime.install(fake)
    yield fake
    runtime.install(before)


def ref(number=1):
    return ObjectRef(bytes([number]) * 28)


def roundtrip(value):
    return deserialize(serialize(value).to_bytes())


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    y: object = None


Pair = collections.namedtuple("Pair", "a b")

VALUES = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    2j,
    "",
    "ü" * 10,
    b"",
    b"x" * (RAW_BYTES_MIN - 1),
    b"x" * RAW_BYTES_MIN,
    bytearray(b"abc"),
    [1, [2, (3, {4: {5}})]],
    frozenset({1, 2}),
    Color.RED,
    Point(1, Point(2)),
    Pair(1, 2),
    datetime.datetime(2024, 2, 29, 12),
    collections.OrderedDict(a=1),
    {"__main__": "a string that only looks like a module"},
    range(5),
    int,
    len,
    os.path.join,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_a_value_comes_back_equal_and_of_the_same_type(value):
    back = roundtrip(value)
    assert back == value
    assert type(back) is type(value)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=9000)
arrays = st.integers(0, 300).map(lambda n: np.arange(n, dtype=np.int16))
trees = st.recursive(scalars | arrays, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4))


def same(a, b):
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b) and a.dtype == b.dtype
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@given(trees)
def test_any_tree_survives_as_bytes_and_as_a_file(value):
    serialized = serialize(value)
    data = serialized.to_bytes()
    assert len(data) == serialized.nbytes
    assert same(value, deserialize(data))
    assert same(value, deserialize(memoryview(bytearray(data))))
    with tempfile.TemporaryFile() as file:
        serialized.write_to(file.fileno(), 4096)
        file.seek(4096)
        assert file.read() == data


def test_the_first_byte_tells_the_kind():
    assert serialize({"a": 1}).to_bytes()[0] == KIND_PICKLE
    assert serialize(np.arange(3)).to_bytes()[0] == KIND_BUFFERS
    assert serialize(bytes(RAW_BYTES_MIN)).to_bytes()[0] == KIND_BYTES
    with pytest.raises(ValueError, match="not a serialized value"):
        deserialize(b"\x07abc")


def test_a_bytes_value_is_not_copied_before_it_is_written():
    value = bytes(RAW_BYTES_MIN)
    assert serialize(value).pieces[1] is value


@pytest.mark.parametrize("size", [0, 1, 10, 1000, 100_000])
def test_arrays_of_any_size_come_back_read_only(size):
    back = roundtrip(np.arange(size))
    assert np.array_equal(back, np.arange(size))
    assert not back.flags.writeable


def test_arrays_point_into_the_view_aligned_and_keep_it_alive():
    value = {"a": np.arange(7, dtype=np.uint8), "b": np.arange(1000.0)}
    data = serialize(value).to_bytes()
    arena = np.zeros(len(data) + 64, np.uint8)  # stands for the store: its address is known and it may be written to
    start = -arena.ctypes.data % ALIGNMENT
    arena[start : start + len(data)] = np.frombuffer(data, np.uint8)
    view = memoryview(arena)[start : start + len(data)]
    references = sys.getrefcount(arena)
    back = deserialize(view)
    view.release()
    for array in back.values():
        assert np.shares_memory(array, arena)
        assert array.ctypes.data % ALIGNMENT == 0
        assert not array.flags.writeable
    part = back["b"][5:6]
    del back, array
    assert sys.getrefcount(arena) >= references  # the slice alone holds the view's memory
    assert part[0] == 5.0


def test_equal_arrays_inside_a_value_are_stored_once():
    array = np.arange(10_000)
    serialized = serialize([array, array])
    assert serialized.nbytes < 1.5 * array.nbytes
    first, second = deserialize(serialized.to_bytes())
    assert first is second


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], dtype=object),
        np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
        np.rec.array([(1, "a")], dtype=[("x", "i4"), ("y", "U1")]),
        np.arange(12).reshape(3, 4).T,
        np.arange(12)[::2],
        np.array(5),
        np.array(["a", "bc"]),
        np.array(["2024-01-01"], dtype="M8[D]"),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_unusual_arrays(array):
    back = roundtrip(array)
    assert np.array_equal(back, array)
    assert back.dtype == array.dtype
    assert type(back) is type(array)


def test_masked_arrays():
    array = np.ma.masked_array(np.arange(5), mask=[0, 1, 0, 0, 1])
    back = roundtrip(array)
    assert back.sum() == array.sum()
    assert list(back.mask) == list(array.mask)


def test_data_frames_and_arrow_tables_share_memory():
    pd = pytest.importorskip("pandas")
    pa = pytest.importorskip("pyarrow")
    data = serialize(pa.table({"x": np.arange(1000)})).to_bytes()
    buffer = deserialize(data)["x"].chunk(0).buffers()[1]
    begin = np.frombuffer(data, np.uint8).ctypes.data
    assert begin <= buffer.address < begin + len(data)
    frame = pd.DataFrame({"x": np.arange(1000), "s": ["a"] * 1000, "f": np.arange(1000.0)})
    back = roundtrip(frame)
    pd.testing.assert_frame_equal(back, frame)
    assert back.sum()["x"] == 499500


@pytest.mark.parametrize("kind", ["table", "batch"])
def test_a_slice_of_an_arrow_table_does_not_take_the_table_along(kind):
    pa = pytest.importorskip("pyarrow")
    data = {"x": np.arange(100_000), "s": [str(i) for i in range(100_000)]}
    whole = pa.table(data) if kind == "table" else pa.record_batch(data)
    part = whole.slice(70_000, 100)
    serialized = serialize({"part": part})
    assert serialized.nbytes < 10_000
    assert deserialize(serialized.to_bytes())["part"].equals(part)


def test_large_buffers_are_copied_into_a_mapping():
    source = np.arange(1 << 18)
    source.flags.writeable = False
    serialized = serialize([source, b"x" * (2 << 20), 1])
    target = bytearray(serialized.nbytes + 10)
    serialized.write_into(memoryview(target))
    assert target[: serialized.nbytes] == serialized.to_bytes()
    assert target[serialized.nbytes :] == bytes(10)
    references = sys.getrefcount(target)
    with pytest.raises(ValueError, match="equal size"):
        serialized.write_into(memoryview(target)[: 1 << 20])
    with pytest.raises(TypeError, match="read-only"):
        serialize(source).write_into(memoryview(bytes(3 << 20)))
    assert sys.getrefcount(target) == references
    target += b"x"  # no buffer is still exported


def test_a_write_longer_than_one_call_takes(monkeypatch):
    from shoal._core.serialization import values

    monkeypatch.setattr(values, "WRITE_BYTES", 1000)
    monkeypatch.setattr(values, "_WRITE_PIECES", 3)
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, offset: real(fd, [memoryview(b"".join(parts))[:700]], offset))
    value = [np.arange(n) for n in (5, 3000, 1, 0, 77)] + [b"abc" * 5000]
    serialized = serialize(value)
    with tempfile.TemporaryFile() as file:
        serialized.write_to(file.fileno(), 10)
        file.seek(10)
        assert file.read() == serialized.to_bytes()


# --- by value or by reference ---------------------------------------------------------------------------------------------------


def test_lambdas_closures_and_local_classes_go_by_value():
    n = 5

    class Local:
        def get(self):
            return n

    assert roundtrip(lambda x: x + n)(1) == 6
    assert roundtrip([Local()])[0].get() == 5
    assert roundtrip(functools.partial(lambda a, b: a - b, 10))(3) == 7


def test_a_class_of_main_goes_by_value(monkeypatch):
    main = sys.modules["__main__"]
    cls = type("OnlyInMain", (), {"__module__": "__main__", "answer": lambda self: 42})
    monkeypatch.setattr(main, "OnlyInMain", cls, raising=False)
    data = serialize({"x": [cls()]}).to_bytes()
    monkeypatch.delattr(main, "OnlyInMain")
    assert deserialize(data)["x"][0].answer() == 42


def test_a_function_of_a_module_goes_by_reference():
    assert roundtrip(roundtrip) is roundtrip


def test_a_recursive_structure():
    value = [1]
    value.append(value)
    back = roundtrip(value)
    assert back[1] is back


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(TypeError, match="Could not serialize the value") as caught:
        serialize({"deep": [1, Point(2, threading.Lock())]})
    assert ".y = <unlocked _thread.lock" in str(caught.value)


def test_an_error_of_the_users_getstate_is_not_disguised():
    class Odd:
        def __getstate__(self):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        serialize(Odd())


def test_too_deep_a_value_is_a_type_error():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(TypeError, match="recursion"):
        serialize(value)
    while value:
        value = value.pop()


# --- references inside ----------------------------------------------------------------------------------------------------------


def test_references_inside_a_value_are_captured(rt):
    first, second = ref(1), ref(2)
    serialized = serialize({"a": [first, (second, first)], first: 1})
    assert set(serialized.refs) == {first, second}
    assert rt.pinned == []
    back = deserialize(serialized.to_bytes())
    assert back["a"][0] == first
    assert back["a"][0].owner_address() == "here"


def test_references_in_closures_and_by_value_classes_are_captured_once(rt):
    one = ref()
    assert serialize(lambda: one).refs == [one]


def test_a_pickle_outside_of_shoal_is_not_captured(rt):
    pickle.dumps(ref())
    assert rt.pinned == [b"\x01" * 28]
    with capture() as refs:
        pickle.dumps(ref(2))
    assert refs == [ref(2)]


def test_captures_nest(rt):
    inner, outer = ref(1), ref(2)

    class Puts:
        def __reduce__(self):
            assert serialize([inner]).refs == [inner]
            return str, ()

    assert serialize([Puts(), outer]).refs == [outer]


def test_a_reference_in_an_exception_is_pinned(rt):
    blob = serialize_error(ValueError(ref()), function_name="f", pid=1, ip="i", attempt=1, max_attempts=1)
    assert rt.pinned == [b"\x01" * 28]
    assert deserialize_error(blob).cause.args == (ref(),)


def test_a_failed_capture_ends(rt):
    with pytest.raises(TypeError):
        serialize([ref(), threading.Lock()])
    assert record(ref()) is False


def test_ten_thousand_references(rt):
    refs = [ObjectRef(number.to_bytes(28, "little")) for number in range(10_000)]
    serialized = serialize(refs)
    assert serialized.refs == refs
    assert deserialize(serialized.to_bytes()) == refs
