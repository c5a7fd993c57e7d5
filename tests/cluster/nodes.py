"""Several nodes on this machine, for tests: a control store and node processes that this process starts, and a driver on the first node."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import shoal
from shoal._base import runtime as holder
from shoal._base.settings import Settings, read_environment
from shoal._base.storage_place import StoragePlace
from shoal._core.api.job import job_record
from shoal._core.process.options import ControlOptions, HeadOptions
from shoal._core.process.session import read_record
from shoal._core.process.start import HeadProcess, restart_control_store, start_control_store, start_head
from shoal._core.transport.trust import Tokens
from shoal._core.worker.driver import connect_driver
from shoal.testing.leaks import leak_check
from shoal.testing.session_processes import kill
from shoal.testing.waiting import wait_for

STORE_BYTES = 80 << 20


@dataclass
class Nodes:
    """``nodes[i]`` has the resource ``n<i>``; tasks and actors with ``on(i)`` run there."""

    control: HeadProcess
    nodes: list[HeadProcess]
    settings: Settings
    token: bytes
    storage: StoragePlace
    spill_dir: str = ""
    standbys: list[HeadProcess] = field(default_factory=list)

    def add_standby(self) -> HeadProcess:
        """Start a control store that takes over when the one that leads is gone, and wait until all know of it; for tables in etcd."""
        options = ControlOptions(storage=self.storage, standby=True, settings=self.settings)
        self.standbys.append(start_control_store(options, self.token))
        address = self.standbys[-1].ready.control_address
        core = holder.current().core
        wait_for(lambda: address in core._control_addresses.all(), 30, "the word of the standby")
        return self.standbys[-1]

    def add(
        self,
        num_cpus: int = 2,
        *,
        labels: dict[str, str] | None = None,
        keep_control: bool = False,
        composition: str = "",
        **resources: float,
    ) -> str:
        """Start one more node; return its id. ``composition``: what makes its parts, in the place of the usual."""
        options = HeadOptions(
            num_cpus=num_cpus, num_gpus=0, resources={f"n{len(self.nodes)}": 1, **resources}, labels=labels or {},
            object_store_bytes=STORE_BYTES, spill_dir=self.spill_dir, settings=self.settings,
            control_address=",".join(one.ready.control_address for one in (self.control, *self.standbys)), listen="tcp:127.0.0.1:0",
            control_session_dir=self.control.ready.session_dir if keep_control else "", is_head=not self.nodes,
        )  # fmt: skip
        options.composition = composition or options.composition
        self.nodes.append(start_head(options, self.token))
        return self.id_of(len(self.nodes) - 1)

    def on(self, index: int) -> dict[str, object]:
        return {"resources": {f"n{index}": 0.001}, "num_cpus": 0}

    def living(self) -> set[str]:
        """Return the ids of the nodes that live, as the control store knows them."""
        return {node["NodeID"] for node in shoal.nodes() if node["Alive"]}

    def pause(self, index: int) -> None:
        """SIGSTOP the node's process; its workers run on."""
        os.kill(self.nodes[index].pid, signal.SIGSTOP)

    def resume(self, index: int) -> None:
        os.kill(self.nodes[index].pid, signal.SIGCONT)

    def id_of(self, index: int) -> str:
        return self.nodes[index].ready.node_id

    @property
    def control_pid(self) -> int:
        """Of the control store that runs now; 0 between two."""
        record = read_record(self.control.session.directory)
        return record.pid if record is not None and record.is_running() else 0

    def kill_control(self) -> int:
        """SIGKILL the control store; return its pid. The first node starts it again, if ``keep_control``."""
        pid: int = wait_for(lambda: self.control_pid, 30, "the control store")
        kill(pid)
        return pid

    def restart_control(self) -> None:
        """Start the control store, which was killed, again."""
        restart_control_store(self.control.ready.session_dir)

    def kill(self, index: int) -> None:
        """SIGKILL the node's process; its template cleans up."""
        os.kill(self.nodes[index].pid, signal.SIGKILL)


@contextmanager
def many_nodes(
    count: int = 3,
    num_cpus: int = 2,
    labels: Sequence[dict[str, str]] = (),
    *,
    keep_control: bool = False,
    storage: StoragePlace | None = None,
    control_dir: str = "",
    spill_dir: str = "",
    **settings_of: Any,
) -> Iterator[Nodes]:
    """Start nodes, connect this process as a driver of the first, end all of it, and check that nothing is left.

    Args:
        keep_control: the first node starts a control store that died again.
        storage: where the control store's tables lie.
        control_dir: in the place of the temporary directory for the control store's session, and so for its tables.
        spill_dir: a directory or URL to which all nodes spill.
        settings_of: fields of the settings. ``log_to_driver`` True: show here what workers print.
    """
    storage = storage or StoragePlace()
    settings, token = replace(read_environment(), **settings_of), secrets.token_bytes(32)
    record = job_record(job_config=None, namespace="tests", runtime_env=None, logging_config=None, environ=os.environ)
    with leak_check():
        control = start_control_store(ControlOptions(storage=storage, temp_dir=control_dir, settings=settings), token)
        cluster = Nodes(control, [], settings, token, storage, spill_dir)
        try:
            for index in range(count):
                cluster.add(num_cpus, labels=labels[index] if labels else None, keep_control=keep_control and index == 0)
            first = cluster.nodes[0].ready
            runtime = connect_driver(
                agent_address=first.agent_address, control_address=first.control_address, session_dir=first.session_dir,
                tokens=Tokens(token), job=record, settings=settings, entrypoint="tests",
                log_to_driver=settings_of.get("log_to_driver", False),
            )  # fmt: skip
            holder.install(runtime)
            try:
                yield cluster
            finally:
                holder.install(None)
                runtime.shutdown()
        finally:
            for node in reversed(cluster.nodes):
                node.stop()
            for store in (control, *cluster.standbys):
                store.stop()
