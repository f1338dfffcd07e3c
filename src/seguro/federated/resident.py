"""A site's training in one process that stays.

Flower starts a new process for every message. That one only carries bytes (`client_app`): the site lives
here, with its model, its optimizer and its cases in memory, and is reached over a socket that only the same
user can open.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from seguro.core.errors import RunError, SeguroError
from seguro.federated.message import Answering
from seguro.federated.worker import read, write

log = logging.getLogger(__name__)
CONNECT_S = 120.0
"""How long a message waits for the process: it may just be starting, or starting again."""
_POLL_S = 0.1


class Resident:
    """Stands for the site whose process listens at `path`."""

    def __init__(self, path: Path, *, connect_s: float = CONNECT_S) -> None:
        self.path = path
        self.connect_s = connect_s

    def answer(self, data: bytes) -> bytes:
        """Return the answer to the task in `data`.

        Raises:
            RunError: nobody listens, or the process ended in the middle of the task.
        """
        with self._connected() as line, line.makefile("rb") as answers:
            found = None
            with contextlib.suppress(ConnectionError), line.makefile("wb") as tasks:
                write(tasks, data)
                found = read(answers)
        if found is None:
            raise RunError("the training ended in the middle of a task; its log at the site says more")
        return found

    def _connected(self) -> socket.socket:
        deadline = time.monotonic() + self.connect_s
        while True:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                line.close()
                if time.monotonic() > deadline:
                    raise RunError(
                        f"{self.path}: the site's training does not listen ({error.strerror}); it is started "
                        "by seguro federate site"
                    ) from error
                time.sleep(_POLL_S)
            else:
                return line


def serve(site: Answering, path: Path) -> None:
    """Answer tasks at `path`, one after the other, until the process is stopped.

    An error that is not ours ends the process, and with it whatever it may have left in memory; who started
    it starts it again.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        path.chmod(0o600)
        door.listen()
        while True:
            line, _ = door.accept()
            with line, contextlib.suppress(ConnectionError):
                _answer(site, line)


def _answer(site: Answering, line: socket.socket) -> None:
    with line.makefile("rb") as tasks, line.makefile("wb") as answers:
        task = read(tasks)
        if task is None:
            return
        try:
            answer = site.answer(task)
        except SeguroError:
            log.exception("the task could not be answered")  # the line closes without an answer
            return
        write(answers, answer)


def command(path: Path, settings: Mapping[str, str]) -> list[str]:
    """Return the command of the process that listens at `path`.

    Args:
        path: of the socket; in a folder that only the user can enter.
        settings: of the site as in a node's configuration: site, data, out, policy, device, precision.
    """
    return [sys.executable, "-m", "seguro.federated.resident", str(path), json.dumps(dict(settings))]


def _main() -> None:
    from seguro.federated.client_app import site_from

    path, settings = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    serve(site_from(json.loads(settings)), Path(path))


if __name__ == "__main__":
    _main()
