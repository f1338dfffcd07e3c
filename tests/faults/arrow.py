"""Run as a program by test_killed: the whole arrow, from DATA into OUT, by the commands a user types."""

from __future__ import annotations

import sys

from seguro.cli.main import main


def arrow(data: str, out: str, updates: str) -> int:
    run = f"{out}/runs/r"
    commands = [
        ["train", data, "--out", out, "--name", "r", "--preset", "tiny", "--updates", updates, "--batch", "2",
         "--validations", "4", "--memory", "0.02", "--threads", "1"],
        ["predict", run, "--data", out, "--cases", "test", "--threads", "1"],
        ["evaluate", f"{run}/predictions/test"],
        ["report", run],
    ]  # fmt: skip
    for command in commands:
        code = main(command)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(arrow(*sys.argv[1:]))
