"""The network that other tests are made with: what is cut is cut, that way and no other, and all of it goes at the end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

import pytest

from shoal.testing import wait_for
from tests.faults.namespaces import namespaces, needs_namespaces

pytestmark = [needs_namespaces, pytest.mark.timeout(120)]

PORT = 7000


def receiver(machine, address):
    def listen():
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, PORT))
        sock.settimeout(5.0)
        return sock

    return machine.call(listen)


def sender(machine, family):
    return machine.call(lambda: socket.socket(family, socket.SOCK_DGRAM))


def reached(network, version):
    """Return who reaches whom, as pairs of numbers."""
    machines = network.machines
    with contextlib.ExitStack() as stack:
        inboxes = {machine.number: stack.enter_context(receiver(machine, getattr(machine, version))) for machine in machines}
        family = inboxes[1].family
        for machine in machines:
            with sender(machine, family) as sock:
                for other in machines:
                    sock.sendto(b"%d" % machine.number, (getattr(other, version), PORT))
        found = set()
        for machine in machines:
            with sender(machine, family) as sock:  # what never comes is not waited for: this word does not leave its machine
                sock.sendto(b"end", (getattr(machine, version), PORT))
        for number, inbox in inboxes.items():
            while (word := inbox.recv(100)) != b"end":
                found.add((int(word), number))
    return {pair for pair in found if pair[0] != pair[1]}


ALL = {(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}


@pytest.mark.parametrize("version", ["ip4", "ip6"])
def test_links_are_cut_and_heal(version):
    with namespaces(3) as network:
        one, two, three = network.machines
        wait_for(lambda: reached(network, version) == ALL, 20)
        network.cut(one, two)
        wait_for(lambda: reached(network, version) == ALL - {(1, 2), (2, 1)}, 20)
        network.cut(three, one, one_way=True)
        wait_for(lambda: reached(network, version) == ALL - {(1, 2), (2, 1), (3, 1)}, 20)
        network.heal()
        wait_for(lambda: reached(network, version) == ALL, 20)
        network.isolate(two)
        wait_for(lambda: reached(network, version) == {(1, 3), (3, 1)}, 20)
        network.heal()
        wait_for(lambda: reached(network, version) == ALL, 20)


def test_a_connection_stands_still_while_it_is_cut_and_goes_on():
    with namespaces(2) as network:
        one, two = network.machines
        with two.call(lambda: socket.create_server((two.ip4, PORT))) as server:
            client = one.call(lambda: socket.create_connection((two.ip4, PORT), timeout=5.0))
            with client, server.accept()[0] as accepted:
                network.cut(one, two, one_way=True)
                client.sendall(b"late")
                accepted.settimeout(0.3)
                with pytest.raises(TimeoutError):  # that nothing comes can only be seen by waiting
                    accepted.recv(10)
                network.heal()
                accepted.settimeout(30.0)
                assert accepted.recv(10) == b"late"


def test_nothing_is_left():
    with namespaces(2) as network:
        machine = network.machines[0]
        sleeping = machine.start(["sleep", "1000"])
        machine.run(["sh", "-c", "(sleep 1000 & sleep 1000 &) >/dev/null 2>&1"])
        assert len(machine.pids()) >= 2
        names = [network.bridge.namespace, *(each.namespace for each in network.machines)]
    assert sleeping.returncode is not None
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in listed for name in names)
    assert not any(os.path.exists(f"/run/netns/{name}") for name in names)
