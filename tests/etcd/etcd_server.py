"""etcd on loopback, started and killed by the tests: one member or several."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal._base.storage_place import EtcdAccess
from shoal._core.control_store.storage import StorageUnavailable
from shoal._core.control_store.storage.etcd_client import EtcdClient
from shoal.testing.waiting import wait_for

#: etcd is a Go program beside others on a machine with few cores.
SAFETY_S = 30.0

MISSING = None if shutil.which("etcd") else "etcd is not installed (Debian: apt-get install etcd-server)"


class Etcd:
    """A cluster of ``members``; ``endpoints`` are those of all."""

    def __init__(self, directory: Path, members: int, certificates: tuple[str, str] | None = None) -> None:
        #: Files with certificate and key: clients speak TLS.
        self._certificates = certificates
        self._directory = directory
        ports = _free_ports(2 * members)
        self._clients, self._peers = ports[:members], ports[members:]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * members
        self.endpoints = [f"127.0.0.1:{port}" for port in self._clients]
        self.revision = 0

    @property
    def url(self) -> str:
        """What ``--storage`` is given, less the prefix."""
        return f"etcd://{','.join(self.endpoints)}"

    @property
    def access(self) -> EtcdAccess:
        return EtcdAccess(ca=self._certificates[0]) if self._certificates else EtcdAccess()

    def client(self, *, timeout_s: float = 5.0, access: EtcdAccess | None = None) -> EtcdClient:
        return EtcdClient(self.endpoints, access, timeout_s=timeout_s)

    def start(self, *indices: int) -> None:
        """Start these members, or all; return when the cluster serves."""
        for index in indices or range(len(self._processes)):
            self._start(index)
        self.wait()

    def wait(self) -> None:
        def serves() -> bool:
            client = self.client(timeout_s=1.0, access=self.access)
            try:
                client.range(b"nothing")
            except StorageUnavailable:
                return False
            finally:
                client.close()
            return True

        wait_for(serves, SAFETY_S, "etcd's first answer")

    def kill(self, index: int = 0) -> None:
        process = self._processes[index]
        assert process is not None
        process.kill()
        process.wait()
        self._processes[index] = None

    def signal(self, number: signal.Signals, index: int = 0) -> None:
        process = self._processes[index]
        assert process is not None
        process.send_signal(number)

    def stop(self) -> None:
        for index, process in enumerate(self._processes):
            if process is not None:
                self.kill(index)

    def _start(self, index: int) -> None:
        name, port, peer = f"m{index}", self._clients[index], self._peers[index]
        scheme, tls = "http", list[str]()
        if self._certificates:
            scheme, tls = "https", ["--cert-file", self._certificates[0], "--key-file", self._certificates[1]]
        everybody = ",".join(f"m{n}=http://127.0.0.1:{peer}" for n, peer in enumerate(self._peers))
        with open(self._directory / f"{name}.log", "ab") as log:
            self._processes[index] = subprocess.Popen(
                [
                    # It ends with the tests, whatever ends them.
                    "setpriv", "--pdeathsig", "KILL", "--", "etcd", "--name", name, "--data-dir", str(self._directory / name),
                    "--listen-client-urls", f"{scheme}://127.0.0.1:{port}", "--advertise-client-urls", f"{scheme}://127.0.0.1:{port}",
                    "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                    "--initial-cluster", everybody, "--log-level", "warn", *tls,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip


@contextmanager
def running_etcd(directory: Path, members: int = 1, certificates: tuple[str, str] | None = None) -> Iterator[Etcd]:
    etcd = Etcd(directory, members, certificates)
    try:
        etcd.start()
        yield etcd
    finally:
        etcd.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def unique_prefix() -> str:
    """A place for one test's tables in an etcd that several use."""
    return f"/test-{time.monotonic_ns()}"
