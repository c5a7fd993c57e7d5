"""An etcd that asks for a password, and one that speaks TLS."""

from __future__ import annotations

import datetime
import ipaddress

import pytest
from etcd_server import MISSING, running_etcd

from shoal._base.storage_place import EtcdAccess
from shoal._core.control_store.storage.etcd_client import EtcdRefused, EtcdUnavailable, put

pytestmark = pytest.mark.cluster


def ask(client, path, **body):
    return client._call(path, body, dict)


def test_an_etcd_that_asks_for_a_password(own_etcd):
    admin = own_etcd.client()
    ask(admin, "/v3/auth/user/add", name="root", password="known")
    ask(admin, "/v3/auth/role/add", name="root")
    ask(admin, "/v3/auth/user/grant", user="root", role="root")
    ask(admin, "/v3/auth/enable")
    with pytest.raises(EtcdRefused, match="user name is empty"):
        admin.range(b"k")
    wrong = own_etcd.client(access=EtcdAccess("root", "guessed"))
    with pytest.raises(EtcdRefused, match="authentication failed") as raised:
        wrong.range(b"k")
    assert "guessed" not in str(raised.value)
    client = own_etcd.client(access=EtcdAccess("root", "known"))
    client.txn([], [put(b"k", b"v")])
    own_etcd.kill()  # forgets the tokens that it gave
    own_etcd._start(0)
    while True:
        try:
            assert client.range(b"k").kvs[0].value == b"v"
            break
        except EtcdUnavailable:
            continue  # it is starting
    for one in (admin, wrong, client):
        one.close()


def test_an_etcd_that_speaks_tls(tmp_path):
    if MISSING:
        pytest.skip(MISSING)
    certificates = self_signed(tmp_path)
    with running_etcd(tmp_path, certificates=certificates) as etcd:
        client = etcd.client(access=EtcdAccess(ca=certificates[0]))
        client.txn([], [put(b"k", b"v")])
        assert client.range(b"k").kvs[0].value == b"v"
        client.close()
        (tmp_path / "other").mkdir()
        for access in (EtcdAccess(), EtcdAccess(ca=self_signed(tmp_path / "other")[0])):
            stranger = etcd.client(access=access)
            with pytest.raises(EtcdUnavailable):
                stranger.range(b"k")
            stranger.close()


def self_signed(directory):
    """Make a certificate for 127.0.0.1 and its key; return their files."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "etcd")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    paths = directory / "etcd.crt", directory / "etcd.key"
    paths[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return str(paths[0]), str(paths[1])
