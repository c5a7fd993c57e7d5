"""Tools for tests of programs that use shoal; `docs/testing.md` shows them at work.

    fresh_cluster, Cluster      a session for one test, whose processes, calls and objects can be harmed; checks what it leaves
    leak_check, LeakError       the check alone
    run_virtual, VirtualLoop    an asyncio loop whose clock jumps; plain() gives the class behind an actor class
    wait_for                    wait for a condition in another process
    StorageContract,
    TransportContract           tests that every implementation of an extension point passes
    fixtures                    the same for pytest: ``pytest_plugins = ["shoal.testing.fixtures"]``

Runs in the test's process; ``fault_worker`` in workers. May know the runtime, which does not know it. Nothing is imported before
it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chaos import Chaos as Chaos
    from .cluster import Cluster as Cluster
    from .cluster import WorkerProcess as WorkerProcess
    from .cluster import fresh_cluster as fresh_cluster
    from .faults import Fault as Fault
    from .faults import Hold as Hold
    from .leaks import LeakError as LeakError
    from .leaks import leak_check as leak_check
    from .plain import plain as plain
    from .session_processes import SessionProcesses as SessionProcesses
    from .storage_contract import StorageContract as StorageContract
    from .transport_contract import TransportContract as TransportContract
    from .virtual_loop import Deadlock as Deadlock
    from .virtual_loop import VirtualLoop as VirtualLoop
    from .virtual_loop import run_virtual as run_virtual
    from .waiting import wait_for as wait_for

#: Name -> the module that has it.
_HOMES = {
    "Chaos": "chaos",
    "Cluster": "cluster",
    "Deadlock": "virtual_loop",
    "Fault": "faults",
    "Hold": "faults",
    "LeakError": "leaks",
    "SessionProcesses": "session_processes",
    "StorageContract": "storage_contract",
    "TransportContract": "transport_contract",
    "VirtualLoop": "virtual_loop",
    "WorkerProcess": "cluster",
    "fresh_cluster": "cluster",
    "leak_check": "leaks",
    "plain": "plain",
    "run_virtual": "virtual_loop",
    "wait_for": "waiting",
}

__all__ = [
    "Chaos",
    "Cluster",
    "Deadlock",
    "Fault",
    "Hold",
    "LeakError",
    "SessionProcesses",
    "StorageContract",
    "TransportContract",
    "VirtualLoop",
    "WorkerProcess",
    "fresh_cluster",
    "leak_check",
    "plain",
    "run_virtual",
    "wait_for",
]

if not TYPE_CHECKING:  # a checker shall complain about names that do not exist

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        if value.__module__.startswith(__name__):
            value.__module__ = __name__  # users see the path that they type
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
