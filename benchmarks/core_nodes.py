"""Claim: work goes to four nodes as fast as to one, and what is reserved on several is there at once."""

from __future__ import annotations

from harness import Recorder, main, scaled

NODES = 4
TASKS = scaled(8000)
ACTORS = scaled(40)
GROUPS = scaled(50)


def runtime(recorder: Recorder) -> None:
    api, util = recorder.load(), recorder.load(".util")
    quiet = {"include_dashboard": False} if recorder.system == "ray" else {}
    node = {"num_cpus": 2, "object_store_memory": 150 << 20}
    cluster = recorder.load(".cluster_utils").Cluster(initialize_head=True, head_node_args={**node, **quiet})
    for _ in range(NODES - 1):
        cluster.add_node(**node)
    api.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

    @api.remote
    def nothing():
        return None

    @api.remote
    def where():
        return api.get_runtime_context().get_node_id()

    spread = where.options(scheduling_strategy="SPREAD")

    def many_spread() -> None:
        assert len(set(api.get([spread.remote() for _ in range(TASKS)]))) == NODES

    @api.remote(num_cpus=0, scheduling_strategy="SPREAD")
    class Actor:
        def where(self):
            return api.get_runtime_context().get_node_id()

    def actors() -> None:
        handles = [Actor.remote() for _ in range(ACTORS)]
        assert len(set(api.get([handle.where.remote() for handle in handles]))) == NODES

    def groups() -> None:
        made = [util.placement_group([{"CPU": 0.01}] * NODES, strategy="STRICT_SPREAD") for _ in range(GROUPS)]
        for group in made:
            assert group.wait(60)
        for group in made:
            util.remove_placement_group(group)

    def one_group() -> None:
        group = util.placement_group([{"CPU": 0.01}] * NODES, strategy="STRICT_SPREAD")
        api.get(group.ready())
        util.remove_placement_group(group)

    many_spread()  # all nodes have their workers
    recorder.rate("nodes_tasks", lambda: api.get([nothing.remote() for _ in range(TASKS)]), TASKS)
    recorder.rate("nodes_tasks_spread", many_spread, TASKS)
    recorder.one_at_a_time("nodes_tasks_spread_one_at_a_time", lambda: api.get(spread.remote()), scaled(200))
    recorder.rate("nodes_actors", actors, ACTORS)
    recorder.rate("nodes_groups", groups, GROUPS)
    recorder.one_at_a_time("nodes_group_ready", one_group, scaled(30))
    api.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime})
