"""Lost objects are looked for on other nodes, then computed again from the lineage that their owner kept. I/O thread only.

object lost -> recover -> a node has a copy: that is the primary copy now
                       -> its node had spilled it behind a URL: this node goes on with it
                       -> the task is submitted again, its arguments first
                       -> ObjectReconstructionFailedError, with the reason
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from shoal import exceptions
from shoal._base.ids import NODE_BYTES
from shoal._core.serialization import serialize_system_error
from shoal._core.wire.messages import FAILED, PromoteCopy, Value

from .entries import PENDING, RELEASED, STORED, BorrowedEntry, Entry, Stored
from .lineage import Lineage
from .records import FINISHED, WAITING, TaskRecord

if TYPE_CHECKING:
    from .core import Core


class Recovery:
    """The shell around lineage."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.lineage = Lineage(core.objects.own, core.settings.lineage_limit_bytes)

    def entry_released(self, entry: Entry) -> None:
        """An object is gone for good; when it was the last of its task's results, so is the lineage."""
        record = entry.task
        if record is None or record.state != FINISHED:
            return
        own = self.core.objects.own
        if all(own.entries.get(other.object_id) is not other for other in record.returns) and (
            record.generator is None or record.generator.drained
        ):
            self.lineage.drop(record)

    def argument_lost(self, record: TaskRecord, value: Value) -> None:
        nodes = {info.object_id: value.data[i * NODE_BYTES : (i + 1) * NODE_BYTES] for i, info in enumerate(value.refs)}
        for entry in record.deps:
            if entry.object_id in nodes:
                self.core.objects.lost(entry, nodes[entry.object_id])
        self._resubmit_now(record)

    def recover(self, entry: Entry) -> None:
        """Find another copy of a lost object, or compute it again."""
        is_ours = entry.kind == STORED and not isinstance(entry, BorrowedEntry)
        places = self._other_places(entry) if is_ours else []
        if places:
            stored, inner = entry.data, entry.inner
            entry.inner = None  # they live on
            self.core.objects.own.reset(entry)
            self._promote(entry, stored, inner, places)
        else:
            self._compute(entry)

    def nodes_died(self, node_ids: Collection[bytes]) -> None:
        """Have what they had spilled adopted at once, read or not: what nobody claims is deleted after a while."""
        objects = self.core.objects
        entries = [objects.own.entries.get(object_id) for object_id in objects.copies.spilled_by(node_ids)]
        lost = [entry for entry in entries if entry is not None and entry.kind == STORED and entry.data.node_id in node_ids]
        for entry in lost:
            self.recover(entry)
        if lost:
            self.core.note(f"{len(lost)} objects were lost with their node; what it had spilled of them is used.")

    def _other_places(self, entry: Entry) -> list[tuple[bytes, str]]:
        """Return (node to ask, where the lost copy was spilled), the likeliest first."""
        copies, lost = self.core.objects.copies, entry.data.node_id
        places = [(node_id, "") for node_id in copies.take(entry.object_id, lost)]
        if spilled := copies.take_spilled(entry.object_id, lost):
            places.append((self.core.me.node_id, spilled))
        return places

    def _promote(self, entry: Entry, stored: Stored, inner: list[Entry] | None, places: list[tuple[bytes, str]]) -> None:
        """Ask the nodes one after the other whether they have a complete copy, or can get it."""
        (node_id, spilled), *others = places
        objects = self.core.objects

        def answered(done: asyncio.Future[Any]) -> None:
            if self.core.closing:
                return
            is_there = not done.cancelled() and done.exception() is None
            if entry.kind != PENDING:  # its task has run again meanwhile, for the sake of another of its results
                for held in inner or ():
                    objects.own.unpin(held)
                if is_there and not (entry.kind == STORED and entry.data.node_id == node_id):
                    objects.free_leftover(entry.object_id, node_id)
            elif is_there:
                if not spilled:
                    self.core.note(f"Object {entry.object_id.hex()} was lost with its node; a copy of another node is used.")
                objects.complete(entry, STORED, Stored(node_id, stored.nbytes), inner)
                for other, _ in others:
                    objects.told(entry, other)
                if not spilled:  # else it would delete the file that is used now
                    # If that node has not died but is out of reach for some.
                    objects.free_leftover(entry.object_id, stored.node_id)
            elif others:
                self._promote(entry, stored, inner, others)
            else:
                entry.kind, entry.data, entry.inner = STORED, stored, inner
                if entry.count > 0 or entry.borrowers is not None:
                    self._compute(entry)
                else:  # nobody needs it any more
                    objects.own.settle(entry)
            self.core.flush()

        request = PromoteCopy(0, entry.object_id, self.core.me, objects.infos(inner or ()), spilled, stored.nbytes)
        self.core.agents.get(node_id).request(request).add_done_callback(answered)

    def _compute(self, entry: Entry) -> None:
        """Compute a lost object again, and before it whatever it needs that is lost too. Iterative."""
        todo, again = [entry], []
        while todo:
            lost = todo.pop()
            if lost.kind == PENDING:
                continue
            record = lost.task
            if record is not None and record.state != FINISHED:  # it runs already, for the sake of another of its results
                self.core.objects.own.reset(lost)
                continue
            reason = self._unrecoverable(lost, record)
            if reason or record is None or not self.lineage.take(record):
                self._give_up(lost, reason or "its lineage is gone")
                continue
            record.state = WAITING
            record.next_attempt()
            if record.retries > 0:
                record.retries -= 1
            for other in record.returns:
                if other is lost or other.kind == RELEASED:
                    self.core.objects.own.reset(other)
            if lost.kind != PENDING:
                self.core.objects.own.reset(lost)  # an item of a stream
            self.core.cancellation.started(record)
            if record.template.actor_id:
                self.core.actors.hold(record)
            todo.extend(dep for dep in record.deps if dep.kind == RELEASED)
            again.append(record)
        for record in reversed(again):
            self._resubmit_now(record)
        self.core.flush()

    def _resubmit_now(self, record: TaskRecord) -> None:
        self.core.tasks.await_deps(record)
        if record.template.actor_id:
            self.core.actors.send_again(record)
        elif not record.unready:
            self.core.tasks.ready(record)

    def _unrecoverable(self, entry: Entry, record: TaskRecord | None) -> str:
        if isinstance(entry, BorrowedEntry):
            return "another process owns it"
        if record is None:
            return "it was made by put, or its lineage was dropped to stay within the bound"
        if record.retries == 0:
            return "its task may not be retried any more (max_retries)"
        if record.cancelled:
            return "its task was cancelled"
        if record.template.actor_id and not self.core.actors.may_recover(record):
            return "the actor whose method made it has ended"
        return ""

    def _give_up(self, entry: Entry, reason: str) -> None:
        hexid = entry.object_id.hex()
        text = (
            f"The object {hexid} was lost from the object store and cannot be computed again: {reason}. "
            "Keep results of tasks (with max_retries > 0) or of living actors (with max_task_retries > 0) rather than values of put where "
            "they must survive."
        )
        self.core.objects.own.reset(entry)
        error = exceptions.ObjectReconstructionFailedError(hexid, reason, text)
        self.core.objects.complete(entry, FAILED, serialize_system_error(error))
