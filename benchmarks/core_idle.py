"""Claim: a node that has nothing to do costs next to nothing, also when there are hundreds: joining, CPU, memory."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import Recorder, family, main, pss_bytes, scaled

NODES = 8
AGENTS = scaled(300, 8)
PROCESSES = 4
IDLE_S = scaled(30, 1)
#: Resources, for Ray's sake: its object store takes a third of the memory unless told.
NODE = {"num_cpus": 2, "object_store_memory": 150 << 20}
TICKS = os.sysconf("SC_CLK_TCK")

#: Agents on the real protocol and real sockets, without workers or object stores.
AGENTS_OF_ONE_PROCESS = """
import asyncio, sys
from shoal._core.transport.sockets import SocketTransport
from shoal._core.transport.trust import Tokens, Trust
from shoal._core.wire.messages import NodesChanged
from shoal.testing.scripted_agent import ScriptedAgent

first, count, everybody, address, token = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], bytes.fromhex(sys.argv[5])

async def run():
    transport = SocketTransport(asyncio.get_running_loop(), Trust(Tokens(token)))
    agents = [ScriptedAgent(f"agent-{first + number}", {"CPU": 40000}) for number in range(count)]
    await asyncio.gather(*(agent.stay(transport, address) for agent in agents))
    def known(agent):
        return {node.node_id for message in agent.seen if isinstance(message, NodesChanged) for node in message.nodes}
    while any(len(known(agent) | {agent.node_id}) < everybody for agent in agents):
        await asyncio.sleep(0.02)
    print("all", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(run())
"""


def runtime(recorder: Recorder) -> None:
    api = recorder.load()
    quiet = {"include_dashboard": False} if recorder.system == "ray" else {}
    alone = family(os.getpid())
    start = time.perf_counter()
    cluster = recorder.load(".cluster_utils").Cluster(initialize_head=True, head_node_args={**NODE, **quiet})
    recorder.emit("idle_head_up", time.perf_counter() - start)
    head = _memory(alone)
    recorder.emit("idle_head_memory", head / 2**20)
    start = time.perf_counter()
    for _ in range(NODES - 1):
        cluster.add_node(**NODE)
    recorder.emit("idle_node_joined", (time.perf_counter() - start) / (NODES - 1))
    recorder.emit("idle_node_memory", (_memory(alone) - head) / (NODES - 1) / 2**20)
    recorder.emit("idle_nodes_cpu", _cpu_per_minute(family(os.getpid()) - alone))
    api.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    assert api.get(api.remote(lambda: 7).remote()) == 7
    api.shutdown()
    cluster.shutdown()
    if recorder.system == "shoal":
        _agents(recorder)


def _memory(alone: set[int]) -> int:
    """Bytes of all processes but this one and those before, when they have come to rest."""
    time.sleep(2)
    return pss_bytes(family(os.getpid()) - alone - {os.getpid()})


def _cpu_per_minute(pids: set[int]) -> float:
    """Seconds of CPU that these processes use per minute while nothing is asked of them."""
    time.sleep(2)
    before = _ticks(pids)
    time.sleep(IDLE_S)
    return (_ticks(pids) - before) / TICKS / IDLE_S * 60


def _ticks(pids: set[int]) -> int:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total


def _agents(recorder: Recorder) -> None:
    """Several hundred agents in a few processes, against one control store."""
    from shoal._core.process.options import ControlOptions
    from shoal._core.process.start import start_control_store

    token = secrets.token_bytes(32)
    control = start_control_store(ControlOptions(), token)
    each = AGENTS // PROCESSES
    begin = [sys.executable, "-c", AGENTS_OF_ONE_PROCESS]
    start = time.perf_counter()
    running: list[subprocess.Popen[Any]] = []
    for number in range(PROCESSES):
        words = [str(number * each), str(each), str(each * PROCESSES), control.ready.control_address, token.hex()]
        running.append(subprocess.Popen([*begin, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "all\n"
        recorder.emit("agents", each * PROCESSES)
        recorder.emit("agents_joined", time.perf_counter() - start)
        recorder.emit("agents_control_cpu", _cpu_per_minute({control.pid}))
        recorder.emit("agents_cpu", _cpu_per_minute({process.pid for process in running}) / (each * PROCESSES) * 1e3)
        recorder.emit("agents_control_memory", pss_bytes({control.pid}) / 2**20)
    finally:
        for process in running:
            process.communicate(timeout=60)
        control.stop()


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime})
