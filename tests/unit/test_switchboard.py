"""Two sockets that are joined behave as the two ends of one connection."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from shoal._core.transport.switchboard import Switchboard
from shoal.testing import wait_for

PATIENCE_S = 20.0
MIB = 1 << 20


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), timeout=PATIENCE_S)
        other, _ = server.accept()
    other.settimeout(PATIENCE_S)
    return one, other


class Board(Switchboard):
    def line(self) -> tuple[socket.socket, socket.socket]:
        """Return the two far ends of a pair."""
        (one, near), (other, far) = connected(), connected()
        self.join(near, far)
        return one, other


@pytest.fixture
def board() -> Iterator[Board]:
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    board = Board()
    yield board
    board.close()
    assert board.pairs == 0
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before


def everything(sock: socket.socket) -> bytes:
    found = bytearray()
    while data := sock.recv(MIB):
        found += data
    return bytes(found)


def test_bytes_pass_both_ways_at_once(board: Board) -> None:
    one, other = board.line()
    words = {one: os.urandom(20 * MIB), other: os.urandom(30 * MIB)}
    heard: dict[socket.socket, bytes] = {}

    def speak(sock: socket.socket) -> None:
        sock.sendall(words[sock])
        sock.shutdown(socket.SHUT_WR)

    def hear(sock: socket.socket) -> None:
        heard[sock] = everything(sock)

    threads = [threading.Thread(target=work, args=(sock,)) for sock in (one, other) for work in (speak, hear)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert heard[one] == words[other]
    assert heard[other] == words[one]
    wait_for(lambda: board.pairs == 0, PATIENCE_S, "the end of the pair")
    one.close()
    other.close()


def test_the_end_of_one_direction_leaves_the_other(board: Board) -> None:
    one, other = board.line()
    one.sendall(b"last words")
    one.shutdown(socket.SHUT_WR)
    assert everything(other) == b"last words"
    other.sendall(b"an answer")
    assert one.recv(100) == b"an answer"
    assert board.pairs == 1
    other.close()
    assert one.recv(100) == b""
    one.close()


def test_what_was_sent_before_the_end_arrives(board: Board) -> None:
    one, other = board.line()
    one.sendall(b"x" * MIB)
    one.close()
    assert len(everything(other)) == MIB
    other.close()


def test_a_death_is_passed_on(board: Board) -> None:
    one, other = board.line()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()  # a reset
    assert other.recv(100) == b""
    wait_for(lambda: board.pairs == 0, PATIENCE_S, "the end of the pair")
    other.close()


def test_a_slow_reader_stops_its_own_writer_and_nobody_else(board: Board) -> None:
    (one, slow), (two, quick) = board.line(), board.line()
    one.setblocking(False)
    sent = 0

    def is_stuck() -> bool:
        nonlocal sent
        try:
            sent += one.send(bytes(MIB))
        except BlockingIOError:
            return not slow_moves()
        return False

    def slow_moves() -> bool:
        two.sendall(b"y" * MIB)
        got = 0
        while got < MIB:
            got += len(quick.recv(MIB))
        return got != MIB

    wait_for(is_stuck, PATIENCE_S, "a full line")
    assert sent < 200 * MIB
    one.setblocking(True)
    one.shutdown(socket.SHUT_WR)
    assert len(everything(slow)) == sent
    for sock in (one, slow, two, quick):
        sock.close()


def test_many_lines_and_the_end_of_all(board: Board) -> None:
    lines = [board.line() for _ in range(100)]
    for number, (one, other) in enumerate(lines):
        one.sendall(b"%d" % number)
        assert other.recv(10) == b"%d" % number
    wait_for(lambda: board.pairs == 100, PATIENCE_S, "all pairs")
    board.close()
    for one, other in lines:
        assert one.recv(1) == other.recv(1) == b""
        one.close()
        other.close()


def test_a_board_that_was_never_used_ends() -> None:
    board = Switchboard()
    board.close()
    board.close()
