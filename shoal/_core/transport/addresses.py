"""Transport addresses: ``unix:PATH`` and ``tcp:HOST:PORT``."""

from __future__ import annotations

from typing import NamedTuple

#: Bytes of a Unix socket path that Linux takes (``sun_path`` without its final zero).
UNIX_PATH_LIMIT_BYTES = 107


class UnixAddress(NamedTuple):
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """Parse a transport address; ValueError says what is wrong with it. An IPv6 host stands in brackets."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        nbytes = len(rest.encode("utf-8", "surrogateescape"))
        if nbytes > UNIX_PATH_LIMIT_BYTES:
            raise ValueError(
                f"The socket path {rest!r} has {nbytes} bytes; the system takes {UNIX_PATH_LIMIT_BYTES}. Use a shorter session directory."
            )
        if "\0" in rest:
            raise ValueError(f"The socket path {rest!r} contains a zero byte.")
        return UnixAddress(rest)
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if host and port.isascii() and port.isdigit() and int(port) < 65536:
            return TcpAddress(host, int(port))
    raise ValueError(f'Expected an address of the form "unix:PATH" or "tcp:HOST:PORT", got {text!r}.')
