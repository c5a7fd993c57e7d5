"""The table of traps names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "design" / "traps.md"


def test_every_test_that_is_named_exists():
    named = re.findall(r"`((?:\w+/)?\w+\.py)::(\w+)(\*?)", TABLE.read_text())
    assert len(named) > 60
    missing = []
    for file, function, star in named:
        found = [TESTS / file] if "/" in file else list(TESTS.glob(f"*/{file}"))
        text = "".join(path.read_text() for path in found if path.exists())
        if not re.search(f"def {function}" if star else rf"def {function}\b", text):
            missing.append(f"{file}::{function}")
    assert missing == []
