"""Where to spill, as users write it."""

from __future__ import annotations

import json
import os

import pytest

from shoal._base.spill_place import is_url, read_spill_place, shown

filesystem = {"type": "filesystem", "params": {"directory_path": "/mnt/disk"}}


def test_a_path_is_made_absolute_and_nothing_stays_nothing():
    assert read_spill_place("", None, {}) == ""
    assert read_spill_place("/mnt/disk", None, {}) == "/mnt/disk"
    assert read_spill_place("spill", None, {}) == os.path.abspath("spill")


@pytest.mark.parametrize(
    ("system_config", "environ"),
    [
        ({"object_spilling_config": json.dumps(filesystem)}, {}),
        ({"object_spilling_config": filesystem}, {}),
        ({"object_spilling_directory": "/mnt/disk"}, {}),
        (None, {"RAY_object_spilling_config": json.dumps(filesystem)}),
        ({}, {"RAY_object_spilling_config": json.dumps({"type": "filesystem", "params": {"directory_path": ["/mnt/disk"]}})}),
    ],
)
def test_the_configuration_of_ray(system_config, environ):
    assert read_spill_place("", system_config, environ) == "/mnt/disk"
    assert read_spill_place("/other", system_config, environ) == "/other"


@pytest.mark.parametrize(
    "config",
    [
        "no json", "[]", "{}", '{"type": "other", "params": {}}', '{"type": "filesystem"}', '{"type": "filesystem", "params": []}',
        '{"type": "filesystem", "params": {"directory_path": 3}}', '{"type": "smart_open", "params": {"directory_path": "/a"}}',
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_understood_is_shown(config):
    with pytest.raises(ValueError, match="object_spilling_config"):
        read_spill_place("", {"object_spilling_config": config}, {})


def test_several_places_are_refused():
    config = {"type": "filesystem", "params": {"directory_path": ["/a", "/b"]}}
    with pytest.raises(ValueError, match="one place"):
        read_spill_place("", {"object_spilling_config": config}, {})


def test_urls():
    pytest.importorskip("fsspec", reason="URLs need fsspec")
    assert read_spill_place("file:///nfs/share/", None, {}) == "file:///nfs/share"
    assert read_spill_place("memory://", None, {}) == "memory://"
    smart_open = {"type": "smart_open", "params": {"uri": "file:///nfs/share"}}
    assert read_spill_place("", {"object_spilling_config": json.dumps(smart_open)}, {}) == "file:///nfs/share"
    with pytest.raises(ValueError, match="nosuch"):
        read_spill_place("nosuch://x", None, {})
    with pytest.raises(ValueError, match="neither a path nor a URL"):
        read_spill_place("3 x://y", None, {})


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    registry = pytest.importorskip("fsspec.registry", reason="URLs need fsspec")
    monkeypatch.setitem(registry.known_implementations, "pond", {"class": "nosuchlake.Lake", "err": "Install nosuchlake to use it"})
    with pytest.raises(ImportError, match=r"pip install 'nosuchlake'"):
        read_spill_place("pond://x", None, {})
    monkeypatch.setattr("shoal._base.optional._missing", {"fsspec.registry": ImportError("No module named 'fsspec'")})
    monkeypatch.setattr("shoal._base.optional.importlib.import_module", None)  # not reached
    with pytest.raises(ImportError, match=r"pip install 'shoal\[spill\]'"):
        read_spill_place("s3://x/y", None, {})


def test_passwords_are_not_shown():
    assert is_url("s3://key:secret@bucket/prefix")
    assert shown("s3://key:secret@bucket/prefix") == "s3://bucket/prefix"
    assert not is_url("/mnt/disk")
