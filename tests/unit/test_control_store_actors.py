"""The life of actors: events in, instructions out; and a machine that tries all orders."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st

from shoal._core.control_store import rows
from shoal._core.control_store.actor_records import NameTaken
from shoal._core.control_store.actors import ActorTable
from shoal._core.control_store.instructions import ActorEnded, AnnounceActor, CancelStart, ForgetPlacement, PlaceActor, StartOn, StopOn
from shoal._core.control_store.rows import encode
from shoal._core.control_store.storage import Change
from shoal._core.wire.messages import DRAINED, ActorSpec, Address, Cause, Shape

JOB, OTHER_JOB = b"\0\0\0\1", b"\0\0\0\2"
A, B, C = (name * 12 + JOB for name in (b"a", b"b", b"c"))
N1, N2 = b"node1", b"node2"
HOME = b"home".ljust(28, b"\0")
CRASH = Cause("worker_exit", signal=9)


def spec(actor_id: bytes, **fields: Any) -> ActorSpec:
    owner = fields.pop("owner", Address(b"driver", HOME, "memory:driver"))
    shape = fields.pop("shape", Shape(JOB))
    return ActorSpec(actor_id, fields.pop("job_id", JOB), owner, b"class", "Counter", b"args", [], shape, namespace="ns", **fields)


def address(actor_id: bytes, incarnation: int = 0) -> Address:
    return Address(actor_id[:1] + b"-worker-%d" % incarnation, N1, "memory:worker")


def short(instructions: list[Any]) -> list[Any]:
    """Instructions without rows, announcements as the state they tell, ends as the word."""
    result: list[Any] = []
    for instruction in instructions:
        match instruction:
            case Change():
                pass
            case AnnounceActor():
                result.append(instruction.update.state)
            case ActorEnded():
                result.append("ended")
            case StopOn():
                result.append(("stop", instruction.node_id, instruction.actor_id, instruction.graceful, instruction.cause.kind))
            case _:
                result.append(instruction)
    return result


@pytest.fixture
def table() -> ActorTable:
    return ActorTable(history_limit=10)


def alive(table: ActorTable, actor_id: bytes, node_id: bytes = N1, **fields: Any) -> None:
    table.create(spec(actor_id, **fields))
    table.place(actor_id, node_id)
    table.started(actor_id, 0, node_id, address(actor_id), None)
    table.check()


def test_from_creation_to_life(table: ActorTable):
    assert short(table.create(spec(A))) == ["PENDING", PlaceActor(A)]
    assert short(table.create(spec(A))) == []  # the request was repeated
    assert short(table.place(A, N1)) == [StartOn(N1, A, 0)]
    assert short(table.place(A, N2)) == []
    assert short(table.started(A, 0, N1, address(A), None)) == ["ALIVE"]
    table.check()


def test_a_crash_restarts_as_often_as_allowed(table: ActorTable):
    alive(table, A, max_restarts=1)
    assert short(table.worker_died(A, 0, CRASH)) == ["RESTARTING", PlaceActor(A)]
    assert short(table.worker_died(A, 0, CRASH)) == []
    assert short(table.place(A, N2)) == [StartOn(N2, A, 1)]
    assert short(table.worker_died(A, 0, CRASH)) == [], "a stale incarnation"
    assert short(table.started(A, 1, N2, address(A, 1), None)) == ["ALIVE"]
    assert short(table.worker_died(A, 1, CRASH)) == [ForgetPlacement(A), "DEAD", "ended"]
    table.check()


def test_without_limit_it_restarts_for_ever(table: ActorTable):
    alive(table, A, max_restarts=-1)
    for incarnation in range(50):
        assert short(table.worker_died(A, incarnation, CRASH)) == ["RESTARTING", PlaceActor(A)]
        table.place(A, N1)
        table.started(A, incarnation + 1, N1, address(A, incarnation + 1), None)
    actor = table.get(A)
    assert actor is not None
    assert actor.restarts_left() == -1


@pytest.mark.parametrize("kind", ["exit_actor", "init_failed"])
def test_a_wish_or_a_broken_constructor_is_not_restarted(table: ActorTable, kind: str):
    alive(table, A, max_restarts=-1)
    assert short(table.worker_died(A, 0, Cause(kind))) == [ForgetPlacement(A), "DEAD", "ended"]


def test_a_crash_during_init_uses_a_restart_and_an_exception_ends_it(table: ActorTable):
    table.create(spec(A, max_restarts=5))
    table.place(A, N1)
    assert short(table.started(A, 0, N1, None, CRASH)) == ["RESTARTING", PlaceActor(A)]
    table.place(A, N1)
    assert short(table.started(A, 1, N1, None, Cause("init_failed", error=b"e"))) == [ForgetPlacement(A), "DEAD", "ended"]
    actor = table.get(A)
    assert actor is not None
    assert actor.cause is not None
    assert (actor.cause.error, actor.spec.args) == (b"e", b"")


def test_a_death_that_overtakes_the_answer_to_the_start(table: ActorTable):
    table.create(spec(A, max_restarts=1))
    table.place(A, N1)
    assert short(table.worker_died(A, 0, CRASH)) == []
    assert short(table.started(A, 0, N1, address(A), None)) == ["RESTARTING", PlaceActor(A)]
    table.check()


def test_kill_at_each_stage(table: ActorTable):
    table.create(spec(A))
    assert short(table.kill(A, no_restart=True)) == [ForgetPlacement(A), "DEAD", "ended"]
    table.create(spec(B))
    table.place(B, N1)
    assert short(table.kill(B, no_restart=True)) == [CancelStart(N1, B), "DEAD", "ended"]
    assert short(table.started(B, 0, N1, address(B), None)) == [("stop", N1, B, False, "killed")], "the cancellation came too late"
    alive(table, C)
    assert short(table.kill(C, no_restart=True)) == [("stop", N1, C, False, "killed"), "DEAD", "ended"]
    assert short(table.kill(C, no_restart=True)) == []
    assert short(table.worker_died(C, 0, CRASH)) == []
    table.check()


def test_kill_that_may_restart(table: ActorTable):
    alive(table, A, max_restarts=1)
    assert short(table.kill(A, no_restart=False)) == [("stop", N1, A, False, "killed")]
    assert short(table.worker_died(A, 0, Cause("killed"))) == ["RESTARTING", PlaceActor(A)]
    table.place(A, N1)
    table.started(A, 1, N1, address(A, 1), None)
    assert short(table.kill(A, no_restart=False))[-2:] == ["DEAD", "ended"], "no restart is left"


@pytest.mark.parametrize("refused", [True, False])
def test_kill_that_may_restart_waits_for_the_start_in_flight(table: ActorTable, refused: bool):
    table.create(spec(A, max_restarts=1))
    table.place(A, N1)
    assert short(table.kill(A, no_restart=False)) == [CancelStart(N1, A)]
    if refused:
        assert short(table.start_failed(A, 0, N1)) == ["RESTARTING", PlaceActor(A)]
    else:
        assert short(table.started(A, 0, N1, address(A), None)) == ["ALIVE", ("stop", N1, A, False, "killed")]
        assert short(table.worker_died(A, 0, CRASH)) == ["RESTARTING", PlaceActor(A)]
    table.check()


def test_a_refused_start_costs_no_restart(table: ActorTable):
    table.create(spec(A))
    table.place(A, N1)
    assert short(table.start_failed(A, 0, N1)) == [PlaceActor(A, later=True)]
    assert short(table.place(A, N2)) == [StartOn(N2, A, 0)]


def test_out_of_scope(table: ActorTable):
    alive(table, A, max_restarts=5, name="it")
    assert short(table.out_of_scope(A)) == [("stop", N1, A, True, "out_of_scope")]
    assert table.named("ns", "it") is None
    assert short(table.out_of_scope(A)) == []
    assert short(table.worker_died(A, 0, Cause("exit_actor", pid=7))) == [ForgetPlacement(A), "DEAD", "ended"]
    actor = table.get(A)
    assert actor is not None
    assert actor.cause == Cause("out_of_scope", "All handles to it are gone.", pid=7)
    table.create(spec(B))
    assert short(table.out_of_scope(B)) == [ForgetPlacement(B), "DEAD", "ended"], "it does not live yet, and never will"
    alive(table, C, detached=True)
    assert short(table.out_of_scope(C)) == []


def test_names_are_free_after_death_and_per_namespace(table: ActorTable):
    table.create(spec(A, name="it"))
    with pytest.raises(NameTaken):
        table.create(spec(B, name="it"))
    assert table.get(B) is None
    table.kill(A, no_restart=True)
    table.create(spec(B, name="it"))
    assert table.names("ns") == [("ns", "it")]
    assert table.names("other") == []
    table.check()


def test_owners_take_their_children_along_to_any_depth(table: ActorTable):
    alive(table, A)
    alive(table, B, owner=address(A), name="child")
    alive(table, C, owner=address(B), detached=True)
    assert short(table.owner_died(b"driver", Cause("owner_died"))) == [
        ("stop", N1, A, False, "owner_died"), "DEAD", "ended",
        ("stop", N1, B, False, "owner_died"), "DEAD", "ended",
    ]  # fmt: skip
    actor = table.get(C)
    assert actor is not None
    assert actor.state == "ALIVE"
    table.check()


def test_a_creation_that_comes_after_the_word_of_its_owners_end_is_dead_at_once(table: ActorTable):
    table.owner_died(b"driver", Cause("owner_died"))
    assert short(table.create(spec(A))) == [ForgetPlacement(A), "DEAD", "ended"]
    assert short(table.create(spec(B, owner=address(A)))) == ["PENDING", PlaceActor(B)]
    assert short(table.create(spec(C, detached=True, name="kept"))) == ["PENDING", PlaceActor(C)]
    table.check()


def test_a_long_chain_of_owners_is_no_recursion(table: ActorTable):
    owner = Address(b"driver", N1, "")
    for n in range(3000):
        actor_id = n.to_bytes(12, "big") + JOB
        table.create(spec(actor_id, owner=owner))
        table.place(actor_id, N1)
        owner = Address(b"w%d" % n, N1, "")
        table.started(actor_id, 0, N1, owner, None)
    assert short(table.job_finished(JOB)).count("DEAD") == 3000
    table.check()


def test_a_restart_ends_the_children_of_the_incarnation_before(table: ActorTable):
    alive(table, A, max_restarts=1)
    alive(table, B, owner=address(A))
    assert short(table.worker_died(A, 0, CRASH)) == ["RESTARTING", PlaceActor(A), ("stop", N1, B, False, "owner_died"), "DEAD", "ended"]


def test_the_end_of_the_job_spares_the_detached_and_erases_rows(table: ActorTable):
    alive(table, A)
    alive(table, B, detached=True)
    alive(table, C, job_id=OTHER_JOB)
    instructions = table.job_finished(JOB)
    assert short(instructions) == [("stop", N1, A, False, "job_finished"), "DEAD", "ended"]
    assert [change for change in instructions if isinstance(change, Change)][-1].value is None
    assert table.has_detached(JOB)
    assert not table.has_detached(OTHER_JOB)
    table.check()


def test_a_dead_node_moves_its_actors_and_answers_its_starts(table: ActorTable):
    alive(table, A, max_restarts=1)
    table.create(spec(B, max_restarts=1))
    table.place(B, N1)
    table.create(spec(C))
    table.place(C, N1)
    table.kill(C, no_restart=True)
    assert short(table.node_died(N1, Cause("node_died"))) == ["RESTARTING", PlaceActor(A), "RESTARTING", PlaceActor(B)]
    table.check()


def test_the_history_is_bounded_and_stale_answers_are_harmless(table: ActorTable):
    for n in range(50):
        actor_id = n.to_bytes(12, "big") + JOB
        table.create(spec(actor_id, name="it"))
        table.place(actor_id, N1)
        table.kill(actor_id, no_restart=True)
    assert table.statistics().dead == 10
    first = (0).to_bytes(12, "big") + JOB
    assert table.get(first) is None
    assert table.was_known(first)
    assert short(table.started(first, 0, N1, address(first), None)) == [("stop", N1, first, False, "killed")]
    table.check()


def test_rows_bring_everything_back(table: ActorTable):
    alive(table, A, name="it", max_restarts=3)
    table.create(spec(B))
    table.create(spec(C))
    table.place(C, N1)
    specs = [(actor.spec.actor_id, encode(actor.spec)) for actor in table.actors()]
    saved = [(actor.spec.actor_id, actor.row()) for actor in table.actors()]
    fresh = ActorTable(history_limit=10)
    assert short(fresh.load(specs, saved)) == [PlaceActor(B)]
    assert short(fresh.node_back(N1, [(A, 0), (B, 0)])) == [("stop", N1, B, False, "killed"), StartOn(N1, C, 0)]
    assert fresh.named("ns", "it") == table.named("ns", "it")
    assert fresh.statistics() == table.statistics()
    fresh.check()


def worker_address(key: tuple[bytes, bytes, int]) -> Address:
    actor_id, node, incarnation = key
    return Address(b"%d-%d" % (int.from_bytes(actor_id[:12], "big"), incarnation), node, "")


class ActorMachine(stateful.RuleBasedStateMachine):
    """Two nodes that obey, in any order of events; a worker is alive from the start of its process until its death.

    Connections are lost, with what is under way on them, and the control store restarts; a node that is back says what it holds, is asked
    again, and repeats what the control store may not have heard.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = ActorTable(history_limit=5)
        self.count = 0
        self.waiting: set[bytes] = set()
        #: Starts without an answer: actor -> (node, incarnation, cancelled).
        self.starts: dict[tuple[bytes, bytes, int], bool] = {}
        #: Living workers: (actor, node, incarnation) -> told to stop.
        self.workers: dict[tuple[bytes, bytes, int], bool] = {}
        #: How incarnations have ended: what their node answers when it is asked to start them again.
        self.ended: dict[tuple[bytes, bytes, int], Cause] = {}
        #: What is on disk.
        self.specs: dict[bytes, bytes] = {}
        self.rows: dict[bytes, bytes] = {}
        self.unwanted: dict[bytes, bytes] = {}

    def perform(self, instructions: list[Any]) -> None:
        for one in instructions:
            match one:
                case PlaceActor():
                    self.waiting.add(one.actor_id)
                case ForgetPlacement():
                    self.waiting.discard(one.actor_id)
                case StartOn():
                    key = (one.actor_id, one.node_id, one.incarnation)
                    assert not any(other[0] == one.actor_id for other in self.starts if other != key), "two starts of one actor"
                    # One that is told to stop may still be on its way out: it was reported dead, or its node is asked in order.
                    others = [other for other in self.workers if other[0] == one.actor_id and other != key]
                    assert all(self.workers[other] and other[1] == one.node_id for other in others), "started while one lives"
                    self.starts.setdefault(key, False)
                case Change():
                    table = {rows.ACTOR_SPECS: self.specs, rows.ACTORS: self.rows, rows.UNWANTED_ACTORS: self.unwanted}[one.table]
                    if one.value is None:
                        table.pop(one.key, None)
                    else:
                        table[one.key] = one.value
                case CancelStart():
                    for key in self.starts:
                        if key[:2] == (one.actor_id, one.node_id):
                            self.starts[key] = True
                case StopOn():
                    for key in self.workers:
                        if key[:2] == (one.actor_id, one.node_id):
                            self.workers[key] = True
                case _:
                    pass

    def pick(self, choices: Any, index: int) -> Any:
        ordered = sorted(choices)
        return ordered[index % len(ordered)]

    @stateful.rule(
        name=st.sampled_from(["", "x", "y"]), restarts=st.sampled_from([0, 1, -1]), detached=st.booleans(), owner=st.integers(0, 9)
    )
    def create(self, name: str, restarts: int, detached: bool, owner: int) -> None:
        self.count += 1
        actor_id = self.count.to_bytes(12, "big") + JOB
        owners = [Address(b"driver", N1, "")] + [actor.address for actor in self.table.actors() if actor.address is not None]
        taken = name and self.table.named("ns", name) is not None
        try:
            self.perform(
                self.table.create(spec(actor_id, name=name, max_restarts=restarts, detached=detached, owner=owners[owner % len(owners)]))
            )
            assert not taken
        except NameTaken:
            assert taken

    @stateful.precondition(lambda self: self.waiting)
    @stateful.rule(index=st.integers(0, 99), node=st.sampled_from([N1, N2]))
    def place(self, index: int, node: bytes) -> None:
        actor_id = self.pick(self.waiting, index)
        self.waiting.discard(actor_id)
        self.perform(self.table.place(actor_id, node))

    @stateful.precondition(lambda self: self.starts)
    @stateful.rule(index=st.integers(0, 99), result=st.sampled_from(["ok", "ok", "init_failed", "crash", "refused", "died at once"]))
    def answer(self, index: int, result: str) -> None:
        key = self.pick(self.starts, index)
        actor_id, node, incarnation = key
        cancelled = self.starts.pop(key)
        worker = worker_address(key)
        if key in self.workers:  # asked again
            self.perform(self.table.started(actor_id, incarnation, node, worker, None))
            return
        if key in self.ended:
            self.perform(self.table.started(actor_id, incarnation, node, None, self.ended[key]))
            return
        if result in ("init_failed", "crash", "died at once"):
            self.ended[key] = Cause("init_failed" if result == "init_failed" else "worker_exit")
        if result == "refused":
            self.perform(self.table.start_failed(actor_id, incarnation, node))
        elif result in ("init_failed", "crash"):
            self.perform(
                self.table.started(actor_id, incarnation, node, None, Cause("init_failed" if result == "init_failed" else "worker_exit"))
            )
        elif result == "died at once":
            self.perform(self.table.worker_died(actor_id, incarnation, CRASH))
            self.perform(self.table.started(actor_id, incarnation, node, worker, None))
        else:  # perhaps the cancellation came too late
            self.workers[key] = False
            self.perform(self.table.started(actor_id, incarnation, node, worker, None))
            actor = self.table.get(actor_id)
            if cancelled or actor is None or actor.state != "ALIVE":
                assert self.workers[key], "an unwanted worker is told to stop"

    @stateful.precondition(lambda self: self.workers)
    @stateful.rule(index=st.integers(0, 99), kind=st.sampled_from(["worker_exit", "exit_actor", "oom"]))
    def die(self, index: int, kind: str) -> None:
        key = self.pick(self.workers, index)
        del self.workers[key]
        self.ended[key] = Cause(kind)
        self.perform(self.table.worker_died(key[0], key[2], Cause(kind)))

    @stateful.rule(index=st.integers(0, 99), no_restart=st.booleans())
    def kill(self, index: int, no_restart: bool) -> None:
        if actors := self.table.actors():
            self.perform(self.table.kill(actors[index % len(actors)].spec.actor_id, no_restart=no_restart))

    @stateful.rule(index=st.integers(0, 99))
    def drop(self, index: int) -> None:
        if actors := self.table.actors():
            self.perform(self.table.out_of_scope(actors[index % len(actors)].spec.actor_id))

    @stateful.rule(node=st.sampled_from([N1, N2]))
    def lose_node(self, node: bytes) -> None:
        self.starts = {key: value for key, value in self.starts.items() if key[1] != node}
        self.workers = {key: value for key, value in self.workers.items() if key[1] != node}
        self.perform(self.table.node_died(node, Cause("node_died")))

    def back(self, node: bytes) -> None:
        """The node is connected again: it says what it holds, and then what may not have been heard."""
        held = sorted({(key[0], key[2]) for key in (*self.starts, *self.workers) if key[1] == node})
        self.perform(self.table.node_back(node, held))
        for key, cause in list(self.ended.items()):
            if key[1] == node:
                self.perform(self.table.worker_died(key[0], key[2], cause))

    def lose_answers(self, node: bytes, done: int) -> None:
        """The node has carried out the first starts that it was asked for, and the connection is lost with the rest, and the answers."""
        mine = [key for key in self.starts if key[1] == node]
        for key in mine[:done]:
            if not self.starts[key] and key not in self.ended:
                self.workers.setdefault(key, False)
        for key in mine:
            del self.starts[key]

    @stateful.rule(node=st.sampled_from([N1, N2]), done=st.integers(0, 3))
    def cut_off_for_a_while(self, node: bytes, done: int) -> None:
        self.lose_answers(node, done)
        self.back(node)

    @stateful.rule(done=st.integers(0, 3), first=st.sampled_from([N1, N2]), lost=st.sampled_from([N1, N2, b""]))
    def restart(self, done: int, first: bytes, lost: bytes) -> None:
        """The control store dies; the nodes come back one after the other, or not."""
        before = {actor.spec.actor_id: actor.state for actor in self.table.actors()}
        for node in (N1, N2):
            self.lose_answers(node, done)
        self.waiting.clear()
        self.table = ActorTable(history_limit=5)
        self.perform(self.table.load(sorted(self.specs.items()), sorted(self.rows.items()), sorted(self.unwanted.items())))
        after = {actor.spec.actor_id: actor.state for actor in self.table.actors()}
        assert all(before[actor_id] == state for actor_id, state in after.items())
        assert all(state == "DEAD" for actor_id, state in before.items() if actor_id not in after), "lost"
        for node in (N1, N2) if first == N1 else (N2, N1):
            if node == lost:
                self.lose_node(node)
            else:
                self.back(node)

    @stateful.rule()
    def finish_job(self) -> None:
        self.perform(self.table.job_finished(JOB))
        assert all(actor.state == "DEAD" or actor.spec.detached for actor in self.table.actors())

    @stateful.invariant()
    def holds_together(self) -> None:
        self.table.check()
        for actor in self.table.actors():
            mine = [key for key in self.workers if key[0] == actor.spec.actor_id]
            current = (actor.spec.actor_id, actor.node_id, actor.incarnation)
            assert len([key for key in mine if not self.workers[key]]) <= 1, "two live incarnations"
            if actor.state == "ALIVE":
                assert current in mine
            for key in mine:
                if key != current or actor.state == "DEAD":
                    assert self.workers[key] or key in self.starts, "a worker that nobody wants lives on"
            if actor.state in ("PENDING", "RESTARTING") and not actor.starting:
                assert actor.spec.actor_id in self.waiting, "forgotten"


TestActorMachine = ActorMachine.TestCase
TestActorMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# --- nodes that drain

LEAVES = Cause(DRAINED, "Its node leaves.")


def test_an_actor_moves_off_a_node_that_drains_without_using_up_a_restart(table: ActorTable):
    alive(table, A, max_restarts=1)
    assert short(table.node_drains(N1, LEAVES)) == [("stop", N1, A, True, DRAINED)]
    assert short(table.worker_died(A, 0, LEAVES)) == ["RESTARTING", PlaceActor(A)]
    actor = table.get(A)
    assert actor is not None
    assert (actor.restarts, actor.moves, actor.incarnation, actor.restarts_left()) == (0, 1, 1, 1)
    table.check()


def test_an_actor_that_may_not_be_restarted_stays_until_the_node_leaves(table: ActorTable):
    alive(table, A)
    assert short(table.node_drains(N1, LEAVES)) == []
    assert short(table.node_died(N1, LEAVES)) == [ForgetPlacement(A), "DEAD", "ended"]


def test_one_whose_restarts_are_used_up_moves_all_the_same(table: ActorTable):
    alive(table, A, max_restarts=1)
    table.worker_died(A, 0, CRASH)
    table.place(A, N1)
    table.started(A, 1, N1, address(A, 1), None)
    assert short(table.node_drains(N1, LEAVES)) == [("stop", N1, A, True, DRAINED)]
    assert short(table.worker_died(A, 1, LEAVES)) == ["RESTARTING", PlaceActor(A)]


def test_one_that_starts_on_a_node_that_drains_moves_when_it_lives(table: ActorTable):
    table.create(spec(A, max_restarts=-1))
    table.place(A, N1)
    assert short(table.node_drains(N1, LEAVES)) == []
    assert short(table.started(A, 0, N1, address(A), None)) == ["ALIVE", ("stop", N1, A, True, DRAINED)]


def test_a_crash_on_a_node_that_drains_counts(table: ActorTable):
    alive(table, A, max_restarts=1)
    table.node_drains(N1, LEAVES)
    table.worker_died(A, 0, CRASH)
    actor = table.get(A)
    assert actor is not None
    assert actor.restarts == 1


def test_moves_are_remembered_over_a_restart_of_the_control_store(table: ActorTable):
    alive(table, A, max_restarts=3)
    table.worker_died(A, 0, LEAVES)
    actor = table.get(A)
    assert actor is not None
    loaded = ActorTable(history_limit=10)
    loaded.load([(A, encode(actor.spec))], [(A, actor.row())])
    again = loaded.get(A)
    assert again is not None
    assert (again.moves, again.restarts_left()) == (1, 3)
