"""The life of actors.

               create
                 v     placed, started             worker died, restarts left
              PENDING ------------------> ALIVE -------------------------------> RESTARTING
                 |                        |  ^                                    |   |
                 | killed, __init__       |  +------ placed, started -------------+   |
                 | raised, owner gone     | killed, exit_actor, no restarts left      |
                 +------------------------+------------> DEAD <-----------------------+

Exactly one live incarnation: a new one is asked for only when the agent has answered the request for the one before, and has reported
the end of its worker (or when the agent's node is gone). So an interrupted start (``interrupted``) waits for the agent's answer.

An actor on a node that drains is asked to end after the calls it has, if it may be restarted, and starts elsewhere; that is a move, and
does not count as a restart. Others stay until the node leaves.

An actor that goes out of scope ends in good order: it stays ALIVE, nameless, with ``ending`` set, until its worker has left.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import chain
from typing import TypeVar

import msgspec

from shoal._core.wire.messages import ACTOR_ALIVE, ACTOR_DEAD, ACTOR_PENDING, ACTOR_RESTARTING, DRAINED, ActorSpec, Address, Cause

from .actor_index import ActorIndex
from .actor_records import FINAL_CAUSES, Actor, ActorStatistics, NameTaken
from .instructions import ActorEnded, AnnounceActor, CancelStart, ForgetPlacement, Instruction, PlaceActor, StartOn, StopOn
from .rows import ACTOR_SPECS, ACTORS, UNWANTED_ACTORS, decode_actor, decode_actor_spec, decode_cause, encode
from .storage.interface import Change

#: Ids remembered per entry of the history: 100 bytes against kilobytes.
IDS_PER_HISTORY = 64

T = TypeVar("T")


class ActorTable:
    """All actors that live, and the last ``history_limit`` that died. Each method returns what to do; order matters."""

    def __init__(self, history_limit: int) -> None:
        self._history_limit = history_limit
        self._actors: dict[bytes, Actor] = {}
        self._index = ActorIndex()
        #: Dead actors, oldest first.
        self._dead: OrderedDict[bytes, None] = OrderedDict()
        #: Ids of dead actors beyond the history, newest last: a handle to one must not wait for a creation that was long ago.
        self._forgotten: OrderedDict[bytes, None] = OrderedDict()
        #: Actors that were killed, or lost their last handle, before their creation arrived (it waits for their arguments).
        self._unwanted: OrderedDict[bytes, Cause] = OrderedDict()
        #: Processes that were killed, by worker id: what they asked for last may come after the word of their end.
        self._dead_owners: OrderedDict[bytes, Cause] = OrderedDict()
        #: Nodes that drain.
        self._draining: dict[bytes, Cause] = {}

    # --- reading

    def get(self, actor_id: bytes) -> Actor | None:
        return self._actors.get(actor_id)

    def was_known(self, actor_id: bytes) -> bool:
        """Whether the actor died so long ago that only its id is left."""
        return actor_id in self._forgotten

    def named(self, namespace: str, name: str) -> Actor | None:
        actor_id = self._index.names.get((namespace, name))
        return None if actor_id is None else self._actors[actor_id]

    def names(self, namespace: str | None) -> list[tuple[str, str]]:
        """List (namespace, name) of all named live actors, of one namespace or of all."""
        return sorted(entry for entry in self._index.names if namespace is None or entry[0] == namespace)

    def actors(self) -> list[Actor]:
        return list(self._actors.values())

    def has_detached(self, job_id: bytes) -> bool:
        """Whether a live detached actor came from this job."""
        return self._index.detached[job_id] > 0

    # --- the user's wishes

    def create(self, spec: ActorSpec, failed: Cause | None = None) -> list[Instruction]:
        """Accept a new actor, or raise NameTaken and change nothing. The same actor twice is one actor (a repeated request).

        ``failed``: it cannot start, and is dead at once.
        """
        if spec.actor_id in self._actors or spec.actor_id in self._forgotten:
            return []
        if spec.name and (spec.namespace, spec.name) in self._index.names:
            raise NameTaken
        actor = self._actors[spec.actor_id] = Actor(spec)
        self._index.add(spec)
        rows: list[Instruction] = [Change(ACTOR_SPECS, spec.actor_id, encode(spec))]
        unwanted = self._unwanted.pop(spec.actor_id, None)
        if unwanted is not None:
            rows.append(Change(UNWANTED_ACTORS, spec.actor_id, None))
            if not (spec.detached and unwanted.kind == "out_of_scope"):
                return [*rows, *self._end([actor], failed or unwanted)]
        failed = failed or (None if spec.detached else self._dead_owners.get(spec.owner.worker_id))
        if failed is not None:
            return [*rows, *self._end([actor], failed)]
        return [*rows, self._save(actor), AnnounceActor(actor.update()), PlaceActor(spec.actor_id)]

    def kill(self, actor_id: bytes, *, no_restart: bool) -> list[Instruction]:
        """End the actor's process; ``no_restart`` False lets it start again if it may. Dead: nothing."""
        actor = self._actors.get(actor_id)
        cause = Cause("killed", "It was killed by shoal.kill().")
        if actor is None:
            return self._remember_unwanted(actor_id, cause) if no_restart else []
        if actor.state == ACTOR_DEAD:
            return []
        if no_restart or actor.ending is not None or actor.restarts_left() == 0:
            return self._end([actor], cause)
        if actor.interrupted or not actor.node_id:
            return []
        actor.interrupted = True
        if actor.starting:
            return [self._save(actor), CancelStart(actor.node_id, actor_id)]
        return [self._save(actor), StopOn(actor.node_id, actor_id, False, cause)]

    def out_of_scope(self, actor_id: bytes) -> list[Instruction]:
        """No handle is left: end after the calls that have arrived; an actor that does not live yet never will."""
        actor = self._actors.get(actor_id)
        cause = Cause("out_of_scope", "All handles to it are gone.")
        if actor is None:
            return self._remember_unwanted(actor_id, cause)
        if actor.state == ACTOR_DEAD or actor.spec.detached or actor.ending is not None:
            return []
        if actor.state != ACTOR_ALIVE:
            return self._end([actor], cause)
        actor.ending = cause
        self._index.free_name(actor.spec)
        return [self._save(actor), StopOn(actor.node_id, actor_id, True, cause)]

    # --- placement

    def place(self, actor_id: bytes, node_id: bytes, *, movable: bool = False) -> list[Instruction]:
        """A node was chosen for the next start; ``movable``: it may refuse."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.starting or actor.state not in (ACTOR_PENDING, ACTOR_RESTARTING):
            return []
        actor.starting, actor.node_id = True, node_id
        self._index.by_node.setdefault(node_id, set()).add(actor_id)
        return [self._save(actor), StartOn(node_id, actor_id, actor.incarnation, movable)]

    def unschedulable(self, actor_id: bytes, message: str) -> list[Instruction]:
        """The actor can never run: its hard affinity is to a dead node, its placement group is gone."""
        return self._end(self._living([actor_id]), Cause("unschedulable", message))

    # --- what node agents report

    def started(self, actor_id: bytes, incarnation: int, node_id: bytes, address: Address | None, cause: Cause | None) -> list[Instruction]:
        """The agent's answer to StartActor: ``__init__`` is done, or ``cause`` says why not."""
        actor = self._actors.get(actor_id)
        is_current = actor is not None and (actor.incarnation, actor.node_id) == (incarnation, node_id)
        if actor is None or not actor.starting or not is_current:
            lives = is_current and actor is not None and actor.state == ACTOR_ALIVE  # asked twice, answered twice
            return [] if cause or lives else [StopOn(node_id, actor_id, False, Cause("killed", "It is not wanted any more."))]
        early, actor.early_death = actor.early_death, None
        interrupted, actor.starting = actor.interrupted, False
        if actor.state == ACTOR_DEAD:
            self._leave_node(actor)
            unwanted = cause is None and early is None
            return [StopOn(node_id, actor_id, False, actor.cause or Cause("killed"))] if unwanted else []
        if cause is not None:
            return self._end([actor], cause) if cause.kind == "init_failed" and not interrupted else self._worker_ended(actor, cause)
        if early is not None:
            return self._worker_ended(actor, early)
        actor.state, actor.address = ACTOR_ALIVE, address
        instructions: list[Instruction] = [self._save(actor), AnnounceActor(actor.update())]
        if interrupted:  # the cancellation came too late
            instructions.append(StopOn(node_id, actor_id, False, Cause("killed", "It was killed by shoal.kill().")))
        return instructions + self._move(actor)

    def start_failed(self, actor_id: bytes, incarnation: int, node_id: bytes) -> list[Instruction]:
        """The agent refused to start it, or has cancelled it as asked: look for a place again. A refusal costs no restart."""
        actor = self._actors.get(actor_id)
        if actor is None or not actor.starting or actor.incarnation != incarnation or actor.node_id != node_id:
            return []
        interrupted = actor.interrupted
        actor.starting = False
        actor.early_death = None
        self._leave_node(actor)
        if interrupted:
            return self._worker_ended(actor, Cause("killed", "It was killed by shoal.kill()."))
        return [] if actor.state == ACTOR_DEAD else [self._save(actor), PlaceActor(actor_id, later=True)]

    def worker_died(self, actor_id: bytes, incarnation: int, cause: Cause) -> list[Instruction]:
        """The process of this incarnation has ended. An incarnation other than the current one changes nothing."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.incarnation != incarnation:
            return []
        if actor.starting:
            actor.early_death = cause
            return []
        return self._worker_ended(actor, cause) if actor.state == ACTOR_ALIVE else []

    def node_drains(self, node_id: bytes, cause: Cause) -> list[Instruction]:
        """The node leaves in good order: those of its actors that may be restarted move. Repeating it asks them again."""
        self._draining[node_id] = cause
        there = sorted(self._index.by_node.get(node_id, ()))
        return [instruction for actor_id in there for instruction in self._move(self._actors[actor_id])]

    def node_died(self, node_id: bytes, cause: Cause) -> list[Instruction]:
        """Everything on the node is gone, and open requests to it will not be answered."""
        instructions: list[Instruction] = []
        self._draining.pop(node_id, None)
        for actor_id in sorted(self._index.by_node.get(node_id, ())):
            actor = self._actors[actor_id]
            actor.starting = False
            actor.early_death = None
            if actor.state == ACTOR_DEAD:
                self._leave_node(actor)
            else:
                instructions += self._worker_ended(actor, cause)
        orphans = [
            actor for actor in self._living(chain.from_iterable(self._index.by_owner.values())) if actor.spec.owner.node_id == node_id
        ]
        return instructions + self._end(orphans, Cause("owner_died", f"The process that created it has ended. {cause.message}"))

    def node_back(self, node_id: bytes, hosted: Iterable[tuple[bytes, int]]) -> list[Instruction]:
        """The agent is connected again; what was asked of it may have been lost, and it holds these incarnations."""
        instructions: list[Instruction] = []
        for actor_id, incarnation in hosted:
            actor = self._actors.get(actor_id)
            if actor is None or actor.state == ACTOR_DEAD or (actor.node_id, actor.incarnation) != (node_id, incarnation):
                instructions.append(StopOn(node_id, actor_id, False, Cause("killed", "It is not wanted any more.")))
        for actor_id in sorted(self._index.by_node.get(node_id, ())):
            actor = self._actors[actor_id]
            if actor.state == ACTOR_DEAD:  # if its start has come there, the agent holds it, and was told above
                actor.starting = False
                self._leave_node(actor)
            elif actor.starting:
                instructions.append(StartOn(node_id, actor_id, actor.incarnation))
                if actor.interrupted:
                    instructions.append(CancelStart(node_id, actor_id))
            elif actor.state == ACTOR_ALIVE and actor.ending is not None:
                instructions.append(StopOn(node_id, actor_id, True, actor.ending))
            elif actor.state == ACTOR_ALIVE and actor.interrupted:
                instructions.append(StopOn(node_id, actor_id, False, Cause("killed", "It was killed by shoal.kill().")))
        return instructions

    # --- the end of what an actor belongs to

    def owner_died(self, worker_id: bytes, cause: Cause) -> list[Instruction]:
        """The process that created them has ended: its actors go, and theirs. Detached ones stay."""
        _remember(self._dead_owners, worker_id, cause, self._history_limit)
        return self._end(self._living(self._index.by_owner.get(worker_id, ())), cause)

    def adopted(self, worker_id: bytes) -> None:
        """The owner left in good order while others hold handles: its actors now live as long as the job."""
        self._index.by_owner.pop(worker_id, None)

    def job_finished(self, job_id: bytes) -> list[Instruction]:
        """End the job's actors but the detached ones, and take the rows of all its dead off the disk."""
        members = self._index.by_job.get(job_id, ())
        cause = Cause("job_finished", "Its job has ended.")
        instructions = self._end([actor for actor in self._living(members) if not actor.spec.detached], cause)
        for actor_id in sorted(self._index.by_job.get(job_id, ())):
            if self._actors[actor_id].state == ACTOR_DEAD:
                instructions += _erase(actor_id)
        return instructions

    def group_removed(self, group_id: bytes) -> list[Instruction]:
        members = self._living(self._index.by_group.get(group_id, ()))
        return self._end(members, Cause("placement_group_removed", "Its placement group was removed."))

    # --- restart

    def load(
        self,
        specs: Iterable[tuple[bytes, bytes]],
        rows: Iterable[tuple[bytes, bytes]],
        unwanted: Iterable[tuple[bytes, bytes]] = (),
    ) -> list[Instruction]:
        """Read back. Those that wait for a node are placed anew; a start in flight is asked for again when its node is back."""
        self._unwanted.update((actor_id, decode_cause(value)) for actor_id, value in unwanted)
        states = {actor_id: decode_actor(value) for actor_id, value in rows}
        instructions: list[Instruction] = []
        for actor_id, value in specs:
            row = states[actor_id]
            spec = decode_actor_spec(value)
            actor = Actor(spec, row.state, row.incarnation, row.restarts, row.node_id, row.address, row.cause, row.ending)
            self._actors[actor_id] = actor
            self._index.add(actor.spec)
            if actor.state == ACTOR_DEAD:
                self._index.bury(actor.spec)
                self._dead[actor_id] = None
                actor.node_id = b""  # an open start there is the agent's to tell of
                continue
            if actor.ending is not None:
                self._index.free_name(actor.spec)
            if actor.node_id:
                self._index.by_node.setdefault(actor.node_id, set()).add(actor_id)
            actor.starting, actor.interrupted, actor.moves = row.starting, row.interrupted, row.moves
            if not row.starting and actor.state != ACTOR_ALIVE:
                instructions.append(PlaceActor(actor_id))
        return instructions + self._drop_oldest()

    def statistics(self) -> ActorStatistics:
        counts = dict.fromkeys((ACTOR_PENDING, ACTOR_ALIVE, ACTOR_RESTARTING, ACTOR_DEAD), 0)
        for actor in self._actors.values():
            counts[actor.state] += 1
        return ActorStatistics(*counts.values())

    def check(self) -> None:
        """O(actors)."""
        self._index.check({actor_id: actor.spec for actor_id, actor in self._actors.items() if actor_id not in self._dead})
        assert len(self._dead) <= self._history_limit
        for actor_id, actor in self._actors.items():
            assert (actor.state == ACTOR_DEAD) == (actor_id in self._dead)
            assert (actor.state == ACTOR_ALIVE) == (actor.address is not None)
            assert not (actor.starting and actor.state == ACTOR_ALIVE), "two incarnations"
            assert bool(actor.node_id) == (actor.starting or actor.state == ACTOR_ALIVE)
            assert (actor_id in self._index.by_node.get(actor.node_id, ())) == bool(actor.node_id)
            assert actor.starting or not actor.early_death
            assert actor.node_id or not actor.interrupted

    # --- private

    def _living(self, actor_ids: Iterable[bytes]) -> list[Actor]:
        """In the order of ids, so that a replay gives the same instructions."""
        actors = (self._actors.get(actor_id) for actor_id in sorted(actor_ids))
        return [actor for actor in actors if actor is not None and actor.state != ACTOR_DEAD]

    def _move(self, actor: Actor) -> list[Instruction]:
        """Have an actor on a node that drains end there, if it may start again; one that starts now is asked when it lives."""
        cause = self._draining.get(actor.node_id)
        return [StopOn(actor.node_id, actor.spec.actor_id, True, cause)] if cause is not None and actor.may_move() else []

    def _worker_ended(self, actor: Actor, cause: Cause) -> list[Instruction]:
        """The current incarnation is over: start again, or bury."""
        worker = actor.address.worker_id if actor.address is not None else b""
        actor.address = None
        self._leave_node(actor)
        if actor.ending is not None:
            return self._end([actor], _with_facts(actor.ending, cause), worker)
        moves = cause.kind == DRAINED and actor.spec.max_restarts != 0
        if cause.kind in FINAL_CAUSES or (actor.restarts_left() == 0 and not moves):
            return self._end([actor], cause, worker)
        actor.restarts += not moves
        actor.moves += moves
        actor.incarnation += 1
        actor.state, actor.cause = ACTOR_RESTARTING, cause
        instructions: list[Instruction] = [self._save(actor), AnnounceActor(actor.update()), PlaceActor(actor.spec.actor_id)]
        return instructions + self._end(self._living(self._index.by_owner.get(worker, ())), _owner_died(actor))

    def _end(self, actors: list[Actor], cause: Cause, worker: bytes = b"") -> list[Instruction]:
        """Bury the actors, all that their processes own, and so on. A loop: a chain of owners may be longer than the stack."""
        instructions: list[Instruction] = []
        work = deque((actor, cause, worker) for actor in actors)
        while work:
            actor, cause, worker = work.popleft()
            if actor.state == ACTOR_DEAD:
                continue
            worker = worker or (actor.address.worker_id if actor.address is not None else b"")
            instructions += self._bury(actor, cause)
            work.extend((child, _owner_died(actor), b"") for child in self._living(self._index.by_owner.get(worker, ())))
        return instructions

    def _bury(self, actor: Actor, cause: Cause) -> list[Instruction]:
        actor_id = actor.spec.actor_id
        instructions: list[Instruction] = []
        if actor.state == ACTOR_ALIVE and actor.node_id:
            instructions.append(StopOn(actor.node_id, actor_id, False, cause))
            self._leave_node(actor)
        elif actor.starting:
            instructions.append(CancelStart(actor.node_id, actor_id))
        else:
            self._leave_node(actor)
            instructions.append(ForgetPlacement(actor_id))
        actor.state, actor.address, actor.cause, actor.ending = ACTOR_DEAD, None, cause, None
        actor.interrupted, actor.early_death = False, None
        self._index.bury(actor.spec)
        # What a restart would need is the bulk of an actor's memory.
        actor.spec = msgspec.structs.replace(actor.spec, args=b"", deps=[])
        self._dead[actor_id] = None
        instructions += [Change(ACTOR_SPECS, actor_id, encode(actor.spec)), self._save(actor), AnnounceActor(actor.update())]
        instructions.append(ActorEnded(actor_id, actor.spec.job_id, actor.spec.detached))
        return instructions + self._drop_oldest()

    def _drop_oldest(self) -> list[Instruction]:
        instructions: list[Instruction] = []
        while len(self._dead) > self._history_limit:
            actor_id, _ = self._dead.popitem(last=False)
            actor = self._actors.pop(actor_id)
            self._leave_node(actor)
            self._index.drop(actor.spec)
            _remember(self._forgotten, actor_id, None, IDS_PER_HISTORY * self._history_limit)
            instructions += _erase(actor_id)
        return instructions

    def _remember_unwanted(self, actor_id: bytes, cause: Cause) -> list[Instruction]:
        if actor_id in self._forgotten:
            return []
        gone = _remember(self._unwanted, actor_id, cause, self._history_limit)
        return [Change(UNWANTED_ACTORS, actor_id, encode(cause)), *(Change(UNWANTED_ACTORS, oldest, None) for oldest in gone)]

    def _leave_node(self, actor: Actor) -> None:
        self._index.leave_node(actor.spec.actor_id, actor.node_id)
        actor.node_id, actor.interrupted = b"", False

    def _save(self, actor: Actor) -> Change:
        return Change(ACTORS, actor.spec.actor_id, actor.row())


def _remember(memory: OrderedDict[bytes, T], actor_id: bytes, what: T, limit: int) -> list[bytes]:
    """Add to a memory that forgets the oldest; return those."""
    memory[actor_id] = what
    return [memory.popitem(last=False)[0] for _ in range(len(memory) - limit)]


def _erase(actor_id: bytes) -> list[Instruction]:
    return [Change(ACTOR_SPECS, actor_id, None), Change(ACTORS, actor_id, None)]


def _owner_died(owner: Actor) -> Cause:
    return Cause("owner_died", f"The actor that created it has ended: {owner.spec.class_name} ({owner.spec.actor_id.hex()}).")


def _with_facts(intended: Cause, seen: Cause) -> Cause:
    """Why it ended, with how it ended."""
    return msgspec.structs.replace(
        seen, kind=intended.kind, message=intended.message, error=intended.error or seen.error, node_id=seen.node_id or intended.node_id
    )
