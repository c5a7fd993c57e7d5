"""Strangers at every socket of a real session: refused before anything they sent is looked into, and nobody else notices.

The sockets are not listed here: whatever the session's processes listen on is found in /proc, so a new socket is covered by itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import socket
import struct
import time
from functools import partial
from pathlib import Path

import pytest

import shoal
from shoal._base import processes
from shoal._core.transport.handshake import Handshake
from shoal._core.transport.trust import Tokens
from shoal._core.wire import messages as wire
from shoal._core.wire.codec import FrameDecoder, encode
from shoal.testing import waiting

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

#: Seconds after which a test gives up: far above any limit of the runtime's own.
PATIENCE_S = 30.0
#: Idle connections per socket: three times as many as a listener has places for.
IDLE = 200
#: How often everything else is tried.
ROUNDS = 20


class Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@shoal.remote(num_cpus=0)
class Keeper:
    def __init__(self):
        self.kept = []

    def keep(self, value):
        self.kept.append(value)
        return len(self.kept)


@shoal.remote
def double(value):
    return 2 * value


# --- what the session listens on ---------------------------------------------------------------------------


def members(session_dir):
    """Pids of the session's processes, and of this driver."""
    marked = (stat.pid for stat in processes.iter_stats() if stat.state != "Z")
    return [os.getpid(), *(pid for pid in marked if processes.mark_of(pid, processes.SESSION_MARK) == session_dir.name)]


def sockets_of(pids):
    """Socket inodes that the processes hold."""
    found = set()
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except FileNotFoundError:  # closed meanwhile; the list itself was one of them
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def listening(session_dir):
    """Addresses of all Unix sockets on which a process of the session listens."""
    inodes = sockets_of(members(session_dir))
    lines = [line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return sorted(line[7] for line in lines if line[6] in inodes and int(line[3], 16) & 0x10000)


def descriptors(session_dir):
    """Open descriptors by process, this driver included."""
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in members(session_dir)}


wait_for = partial(waiting.wait_for, timeout_s=PATIENCE_S)


# --- the session under attack ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keeper(session):
    keeper = Keeper.remote()
    shoal.get(keeper.keep.remote(0))
    return keeper


@pytest.fixture
def sockets(session, keeper):
    """All sockets of the session. Afterwards the session must work as before, and hold no descriptor more."""
    session_dir = Path(session.address_info["session_dir"])
    assert_works(keeper)
    before = wait_for(lambda: steady(session_dir), what="a steady number of descriptors")
    found = listening(session_dir)
    names = {os.path.basename(path) for path in found}
    assert {"agent.sock", "control.sock"} < names
    assert {name[0] for name in names} >= {"d", "w"}, "the driver and the workers listen, too"
    assert {os.path.dirname(path) for path in found} == {str(session_dir)}, "no abstract socket, none elsewhere"
    yield found
    assert_works(keeper)
    wait_for(lambda: not_more(descriptors(session_dir), before), what=f"descriptors as before, {before}")


def steady(session_dir):
    """Return the descriptors of the session's processes when three looks agree: workers come and connect on their own."""
    looks = []
    for _ in range(3):
        looks.append(descriptors(session_dir))
        time.sleep(0.05)
    return looks[0] if looks[0] == looks[1] == looks[2] else None


def not_more(now, before):
    """No process holds more descriptors, but for connections that the session makes by itself: from each process to each worker, once."""
    most = max(count for pid, count in before.items() if is_worker(pid))
    allowed = {pid: (most if is_worker(pid) else before.get(pid, 0)) + len(now) for pid in now}
    assert len(now) < ROUNDS, "otherwise a descriptor that is lost in every round would not show"
    return len(now) <= len(before) and all(now[pid] <= allowed[pid] for pid in now)


def is_worker(pid):
    return processes.mark_of(pid, processes.WORKER_MARK) not in ("", processes.NO_WORKER)


def assert_works(keeper):
    """Tasks, a stateful actor and the object store give the right answers, every time."""
    refs = [double.remote(i) for i in range(100)]
    large = os.urandom(1 << 20)
    ref = shoal.put(large)
    count = shoal.get(keeper.keep.remote(None), timeout=PATIENCE_S)
    assert shoal.get(refs, timeout=PATIENCE_S) == list(range(0, 200, 2))
    assert shoal.get(ref, timeout=PATIENCE_S) == large
    assert shoal.get(double.remote(ref), timeout=PATIENCE_S) == 2 * large
    assert shoal.get(keeper.keep.remote(None), timeout=PATIENCE_S) == count + 1


def token_of(session):
    return bytes.fromhex((Path(session.address_info["session_dir"]) / "token").read_text())


def connected(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    sock.connect(path)
    return sock


def all_it_says(sock):
    """Read until the server hangs up; fails when it does not."""
    said = b""
    try:
        while data := sock.recv(65536):
            said += data
    except ConnectionResetError:
        pass
    return said


def greeted(path, token, record=None):
    """Return a socket whose handshake is done, and add what this side said to ``record``."""
    sock = connected(path)
    client = Handshake("client", Tokens(token))
    hello = client.start()
    sock.sendall(hello)
    proof = b""
    while not client.done:
        answer = sock.recv(4096)
        assert answer, "the server hung up"
        proof += client.receive(answer)
    sock.sendall(proof)
    if record is not None:
        record += [hello, proof]
    return sock


def bomb(path):
    return pickle.dumps(Bomb(str(path)))


ATTACKS = {
    "noise": lambda path: bytes(range(256)) * 64,
    "http": lambda path: b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "length prefix": lambda path: struct.pack("<Q", 2**63) + b"x" * 100,
    "length of a frame": lambda path: struct.pack("<3sBIH", b"shl", 1, 0xFFFFFFFF, 0xFFFF),
    "bare pickle": bomb,
    "pickle with a length": lambda path: struct.pack(">I", len(bomb(path))) + bomb(path),
    "pickle in a frame": lambda path: b"".join(encode([wire.PutFunction(b"f" * 28, b"j" * 4, bomb(path))])),
    "pickle as arguments": lambda path: b"".join(encode([wire.KvPut(1, "", b"key", bomb(path))])) * 50,
    "hello, then a frame": lambda path: Handshake("client", Tokens(b"x" * 32)).start() + b"".join(encode([wire.Ping(1)])),
    "hello of another version": lambda path: Handshake("client", Tokens(b"x" * 32), version=77).start(),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_strangers_are_refused_everywhere(sockets, tmp_path, attack):
    exploded = tmp_path / "exploded"
    for path in sockets * ROUNDS:
        with connected(path) as sock:
            sock.sendall(attack(exploded))
            # At most the server's own hello, to tell another release why it is refused: never a proof, never a frame.
            assert len(all_it_says(sock)) in (0, len(Handshake("client", Tokens(b"x" * 32)).start())), path
    assert not exploded.exists()


def test_who_names_the_token_and_does_not_hold_it_is_refused_by_the_proof(session, sockets):
    for path in sockets * ROUNDS:
        record = []
        greeted(path, token_of(session), record).close()
        with connected(path) as sock:
            sock.sendall(record[0])  # a hello of an honest client names the token
            assert sock.recv(4096)
            sock.sendall(os.urandom(32) + b"".join(encode([wire.Ping(1)])))
            assert all_it_says(sock) == b"", path


def test_a_recorded_handshake_is_worth_nothing(session, sockets):
    ping = b"".join(encode([wire.Ping(1)]))
    for path in sockets * ROUNDS:
        record = []
        with greeted(path, token_of(session), record) as sock:
            # Every server closes a connection whose message it does not know; those that know Ping answer.
            sock.sendall(ping)
            select.select([sock], [], [], PATIENCE_S)
        hello, proof = record
        with connected(path) as sock:  # with the pauses of the original
            sock.sendall(hello)
            assert sock.recv(4096)
            sock.sendall(proof + ping)
            assert all_it_says(sock) == b"", path
        with connected(path) as sock:  # all at once
            sock.sendall(hello + proof + ping)
            assert all_it_says(sock) == b"", path


def garbage(path):
    return {
        "noise": b"\xc1" * 100,
        "a frame of noise": struct.pack("<3sBIH", b"shl", 1, 3, 0) + b"\xc1\xc1\xc1",
        "a huge frame": struct.pack("<3sBIH", b"shl", 1, 0xFFFFFFFF, 0),
        "lying buffers": struct.pack("<3sBIHQQ", b"shl", 1, 1, 2, 2**63, 2**63),
        "another version": struct.pack("<3sBIH", b"shl", 9, 1, 0) + b"\x90",
        "a bare pickle": bomb(path),
        "an unknown message": struct.pack("<3sBIH", b"shl", 1, 5, 0) + b"\x91\x92\xcd\x7f\xff",
    }


def test_garbage_of_a_member_costs_its_connection_only(session, sockets, tmp_path):
    exploded = tmp_path / "exploded"
    for path in sockets * (ROUNDS // 5):
        with greeted(path, token_of(session)) as bystander:
            for name, data in garbage(exploded).items():
                with greeted(path, token_of(session)) as sock:
                    sock.sendall(data)
                    assert all_it_says(sock) == b"", (path, name)
            assert not select.select([bystander], [], [], 0)[0], "the other connection of the same process is open"
    assert not exploded.exists()


def test_half_a_frame_of_a_member_that_leaves(session, sockets):
    for path in sockets * ROUNDS:
        with greeted(path, token_of(session)) as sock:
            sock.sendall(struct.pack("<3sBIH", b"shl", 1, 1 << 29, 0) + b"x" * 100_000)


def test_idle_connections_exhaust_nothing_and_are_closed(session, sockets):
    """Peers that begin a handshake and leave it at that: others go on to connect, and after a time the idle ones are hung up on."""
    idle = []
    hello = Handshake("client", Tokens(b"x" * 32)).start()
    # Half of what this process may open, if that is less.
    count = min(IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 // len(sockets))
    try:
        for number in range(count):
            for path in sockets:
                idle.append(connected(path))
                with contextlib.suppress(BrokenPipeError):  # refused at once: there are enough of this kind
                    idle[-1].sendall(hello[: (0, 3, 8, len(hello))[number % 4]])
        for path in sockets:
            assert_can_join(path, token_of(session))
        late = Keeper.remote()  # a worker that connects while they are there
        assert shoal.get(late.keep.remote(1), timeout=PATIENCE_S) == 1
        del late
        for sock in idle:
            all_it_says(sock)  # until the server hangs up
    finally:
        for sock in idle:
            sock.close()


def assert_can_join(path, token):
    """Connect like an honest client: one that is hung up on before the server said a word tries again."""

    def joined():
        with connected(path) as sock:
            client = Handshake("client", Tokens(token))
            try:
                sock.sendall(client.start())
                while not client.done:
                    answer = sock.recv(4096)
                    if not answer:
                        return False
                    client.receive(answer)
            except (ConnectionResetError, BrokenPipeError):
                return False
            return True

    wait_for(joined, what=f"an honest connection to {path}")


def test_a_member_gets_its_answer(session, sockets):
    """The control for the tests above: with the token, the same bytes are answered."""
    for path in (path for path in sockets if path.endswith("agent.sock")):
        with greeted(path, token_of(session)) as sock:
            sock.sendall(b"".join(encode([wire.Ping(7)])))
            assert FrameDecoder().feed(sock.recv(4096)) == [wire.Ack(7)]
