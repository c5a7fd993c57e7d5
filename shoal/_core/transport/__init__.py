"""Carries messages between processes: connections with requests and replies, over sockets or in memory.

    Connection, Transport, Listener      connection.py   the interface, and all that does not depend on what carries the bytes
    SocketTransport                      sockets.py      Unix sockets and TCP: greeting.py, handshake.py, stream.py; TLS: sealing.py
    Trust, Tokens                        trust.py        what a process proves itself with
    MemoryTransport, MemoryNetwork       memory.py       within one process: inside the head, and for seeded simulations

Runs in every process, on its I/O thread. Knows the frames and the few messages that belong to any connection (Ack, Failed,
CancelRequest); must not know what the other messages mean.
"""

from __future__ import annotations

from shoal._core.transport.connection import Connection, Listener, OnClose, OnMessage, ReplyFuture, Transport
from shoal._core.transport.errors import (
    ConnectFailed,
    ConnectionLost,
    EncryptionMismatch,
    HandshakeError,
    HandshakeTimeout,
    HostUnreachable,
    NobodyListens,
    NoCertificate,
    NoSuchProcess,
    NotShoal,
    RequestFailed,
    TransportError,
    VersionMismatch,
    WrongCertificate,
    WrongToken,
)
from shoal._core.transport.memory import MemoryConnection, MemoryListener, MemoryNetwork, MemoryTransport
from shoal._core.transport.shared import SharedConnections
from shoal._core.transport.sockets import SocketListener, SocketTransport
from shoal._core.transport.trust import Tokens, Trust

__all__ = [
    "ConnectFailed",
    "Connection",
    "ConnectionLost",
    "EncryptionMismatch",
    "HandshakeError",
    "HandshakeTimeout",
    "HostUnreachable",
    "Listener",
    "MemoryConnection",
    "MemoryListener",
    "MemoryNetwork",
    "MemoryTransport",
    "NoCertificate",
    "NoSuchProcess",
    "NobodyListens",
    "NotShoal",
    "OnClose",
    "OnMessage",
    "ReplyFuture",
    "RequestFailed",
    "SharedConnections",
    "SocketListener",
    "SocketTransport",
    "Tokens",
    "Transport",
    "TransportError",
    "Trust",
    "VersionMismatch",
    "WrongCertificate",
    "WrongToken",
]
