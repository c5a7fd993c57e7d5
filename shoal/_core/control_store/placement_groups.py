"""The life of placement groups: bundles reserved in two phases, so that a group is all or nothing.

                create                      all nodes: yes           all nodes: done
               PENDING -- Prepare to nodes ------------> PREPARED -------------------> CREATED <-----------+
                  ^            | one says no                 | a node is gone             | a node is gone  |
                  +- Release --+                             +--------> RESCHEDULING <----+                 |
                                                                             +---- lost bundles placed -----+
               any -- remove --> REMOVED (Release to every node that was asked; done when all have answered)

The decision to commit is the saved state PREPARED. From then on bundles are lost one by one only, with their node, and replaced one by one.

Order: first come, first served, but a group that does not fit now lets up to ``MAX_PASSED`` later ones by, then holds the rest back,
so that a large group in a stream of small ones is served. A group that could never fit holds back nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from shoal._core.scheduling.packing import place_bundles
from shoal._core.wire.messages import PlacementGroupRecord, PlacementGroupSpec

from .group_records import CREATED, PENDING, PREPARED, REMOVED, RESCHEDULING, Group, GroupNameTaken, GroupStatistics, with_state
from .instructions import BundlesLost, Commit, GroupSettled, Instruction, Prepare, Release, RemovalDone
from .nodes import NodeTable
from .rows import GROUPS, decode_group, encode
from .storage.interface import Change

#: Later groups that may overtake one that waits for room.
MAX_PASSED = 16
#: Refused attempts in a row after which a group is tried on the slow tick only: its nodes' figures do not tell all (devices in pieces).
MAX_REFUSALS = 3


class PlacementGroupTable:
    def __init__(self, nodes: NodeTable, history_limit: int) -> None:
        self._nodes = nodes
        self._history_limit = history_limit
        self._groups: dict[bytes, Group] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        #: Groups with bundles to place, in order of arrival; those in the middle of an attempt are in it, too.
        self._queue: OrderedDict[bytes, None] = OrderedDict()
        #: Removed groups, oldest first.
        self._removed: OrderedDict[bytes, None] = OrderedDict()
        #: Groups of finished jobs that live on with the actor that created them.
        self._with_actor: dict[bytes, set[bytes]] = {}
        #: Counts events after which something may fit that did not fit before.
        self.changes = 0

    # --- reading

    def get(self, group_id: bytes) -> PlacementGroupRecord | None:
        group = self._groups.get(group_id)
        return None if group is None else group.record

    def named(self, namespace: str, name: str) -> PlacementGroupRecord | None:
        group_id = self._names.get((namespace, name))
        return None if group_id is None else self._groups[group_id].record

    def records(self) -> list[PlacementGroupRecord]:
        return [group.record for group in self._groups.values()]

    def is_removed(self, group_id: bytes) -> bool:
        group = self._groups.get(group_id)
        return group is None or group.record.state == REMOVED

    def releasing(self, group_id: bytes) -> bool:
        """Whether a removal is still under way."""
        group = self._groups.get(group_id)
        return group is not None and bool(group.releasing)

    def waits_for_room(self) -> bool:
        """Whether some group is to be placed and no attempt is under way for it."""
        return any(not self._groups[group_id].busy() for group_id in self._queue)

    def wanted(self) -> list[tuple[list[dict[str, int]], str]]:
        """Return the bundles that each group that waits still needs a node for, and its strategy."""
        waiting = [self._groups[group_id].record for group_id in self._queue]
        return [
            ([bundle for bundle, node_id in zip(record.spec.bundles, record.nodes, strict=True) if not node_id], record.spec.strategy)
            for record in waiting
        ]

    # --- the user's wishes

    def create(self, spec: PlacementGroupSpec, now: float) -> list[Instruction]:
        """Accept a group; ``schedule`` places it. Raises GroupNameTaken. The same group twice is one group."""
        group_id = spec.placement_group_id
        if group_id in self._groups:
            return []
        if spec.name:
            if (spec.namespace, spec.name) in self._names:
                raise GroupNameTaken
            self._names[spec.namespace, spec.name] = group_id
        self._groups[group_id] = Group(PlacementGroupRecord(spec, PENDING, [b""] * len(spec.bundles), now))
        self._queue[group_id] = None
        return [self._save(group_id)]

    def remove(self, group_id: bytes) -> list[Instruction]:
        """Give everything back. GroupSettled at once, RemovalDone when all nodes have answered. Unknown or removed: nothing."""
        group = self._groups.get(group_id)
        if group is None or group.record.state == REMOVED:
            return []
        record = group.record
        if record.spec.name:
            self._names.pop((record.spec.namespace, record.spec.name), None)
        if record.spec.creator_actor:
            self._with_actor.get(record.spec.creator_actor, set()).discard(group_id)
        self._queue.pop(group_id, None)
        for node_id in sorted(group.nodes_asked()):
            held = {index for index, at in enumerate(record.nodes) if at == node_id}
            for asked in (group.preparing, group.prepared, group.committing):
                held.update(asked.get(node_id, ()))
            self._settle(group, node_id, group.preparing.get(node_id, []), taken=True)
            group.releasing[node_id] = group.resources(held)
        for node in self._nodes.living():  # its bundles have left those that drain, and what runs in them has not
            if not node.record.takes_work:
                group.releasing.setdefault(node.record.node_id, {})
        group.preparing, group.prepared, group.committing = {}, {}, {}
        group.record = with_state(record, REMOVED, [b""] * len(record.nodes))
        instructions: list[Instruction] = [self._save(group_id), GroupSettled(group_id, removed=True)]
        instructions += [Release(node_id, group_id) for node_id in sorted(group.releasing)]
        return instructions + ([] if group.releasing else self._gone(group_id))

    def job_finished(self, job_id: bytes, actor_lives: Callable[[bytes], bool]) -> list[Instruction]:
        """Remove the job's groups; the detached stay, and so do those whose creator is an actor that outlives the job."""
        instructions: list[Instruction] = []
        for group_id, group in list(self._groups.items()):
            spec = group.record.spec
            if spec.job_id != job_id or spec.detached or group.record.state == REMOVED:
                continue
            if spec.creator_actor and actor_lives(spec.creator_actor):
                self._with_actor.setdefault(spec.creator_actor, set()).add(group_id)
            else:
                instructions += self.remove(group_id)
        return instructions

    def actor_ended(self, actor_id: bytes) -> list[Instruction]:
        orphans = self._with_actor.pop(actor_id, set())
        return [instruction for group_id in sorted(orphans) for instruction in self.remove(group_id)]

    # --- placing

    def something_changed(self) -> None:
        """Resources came free or a node joined: an attempt that is failing right now may be repeated at once."""
        self.changes += 1

    def schedule(self, *, tick: bool = False) -> list[Instruction]:
        """Begin an attempt for every waiting group that fits by the present view. O(different waiting groups * nodes).

        ``tick``: this is the slow retry, which takes the groups along that were refused again and again.
        """
        instructions: list[Instruction] = []
        overtaken: list[Group] = []
        tried: set[bytes] = set()
        for group_id in list(self._queue):
            group = self._groups[group_id]
            if (
                group.busy()
                or group.in_vain
                or (group.refusals >= MAX_REFUSALS and not tick)
                or (group.was_interrupted and self._nodes.missing())
            ):
                continue
            key = self._kind(group)
            plan = None if key in tried else self._plan(group)
            if plan is None:
                if key not in tried and self._plan(group, whole_nodes=True) is None:
                    continue  # can never fit as things stand: it holds back nobody
                tried.add(key)
                if group.passed >= MAX_PASSED:
                    break
                overtaken.append(group)
                continue
            for earlier in overtaken:
                earlier.passed += 1
            instructions += self._begin(group_id, group, plan)
            if any(earlier.passed >= MAX_PASSED for earlier in overtaken):
                break
        return instructions

    def prepared(self, group_id: bytes, node_id: bytes, ok: bool) -> list[Instruction]:
        """A node's answer to PrepareBundles."""
        group = self._groups.get(group_id)
        if group is None or node_id not in group.preparing:
            return []
        indices = group.preparing.pop(node_id)
        self._settle(group, node_id, indices, taken=ok)
        if ok:
            group.prepared[node_id] = indices
        else:
            group.refused = True
            group.refusals += 1
        if group.record.state == RESCHEDULING:
            return self._commit(group_id, group) if ok else self._retry_or_wait(group)
        if group.preparing:
            return []
        if group.refused:
            return self._give_back(group_id, group)
        group.record = with_state(group.record, PREPARED, self._planned(group))
        return [self._save(group_id), *self._commit(group_id, group)]

    def committed(self, group_id: bytes, node_id: bytes, ok: bool) -> list[Instruction]:
        """A node's answer to CommitBundles; not ``ok`` means that it does not hold the bundles."""
        group = self._groups.get(group_id)
        if group is None or node_id not in group.committing:
            return []
        indices = group.committing.pop(node_id)
        nodes = list(group.record.nodes)
        for index in indices:
            nodes[index] = node_id if ok and self._nodes.takes_work(node_id) else b""
        return self._changed(group_id, group, nodes)

    def released(self, group_id: bytes, node_id: bytes) -> list[Instruction]:
        """A node's answer to ReleaseBundles, whatever it is."""
        group = self._groups.get(group_id)
        if group is not None and node_id in group.in_vain:
            group.in_vain.discard(node_id)
            return self._retry_or_wait(group) if group_id in self._queue else []
        if group is None or node_id not in group.releasing:
            return []
        resources = group.releasing.pop(node_id)
        node = self._nodes.get(node_id)
        if node is not None:
            node.credit(resources)
        self.changes += group.record.state == REMOVED
        if group.releasing:
            return []
        return self._gone(group_id) if group.record.state == REMOVED else self._retry_or_wait(group)

    def node_died(self, node_id: bytes) -> list[Instruction]:
        """Open questions to the node are answered: no. Its bundles are lost."""
        instructions: list[Instruction] = []
        for group_id, group in list(self._groups.items()):
            instructions += self.prepared(group_id, node_id, ok=False)
            if node_id in group.prepared:  # said yes in an attempt that is still open
                del group.prepared[node_id]
                group.refused = True
            instructions += self.committed(group_id, node_id, ok=False)
            instructions += self.released(group_id, node_id)
            group.in_vain.discard(node_id)
            if node_id in group.record.nodes:
                nodes = [b"" if at == node_id else at for at in group.record.nodes]
                instructions += self._changed(group_id, group, nodes)
        return instructions

    def node_drains(self, node_id: bytes) -> list[Instruction]:
        """The node leaves in good order: its bundles are to be placed elsewhere. What runs in them runs on; nothing more is sent there."""
        instructions: list[Instruction] = []
        for group_id, group in list(self._groups.items()):
            if node_id in group.record.nodes and node_id not in group.committing:
                instructions += self._changed(group_id, group, [b"" if at == node_id else at for at in group.record.nodes])
        return instructions

    def node_back(self, node_id: bytes, held: Mapping[bytes, list[int]]) -> list[Instruction]:
        """The agent is connected again: open questions are asked again, and what it holds in vain is given back.

        A bundle that it holds from an attempt before a restart, and that is still to be placed, is placed there; not if it is about to
        leave: what runs inside of such a bundle runs on, and the bundle goes elsewhere.
        """
        instructions: list[Instruction] = []
        node = self._nodes.get(node_id)
        leaves = node is not None and not node.record.takes_work
        for group_id, indices in sorted(held.items()):
            group = self._groups.get(group_id)
            if group is None:
                instructions.append(Release(node_id, group_id))
            elif leaves and group.record.state != REMOVED:
                continue
            elif node_id not in group.nodes_asked() and node_id not in group.releasing:
                group.in_vain.add(node_id)
            elif group.was_interrupted:
                self._take_over(group, node_id, indices)
        for group_id, group in self._groups.items():
            if node_id in group.preparing:
                bundles = {index: group.record.spec.bundles[index] for index in group.preparing[node_id]}
                instructions.append(Prepare(node_id, group_id, bundles))
            if node_id in group.committing:
                instructions.append(Commit(node_id, group_id))
            if node_id in group.releasing or node_id in group.in_vain:
                instructions.append(Release(node_id, group_id))
        return instructions

    def _take_over(self, group: Group, node_id: bytes, indices: list[int]) -> None:
        """The node holds these: those that nobody counts on were reserved in an attempt before a restart, and are reserved again."""
        node = self._nodes.get(node_id)
        if node is None or group.record.state == REMOVED:
            return
        open_here = {*group.committing.get(node_id, ()), *group.preparing.get(node_id, ()), *group.prepared.get(node_id, ())}
        found = [index for index in indices if not group.record.nodes[index] and index not in open_here]
        if found:
            group.preparing.setdefault(node_id, []).extend(found)
            node.promise(group.resources(found))

    # --- restart

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> list[Instruction]:
        """Read back. A decision to commit that was saved is carried out when its nodes are back; the rest waits for ``schedule``."""
        for group_id, record in sorted(((key, decode_group(value)) for key, value in rows), key=lambda row: row[1].created_at):
            group = self._groups[group_id] = Group(record)
            if record.state == REMOVED:
                self._removed[group_id] = None
                continue
            if record.spec.name:
                self._names[record.spec.namespace, record.spec.name] = group_id
            if record.state == CREATED:
                continue
            self._queue[group_id] = None
            group.was_interrupted = record.state == RESCHEDULING
            if record.state == PREPARED:
                for index, node_id in enumerate(record.nodes):
                    group.committing.setdefault(node_id, []).append(index)
        return self._drop_oldest()

    def statistics(self) -> GroupStatistics:
        return GroupStatistics(len(self._queue), len(self._groups) - len(self._queue) - len(self._removed), len(self._removed))

    def check(self) -> None:
        assert all(self._groups[group_id].record.state != REMOVED for group_id in self._names.values())
        assert len(self._removed) <= self._history_limit
        for group_id, group in self._groups.items():
            state, nodes = group.record.state, group.record.nodes
            assert (group_id in self._queue) == (state in (PENDING, PREPARED, RESCHEDULING)), state
            assert (group_id in self._removed) == (state == REMOVED and not group.releasing)
            if state == CREATED:
                assert all(nodes), "all bundles are committed"
                assert not group.busy()
            if state in (PENDING, REMOVED):
                assert not any(nodes), "no bundle is committed"
                assert not group.committing
            if state == REMOVED:
                assert not {**group.preparing, **group.prepared}
            open_at = [*group.preparing, *group.prepared, *group.committing, *group.releasing]
            assert len(open_at) == len(set(open_at)), "two questions to one node"

    # --- private

    def _plan(self, group: Group, *, whole_nodes: bool = False) -> list[bytes] | None:
        spec = group.record.spec
        taken = {index: node_id for index, node_id in enumerate(group.record.nodes) if node_id}
        views, selectors = self._nodes.views(), spec.bundle_label_selector
        return place_bundles(
            spec.bundles, spec.strategy, views, selectors, whole_nodes=whole_nodes, taken=taken, preferred=spec.target_node
        )

    def _begin(self, group_id: bytes, group: Group, plan: list[bytes]) -> list[Instruction]:
        group.refused, group.was_interrupted, group.attempt_at = False, False, self.changes
        for index, node_id in enumerate(plan):
            if not group.record.nodes[index]:
                group.preparing.setdefault(node_id, []).append(index)
        instructions: list[Instruction] = []
        for node_id, indices in group.preparing.items():
            node = self._nodes.get(node_id)
            assert node is not None
            node.promise(group.resources(indices))
            instructions.append(Prepare(node_id, group_id, {index: group.record.spec.bundles[index] for index in indices}))
        return instructions

    def _settle(self, group: Group, node_id: bytes, indices: list[int], *, taken: bool) -> None:
        node = self._nodes.get(node_id)
        if node is not None and indices:
            node.settle(group.resources(indices), taken=taken)

    def _planned(self, group: Group) -> list[bytes]:
        nodes = list(group.record.nodes)
        for node_id, indices in group.prepared.items():
            for index in indices:
                nodes[index] = node_id
        return nodes

    def _commit(self, group_id: bytes, group: Group) -> list[Instruction]:
        """Turn every yes into a commitment."""
        group.committing |= group.prepared
        instructions: list[Instruction] = [Commit(node_id, group_id) for node_id in group.prepared]
        group.prepared = {}
        return instructions

    def _give_back(self, group_id: bytes, group: Group) -> list[Instruction]:
        """The attempt failed somewhere: release where it did not."""
        group.releasing = {node_id: group.resources(indices) for node_id, indices in group.prepared.items()}
        group.prepared = {}
        if not group.releasing:
            return self._retry_or_wait(group)
        return [Release(node_id, group_id) for node_id in group.releasing]

    def _retry_or_wait(self, group: Group) -> list[Instruction]:
        """After a failed attempt: try again at once only if something changed meanwhile, or it would spin."""
        return self.schedule() if not group.busy() and self.changes > group.attempt_at else []

    def _changed(self, group_id: bytes, group: Group, nodes: list[bytes]) -> list[Instruction]:
        """Take over where the bundles are, once all nodes have answered."""
        record = group.record
        if record.state == REMOVED:
            return []
        waits = bool(group.committing) or (record.state == RESCHEDULING and bool(group.preparing))
        if all(nodes) and not waits:
            group.record = with_state(record, CREATED, nodes)
            group.passed = group.refusals = 0
            self._queue.pop(group_id, None)
            return [self._save(group_id), GroupSettled(group_id, removed=False)]
        lost = not all(nodes)
        group.record = with_state(record, RESCHEDULING if lost else record.state, nodes)
        if not lost:
            return []
        self._queue[group_id] = None
        return [self._save(group_id), BundlesLost(group_id)]

    def _gone(self, group_id: bytes) -> list[Instruction]:
        self._removed[group_id] = None
        return [RemovalDone(group_id), *self._drop_oldest()]

    def _drop_oldest(self) -> list[Instruction]:
        instructions: list[Instruction] = []
        while len(self._removed) > self._history_limit:
            oldest, _ = self._removed.popitem(last=False)
            del self._groups[oldest]
            instructions.append(Change(GROUPS, oldest, None))
        return instructions

    def _kind(self, group: Group) -> bytes:
        """What two groups have in common of which one answers for the other."""
        spec = group.record.spec
        return encode((spec.bundles, spec.strategy, spec.bundle_label_selector, group.record.nodes))

    def _save(self, group_id: bytes) -> Change:
        return Change(GROUPS, group_id, encode(self._groups[group_id].record))
