"""The version of the package, where everything can read it, and which versions can be in one cluster."""

from __future__ import annotations

import sys

__version__ = "0.1.0"

#: What a process runs: the package's version, and that of Python, which decides whether pickled functions can be read.
RELEASE = f"{__version__} {sys.version_info.major}.{sys.version_info.minor}"


def why_apart(theirs: str, ours: str = RELEASE) -> str:
    """Return why two processes cannot belong to one cluster, "" if they can: the same Python, and the same minor release or the next."""
    if theirs == ours:
        return ""
    (their_package, their_python), (our_package, our_python) = theirs.split(" "), ours.split(" ")
    if their_python != our_python:
        return (
            f"It runs Python {their_python}, the cluster Python {our_python}: what one has pickled the other cannot read. Use the same "
            "minor version of Python everywhere."
        )
    (their_major, their_minor), (our_major, our_minor) = (map(int, text.split(".")[:2]) for text in (their_package, our_package))
    if their_major != our_major or abs(their_minor - our_minor) > 1:
        return (
            f"It runs shoal {their_package}, the cluster shoal {our_package}: only neighbouring minor releases can be mixed. Install the "
            f"same release everywhere: pip install shoal=={our_package}"
        )
    return ""
