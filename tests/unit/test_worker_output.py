"""The streams of a worker."""

from __future__ import annotations

import os

import pytest

from shoal._core.process.worker_output import text_stream


def test_lines_are_there_at_once_whatever_characters_they_have(tmp_path):
    path = tmp_path / "log"
    with open(path, "wb") as file:
        print("umlaut ü and half a pair \ud800", file=text_stream(file.fileno()))
        assert path.read_text() == "umlaut ü and half a pair \\ud800\n"


def test_what_finds_no_room_is_counted_and_told_when_there_is_some(tmp_path):
    with open(tmp_path / "log", "wb") as file, open("/dev/full", "wb") as full:
        descriptor = os.dup(file.fileno())
        stream = text_stream(descriptor)
        stream.write("first\n")
        os.dup2(full.fileno(), descriptor)
        stream.write("lost\n")
        stream.write("lost too\n")
        os.dup2(file.fileno(), descriptor)
        stream.write("last\n")
        os.close(descriptor)
    assert (tmp_path / "log").read_text() == "first\n\n[14 bytes of output were lost here: the disk was full]\nlast\n"


def test_other_errors_are_errors(tmp_path):
    path = tmp_path / "log"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    stream = text_stream(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.write("x\n")
    os.close(descriptor)
