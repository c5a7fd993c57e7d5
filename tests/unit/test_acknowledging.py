"""Connections between machines are looked at for as long as they last."""

from __future__ import annotations

import asyncio
import socket

from shoal._core.transport.acknowledging import LOOK_S, Acknowledgements, is_cut_off
from shoal.testing.virtual_loop import VirtualLoop


def test_each_is_looked_at_until_it_has_ended() -> None:
    loop = VirtualLoop()
    seen: list[str] = []

    async def main() -> None:
        watched = Acknowledgements(loop)

        def look(name: str, times: int) -> bool:
            seen.append(name)
            return seen.count(name) < times

        watched.watch(lambda: look("a", 2))
        watched.watch(lambda: look("b", 3))
        await asyncio.sleep(10 * LOOK_S)
        assert sorted(seen) == ["a", "a", "b", "b", "b"]
        watched.watch(lambda: look("c", 1))
        await asyncio.sleep(10 * LOOK_S)
        assert seen.count("c") == 1

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_connection_on_which_all_is_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"words that nobody reads")
        assert not is_cut_off(client)
