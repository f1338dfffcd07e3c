"""Programs in the background: they end with who started them, tell why they ended, and are started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seguro.core.errors import RunError
from seguro.federated import deployment, executor
from seguro.federated.deployment import Service


def test_a_service_takes_what_it_started_along(tmp_path):
    script = "sleep 300 & echo child $!; wait"
    with Service("x", ["bash", "-c", script], tmp_path / "log") as service:
        for _ in range(100):
            if "child" in (tmp_path / "log").read_text():
                break
            time.sleep(0.05)
        service.check()
    child = int((tmp_path / "log").read_text().split()[1])
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the child is still there")


PARENT = """
import sys, time
from pathlib import Path
from seguro.federated.deployment import Service, stoppable
with stoppable(), Service("x", ["sleep", "300"], Path(sys.argv[1])) as service:
    print(service.process.pid, flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow, id="SIGTERM"),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow, id="SIGINT"),
        pytest.param(signal.SIGKILL, id="SIGKILL"),
    ],
)
def test_a_service_does_not_outlive_who_started_it(tmp_path, how):
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    ) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(how)
        parent.wait(60)
    for _ in range(200):
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("it is still there")


def test_a_service_that_ends_is_told_with_its_last_words(tmp_path):
    with Service("the SuperLink", ["bash", "-c", "echo port taken; exit 3"], tmp_path / "log") as service:
        with pytest.raises(RunError, match="the SuperLink ended with code 3:\n  port taken"):
            service.listening(1)
        with pytest.raises(RunError):
            service.check()


def test_a_service_that_does_not_listen_is_told(tmp_path, free_ports):
    with (
        Service("x", ["sleep", "60"], tmp_path / "log") as service,
        pytest.raises(RunError, match="does not listen"),
    ):
        service.listening(*free_ports(1), timeout_s=0.5)


def test_a_program_is_started_again_only_when_it_can_do_its_work(tmp_path, monkeypatch):
    """As the SuperNode after its server was: it would end at once while the server is away."""
    order: list[str] = []
    with Service("the SuperNode", ["bash", "-c", "echo here; exit 0"], tmp_path / "log") as service:
        service.process.wait()
        monkeypatch.setattr(deployment, "SOON_S", 0.0)
        service.revive(order.append, ready=lambda: order.append("ready"))
        service.process.wait()
    assert order[0].startswith("the SuperNode ended with code 0 and is started again") and order[1:] == [
        "ready"
    ]
    assert (tmp_path / "log").read_text() == "here\n" * 2


def test_a_site_waits_for_its_server_and_says_why_once(tmp_path, monkeypatch):
    answers = [RunError("nobody is there"), RunError("nobody is there"), RunError("not yet"), None]

    def reach(folder):
        if (found := answers.pop(0)) is not None:
            raise found

    monkeypatch.setattr(deployment.startup, "reach", reach)
    said: list[str] = []
    deployment.let_in_again(tmp_path, said.append, every_s=0.0)
    assert said == ["nobody is there; waits for it", "not yet; waits for it"] and not answers


def test_a_program_that_is_killed_or_told_to_end_is_started_again_at_once(tmp_path):
    """However soon after its start: only an end with a fault would come again."""
    for script in ("kill -9 $$", "exit 0"):
        said: list[str] = []
        with Service("x", ["bash", "-c", f"echo here; {script}"], tmp_path / "log") as service:
            service.process.wait()
            service.revive(said.append)
            service.process.wait()
        assert "is started again" in said[0]
    assert (tmp_path / "log").read_text() == "here\n" * 4


def test_a_program_that_may_start_later_is_tried_for_a_while_and_no_longer(tmp_path, monkeypatch):
    """As a SuperNode whose predecessor the SuperLink still takes for there."""
    monkeypatch.setattr(deployment, "AGAIN_S", 0.01)
    said: list[str] = []
    script = f'echo "failed {deployment.COUNTED}"; exit 1'
    with Service("the SuperNode", ["bash", "-c", script], tmp_path / "log") as service:
        for _ in range(3):
            service.process.wait()
            service.revive(said.append, later=deployment.COUNTED)
        service.process.wait()
        monkeypatch.setattr(deployment, "PATIENCE_S", 0.0)
        with pytest.raises(RunError, match="ended with code 1"):
            service.revive(said.append, later=deployment.COUNTED)
    assert len(said) == 1 and "its key is not registered; tried again" in said[0]
    assert len((tmp_path / "log").read_text().splitlines()) == 4
    with Service("x", ["bash", "-c", "echo another fault; exit 1"], tmp_path / "other") as service:
        service.process.wait()
        with pytest.raises(RunError, match="another fault"):
            service.revive(said.append, later=deployment.COUNTED)


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda token: None, 0),
        (lambda token: sys.exit(0), 0),
        (lambda token: sys.exit(3), 3),
        (lambda token: sys.exit("words"), 1),
        (lambda token: 1 / 0, 1),
    ],
    ids=["returns", "exits", "exits with 3", "exits with words", "raises"],
)
def test_a_fork_ends_with_its_work_whatever_happens_in_it(work, code):
    child = executor.forked(work, "token")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


def test_forks_that_have_ended_are_reaped():
    child = executor.forked(lambda token: None, "token")
    for _ in range(500):
        executor.reap()
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.02)
    raise AssertionError("it is still in the list of processes")


def test_waits_of_flower_are_short_and_there_to_be_shortened(monkeypatch):
    """In another version of Flower its modules may have other names: then this is to be looked at again."""
    pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")
    from flwr.superlink.grid import http_grid as grid
    from flwr.supernode import start_client_internal as node

    from seguro.federated import waits

    for module in (node, grid):
        monkeypatch.setattr(module, "pull_objects", module.pull_objects)
    monkeypatch.setattr(node, "time", node.time)
    slept: list[float] = []
    monkeypatch.setattr(waits.time, "sleep", slept.append)
    waits.of_node()
    waits.of_server()
    for seconds in (3, 0.5, 0.01):
        node.time.sleep(seconds)
    assert slept == [waits.PULL_S, waits.LOOK_S, 0.01]
    for module in (node, grid):
        assert module.pull_objects.keywords == {"initial_backoff": waits.LOOK_S}
        assert module.pull_objects([], lambda key: b"") == {}
    used = set(re.findall(r"\btime\.(\w+)", Path(node.__file__).read_text()))
    assert used == {"sleep"}  # what takes its place there can do nothing else
