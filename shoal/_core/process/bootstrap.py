"""How a fresh interpreter becomes a head or a template: its command line and its first lines.

The head must find the same shoal as the driver, however the driver found it, so the driver's ``sys.path`` travels on the command line. The
script's own directory goes to the end: a ``queue.py`` beside the user's script must not become the head's ``queue``. ``-P`` keeps the
interpreter from putting the current directory there itself.

The public package is made but not run at first: a head has no use for it, and it is a third of the imports. The template runs it, for its
workers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_FIRST_LINES = """
import sys
sys.path[:] = sys.argv[3].split("\\n")
from importlib import import_module, util
root = util.find_spec("shoal")
sys.modules["shoal"] = util.module_from_spec(root)
import_module("shoal._core.process." + sys.argv[1]).main(sys.argv[2])
"""

#: Its first line is what process lists show.
_WAIT = """# shoal: template, not needed yet
import os, select, sys
select.select([int(sys.argv[1])], [], [])
os.execv(sys.argv[2], sys.argv[2:])
"""


def command(role: str, argument: str, path: Sequence[str]) -> list[str]:
    """Return the arguments that run ``shoal._core.process.<role>.main(argument)`` in a fresh interpreter like this one."""
    if not sys.executable:
        raise RuntimeError("This interpreter does not know its own executable (sys.executable is empty), so it can start no head process.")
    return [sys.executable, *_flags(), "-P", "-c", _FIRST_LINES, role, argument, "\n".join(path)]


def once_readable(descriptor: int, command: Sequence[str]) -> list[str]:
    """Return the arguments of a bare interpreter that becomes ``command`` when something comes on ``descriptor``, or its end."""
    return [sys.executable, "-I", "-S", "-c", _WAIT, str(descriptor), *command]


def import_path() -> list[str]:
    """Return ``sys.path`` for a process that runs no user code: absolute, and the script's directory last unless shoal lies in it."""
    path = [os.path.abspath(entry) for entry in sys.path if "\n" not in entry]
    home = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    if path and path[0] != home:
        path.append(path.pop(0))
    return list(dict.fromkeys(path))


def import_root() -> None:
    """Run the public package, in a process that was started by ``command``."""
    root = sys.modules["shoal"]
    spec = root.__spec__
    if spec is not None and spec.loader is not None and not hasattr(root, "__all__"):
        spec.loader.exec_module(root)


def _flags() -> list[str]:
    """The interpreter's own options that change what code means: -O, -B, -u, -W, -X."""
    flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    if sys.flags.dont_write_bytecode:
        flags.append("-B")
    if sys.flags.utf8_mode:
        flags += ["-X", "utf8"]
    if sys.flags.dev_mode:
        flags += ["-X", "dev"]
    for option in sys.warnoptions:
        flags += ["-W", option]
    return flags
