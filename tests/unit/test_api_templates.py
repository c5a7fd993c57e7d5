"""From options to the records on the wire, seen through a runtime that only writes down what it is asked."""

from __future__ import annotations

import pickle
import warnings

import pytest

import shoal
from shoal._base import runtime as holder
from shoal._base.runtime import TaskContext
from shoal._base.settings import Settings
from shoal._core.api.actor_handle import handle_from_spec
from shoal._core.api.placement import PlacementGroup
from shoal._core.serialization import unpickle_function
from shoal._core.wire.messages import Address, JobConfigRecord, PlacementGroupList, PlacementGroupRecord, PlacementGroupSpec
from shoal.exceptions import RuntimeEnvSetupError
from shoal.util.scheduling_strategies import (
    DoesNotExist,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

UNIT = 10_000


class Recorder:
    """A runtime that keeps what it is given."""

    def __init__(self, **settings):
        self.job_id, self.worker_id, self.node_id = b"job1", b"w" * 28, b"n" * 28
        self.namespace, self.session_dir, self.is_driver = "space", "/tmp/session_1", True
        self.address = Address(self.worker_id, self.node_id, "here")
        self.job_config = JobConfigRecord(env={}, cwd="", sys_path=[])
        self.settings = Settings(**settings)
        self.context = None
        self.exports, self.tasks, self.calls, self.specs, self.known, self.names = {}, [], [], [], [], []

    def export(self, pickled, function_id=None):
        function_id = function_id or b"content" + len(self.exports).to_bytes(21, "big")
        self.exports[function_id] = pickled
        return function_id

    def submit_task(self, template, args, kwargs, name=""):
        self.tasks.append(template)
        self.names.append(name)

    def submit_actor_call(self, template, args, kwargs, name=""):
        self.calls.append(template)
        self.names.append(name)

    def create_actor(self, spec, args, kwargs):
        self.specs.append(spec)

    def know_actor(self, actor_id, *, out_of_order, max_pending_calls):
        self.known.append((actor_id, out_of_order, max_pending_calls))

    def actor_token(self, actor_id, owner):
        return shoal.ObjectRef(actor_id + b"\xff" * 12, owner, _runtime=self)

    def ref_added(self, object_id, owner): ...

    def ref_dropped(self, object_id): ...

    def ref_pickled(self, ref): ...

    def request_control_store(self, message, timeout_s=None):
        spec = PlacementGroupSpec(message.placement_group_id, b"job1", [{"CPU": UNIT}], "PACK")
        return PlacementGroupList(0, [PlacementGroupRecord(spec, "CREATED", [])])

    def task_context(self):
        return self.context


@pytest.fixture
def runtime():
    recorder = Recorder()
    holder.install(recorder)
    yield recorder
    holder.install(None)


def template_of(runtime, **options):
    @shoal.remote
    def f(): ...

    (f.options(**options) if options else f).remote()
    return runtime.tasks[-1]


def spec_of(runtime, cls=None, **options):
    class A:
        def m(self): ...

    remote = shoal.remote(cls or A)
    (remote.options(**options) if options else remote).remote()
    return runtime.specs[-1]


def test_the_defaults_of_a_task(runtime):
    template = template_of(runtime)
    assert template.shape.resources == (("CPU", UNIT),)
    assert (template.num_returns, template.max_retries, template.max_calls, template.backpressure) == (1, 3, 0, -1)
    assert (template.name, template.shape.job_id, template.shape.strategy) == ("f", b"job1", ())


def test_a_template_is_made_once_and_a_function_exported_once(runtime):
    @shoal.remote
    def f(): ...

    f.remote()
    f.remote()
    f.options(num_cpus=2).remote()
    assert runtime.tasks[0] is runtime.tasks[1]
    assert len(runtime.exports) == 1


def test_equal_options_share_a_template_and_names_travel_beside_it(runtime):
    @shoal.remote
    def f(): ...

    for i in range(3):
        f.options(num_cpus=2, resources={"x": 1}, name=f"task {i}").remote()
    assert runtime.tasks[0] is runtime.tasks[1] is runtime.tasks[2]
    assert runtime.names == ["task 0", "task 1", "task 2"]
    actor = shoal.remote(Base).remote()
    for i in range(2):
        actor.inherited.options(num_returns=2, name=str(i)).remote(1)
    assert runtime.calls[0] is runtime.calls[1]


def test_a_new_session_exports_anew(runtime):
    @shoal.remote
    def f(): ...

    f.remote()
    other = Recorder()
    other.session_dir = "/tmp/session_2"
    holder.install(other)
    f.remote()
    assert len(other.exports) == 1


def test_the_default_of_max_retries_is_a_setting():
    holder.install(recorder := Recorder(task_max_retries=7))
    try:
        assert template_of(recorder).max_retries == 7
        assert template_of(recorder, max_retries=0).max_retries == 0
    finally:
        holder.install(None)


def test_resources(runtime):
    template = template_of(runtime, num_cpus=0.5, num_gpus=1 / 3, memory=100, resources={"x": 2}, accelerator_type="T4")
    assert dict(template.shape.resources) == {"CPU": 5000, "GPU": 3333, "memory": 100 * UNIT, "x": 2 * UNIT, "accelerator_type:T4": 10}
    assert template.max_calls == 1  # because of the GPU
    assert template_of(runtime, num_cpus=0).shape.resources == ()


@pytest.mark.parametrize(
    ("options", "held", "placed_by"),
    [
        ({}, {}, {"CPU": UNIT}),
        ({"memory": 1}, {"memory": UNIT}, {"CPU": UNIT, "memory": UNIT}),
        ({"num_cpus": 1}, {"CPU": UNIT}, None),
        ({"num_cpus": 0}, {}, None),
        ({"resources": {"x": 1}}, {"CPU": UNIT, "x": UNIT}, None),
        ({"num_cpus": 0, "num_gpus": 1}, {"GPU": UNIT}, None),
    ],
)
def test_an_actor_with_no_options_is_placed_by_a_cpu_that_it_does_not_hold(runtime, options, held, placed_by):
    shape = spec_of(runtime, **options).shape
    assert dict(shape.resources) == held
    assert (None if shape.placement_resources is None else dict(shape.placement_resources)) == placed_by


def test_strategies(runtime):
    node = "ab" * 28
    assert template_of(runtime, scheduling_strategy="SPREAD").shape.strategy == ("SPREAD",)
    assert template_of(runtime, scheduling_strategy="DEFAULT").shape.strategy == ()
    affinity = template_of(runtime, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True))
    assert affinity.shape.strategy[:3] == ("NODE_AFFINITY", bytes.fromhex(node), True)
    labels = NodeLabelSchedulingStrategy({"a": In("x", "y")}, soft={"b": DoesNotExist()})
    assert template_of(runtime, scheduling_strategy=labels).shape.strategy == (
        "NODE_LABEL",
        (("a", "in", ("x", "y")),),
        (("b", "does_not_exist", ()),),
    )
    assert template_of(runtime, label_selector={"zone": "!a"}).shape.label_selector == (("zone", "!a"),)
    with pytest.raises(ValueError, match="scheduling_strategy"):
        template_of(runtime, scheduling_strategy="x")


def test_placement_groups(runtime):
    group = PlacementGroup(b"g" * 18, [{"CPU": UNIT}, {"CPU": 2 * UNIT}])
    place = PlacementGroupSchedulingStrategy
    template = template_of(runtime, num_cpus=2, scheduling_strategy=place(group, 1, True))
    assert (template.shape.placement_group, template.shape.bundle_index, template.capture_child_tasks) == (b"g" * 18, 1, True)
    for strategy, cpus in ((place(group, 2), 1), (place(group), 3), (place(group, 0), 2)):
        with pytest.raises(ValueError, match=r"bundle"):
            template_of(runtime, num_cpus=cpus, scheduling_strategy=strategy)
    tiny = PlacementGroup(b"g" * 18, [{"x": UNIT}])
    with pytest.raises(ValueError, match="cannot fit"):
        spec_of(runtime, scheduling_strategy=place(tiny))


def test_the_deprecated_spelling_of_placement_groups(runtime):
    group = PlacementGroup(b"g" * 18, [{"CPU": UNIT}])
    with pytest.warns(DeprecationWarning, match="placement_group"):
        assert template_of(runtime, placement_group=group).shape.placement_group == b"g" * 18
    with pytest.raises(ValueError, match="scheduling_strategy"):
        template_of(runtime, placement_group=group, scheduling_strategy="SPREAD")


def test_children_of_a_capturing_task_go_into_its_group(runtime):
    @shoal.remote
    def f(): ...

    runtime.is_driver = False
    runtime.context = TaskContext(b"t" * 24, b"job1", placement_group=b"g" * 18, capture_child_tasks=True)
    f.remote()
    f.remote()
    assert [t.shape.placement_group for t in runtime.tasks] == [b"g" * 18] * 2
    assert runtime.tasks[0] is runtime.tasks[1]
    f.options(scheduling_strategy=PlacementGroupSchedulingStrategy(None)).remote()
    runtime.context = TaskContext(b"t" * 24, b"job1")
    f.remote()
    assert [t.shape.placement_group for t in runtime.tasks[2:]] == [b"", b""]


def test_runtime_environments_merge(runtime):
    runtime.job_config.runtime_env = '{"env_vars":{"A":"1","B":"1"},"working_dir":"/"}'
    own = template_of(runtime, runtime_env={"env_vars": {"B": "2"}}).shape.runtime_env
    assert own == '{"env_vars":{"A":"1","B":"2"},"working_dir":"/"}'
    assert template_of(runtime).shape.runtime_env == ""
    with pytest.raises(TypeError, match="runtime_env"):
        template_of(runtime, runtime_env={"x": object()})
    with pytest.raises(ValueError, match="env_vars"):
        template_of(runtime, runtime_env={"env_var": {"A": "1"}})
    with pytest.raises(RuntimeEnvSetupError, match="does not build"):
        template_of(runtime, runtime_env={"pip": ["numpy"]})


def test_retry_exceptions_travel_as_classes(runtime):
    assert template_of(runtime, retry_exceptions=True).retry_exceptions == b"*"
    assert template_of(runtime).retry_exceptions == b""
    assert pickle.loads(template_of(runtime, retry_exceptions=[KeyError]).retry_exceptions) == (KeyError,)


def test_generators_stream_unless_told_otherwise(runtime):
    @shoal.remote
    def gen():
        yield

    gen.remote()
    gen.options(num_returns=3).remote()
    gen.options(num_returns="dynamic", _generator_backpressure_num_objects=5).remote()
    assert [(t.num_returns, t.backpressure) for t in runtime.tasks] == [(-1, -1), (3, -1), (-2, 5)]


def test_a_function_that_mentions_itself_keeps_its_name_in_workers(runtime):
    @shoal.remote
    def fact(n):
        return fact.remote(n - 1)

    fact.remote(1)
    ((function_id, blob),) = runtime.exports.items()
    copy = unpickle_function(blob)
    copy(1)  # as in a worker: submits itself again
    assert list(runtime.exports) == [function_id]
    assert runtime.tasks[-1].function_id == function_id


def test_remote_functions_inside_values_are_not_exported_again(runtime):
    @shoal.remote
    def inner(): ...

    inner.remote()
    outer = shoal.remote(lambda: inner.remote())
    outer.remote()
    unpickle_function(runtime.exports[runtime.tasks[-1].function_id])()
    assert len(runtime.exports) == 2


def test_mutual_recursion_ends(runtime):
    @shoal.remote
    def even(n):
        return odd.remote(n)

    @shoal.remote
    def odd(n):
        return even.remote(n)

    even.remote(1)
    for _ in range(5):
        unpickle_function(runtime.exports[runtime.tasks[-1].function_id])(1)
    assert len(runtime.exports) <= 4


# --- actors ----------------------------------------------------------------------------------------------------------------------


class Base:
    def inherited(self, a): ...


class Groups(Base):
    @shoal.method(concurrency_group="io", max_task_retries=4)
    async def read(self): ...

    def plain(self): ...

    async def items(self):
        yield 1


def test_the_spec_of_an_actor(runtime):
    spec = spec_of(runtime)
    assert (spec.class_name, spec.max_concurrency, spec.is_async, spec.out_of_order, spec.detached) == ("A", 1, False, False, False)
    assert (spec.namespace, spec.name, spec.max_restarts, spec.max_pending_calls) == ("space", "", 0, -1)
    spec = spec_of(runtime, Groups)
    assert (spec.max_concurrency, spec.is_async, spec.out_of_order) == (1000, True, True)
    assert spec_of(runtime, max_concurrency=2).out_of_order
    assert spec_of(runtime, lifetime="detached", name="a").detached
    with pytest.raises(ValueError, match="in order"):
        spec_of(runtime, max_concurrency=2, allow_out_of_order_execution=False)


def test_the_default_lifetime_is_the_jobs(runtime):
    runtime.job_config.default_actor_lifetime = "detached"
    assert spec_of(runtime, name="a").detached
    assert not spec_of(runtime, name="a", lifetime="non_detached").detached


def test_templates_of_methods(runtime):
    actor = shoal.remote(concurrency_groups={"io": 2}, max_task_retries=1)(Groups).remote()
    actor.read.remote()
    actor.plain.options(name="n", max_task_retries=0, num_returns=2).remote()
    actor.items.remote()
    read, plain, items = runtime.calls
    assert (read.method, read.concurrency_group, read.max_retries, read.name) == ("read", "io", 4, "Groups.read")
    assert (plain.name, plain.max_retries, plain.num_returns, plain.concurrency_group) == ("Groups.plain", 0, 2, "")
    assert runtime.names == ["", "n", ""]
    assert items.num_returns == -1
    assert read.actor_id == actor._actor_id.binary()
    with pytest.raises(TypeError, match="missing a required argument"):
        actor.inherited.remote()
    with pytest.raises(ValueError, match="Did you mean 'io'"):
        actor.plain.options(concurrency_group="ioo")


def test_handles_travel_and_come_from_specs(runtime):
    actor = shoal.remote(max_pending_calls=3)(Base).remote()
    for copy in (pickle.loads(pickle.dumps(actor)), handle_from_spec(runtime.specs[-1])):
        assert copy == actor
        assert copy._token is not None
        copy.inherited.remote(1)
    assert handle_from_spec(runtime.specs[-1], keep_alive=False)._token is None
    assert set(runtime.known) == {(actor._actor_id.binary(), False, 3)}


def test_a_detached_actors_handles_are_not_counted(runtime):
    actor = shoal.remote(lifetime="detached", name="d")(Base).remote()
    assert pickle.loads(pickle.dumps(actor))._token is None


def test_handles_of_an_earlier_session(runtime):
    actor = shoal.remote(Base).remote()
    ref = shoal.ObjectRef(b"o" * 28, _runtime=runtime)
    for other in (None, Recorder()):
        holder.install(other)
        with pytest.raises(shoal.exceptions.ActorHandleNotFoundError):
            actor.inherited.remote(1)
        with pytest.raises(shoal.exceptions.ActorHandleNotFoundError):
            shoal.kill(actor)
        for use in (lambda: shoal.get(ref), lambda: shoal.get([ref]), lambda: shoal.wait([ref]), lambda: shoal.cancel(ref)):
            with pytest.raises(ValueError, match="owner is unknown"):
                use()


def test_actor_object_store_memory_warns(runtime):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec_of(runtime, object_store_memory=1)
    assert [w.category for w in caught] == [DeprecationWarning]
