"""Where things lie on disk: the temporary directory of a user, and the names of files inside a session.

<temp dir>/shoal-<uid>/                     0700, ours or refused
    session_<time>_<pid>_<random>/          0700
        token (0600)  agent.sock  control.sock  handover.sock  w-*.sock  session.json  spill/
        logs/                               survives the session
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

AGENT_SOCKET = "agent.sock"
CONTROL_SOCKET = "control.sock"
HANDOVER_SOCKET = "handover.sock"
TOKEN_FILE = "token"
TABLES_FILE = "tables.sqlite"
#: How a control store was started, so that it can be started again.
CONTROL_FILE = "control_store.json"
LOGS = "logs"
SPILL = "spill"
RECORD_FILE = "session.json"


def temp_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return the directory under which each user gets a directory of shoal's: SHOAL_TMPDIR, RAY_TMPDIR, TMPDIR, else ``/tmp``."""
    environ = os.environ if environ is None else environ
    for name in ("SHOAL_TMPDIR", "RAY_TMPDIR", "TMPDIR"):
        if environ.get(name):
            return Path(environ[name]).absolute()
    return Path("/tmp")


def worker_logs(logs_dir: str | Path, worker_id: bytes, pid: int) -> tuple[str, str]:
    """Return the files that take standard output and standard error of a worker."""
    stem = f"{logs_dir}/worker-{worker_id.hex()[:16]}-{pid}"
    return f"{stem}.out", f"{stem}.err"
