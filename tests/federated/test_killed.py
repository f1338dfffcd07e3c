"""kill -9 of a whole simulated federation in a round: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")

from seguro.data import phantom
from seguro.federated import record

RUN = """
import sys
from pathlib import Path
from seguro.api import federation as api
root, name, every = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
options = api.FederateOptions(
    preset="tiny", rounds=5, updates=4, batch=2, name=name, plan={"memory_gib": 0.01},
    strategy={"coding": "int8"}, save_every_s=every,
)
api.simulate([root / "a", root / "b"], options, out=root)
"""


def start(root: Path, name: str, every_s: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(root), name, str(every_s)]
    return subprocess.Popen(command, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("every_s", [0.0, 0.5, 30.0], ids=["every-round", "some-rounds", "no-round"])
def test_a_federation_that_is_killed_ends_as_if_it_was_not(every_s, tmp_path):
    """Optimizers and what int8 left out are on the sites' disks, the weights on the server's."""
    for k, name in enumerate("ab"):
        phantom.write_msd(tmp_path / name, n_labelled=2, n_test=0, seed=k)
    assert start(tmp_path, "whole", every_s).wait(300) == 0
    process = start(tmp_path, "killed", every_s)
    deadline = time.monotonic() + 300
    while len(record.lines(tmp_path / "killed")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(record.lines(tmp_path / "killed"))
    assert 3 <= done < 6 and not (tmp_path / "killed" / "finished.json").exists()
    assert start(tmp_path, "killed", every_s).wait(300) == 0
    whole, killed = (record.lines(tmp_path / n) for n in ("whole", "killed"))
    assert [e["round"] for e in killed] == [1, 2, 3, 4, 5, 6]
    assert [e["sha256"] for e in killed] == [e["sha256"] for e in whole]
    weights = [(tmp_path / n / "model" / "weights.safetensors").read_bytes() for n in ("whole", "killed")]
    assert weights[0] == weights[1]
