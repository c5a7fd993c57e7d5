"""The control store as a process of its own, for clusters: it dies apart from the nodes, and can be started again on its tables.

read options ─ open the tables, read them back ─ listen ─ "ready" ─ serve ─ (ending.py) ─ write what is left, leave
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import traceback
from typing import NoReturn

import msgspec

from shoal._base import paths, processes
from shoal._base.process_title import set_title
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import SqliteStorage, TablesDamaged
from shoal._core.process import session as sessions
from shoal._core.process.ending import Ending
from shoal._core.process.membership import Membership, reception
from shoal._core.process.options import ControlOptions, HeadReady, describe_failure, receive_frame, send_frame
from shoal._core.process.serving import new_loop
from shoal._core.transport.addresses import announced
from shoal._core.transport.presence import nobody_listens
from shoal._core.transport.sockets import SocketTransport


def main(argument: str) -> NoReturn:
    """Run a control store in a fresh interpreter. ``argument``: as of ``head.main``."""
    descriptor, _, session_dir = argument.partition(" ")
    lifeline = socket.socket(fileno=int(descriptor))
    try:
        options = receive_frame(lifeline, ControlOptions)
        processes.raise_descriptor_limit()
        set_title("shoal: control store")
        loop = new_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(_serve(loop, options, lifeline, sessions.open_session(session_dir)))
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        try:
            send_frame(lifeline, HeadReady(error=describe_failure(error)))
        except OSError as error:
            print(f"Nobody is there to be told: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


async def _serve(loop: asyncio.AbstractEventLoop, options: ControlOptions, lifeline: socket.socket, session: sessions.Session) -> None:
    ending = Ending(loop, None if options.restarted else lifeline, options.driver_pid, options.driver_started)
    path = session.directory / paths.TABLES_FILE
    try:
        storage = SqliteStorage(path, power_safe=True)
        trust = session.trust()
        membership = Membership.of_listener(session, trust, options.listen)
        store = ControlStore(loop, storage, options.settings, membership, probe=lambda endpoint: nobody_listens(loop, endpoint))
        store.load()
    except TablesDamaged as error:
        raise SystemExit(
            f"The tables of the control store in {path} are damaged: {error}. Nothing in them was changed. Put a good copy in their place, "
            "or move the file away, and start again: without it jobs, actors, names and placement groups are forgotten, and nodes that "
            "still run start anew."
        ) from error
    transport = SocketTransport(loop, trust)
    listener = await transport.listen(options.listen, store.accept, on_visit=reception(store.accept))
    address = announced(listener.address, options.node_ip)
    # For the next start: the address that everybody knows.
    sessions.write_control_options(session.directory, msgspec.structs.replace(options, listen=listener.address))
    session.record(sessions.SessionRecord(part="control store", control_address=address, is_daemon=not options.driver_pid))
    send_frame(lifeline, HeadReady(control_address=address, session_dir=str(session.path), pid=os.getpid()))
    await ending.wait()
    listener.close()
    store.close()
    storage.close()
    session.remove()  # asked to end, or its driver has ended: nobody will start it again
