"""Where the cluster's token is found, and how it is made."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from shoal._base.auth_token import TokenError, find_token, make_token, replace_token, token_path, without_token

LONG = "0123456789abcdef"


@pytest.fixture
def home(tmp_path):
    return {"HOME": str(tmp_path)}


def test_variables_come_first(home, tmp_path):
    (tmp_path / "one").write_text("a" * 20)
    (tmp_path / "two").write_text("b" * 20)
    paths = {"SHOAL_AUTH_TOKEN_PATH": str(tmp_path / "one"), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "two")}
    tokens = {"SHOAL_AUTH_TOKEN": "c" * 20, "RAY_AUTH_TOKEN": "d" * 20}
    assert find_token({**home, **paths, **tokens}) == "c" * 20
    assert find_token({**home, **paths, "RAY_AUTH_TOKEN": "d" * 20}) == "d" * 20
    assert find_token({**home, **paths}) == "a" * 20
    assert find_token({**home, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "two")}) == "b" * 20


def test_made_once_and_private(home, tmp_path):
    with pytest.raises(TokenError, match=r"auth_token does not exist.*shoal start --head.*get-auth-token"):
        find_token(home)
    token = make_token(home)
    path = tmp_path / ".shoal" / "auth_token"
    assert token_path(home) == path
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
    assert make_token(home) == find_token(home) == token
    assert len(token) == 64
    assert os.listdir(path.parent) == ["auth_token"]


def test_several_makers_agree(home):
    tokens = []
    makers = [threading.Thread(target=lambda: tokens.append(make_token(home))) for _ in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(tokens) == 8
    assert set(tokens) == {find_token(home)}


@pytest.mark.parametrize("text", ["", "short", "with a \x07 bell in it, and long enough", "schön lang genug, aber nicht nur ASCII"])
def test_what_protects_nothing_is_refused(home, tmp_path, text):
    (tmp_path / ".shoal").mkdir()
    (tmp_path / ".shoal" / "auth_token").write_text(text)
    with pytest.raises(TokenError, match="at least 16 printable ASCII characters"):
        find_token(home)
    with pytest.raises(TokenError, match="at least 16 printable ASCII characters"):
        make_token(home)  # what a user has put there is not replaced


def test_replaced_in_its_file(home, tmp_path):
    old = make_token(home)
    path = replace_token(LONG, home)
    assert (find_token(home), path) == (LONG, tmp_path / ".shoal" / "auth_token")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(TokenError, match="in the environment variable RAY_AUTH_TOKEN"):
        replace_token(old, {**home, "RAY_AUTH_TOKEN": LONG})
    assert find_token(home) == LONG


def test_user_code_does_not_see_it():
    assert without_token({"SHOAL_AUTH_TOKEN": LONG, "RAY_AUTH_TOKEN": LONG, "PATH": "/bin"}) == {"PATH": "/bin"}
