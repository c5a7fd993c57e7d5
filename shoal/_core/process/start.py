"""Start a head for this driver, and end it.

    Popen ─ options ▶ head ... ◀ ready     one socket pair, kept: the lifeline
    stop: one byte, then end of writing ─▶ head ends ─▶ end of reading: neither head nor template is left

Measured on the development machine (2 CPUs): see ``tests/cluster/test_processes.py``; most of the time is imports of the head.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping

import msgspec

from shoal._base import paths, processes
from shoal._base.auth_token import without_token
from shoal._core.process import bootstrap
from shoal._core.process import session as sessions
from shoal._core.process.options import ControlOptions, HeadOptions, HeadReady, receive_frame, send_frame

#: Characters of the head's own output that an error shows.
_SHOWN = 4000


class HeadStartError(RuntimeError):
    """The head did not come up; the message carries its own words."""


class HeadProcess:
    """The head that this process started. ``ready`` says where everything is."""

    def __init__(self, ready: HeadReady, process: subprocess.Popen[bytes], lifeline: socket.socket, session: sessions.Session) -> None:
        self.ready = ready
        self.session = session
        self._process = process
        self._lifeline: socket.socket | None = lifeline
        self._driver_pid = os.getpid()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def log_tail(self) -> str:
        """Return the end of what the head itself wrote: for errors that report its death."""
        return _tail(self.session)

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the session: all its processes, shared memory, sockets, files (not logs). Blocks about 50 ms, ``timeout_s`` + 2 s at most.

        Idempotent. Does nothing in a process forked from the one that started the head.
        """
        lifeline = self._lifeline
        if lifeline is None or os.getpid() != self._driver_pid:
            return
        self._lifeline = None
        _ask_to_end(lifeline)
        if not _ends(lifeline, timeout_s):
            self._process.send_signal(signal.SIGKILL)
            _ends(lifeline, 1.0)  # the template cleans up
        lifeline.close()
        _bury(self._process, self.session)

    def abandon(self) -> None:
        """Forget the process without ending it: it is a daemon, or this is a fork of its driver, which must not hold the lifeline."""
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
            self._process.returncode = 0  # not this process's child: there is nothing to reap, and nothing to warn of


def start_head(
    options: HeadOptions, token: bytes | None = None, *, daemon: bool = False, env_vars: Mapping[str, str] | None = None
) -> HeadProcess:
    """Start a head, or a node of the cluster with this token, and wait until it serves.

    Args:
        daemon: it does not end with this process.
        env_vars: added to its environment, and that of its workers.

    Raises:
        HeadStartError: it ended, or was not ready within ``start_timeout_s``.
        PermissionError: the session directory cannot be kept private.
    """
    role = "node" if options.control_address else "head"
    return _start(role, role, options, token, daemon, env_vars or {})


def start_control_store(options: ControlOptions, token: bytes, *, daemon: bool = False) -> HeadProcess:
    """Start a control store as a process of its own and wait until it serves. Arguments and errors are those of ``start_head``."""
    return _start("control", "control store", options, token, daemon, {})


def restart_control_store(session_dir: str) -> HeadReady:
    """Start a control store that has died again: on its tables, at its address, with its token. Blocks until it serves.

    It belongs to the program that started the first one, if that was no daemon, and ends with it; not with this process.

    Raises:
        HeadStartError: it ended, or was not ready within ``start_timeout_s``.
        OSError: the directory cannot be read.
    """
    session = sessions.open_session(session_dir)
    options = msgspec.structs.replace(sessions.read_control_options(session.directory), restarted=True)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = _spawn("control", session, theirs, {})
        ours.settimeout(options.settings.start_timeout_s)
        try:
            send_frame(ours, options)
            ready = receive_frame(ours, HeadReady)
            problem = ready.error.strip()
        except (OSError, EOFError) as error:
            problem = f"{error}\n{_tail(session)}"
        if problem:
            process.kill()
            process.wait()
            raise HeadStartError(
                f"The control store (pid {process.pid}) did not start again: {problem}\nIts logs are in {session.logs_dir}."
            )
    process.returncode = 0  # whoever reaps the children of this process reaps it, too
    return ready


def start_first_node(
    control: ControlOptions, node: HeadOptions, token: bytes, *, daemon: bool = False, env_vars: Mapping[str, str] | None = None
) -> tuple[HeadProcess, HeadProcess]:
    """Start a control store and the node beside it, both or neither; the node's interpreter comes up while the control store does.

    Arguments and errors are those of ``start_head``; ``env_vars`` are the node's.
    """
    first = _Starting("control", "control store", control, token, daemon, {})
    try:
        second = _Starting("node", "node", node, token, daemon, env_vars or {})
    except BaseException:
        first.give_up()
        raise
    try:
        store = first.finish()
    except BaseException:
        second.give_up()
        raise
    second.options.control_address, second.options.control_session_dir = store.ready.control_address, store.ready.session_dir  # type: ignore[union-attr]
    try:
        return store, second.finish()
    except BaseException:
        store.stop()
        raise


def _start(
    role: str, called: str, options: HeadOptions | ControlOptions, token: bytes | None, daemon: bool, env_vars: Mapping[str, str]
) -> HeadProcess:
    return _Starting(role, called, options, token, daemon, env_vars).finish()


class _Starting:
    """A process that comes up and waits for its options. Raises HeadStartError, PermissionError."""

    def __init__(
        self, role: str, called: str, options: HeadOptions | ControlOptions, token: bytes | None, daemon: bool, env_vars: Mapping[str, str]
    ) -> None:
        self._called = called
        self._session = session = sessions.create(options.temp_dir or None, token, findable=daemon)
        self.options = options = msgspec.structs.replace(options, session_dir=str(session.path), driver_pid=0 if daemon else os.getpid())
        if isinstance(options, ControlOptions) and not daemon:
            me = processes.read_stat(os.getpid())
            options.driver_started = me.start_time if me else 0
        self._ours, theirs = socket.socketpair()
        try:
            self._process = _spawn(role, session, theirs, env_vars)
        except OSError as error:
            self._ours.close()
            session.remove()
            raise HeadStartError(f"The {called} process could not be started: {error}.") from error
        finally:
            theirs.close()

    def finish(self) -> HeadProcess:
        """Send the options and wait until it serves."""
        options, ours, process, session = self.options, self._ours, self._process, self._session
        ours.settimeout(options.settings.start_timeout_s)
        try:
            send_frame(ours, options)
            ready = receive_frame(ours, HeadReady)
            if not ready.error:
                ours.settimeout(None)
                return HeadProcess(ready, process, ours, session)
            problem = f"it failed:\n{text}" if "\n" in (text := ready.error.strip()) else text
        except TimeoutError:
            problem = f"it was not ready within {options.settings.start_timeout_s:g} s (SHOAL_START_TIMEOUT_S).\n{_tail(session)}"
        except (OSError, EOFError):
            problem = _how_it_ended(process, session)
        except BaseException:  # Ctrl-C while waiting
            self.give_up()
            raise
        self.give_up()
        raise HeadStartError(
            f"The {self._called} process (pid {process.pid}) did not start: {problem}\nIts logs are in {session.logs_dir}."
        )

    def give_up(self) -> None:
        """End it, and remove its session."""
        self._process.kill()
        _ends(self._ours, 1.0)
        self._ours.close()
        _bury(self._process, self._session)


def _spawn(role: str, session: sessions.Session, theirs: socket.socket, env_vars: Mapping[str, str]) -> subprocess.Popen[bytes]:
    marks = {processes.SESSION_MARK: session.name, processes.WORKER_MARK: processes.NO_WORKER}
    environment = {**without_token(os.environ), **env_vars, **marks}
    with (
        open(session.logs_dir / "head.out", "ab", opener=_private) as out,
        open(session.logs_dir / "head.err", "ab", opener=_private) as err,
    ):
        return subprocess.Popen(
            bootstrap.command(role, f"{theirs.fileno()} {session.path}", bootstrap.import_path()),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _ask_to_end(lifeline: socket.socket) -> None:
    try:
        lifeline.send(b"\n", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        # Shut down, not only closed: a forked child of this process may hold a copy.
        lifeline.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it is gone


def _ends(lifeline: socket.socket, timeout_s: float) -> bool:
    """Wait for the end of the socket: head and template are gone."""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            try:
                if not lifeline.recv(4096, socket.MSG_DONTWAIT):
                    return True
            except BlockingIOError:
                continue
            except OSError:
                return True
    return False


def _bury(process: subprocess.Popen[bytes], session: sessions.Session) -> None:
    """Reap the head; whatever still carries the session's mark, and its files, go now."""
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if os.path.lexists(session.directory / paths.TOKEN_FILE):  # neither head nor template came to clean up
        deadline = time.monotonic() + 1.0
        while processes.kill_marked(session.name, frozenset()) and time.monotonic() < deadline:
            time.sleep(0.01)
        session.remove()


def _how_it_ended(process: subprocess.Popen[bytes], session: sessions.Session) -> str:
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return f"it closed its socket.\n{_tail(session)}"
    how = f"it was killed by {_signal_name(-code)}" if code < 0 else f"it ended with exit status {code}"
    return f"{how}.\n{_tail(session)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(session: sessions.Session) -> str:
    try:
        text = (session.logs_dir / "head.err").read_text(errors="replace")
    except OSError:
        text = ""
    return text[-_SHOWN:].strip() or "It wrote nothing to its standard error."
