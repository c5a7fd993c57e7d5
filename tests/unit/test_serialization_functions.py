"""Functions by value, the user's serializers, and the search for what cannot be pickled."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading

import pytest

from shoal._base import runtime
from shoal._base.references import ObjectRef
from shoal._core.serialization import (
    deregister_serializer,
    deserialize,
    inspect_serializability,
    pickle_function,
    record,
    register_serializer,
    serialize,
    unpickle_function,
)


class Runtime:
    """Only what references need."""

    address = "here"

    def ref_added(self, object_id, owner):
        pass

    def ref_dropped(self, object_id):
        pass

    def ref_pickled(self, ref):
        record(ref)


@pytest.fixture
def rt():
    before = runtime.current_or_none()
    runtime.install(Runtime())
    yield
    runtime.install(before)


def ref(number=1):
    return ObjectRef(bytes([number]) * 28)


class Connection:
    """Something with a lock inside."""

    def __init__(self, url):
        self.url = url
        self.lock = threading.Lock()


def test_a_closure_goes_by_value_and_its_references_are_found(rt):
    one = ref()

    def f(x):
        return x, one

    blob, refs = pickle_function(f)
    assert refs == [one]
    assert unpickle_function(blob)(1) == (1, one)


def test_a_function_of_a_module_goes_by_reference():
    blob, refs = pickle_function(pickle.dumps)
    assert unpickle_function(blob) is pickle.dumps
    assert refs == []
    assert len(blob) < 100


def test_a_replaced_function_goes_by_value(monkeypatch):
    original = test_a_function_of_a_module_goes_by_reference
    monkeypatch.setattr(sys.modules[__name__], original.__name__, "what a decorator made of it")
    assert unpickle_function(pickle_function(original)[0]).__code__ == original.__code__


def test_a_class_and_a_recursive_function():
    class Counter:
        def __init__(self):
            self.n = 0

        def fact(self, n):
            return 1 if n == 0 else n * Counter().fact(n - 1)

    assert unpickle_function(pickle_function(Counter)[0])().fact(5) == 120


def test_the_variable_that_cannot_be_pickled_is_named():
    lock = threading.Lock()

    def f():
        return lock

    with pytest.raises(TypeError, match=r"Could not serialize the function .*f: cannot pickle '_thread.lock'") as caught:
        pickle_function(f)
    assert "closure variable lock" in str(caught.value)


# --- serializers of the user ----------------------------------------------------------------------------------------------------


@pytest.fixture
def registered():
    register_serializer(Connection, serializer=lambda c: c.url, deserializer=lambda url: Connection(url + "!"))
    yield
    deregister_serializer(Connection)


def test_a_registered_class_is_pickled_by_its_serializer(registered):
    assert deserialize(serialize([Connection("a")]).to_bytes())[0].url == "a!"
    connection = Connection("b")
    assert unpickle_function(pickle_function(lambda: connection.url)[0])() == "b!"


def test_reading_needs_no_registration(registered):
    data = serialize(Connection("a")).to_bytes()
    deregister_serializer(Connection)
    assert deserialize(data).url == "a!"
    with pytest.raises(TypeError):
        serialize(Connection("a"))
    deregister_serializer(Connection)  # once more: nothing happens


def test_the_users_own_pickle_and_deepcopy_are_not_affected(registered):
    with pytest.raises(TypeError):
        pickle.dumps(Connection("a"))
    with pytest.raises(TypeError):
        copy.deepcopy(Connection("a"))


def test_a_wrong_registration_is_refused():
    with pytest.raises(TypeError, match="expects a class"):
        register_serializer("str", serializer=str, deserializer=str)
    with pytest.raises(TypeError, match="must be callable"):
        register_serializer(Connection, serializer=None, deserializer=str)


# --- inspect_serializability ----------------------------------------------------------------------------------------------------


def test_an_object_that_can_be_sent():
    report = io.StringIO()
    assert inspect_serializability([1, 2], print_file=report) == (True, set())
    assert "Checking Serializability of [1, 2]" in report.getvalue()


def test_the_innermost_culprit_is_found():
    lock = threading.Lock()
    holder = {"a": [1, lock], "b": 2}
    report = io.StringIO()
    ok, failures = inspect_serializability(holder, name="holder", print_file=report)
    assert not ok
    (failure,) = failures
    assert failure.obj is lock
    assert failure.path == "holder['a'][1]"
    assert failure.parent is holder["a"]
    assert "holder['a'][1] = <unlocked" in report.getvalue()


def test_a_closure_and_an_attribute(capsys):
    connection = Connection("a")

    def f():
        return connection

    ok, failures = inspect_serializability(f)
    assert not ok
    assert {failure.obj for failure in failures} == {connection.lock}
    assert "closure variable connection.lock" in capsys.readouterr().out


def test_depth_limits_the_search():
    holder = [[[[threading.Lock()]]]]
    _, failures = inspect_serializability(holder, name="h", depth=1, print_file=io.StringIO())
    assert [failure.name for failure in failures] == ["h[0]"]


def test_a_circle_ends():
    holder = [threading.Lock()]
    holder.append(holder)
    assert inspect_serializability(holder, depth=10, print_file=io.StringIO())[0] is False
