"""A cluster that changes its token while it runs."""

from __future__ import annotations

import asyncio
import secrets

import pytest

import shoal
from shoal._core.process.asking import ask, rotate_token
from shoal._core.process.options import HeadOptions
from shoal._core.process.session import open_session
from shoal._core.process.start import HeadStartError, start_head
from shoal._core.transport import RequestFailed, Tokens, WrongToken
from shoal._core.transport.probing import probe
from shoal._core.wire.messages import Ack, Ping
from shoal.testing import wait_for
from tests.cluster.nodes import STORE_BYTES, many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


@shoal.remote
class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count


@shoal.remote
def where(_=None):
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
def through(options):
    """A process that connects to others only now."""
    return shoal.get(where.options(**options).remote(b"x" * 500_000), timeout=30)


def test_work_goes_on_while_the_token_changes(monkeypatch):
    with many_nodes(2) as nodes:
        control = nodes.control.ready.control_address
        sessions = [open_session(node.ready.session_dir) for node in (nodes.control, *nodes.nodes)]
        first = sessions[0].tokens()
        assert first.previous == b""
        counter = Counter.options(**nodes.on(1)).remote()
        assert shoal.get(counter.add.remote(), timeout=20) == 1

        def works(count):
            assert shoal.get(counter.add.remote(), timeout=20) == count
            for index in range(2):
                for other in range(2):
                    found = shoal.get(through.options(**nodes.on(index)).remote(nodes.on(other)), timeout=30)
                    assert found == nodes.id_of(other)

        with pytest.raises(RequestFailed, match="at least 16 bytes"):
            rotate_token(control, first, b"short")
        second, third = Tokens(secrets.token_bytes(32), first.current), b"the third token has no previous one"
        rotate_token(control, first, second.current)
        assert [session.tokens() for session in sessions] == [second] * 3
        works(2)
        rotate_token(control, first, second.current)  # again: nothing changes, and the previous one is good for it
        assert [session.tokens() for session in sessions] == [second] * 3
        ask(control, Tokens(second.current), Ping(0), Ack)
        late = start_node(control, first.current)
        try:
            # It joined with the previous token, and was told the newest.
            wait_for(lambda: open_session(late.ready.session_dir).tokens() == second, 20, "the new token at the late node")
            assert shoal.get(where.options(resources={"late": 0.001}, num_cpus=0).remote(), timeout=30) == late.ready.node_id
            rotate_token(control, second, third)
            works(3)
            assert shoal.get(where.options(resources={"late": 0.001}, num_cpus=0).remote(b"x" * 500_000), timeout=30) == late.ready.node_id
        finally:
            late.stop()
        with pytest.raises(WrongToken):
            asyncio.run(probe(control, first))
        with pytest.raises(HeadStartError, match="does not hold this cluster's token"):
            start_node(control, first.current)
        works(4)


def start_node(control, token):
    options = HeadOptions(
        num_cpus=1, num_gpus=0, resources={"late": 1}, object_store_bytes=STORE_BYTES, control_address=control, listen="tcp:127.0.0.1:0"
    )
    return start_head(options, token)
