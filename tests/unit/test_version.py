"""Which releases can be in one cluster."""

from __future__ import annotations

import pytest

from shoal._base.version import RELEASE, why_apart


@pytest.mark.parametrize("theirs", ["1.4.2 3.11", "1.4.9 3.11", "1.3.0 3.11", "1.5.0 3.11", "1.5.0rc1 3.11"])
def test_neighbours(theirs):
    assert why_apart(theirs, "1.4.2 3.11") == ""


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ("1.2.0 3.11", "shoal 1.2.0, the cluster shoal 1.4.2"),
        ("1.6.0 3.11", "pip install shoal==1.4.2"),
        ("2.4.2 3.11", "shoal 2.4.2, the cluster shoal 1.4.2"),
        ("1.4.2 3.12", "Python 3.12, the cluster Python 3.11"),
    ],
)
def test_strangers(theirs, words):
    assert words in why_apart(theirs, "1.4.2 3.11")


def test_this_release_can_be_with_itself():
    assert why_apart(RELEASE) == ""
