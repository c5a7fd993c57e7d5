"""The arguments of a call as bytes: references at top level become dependencies."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._base import runtime
from shoal._base.references import ObjectRef
from shoal._core.serialization import Serialized, deserialize_args, record, serialize_args


class Runtime:
    """Only what references need."""

    address = "here"

    def ref_added(self, object_id, owner):
        pass

    def ref_dropped(self, object_id):
        pass

    def ref_pickled(self, ref):
        record(ref)


@pytest.fixture(autouse=True)
def rt():
    before = runtime.current_or_none()
    runtime.install(Runtime())
    yield
    runtime.install(before)


def ref(number=1):
    return ObjectRef(bytes([number]) * 28)


def there_and_back(*args, **kwargs):
    data, deps, _ = serialize_args(args, kwargs)
    return deserialize_args(data.to_bytes() if isinstance(data, Serialized) else data, [f"value of {dep.hex()[:2]}" for dep in deps])


def test_no_arguments_cost_nothing():
    assert serialize_args((), {}) is serialize_args((), {})
    assert there_and_back() == ([], {})


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1, "a", None), {}), (([1], (2,)), {}), ((), {"k": 1}), ((1,), {"k": [2]}), (((),), {}), (([[], {}, []],), {}), ((b"x" * 9000,), {})],
)
def test_arguments_come_back(args, kwargs):
    assert there_and_back(*args, **kwargs) == (list(args), kwargs)


def test_references_at_top_level_are_replaced_by_their_values():
    assert there_and_back(ref(1), 2, ref(3)) == (["value of 01", 2, "value of 03"], {})
    assert there_and_back(1, a=ref(1), b=2, c=ref(1)) == ([1], {"a": "value of 01", "b": 2, "c": "value of 01"})
    assert there_and_back(ref(1), [1], k=ref(2)) == (["value of 01", [1]], {"k": "value of 02"})


def test_the_callers_arguments_are_not_touched():
    kwargs = {"a": ref(1)}
    serialize_args((), kwargs)
    assert kwargs == {"a": ref(1)}


def test_references_inside_arguments_are_not_dependencies():
    data, deps, refs = serialize_args((ref(1), [ref(2)], {"k": ref(3)}), {"x": (ref(4),)})
    assert deps == [ref(1)]
    assert refs == [ref(2), ref(3), ref(4)]
    assert deserialize_args(data, ["one"]) == (["one", [ref(2)], {"k": ref(3)}], {"x": (ref(4),)})


def test_a_missing_dependency_is_an_error():
    data, _, _ = serialize_args((ref(1), ref(2)), {})
    with pytest.raises(ValueError, match="zip"):
        deserialize_args(data, ["only one"])


def test_arrays_stay_out_of_the_pickle():
    array = np.arange(10_000)
    data, _, _ = serialize_args((array,), {"k": 1})
    assert isinstance(data, Serialized)
    (back,), _ = deserialize_args(data.to_bytes())
    assert np.array_equal(back, array)
    assert not back.flags.writeable


@given(st.lists(st.integers() | st.text() | st.lists(st.integers())), st.dictionaries(st.text(), st.integers() | st.lists(st.none())))
def test_any_arguments(args, kwargs):
    assert deserialize_args(serialize_args(tuple(args), kwargs).data) == (args, kwargs)


def test_the_argument_that_cannot_be_pickled_is_named():
    with pytest.raises(TypeError, match=r"Could not serialize the argument .*lock.* \(argument 1\) for a task or actor mod.f"):
        serialize_args((1, threading.Lock()), {}, "mod.f")
    with pytest.raises(TypeError, match=r"\(config\) for a task or actor") as caught:
        serialize_args((), {"config": {"inner": [threading.Lock()]}})
    assert "config['inner'][0] = <unlocked" in str(caught.value)
