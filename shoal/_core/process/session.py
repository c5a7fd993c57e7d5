"""The directory of one session, and what becomes of the directories of ended ones.

    create (driver) ── record (head: pid, start time, addresses) ── remove: all but logs/ ── forget: the logs too, when ten newer ones exist

Whoever ends a session removes its files: the head, else the template, else the driver. If all three were killed at once, the next session
of the user finds that the recorded process is gone and does it. Nothing is removed that does not lie in the user's own directory.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from shoal._base import paths
from shoal._base.private_files import write_private
from shoal._base.processes import is_running, read_stat
from shoal._base.spill_place import directory_of, is_url
from shoal._core.process.options import ControlOptions
from shoal._core.transport.trust import Tokens, Trust

#: Ended sessions whose logs are kept.
KEPT_SESSIONS = 10
#: Bytes of a Unix socket's path, of 108 with the final zero, that the longest socket name of a session takes.
_SOCKET_NAME_BYTES = 30
_LONGEST_DIRECTORY = 107 - _SOCKET_NAME_BYTES
#: Seconds after which a session directory without a record counts as abandoned by its maker.
_UNRECORDED_S = 120.0


#: What the process of a session directory is: node and control store of one driver; or one of the parts of a cluster.
Part = Literal["session", "node", "control store"]


class SessionRecord(msgspec.Struct, kw_only=True):
    """Who runs a session and where it can be reached: ``session.json``. ``discovery.py`` reads those of a user."""

    part: Part
    control_address: str
    #: The cluster's first node.
    is_head: bool = False
    #: Started from a shell: it lives until it is stopped.
    is_daemon: bool = False
    node_id: str = ""
    node_ip: str = "127.0.0.1"
    #: Where spilled objects go, if that is outside of the session directory: one named for the session, and removed with it; or a URL.
    spill_dir: str = ""
    # filled in by ``Session.record``
    session_dir: str = ""
    agent_address: str = ""
    pid: int = 0
    start_time: int = 0  # clock ticks after boot: tells the process from a later one with the same pid
    started_at: float = 0.0  # seconds since the epoch

    def is_running(self) -> bool:
        return is_running(self.pid, self.start_time)


@dataclass(frozen=True)
class Session:
    """One session directory. ``path`` is what sockets are addressed by; it is an alias where ``directory`` would be too long for them."""

    directory: Path
    path: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def agent_address(self) -> str:
        return f"unix:{self.path / paths.AGENT_SOCKET}"

    @property
    def control_address(self) -> str:
        return f"unix:{self.path / paths.CONTROL_SOCKET}"

    @property
    def logs_dir(self) -> Path:
        return self.directory / paths.LOGS

    @property
    def spill_dir(self) -> Path:
        return self.directory / paths.SPILL

    def tokens(self) -> Tokens:
        """Read the secret that every process of the session proves to know, and the one before it."""
        return Tokens.from_text((self.directory / paths.TOKEN_FILE).read_text())

    def trust(self) -> Trust:
        """Return what a process of this session proves itself with, as of now."""
        return Trust(self.tokens(), self.directory)

    def keep_tokens(self, tokens: Tokens) -> None:
        """Have processes that start from now on use these."""
        write_private(self.directory / paths.TOKEN_FILE, tokens.to_text().encode())

    def record(self, record: SessionRecord) -> None:
        """Write down that this process runs the session, for discovery and for cleaning up after it."""
        me = read_stat(os.getpid())
        record.session_dir, record.agent_address = str(self.path), self.agent_address
        record.pid, record.start_time, record.started_at = os.getpid(), me.start_time if me else 0, time.time()
        write_private(self.directory / paths.RECORD_FILE, msgspec.json.encode(record))

    def record_control_stores(self, addresses: str) -> None:
        """Write down where else the control store may be, for commands and drivers that come when it has moved."""
        record = read_record(self.directory)
        if record is not None:  # else the session ends just now
            record.control_address = addresses
            write_private(self.directory / paths.RECORD_FILE, msgspec.json.encode(record))

    def read_record(self) -> SessionRecord:
        """Return what ``record`` wrote. FileNotFoundError when the session has ended."""
        return msgspec.json.decode((self.directory / paths.RECORD_FILE).read_bytes(), type=SessionRecord)

    def empty(self) -> None:
        """Remove the sockets and what was spilled: of processes that are gone, while the session goes on."""
        for entry in list(os.scandir(self.directory)):
            if entry.name.endswith(".sock"):
                os.unlink(entry.path)
        for spilled in (str(self.spill_dir), self.read_record().spill_dir):
            if spilled and not is_url(spilled):  # behind a URL others may still need them
                _remove_contents(Path(spilled), keep="")

    def remove(self) -> None:
        """Remove all but the logs. Idempotent; what cannot be removed is left."""
        if self.path != self.directory:
            self.path.unlink(missing_ok=True)
        _remove_session(self.directory)
        link = _default_place() / self.name
        if link.is_symlink():
            link.unlink(missing_ok=True)


def create(temp_dir: str | Path | None = None, token: bytes | None = None, *, findable: bool = False) -> Session:
    """Make a new session directory with its token: a fresh one, or that of the cluster.

    Args:
        findable: the session is to be found by other shells also if it lies elsewhere: it gets a link in the usual place.

    Raises:
        PermissionError: the user's directory below ``temp_dir`` belongs to somebody else, or others may write to it.
    """
    parent = user_dir(Path(temp_dir) if temp_dir else paths.temp_dir())
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    directory = parent / f"session_{stamp}_{os.getpid()}_{secrets.token_hex(4)}"
    # Renamed when complete: a directory without a token is one whose session has ended.
    partial = directory.with_name(f".{directory.name}")
    partial.mkdir(0o700)
    for name in (paths.LOGS, paths.SPILL):
        (partial / name).mkdir(0o700)
    write_private(partial / paths.TOKEN_FILE, Tokens(token or secrets.token_bytes(32)).to_text().encode())
    partial.rename(directory)
    path = directory
    if len(os.fsencode(directory)) > _LONGEST_DIRECTORY:
        path = user_dir(Path("/tmp")) / f"s_{secrets.token_hex(6)}"
        path.symlink_to(directory)
    if findable and parent != _default_place():
        (user_dir(paths.temp_dir()) / directory.name).symlink_to(directory)
    return Session(directory, path)


def open_session(path: str | Path) -> Session:
    """Return the session that lives at ``path`` (its directory or its alias)."""
    return Session(Path(path).resolve(), Path(path))


def _default_place() -> Path:
    return paths.temp_dir() / f"shoal-{os.getuid()}"


def user_dir(temp_dir: Path) -> Path:
    """Return this user's directory below ``temp_dir``, made if needed; PermissionError if it is not ours alone."""
    directory = temp_dir / f"shoal-{os.getuid()}"
    temp_dir.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(0o700)
    except FileExistsError:
        pass
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(
            f"{directory} belongs to user {found.st_uid} or is not a directory, so secrets of this session cannot be kept there. "
            f"Remove it, or name another place in SHOAL_TMPDIR."
        )
    if found.st_mode & 0o077:
        os.chmod(directory, 0o700)
    return directory


def read_record(directory: Path) -> SessionRecord | None:
    """Return what is written down of a session; None if nothing is, or nothing that can be understood."""
    try:
        return msgspec.json.decode((directory / paths.RECORD_FILE).read_bytes(), type=SessionRecord)
    except (OSError, msgspec.DecodeError):
        return None


def sweep(parent: Path, spare: Session | None = None, budget_s: float = 0.5) -> None:
    """Remove what killed sessions left in ``parent``, and the logs of all but the newest ended ones. Stops after about ``budget_s``."""
    deadline = time.monotonic() + budget_s
    ended = []
    for directory in sorted(parent.glob("session_*"), reverse=True):
        if (spare is None or directory != spare.directory) and _is_abandoned(directory):
            ended.append(directory)
            if _spilled_elsewhere(directory):  # over the network: not while the caller waits; if it ends before, the next sweep goes on
                threading.Thread(target=_remove_session, args=(directory,), name="shoal-sweep", daemon=True).start()
            else:
                _remove_session(directory)
        if time.monotonic() > deadline:
            return
    for directory in ended[KEPT_SESSIONS:]:
        shutil.rmtree(directory, ignore_errors=True)
        if time.monotonic() > deadline:
            return
    for alias in [*parent.glob("s_*"), *parent.glob("session_*")]:
        if alias.is_symlink() and (not alias.exists() or not (alias / paths.TOKEN_FILE).exists()):
            alias.unlink(missing_ok=True)


def _is_abandoned(directory: Path) -> bool:
    """The session's process is gone, as far as its record tells."""
    try:
        found = os.lstat(directory)
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            return False
        record = read_record(directory)
        if record is not None and (directory / paths.CONTROL_FILE).exists() and _is_kept(directory):
            return False  # it has died, and will be started again
        if record is not None:
            return not record.is_running()
        if not (directory / paths.TOKEN_FILE).exists() or time.time() - found.st_mtime > _UNRECORDED_S:
            return True
        maker = directory.name.split("_")[-2]  # killed before it had a head
        return maker.isdigit() and not is_running(int(maker))
    except (OSError, msgspec.DecodeError):
        return False


def _is_kept(directory: Path) -> bool:
    """Whether the control store of this directory outlives its process: until the program that wanted it has ended, if there is one."""
    options = read_control_options(directory)
    return not options.driver_pid or is_running(options.driver_pid, options.driver_started)


def read_control_options(directory: Path) -> ControlOptions:
    """Return how the control store of this directory was started. Raises OSError, msgspec.DecodeError."""
    return msgspec.json.decode((directory / paths.CONTROL_FILE).read_bytes(), type=ControlOptions)


def write_control_options(directory: Path, options: ControlOptions) -> None:
    """Keep them for the next start."""
    write_private(directory / paths.CONTROL_FILE, msgspec.json.encode(options))


def _remove_session(directory: Path) -> None:
    record = read_record(directory)
    if record is not None and not is_url(record.spill_dir) and Path(record.spill_dir).name == directory.name:
        shutil.rmtree(record.spill_dir, ignore_errors=True)
    if spilled := _spilled_elsewhere(directory):
        from shoal._core.process.leftovers import remove_spilled

        remove_spilled(spilled)
    _remove_contents(directory, keep=paths.LOGS)


def _spilled_elsewhere(directory: Path) -> dict[str, list[str]]:
    """Return URL -> directories to which objects of this session were spilled, or of the nodes of the cluster that ends with it.

    A node alone removes nothing there: others may still need what it has written, and the cluster knows when they do not.
    """
    record = read_record(directory)
    if record is not None and record.part == "session" and is_url(record.spill_dir):
        return {record.spill_dir: [directory_of(bytes.fromhex(record.node_id))]}
    if record is not None and record.part == "control store":
        from shoal._core.process.leftovers import find_spilled  # few need SQLite; commands that look for sessions must be quick

        return find_spilled(directory / paths.TABLES_FILE)
    return {}


def _remove_contents(directory: Path, keep: str) -> None:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        if entry.name == keep:
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
        except OSError:
            pass
