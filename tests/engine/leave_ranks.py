"""Run once per rank by test_ranks: exchanges a little, several times over, and ends in the WAY given."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from seguro.core.errors import RunError
from seguro.engine.runtime import Runtime

GROUPS = 3


def exchange(runtime: Runtime) -> None:
    net = torch.nn.Linear(4, 4)
    runtime.broadcast(net)
    for _ in range(3):
        net(torch.ones(2, 4)).sum().backward()
        runtime.mean_gradients(list(net.parameters()))
        runtime.gather({"a": torch.ones(3)})


def main(way: str) -> None:
    torch.set_num_threads(1)
    if way == "together":
        first = int(os.environ["MASTER_PORT"])
        for k in range(GROUPS):
            os.environ["MASTER_PORT"] = str(first + k)
            with Runtime("cpu") as runtime:
                exchange(runtime)
                if runtime.rank == k % 2:
                    time.sleep(0.1)  # the other one is done first
                runtime.any(False)
            left = sorted(p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm"))
            alive = [n for n in left if n.startswith(("gloo", "pt_"))]
            sys.stdout.write(f"alive: {alive}\n")
        return
    runtime = Runtime("cpu")
    exchange(runtime)
    if way == "fails" and runtime.rank == 1:
        with runtime:
            raise RunError("this rank fails")
    runtime.any(False)  # fails in the other one; when nobody fails both end without closing


if __name__ == "__main__":
    main(sys.argv[1])
