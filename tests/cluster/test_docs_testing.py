"""The code in docs/testing.md runs: blocks that begin with a file name are files, tests by pytest and scripts by Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The page's files, on disk."""
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert len(found) == text.count("```python")  # each block has a name
    directory = tmp_path_factory.mktemp("docs")
    for name, code in found:
        assert not (directory / name).exists()
        (directory / name).write_text(code, encoding="utf-8")
    return directory


def run(directory, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_tests_pass(files):
    done = run(files, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--strict-markers", "-W", "error", ".")
    assert done.returncode == 0, done.stdout
    for path in files.glob("test_*.py"):
        assert f"PASSED {path.name}::" in done.stdout, path.name


@pytest.mark.parametrize("name", ["script.py", "script_leaks.py"])
def test_the_scripts_run(files, name):
    done = run(files, name)
    assert done.returncode == 0, done.stderr
