"""What a task raised, as bytes, and what get raises."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import threading

import pytest

from shoal._core.serialization import deserialize_error, serialize_error, serialize_system_error
from shoal.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError


def sent(exc, function_name="mod.f", **facts):
    """Raise ``exc`` as a task would, and return what get raises."""
    try:
        raise exc
    except BaseException as raised:
        return deserialize_error(
            serialize_error(raised, function_name=function_name, pid=7, ip="10.0.0.1", attempt=1, max_attempts=4, **facts)
        )


class TwoArguments(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class KeywordOnly(ValueError):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code, more):
        self.code = code


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    more: int = 0


class OwnReduce(Exception):
    def __init__(self, a, b):
        super().__init__(a, b)
        self.b = b

    def __reduce__(self):
        return OwnReduce, (self.args[0], self.b)


class WrongReduce(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.code = 5

    def __reduce__(self):
        return WrongReduce, self.args


class OwnNew(Exception):
    def __new__(cls, a, b):
        self = super().__new__(cls, a)
        self.code = a + b
        return self

    def __init__(self, a, b):
        super().__init__(a)


class OsSubclass(OSError):
    def __init__(self, path, extra):
        super().__init__(2, "not there", path)
        self.extra = extra


@pytest.mark.parametrize(
    ("exc", "attributes"),
    [
        (ValueError("x"), {}),
        (TwoArguments(5, "t"), {"code": 5}),
        (KeywordOnly(code=5), {"code": 5}),
        (Slotted(5, 6), {"code": 5}),
        (Frozen(5), {"code": 5}),
        (OwnReduce(1, 2), {"b": 2}),
        (WrongReduce(1, 2), {}),
        (OwnNew(2, 3), {"code": 5}),
        (OsSubclass("/p", 1), {"extra": 1, "filename": "/p", "errno": 2}),
        (KeyboardInterrupt(), {}),
        (SystemExit(3), {"code": 3}),
        (json.JSONDecodeError("m", "doc", 1), {"pos": 1}),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), {"reason": "why"}),
        (ImportError("m", name="n", path="p"), {"name": "n", "path": "p"}),
        (NameError("m", name="n"), {"name": "n"}),
        (ExceptionGroup("g", [TwoArguments(1, "a"), ValueError("b")]), {"message": "g"}),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_users_class_arrives_with_its_attributes(exc, attributes):
    error = sent(exc)
    assert isinstance(error, type(exc))
    assert isinstance(error, RayTaskError)
    assert type(error.cause) is type(exc)
    assert str(error.cause) == str(exc)
    assert error.cause.args == exc.args or isinstance(exc, BaseExceptionGroup)
    for name, value in attributes.items():
        assert getattr(error, name) == value
        assert getattr(error.cause, name) == value


def test_members_of_a_group_arrive_whole():
    error = sent(ExceptionGroup("g", [TwoArguments(1, "a"), ExceptionGroup("h", [KeywordOnly(code=2)])]))
    assert error.cause.exceptions[0].code == 1
    assert error.cause.exceptions[1].exceptions[0].code == 2


def test_a_local_class_and_one_from_main():
    class Local(Exception):
        def __init__(self, a, b):
            super().__init__(a)
            self.b = b

    assert sent(Local(1, 2)).b == 2
    in_main = type("InMain", (Exception,), {"__module__": "__main__"})
    error = sent(in_main("x"))
    assert type(error).__name__ == "RayTaskError(InMain)"


def test_the_text_shows_the_users_frames_and_where_it_ran():
    def user_function():
        raise ValueError("x is 5")

    try:
        user_function()
    except ValueError as raised:
        data = serialize_error(raised, function_name="mod.f", pid=7, ip="10.0.0.1", attempt=2, max_attempts=4)
    text = str(deserialize_error(data))
    assert text.startswith("Traceback (most recent call last):\n")
    assert 'raise ValueError("x is 5")' in text
    assert text.endswith("ValueError: x is 5\n    in task mod.f (pid=7, ip=10.0.0.1), attempt 2 of 4")


@pytest.mark.parametrize(
    ("attempt", "max_attempts", "end"),
    [(1, 0, "ip=i)"), (2, 0, "ip=i), attempt 2"), (1, 4, "ip=i), attempt 1 of 4"), (1, -1, "ip=i), attempt 1 of any number")],
)
def test_the_attempt_is_told_where_it_says_something(attempt, max_attempts, end):
    data = serialize_error(ValueError("x"), function_name="f", pid=1, ip="i", attempt=attempt, max_attempts=max_attempts)
    assert str(deserialize_error(data)).endswith(end)


def test_frames_of_the_runtime_are_removed():
    from shoal._core.serialization import pickle_function

    try:
        pickle_function(threading.Lock())
    except TypeError as raised:
        text = str(deserialize_error(serialize_error(raised, function_name="f", pid=1, ip="i", attempt=1, max_attempts=1)))
    assert "test_serialization_errors.py" in text
    assert "_core/serialization" not in text


def test_causes_context_and_notes_are_kept():
    try:
        try:
            raise TwoArguments(5, "first")
        except TwoArguments as first:
            second = KeyError("second")
            second.add_note("a note")
            raise second from first
    except KeyError as raised:
        error = sent(raised)
    assert error.cause.__cause__.code == 5
    assert error.cause.__context__ is error.cause.__cause__
    assert error.cause.__notes__ == ["a note"]
    text = str(error)
    assert text.index("first") < text.index("direct cause") < text.index("second") < text.index("a note") < text.index("in task")


def test_a_circular_chain():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    cause = sent(one).cause
    assert cause.__cause__.__cause__ is cause


def test_an_exception_as_attribute():
    outer = ValueError("outer")
    outer.inner = TwoArguments(5, "t")
    assert sent(outer).inner.code == 5


@pytest.mark.parametrize("where", ["attribute", "argument", "cause"])
def test_a_cause_that_cannot_be_pickled_arrives_as_text(where):
    exc = ValueError("the text", *([threading.Lock()] if where == "argument" else []))
    if where == "attribute":
        exc.lock = threading.Lock()
    if where == "cause":
        exc.__cause__ = ValueError(threading.Lock())
    error = sent(exc)
    assert type(error) is RayTaskError
    assert type(error.cause) is RayError
    assert "the text" in str(error.cause)
    assert "the text" in str(error)
    assert (error.function_name, error.pid, error.ip, error.proctitle) == ("mod.f", 7, "10.0.0.1", "shoal::mod.f()")


def test_a_class_that_is_not_there_in_the_reader(monkeypatch):
    module = type(sys)("a_module_of_the_worker")
    cls = type("Theirs", (Exception,), {"__module__": module.__name__})
    module.Theirs = cls
    monkeypatch.setitem(sys.modules, module.__name__, module)
    try:
        raise cls("the text")
    except cls as raised:
        data = serialize_error(raised, function_name="f", pid=1, ip="i", attempt=1, max_attempts=1)
    monkeypatch.delitem(sys.modules, module.__name__)
    error = deserialize_error(data)
    assert type(error) is RayTaskError
    assert "the text" in str(error.cause)
    assert "ModuleNotFoundError" in str(error.cause)


def test_str_that_raises():
    class Rude(Exception):
        def __str__(self):
            raise ZeroDivisionError

    assert isinstance(sent(Rude()), Rude)


def test_the_error_of_a_dependency_keeps_its_cause():
    first = sent(TwoArguments(5, "deep"), "mod.first")
    second = sent(first, "mod.second")
    third = sent(second, "mod.third")
    assert isinstance(third, TwoArguments)
    assert type(third.cause) is TwoArguments
    assert third.code == 5
    text = str(third)
    assert text.index("deep") < text.index("in task mod.first") < text.index("in task mod.second") < text.index("in task mod.third")
    assert text.count("Traceback") == 1


def test_an_error_raised_from_the_error_of_another_task():
    try:
        raise RuntimeError("outer") from sent(TwoArguments(5, "inner"), "mod.first")
    except RuntimeError as raised:
        error = sent(raised, "mod.second")
    assert isinstance(error, RuntimeError)
    assert isinstance(error.cause.__cause__, TwoArguments)
    assert error.cause.__cause__.code == 5


@pytest.mark.parametrize("exc", [GetTimeoutError("late"), ObjectLostError("ab", "gone"), ValueError("x")])
def test_system_errors_are_raised_as_they_are(exc):
    exc.add_note("n")
    error = deserialize_error(serialize_system_error(exc))
    assert type(error) is type(exc)
    assert str(error) == str(exc)
    assert error.__notes__ == ["n"]


def test_an_error_of_shoal_raised_by_user_code_is_a_task_error_too():
    error = sent(GetTimeoutError("late"))
    assert isinstance(error, GetTimeoutError)
    assert isinstance(error, RayTaskError)
    assert isinstance(error, TimeoutError)


def test_what_get_raises_can_be_pickled_again():
    error = sent(TwoArguments(5, "t"), actor_repr="A()")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert back.code == 5
    assert str(back) == str(error)
