"""The snippets beside this file mean to mypy what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytest.importorskip("mypy")


def mypy(file: str) -> set[int]:
    """Return the numbers of the lines at which mypy finds an error in ``file``."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", f"tests/typing/{file}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert not done.stderr, done.stderr
    lines = [line.split(":") for line in done.stdout.splitlines() if ": error:" in line]
    return {int(line[1]) for line in lines if line[0].endswith(file)}


def test_what_is_inferred():
    assert mypy("snippets_good.py") == set()


def test_what_is_refused():
    marked = {number for number, line in enumerate((HERE / "snippets_bad.py").read_text().splitlines(), 1) if line.endswith("# error")}
    assert mypy("snippets_bad.py") == marked
