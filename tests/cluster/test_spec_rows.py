"""What a program moved from Ray takes for granted, row by row, and what wrong input does to the session: nothing."""

from __future__ import annotations

import gc
import os
import sys

import pytest

import shoal
from shoal import exceptions
from shoal.runtime_env import RuntimeEnv
from shoal.util import get_placement_group, list_named_actors, placement_group, remove_placement_group
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60), pytest.mark.usefixtures("session")]


@shoal.remote
def same(x=1):
    return x


@shoal.remote
def fail():
    raise ValueError("bad")


@shoal.remote
def numbers():
    yield from range(10**9)


@shoal.remote
def one_number():
    yield 7


@shoal.remote
class Counter:
    def __init__(self, start=0):
        self.n = start

    def add(self, k=1):
        self.n += k
        return self.n


@shoal.remote
class Async:
    async def ask(self):
        return shoal.get_runtime_context().is_canceled()


def in_group(*arguments):
    return lambda: same.options(scheduling_strategy=PlacementGroupSchedulingStrategy(*arguments)).remote()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: placement_group([{"CPU": 1}], name=3), TypeError),
        (lambda: placement_group([{"CPU": 1e30}]), ValueError),
        (lambda: placement_group([{"CPU": 1}], bundle_label_selector="x"), ValueError),
        (lambda: placement_group([{"CPU": 1}], topology_strategy=[{}]), ValueError),
        (lambda: placement_group([{"CPU": 1}], _soft_target_node_id="x"), ValueError),
        (lambda: placement_group([{"CPU": 1}], "STRICT_PACK", _soft_target_node_id="x"), ValueError),
        (lambda: get_placement_group(3), TypeError),
        (lambda: shoal.get_actor("a", 3), TypeError),
        (lambda: shoal.get_actor(None), ValueError),
        (lambda: same.options(num_cpus=1e30).remote(), ValueError),
        (lambda: same.options(max_retries=10**30).remote(), ValueError),
        (lambda: Counter.options(max_restarts=10**30).remote(), ValueError),
        (lambda: Counter.options(name="\udc80").remote(), ValueError),
        (in_group("x"), TypeError),
        (in_group(None, "0"), TypeError),
        (in_group(None, -1, "x"), TypeError),
    ],
)
def test_wrong_values_are_refused_and_the_session_goes_on(wrong, error):
    with pytest.raises(error):
        wrong()
    assert shoal.get(same.remote(5)) == 5
    assert list_named_actors("any true value") == []


def test_the_failure_of_an_argument_says_who_did_not_run():
    with pytest.raises(ValueError, match=r"(?s)input arguments for this task could not be computed: same did not run.*bad") as info:
        shoal.get(same.remote(same.remote(fail.remote())))
    assert str(info.value).count("could not be computed") == 1
    assert isinstance(info.value.cause, ValueError)
    counter = Counter.remote()
    with pytest.raises(ValueError, match=r"could not be computed: Counter\.add did not run"):
        shoal.get(counter.add.remote(fail.remote()))


def test_a_generator_with_a_fixed_number_of_returns():
    assert shoal.get(one_number.options(num_returns=1).remote()) == 7
    for count in (1, 2):
        with pytest.raises(ValueError, match=f"more than {count} objects"):
            shoal.get(numbers.options(num_returns=count).remote())


def test_node_labels_name_the_node():
    context = shoal.get_runtime_context()
    own = {"ray.io/node-id": context.get_node_id()}
    assert context.get_node_labels() == shoal.nodes()[0]["Labels"] == own
    assert shoal.get(same.options(label_selector=own).remote()) == 1


def test_an_actor_that_has_no_place_says_so():
    nowhere = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    with pytest.raises(exceptions.ActorUnschedulableError, match="dead or unknown"):
        shoal.get(Counter.options(scheduling_strategy=nowhere).remote().add.remote())
    with pytest.raises(exceptions.TaskUnschedulableError, match="dead or unknown"):
        shoal.get(same.options(scheduling_strategy=nowhere).remote())


def test_workers_know_their_job():
    @shoal.remote
    def variables():
        return os.environ["RAY_JOB_ID"], int(os.environ["RAY_RAYLET_PID"]), os.getppid()

    job, agent, parent = shoal.get(variables.remote())
    assert (job, agent) == (shoal.get_runtime_context().get_job_id(), parent)


def test_workers_show_the_drivers_script_as_their_program():
    @shoal.remote
    def program():
        return sys.argv

    main = getattr(sys.modules["__main__"], "__file__", None)
    assert shoal.get(program.remote()) == [os.path.abspath(main) if main else ""]


def test_wrong_arguments_show_the_signature():
    with pytest.raises(TypeError, match=r"^same\(\) got an unexpected keyword argument 'y'\. Its signature is same\(x=1\)\.$"):
        same.remote(y=1)
    with pytest.raises(TypeError, match=r"^Counter\(\) too many positional arguments\. Its signature is Counter\(start=0\)\.$"):
        Counter.remote(1, 2)
    with pytest.raises(TypeError, match=r"^add\(\) got an unexpected keyword argument 'z'\. Its signature is add\("):
        Counter.remote().add.remote(z=1)


def test_an_error_counts_attempts_only_where_errors_are_retried():
    def last_line(ref):
        with pytest.raises(ValueError, match="bad") as info:
            shoal.get(ref)
        return str(info.value).splitlines()[-1]

    assert last_line(fail.remote()).endswith(")")
    assert last_line(fail.options(max_retries=1, retry_exceptions=True).remote()).endswith("), attempt 2 of 2")


def test_async_actors_have_no_cancel_flag():
    with pytest.raises(RuntimeError, match=r"asyncio\.CancelledError"):
        shoal.get(Async.remote().ask.remote())


def test_deprecated_names_of_the_context():
    @shoal.remote(num_cpus=0)
    def ask():
        with pytest.warns(DeprecationWarning, match="get_placement_group_id"):
            group = shoal.get_runtime_context().current_placement_group_id
        with pytest.warns(DeprecationWarning, match="get_accelerator_ids"):
            return group, shoal.get_runtime_context().get_resource_ids()["GPU"]

    group = placement_group([{"CPU": 1}])
    strategy = PlacementGroupSchedulingStrategy(group)
    assert shoal.get(ask.options(scheduling_strategy=strategy).remote()) == (group.id, [])
    assert shoal.get(ask.remote())[0].is_nil()
    remove_placement_group(group)


def test_a_runtime_env_object_is_as_good_as_a_dict():
    @shoal.remote(runtime_env=RuntimeEnv(env_vars={"SPEC_ROW": "1"}))
    def variable():
        return os.environ["SPEC_ROW"]

    assert shoal.get(variable.remote()) == "1"


def test_identifiers_without_an_object_are_refused():
    for ref in (shoal.ObjectRef.nil(), shoal.ObjectRef.from_random()):
        with pytest.raises(ValueError, match="owner is unknown"):
            shoal.get(ref)
        with pytest.raises(ValueError, match="owner"):
            same.remote(ref)
        with pytest.raises(ValueError, match="owner"):
            Counter.remote(ref)
        with pytest.raises(ValueError, match="owner"):
            shoal.wait([ref], timeout=5)
    ref = shoal.put(3)
    assert shoal.get(shoal.ObjectRef.from_hex(ref.hex())) == 3


def test_one_unread_failure_is_told_once(capfd):
    @shoal.remote(num_returns=5)
    def five():
        raise ValueError("five times")

    def settle():
        """Have an answer of the I/O thread: what was dropped before is dealt with."""
        with pytest.raises(exceptions.RayTaskError):
            shoal.get(fail.remote())

    gc.collect()  # errors that earlier tests have not read are told now
    settle()
    capfd.readouterr()
    refs = five.remote()
    shoal.wait(refs, num_returns=5, timeout=30)
    del refs
    settle()
    assert capfd.readouterr().err.count("Unhandled error") == 1
