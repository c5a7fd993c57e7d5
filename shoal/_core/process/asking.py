"""One question to a control store, from a process that is no part of the cluster: the command line, a driver that looks for a node."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, TypeVar

from shoal._core.control_link.addresses import dial, split
from shoal._core.transport import Tokens
from shoal._core.transport.probing import TIMEOUT_S, enter, put_question
from shoal._core.wire.messages import Ack, Message, RotateToken

Reply = TypeVar("Reply", bound=Message)


def ask(address: str, tokens: Tokens, message: Message, reply: type[Reply], *, timeout_s: float = TIMEOUT_S) -> Reply:
    """Connect to whichever of the addresses (with commas between them) serves, ask, return the answer.

    Blocks ``timeout_s`` at most; works in a thread that runs a loop, too.

    Raises:
        ConnectFailed: and what is below it, which tells why nobody could be asked.
        ConnectionLost: the connection ended before the answer came.
        RequestFailed: the answer is no.
        TimeoutError: there is a connection, and no answer.
    """
    outcome: list[Reply | BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(_ask(address, tokens, message, timeout_s)))
        except BaseException as error:  # raised again where it was asked for
            outcome.append(error)

    asking = threading.Thread(target=run, name="shoal-ask", daemon=True)
    asking.start()
    asking.join()
    (answer,) = outcome
    if isinstance(answer, BaseException):
        raise answer
    if not isinstance(answer, reply):
        raise TypeError(f"{address} answered {type(message).__name__} with {type(answer).__name__}, not {reply.__name__}.")
    return answer


def rotate_token(address: str, tokens: Tokens, token: bytes) -> None:
    """Change the cluster's token: every node and process that can be reached uses the new one when this returns.

    The token before it is accepted until the next change: by it nodes that could not be reached come back, and are told then. Callers
    that keep the token somewhere change it there after this. Blocks a few seconds at most.

    Raises:
        RequestFailed: ValueError, the token is too short.
        ConnectFailed, ConnectionLost, TimeoutError: as ``ask``. It may have been changed, so that both must be tried next.
    """
    ask(address, tokens, RotateToken(0, token), Ack)


async def _ask(address: str, tokens: Tokens, message: Message, timeout_s: float) -> Any:
    deadline = asyncio.get_running_loop().time() + timeout_s
    connection = await dial(split(address), lambda one: enter(one, tokens, timeout_s=timeout_s))
    return await put_question(connection, address, message, deadline, timeout_s)
