"""FAULTS 24, 28, 30: killed at any instant, stopped by a signal, with damaged checkpoints: the same end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seguro.data import phantom

ARROW = Path(__file__).with_name("arrow.py")
KILLS = 5
QUICK, LONG = 60, 400
"""Updates of a short arrow, long enough for a signal to arrive in time, and of one of about 30 seconds."""


def start(data: Path, out: Path, updates: int) -> subprocess.Popen[bytes]:
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(
        [sys.executable, str(ARROW), str(data), str(out), str(updates)],
        stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )  # fmt: skip


def finish(data: Path, out: Path, updates: int) -> None:
    code = start(data, out, updates).wait(timeout=300)
    assert code == 0, (out.parent / f"{out.name}.log").read_text()[-3000:]


def outputs(out: Path) -> dict[str, dict[str, str]]:
    """The `outputs` of every stage below a workspace."""
    found = {
        p.parent.relative_to(out).as_posix(): json.loads(p.read_text())["outputs"]
        for p in out.rglob("stage.json")
    }
    assert len(found) >= 6, sorted(found)
    return found


def data_in(folder: Path) -> Path:
    return phantom.write_msd(folder / "data", n_labelled=5, n_test=2, seed=1)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Data, and the outputs of a short arrow over them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("short")
    data = data_in(folder)
    finish(data, folder / "whole", QUICK)
    return data, outputs(folder / "whole")


def wait_for(process: subprocess.Popen[bytes], path: Path, text: str, seconds: float = 120) -> None:
    """Wait until `path` holds `text`, or the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and text in path.read_text(errors="replace"):
            return
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.xdist_group("killed")
def test_killed_in_training_and_started_again(short, tmp_path):
    data, expected = short
    process = start(data, tmp_path / "killed", QUICK)
    wait_for(process, tmp_path / "killed" / "runs" / "r" / "log.jsonl", '"update": 5')
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finish(data, tmp_path / "killed", QUICK)
    assert outputs(tmp_path / "killed") == expected


def stopped(data: Path, out: Path, number: int, update: int) -> Path:
    """Stop a short arrow with a signal once it has reached `update`, and return its run's folder."""
    process = start(data, out, QUICK)
    run = out / "runs" / "r"
    wait_for(process, run / "log.jsonl", f'"update": {update}')
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == 130
    said = (out.parent / f"{out.name}.log").read_text().replace("\n", " ")
    assert list((run / "checkpoints").glob("*.json")) and "saved; run the same command again" in said
    return run


@pytest.mark.slow
@pytest.mark.xdist_group("killed")
def test_interrupted_it_saves_and_the_same_command_goes_on(short, tmp_path):
    data, expected = short
    stopped(data, tmp_path / "stopped", signal.SIGINT, 3)
    finish(data, tmp_path / "stopped", QUICK)
    assert outputs(tmp_path / "stopped") == expected


@pytest.mark.slow
@pytest.mark.xdist_group("killed")
def test_terminated_it_saves_and_a_damaged_checkpoint_is_named_and_the_one_before_used(short, tmp_path):
    data, expected = short
    out = tmp_path / "damaged"
    run = stopped(data, out, signal.SIGTERM, 20)  # the checkpoint of update 15 lies before
    newest = sorted((run / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-5])
    finish(data, out, QUICK)
    text = (tmp_path / "damaged.log").read_text().replace("\n", "")
    assert newest.name in text and "going back to the one before" in text
    assert outputs(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_killed_at_ten_random_moments(tmp_path, half):
    """Five in each half of the test, so that two processes share it."""
    data = data_in(tmp_path)
    begin = time.monotonic()
    finish(data, tmp_path / "whole", LONG)
    duration = time.monotonic() - begin
    expected = outputs(tmp_path / "whole")
    moments = random.Random(half)
    for i in range(KILLS):
        out = tmp_path / f"killed{i}"
        process = start(data, out, LONG)
        moment = moments.uniform(0.05, 0.95) * duration
        time.sleep(moment)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        finish(data, out, LONG)
        assert outputs(out) == expected, f"killed after {moment:.1f} of {duration:.1f} s"
