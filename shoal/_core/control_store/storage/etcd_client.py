"""etcd over its JSON gateway (etcd 3.4 and later): a dozen POST requests, so the standard library is client enough.

    request ─▶ the member that answered last ── no answer, no quorum ─▶ the next member ─ ... ─▶ EtcdUnavailable
                         └─ an answer, or a no of its own: EtcdRefused

Looked at in November 2026: etcd3gw knows one member and no passwords, aetcd one member and no TLS, and brings grpcio (7 MB, threads of its
own). What is missing in both is most of this file. A client belongs to one thread at a time.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from shoal._base.storage_place import EtcdAccess

from .interface import StorageUnavailable

_T = TypeVar("_T")

#: gRPC codes by which a member says that it cannot tell now: no leader, shutting down, timed out. Another may, or the same one later.
_PASSING = {1, 2, 4, 13, 14}
_UNAUTHENTICATED = 16


class EtcdUnavailable(StorageUnavailable):
    """No member answered. Whether a write was done is not known."""


class EtcdRefused(Exception):
    """etcd answered with a no of its own; the message has its words, ``code`` is that of gRPC."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class KeyValue(msgspec.Struct):
    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    lease: int = 0


class Range(msgspec.Struct):
    kvs: list[KeyValue] = []
    more: bool = False


class _Response(msgspec.Struct):
    response_range: Range | None = None


class _Header(msgspec.Struct):
    revision: int = 0


class TxnResult(msgspec.Struct):
    header: _Header = msgspec.field(default_factory=_Header)
    succeeded: bool = False
    responses: list[_Response] = []

    def rows(self, index: int) -> list[KeyValue]:
        """Return what the transaction's ``index``-th operation, a range, found."""
        found = self.responses[index].response_range
        return [] if found is None else found.kvs


class Lease(msgspec.Struct):
    ID: int = 0
    #: Seconds left; 0: there is no such lease.
    TTL: int = 0


class _KeepAlive(msgspec.Struct):
    result: Lease


class _Token(msgspec.Struct):
    token: str


class _Problem(msgspec.Struct):
    message: str = ""
    error: str = ""
    code: int = 0


def put(key: bytes, value: bytes, lease: int = 0) -> dict[str, Any]:
    """Return the operation. JSON has bytes as base64, and 64-bit numbers as text; msgspec sees to the first."""
    return {"request_put": {"key": key, "value": value, "lease": str(lease)}}


def delete(key: bytes, end: bytes = b"") -> dict[str, Any]:
    """Return the operation for one key, or for those from ``key`` to before ``end``."""
    return {"request_delete_range": {"key": key, "range_end": end}}


def fetch(key: bytes, end: bytes = b"", limit: int = 0) -> dict[str, Any]:
    return {"request_range": {"key": key, "range_end": end, "limit": str(limit)}}


def nested(operations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"request_txn": {"success": operations}}


def created_at(key: bytes, revision: int) -> dict[str, Any]:
    """Return the comparison: the key was created at that revision; 0: it is not there."""
    return {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": str(revision)}


def value_is(key: bytes, value: bytes) -> dict[str, Any]:
    return {"key": key, "target": "VALUE", "result": "EQUAL", "value": value}


def end_of(prefix: bytes) -> bytes:
    """Return the first key behind all that start with ``prefix``, whose last byte is not 255."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


class EtcdClient:
    """
    Args:
        endpoints: HOST:PORT of each member that may be asked.
        timeout_s: seconds that one member has for one answer.
    """

    def __init__(self, endpoints: Sequence[str], access: EtcdAccess | None = None, *, timeout_s: float = 5.0) -> None:
        self._endpoints = list(endpoints)
        self._access = access or EtcdAccess()
        self._timeout_s = timeout_s
        self._tls = _tls(self._access) if self._access.ca else None
        self._connection: http.client.HTTPConnection | None = None
        self._token = ""

    def range(self, key: bytes, end: bytes = b"", *, limit: int = 0) -> Range:
        """Return the first ``limit`` rows from ``key`` to before ``end``, in the order of their keys; without ``end`` that of ``key``."""
        return self._call("/v3/kv/range", fetch(key, end, limit)["request_range"], Range)

    def txn(
        self, compare: Sequence[dict[str, Any]], success: Sequence[dict[str, Any]], failure: Sequence[dict[str, Any]] = ()
    ) -> TxnResult:
        """Do ``success`` if all comparisons hold, else ``failure``, at once and durably.

        A member that does not answer may have done it, and the next one is asked the same: comparisons must make that harmless.
        """
        return self._call("/v3/kv/txn", {"compare": compare, "success": success, "failure": failure}, TxnResult)

    def grant(self, ttl_s: int) -> Lease:
        """Return a new lease. etcd may make it longer: it grants none that is shorter than an election of its own."""
        return self._call("/v3/lease/grant", {"TTL": str(ttl_s)}, Lease)

    def keep_alive(self, lease: int) -> bool:
        """Give the lease its whole time again. False: it has ended."""
        return self._call("/v3/lease/keepalive", {"ID": str(lease)}, _KeepAlive).result.TTL > 0

    def revoke(self, lease: int) -> None:
        """End the lease now, and all keys under it."""
        try:
            self._call("/v3/lease/revoke", {"ID": str(lease)}, msgspec.Raw)
        except EtcdRefused as error:
            if "not found" not in str(error):
                raise

    def compact(self, revision: int) -> None:
        """Forget what was before ``revision``: etcd keeps every value that ever was until it is told so."""
        try:
            self._call("/v3/kv/compaction", {"revision": str(revision)}, msgspec.Raw)
        except EtcdRefused as error:
            if "compacted" not in str(error):  # somebody else did it
                raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- private

    def _call(self, path: str, body: Any, kind: type[_T]) -> _T:
        data = msgspec.json.encode(body)
        problems = []
        # Once more than there are members, if the connection is an old one: its member may have been started again meanwhile.
        for _ in range(len(self._endpoints) + (self._connection is not None)):
            try:
                return msgspec.json.decode(self._authenticated(path, data), type=kind, strict=False)
            except (OSError, http.client.HTTPException, msgspec.DecodeError, EtcdUnavailable) as error:
                problems.append(f"{self._endpoints[0]}: {type(error).__name__}: {error}")
                self.close()
                self._endpoints.append(self._endpoints.pop(0))
        raise EtcdUnavailable(f"etcd does not answer ({'; '.join(problems)}).")

    def _authenticated(self, path: str, data: bytes) -> bytes:
        if not self._access.user:
            return self._post(path, data)
        if not self._token:
            self._log_in()
        try:
            return self._post(path, data)
        except EtcdRefused as error:
            if error.code != _UNAUTHENTICATED:
                raise
        self._log_in()  # the token has ended: it lives for five minutes
        return self._post(path, data)

    def _log_in(self) -> None:
        self._token = ""
        credentials = {"name": self._access.user, "password": self._access.password}
        self._token = msgspec.json.decode(self._post("/v3/auth/authenticate", msgspec.json.encode(credentials)), type=_Token).token

    def _post(self, path: str, data: bytes) -> bytes:
        if self._connection is None:
            self._connection = self._connect(self._endpoints[0])
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = self._token
        self._connection.request("POST", path, data, headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status == 200:
            return answer
        try:
            problem = msgspec.json.decode(answer, type=_Problem)
        except msgspec.DecodeError:
            raise EtcdUnavailable(f"HTTP status {response.status}: it is no etcd, or none that is ready") from None
        words = problem.message or problem.error
        if problem.code in _PASSING:
            raise EtcdUnavailable(words)
        raise EtcdRefused(f"etcd refused: {words}", problem.code)

    def _connect(self, endpoint: str) -> http.client.HTTPConnection:
        host, _, port = endpoint.rpartition(":")
        host = host.strip("[]")
        if self._tls is not None:
            return http.client.HTTPSConnection(host, int(port), timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, int(port), timeout=self._timeout_s)


def _tls(access: EtcdAccess) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=access.ca)
    if access.cert:
        context.load_cert_chain(access.cert, access.key or None)
    return context
