"""Writing atomically, reading to the end of the checksum, JSON within limits."""

from __future__ import annotations

import errno
import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seguro.core import files
from seguro.core.errors import DataError, RunError

PAYLOAD = bytes(range(256)) * 4000


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def fail() -> None:
        with files.atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert files.read_json(path) == {"old": 1} and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_with_the_bytes_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match=r"disk full after 3 bytes \(\d+ bytes free\)"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_gzip_of_one_and_of_several_members_is_read_whole(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(PAYLOAD) + gzip.compress(b"more") + b"\0" * 100)
    assert files.read_checked(path).data == PAYLOAD + b"more"
    assert files.read_checked(path).sha256 == files.sha256_file(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 7))
def test_no_flipped_bit_passes_unnoticed(tmp_path_factory, where, bit):
    raw = bytearray(gzip.compress(PAYLOAD, mtime=0))
    where %= len(raw)
    raw[where] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "a.gz"
    path.write_bytes(raw)
    try:
        data = files.read_checked(path).data
    except DataError as error:
        assert str(path) in str(error)
    else:  # the header's time, flags and name are not part of the content
        assert data == PAYLOAD or (where < 2 and data == bytes(raw))


@pytest.mark.parametrize("cut", [1, 7, 500])
def test_a_cut_is_noticed(tmp_path, cut):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(PAYLOAD)[:-cut])
    with pytest.raises(DataError, match="truncated"):
        files.read_checked(path)


def test_a_bomb_is_stopped_at_the_limit(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0" * (8 << 20)))
    with pytest.raises(DataError, match="more than 1048576 bytes"):
        files.read_checked(path, limit=1 << 20)


@pytest.mark.parametrize("text", ["", "{", '{"a": ]', "[" * 100_000])
def test_json_that_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        files.read_json(path)


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_hash_of_json_does_not_depend_on_the_order_of_keys():
    a, b = {"x": [1, 2], "y": "ü"}, json.loads('{"y": "ü", "x": [1, 2]}')
    assert files.sha256_json(a) == files.sha256_json(b) != files.sha256_json({"x": [2, 1], "y": "ü"})


def test_what_a_killed_process_left_is_used_again(tmp_path):
    code = (
        "import os, pathlib, signal, sys\nfrom seguro.core import files\n"
        "with files.atomic(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "a.txt"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["half"] and not path.exists()
    files.write_text(path, "whole")
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "whole"


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a.txt"
    with files.atomic(path) as outer:
        outer.write_text("outer")
        files.write_text(path, "inner")
    assert path.read_text() == "outer" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 250, "ü" * 120, "a b\tc"])
def test_long_and_odd_names(tmp_path, name):
    files.write_text(tmp_path / name, "text")
    assert [p.name for p in tmp_path.iterdir()] == [name]
