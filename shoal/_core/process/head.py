"""The head process of a session: from its first line until it serves (``serving.py``).

    read options ─ import what head and workers share ─ arena ─ become subreaper ─ fork the template (single-threaded until here) ─ serve

A node that was declared dead ends all that runs on it and begins here again, in the same process and session, as another node: nothing of
the old one can be left over in a fresh interpreter.

Everything in the head happens in one thread, except disk work and page warming of the object store, which start later.
"""

from __future__ import annotations

import asyncio  # noqa: F401  shared by head and template: imported before the fork
import os
import signal
import socket
import sys
import traceback
from contextlib import nullcontext
from typing import NoReturn

import msgspec

from shoal._base import ids, processes
from shoal._base.process_title import set_title
from shoal._base.spill_place import is_url
from shoal._core.object_store.arena import Arena
from shoal._core.process import bootstrap, resources, template
from shoal._core.process import session as sessions
from shoal._core.process.options import HeadOptions, HeadReady, describe_failure, receive_frame, send_frame
from shoal._core.transport import sockets  # noqa: F401  shared, too


def main(argument: str) -> NoReturn:
    """Run a head in a fresh interpreter. ``argument``: the descriptor of the socket to the driver, a space, the session directory.

    After a comma behind the first descriptor: that of the socket with the options, if they do not come from the driver.
    """
    descriptors, _, session_dir = argument.partition(" ")
    descriptor, _, source = descriptors.partition(",")
    lifeline = socket.socket(fileno=int(descriptor))
    try:
        with socket.socket(fileno=int(source)) if source else nullcontext(lifeline) as options:
            head = Head(receive_frame(options, HeadOptions), lifeline)
        if head.run():
            head.start_anew()
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        try:
            send_frame(lifeline, HeadReady(error=describe_failure(error)))
        except OSError:  # the driver was killed before it sent its options: nobody else is left to remove the files
            sessions.open_session(session_dir).remove()
        os._exit(1)
    os._exit(0)


class Head:
    def __init__(self, options: HeadOptions, lifeline: socket.socket) -> None:
        self.options = options
        self.lifeline = lifeline
        self.session = sessions.open_session(options.session_dir)
        self.node_id = os.urandom(ids.NODE_BYTES)
        self.plan = resources.plan(options)
        self.arena = Arena.create(self.plan.object_store_bytes)

    def run(self) -> bool:
        """Serve until the end; return whether to ``start_anew``."""
        processes.raise_descriptor_limit()
        processes.become_subreaper()
        set_title("shoal: head")
        self._record()
        # A node of a cluster may have nothing to run for long: its template costs a tenth until the first worker is asked for.
        template_pid, channel = self._start_template([], waits=True) if self.options.control_address else self._fork_template()
        # After a fork: head and template import their own halves at the same time, and workers do not carry the head's.
        from shoal._core.process import serving

        server = serving.Server(self.options, self.lifeline, self.session, self.node_id, self.plan, self.arena)
        return server.run(template_pid, channel, self._start_template)

    def start_anew(self) -> NoReturn:
        """Become another node: a fresh interpreter in this process, with the same driver, session and options."""
        ours, theirs = socket.socketpair()
        send_frame(theirs, msgspec.structs.replace(self.options, anew=True))
        theirs.close()
        for one in (ours, self.lifeline):
            os.set_inheritable(one.fileno(), True)
        argument = f"{self.lifeline.fileno()},{ours.fileno()} {self.options.session_dir}"
        command = bootstrap.command("node", argument, sys.path)
        os.execve(command[0], command, os.environ)

    def _record(self) -> None:
        options, session = self.options, self.session
        record = sessions.SessionRecord(
            part="node" if options.control_address else "session",
            control_address=options.control_address or session.control_address,
            is_head=options.is_head,
            is_daemon=not options.driver_pid,
            node_id=self.node_id.hex(),
            node_ip=options.node_ip,
            spill_dir=options.spill_dir if not options.spill_dir or is_url(options.spill_dir) else f"{options.spill_dir}/{session.name}",
        )
        session.record(record)

    # --- the template ---

    def _template_options(self, channel: int, workers: list[int]) -> template.TemplateOptions:
        return template.TemplateOptions(
            channel=channel,
            presence=self.lifeline.fileno(),
            head_pid=os.getpid(),
            session_dir=self.options.session_dir,
            arena_fd=self.arena.fd,
            arena_bytes=self.arena.nbytes,
            worker_entry=self.options.worker_entry,
            workers=workers,
        )

    def _fork_template(self) -> tuple[int, int]:
        """Fork the template from this warm process, which has neither thread nor loop yet."""
        ours, theirs = _packet_pair()
        options = self._template_options(theirs, [])
        pid = os.fork()
        if pid == 0:
            template.run(options)
        os.close(theirs)
        return pid, ours

    def _start_template(self, workers: list[int], *, waits: bool = False) -> tuple[int, int]:
        """Start a template in a fresh interpreter; with ``waits``, one that begins when it is asked for something, or left alone."""
        ours, theirs = _packet_pair()
        argument = msgspec.json.encode(self._template_options(theirs, workers)).decode()
        inherited = (theirs, self.arena.fd, self.lifeline.fileno())
        for descriptor in inherited:
            os.set_inheritable(descriptor, True)
        try:
            command = bootstrap.command("template", argument, sys.path)
            if waits:
                command = bootstrap.once_readable(theirs, command)
            defaults = [signal.SIGCHLD, signal.SIGTERM, signal.SIGINT]
            pid = os.posix_spawn(command[0], command, os.environ, setsid=True, setsigdef=defaults)
        finally:
            for descriptor in inherited:
                os.set_inheritable(descriptor, False)
            os.close(theirs)
        return pid, ours


def _packet_pair() -> tuple[int, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours.detach(), theirs.detach()
