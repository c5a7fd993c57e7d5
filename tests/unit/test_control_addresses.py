"""Where the control store is looked for, and who of several that are dialled at once is taken."""

from __future__ import annotations

import asyncio

import pytest

from shoal._core.control_link import ControlAddresses, dial
from shoal._core.control_link.addresses import split
from shoal._core.transport.errors import NobodyListens, WrongToken


def test_what_was_given_stays_beside_what_the_leader_tells():
    addresses = ControlAddresses("tcp:a:1,tcp:b:1")
    assert addresses.all() == ["tcp:a:1", "tcp:b:1"]
    addresses.learn(["tcp:b:1", "tcp:c:1"])
    assert addresses.all() == ["tcp:b:1", "tcp:c:1", "tcp:a:1"]
    addresses.learn(["tcp:c:1"])
    assert str(addresses) == "tcp:c:1,tcp:a:1,tcp:b:1"
    assert ControlAddresses(str(addresses)).all() == addresses.all()


def test_a_socket_path_may_have_commas():
    assert split("unix:/tmp/a,b/c") == ["unix:/tmp/a,b/c"]
    assert split("") == []


class Connected:
    def __init__(self, address):
        self.address = address
        self.aborted = False

    def abort(self):
        self.aborted = True


def run(addresses, outcomes):
    """Dial with these outcomes: an error, None for never, or how many turns of the loop it takes. Return (taken, all that connected)."""
    made = []

    async def connect(address):
        outcome = outcomes[address]
        if outcome is None:
            await asyncio.Event().wait()
        if isinstance(outcome, Exception):
            raise outcome
        for _ in range(outcome):
            await asyncio.sleep(0)
        made.append(Connected(address))
        return made[-1]

    async def main():
        async with asyncio.timeout(30):
            taken = await dial(addresses, connect)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        return taken

    taken = asyncio.run(main())
    assert not taken.aborted
    assert all(one.aborted for one in made if one is not taken)
    return taken.address


def test_who_serves_is_taken_and_nobody_is_waited_for():
    refused = NobodyListens("nobody listens")
    assert run(["a"], {"a": 0}) == "a"
    assert run(["a", "b"], {"a": refused, "b": 3}) == "b"
    assert run(["a", "b", "c"], {"a": None, "b": 5, "c": refused}) == "b"
    assert run(["a", "b"], {"a": 15, "b": 0}) == "b"
    assert run(["a", "b"], {"a": 1, "b": 1}) in ("a", "b")


def test_the_most_telling_error_is_raised():
    refused, wrong = NobodyListens("nobody listens"), WrongToken("not yours")
    with pytest.raises(WrongToken):
        run(["a", "b", "c"], {"a": refused, "b": wrong, "c": refused})
    with pytest.raises(NobodyListens):
        run(["a", "b"], {"a": refused, "b": refused})
