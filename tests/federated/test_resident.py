"""A site's process that stays: messages carried to it, and what happens when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")

from flwr.app import Context, RecordDict

from seguro.core.errors import DataError, RunError
from seguro.federated import client_app, message, resident
from seguro.federated.deployment import Service
from seguro.federated.message import Task
from seguro.federated.resident import Resident


class Echo:
    """Answers with what it was asked, refuses `bad`, and falls over at `fall`."""

    def answer(self, data):
        if data == b"bad":
            raise DataError("that is no task")
        return b"<" + data + b">"


@pytest.fixture
def door(tmp_path):
    """The path of a socket at which an `Echo` listens."""
    path = tmp_path / "s"
    threading.Thread(target=resident.serve, args=(Echo(), path), daemon=True).start()
    return path


def test_what_is_asked_there_is_answered_here(door):
    there = Resident(door)
    large = os.urandom(3_000_000)
    assert there.answer(b"one") == b"<one>"
    assert there.answer(large) == b"<" + large + b">"
    assert door.stat().st_mode & 0o077 == 0


def test_an_error_of_ours_closes_the_line_and_the_next_task_is_answered(door):
    with pytest.raises(RunError, match="in the middle of a task"):
        Resident(door).answer(b"bad")
    assert Resident(door).answer(b"next") == b"<next>"


def test_who_hangs_up_disturbs_nobody(door):
    there = Resident(door)
    there._connected().close()
    assert there.answer(b"next") == b"<next>"


def test_nobody_there_is_told_in_time(tmp_path):
    with pytest.raises(RunError, match="does not listen"):
        Resident(tmp_path / "none", connect_s=0.2).answer(b"")


def test_the_app_of_a_message_finds_the_process_by_its_socket(door):
    node = Context(1, 1, {"socket": str(door)}, RecordDict(), {})
    assert client_app.from_context(node).answer(b"x") == b"<x>"


def test_what_flower_starts_for_every_message_imports_nothing_that_computes():
    code = (
        "import sys, seguro.federated.client_app; print([m for m in sys.modules if m in ('torch', 'scipy')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_and_answers(folders, tmp_path, monkeypatch):
    """As `take_part` does it; a process that falls over at once is not started for ever."""
    monkeypatch.setattr("seguro.federated.deployment.SOON_S", 0.0)
    door, said = tmp_path / "s", []
    settings = {"site": "a", "data": str(folders["a"]), "out": str(tmp_path / "w")}
    task = message.to_bytes(Task("r", 0, "join"))
    with Service("the training", resident.command(door, settings), tmp_path / "log") as training:
        first = Resident(door).answer(task)
        os.kill(training.process.pid, signal.SIGKILL)
        training.process.wait()
        training.revive(said.append)
        assert Resident(door).answer(task) == first and message.update_from(first).facts["n_cases"] == 3
        assert len(said) == 1 and "code -9 and is started again" in said[0]


def test_a_program_that_falls_over_at_once_is_told_with_its_last_words(tmp_path):
    with Service("the training", ["bash", "-c", "echo no such policy; exit 2"], tmp_path / "log") as training:
        training.process.wait()
        with pytest.raises(RunError, match="no such policy"):
            training.revive(lambda line: None)
        assert time.monotonic() - training.started < 30
