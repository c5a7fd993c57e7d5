"""The end of a process by plan: what others still need of it goes to the node agent. Runs on the I/O thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import chain

from shoal._core.wire import messages as m

from .actors import ActorToken
from .core import Core
from .entries import STORED, Entry

#: Causes of ends that can wait for what the process has started.
PLANNED_ENDS = frozenset({"max_calls", "idle", "out_of_scope", "exit_actor", m.DRAINED})
#: Seconds that others have to end their connections to a process that leaves.
FAREWELL_S = 5.0
#: Seconds that all of it may take.
HAND_OVER_S = FAREWELL_S + 5.0


async def finish_tasks(core: Core, cause: m.Cause) -> None:
    """The process leaves by plan: what it submitted runs to its end first, and the actors that it created for others live on, because
    nobody else can answer for them.
    """
    core.agent.send(m.ProcessExiting(cause, unfinished=True))
    while (core.cancellation.has_unfinished() or _lent_actors(core)) and not core.closing:
        await asyncio.sleep(0.01)


def _unregister_agent(core: Core, inner: Entry) -> None:
    """Take back what was registered for the agent: with the owner, or with the agent itself where that has left meanwhile."""
    assert inner.owner is not None
    peer = core.peers.known(inner.owner.worker_id)
    channel = core.agents.get(inner.owner.node_id) if peer is None or peer.left or peer.lost else peer
    channel.send(m.RemoveBorrower(inner.object_id, core.agent_address, 1))


def _lent_actors(core: Core) -> bool:
    """Whether others hold handles of our actors, or objects of ours that have handles inside."""
    return any(isinstance(entry, ActorToken) for entry in _with_insides(entry for entry in _own(core) if entry.borrowers).values())


def _own(core: Core) -> list[Entry]:
    return [entry for entry in core.objects.own.entries.values() if entry.owner is None and entry.kind >= 0]


def _with_insides(entries: Iterable[Entry]) -> dict[bytes, Entry]:
    """Return these objects of ours and what is inside of them, to any depth, as far as it is ours."""
    found: dict[bytes, Entry] = {}
    todo = list(entries)
    while todo:
        entry = todo.pop()
        if entry.object_id not in found:
            found[entry.object_id] = entry
            todo += [inner for inner in entry.inner or () if inner.owner is None and inner.kind >= 0]
    return found


async def hand_over(core: Core, cause: m.Cause) -> None:
    """Give the node agent what others hold of this process, and leave the session. Returns when the agent has it."""
    core.leasing.leave()
    core.agent.send(m.ProcessExiting(cause))
    # What others hold. And what is stored on other nodes, which need not be asked for it then.
    held = _with_insides(entry for entry in _own(core) if entry.borrowers or (entry.kind == STORED and entry.data[0] != core.me.node_id))
    foreign = {object_id: [inner for inner in entry.inner or () if inner.owner is not None] for object_id, entry in held.items()}
    # The agent holds what is inside before we let go of it; only then are the counts final.
    await asyncio.gather(*core.objects.grant(chain(*foreign.values()), core.agent_address), return_exceptions=True)
    kept = []
    for object_id, entry in held.items():
        if core.objects.own.entries.get(object_id) is not entry or entry.kind < 0:  # released meanwhile
            for inner in foreign[object_id]:
                _unregister_agent(core, inner)
            continue
        value = m.Value(entry.kind, refs=core.objects.infos(entry.inner or []))
        if entry.kind == STORED:
            value.node_id, value.nbytes = entry.data
        else:
            value.data = entry.data
        kept.append(m.OwnedObject(entry.object_id, value, [(address, count) for address, count in (entry.borrowers or {}).values()]))
    if kept:
        core.objects.handed_over = True
        await core.agent.request(m.AdoptObjects(0, kept))
        core.objects.turn_away()
    # They end their connections when they have read all that was said: what this process has not written yet when it ends is lost.
    await core.see_callers_off(cause, FAREWELL_S)
    core.flush()
    await core.peers.connected(FAREWELL_S)  # an object of ours may lie on a node that we have not talked to: nobody else frees it
    await core.close()
    await asyncio.sleep(0.005)
