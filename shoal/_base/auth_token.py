"""The secret that all processes of a cluster share: where it is found, and how the first one is made.

SHOAL_AUTH_TOKEN, RAY_AUTH_TOKEN                the token itself
SHOAL_AUTH_TOKEN_PATH, RAY_AUTH_TOKEN_PATH      a file that holds it
~/.shoal/auth_token (0600)                      made by the first ``shoal start --head``; so the same user's next shell needs no variable

Clusters that are started from a shell use it. A session that ``init`` starts for one driver has a fresh one of its own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from shoal._base.storage_place import ACCESS_VARIABLES

#: Characters of the shortest token that is accepted: one that can be guessed protects nothing.
LEAST_CHARACTERS = 16

VARIABLES = ("SHOAL_AUTH_TOKEN", "RAY_AUTH_TOKEN")
PATH_VARIABLES = ("SHOAL_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH")


class TokenError(ValueError):
    """There is no token, or none that can be used. The message says where it was looked for."""


class NoToken(TokenError):
    """None was made, and none is given."""


def token_path(environ: Mapping[str, str] | None = None) -> Path:
    """Return the file that holds the token unless a variable does."""
    environ = os.environ if environ is None else environ
    for name in PATH_VARIABLES:
        if environ.get(name):
            return Path(environ[name]).expanduser()
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    return home / ".shoal" / "auth_token"


def find_token(environ: Mapping[str, str] | None = None) -> str:
    """Return the token. NoToken if there is none, TokenError if it cannot be used; OSError if its file cannot be read."""
    environ = os.environ if environ is None else environ
    for name in VARIABLES:
        if environ.get(name):
            return _checked(environ[name], f"The environment variable {name}")
    path = token_path(environ)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise NoToken(
            f"There is no token of a cluster: {path} does not exist and {VARIABLES[0]} is not set. On the head's machine "
            f"'shoal start --head' makes one; on other machines copy what 'shoal get-auth-token' prints there into {path} (mode 0600)."
        ) from None
    return _checked(text, f"The file {path}")


def make_token(environ: Mapping[str, str] | None = None) -> str:
    """Return the token; the first time, make it and keep it. Several makers at once agree on one. As ``find_token`` otherwise."""
    try:
        return find_token(environ)
    except NoToken:
        path = token_path(environ)
    partial = _write_beside(path, new_token())
    try:
        os.link(partial, path)  # fails if somebody was faster, so that nobody holds one that is replaced
    except FileExistsError:
        pass
    finally:
        os.unlink(partial)
    return find_token(environ)


def new_token() -> str:
    """Return a token that nobody has, 256 random bits."""
    return secrets.token_hex(32)


def replace_token(token: str, environ: Mapping[str, str] | None = None) -> Path:
    """Put another token in the place of the one that is kept in a file; return the file. TokenError if a variable holds it."""
    environ = os.environ if environ is None else environ
    for name in VARIABLES:
        if environ.get(name):
            raise TokenError(f"The token is in the environment variable {name}, not in a file, and must be changed where that is set.")
    path = token_path(environ)
    os.replace(_write_beside(path, token), path)
    return path


def without_token(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment as user code may see it, without etcd's password either: daemons hand theirs on to workers."""
    return {name: value for name, value in environ.items() if name not in VARIABLES and name not in ACCESS_VARIABLES}


def _write_beside(path: Path, token: str) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(token + "\n")
    return partial


def _checked(text: str, source: str) -> str:
    token = text.strip()
    if len(token) < LEAST_CHARACTERS or not token.isascii() or not token.isprintable():
        raise TokenError(
            f"{source} holds no usable token: it needs at least {LEAST_CHARACTERS} printable ASCII characters, and has {len(token)}. "
            "'shoal get-auth-token --generate' makes one where there is none."
        )
    return token
