"""`import shoal` is light: no library that the program did not ask for, no thread, no child."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import json, sys
import shoal
import os, threading
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "python_threads": threading.active_count(),
    "threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1,
    "children": [name for name in os.listdir("/proc") if name.isdigit() and _parent(name) == os.getpid()] if os.path.isdir("/proc") else [],
}))
"""
PARENT = """
def _parent(name):
    try:
        with open(f"/proc/{name}/stat") as f:
            return int(f.read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0
"""
HEAVY = {"numpy", "pandas", "pyarrow", "torch", "starlette", "rich"}


def probe() -> dict:
    done = subprocess.run([sys.executable, "-c", PARENT + PROBE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_loads_no_heavy_library():
    assert not HEAVY & set(probe()["modules"])


def test_import_starts_no_thread_and_no_process():
    found = probe()
    assert (found["python_threads"], found["threads"], found["children"]) == (1, 1, [])
