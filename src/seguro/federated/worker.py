"""A site in a process of its own: tasks go in on standard input, answers come out on standard output."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from seguro.core.errors import RunError

if TYPE_CHECKING:
    from seguro.federated.site import Site

_LENGTH = 8


class Worker:
    """Stands for `site`, which lives in a process that ends with the `with` block."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        self._start()
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        s = self.site
        facts = {"name": s.name, "data": str(s.data), "workspace": str(s.workspace)}
        facts |= {"device": s.device, "precision": s.precision}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "seguro.federated.worker", json.dumps(facts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self._process

    def __exit__(self, *error: Any) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid if self._process else 0

    def answer(self, data: bytes) -> bytes:
        """Return the answer to the task in `data`; a process that was killed before is started again.

        Raises:
            RunError: the process ended in the middle of the task.
        """
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        tasks, answers = process.stdin, process.stdout
        found = None
        if tasks is not None and answers is not None:
            with contextlib.suppress(BrokenPipeError):
                write(tasks, data)
                found = read(answers)
        if found is None:
            process.wait()
            raise RunError(f"site {self.site.name}: its process ended in the middle of a task")
        return found


def write(stream: IO[bytes], data: bytes) -> None:
    """Write the length of `data`, and `data`."""
    stream.write(len(data).to_bytes(_LENGTH, "little") + data)
    stream.flush()


def read(stream: IO[bytes]) -> bytes | None:
    """Return what `write` wrote, None at the end of the stream."""
    head = stream.read(_LENGTH)
    if len(head) < _LENGTH:
        return None
    size = int.from_bytes(head, "little")
    data = stream.read(size)
    return data if len(data) == size else None


def serve(site: Site, tasks: IO[bytes], answers: IO[bytes]) -> None:
    """Answer tasks until there are no more."""
    while (data := read(tasks)) is not None:
        write(answers, site.answer(data))


def _main() -> None:
    from seguro.federated.site import Site

    facts = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not print between the answers
    site = Site(
        facts["name"],
        Path(facts["data"]),
        Path(facts["workspace"]),
        device=facts["device"],
        precision=facts["precision"],
    )
    serve(site, sys.stdin.buffer, out)


if __name__ == "__main__":
    _main()
