"""Which of a user's sessions a driver or command finds."""

from __future__ import annotations

import os

import pytest

from shoal._base.processes import read_stat
from shoal._core.process import session as sessions
from shoal._core.process.discovery import clusters, dead_control_stores, live_records, nodes_of, resolve, spell


def record(control, *, part="node", head=False, daemon=True, started_at=0.0):
    return sessions.SessionRecord(part=part, control_address=control, is_head=head, is_daemon=daemon, started_at=started_at)


def test_only_living_processes_count(tmp_path):
    alive, dead = sessions.create(tmp_path), sessions.create(tmp_path)
    for one in (alive, dead):
        one.record(record("tcp:127.0.0.1:1"))
    path = dead.directory / "session.json"
    path.write_text(path.read_text().replace(f'"start_time":{read_stat(os.getpid()).start_time}', '"start_time":1'))
    (sessions.create(tmp_path).directory / "session.json").write_text("{torn")
    assert [found.session_dir for found in live_records(tmp_path)] == [str(alive.path)]
    assert live_records(tmp_path / "nowhere") == []


def test_a_session_that_lies_elsewhere_is_found_by_its_link(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_TMPDIR", str(tmp_path / "usual"))
    elsewhere, hidden = sessions.create(tmp_path / "other", findable=True), sessions.create(tmp_path / "other")
    for one in (elsewhere, hidden):
        one.record(record("tcp:127.0.0.1:1"))
    assert [found.session_dir for found in live_records()] == [str(elsewhere.path)]
    elsewhere.remove()
    assert live_records() == []
    assert list((tmp_path / "usual").rglob("session_*")) == []
    killed = sessions.create(tmp_path / "other", findable=True)
    (killed.directory / "token").unlink()
    sessions.sweep(sessions.user_dir(tmp_path / "usual"))
    assert list((tmp_path / "usual").rglob("session_*")) == []


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory to another user, which needs root")
def test_records_below_a_directory_of_somebody_else_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_TMPDIR", str(tmp_path))
    alive, dead = sessions.create(tmp_path), sessions.create(tmp_path)
    for one in (alive, dead):
        one.record(record("tcp:127.0.0.1:1", part="control store"))
    path = dead.directory / "session.json"
    path.write_text(path.read_text().replace(f'"start_time":{read_stat(os.getpid()).start_time}', '"start_time":1'))
    assert [found.session_dir for found in dead_control_stores()] == [str(dead.path)]
    os.chown(sessions.user_dir(tmp_path), 65534, -1)
    assert (live_records(), dead_control_stores()) == ([], [])


@pytest.mark.parametrize(
    ("text", "known", "found"),
    [
        ("127.0.0.1:1,127.0.0.1:2", [], "tcp:127.0.0.1:1,tcp:127.0.0.1:2"),
        ("127.0.0.1:1, 127.0.0.1:2", ["tcp:127.0.0.1:2"], "tcp:127.0.0.1:2,tcp:127.0.0.1:1"),
        ("127.0.0.1:2", ["tcp:127.0.0.1:1,tcp:127.0.0.1:2"], "tcp:127.0.0.1:1,tcp:127.0.0.1:2"),
    ],
)
def test_a_cluster_may_have_several_control_stores(text, known, found):
    assert resolve(text, known) == found
    assert spell(found) == found.replace("tcp:", "")


def test_nodes_belong_together_though_one_knows_of_more_standbys():
    records = [record("tcp:a:1", started_at=1, head=True), record("tcp:a:1,tcp:b:1", started_at=2), record("tcp:c:1", started_at=3)]
    assert clusters(records) == ["tcp:c:1", "tcp:a:1,tcp:b:1"]
    assert nodes_of(records, "tcp:b:1,tcp:a:1") == records[:2]


def test_the_head_is_joined_first():
    second, head, control = record("tcp:a:1"), record("tcp:a:1", head=True), record("tcp:a:1", part="control store")
    other = record("tcp:b:1", head=True)
    assert nodes_of([second, control, head, other], "tcp:a:1") == [head, second]


def test_clusters_from_a_shell_come_first_and_the_newest_of_them():
    records = [
        record("unix:mine", part="session", daemon=False, started_at=9),
        record("tcp:old:1", started_at=1),
        record("tcp:new:1", started_at=2),
        record("tcp:new:1", part="control store", started_at=3),
        record("tcp:old:1", started_at=1.5),
    ]
    assert clusters(records) == ["tcp:new:1", "tcp:old:1", "unix:mine"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:6379", "tcp:127.0.0.1:6379"),
        ("localhost:6379", "tcp:127.0.0.1:6379"),
        ("tcp:127.0.0.1:6379", "tcp:127.0.0.1:6379"),
        ("127.0.0.1:6380", "tcp:127.0.0.1:6380"),
        ("[::1]:6379", "tcp:[::1]:6379"),
        ("unix:/x/control.sock", "unix:/x/control.sock"),
    ],
)
def test_an_address_in_any_form(text, found):
    assert resolve(text, ["unix:/x/control.sock", "tcp:127.0.0.1:6379"]) == found


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:99999", "host:http", "ray://host:1", "unix:/elsewhere"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        resolve(text, ["tcp:127.0.0.1:6379"])


def test_spelled_as_users_do():
    assert spell("tcp:127.0.0.1:6379") == "127.0.0.1:6379"
    assert spell("unix:/x") == "unix:/x"
