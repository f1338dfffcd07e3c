"""Stages: skipped when done, told apart when changed, held by one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from seguro.core.errors import RunError
from seguro.core.stage import Stage, locked, output_hash


def stage(folder, **config) -> Stage:
    return Stage(folder, "made", reads={"a": "1"}, config=config)


def test_done_means_same_key_and_outputs_present(tmp_path):
    one = stage(tmp_path, width=4)
    assert not one.done()
    (tmp_path / "out.txt").write_text("x")
    one.finish([tmp_path / "out.txt"], note="kept")
    assert one.done() and stage(tmp_path, width=4).done()
    assert not stage(tmp_path, width=5).done()
    assert stage(tmp_path, width=5).difference() == ["config.width: was 4, is 5"]
    (tmp_path / "out.txt").unlink()
    assert not one.done()


def test_outputs_do_not_depend_on_time_or_what_is_recorded(tmp_path):
    hashes = []
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "out.txt").write_text("x")
        stage(tmp_path / name).finish([tmp_path / name / "out.txt"], minutes=time.monotonic())
        hashes.append(output_hash(tmp_path / name))
    assert hashes[0] == hashes[1]


def test_a_second_process_is_refused_and_told_who_works_there(tmp_path):
    hold = (
        "import sys, time, pathlib\nfrom seguro.core.stage import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(RunError, match=f"process {process.pid}"), locked(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked(tmp_path):  # the lock of a killed process is gone with it
        pass


def test_waiting_for_a_lock(tmp_path):
    code = (
        "import sys, time, pathlib\nfrom seguro.core.stage import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with locked(tmp_path, wait_s=30):
        assert process.wait(timeout=10) == 0
