"""Where the tables of a control store live, as users write it: ``--storage``, SHOAL_STORAGE.

""                                     in the session's directory: gone with the cluster's ``shoal stop``
sqlite:///PATH                         in that file: a later start with the same path goes on with them
etcd://HOST:PORT[,HOST:PORT]/PREFIX    in etcd, below that key: they outlive the machine, and a standby can take over
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import msgspec

_EXAMPLES = "sqlite:////var/lib/shoal/tables.sqlite or etcd://10.0.0.1:2379,10.0.0.2:2379/shoal"


class EtcdAccess(msgspec.Struct, frozen=True):
    """What proves to etcd who asks, and to us who answers. Never part of an address, which other users of the machine can read."""

    user: str = ""
    password: str = ""
    #: File with the authority of etcd's certificates; "": plain HTTP.
    ca: str = ""
    #: Files with a certificate of our own, and its key.
    cert: str = ""
    key: str = ""

    def __repr__(self) -> str:
        return f"EtcdAccess(user={self.user!r}, ca={self.ca!r})"  # the password stays out of logs


#: Environment variables that ``EtcdAccess`` is read from. Workers do not get them.
ACCESS_VARIABLES = {f"SHOAL_ETCD_{field.upper()}": field for field in EtcdAccess.__struct_fields__}


class StoragePlace(msgspec.Struct, frozen=True):
    kind: Literal["session", "sqlite", "etcd"] = "session"
    path: str = ""
    #: HOST:PORT of etcd's members.
    endpoints: list[str] = []
    #: The key below which this cluster's lie.
    prefix: str = ""
    access: EtcdAccess = EtcdAccess()

    def __str__(self) -> str:
        if self.kind == "etcd":
            return f"etcd://{','.join(self.endpoints)}{self.prefix}"
        return f"sqlite://{self.path}" if self.kind == "sqlite" else "the session's directory"


def read_storage_place(text: str | None, environ: Mapping[str, str]) -> StoragePlace:
    """Understand what the user wrote; without a word of his: SHOAL_STORAGE, RAY_gcs_storage_path, else the session's directory.

    ValueError says what is wrong with it.
    """
    text = text or environ.get("SHOAL_STORAGE") or ""
    if not text:
        directory = environ.get("RAY_gcs_storage_path")
        return StoragePlace("sqlite", os.path.abspath(os.path.join(directory, "shoal.sqlite"))) if directory else StoragePlace()
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "sqlite":
        if not rest.startswith("/") or rest == "/":
            raise ValueError(f"The storage {text!r} needs the absolute path of a file after sqlite://, for example {_EXAMPLES}.")
        return StoragePlace("sqlite", os.path.normpath(rest).replace("//", "/"))
    if separator and scheme == "etcd":
        return _etcd(text, rest, environ)
    raise ValueError(f"The storage {text!r} is neither sqlite://... nor etcd://..., for example {_EXAMPLES}.")


def _etcd(text: str, rest: str, environ: Mapping[str, str]) -> StoragePlace:
    members, _, prefix = rest.partition("/")
    if "@" in members:
        # Not repeated in the message: it may be a password.
        raise ValueError("The address of etcd holds no user or password: give them in SHOAL_ETCD_USER and SHOAL_ETCD_PASSWORD.")
    endpoints = [_endpoint(text, member) for member in members.split(",") if member]
    if not endpoints:
        raise ValueError(f"The storage {text!r} names no member of etcd, for example {_EXAMPLES}.")
    prefix = prefix.strip("/") or environ.get("RAY_external_storage_namespace", "") or "shoal"
    access = EtcdAccess(**{field: environ.get(name, "") for name, field in ACCESS_VARIABLES.items()})
    for variable, path in (("SHOAL_ETCD_CA", access.ca), ("SHOAL_ETCD_CERT", access.cert), ("SHOAL_ETCD_KEY", access.key)):
        if path and not os.path.isfile(path):
            raise ValueError(f"{variable} names the file {path!r}, which is not there.")
    return StoragePlace("etcd", "", endpoints, f"/{prefix}", access)


def _endpoint(text: str, member: str) -> str:
    host, colon, port = member.rpartition(":")
    if not colon:
        return f"{member}:2379"
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or (":" in host and not host.startswith("[")):
        raise ValueError(f"{member!r} in the storage {text!r} is no HOST:PORT (an IPv6 address in brackets), for example {_EXAMPLES}.")
    return member
