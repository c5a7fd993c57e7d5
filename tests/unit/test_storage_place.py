"""What users may write for --storage."""

from __future__ import annotations

import pytest

from shoal._base.storage_place import EtcdAccess, StoragePlace, read_storage_place


@pytest.mark.parametrize(
    ("text", "environ", "place"),
    [
        (None, {}, StoragePlace()),
        ("", {"SHOAL_STORAGE": ""}, StoragePlace()),
        ("sqlite:////var/lib/shoal.sqlite", {}, StoragePlace("sqlite", "/var/lib/shoal.sqlite")),
        ("sqlite:///var/lib/shoal.sqlite", {}, StoragePlace("sqlite", "/var/lib/shoal.sqlite")),
        (None, {"SHOAL_STORAGE": "sqlite:///a/b"}, StoragePlace("sqlite", "/a/b")),
        (None, {"RAY_gcs_storage_path": "/data"}, StoragePlace("sqlite", "/data/shoal.sqlite")),
        ("etcd://a:1,b:2/one/two/", {}, StoragePlace("etcd", "", ["a:1", "b:2"], "/one/two")),
        ("etcd://a", {}, StoragePlace("etcd", "", ["a:2379"], "/shoal")),
        ("etcd://[::1]:5", {"RAY_external_storage_namespace": "ns"}, StoragePlace("etcd", "", ["[::1]:5"], "/ns")),
    ],
)
def test_places(text, environ, place):
    assert read_storage_place(text, environ) == place


def test_access_comes_from_the_environment_and_stays_out_of_sight():
    place = read_storage_place("etcd://a:1/x", {"SHOAL_ETCD_USER": "me", "SHOAL_ETCD_PASSWORD": "hidden"})
    assert place.access == EtcdAccess("me", "hidden")
    assert "hidden" not in f"{place} {place!r}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("redis://a", "neither sqlite"),
        ("/var/lib/x", "neither sqlite"),
        ("sqlite://relative", "absolute path"),
        ("sqlite:///", "absolute path"),
        ("etcd:///x", "names no member"),
        ("etcd://a:b/x", "is no HOST:PORT"),
        ("etcd://a:0/x", "is no HOST:PORT"),
        ("etcd://::1:5/x", "is no HOST:PORT"),
        ("etcd://me:secret@a:1/x", "SHOAL_ETCD_USER"),
    ],
)
def test_what_cannot_be_meant(text, says):
    with pytest.raises(ValueError, match=says) as raised:
        read_storage_place(text, {})
    assert "secret" not in str(raised.value)


def test_a_certificate_that_is_not_there():
    with pytest.raises(ValueError, match="SHOAL_ETCD_CA"):
        read_storage_place("etcd://a:1/x", {"SHOAL_ETCD_CA": "/no/such/file"})
