"""A TCP socket between two nodes that a thread uses: plain within a machine, TLS between machines.

The thread blocks. Nothing moves for too long: OSError (TimeoutError, or BlockingIOError).
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct

from shoal._core.transport.errors import HandshakeError
from shoal._core.transport.greeting import HANDSHAKE_TIMEOUT_S
from shoal._core.transport.handshake import Handshake
from shoal._core.transport.port import leaves_machine
from shoal._core.transport.sealing import binding_of, explain
from shoal._core.transport.trust import Role, Trust

#: Bytes per system call: large enough for the network, small enough to notice a stall.
_STEP_BYTES = 8 << 20
#: Bytes of a file that are read and encrypted at a time.
_ENCRYPTED_STEP_BYTES = 1 << 20
_TIMEVAL = struct.Struct("ll")


class BlockingSocket:
    """Owns a connected socket; after ``prove`` it is good for bytes. One thread uses it; any thread may ``hang_up``."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._tls: ssl.SSLSocket | None = None
        #: Came with the handshake, and belongs to what follows.
        self._rest = b""

    def prove(self, role: Role, trust: Trust, target: bytes) -> None:
        """Put TLS around it if it leaves the machine, and do the handshake. Raises HandshakeError, NoCertificate, OSError."""
        binding = target
        self.limit_wait(HANDSHAKE_TIMEOUT_S)
        if leaves_machine(self._socket):
            context = trust.context(role, target)
            self._socket.settimeout(HANDSHAKE_TIMEOUT_S)
            try:
                self._socket = self._tls = context.wrap_socket(self._socket, server_side=role == "server", do_handshake_on_connect=False)
                self._tls.do_handshake()
            except ssl.SSLError as error:
                raise explain(error) from error
            binding = binding_of(target, self._tls, trust)
        handshake = Handshake(role, trust.tokens, binding)
        try:
            self._socket.sendall(handshake.start())
            while not handshake.done:
                data = self._socket.recv(4096)
                if not data:
                    raise HandshakeError("The other node hung up during the handshake.")
                self._socket.sendall(handshake.receive(data))
        except HandshakeError:
            if handshake.farewell:
                self._socket.sendall(handshake.farewell)
            raise
        except ssl.SSLError as error:
            raise explain(error) from error
        self._rest = handshake.rest

    def limit_wait(self, seconds: float) -> None:
        """Have everything fail with OSError when nothing has moved for so long."""
        if self._tls is not None:
            self._tls.settimeout(seconds)
            return
        # Not ``settimeout``, with which ``sendfile`` would not wait.
        limit = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def hang_up(self) -> None:
        """Wake up the thread that waits here, which then closes it. Any thread."""
        # The plain socket's method: that of a TLS socket takes TLS away from under the thread that uses it.
        with contextlib.suppress(OSError):  # it has ended already
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it. Raises OSError."""
        self._socket.sendall(data)

    def receive(self, nbytes: int) -> bytes:
        """Read exactly so many; b"" when the peer hung up before the first. Raises EOFError when it did later, OSError."""
        data, self._rest = self._rest[:nbytes], self._rest[nbytes:]
        while len(data) < nbytes:
            piece = self._socket.recv(nbytes - len(data))
            if not piece:
                if data:
                    raise EOFError("The other node hung up in the middle of a message.")
                return b""
            data += piece
        return data

    def receive_into(self, target: memoryview) -> None:
        """Fill ``target``. Raises EOFError, OSError."""
        done = 0
        while done < len(target):
            # MSG_WAITALL: one wake-up for a piece, not one for each segment. TLS has no flags.
            flags = socket.MSG_WAITALL if self._tls is None else 0
            count = self._socket.recv_into(target[done:], min(len(target) - done, _STEP_BYTES), flags)
            if not count:
                raise EOFError(f"The other node hung up after {done} of {len(target)} bytes.")
            done += count

    def send_range(self, descriptor: int, offset: int, nbytes: int) -> None:
        """Send a range of a file; plain without a copy in this process. Raises EOFError if the file is shorter, OSError."""
        if self._tls is not None:
            self._send_encrypted(descriptor, offset, nbytes)
            return
        while nbytes:
            sent = os.sendfile(self._socket.fileno(), descriptor, offset, min(nbytes, _STEP_BYTES))
            if not sent:
                raise EOFError("The file of the object is shorter than the object.")
            offset += sent
            nbytes -= sent

    def _send_encrypted(self, descriptor: int, offset: int, nbytes: int) -> None:
        room = memoryview(bytearray(min(nbytes, _ENCRYPTED_STEP_BYTES)))
        while nbytes:
            count = os.preadv(descriptor, [room[: min(nbytes, len(room))]], offset)
            if not count:
                raise EOFError("The file of the object is shorter than the object.")
            self._socket.sendall(room[:count])
            offset += count
            nbytes -= count
