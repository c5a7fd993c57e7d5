"""The control store as a process of its own, for clusters: it dies apart from the nodes, and can be started again on its tables.

read options ─ open the tables, read them back ─ listen ─ "ready" ─ serve ─ (ending.py) ─ write what is left, leave
                 └─ in etcd: be elected first (candidate.py); a standby is "ready" while it waits for that

A leader that is none any more begins here again, in the same process and session: nothing of what it believed can be left over in a fresh
interpreter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sqlite3
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, NoReturn

import msgspec

from shoal._base import paths, processes
from shoal._base.process_title import set_title
from shoal._core.control_store.node_service import Probe
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import Deposed, SqliteStorage, Storage, TablesDamaged
from shoal._core.process import bootstrap
from shoal._core.process import session as sessions
from shoal._core.process.ending import Ending
from shoal._core.process.membership import Membership, pass_over, reception
from shoal._core.process.options import ControlOptions, HeadReady, describe_failure, receive_frame, send_frame
from shoal._core.process.serving import new_loop
from shoal._core.transport.addresses import announced
from shoal._core.transport.presence import has_ended, is_there, tell
from shoal._core.transport.sockets import SocketListener, SocketTransport

if TYPE_CHECKING:
    from shoal._core.process.candidate import Candidate

log = logging.getLogger("shoal.control_store")


def main(argument: str) -> NoReturn:
    """Run a control store in a fresh interpreter. ``argument``: as of ``head.main``.

    After a comma behind the first descriptor: that of the socket with the options, if this process starts anew and nobody waits for it.
    """
    descriptors, _, session_dir = argument.partition(" ")
    descriptor, _, source = descriptors.partition(",")
    lifeline = socket.socket(fileno=int(descriptor))

    def ready(news: HeadReady) -> None:
        if not source:
            send_frame(lifeline, news)

    try:
        with socket.socket(fileno=int(source)) if source else nullcontext(lifeline) as sender:
            options = receive_frame(sender, ControlOptions)
        processes.raise_descriptor_limit()
        set_title("shoal: control store")
        loop = new_loop()
        asyncio.set_event_loop(loop)
        service = Service(
            loop, options, sessions.open_session(session_dir), ready, patient=options.standby or options.restarted or bool(source)
        )
        if loop.run_until_complete(service.run(lifeline)):
            _start_anew(service.next_options(), lifeline)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        try:
            ready(HeadReady(error=describe_failure(error)))
        except OSError as broken:
            print(f"Nobody is there to be told: {broken}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _start_anew(options: ControlOptions, lifeline: socket.socket) -> NoReturn:
    ours, theirs = socket.socketpair()
    send_frame(theirs, options)
    theirs.close()
    for one in (ours, lifeline):
        os.set_inheritable(one.fileno(), True)
    command = bootstrap.command("control", f"{lifeline.fileno()},{ours.fileno()} {options.session_dir}", sys.path)
    os.execve(command[0], command, os.environ)


class Service:
    """One control store, from its tables to its end.

    Args:
        ready: tells whoever started it that it serves, or stands by.
        patient: another one may lead; this one is to wait for as long as that takes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: ControlOptions,
        session: sessions.Session,
        ready: Callable[[HeadReady], None],
        *,
        patient: bool,
    ) -> None:
        self._loop = loop
        self._options = options
        self._session = session
        self._ready = ready
        self._patient = patient
        self._ending: Ending | None = None
        self._candidate: Candidate | None = None
        self._storage: Storage | None = None
        self._store: ControlStore | None = None
        #: Addresses of all control stores, as the election has told them: it tells a change once, perhaps before the tables are read.
        self._candidates: list[str] = []
        self._listener: SocketListener | None = None
        #: Where it listens, or will when it leads.
        self._bound = options.listen

    async def run(self, lifeline: socket.socket) -> bool:
        """Serve until the end; return whether to start anew. The process is left then as it is."""
        options = self._options
        heard = None if options.restarted else lifeline
        self._ending = ending = Ending(self._loop, heard, options.driver_pid, options.driver_started)
        beginning = asyncio.ensure_future(self._begin())
        ended = asyncio.ensure_future(ending.wait())
        await asyncio.wait([beginning, ended], return_when=asyncio.FIRST_COMPLETED)
        if beginning.done():
            await beginning
        await ended
        if ending.anew:
            return True
        beginning.cancel()
        self._end()
        return False

    def next_options(self) -> ControlOptions:
        """Return the options for the control store that takes this one's place."""
        lease = self._candidate.election.lease if self._candidate is not None else 0
        return msgspec.structs.replace(self._options, listen=self._bound, lease=lease)

    async def _begin(self) -> None:
        options, loop = self._options, self._loop
        try:
            self._storage = storage = await self._open_tables()
            trust = self._session.trust()
            membership = Membership.of_listener(self._session, trust, options.listen)
            transport = SocketTransport(loop, trust)
            probe = Probe(
                lambda node: is_there(loop, node.endpoint, node.node_id),
                lambda node: has_ended(loop, node.endpoint, node.node_id),
                lambda node, message: tell(transport.connect(node.endpoint, pass_over, target=node.node_id), message),
            )
            self._store = store = ControlStore(loop, storage, options.settings, membership, probe=probe)
            store.on_deposed = self._deposed
            store.load()
            store.tell_control_stores(self._candidates)
        except TablesDamaged as error:
            raise SystemExit(_damaged(self._where(), error)) from error
        except Deposed as error:
            self._step_down(str(error))
            return
        self._listener = await transport.listen(self._bound, store.accept, on_visit=reception(store.accept))
        self._bound = self._listener.address
        if self._candidate is not None:
            self._candidate.release_port()
        self._tell()

    def _tell(self) -> None:
        # For the next start: the address that everybody knows.
        sessions.write_control_options(self._session.directory, self.next_options())
        address, is_daemon = announced(self._bound, self._options.node_ip), not self._options.driver_pid
        self._session.record(sessions.SessionRecord(part="control store", control_address=address, is_daemon=is_daemon))
        ready, self._ready = self._ready, _told
        ready(HeadReady(control_address=address, session_dir=str(self._session.path), pid=os.getpid()))
        processes.return_free_memory()

    async def _open_tables(self) -> Storage:
        place = self._options.storage
        if place.kind == "etcd":
            return await self._be_elected()
        os.makedirs(os.path.dirname(self._where()), 0o700, exist_ok=True)
        try:
            return SqliteStorage(self._where(), power_safe=True)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise SystemExit(
                f"The tables in {self._where()} are in use: another control store runs on them. End it ('shoal stop'), or give another "
                "path."
            ) from error

    def _where(self) -> str:
        place = self._options.storage
        if place.kind == "session":
            return str(self._session.directory / paths.TABLES_FILE)
        return place.path or str(place)

    async def _be_elected(self) -> Storage:
        from shoal._core.process.candidate import Candidate

        options = self._options
        self._candidate = candidate = Candidate(
            self._loop, options.storage, options.listen, options.node_ip, options.settings.leader_lease_s, options.lease,
            on_lost=self._step_down, on_candidates=self._told_candidates,
        )  # fmt: skip
        self._bound = candidate.bound
        await candidate.enter(patient=self._patient)
        if self._patient:
            self._tell()
        return await candidate.win(patient=self._patient)

    def _deposed(self, error: Exception) -> None:
        assert self._candidate is not None
        self._candidate.election.depose(str(error))

    def _step_down(self, why: str) -> None:
        log.error("This control store leads no more, and stands by from now on: %s.", why.removesuffix("."))
        assert self._ending is not None
        self._ending.begin_anew()

    def _told_candidates(self, addresses: list[str]) -> None:
        self._candidates = addresses
        if self._store is not None:
            self._store.tell_control_stores(addresses)

    def _end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._store is not None:
            self._store.close()
        if self._storage is not None:
            self._storage.close()
        if self._candidate is not None:
            self._candidate.close()
        self._session.remove()


def _damaged(where: str, error: Exception) -> str:
    return (
        f"The tables of the control store in {where} are damaged: {error}. Nothing in them was changed. Put a good copy in their place, "
        "or move them away, and start again: without them jobs, actors, names and placement groups are forgotten, and nodes that "
        "still run start anew."
    )


def _told(news: HeadReady) -> None:
    """Whoever started this process has been told before."""
