"""A machine that is gone from the network is told from one whose process reads nothing."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from shoal._core.transport.acknowledging import CUT_OFF_S, is_cut_off
from shoal._core.transport.switchboard import Switchboard
from shoal.testing import wait_for
from tests.faults.namespaces import namespaces, needs_namespaces
from tests.faults.test_namespaces import PORT

pytestmark = [needs_namespaces, pytest.mark.timeout(120)]

PATIENCE_S = 60.0


def connected(one, other):
    with other.call(lambda: socket.create_server((other.ip4, PORT))) as server:
        client = one.call(lambda: socket.create_connection((other.ip4, PORT), timeout=5.0))
        return client, server.accept()[0]


def test_what_was_sent_and_is_not_acknowledged():
    with namespaces(3) as network, contextlib.ExitStack() as stack:
        one, gone, slow = network.machines
        to_gone, at_gone = map(stack.enter_context, connected(one, gone))
        to_slow, _ = map(stack.enter_context, connected(one, slow))
        idle, _ = map(stack.enter_context, connected(one, slow))
        to_slow.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # its window is closed from now on, and its machine is asked about that
            while True:
                to_slow.send(bytes(1 << 20))
        begin = time.monotonic()
        board = Switchboard()
        stack.callback(board.close)
        near, far = map(stack.enter_context, connected(one, slow))
        to_other, at_other = map(stack.enter_context, connected(one, gone))
        board.join(near, to_other)
        far.settimeout(PATIENCE_S)
        network.cut(one, gone)
        to_gone.sendall(b"lost")
        far.sendall(b"lost")
        wait_for(lambda: is_cut_off(to_gone), PATIENCE_S, "the silence")
        assert far.recv(10) == b"", "those who meet at a third hear of it, too"
        wait_for(lambda: board.pairs == 0, PATIENCE_S, "the end of the pair")
        assert time.monotonic() - begin >= CUT_OFF_S
        assert not is_cut_off(to_slow)
        assert not is_cut_off(idle)
        del at_gone, at_other
