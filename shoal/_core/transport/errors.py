"""What can go wrong between two processes.

TransportError (a ConnectionError)        the connection, not the request, is the problem
├── ConnectionLost                        it was there and is gone
├── ConnectFailed                         no connection came about
│   ├── NobodyListens                     the machine is there, the port is closed
│   ├── HostUnreachable                   no answer from the machine, no way to it, or no such name
│   ├── NoSuchProcess                     the port is there, and not who was meant behind it
│   ├── NoCertificate                     this node cannot speak to other machines
│   └── HandshakeError
│       ├── NotShoal                      the other side speaks another protocol
│       ├── VersionMismatch               another release of shoal
│       ├── EncryptionMismatch            one side encrypts, the other does not
│       ├── WrongCertificate              the node of another cluster
│       ├── WrongToken                    another cluster, or somebody in between
│       └── HandshakeTimeout              it did not answer in time
└── (ProtocolError, see wire.codec)       after the handshake; it ends the connection with ConnectionLost
RequestFailed                             the peer answered: no
"""

from __future__ import annotations


class TransportError(ConnectionError):
    """A connection could not be made or did not last."""


class ConnectionLost(TransportError):
    """The connection ended before the reply came."""


class ConnectFailed(TransportError):
    """No connection came about."""


class NobodyListens(ConnectFailed):
    """The machine answers, and says that nobody listens at this port."""


class HostUnreachable(ConnectFailed):
    """The machine does not answer, there is no way to it, or its name is not known."""


class NodeUnknown(ConnectFailed):
    """The node has died, or is so new that this one has not heard of it."""


class NoSuchProcess(ConnectFailed):
    """A node answers, and says that the process that was meant is not there."""


class NoCertificate(ConnectFailed):
    """This process has no certificate, without which nothing is sent to another machine."""


class HandshakeError(ConnectFailed):
    """The two sides could not agree that they belong together."""


class NotShoal(HandshakeError):
    """The other side does not speak this protocol."""


class VersionMismatch(HandshakeError):
    """The other side speaks another version of the protocol."""


class EncryptionMismatch(HandshakeError):
    """One side takes the way between them for one within a machine, the other does not."""


class WrongCertificate(HandshakeError):
    """One side's certificate is not of the other's cluster."""


class WrongToken(HandshakeError):
    """The other side does not hold the token of this cluster, or somebody between the two sides reads along."""


class HandshakeTimeout(HandshakeError):
    """The other side did not finish the handshake in time."""


class RequestFailed(Exception):
    """The peer answered a request with ``Failed``.

    ``kind`` is a class name of ``shoal.exceptions`` or a builtin; ``detail`` is opaque to the transport.
    """

    def __init__(self, kind: str, message: str, detail: bytes = b"") -> None:
        super().__init__(kind, message, detail)
        self.kind = kind
        self.message = message
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"
