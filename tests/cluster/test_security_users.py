"""What another user of the machine sees of a session: nothing. And where the token is not: command lines, environments, logs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import shoal
from shoal._base import processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]

REPOSITORY = Path(__file__).parents[2]
#: A user that owns nothing: "nobody".
STRANGER = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user")

#: Runs as root until everything is imported, then as the stranger, for good. Tries what argv lists; prints what each attempt gave.
BURGLAR = """
import json, os, socket, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
def connect(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
attempts = {"connect": connect, "list": os.listdir, "read": lambda path: open(path, "rb").read(), "stat": os.stat,
            "open": lambda path: os.close(os.open(path, os.O_RDWR)), "write": lambda path: open(path, "wb").close()}
results = []
for what, path in json.loads(sys.argv[1]):
    try:
        attempts[what](path)
        results.append([what, path, "done"])
    except OSError as error:
        results.append([what, path, type(error).__name__])
print(json.dumps(results))
"""

NEIGHBOUR = """
import os, sys
import shoal
context = shoal.init(num_cpus=1, object_store_memory=100 << 20, namespace="common")
@shoal.remote
def whoami():
    return os.getuid()
@shoal.remote
class Named:
    def uid(self):
        return os.getuid()
named = Named.options(name="same-name").remote()
print(shoal.get(whoami.remote()), shoal.get(named.uid.remote()), len(shoal.nodes()), context.address_info["session_dir"], flush=True)
sys.stdin.readline()
print(shoal.get(whoami.remote()), shoal.get(named.uid.remote()), len(shoal.nodes()), flush=True)
shoal.shutdown()
"""


@shoal.remote
def environment():
    return dict(os.environ), sys.argv, Path("/proc/self/environ").read_bytes(), Path("/proc/self/cmdline").read_bytes()


@shoal.remote
class Named:
    def uid(self):
        return os.getuid()


def members(session_dir):
    marked = (found.pid for found in processes.iter_stats() if found.state != "Z")
    return [pid for pid in marked if processes.mark_of(pid, processes.SESSION_MARK) == session_dir.name]


@pytest.fixture
def session_dir(session):
    return Path(session.address_info["session_dir"])


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_modes(session_dir):
    shoal.get(environment.remote())
    assert mode(session_dir.parent) == mode(session_dir) == mode(session_dir / "logs") == mode(session_dir / "spill") == 0o700
    assert mode(session_dir / "token") == 0o600
    files = [path for path in session_dir.rglob("*") if not path.is_dir()]
    assert any(path.is_socket() for path in files)
    assert {path.name: oct(mode(path)) for path in files if mode(path) & 0o077} == {}


def test_the_token_is_nowhere_else(session_dir):
    """Neither as text nor as bytes: user code prints and ships its environment, ``ps`` shows command lines, logs are sent around."""
    token = (session_dir / "token").read_text()
    forms = [token.encode(), bytes.fromhex(token)]
    environ, argv, block, line = shoal.get(environment.remote())
    seen = [repr(environ).encode(), repr(argv).encode(), block, line, repr(os.environ).encode()]
    paths = [*(session_dir / "logs").iterdir(), session_dir / "session.json"]
    paths += [Path(f"/proc/{pid}/environ") for pid in [os.getpid(), *members(session_dir)]]
    paths += Path("/proc").glob("[0-9]*/cmdline")
    seen += map(contents, paths)
    assert not [text for text in seen for form in forms if form in text]


def contents(path):
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # a process, or another session of this user, that ended meanwhile
        return b""


@needs_root
def test_another_user_gets_nowhere(session_dir):
    shoal.get(environment.remote())
    ref = shoal.put(bytes(1 << 20))
    sockets = [str(path) for path in session_dir.iterdir() if path.is_socket()]
    assert len(sockets) >= 4
    attempts = [("connect", path) for path in sockets]
    attempts += [("list", str(session_dir)), ("list", str(session_dir.parent)), ("list", str(session_dir / "logs"))]
    attempts += [("read", str(session_dir / "token")), ("read", str(session_dir / "session.json")), ("stat", str(session_dir / "token"))]
    attempts += [("write", str(session_dir / "planted"))]
    arenas = [arena for pid in members(session_dir) if (arena := arena_of(pid))]
    assert len(arenas) >= 3, "head, template and workers hold the arena"
    for pid in members(session_dir):
        attempts += [("list", f"/proc/{pid}/fd"), ("read", f"/proc/{pid}/environ"), ("open", f"/proc/{pid}/mem")]
    attempts += [("open", path) for path in arenas]
    results = burgle(attempts)
    assert [result for result in results if result[2] != "PermissionError" and not is_of_an_ended_process(result[1])] == []
    assert len(results) == len(attempts)
    assert len(shoal.get(ref)) == 1 << 20


@needs_root
def test_the_burglar_can_open_what_is_open():
    """The control: the same program gets in where nothing is closed."""
    with tempfile.TemporaryDirectory(prefix="shoal-test-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        (Path(name) / "file").write_text("x")
        assert [result[2] for result in burgle([("list", name), ("read", f"{name}/file"), ("stat", f"{name}/file")])] == ["done"] * 3


def is_of_an_ended_process(path):
    """Idle workers leave when they are too many: what was theirs is not there to be refused."""
    parts = Path(path).parts
    return parts[:2] == ("/", "proc") and not Path(*parts[:3]).exists()


def burgle(attempts):
    command = [sys.executable, "-c", BURGLAR, json.dumps(attempts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def arena_of(pid):
    """The path by which the process's arena could be opened, "" if it has none."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("/memfd:"):
            return f"/proc/{pid}/fd/{name}"
    return ""


def interpreter_for_all():
    """An interpreter of this version that any user may run, None if there is none."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")):
        try:
            if path and subprocess.run([path, "-c", ""], preexec_fn=become_stranger, capture_output=True, check=False).returncode == 0:
                return path
        except PermissionError:  # it lies in somebody's home directory
            continue
    return None


def become_stranger():
    os.setgroups([])
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)


@needs_root
def test_sessions_of_two_users(session_dir):
    """Same machine, same namespace, same actor name: two sessions. Not even root's own processes are let into the other's."""
    interpreter = interpreter_for_all()
    if interpreter is None:
        pytest.skip("no interpreter of this version that another user may run")
    named = Named.options(name="same-name", namespace="common").remote()
    assert shoal.get(named.uid.remote()) == 0
    with tempfile.TemporaryDirectory(prefix="shoal-test-", dir="/tmp") as home:
        os.chown(home, STRANGER, STRANGER)
        path = os.pathsep.join([str(REPOSITORY), *(entry for entry in sys.path if entry.endswith("-packages"))])
        with subprocess.Popen(
            [interpreter, "-u", "-c", NEIGHBOUR],
            preexec_fn=become_stranger, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={"PATH": os.environ.get("PATH", ""), "HOME": home, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        ) as neighbour:  # fmt: skip
            try:
                first = neighbour.stdout.readline().split()
                assert first[:3] == [str(STRANGER), str(STRANGER), "1"], neighbour.stderr.read()
                theirs = Path(first[3])
                assert theirs.parent != session_dir.parent
                assert len(shoal.nodes()) == 1
                assert shoal.get(shoal.get_actor("same-name", namespace="common").uid.remote()) == 0
                assert_refused(theirs)
                out, err = neighbour.communicate("go on\n", timeout=30)
                assert out.split() == [str(STRANGER), str(STRANGER), "1"], err
                assert neighbour.returncode == 0
            finally:
                if neighbour.poll() is None:
                    neighbour.kill()
        assert shoal.get(named.uid.remote()) == 0, "the end of the other's session is no concern of ours"


def assert_refused(session_dir):
    """Root may open the other's sockets, as it may open anything; the other side looks who it is, and hangs up without a word."""
    for path in (path for path in session_dir.iterdir() if path.is_socket()):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(path))
            try:
                assert sock.recv(100) == b""
            except ConnectionResetError:
                pass
