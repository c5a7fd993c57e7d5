"""Machines with a network between them, on this one: network namespaces on a bridge.

    with namespaces(3) as network:                 10.77.0.1, fd77::1   10.77.0.2, fd77::2   10.77.0.3, fd77::3
        one, two, three = network.machines                └──────────────── bridge ────────────────┘
        one.start([...])                           a process there
        one.call(function)                         a function of this process: the sockets that it opens are there
        network.cut(one, two)                      nothing gets from one to two, nor back; packets vanish without a word
        network.cut(one, two, one_way=True)        nothing gets from one to two
        network.heal()

    with namespaces(1, inside=2) as network:       and machines inside of private networks, each behind a router of its own:
        network.inside                             192.168.7.2, fd07::2, both; they dial out, nobody dials them (needs ``nft``)

    namespaces(3, versions=(6,))                   addresses of one kind only, also of the machine itself

Needs root and ``ip``; ``needs_namespaces`` skips a test elsewhere. Packets are made to vanish by a wrong address of the other machine's
network card in the sender's neighbour table, as this needs no filter in the kernel. All is deleted at the end, and what still runs
there is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
#: A network card that nobody has.
_NOBODY = "02:00:00:00:de:ad"
_GONE_S = 10.0

T = TypeVar("T")


def _why_not() -> str:
    """Return why there can be no namespaces here, "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the tool 'ip' (package iproute2)"
    name = f"shoal-try-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    try:
        tried = subprocess.run(["ip", "-n", name, "link", "add", "br0", "type", "bridge"], capture_output=True, text=True)
        return f"the kernel has no bridges: {tried.stderr.strip()}" if tried.returncode else ""
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


_WHY_NOT = _why_not()
#: Marks tests that are skipped, with the reason, where there can be no namespaces.
needs_namespaces = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


#: Marks tests that need routers between their machines.
needs_routers = pytest.mark.skipif(
    bool(_WHY_NOT) or shutil.which("nft") is None, reason=_WHY_NOT or "routers need the tool 'nft' (nftables)"
)


@dataclass
class Machine:
    """One namespace. ``ip4`` and ``ip6``: its addresses; 127.0.0.1 is its own, too. ``is_inside``: of a private network, alone in it."""

    namespace: str
    number: int
    is_inside: bool = False
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def ip4(self) -> str:
        return "192.168.7.2" if self.is_inside else f"10.77.0.{self.number}"

    @property
    def ip6(self) -> str:
        return "fd07::2" if self.is_inside else f"fd77::{self.number}"

    @property
    def card(self) -> str:
        return f"02:00:00:00:77:{self.number:02x}"

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process there; it is killed at the end if it still runs. ``options``: as of ``subprocess.Popen``."""
        process = subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], **options)
        self.processes.append(process)
        return process

    def run(self, command: Sequence[str], *, timeout_s: float = 60.0, **options: Any) -> str:
        """Run a process there to its end; return what it printed. AssertionError shows everything when it fails."""
        command = ["ip", "netns", "exec", self.namespace, *command]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, **options)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that is there; sockets that it opens stay there."""
        outcome: list[Any] = []

        def inside() -> None:
            descriptor = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {self.namespace}")
                outcome.extend((function(), None))
            except BaseException as error:
                outcome.extend((None, error))
            finally:
                os.close(descriptor)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        result, error = outcome
        if error is not None:
            raise error
        found: T = result
        return found

    def pids(self) -> list[int]:
        """Return the processes that run there."""
        done = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    def listening(self) -> set[tuple[str, int]]:
        """Return (address, port) of every TCP socket that listens there."""
        found = set()
        for line in self.run(["ss", "-Hltn"]).splitlines():
            host, _, port = line.split()[3].rpartition(":")
            found.add((host.strip("[]"), int(port)))
        return found


class Network:
    def __init__(self, bridge: str, machines: list[Machine]) -> None:
        self.bridge = Machine(bridge, 0)
        self.machines = machines
        self.inside: list[Machine] = []

    def cut(self, sender: Machine, receiver: Machine, *, one_way: bool = False) -> None:
        """From now on what ``sender`` sends to ``receiver`` vanishes; and what comes back, unless ``one_way``."""
        self._point(sender, receiver, _NOBODY)
        if not one_way:
            self._point(receiver, sender, _NOBODY)

    def isolate(self, machine: Machine) -> None:
        """Cut a machine off from all others."""
        for other in self.machines:
            if other is not machine:
                self.cut(machine, other)

    def heal(self) -> None:
        """Everybody reaches everybody."""
        for sender in self.machines:
            for receiver in self.machines:
                if sender is not receiver:
                    self._point(sender, receiver, receiver.card)

    def _point(self, sender: Machine, receiver: Machine, card: str) -> None:
        for address in (receiver.ip4, receiver.ip6):
            _ip("-n", sender.namespace, "neigh", "replace", address, "lladdr", card, "nud", "permanent", "dev", "eth0")

    @contextlib.contextmanager
    def capture(self, machine: Machine) -> Iterator[bytearray]:
        """Gather every packet that enters or leaves a machine. Complete when the block ends."""

        def open_socket() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
            sock.bind((f"v{machine.number}", 0))
            sock.settimeout(0.2)
            return sock

        seen, ending = bytearray(), threading.Event()

        def gather() -> None:
            while True:
                try:
                    seen.extend(sock.recv(1 << 17))
                except TimeoutError:
                    if ending.is_set():
                        return

        with self.bridge.call(open_socket) as sock:
            thread = threading.Thread(target=gather)
            thread.start()
            try:
                yield seen
            finally:
                ending.set()
                thread.join()


@contextlib.contextmanager
def namespaces(count: int, *, inside: int = 0, versions: Sequence[int] = (4, 6)) -> Iterator[Network]:
    """Make ``count`` machines and a network between them; delete all of it at the end.

    Args:
        inside: machines more, each in a private network of its own, whose router is one of ``machines``, behind the first ``count``.
        versions: of the internet protocol, whose addresses there are.
    """
    stem = f"shoal-{os.getpid()}-{secrets.token_hex(2)}"
    machines = [Machine(f"{stem}-{number}", number) for number in range(1, count + inside + 1)]
    network = Network(f"{stem}-bridge", machines)
    network.inside = [Machine(f"{stem}-{number}-inside", number, is_inside=True) for number in range(count + 1, count + inside + 1)]
    bridge, made = network.bridge.namespace, []
    try:
        for machine in (network.bridge, *machines, *network.inside):
            _ip("netns", "add", machine.namespace)
            made.append(machine)
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        for machine in machines:
            port = f"v{machine.number}"
            peer = ("peer", "name", "eth0", "address", machine.card, "netns", machine.namespace)
            _ip("-n", bridge, "link", "add", port, "type", "veth", *peer)
            _ip("-n", bridge, "link", "set", port, "master", "br0", "up")
            _set_up(machine, versions)
        network.heal()
        for router, machine in zip(machines[count:], network.inside, strict=True):
            _put_behind(router, machine, versions)
        yield network
    finally:
        for process in (process for machine in made for process in machine.processes):
            process.kill()
            process.wait()
        _end_all(made)
        for machine in made:
            _ip("netns", "del", machine.namespace)


def _set_up(machine: Machine, versions: Sequence[int]) -> None:
    space = ("-n", machine.namespace)
    if 4 in versions:
        _ip(*space, "addr", "add", f"{machine.ip4}/24", "dev", "eth0")
    if 6 in versions:
        _ip(*space, "addr", "add", f"{machine.ip6}/64", "dev", "eth0", "nodad")
    _ip(*space, "link", "set", "lo", "up")
    _ip(*space, "link", "set", "eth0", "up")
    if 4 not in versions:
        _ip(*space, "addr", "del", "127.0.0.1/8", "dev", "lo")


def _put_behind(router: Machine, machine: Machine, versions: Sequence[int]) -> None:
    """Connect a machine to a router, which translates the addresses of what leaves, and lets nothing in that was not asked for."""
    _ip("-n", router.namespace, "link", "add", "inside", "type", "veth", "peer", "name", "eth0", "netns", machine.namespace)
    _ip("-n", router.namespace, "link", "set", "inside", "up")
    _set_up(machine, versions)
    rules = ["add table inet nat", "add chain inet nat out { type nat hook postrouting priority 100 ; }"]
    rules += [
        "add rule inet nat out oifname eth0 masquerade",
        "add chain inet nat in { type filter hook forward priority 0 ; policy drop ; }",
    ]
    rules += ["add rule inet nat in iifname inside accept", "add rule inet nat in ct state established,related accept"]
    router.run(["nft", "; ".join(rules)])
    for version, gateway, nothing, switch in (
        (4, "192.168.7.1/24", "default", "net.ipv4.ip_forward"),
        (6, "fd07::1/64", "::/0", "net.ipv6.conf.all.forwarding"),
    ):
        if version in versions:
            family = f"-{version}"
            _ip("-n", router.namespace, family, "addr", "add", gateway, "dev", "inside", *(("nodad",) if version == 6 else ()))
            router.run(["sh", "-c", f"echo 1 > /proc/sys/{switch.replace('.', '/')}"])
            _ip("-n", machine.namespace, family, "route", "add", nothing, "via", gateway.partition("/")[0], "dev", "eth0")


def _end_all(machines: Sequence[Machine]) -> None:
    """Kill what still runs there; a namespace whose processes live on would not go."""
    deadline = time.monotonic() + _GONE_S
    while pids := [pid for machine in machines for pid in machine.pids()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"Processes {pids} do not end.")
        time.sleep(0.01)
