"""Session directories with certificates, for tests; and loopback that counts as a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal._core.transport import blocking, port, sockets
from shoal._core.transport.authority import Authority, keep_certificate, new_request
from shoal._core.transport.trust import Tokens, Trust


def member(directory: Path, authority: Authority, tokens: Tokens) -> Trust:
    """Return what a node of the authority's cluster has in ``directory``, which is made."""
    directory.mkdir(parents=True)
    key, request = new_request()
    keep_certificate(directory, key, authority.issue(request), authority.certificate)
    return Trust(tokens, directory)


def encrypt_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every TCP connection counts as one between machines."""
    for module in (blocking, port, sockets):
        monkeypatch.setattr(module, "leaves_machine", lambda sock: True)
