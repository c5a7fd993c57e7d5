"""What makes a cluster the same one goes with its tables to whoever serves next."""

from __future__ import annotations

import pytest

from shoal._core.process import session as sessions
from shoal._core.process.membership import Membership
from shoal._core.transport.authority import new_request
from shoal._core.transport.trust import Tokens

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32


def made(tmp_path, token, listen="tcp:10.0.0.1:0"):
    session = sessions.create(tmp_path, token)
    trust = session.trust()
    return session, trust, Membership.of_listener(session, trust, listen)


def test_the_next_one_has_the_same_authority_and_token(tmp_path):
    pytest.importorskip("cryptography")
    _, _, first = made(tmp_path, OLD)
    first.rotate(NEW)
    session, trust, second = made(tmp_path, OLD)  # its machine has not heard of the change
    before = second.issue(new_request().request)[1]
    second.restore(first.kept())
    assert trust.tokens == Tokens(NEW, OLD)
    assert session.tokens() == Tokens(NEW, OLD)
    _, authority = second.issue(new_request().request)
    assert authority == first.issue(new_request().request)[1] != before
    assert trust.certificates.own, "its own certificate is one of the authority's, too"
    assert second.kept() == first.kept()


def test_tables_without_secrets_and_a_start_with_another_token(tmp_path):
    _, trust, first = made(tmp_path, OLD, "tcp:127.0.0.1:0")
    first.restore({})
    assert trust.tokens == Tokens(OLD)
    _, later, second = made(tmp_path, OTHER, "tcp:127.0.0.1:0")
    second.restore(first.kept())
    assert later.tokens == Tokens(OTHER, OLD)
