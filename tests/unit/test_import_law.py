"""The import law of pyproject.toml is kept, and its contracts catch what they are there for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"

SERVERS = "Runtime: imports point down, the three servers meet only through messages BROKEN"
ROOT_PACKAGE = "Runtime: never imports the root package BROKEN"
HEAVY = "Runtime: no heavy library BROKEN"
LIBRARIES = "Libraries: the public API only BROKEN"
CYCLE = "No cycles between siblings BROKEN"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package in which a fault can be planted."""
    shutil.copytree(ROOT / "shoal", tmp_path / "shoal", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_law_is_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "text", "broken"),
    [
        ("_core/worker/planted.py", "import shoal._core.api", SERVERS),
        ("_core/worker/planted.py", "def later():\n    import shoal._core.node_agent", SERVERS),
        ("_core/object_store/planted.py", "import shoal", ROOT_PACKAGE),
        ("_core/wire/planted.py", "import numpy", HEAVY),
        ("data/__init__.py", "import shoal._core.wire", LIBRARIES),
        ("_base/planted.py", "import shoal._core.wire", LIBRARIES),
        ("_core/wire/planted.py", "import shoal._core.wire.planted_too", CYCLE),
    ],
    ids=["up", "sideways-and-late", "root", "heavy", "library", "base", "cycle"],
)
def test_a_planted_fault_is_caught(copy, file, text, broken):
    path = copy / "shoal" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")
    path.with_name("planted_too.py").write_text("import shoal._core.wire.planted\n" if broken is CYCLE else "")
    done = lint(copy)
    assert done.returncode != 0
    assert broken in done.stdout, done.stdout + done.stderr
