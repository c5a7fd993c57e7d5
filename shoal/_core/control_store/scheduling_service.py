"""When to look for places again, for actors and placement groups alike.

    something new, a report, a node joined --> schedule groups, retry actors
                                                    | still waiting
                                                    v
    ClusterChanged --------------------------> poll all agents (ReportResources, one poll at a time) --> schedule, retry
                                                    ^
                            once a second while something waits

The poll makes the view exact; the slow tick is a safety net that makes a lost hint cost a second and not for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from shoal._core.scheduling.demands import add_up, add_up_groups, demand_of
from shoal._core.scheduling.strategies import freeze
from shoal._core.wire.messages import Demand, GroupDemand, NodeList, ReportResources, Shape

from .core import Core
from .placement import Chosen, Hopeless

#: Seconds between two looks while something waits for room.
RETRY_S = 1.0
#: Seconds that an agent has to report before the others' figures are used without its.
REPORT_TIMEOUT_S = 2.0


class SchedulingService:
    def __init__(self, core: Core) -> None:
        self._core = core
        #: What to do with the result of a placement; set by the actor service.
        self.on_placed: Callable[[Chosen | Hopeless], None] = lambda result: None
        self._polling = False
        self._poll_again = False
        self._tick_armed = False
        self._soon = False

    def add_actor(self, actor_id: bytes, shape: Shape, name: str, *, later: bool) -> None:
        self._core.placement.add(actor_id, shape, name)
        if not later:
            self.retry_actors(freeze(shape))
        self.look_again()

    def demands(self) -> tuple[list[Demand], list[GroupDemand]]:
        """Return what waits for resources, in the whole cluster: tasks and actors, placement groups."""
        core = self._core
        actors = (demand_of(shape, count) for shape, count in core.placement.counts())
        return add_up([*core.nodes.demands(), *(one for one in actors if one is not None)]), add_up_groups(core.groups.wanted())

    def retry_actors(self, only: Shape | None = None) -> None:
        for result in self._core.placement.retry(only):
            self.on_placed(result)

    def retry_group(self, group_id: bytes) -> None:
        """The group's bundles are there, or will never be: its actors can be placed, or buried."""
        for shape in self._core.placement.shapes_in(group_id):
            self.retry_actors(shape)

    def reschedule(self, *, tick: bool = False) -> None:
        """Something has changed: place what can be placed."""
        self._core.groups.something_changed()
        if tick:
            self._core.placement.forget_refusals()
        self._core.perform(self._core.groups.schedule(tick=tick))
        self.retry_actors()
        self.look_again()

    def reschedule_soon(self) -> None:
        """The same, once for all that is heard in this turn of the loop: a thousand nodes report ten thousand times a second."""
        self._core.groups.something_changed()
        if not self._soon and self._something_waits():
            self._soon = True
            self._core.loop.call_soon(self._reschedule_now)

    def _reschedule_now(self) -> None:
        self._soon = False
        self.reschedule()

    def refresh(self, *, tick: bool = False) -> None:
        """Resources came free somewhere, or the view may be wrong: ask, if anything waits for the answer."""
        if not self._something_waits():
            return
        if self._polling:
            self._poll_again = True
            return
        self._polling = True
        self.poll(lambda: self._polled(tick))

    def look_again(self) -> None:
        """Try again in a while if something waits for room."""
        if not self._tick_armed and self._something_waits():
            self._tick_armed = True
            self._core.loop.call_later(RETRY_S, self._tick)

    def poll(self, done: Callable[[], None]) -> None:
        """Ask all agents for their figures of now; ``done`` is called once, when all have answered or time is up."""
        core = self._core
        waiting = {node.record.node_id for node in core.nodes.connected()}

        def finish() -> None:
            nonlocal done
            timer.cancel()
            done()
            done = _nothing

        def ask(node_id: bytes) -> None:
            def answered(reply: NodeList | None, error: BaseException | None) -> None:
                if reply is not None and reply.nodes:
                    core.nodes.resources(node_id, reply.nodes[0].available, reply.nodes[0].total)
                    core.nodes.demanded(node_id, reply.demands)
                waiting.discard(node_id)
                if not waiting:
                    finish()

            core.tell_node(node_id, ReportResources(0), answered)

        timer = core.loop.call_later(REPORT_TIMEOUT_S if waiting else 0.0, finish)
        for node_id in list(waiting):
            ask(node_id)

    def _polled(self, tick: bool) -> None:
        self._polling = False
        self.reschedule(tick=tick)
        if self._poll_again:
            self._poll_again = False
            self.refresh()

    def _something_waits(self) -> bool:
        return self._core.groups.waits_for_room() or self._core.placement.waits_for_room()

    def _tick(self) -> None:
        self._tick_armed = False
        self.refresh(tick=True)
        self.look_again()


def _nothing() -> None:
    """The poll is over."""
