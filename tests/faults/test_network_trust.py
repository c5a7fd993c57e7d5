"""Two machines with different addresses: one program on both, and what somebody on the network between them sees, and gets."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shoal._core.transport.authority import Authority, keep_certificate, new_request
from shoal._core.transport.preamble import PREAMBLE_BYTES, RECEPTION, SELF, Answer, data_of, encode_preamble
from shoal._core.transport.trust import Certificates
from shoal.testing import wait_for
from tests.faults.namespaces import namespaces, needs_namespaces

pytestmark = [needs_namespaces, pytest.mark.cluster, pytest.mark.timeout(300)]

MARK = b"a marker that must never be seen on the wire"
MIB = 1 << 20
SMALL = ("--num-cpus", "1", "--object-store-memory", str(200 * MIB))
PATIENCE_S = 20.0


class Shell:
    """A user's shell on one of the machines. All machines share a home directory, and with it the token."""

    def __init__(self, machine, directory, home):
        self.machine = machine
        self.environ = {**os.environ, "HOME": str(home), "SHOAL_TMPDIR": str(directory), "PYTHONPATH": os.getcwd()}
        self.environ.pop("SHOAL_AUTH_TOKEN_PATH", None)

    def __call__(self, *words, **environ):
        return self.machine.run([sys.executable, "-m", "shoal", *words], env=self.environ | environ)

    def fails(self, *words, **environ):
        """Run what must fail; return what it said."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.machine.namespace, sys.executable, "-m", "shoal", *words],
            env=self.environ | environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def python(self, program, *arguments):
        return self.machine.run([sys.executable, "-c", program, *arguments], env=self.environ, timeout_s=120)


class TwoMachines:
    """A head on the first, a node on the second; the third is a stranger's."""

    def __init__(self, network, directory, version):
        self.network = network
        self.address = [getattr(machine, version) for machine in network.machines]
        self.shells = [Shell(machine, directory / f"{machine.number}", directory) for machine in network.machines]
        self.shells[0]("start", "--head", "--node-ip-address", self.address[0], "--resources", '{"n0": 1}', *SMALL)
        self.control = f"[{self.address[0]}]:6379" if ":" in self.address[0] else f"{self.address[0]}:6379"
        self.shells[1]("start", "--address", self.control, "--resources", '{"n1": 1}', *SMALL)
        self.token = (directory / ".shoal" / "auth_token").read_bytes().strip()

    def end(self):
        for shell in self.shells[:2]:
            shell("stop")

    def ports(self):
        return [place for machine in self.network.machines[:2] for place in sorted(machine.listening())]

    def still_works(self):
        assert self.shells[0].python(WORKS).split() == ["42", "42"]


@pytest.fixture(scope="module", params=["ip4", "ip6"])
def two(request, short_directory):
    directory = short_directory / request.param
    directory.mkdir()
    with namespaces(3) as network:
        two = TwoMachines(network, directory, request.param)
        try:
            yield two
        finally:
            two.end()
            wait_for(lambda: not any(machine.pids() for machine in network.machines), PATIENCE_S, "the end of all processes")
            files = [path for number in (1, 2) for path in (directory / f"{number}").rglob("*") if path.is_file()]
            assert all(path.parent.name == "logs" for path in files), files


@pytest.fixture(scope="module")
def short_directory(own_directory):
    return Path(own_directory)


WORKS = """
import shoal
shoal.init(log_to_driver=False)
@shoal.remote(num_cpus=0)
def answer(): return 42
print(*shoal.get([answer.options(resources={name: 0.001}).remote() for name in ("n0", "n1")], timeout=60))
"""

NODES = """
import shoal
shoal.init(log_to_driver=False)
print(*(node["NodeID"] for node in shoal.nodes()))
"""

PROGRAM = """
import sys, numpy as np, shoal
mark = sys.argv[1].encode()
shoal.init(log_to_driver=False)
here, there = {"resources": {"n0": 0.001}, "num_cpus": 0}, {"resources": {"n1": 0.001}, "num_cpus": 0}

@shoal.remote
def double(data): return data * 2, shoal.get_runtime_context().get_node_id()

@shoal.remote
class Keeper:
    def __init__(self, data): self.kept = [data]
    def keep(self, data):
        self.kept.append(data)
        return b"".join(self.kept)

@shoal.remote
def make(data, nbytes): return np.frombuffer(data * (nbytes // len(data)), dtype=np.uint8)

@shoal.remote
def look(array): return len(array), array[: 2 * len(mark)].tobytes()

found = shoal.get([double.options(**where).remote(mark) for where in (here, there)], timeout=60)
assert [data for data, _ in found] == [mark * 2] * 2 and found[0][1] != found[1][1], found
keeper = Keeper.options(**there).remote(mark)
assert shoal.get([keeper.keep.remote(mark) for _ in range(3)], timeout=60)[-1] == mark * 4
big = make.options(**there).remote(mark, 50 << 20)
assert bytes(shoal.get(big, timeout=60)[: len(mark)]) == mark
mine = shoal.put(np.frombuffer(mark * ((50 << 20) // len(mark)), dtype=np.uint8))
assert shoal.get(look.options(**there).remote(mine), timeout=60)[1] == mark * 2
try:
    shoal.get(double.options(**there).remote({"not": "to be doubled", "mark": mark}), timeout=60)
except TypeError as error:
    print("passed")
"""


def test_a_program_runs_on_both_and_nothing_of_it_can_be_read_between_them(two):
    other = two.network.machines[1]
    with two.network.capture(other) as seen:
        assert two.shells[0].python(PROGRAM, MARK.decode()).strip() == "passed"
    assert len(seen) > 100 * MIB, "two large objects went over this wire"
    for readable in (MARK, MARK[5:20], two.token, b"shoal/hs", b"Keeper", b"BEGIN CERTIFICATE", b"session_"):
        assert readable not in seen


def test_the_capture_sees_what_is_plain(two):
    """The control for the test above."""
    one, other = two.network.machines[:2]
    with two.network.capture(other) as seen, other.call(lambda: socket.create_server((other.ip4, 0))) as server:
        where = server.getsockname()
        with one.call(lambda: socket.create_connection(where, timeout=PATIENCE_S)) as client, server.accept()[0] as accepted:
            client.sendall(MARK)
            assert accepted.recv(1000) == MARK
    assert MARK in seen


def test_nobody_listens_but_where_it_was_asked_for(two):
    first, second = (machine.listening() for machine in two.network.machines[:2])
    assert {host for host, _ in first} == {two.address[0]}
    assert {host for host, _ in second} == {two.address[1]}
    assert (len(first), len(second)) == (2, 1), "one port per node, and one of the control store"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def words_of_strangers(canary):
    bomb = pickle.dumps(Bomb(str(canary)))
    return {
        "nothing": b"", "http": b"GET / HTTP/1.1\r\nHost: shoal\r\n\r\n", "noise": os.urandom(20_000), "zeros": bytes(5000), "bomb": bomb,
        "bombs": bomb * 500, "tls of something else": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
    }  # fmt: skip


def said(sock, words):
    """Send; return all that comes until the other side hangs up."""
    heard = b""
    with contextlib.suppress(OSError):  # it may have hung up
        sock.sendall(words)
        sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            heard += data
    return heard


def test_strangers_get_nothing_at_any_port(two, tmp_path):
    stranger, canary = two.network.machines[2], tmp_path / "exploded"
    ports, nodes = two.ports(), [bytes.fromhex(word) for word in two.shells[0].python(NODES).split()]
    assert (len(ports), len(nodes)) == (3, 2)

    def connect(place):
        return stranger.call(lambda: socket.create_connection(place, timeout=PATIENCE_S))

    for place in ports:
        for name, words in words_of_strangers(canary).items():
            with connect(place) as sock:
                assert said(sock, words) == b"", (place, name)
            for target in (SELF, RECEPTION, os.urandom(len(SELF)), *nodes, *map(data_of, nodes)):
                with connect(place) as sock:  # plain bytes on a port that is not loopback
                    sock.sendall(encode_preamble(target))
                    assert sock.recv(1) == bytes((Answer.ENCRYPTED_ONLY,)), (place, name)
                    assert said(sock, words) == b"", (place, name)
                with connect(place) as sock:
                    sock.sendall(encode_preamble(target, encrypted=True))
                    answer = sock.recv(1)
                    if answer == bytes((Answer.OPEN,)):
                        assert len(said(sock, words)) < 20, "an alert of TLS, and no more"
                    else:
                        assert answer == bytes((Answer.UNKNOWN,)), (place, name)
    assert not canary.exists()
    two.still_works()


class Relay(threading.Thread):
    """Passes on one connection, and keeps what the client said."""

    def __init__(self, machine, to):
        super().__init__(daemon=True)
        self.machine, self.to, self.said = machine, to, bytearray()
        self.listener = machine.call(lambda: socket.create_server((to_like(machine, to), 0), family=family_of(to)))
        self.place = self.listener.getsockname()[:2]
        self.start()

    def run(self):
        with self.listener, self.listener.accept()[0] as client:
            with self.machine.call(lambda: socket.create_connection(self.to, timeout=PATIENCE_S)) as server:
                self.pass_on(client, server)

    def pass_on(self, client, server):
        back = threading.Thread(target=pump, args=(server, client, bytearray()))
        back.start()
        pump(client, server, self.said)
        back.join()


def pump(source, sink, kept):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            kept += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def family_of(place):
    return socket.AF_INET6 if ":" in place[0] else socket.AF_INET


def to_like(machine, place):
    return machine.ip6 if ":" in place[0] else machine.ip4


def spelled(place):
    return f"[{place[0]}]:{place[1]}" if ":" in place[0] else f"{place[0]}:{place[1]}"


def test_a_recorded_connection_replayed_does_nothing(two):
    control = (two.address[0], 6379)
    relay = Relay(two.network.machines[2], control)
    two.shells[1]("health-check", "--address", spelled(relay.place))  # encrypted from end to end: whoever passes it on does not matter
    relay.join(PATIENCE_S)
    recorded = bytes(relay.said)
    assert len(recorded) > PREAMBLE_BYTES + 400
    for _ in range(3):
        with two.network.machines[2].call(lambda: socket.create_connection(control, timeout=PATIENCE_S)) as sock:
            sock.sendall(recorded[:PREAMBLE_BYTES])
            assert sock.recv(1) == bytes((Answer.OPEN,))
            answer = said(sock, recorded[PREAMBLE_BYTES:])
            assert len(answer) < 2000, "the server's half of TLS's handshake, and an alert"
    two.still_works()


class ManInTheMiddle(Relay):
    """Shows the client a certificate of its own, and reads what passes."""

    def __init__(self, machine, to, directory):
        self.read = bytearray()
        authority, (key, request) = Authority.create(), new_request()
        directory.mkdir()
        keep_certificate(directory, key, authority.issue(request), authority.certificate)
        self.certificates = Certificates(directory)
        super().__init__(machine, to)

    def pass_on(self, client, server):
        server.sendall(client.recv(PREAMBLE_BYTES))
        client.sendall(server.recv(1))
        believing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        believing.check_hostname, believing.verify_mode = False, ssl.CERT_NONE
        with self.certificates.reception.wrap_socket(client, server_side=True) as here, believing.wrap_socket(server) as there:
            with contextlib.suppress(OSError):
                for source, sink in [(here, there), (there, here)] * 4:
                    data = source.recv(65536)
                    if not data:
                        return
                    self.read += data
                    sink.sendall(data)


@pytest.mark.parametrize("two", ["ip4"], indirect=True)
def test_a_man_in_the_middle_of_a_node_that_joins_gets_nothing(two, tmp_path):
    control = (two.address[0], 6379)
    status = ("status", "--address", spelled(control))
    nodes = two.shells[1](*status).count("node_")
    for number, command in enumerate([("start",), ("health-check",)]):
        between = ManInTheMiddle(two.network.machines[2], control, tmp_path / f"attacker{number}")
        error = two.shells[1].fails(*command, "--address", spelled(between.place))
        assert "somebody between the two reads along" in error
        between.join(PATIENCE_S)
        # It stood in the middle, and read the two hellos and a proof that is good for the certificate of the control store alone.
        assert between.read[:8] == b"shoal/hs"
        assert len(between.read) < 200
        for secret in (two.token, b"CERTIFICATE", b"PRIVATE"):
            assert secret not in between.read
    assert two.shells[1](*status).count("node_") == nodes


@pytest.mark.parametrize("two", ["ip4"], indirect=True)
def test_what_is_wrong_with_an_address_is_said(two):
    node = next(port for _, port in two.network.machines[1].listening())
    shell, head = two.shells[2], two.address[0]
    assert "nobody listens there" in shell.fails("health-check", "--address", f"{head}:1")
    assert "there is no way to it" in shell.fails("health-check", "--address", "192.0.2.1:6379")
    assert "is no control store: it is the port of a node" in shell.fails("health-check", "--address", f"{two.address[1]}:{node}")
    assert "does not hold this cluster's token" in shell.fails("health-check", "--address", two.control, SHOAL_AUTH_TOKEN="w" * 40)
    assert "does not hold this cluster's token" in shell.fails("start", "--address", two.control, SHOAL_AUTH_TOKEN="w" * 40)
    two.network.cut(*two.network.machines[::2], one_way=True)
    try:
        assert "did not answer within" in shell.fails("health-check", "--address", two.control)
    finally:
        two.network.heal()
    shell("health-check", "--address", two.control)


EVERYWHERE = """
import os, secrets, sys, shoal
from shoal._base.settings import read_environment
from shoal._core.process.options import ControlOptions, HeadOptions
from shoal._core.process.start import start_control_store, start_head
ip, everywhere = sys.argv[1:]
token = secrets.token_bytes(32)
control = start_control_store(ControlOptions(listen=f"tcp:{everywhere}:0", node_ip=ip), token)
nodes = []
for name in ("n0", "n1"):
    options = HeadOptions(
        num_cpus=1, num_gpus=0, resources={name: 1}, object_store_bytes=100 << 20, node_ip=ip,
        control_address=control.ready.control_address, listen=f"tcp:{everywhere}:0",
    )
    nodes.append(start_head(options, token))
print(control.ready.control_address, *(node.ready.endpoint for node in nodes))
shoal.init(address=control.ready.control_address.removeprefix("tcp:"), log_to_driver=False)
@shoal.remote(num_cpus=0)
def size(data): return len(data)
print(*shoal.get([size.options(resources={name: 0.001}).remote(b"x" * 1_000_000) for name in ("n0", "n1")], timeout=60))
shoal.shutdown()
for part in (*nodes, control):
    part.stop()
"""


@pytest.mark.parametrize(("version", "everywhere"), [("ip4", "0.0.0.0"), ("ip6", "[::]")])
def test_nodes_that_listen_at_all_addresses_announce_one_that_others_reach(short_directory, version, everywhere):
    with namespaces(1) as network:
        machine = network.machines[0]
        address = getattr(machine, version)
        shell = Shell(machine, short_directory / f"everywhere-{version}", short_directory)
        places, sizes = shell.python(EVERYWHERE, address, everywhere).splitlines()
        spelled_address = f"[{address}]" if ":" in address else address
        assert [place.rpartition(":")[0] for place in places.split()] == [f"tcp:{spelled_address}"] * 3
        assert sizes.split() == ["1000000"] * 2
        assert not machine.pids()
