"""Every measurement by name: what it is called in tables, its unit, what stands against it, and the ratio to Ray that it must reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    title: str
    unit: str
    #: How many times better than Ray it must be, and how many times is aimed at; 0: reported only.
    least: float = 0.0
    goal: float = 0.0
    smaller_is_better: bool = False
    #: The measurement of bare_limits.py that bounds this one.
    limit: str = ""

    def ratio(self, values: dict[str, float]) -> float | None:
        """How many times better shoal is than Ray."""
        ours, theirs = values.get("shoal"), values.get("ray")
        if not ours or not theirs:
            return None
        return theirs / ours if self.smaller_is_better else ours / theirs

    def ratio_text(self, values: dict[str, float]) -> str:
        ratio = self.ratio(values)
        return "-" if ratio is None else f"{ratio:.1f}x"


ROWS = {
    # core_start.py
    "start_to_first_result": Row("init() until the first task's result", "s", 8, 15, True, "bare_interpreter"),
    "shutdown": Row("shutdown()", "s", 0, 0, True),
    "import_time": Row("import", "s", 0, 0, True),
    "idle_memory": Row("memory of an idle cluster of two CPUs (PSS)", "MiB", 3, 10, True, "bare_interpreter_memory"),
    "idle_processes": Row("processes of an idle cluster", "", 0, 0, True),
    "installed_size": Row("installed size without dependencies", "MiB", 0, 0, True),
    # core_tasks.py
    "tasks_one_at_a_time": Row("tasks, one at a time", "1/s", 8, 20, limit="bare_round_trips_threads"),
    "tasks_in_flight": Row("tasks, 1,000 in flight", "1/s", 15, 40, limit="bare_calls_in_flight"),
    "tasks_with_argument": Row("tasks with a small argument, 1,000 in flight", "1/s", limit="bare_calls_in_flight"),
    "tasks_chained": Row("tasks in a chain, each waits for the one before", "1/s", limit="bare_round_trips_threads"),
    # core_actors.py
    "actor_calls_one_at_a_time": Row("actor calls, one at a time", "1/s", 4, 8, limit="bare_round_trips_threads"),
    "actor_calls_in_flight": Row("actor calls, in flight", "1/s", 5, 12, limit="bare_calls_in_flight"),
    "async_actor_calls_in_flight": Row("async actor calls, in flight", "1/s", 5, 12, limit="bare_calls_in_flight"),
    "actor_calls_n_to_n": Row("actor calls, two callers to two actors", "1/s", 4, 8, limit="bare_calls_in_flight"),
    "actor_stream_items": Row("items of an actor's generator", "1/s", limit="bare_calls_in_flight"),
    # core_actor_creation.py
    "actors_created": Row("actors created and answering", "1/s", 10, 40, limit="bare_forks"),
    # core_objects.py
    "put_small": Row("put, small", "1/s", 20, 60),
    "get_small": Row("get, small, ready", "1/s", 5, 15),
    "put_large": Row("put, 800 MB array", "GB/s", 1, 1, limit="bare_copy"),
    "get_large": Row("get, 800 MB array, without a copy", "1/s"),
    "get_10k_references": Row("get of an object holding 10,000 references", "1/s", 1, 3),
    "get_10k_values": Row("get of 10,000 small values at once", "1/s"),
    "task_returns_1_mib": Row("tasks that return 1 MiB", "1/s"),
    # core_spilling.py
    "spill_write": Row("put of twice the store's size", "GB/s", 1, 1, limit="bare_file_write"),
    "spill_read": Row("get of twice the store's size", "GB/s", 1, 1, limit="bare_file_read"),
    "spill_write_workers": Row("tasks that return twice the store's size", "GB/s", 1, 1, limit="bare_file_write"),
    "spill_read_workers": Row("tasks that read twice the store's size", "GB/s", 1, 1, limit="bare_file_read"),
    # core_transfer.py
    "transfer_large": Row("a 256 MiB array read by a task of another node", "GB/s", 1, 1, limit="bare_sendfile"),
    "transfer_many": Row("arrays of 128 KiB, each read by a task of another node", "1/s", 1, 10, limit="bare_sendfile_128_kib"),
    "transfer_get_many": Row("arrays of 128 KiB of another node, one get", "1/s", 1, 10, limit="bare_sendfile_128_kib"),
    "broadcast": Row("100 MB to four nodes of this machine, in transfers to one", "", 0, 0, True),
    # core_wait.py
    "wait_1k": Row("wait on 1,000 references, one by one", "1/s", 10, 30),
    # core_nodes.py
    "nodes_tasks": Row("four nodes: tasks in flight", "1/s", 10, 10),
    "nodes_tasks_spread": Row("four nodes: SPREAD tasks in flight", "1/s", 10, 10),
    "nodes_tasks_spread_one_at_a_time": Row("four nodes: SPREAD tasks, one at a time", "1/s"),
    "nodes_actors": Row("four nodes: actors created and called once", "1/s", 10, 10),
    "nodes_groups": Row("four nodes: groups over all of them, made and removed", "1/s", 3, 3),
    "nodes_group_ready": Row("four nodes: a group over all of them, one at a time", "1/s", 3, 3),
    # core_placement.py
    "placement_group_cycle": Row("placement groups, create and remove, 100 in flight", "1/s", 1, 3),
    "placement_group_ready": Row("placement group, create, get(ready()), remove", "1/s"),
    # core_encryption.py: between two nodes at loopback, and at an address of the machine
    "remote_calls_alone_plain": Row("actor calls to another node, one at a time, plain", "1/s"),
    "remote_calls_alone_encrypted": Row("actor calls to another node, one at a time, encrypted", "1/s"),
    "remote_calls_in_flight_plain": Row("actor calls to another node, in flight, plain", "1/s"),
    "remote_calls_in_flight_encrypted": Row("actor calls to another node, in flight, encrypted", "1/s"),
    "remote_tasks_in_flight_plain": Row("tasks on another node, in flight, plain", "1/s"),
    "remote_tasks_in_flight_encrypted": Row("tasks on another node, in flight, encrypted", "1/s"),
    "remote_argument_plain": Row("200 MB put, fetched by a task of another node, plain", "GB/s"),
    "remote_argument_encrypted": Row("200 MB put, fetched by a task of another node, encrypted", "GB/s"),
    # core_idle.py
    "idle_head_up": Row("a head, ready", "s", 5, 5, True),
    "idle_node_joined": Row("a node, joined", "s", 5, 5, True),
    "idle_head_memory": Row("memory of a head of two CPUs, idle (PSS)", "MiB", 5, 5, True),
    "idle_node_memory": Row("memory of a node of two CPUs, idle (PSS)", "MiB", 4, 4, True),
    "idle_nodes_cpu": Row("eight idle nodes: CPU of all processes per minute", "s", 0, 0, True),
    "agents": Row("agents in four processes, on real sockets", ""),
    "agents_joined": Row("  until each knows all others (with the start of the interpreters)", "s", smaller_is_better=True),
    "agents_control_cpu": Row("  idle: CPU of the control store per minute", "s", smaller_is_better=True),
    "agents_cpu": Row("  idle: CPU of each agent per minute", "ms", smaller_is_better=True),
    "agents_control_memory": Row("  memory of the control store (PSS)", "MiB", smaller_is_better=True),
    # core_scale.py: simulated clusters of two sizes
    "scale_small_nodes": Row("simulated nodes", ""),
    "scale_small_task_cpu": Row("  CPU per task, of all its messages' senders and receivers", "us", smaller_is_better=True),
    "scale_small_messages": Row("  messages per task", "", smaller_is_better=True),
    "scale_small_lease": Row("  lease, asked until granted (0.2 ms per message)", "ms", smaller_is_better=True),
    "scale_small_delta_cpu": Row("  control store: CPU per node, when all have changed", "us", smaller_is_better=True),
    "scale_small_delta_bytes": Row("  the same: bytes per node, to each", "B", smaller_is_better=True),
    "scale_small_table": Row("  memory of the control store per node", "B", smaller_is_better=True),
    "scale_small_view": Row("  memory of an agent's view per node", "B", smaller_is_better=True),
    "scale_small_convergence": Row("  change until all agents know of it", "s", smaller_is_better=True),
    "scale_large_nodes": Row("simulated nodes", ""),
    "scale_large_task_cpu": Row("  CPU per task, of all its messages' senders and receivers", "us", smaller_is_better=True),
    "scale_large_messages": Row("  messages per task", "", smaller_is_better=True),
    "scale_large_lease": Row("  lease, asked until granted (0.2 ms per message)", "ms", smaller_is_better=True),
    "scale_large_delta_cpu": Row("  control store: CPU per node, when all have changed", "us", smaller_is_better=True),
    "scale_large_delta_bytes": Row("  the same: bytes per node, to each", "B", smaller_is_better=True),
    "scale_large_table": Row("  memory of the control store per node", "B", smaller_is_better=True),
    "scale_large_view": Row("  memory of an agent's view per node", "B", smaller_is_better=True),
    "scale_large_convergence": Row("  change until all agents know of it", "s", smaller_is_better=True),
    # core_memory.py
    "memory_per_pending_task": Row("driver memory per pending task", "B", smaller_is_better=True),
    "memory_per_reference": Row("driver memory per live reference of put", "B", smaller_is_better=True),
    "memory_per_reader": Row("private memory of a reader of a 128 MiB array", "MiB", smaller_is_better=True),
    "million_tasks_rate": Row("1,000,000 queued tasks, until the last is done", "1/s"),
    "million_tasks_memory": Row("driver's peak memory with 1,000,000 queued tasks", "MiB", smaller_is_better=True),
    "growth_per_task": Row("memory growth per finished task", "B", smaller_is_better=True),
    # bare_limits.py: no runtime at all
    "bare_round_trips": Row("bare loop: round trips over a Unix socket", "1/s"),
    "bare_round_trips_threads": Row("... handed to and from a user thread on both sides", "1/s"),
    "bare_calls_in_flight": Row("bare loop: messages there and back, 1,000 in flight", "1/s"),
    "bare_copy": Row("copy of 800 MB into warm shared memory", "GB/s"),
    "bare_copy_fresh": Row("copy of 800 MB into fresh shared memory", "GB/s"),
    "bare_file_write": Row("write of 256 MiB to a file", "GB/s"),
    "bare_file_read": Row("read of 256 MiB from a file", "GB/s"),
    "bare_forks": Row("forks of a small process that answer", "1/s"),
    "bare_interpreter": Row("start of a bare Python interpreter", "s", smaller_is_better=True),
    "bare_interpreter_memory": Row("memory of a bare Python interpreter", "MiB", smaller_is_better=True),
    "bare_sendfile": Row("bare sendfile from one memory file over loopback into another", "GB/s"),
    "bare_sendfile_128_kib": Row("... 128 KiB at a time, each asked for", "1/s"),
}
