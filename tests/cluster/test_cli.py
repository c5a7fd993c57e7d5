"""The command line on real processes: start, join, look, stop; what two shells of one user see of each other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shoal._base import processes
from shoal._core.process.discovery import live_records
from shoal.testing import leak_check, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

SMALL = ["--object-store-memory", str(80 << 20)]


class Shell:
    """One user's shell: an empty home directory, a temporary directory, and nothing set."""

    def __init__(self, home: Path, tmp: Path) -> None:
        names = ("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LANG")
        self.environ = {name: os.environ[name] for name in names if name in os.environ}
        self.environ |= {"HOME": str(home), "SHOAL_TMPDIR": str(tmp)}
        self.tmp = tmp

    def __call__(self, *arguments, status=0, **environ):
        done = subprocess.run(
            [sys.executable, "-m", "shoal", *arguments], env={**self.environ, **environ}, capture_output=True, text=True, timeout=60
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    def start(self, *arguments):
        """Start in the foreground; the caller ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "shoal", *arguments], env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def python(self, program):
        done = subprocess.run([sys.executable, "-c", program], env=self.environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def shell(short_path):
    (short_path / "home").mkdir()
    with leak_check(temp_dir=short_path):
        shell = Shell(short_path / "home", short_path)
        yield shell
        shell("stop")
        assert live_records(short_path) == []


@pytest.fixture
def short_path(tmp_path_factory):
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="shoal-c-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def head(shell, *more, **environ):
    """Start a head on a free port; return its address."""
    out = shell("start", "--head", "--port", "0", "--num-cpus", "2", *SMALL, *more, **environ)
    return out.split("--address='")[1].split("'")[0]


def test_start_join_look_stop(shell):
    address = head(shell)
    assert shell("health-check") == ""
    shell("start", "--address", address, "--num-cpus", "1", "--resources", '{"a": 1}', "--node-name", "second", *SMALL)
    report = shell("status", "-v")
    assert report.count(" 1 node_") == 2
    assert "(second)" in report
    assert " 0.0/3.0 CPU" in report
    assert shell("status", "--address", address).count(" 1 node_") == 2
    out = shell.python("""
import shoal
context = shoal.init()
@shoal.remote(resources={"a": 1})
def f(): return "there"
@shoal.remote(lifetime="detached", name="keeper", namespace="n", num_cpus=0)
class Keeper:
    def get(self): return 1
keeper = Keeper.options(name="keeper", namespace="n", lifetime="detached").remote()
print(shoal.get(f.remote()), shoal.get(keeper.get.remote()), context.address_info["address"])
""")
    assert out.split() == ["there", "1", address]
    out = shell.python("import shoal; shoal.init(); print(shoal.get(shoal.get_actor('keeper', namespace='n').get.remote()))")
    assert out == "1\n"
    assert shell("stop") == "Stopped all 3 shoal processes.\n"
    assert shell("stop") == "Did not find any active shoal processes.\n"
    assert "No cluster of this user" in shell("status", status=1)


def test_the_token_is_made_once_and_found_again(shell):
    assert "There is no token" in shell("get-auth-token", status=1)
    head(shell)
    token = shell("get-auth-token").strip()
    assert token == (Path(shell.environ["HOME"]) / ".shoal" / "auth_token").read_text().strip()
    shell("stop")
    head(shell)
    assert shell("get-auth-token").strip() == token


def test_the_token_is_changed_while_the_cluster_runs(shell):
    address = head(shell)
    old = shell("get-auth-token").strip()
    shell("rotate-auth-token")
    new = shell("get-auth-token").strip()
    assert new != old
    shell("start", "--address", address, "--resources", '{"a": 1}', *SMALL)
    assert (
        shell.python("import shoal; shoal.init(); print(shoal.get(shoal.remote(lambda: 1).options(resources={'a': 1}).remote()))") == "1\n"
    )
    shell("start", "--address", address, *SMALL, SHOAL_AUTH_TOKEN=old)
    shell("rotate-auth-token")
    assert "token" in shell("start", "--address", address, *SMALL, status=1, SHOAL_AUTH_TOKEN=old)
    assert shell("status").count(" 1 node_") == 3


def test_user_code_does_not_see_a_token_from_the_environment(shell):
    shell.environ["SHOAL_AUTH_TOKEN"] = "a-token-of-some-length-0123"
    head(shell)
    del shell.environ["SHOAL_AUTH_TOKEN"]
    out = shell.python(
        "import shoal; shoal.init(); f = shoal.remote(lambda: 'a-token' in str(__import__('os').environ)); print(shoal.get(f.remote()))"
    )
    assert out == "False\n"


def test_a_wrong_token_a_wrong_port_and_somebody_else(shell):
    address = head(shell)
    other = {"SHOAL_AUTH_TOKEN": "another-token-of-some-length"}
    for arguments in (["start", "--address", address, *SMALL], ["status", "--address", address.replace("127.0.0.1", "127.0.0.2")]):
        text = shell(*arguments, status=1, **other)
        assert text.count("\n") == 1, text
    assert "does not hold this cluster's token" in shell("start", "--address", address, *SMALL, status=1, **other)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "Cannot connect to tcp:127.0.0.1" in shell("start", "--address", f"127.0.0.1:{port}", *SMALL, status=1)
    assert len(live_records(shell.tmp)) == 2


def test_a_port_in_use(shell):
    address = head(shell)
    port = address.rpartition(":")[2]
    assert f"cannot listen on 127.0.0.1:{port}" in shell("start", "--head", "--port", port, *SMALL, status=1)
    assert len(live_records(shell.tmp)) == 2


def test_two_clusters_side_by_side(shell):
    first, second = head(shell), head(shell)
    text = shell("status", status=1)
    assert first in text
    assert second in text
    assert shell("status", "--address", first).count("node_") == 1
    assert shell("status", RAY_ADDRESS=second).count("node_") == 1
    assert shell.python("import shoal; print(shoal.init().address_info['address'])").strip() == second, "the newest"
    assert shell("stop", "--address", first) == "Stopped all 2 shoal processes.\n"
    assert shell("status").count("node_") == 1
    (node,) = [record for record in live_records(shell.tmp) if record.part == "node"]
    assert shell("stop", "--session", Path(node.session_dir).name) == "Stopped all 1 shoal processes.\n"
    assert [record.part for record in live_records(shell.tmp)] == ["control store"]


def test_stop_kills_what_does_not_end(shell):
    head(shell)
    for record in live_records(shell.tmp):
        os.kill(record.pid, signal.SIGSTOP)
    assert shell("stop", "-g", "0.2") == "Stopped all 2 shoal processes.\n"


def test_stop_while_the_control_store_is_on_its_way_back(shell):
    """Whether it is there, gone, or starting at that moment: nothing is left, no file either."""
    for _ in range(3):
        head(shell)
        (control,) = [record for record in live_records(shell.tmp) if record.part == "control store"]
        os.kill(control.pid, signal.SIGKILL)
        assert "Stopped all" in shell("stop")
        assert live_records(shell.tmp) == []
    left = [path for path in shell.tmp.glob("shoal-*/session_*/*") if path.name != "logs"]
    assert left == []


def test_stop_by_force(shell):
    head(shell)
    shell.python("import shoal; shoal.init(); shoal.get(shoal.remote(lambda: 1).remote())")
    assert shell("stop", "--force") == "Stopped all 2 shoal processes.\n"


def test_a_node_is_drained_or_refuses(shell):
    head(shell)
    unknown = shell("drain-node", "--node-id", "ab" * 28, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "x", status=1)
    assert unknown.startswith("Error: There is no living node abab")
    assert len(unknown.splitlines()) == 1
    assert "56 hexadecimal digits" in shell(
        "drain-node", "--node-id", "ab", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "x", status=2
    )
    address = shell.python("import shoal; shoal.init(); print(shoal.get_runtime_context().gcs_address)").split()[-1]
    shell("start", "--address", address, "--num-cpus", "1", "--resources", '{"a": 1}', "--node-name", "second", *SMALL)
    node_id = next(line for line in shell("status").splitlines() if "(second)" in line).split("node_")[1].split()[0]
    shell.python(
        "import shoal; shoal.init(namespace='n')\n"
        "class A:\n  def ok(self): return 1\n"
        "a = shoal.remote(A).options(name='a', lifetime='detached', resources={'a': 1}).remote(); shoal.get(a.ok.remote())"
    )
    asked = ["drain-node", "--node-id", node_id, "--reason-message", "a test", "--address", address]
    refused = shell(*asked, "--reason", "DRAIN_NODE_REASON_IDLE_TERMINATION", status=1)
    assert refused == "Error: The node is not idle: it has 1 actor.\n"
    assert shell(*asked, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "600") == ""
    line = next(line for line in shell("status").splitlines() if "(second)" in line)
    assert "leaves within" in line
    assert line.endswith("(preemption: a test)")
    shell(*asked, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "0")
    wait_for(lambda: "(second)" not in shell("status"), 30, "the end of the node")


@pytest.mark.parametrize("signals", [1, 2])
def test_block_on_sigterm_lets_the_node_leave_in_good_order_and_a_second_one_ends_it_at_once(shell, signals):
    address = head(shell)
    blocking = shell.start("start", "--address", address, "--num-cpus", "1", "--resources", '{"a": 1}', "--block", *SMALL)
    driver = None
    try:
        wait_for(lambda: "Logs" in blocking.stdout.readline(), 30, "the next steps")
        wait_for(lambda: processes.read_stat(blocking.pid).state == "S", 30, "the wait for signals")
        driver = subprocess.Popen(
            [sys.executable, "-c", _LONG_TASK, str(signals)], env=shell.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert driver.stdout.readline() == "it runs\n", driver.stderr.read()
        blocking.send_signal(signal.SIGTERM)
        if signals == 2:
            wait_for(lambda: "leaves within" in shell("status"), 30, "the drain")
            blocking.send_signal(signal.SIGTERM)
        assert blocking.wait(60) == 0, blocking.stderr.read()
        assert driver.communicate(timeout=60)[0] == ("in its own time\n" if signals == 1 else "lost\n")
    finally:
        for process in filter(None, (driver, blocking)):
            process.kill()
            process.communicate()


#: Prints when its task runs on the node that is to leave, and how that ended. With 1: the task ends when it sees that its node leaves.
_LONG_TASK = """
import sys, time, shoal
shoal.init(log_to_driver=False)

@shoal.remote(num_cpus=0)
class Started:
    def __init__(self): self.told = False
    def tell(self): self.told = True
    def was_told(self): return self.told

@shoal.remote(resources={"a": 1}, max_retries=0, num_cpus=0)
def long(started, ends):
    shoal.get(started.tell.remote())
    me = shoal.get_runtime_context().get_node_id()
    while not (ends and any(node["Draining"] for node in shoal.nodes() if node["NodeID"] == me)):
        time.sleep(0.02)
    time.sleep(0.5)
    return "in its own time"

started = Started.options(resources={"node:__internal_head__": 0.001}).remote()
ref = long.remote(started, sys.argv[1] == "1")
while not shoal.get(started.was_told.remote()):
    time.sleep(0.02)
print("it runs", flush=True)
try:
    print(shoal.get(ref), flush=True)
except shoal.exceptions.RayError:
    print("lost", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_block_ends_what_it_has_started(shell, number):
    blocking = shell.start("start", "--head", "--port", "0", "--block", *SMALL)
    try:
        wait_for(lambda: len(live_records(shell.tmp)) == 2, 30, "the cluster")
        wait_for(lambda: "Logs" in blocking.stdout.readline(), 30, "the next steps")
        wait_for(lambda: processes.read_stat(blocking.pid).state == "S", 30, "the wait for signals")
        blocking.send_signal(number)
        assert blocking.wait(30) == 0, blocking.stderr.read()
    finally:
        blocking.kill()
        blocking.communicate()
    assert live_records(shell.tmp) == []


def test_block_tells_of_a_node_that_died(shell):
    blocking = shell.start("start", "--head", "--port", "0", "--block", *SMALL)
    try:
        wait_for(lambda: "Logs" in blocking.stdout.readline(), 30, "the next steps")
        (node,) = [record for record in live_records(shell.tmp) if record.part == "node"]
        os.kill(node.pid, signal.SIGKILL)
        assert blocking.wait(30) == 1
        assert f"The node (pid {node.pid}) has ended unexpectedly" in blocking.stderr.read()
    finally:
        blocking.kill()
        blocking.communicate()
    assert live_records(shell.tmp) == []


def test_the_same_line_on_every_machine(shell):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    program = "import os, shoal; shoal.init(); print(os.environ['RAY_ADDRESS'], len(shoal.nodes())); raise SystemExit(7)"
    running = shell.start("symmetric-run", "--address", address, *SMALL, "--", sys.executable, "-c", program)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out.split()) == (7, [address, "1"]), err
    assert live_records(shell.tmp) == []


FOLLOW = """
import sys
from shoal.cli.node_options import node_options
from shoal.cli.symmetric import follow
import click

@click.command()
@node_options
def run(**given):
    follow("tcp:" + sys.argv[1], 60.0, given)

run(["--object-store-memory", str(80 << 20)])
"""


@pytest.fixture
def follower(shell):
    """One of the other machines of a symmetric run, here beside the head (which would be its own head if it were asked by address)."""
    head(shell)
    (control,) = [record for record in live_records(shell.tmp) if record.part == "control store"]
    environ = {**shell.environ, "SHOAL_NODE_TIMEOUT_S": "8"}
    address = control.control_address.removeprefix("tcp:")
    following = subprocess.Popen([sys.executable, "-c", FOLLOW, address], env=environ, stderr=subprocess.PIPE, text=True)
    try:
        assert "Joined" in following.stderr.readline()
        wait_for(lambda: len(live_records(shell.tmp)) == 3, 30, "its node")
        yield following
    finally:
        following.kill()
        following.communicate()


def test_a_machine_that_follows_serves_through_a_restart_of_the_control_store_until_the_head_ends(shell, follower):
    records = live_records(shell.tmp)
    (control,) = [record for record in records if record.part == "control store"]
    (first,) = [record for record in records if record.is_head and record.part == "node"]
    os.kill(first.pid, signal.SIGSTOP)  # it would start the control store again too early to be missed
    os.kill(control.pid, signal.SIGKILL)
    assert "does not answer" in follower.stderr.readline()
    os.kill(first.pid, signal.SIGCONT)
    wait_for(lambda: [r.pid for r in live_records(shell.tmp) if r.part == "control store" and r.pid != control.pid], 30, "its successor")
    program = "import shoal; shoal.init(); print(sum(node['Alive'] for node in shoal.nodes()))"
    assert int(shell.python(program)) == 2
    assert follower.poll() is None
    for record in live_records(shell.tmp):
        if record.is_head or record.part == "control store":
            os.kill(record.pid, signal.SIGTERM)
    assert follower.wait(60) == 0, follower.stderr.read()
    assert live_records(shell.tmp) == []


def test_a_machine_that_follows_ends_its_node_on_sigterm(shell, follower):
    follower.send_signal(signal.SIGTERM)
    assert follower.wait(30) == 0
    assert len(live_records(shell.tmp)) == 2


def test_a_machine_that_follows_tells_of_a_node_that_died(shell, follower):
    (node,) = [record for record in live_records(shell.tmp) if record.part == "node" and not record.is_head]
    os.kill(node.pid, signal.SIGKILL)
    assert follower.wait(30) == 1
    assert f"The node (pid {node.pid}) has ended before the head" in follower.stderr.read()


def test_only_loopback_listens(shell):
    """One port of the control store, one of the node, and nothing that another machine could reach."""
    head(shell)
    shell.python("import shoal; shoal.init(); shoal.get([shoal.remote(lambda: 1).remote() for _ in range(4)])")
    inodes = {
        os.readlink(path).removeprefix("socket:[").removesuffix("]")
        for record in live_records(shell.tmp)
        for pid in [record.pid, *processes.children_of(record.pid)]
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if os.path.lexists(path) and os.readlink(path).startswith("socket:")
    }
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].partition(":")[0])
    assert listening == ["0100007F", "0100007F"]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_fifty_times_up_and_down_leave_nothing(shell):
    """Head, a second node, some work, stop: by turns in good order, by force, and by SIGKILL of everything in sight before."""
    work = "import shoal; shoal.init(log_to_driver=False); print(shoal.get(shoal.remote(lambda: 7).remote()))"
    shared = set(os.listdir("/dev/shm"))
    for number in range(int(os.environ.get("SHOAL_ROUNDS", "50"))):
        address = head(shell)
        shell("start", "--address", address, *SMALL)
        assert shell.python(work).split() == ["7"]
        records = live_records(shell.tmp)
        if number % 3 == 2:
            for record in records:
                os.kill(record.pid, signal.SIGKILL)
        shell("stop", *(["--force"] if number % 3 == 1 else []))
        assert live_records(shell.tmp) == []
        wait_for(lambda records=records: not any(processes.is_running(one.pid) for one in records), 10, "the end of all")
        wait_for(lambda: set(os.listdir("/dev/shm")) <= shared, 10, "the end of shared memory")
        wait_for(lambda: not list(shell.tmp.glob("shoal-*/session_*/run")), 10, "the end of the sessions' files")


def test_tables_in_a_file_outlive_the_cluster(shell):
    storage = f"sqlite://{shell.tmp}/kept/tables.sqlite"
    head(shell, "--storage", storage)
    number = "import shoal; shoal.init(); print(shoal.get_runtime_context().get_job_id())"
    before = int(shell.python(number), 16)
    other = shell("start", "--head", "--port", "0", "--storage", storage, *SMALL, status=1)
    assert "are in use: another control store runs on them" in other
    assert "Traceback" not in other
    shell("stop")
    head(shell, SHOAL_STORAGE=storage)
    assert int(shell.python(number), 16) == before + 1, "no job id is given twice"


def test_storage_that_cannot_be_meant(shell):
    assert "--storage and --standby are the control store's" in shell("start", "--address=h:1", "--storage=sqlite:///x", status=2)
    assert "neither sqlite://" in shell("start", "--head", "--storage=redis://h", status=1)
    assert "give the same --storage=etcd://" in shell("start", "--head", "--port=0", "--standby", status=2)
