"""Who deletes what dead nodes have spilled, and when: the control store over memory connections and a virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal._core.control_store import rows
from shoal._core.control_store.storage import MemoryStorage
from shoal._core.wire.messages import HeldFiles, SweepSpilled
from shoal.testing.scripted_agent import ScriptedAgent
from shoal.testing.virtual_loop import VirtualLoop
from tests.inproc.test_control_store import CPU, SETTINGS, Cluster, run, settle

GRACE_S = 10.0
WITH_GRACE = replace(SETTINGS, spill_sweep_s=GRACE_S)


class SweepingAgent(ScriptedAgent):
    """``left``: what it says is left, answer by answer; None: it fails."""

    def __init__(self, name: str, url: str = "s3://bucket") -> None:
        super().__init__(name, {"CPU": CPU})
        self.record.spill_url, self.record.spill_directory = url, f"node-{name}"
        self.asked: list[str] = []
        self.left: list[list[str] | None] = []

    def _on_message(self, connection, message):
        if isinstance(message, SweepSpilled):
            self.asked.append(message.directory)
            left = self.left.pop(0)
            if left is None:
                connection.fail(message.rid, "RuntimeError", "not now")
            else:
                connection.send(HeldFiles(message.rid, left))
        else:
            super()._on_message(connection, message)


def test_a_dead_nodes_directory_is_swept_after_a_while_until_nothing_is_left():
    local, sweeper, elsewhere, dead = SweepingAgent("n1", ""), SweepingAgent("n2"), SweepingAgent("n3", "s3://other"), SweepingAgent("n4")
    sweeper.left = [None, ["node-n4/1.spill"], []]
    storage = MemoryStorage()

    async def main(cluster: Cluster) -> None:
        await settle(3 * GRACE_S)
        dead.connection.abort()
        await settle(GRACE_S * 0.7)
        assert sweeper.asked == []  # owners have this time to claim what they need
        await settle(GRACE_S * 0.7)
        assert sweeper.asked == ["node-n4"]
        await settle(GRACE_S * 1.3)
        assert sweeper.asked == ["node-n4"] * 2
        await settle(10 * GRACE_S)
        assert sweeper.asked == ["node-n4"] * 3
        assert local.asked == elsewhere.asked == []
        assert not rows.decode_node(storage.get(rows.NODES, dead.node_id)).spill_url

    run(main, local, sweeper, elsewhere, dead, storage=storage, settings=WITH_GRACE)


@pytest.mark.parametrize("swept", [False, True])
def test_the_next_control_store_goes_on(swept):
    storage = MemoryStorage()
    first, dead = SweepingAgent("n1"), SweepingAgent("n2")
    first.left = [[]]

    async def before(cluster: Cluster) -> None:
        dead.connection.abort()
        await settle(3 * GRACE_S if swept else 0.1)
        assert bool(first.asked) == swept

    run(before, first, dead, storage=storage, settings=WITH_GRACE)
    second = SweepingAgent("n3")
    second.left = [[], []]

    with VirtualLoop(seed=1) as loop:

        async def after() -> None:
            cluster = Cluster(loop, storage, WITH_GRACE)
            cluster.store.load()
            await cluster.start(second)
            await settle(5 * GRACE_S)
            cluster.store.check()

        loop.run(after())
    # The first agent is another dead node now, as it does not come back.
    assert sorted(second.asked) == (["node-n1"] if swept else ["node-n1", "node-n2"])
