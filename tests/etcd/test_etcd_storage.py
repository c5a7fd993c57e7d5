"""Tables in a real etcd: the contract, batches beyond its limits, members that die, writers that are late."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from etcd_server import MISSING, SAFETY_S, Etcd, running_etcd, unique_prefix

from shoal._core.control_store.storage import Change, Deposed, Storage, StorageUnavailable
from shoal._core.control_store.storage.etcd import EtcdStorage, Fence
from shoal._core.control_store.storage.etcd_client import EtcdClient, delete, put
from shoal._core.control_store.storage.etcd_rows import Keys
from shoal.testing.storage_contract import StorageContract
from shoal.testing.waiting import wait_for

pytestmark = pytest.mark.cluster


def elected(client: EtcdClient, prefix: str) -> Fence:
    """Be the leader of these tables from now on, whoever was before."""
    leader = Keys(prefix).leader
    client.txn([], [delete(leader)])
    client.txn([], [put(leader, b"somebody")])
    return Fence(leader, client.range(leader).kvs[0].create_revision, lambda: True)


def opened(etcd: Etcd, prefix: str) -> EtcdStorage:
    client = etcd.client()
    return EtcdStorage(client, prefix, elected(client, prefix))


class TestEtcdStorage(StorageContract):
    @pytest.fixture(autouse=True)
    def _server(self, etcd: Etcd) -> None:
        self._etcd = etcd

    def open(self, tmp_path: Path) -> Storage:
        return opened(self._etcd, f"/{tmp_path.name}")


def test_clusters_share_an_etcd(etcd):
    prefix = unique_prefix()
    one, other = opened(etcd, prefix), opened(etcd, prefix + "2")
    one.put("t", b"k", b"1")
    other.put("t", b"k", b"2")
    one.put("t2", b"k", b"3")
    assert list(one.scan("t")) == [(b"k", b"1")]
    assert list(other.scan("t")) == [(b"k", b"2")]
    one.close()
    other.close()


def test_a_shorter_value_leaves_nothing_of_the_longer_one(etcd):
    prefix = unique_prefix()
    storage, client = opened(etcd, prefix), etcd.client()
    storage.put("t", b"k", b"x" * (5 << 20))
    storage.put("t", b"k", b"y")
    assert storage.get("t", b"k") == b"y"
    row = Keys(prefix).row("t", b"k")
    assert len(client.range(row, row + b"\xff").kvs) == 1
    storage.put("t", b"k", b"")
    assert storage.get("t", b"k") == b""
    storage.close()
    client.close()


@pytest.mark.parametrize(("rows", "nbytes"), [(3840, 10), (3841, 10), (10_000, 10), (3000, 2000), (3, 1 << 20), (1, 10 << 20)])
def test_batches_beyond_the_limits_are_written(etcd, rows, nbytes):
    prefix = unique_prefix()
    storage = opened(etcd, prefix)
    changes = [Change("t", b"%06d" % n, b"%d" % n * (nbytes // 5)) for n in range(rows)]
    storage.apply(changes)
    assert list(storage.scan("t")) == [(key, value) for _, key, value in changes]
    storage.apply([Change("t", key, None) for _, key, _ in changes])
    assert list(storage.scan("t")) == []
    client = etcd.client()
    found = {row.key for row in client.range(prefix.encode(), prefix.encode() + b"\xff").kvs}
    assert found == {Keys(prefix).leader, Keys(prefix).writer}, "nothing of the batch is left"
    storage.close()
    client.close()


class Cut(Exception):
    """The process ends here."""


class CutClient:
    """Lets through a number of transactions, then no more: the writer is dead."""

    def __init__(self, client: EtcdClient, left: int) -> None:
        self._client = client
        self.left = left

    def txn(self, *arguments):
        if self.left == 0:
            raise Cut
        self.left -= 1
        return self._client.txn(*arguments)

    def __getattr__(self, name):
        return getattr(self._client, name)


def test_a_large_batch_is_whole_wherever_its_writer_dies(etcd):
    """Cut before each of its transactions in turn: the next leader finds all of it, or nothing."""
    before = [Change("t", b"kept", b"old"), Change("t", b"gone", b"old")]
    batch = [Change("t", b"kept", b"new"), Change("t", b"gone", None), *(Change("t", b"%d" % n, b"x" * 700_000) for n in range(4))]
    seen = []
    for cut in range(100):
        prefix = unique_prefix()
        first = opened(etcd, prefix)
        first.apply(before)
        client = CutClient(etcd.client(), -1)
        writer = EtcdStorage(client, prefix, elected(first._client, prefix))
        client.left = cut
        try:
            writer.apply(batch)
            whole = True
        except Cut:
            whole = False
        successor = opened(etcd, prefix)
        rows = dict(successor.scan("t"))
        is_new = rows == {key: value for _, key, value in batch if value is not None}
        assert is_new or rows == {b"kept": b"old", b"gone": b"old"}
        assert is_new or not whole
        seen.append(is_new)
        for storage in (first, writer, successor):
            storage.close()
        if whole:
            break
    assert seen == sorted(seen), "once durable, it stays so"
    assert seen.count(False) >= 3
    assert seen.count(True) >= 4


def test_a_deposed_writer_writes_nothing(etcd):
    prefix = unique_prefix()
    old = opened(etcd, prefix)
    old.put("t", b"k", b"old")
    client = etcd.client()
    fence = elected(client, prefix)  # elected, and has not written yet
    with pytest.raises(Deposed, match="Another control store has taken over"):
        old.put("t", b"k", b"late")
    with pytest.raises(Deposed):
        old.put("t", b"k", b"later")
    new = EtcdStorage(client, prefix, fence)
    assert new.get("t", b"k") == b"old"
    with pytest.raises(Deposed):
        EtcdStorage(old._client, prefix, Fence(fence.key, fence.revision - 1, lambda: True))
    old.close()
    new.close()


class LosingClient:
    """Loses answers, requests, or both; requests that were lost can arrive later."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self.lose_answer = self.lose_request = False
        self.lost = []

    def txn(self, *arguments):
        if self.lose_request:
            self.lost.append(arguments)
            raise StorageUnavailable("lost on the way")
        result = self._client.txn(*arguments)
        if self.lose_answer:
            raise StorageUnavailable("lost on the way back")
        return result

    def arrive(self):
        """Return what became of the requests that were lost."""
        return [self._client.txn(*arguments).succeeded for arguments in self.lost]

    def __getattr__(self, name):
        return getattr(self._client, name)


def losing(etcd: Etcd) -> tuple[EtcdStorage, LosingClient]:
    prefix = unique_prefix()
    client = LosingClient(etcd.client())
    return EtcdStorage(client, prefix, elected(client._client, prefix)), client


def test_a_lost_answer_is_no_lost_change(etcd):
    storage, client = losing(etcd)
    client.lose_answer = True
    with pytest.raises(StorageUnavailable):
        storage.put("t", b"a", b"1")
    client.lose_answer = False
    storage.put("t", b"b", b"2")
    assert dict(storage.scan("t")) == {b"a": b"1", b"b": b"2"}
    storage.close()


def test_a_transaction_that_arrives_late_undoes_nothing(etcd):
    storage, client = losing(etcd)
    storage.put("t", b"k", b"0")
    client.lose_request = True
    with pytest.raises(StorageUnavailable):
        storage.put("t", b"k", b"1")
    client.lose_request = False
    storage.put("t", b"k", b"2")  # acknowledged
    assert client.arrive() == [False]
    assert storage.get("t", b"k") == b"2"
    storage.put("t", b"k", b"3")
    assert storage.get("t", b"k") == b"3"
    storage.close()


def test_a_late_declaration_of_a_large_batch_undoes_nothing(etcd):
    storage, client = losing(etcd)
    batch = [Change("t", b"k", b"large"), *(Change("t", b"%d" % n, b"x" * 700_000) for n in range(3))]
    real, calls = client._client.txn, []

    def counted(compare, success, failure=()):
        if any(operation.get("request_put", {}).get("key", b"").endswith(b"batch_pieces") for operation in success):
            calls.append((compare, success, failure))
            raise StorageUnavailable("the declaration is lost on the way")
        return real(compare, success, failure)

    client._client.txn = counted
    with pytest.raises(StorageUnavailable):
        storage.apply(batch)
    client._client.txn = real
    storage.put("t", b"k", b"acknowledged")
    assert [real(*call).succeeded for call in calls] == [False]
    storage._recover()
    assert storage.get("t", b"k") == b"acknowledged"
    storage.close()


def test_old_values_are_compacted_as_transactions_go_by(etcd, monkeypatch):
    monkeypatch.setattr("shoal._core.control_store.storage.etcd.COMPACT_EVERY", 10)
    storage = opened(etcd, unique_prefix())
    asked = []
    monkeypatch.setattr(storage._client, "compact", asked.append)
    for n in range(35):
        storage.put("t", b"k", b"%d" % n)
    assert len(asked) == 3
    assert asked == sorted(asked)
    assert asked[2] - asked[1] == 10
    monkeypatch.undo()
    storage._forget_old_values()
    assert storage.get("t", b"k") == b"34"
    storage.close()


def test_nobody_answers(tmp_path):
    client = EtcdClient(["127.0.0.1:1", "127.0.0.1:2"], timeout_s=1.0)
    with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:1.*127\.0\.0\.1:2"):
        client.range(b"k")


def test_a_member_of_three_dies_and_another_stands_still(tmp_path):
    if MISSING:
        pytest.skip(MISSING)
    with running_etcd(tmp_path, members=3) as etcd:
        client = etcd.client(timeout_s=2.0)
        storage = EtcdStorage(client, "/three", elected(client, "/three"))

        def write(n: int) -> None:
            def written() -> bool:
                try:
                    storage.put("t", b"%d" % n, b"x")
                except StorageUnavailable:
                    return False  # an election
                return True

            wait_for(written, SAFETY_S, "the write")

        for n in range(20):
            write(n)
        etcd.kill(0)
        for n in range(20, 40):
            write(n)
        etcd.start(0)
        etcd.signal(signal.SIGSTOP, 1)
        try:
            for n in range(40, 60):
                write(n)
        finally:
            etcd.signal(signal.SIGCONT, 1)
        assert {int(key) for key, _ in storage.scan("t")} == set(range(60))
        storage.close()
