"""How ranks leave their group: together, after an error, or without a word. Never by an abort."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("leave_ranks.py")


def two(way: str) -> list[tuple[int, str, str]]:
    """Return exit code, output and errors of each of two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), way],
            env={**common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    ended = [rank.communicate(timeout=180) for rank in ranks]
    return [(rank.returncode, *text) for rank, text in zip(ranks, ended, strict=True)]


@pytest.mark.slow
def test_ranks_leave_together_and_leave_no_thread_behind():
    for code, out, errors in two("together"):
        assert code == 0, errors[-2000:]
        assert out.splitlines() == ["alive: []"] * 3


@pytest.mark.slow
def test_a_rank_that_closes_nothing_ends_as_usual():
    for code, _, errors in two("forgets"):
        assert code == 0 and "terminate called" not in errors, errors[-2000:]


@pytest.mark.slow
def test_a_rank_that_fails_leaves_at_once_and_the_other_says_so():
    (other, _, said), (own, _, errors) = two("fails")
    assert own == 1 and "this rank fails" in errors and "terminate called" not in errors
    # closed or reset, as the kernel has read what was under way or not
    assert other == 1 and re.search(r"Connection (closed|reset) by peer", said), said[-2000:]
    assert "terminate called" not in said
