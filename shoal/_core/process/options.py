"""What the driver and the head tell each other at the start: options, one way; where everything is, the other way.

Each is one frame over a socket pair: length (4 bytes, little endian), JSON. The same socket is the lifeline afterwards: its end tells the
head that the driver wants it gone, or is gone; its other end closes when head *and* template are.
"""

from __future__ import annotations

import socket
import traceback
from typing import TypeVar

import msgspec

from shoal._base.settings import Settings
from shoal._base.storage_place import StoragePlace
from shoal._core.transport.errors import RequestFailed

_T = TypeVar("_T")


class HeadOptions(msgspec.Struct, kw_only=True):
    """How ``init`` wants its head, or a cluster its node. None means: find out (``resources.py``)."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    object_store_bytes: int | None = None
    memory_bytes: int | None = None
    node_name: str = ""
    node_ip: str = "127.0.0.1"
    #: The first node of its cluster, or the only one.
    is_head: bool = True
    temp_dir: str = ""
    #: A directory, or a URL (``_base.spill_place``). Default: spill/ in the session directory.
    spill_dir: str = ""
    settings: Settings = Settings()
    #: The cluster's control store; "": one inside of the head, for a session of one node.
    control_address: str = ""
    #: Directory of the control store that this node looks after, and starts again when it has died; "" for none.
    control_session_dir: str = ""
    #: Where other nodes reach this one, "tcp:HOST:PORT" (0: any free port); "": nowhere.
    listen: str = ""
    # filled in by start_head
    session_dir: str = ""
    driver_pid: int = 0  #: 0: a daemon, which lives until it is stopped
    #: It was another node before, which was declared dead: the control store is there, though perhaps out of reach just now.
    anew: bool = False
    # replaced in tests
    composition: str = "shoal._core.process.composition:compose"
    worker_entry: str = "shoal._core.worker.main:run_worker"


class ControlOptions(msgspec.Struct, kw_only=True):
    """How a control store of its own is wanted."""

    listen: str = "tcp:127.0.0.1:0"
    #: What others connect to if it listens at all addresses.
    node_ip: str = "127.0.0.1"
    #: Where the tables lie.
    storage: StoragePlace = StoragePlace()
    #: Another control store may lead: wait until it is gone, however long that takes. With tables in etcd.
    standby: bool = False
    temp_dir: str = ""
    settings: Settings = Settings()
    # filled in by start_control_store
    session_dir: str = ""
    driver_pid: int = 0  #: 0: a daemon
    driver_started: int = 0  # clock ticks after boot, as in session.json
    #: In etcd, of the control store whose place this one takes.
    lease: int = 0
    # filled in by restart_control_store
    restarted: bool = False


class HeadReady(msgspec.Struct):
    """The head, or control store, serves. ``error`` is set instead when it could not be made."""

    node_id: str = ""  # hex
    agent_address: str = ""
    control_address: str = ""
    session_dir: str = ""
    arena_path: str = ""
    arena_bytes: int = 0
    pid: int = 0
    template_pid: int = 0
    error: str = ""
    #: Where other nodes reach this one.
    endpoint: str = ""


def describe_failure(error: BaseException) -> str:
    """Return what whoever asked for the process is told: the message, if it is one for users, else the traceback, as for a bug."""
    if isinstance(error, RequestFailed):
        return error.message
    if isinstance(error, OSError | ValueError | ImportError | SystemExit) and str(error):
        return str(error)
    return "".join(traceback.format_exception(error))


def send_frame(sock: socket.socket, value: object) -> None:
    data = msgspec.json.encode(value)
    sock.sendall(len(data).to_bytes(4, "little") + data)


def receive_frame(sock: socket.socket, kind: type[_T]) -> _T:
    """Read one frame. EOFError when the other end closes first, TimeoutError by the socket's timeout."""
    size = int.from_bytes(_receive(sock, 4), "little")
    return msgspec.json.decode(_receive(sock, size), type=kind)


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError("The other end closed the socket.")
        data += piece
    return data
