"""What is at an address? For whoever is about to use it and wants to say what is wrong, or has one question to the control store there."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal._core.transport.connection import Connection
from shoal._core.transport.errors import ConnectFailed, ConnectionLost, HandshakeTimeout, RequestFailed
from shoal._core.transport.preamble import RECEPTION
from shoal._core.transport.sockets import SocketTransport
from shoal._core.transport.trust import Tokens, Trust
from shoal._core.wire.messages import Message, Ping

#: Seconds until whoever asks is told what is wrong.
TIMEOUT_S = 5.0


async def probe(address: str, tokens: Tokens, *, timeout_s: float = TIMEOUT_S) -> None:
    """Return if a control store that holds one of the tokens answers at ``tcp:HOST:PORT``. Needs no certificate; leaves nothing behind.

    Raises within ``timeout_s``, with what happened and what to do:
        NobodyListens: the machine refuses connections to this port.
        HostUnreachable: no answer from the machine, no way to it, or no such name.
        NotShoal: a web server, a TLS server, or something else listens there.
        HandshakeTimeout: whoever listens there says nothing: a suspended control store, or no shoal process.
        VersionMismatch: another release of shoal. EncryptionMismatch: something forwards the port.
        WrongToken: another cluster, or somebody in between.
        ConnectFailed: a node's port, and not the control store's; or it ended at this moment.
        ValueError: it is no such address.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        await put_question(await enter(address, tokens, timeout_s=timeout_s), address, Ping(0), deadline, timeout_s)
    except TimeoutError as error:
        raise HandshakeTimeout(f"{error}") from None
    except (ConnectionLost, RequestFailed) as error:
        raise ConnectFailed(f"{address} has the cluster's token and did not answer a question: {error}") from error


async def enter(address: str, tokens: Tokens, *, timeout_s: float) -> Connection:
    """Connect as a visitor, who needs no certificate. Raises what ``probe`` raises of those who are no control store."""
    transport = SocketTransport(asyncio.get_running_loop(), Trust(tokens))
    return await transport.connect(address, _ignore, target=RECEPTION, timeout_s=timeout_s)


async def put_question(connection: Connection, address: str, message: Message, deadline: float, timeout_s: float) -> Any:
    """Ask on a connection what visitors may ask, close it, and return the answer.

    Raises RequestFailed: the answer is no; ConnectionLost: the control store ended before it answered; TimeoutError: it does not answer.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return await connection.request(message)
    except TimeoutError:
        raise TimeoutError(f"{address} did not answer within {timeout_s:g} s: it hangs, or is suspended.") from None
    finally:
        connection.close()


def _ignore(_connection: Connection, _message: Message) -> None:
    """Nothing comes unasked."""
