"""Transport addresses: ``unix:PATH`` and ``tcp:HOST:PORT``."""

from __future__ import annotations

import ipaddress
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


def is_loopback(host: str) -> bool:
    """Whether a numeric host address, or ``localhost``, never leaves this machine. Any other name does, as far as is known."""
    address = _numeric(host)
    return host == "localhost" if address is None else address.is_loopback


def is_any(host: str) -> bool:
    """Whether a host to listen at stands for all addresses of the machine."""
    address = _numeric(host)
    return address is not None and address.is_unspecified


def announced(bound: str, node_ip: str) -> str:
    """Return where others reach who listens at ``bound``: all addresses of a machine are none that one could connect to."""
    where = parse_address(bound)
    return str(TcpAddress(node_ip, where.port)) if isinstance(where, TcpAddress) and is_any(where.host) else bound


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    # Written as IPv6 where one socket listens for both.
    return getattr(address, "ipv4_mapped", None) or address
