"""The certificate authority of a cluster: one pair of key and certificate, kept by the control store; and what nodes ask it for.

    authority ─ create ─▶ authority.key, authority.crt (0600, in the control store's session directory: a restart finds them)
    node      ─ new_request ─▶ key, which never leaves the node; request ─▶ authority: issue ─▶ certificate

A certificate says only: this key belongs to a member of the cluster. Everything is PEM. Uses the library ``cryptography``, which a session
of one machine does not need: imported here, at the first use.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any, NamedTuple

from shoal._base.optional import try_import
from shoal._base.private_files import write_private
from shoal._core.transport.trust import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE

AUTHORITY_KEY_FILE = "authority.key"

#: Clusters do not live that long, and clocks of their machines do not differ by so much.
_VALID = datetime.timedelta(days=3650)
_CLOCKS_DIFFER = datetime.timedelta(days=30)
#: A request of ours has 400 bytes.
_REQUEST_LIMIT_BYTES = 8192


class BadRequest(ValueError):
    """What came is not a signing request that could be met."""


class Request(NamedTuple):
    """A new key, and what its owner sends to the authority."""

    key: bytes
    request: bytes


class Authority:
    """Issues certificates. ``certificate``: its own."""

    def __init__(self, key: bytes, certificate: bytes) -> None:
        self.key = key
        self.certificate = certificate

    @classmethod
    def create(cls) -> Authority:
        """Make a new one. Raises ImportError that says what to install."""
        crypto = _Cryptography()
        key = crypto.new_key()
        name = crypto.name("shoal cluster")
        builder = crypto.builder(name, name, key.public_key())
        builder = builder.add_extension(crypto.x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(crypto, signs_certificates=True), critical=True)
        builder = builder.add_extension(crypto.x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(crypto.pem_of_key(key), crypto.pem(builder.sign(key, crypto.hashes.SHA256())))

    def issue(self, request: bytes) -> bytes:
        """Return a certificate for the key of the request. Raises BadRequest."""
        crypto = _Cryptography()
        if len(request) > _REQUEST_LIMIT_BYTES:
            raise BadRequest(f"The signing request has {len(request)} bytes; one of shoal's has fewer than {_REQUEST_LIMIT_BYTES}.")
        try:
            asked = crypto.x509.load_pem_x509_csr(request)
            valid = asked.is_signature_valid and isinstance(asked.public_key(), crypto.ec.EllipticCurvePublicKey)
        except Exception as error:  # whatever a stranger's bytes make the parser say
            raise BadRequest(f"The signing request cannot be read: {error}") from error
        if not valid:
            raise BadRequest("The signing request is not signed with the key that it is for.")
        issuer = crypto.x509.load_pem_x509_certificate(self.certificate)
        # Nothing of the request but its key: what it says of itself is worth nothing.
        builder = crypto.builder(crypto.name("shoal node"), issuer.subject, asked.public_key())
        builder = builder.add_extension(crypto.x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(crypto, signs_certificates=False), critical=True)
        builder = builder.add_extension(crypto.x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        key = crypto.serialization.load_pem_private_key(self.key, None)
        return crypto.pem(builder.sign(key, crypto.hashes.SHA256()))


def new_request() -> Request:
    """Make a key and the signing request for it. Raises ImportError that says what to install."""
    crypto = _Cryptography()
    key = crypto.new_key()
    builder = crypto.x509.CertificateSigningRequestBuilder().subject_name(crypto.name("shoal node"))
    return Request(crypto.pem_of_key(key), crypto.pem(builder.sign(key, crypto.hashes.SHA256())))


def keep_certificate(directory: Path, key: bytes, certificate: bytes, authority: bytes) -> None:
    """Put a node's certificate where ``Trust`` looks for it."""
    write_private(directory / KEY_FILE, key)
    write_private(directory / AUTHORITY_FILE, authority)
    write_private(directory / CERTIFICATE_FILE, certificate)


def open_authority(directory: Path) -> Authority:
    """Return the authority whose files lie in ``directory``; a new one, with a certificate for this node, if there are none."""
    try:
        return Authority((directory / AUTHORITY_KEY_FILE).read_bytes(), (directory / AUTHORITY_FILE).read_bytes())
    except FileNotFoundError:
        authority = Authority.create()
        adopt_authority(directory, authority)
        return authority


def adopt_authority(directory: Path, authority: Authority) -> None:
    """Make ``directory`` that of this authority, with a certificate for this node."""
    own = new_request()
    keep_certificate(directory, own.key, authority.issue(own.request), authority.certificate)
    write_private(directory / AUTHORITY_KEY_FILE, authority.key)  # last: where it is, everything is


class _Cryptography:
    """The parts of the library, found at the first use."""

    def __init__(self) -> None:
        extra = "shoal[cluster]"
        self.x509: Any = try_import("cryptography.x509", extra)
        self.hashes: Any = try_import("cryptography.hazmat.primitives.hashes", extra)
        self.serialization: Any = try_import("cryptography.hazmat.primitives.serialization", extra)
        self.ec: Any = try_import("cryptography.hazmat.primitives.asymmetric.ec", extra)

    def new_key(self) -> Any:
        return self.ec.generate_private_key(self.ec.SECP256R1())

    def name(self, text: str) -> Any:
        return self.x509.Name([self.x509.NameAttribute(self.x509.NameOID.COMMON_NAME, text)])

    def builder(self, subject: Any, issuer: Any, public_key: Any) -> Any:
        now = datetime.datetime.now(datetime.UTC)
        return self.x509.CertificateBuilder(
            issuer, subject, public_key, int.from_bytes(os.urandom(19), "big") | 1, now - _CLOCKS_DIFFER, now + _VALID
        )

    def pem(self, made: Any) -> bytes:
        encoded: bytes = made.public_bytes(self.serialization.Encoding.PEM)
        return encoded

    def pem_of_key(self, key: Any) -> bytes:
        encoded: bytes = key.private_bytes(
            self.serialization.Encoding.PEM, self.serialization.PrivateFormat.PKCS8, self.serialization.NoEncryption()
        )
        return encoded


def _key_usage(crypto: _Cryptography, *, signs_certificates: bool) -> Any:
    return crypto.x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_certificates, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
