"""The check of arguments at the caller gives Python's own errors, and the fast path never disagrees with it."""

from __future__ import annotations

import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._core.api.signatures import CallSignature


def accepts(signature: CallSignature, args: tuple, kwargs: dict) -> bool:
    if not kwargs and signature.low <= len(args) <= signature.high:
        return True
    try:
        signature.check(args, kwargs)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    "function",
    [
        lambda: 0,
        lambda a: 0,
        lambda a, b=1: 0,
        lambda *a: 0,
        lambda a, *b, c=1: 0,
        lambda a, *, c: 0,
        lambda a, /, b: 0,
        lambda **k: 0,
        lambda a, b=2, *c, d=3, **k: 0,
    ],
)
@given(count=st.integers(0, 4), names=st.sets(st.sampled_from("abcdz")))
def test_same_answer_as_a_direct_call(function, count, names):
    args, kwargs = tuple(range(count)), dict.fromkeys(names, 0)
    try:
        inspect.signature(function).bind(*args, **kwargs)
        expected = True
    except TypeError:
        expected = False
    assert accepts(CallSignature.of(function), args, kwargs) is expected


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((1, 2, 3), {}, "too many positional arguments"),
        ((), {}, "missing a required argument: 'a'"),
        ((1,), {"z": 2}, "got an unexpected keyword argument 'z'"),
        ((1,), {"a": 2}, "multiple values for argument 'a'"),
    ],
)
def test_texts(args, kwargs, text):
    with pytest.raises(TypeError, match=text):
        CallSignature.of(lambda a, b=1, *, c=2: 0).check(args, kwargs)


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no text")


UNSHOWABLE = Unshowable()


def test_the_error_names_the_callable_and_its_signature():
    def f(a, b=2, *, c=None, long="x" * 100, odd=UNSHOWABLE): ...

    signature = CallSignature.of(f, name="f")
    with pytest.raises(TypeError) as info:
        signature.check((), {})
    text = "f() missing a required argument: 'a'. Its signature is "
    assert str(info.value) == text + "f(a, b=2, *, c=None, long=..., odd=...)."
    with pytest.raises(TypeError) as info:  # the defaults stay at home
        pickle.loads(pickle.dumps(signature)).check((), {})
    assert str(info.value) == text + "f(a, b=..., *, c=..., long=..., odd=...)."


def test_self_is_left_out():
    class A:
        def method(self, a): ...

        def anything(*args): ...

    assert CallSignature.of(A.method, skip_first=True).parameters == [("a", 1, False)]
    assert CallSignature.of(A.anything, skip_first=True).high > 1000


def test_a_function_without_signature_takes_everything():
    CallSignature(None).check((1, 2), {"x": 3})
