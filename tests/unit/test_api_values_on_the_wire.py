"""What the other side could not read is refused where it was written: an unreadable message would end the connection."""

from __future__ import annotations

import pickle

import pytest

import shoal
from shoal import cloudpickle
from shoal._core.api.wire_check import checked_record
from shoal._core.wire.messages import PlacementGroupSpec
from shoal.runtime_env import RuntimeEnv


def group(**changes):
    fields = {"placement_group_id": b"g", "job_id": b"j", "bundles": [{"CPU": 1}], "strategy": "PACK", **changes}
    return PlacementGroupSpec(**fields)


def test_a_good_record_comes_back_as_it_is():
    record = group(name="a")
    assert checked_record(record, "it") is record


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": 3}, TypeError, "wrong type"),
        ({"bundles": [{"CPU": 10**30}]}, ValueError, "too large"),
        ({"name": "\udc80"}, ValueError, "characters"),
    ],
)
def test_a_bad_record_says_whose_value_it_is(changes, error, words):
    with pytest.raises(error, match=f"options of f.*{words}|{words}.*options of f"):
        checked_record(group(**changes), "the options of f")


@pytest.mark.parametrize("make", [lambda name: shoal.remote(name=name)(len), lambda name: shoal.remote(len).options(name=name)])
def test_a_task_name_must_be_text_that_can_be_sent(make):
    with pytest.raises(ValueError, match="UTF-8"):
        make("\udc80")


def test_references_as_plain_identifiers_need_no_session():
    binary = bytes(range(28))
    ref = shoal.ObjectRef(binary)
    assert shoal.ObjectRef.from_binary(binary) == ref == shoal.ObjectRef.from_hex(binary.hex()) == pickle.loads(pickle.dumps(ref))
    assert (ref.binary(), ref.is_nil(), shoal.ObjectRef.nil().is_nil()) == (binary, False, True)
    assert shoal.ObjectRef.from_random() != shoal.ObjectRef.from_random()
    with pytest.raises(ValueError, match="owner is unknown"):
        shoal.get(shoal.ObjectRef.nil())


@pytest.mark.parametrize(("binary", "error"), [(b"a", ValueError), ("a" * 28, TypeError), (None, TypeError)])
def test_a_reference_has_28_bytes(binary, error):
    with pytest.raises(error):
        shoal.ObjectRef(binary)


@shoal.remote
class Plain:
    limit = 3

    @staticmethod
    def double(x):
        return 2 * x

    @classmethod
    def who(cls):
        return cls.__name__


def test_static_and_class_methods_of_an_actor_class_need_no_actor():
    assert (Plain.double(2), Plain.who(), Plain.limit) == (4, "Plain", 3)
    assert cloudpickle.loads(cloudpickle.dumps(Plain)).limit == 3
    with pytest.raises(AttributeError, match="nothing"):
        _ = Plain.nothing
    assert not hasattr(Plain, "bind")


def test_runtime_env_is_a_checked_dict():
    env = RuntimeEnv(env_vars={"A": "1"}, working_dir=None)
    assert (env, env.env_vars(), env.working_dir(), env.to_dict()) == ({"env_vars": {"A": "1"}}, {"A": "1"}, None, dict(env))
    assert isinstance(env, dict)
    with pytest.raises(TypeError):
        RuntimeEnv(env_vars={"A": 1})
    with pytest.raises(ValueError, match="working_dir"):
        RuntimeEnv(workin_dir=".")
    with pytest.raises(shoal.exceptions.RuntimeEnvSetupError):
        RuntimeEnv(pip=["x"])
    assert RuntimeEnv(pip=["x"], _validate=False) == {"pip": ["x"]}


def test_every_public_name_says_what_it_is():
    from shoal.actor import ActorClass, ActorMethod
    from shoal.job_config import JobConfig
    from shoal.runtime_context import RuntimeContext
    from shoal.util.placement_group import PlacementGroup

    classes = [
        *(value for name in shoal.__all__ if isinstance(value := getattr(shoal, name), type)),
        *(ActorClass, ActorMethod, JobConfig, PlacementGroup, RuntimeContext, RuntimeEnv),
    ]
    silent = [f"{cls.__name__}.{name}" for cls in classes for name, value in vars(cls).items() if name[0] != "_" and undocumented(value)]
    silent += [name for name in shoal.__all__ if callable(value := getattr(shoal, name)) and not value.__doc__]
    assert silent == []


def undocumented(value):
    return (callable(value) or isinstance(value, property | classmethod | staticmethod)) and not value.__doc__
