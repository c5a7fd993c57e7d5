"""A head that can be looked into, and whose spilling can be held in the middle of a file. Runs inside the head of the session under test.

driver: install() before shoal.init()      head: compose() = the real parts + observe.sock in the session directory
test:   ask(session_dir)                   -> facts: store, leases, workers, descriptors, and whether all invariants hold
        ask(session_dir, lose=object id)   -> the store loses the object, as if memory and disk had failed
        Gate(session_dir)                  -> the next file that is spilled stops half written until the gate is opened
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import select
import socket
import threading
import traceback
from pathlib import Path

import msgspec

SOCKET = "observe.sock"
HELD, RELEASE = "spill-held", "spill-release"
SAFETY_S = 30.0


def install():
    """Have every head that this process starts from now on be made by ``compose`` below."""
    from shoal._core.process import options

    if not isinstance(options.HeadOptions, functools.partial):
        options.HeadOptions = functools.partial(options.HeadOptions, composition="observed_head:compose")


def ask(session_dir, **order):
    """Return the facts of now."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SAFETY_S)
        client.connect(str(Path(session_dir) / SOCKET))
        client.sendall(json.dumps(order).encode() + b"\n")
        with client.makefile() as file:
            return json.loads(file.readline())


class Gate:
    """Holds the store's next spill file when half of its first object is written. Two named pipes: nobody polls."""

    def __init__(self, session_dir):
        held, release = (Path(session_dir) / name for name in (HELD, RELEASE))
        os.mkfifo(release)
        self._release = os.open(release, os.O_RDWR)
        partial = held.with_name(f".{HELD}")
        os.mkfifo(partial)
        self._held = os.open(partial, os.O_RDWR)
        partial.rename(held)

    def wait(self):
        """Block until a file is half written."""
        assert select.select([self._held], [], [], SAFETY_S)[0], "nothing was spilled"

    def open(self):
        """Let it be completed; later files are not held."""
        os.write(self._release, b"x")

    def close(self):
        """If a file is held still, it is completed."""
        os.close(self._held)
        os.close(self._release)


def _pass_gate(session_dir):
    """Disk thread of the head: if there is a gate, say that we are here, and wait."""
    held, taken = session_dir / HELD, session_dir / f".{HELD}"
    try:
        held.rename(taken)
    except FileNotFoundError:
        return
    with open(session_dir / RELEASE, "rb", buffering=0) as release:
        with open(taken, "wb", buffering=0) as pipe:
            pipe.write(b"x")
        release.read(1)
    taken.unlink(missing_ok=True)
    (session_dir / RELEASE).unlink(missing_ok=True)


def _hold_spilling(disk, session_dir):
    copy_out = disk._copy_out

    def copy_out_in_halves(arena, fd, piece):
        half = piece.nbytes // 2 // 4096 * 4096
        copy_out(arena, fd, piece._replace(nbytes=half))
        _pass_gate(session_dir)
        rest = piece._replace(arena_offset=piece.arena_offset + half, file_offset=piece.file_offset + half, nbytes=piece.nbytes - half)
        copy_out(arena, fd, rest)

    disk._copy_out = copy_out_in_halves


class ObservedParts:
    """The real parts, and the server of ``ask``."""

    endpoint = ""

    def __init__(self, parts, context):
        self.parts = parts
        self.context = context
        self.server = None
        _hold_spilling(parts.object_store._disk, context.session.directory)

    async def serve(self):
        self.server = await asyncio.start_unix_server(self._answer, str(self.context.session.path / SOCKET))

    async def _answer(self, reader, writer):
        order = json.loads(await reader.readline())
        if "lose" in order:
            self.parts.object_store.lose(bytes.fromhex(order["lose"]))
        writer.write(json.dumps(self._facts()).encode() + b"\n")
        await writer.drain()
        writer.close()

    def _facts(self):
        from shoal._core.scheduling.resources import to_floats

        agent, store, launcher = self.parts.node_agent, self.parts.object_store, self.context.launcher
        problems = []
        for part in (agent, store):
            try:
                part.check()
            except AssertionError:
                problems.append(traceback.format_exc())
        leases = agent.leases.statistics()
        return {
            "problems": problems,
            "store": msgspec.structs.asdict(store.statistics()),
            "creating": sum(len(session.creating) for session in store._sessions.values()),
            "available": to_floats(agent.leases.available()),
            "leases": leases.leases,
            "waiting": leases.queued,
            "workers": {worker.pid: worker.state.name for worker in agent.pool.workers.values() if worker.pid},
            "starting": launcher.statistics().queued,
            # 0 until it has said that it serves: three that die before that, in a row, count as one that cannot start.
            "template": 0 if launcher._useless else launcher.template_pid,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "run_files": len(list((self.context.session.directory / "run").glob("*"))),
        }

    async def close(self):
        if self.server is not None:
            self.server.close()
        await self.parts.close()


async def compose(context):
    """What ``HeadOptions.composition`` names."""
    from shoal._core.process import composition

    parts = ObservedParts(await composition.compose(context), context)
    await parts.serve()
    return parts
