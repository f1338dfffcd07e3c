"""Runs Flower's apps in copies of this process: at the server that of a run, at a site one for each message.

Flower's own executor starts a new Python for each, which imports Flower for two seconds of processor time
before it says a word; on a busy machine that takes longer than Flower waits for it. Here everything is
imported once, and a process that is forked from this one does what Flower's would do.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

LOOK_S = 0.1
"""From one look for a task, on the same machine, to the next."""
AWAY_S = 0.5
"""From one try to the next while the service is away: it starts, or is started again."""
Side = Literal["server", "site"]


def command(side: Side, address: str, authority: Path | None = None) -> list[str]:
    """Return the command that runs the apps of a SuperLink ("server") or a SuperNode ("site").

    Args:
        side: which of them.
        address: of its interface, host:port.
        authority: certificate that its own is checked by; None where it has none, on the loopback.
    """
    words = [side, address, *([str(authority)] if authority else [])]
    return [sys.executable, "-m", "seguro.federated.executor", *words]


def serve(side: Side, address: str, authority: Path | None = None) -> None:
    """Take tasks at `address` until the process is stopped; waits for a service that is away."""
    import httpx
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    root = authority.read_bytes() if authority else None
    work = (_run if side == "server" else _message)(address, root)
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=root is None,
        root_certificates=root,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
    )
    kind = TaskType.SERVER_APP if side == "server" else TaskType.CLIENT_APP
    while True:
        try:
            found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
        except httpx.TransportError:
            time.sleep(AWAY_S)
            continue
        if found.token:
            forked(work, found.token)
        reap()
        time.sleep(LOOK_S)


def _message(address: str, root: bytes | None) -> Callable[[str], None]:
    """Return what answers one message of a site."""
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    import seguro.federated.client_app  # noqa: F401  that no fork has to

    me = os.getpid()
    return lambda token: run_clientapp(address, token, root is None, root, me)


def _run(address: str, root: bytes | None) -> Callable[[str], None]:
    """Return what does one run at the server; what it says goes to whoever submitted it."""
    from queue import Queue

    from flwr.supercore.logger import mirror_output_to_queue
    from flwr.superlink.runtime import run_serverapp

    import seguro.federated.server_app  # noqa: F401

    me = os.getpid()

    def work(token: str) -> None:
        said: Queue[str | None] = Queue()
        mirror_output_to_queue(said)
        run_serverapp(address, said, token, root is None, root, me)

    return work


def forked(work: Callable[[str], None], token: str) -> int:
    """Do the `work` of a token in a fork of this process, which ends with it; returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(token)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except Exception:  # noqa: BLE001  told, and the fork ends; it must not go on as a second executor
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def reap() -> None:
    """Take note of forks that have ended, so that none stays in the list of processes."""
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return


if __name__ == "__main__":
    _side, _address, *_authority = sys.argv[1:]
    serve("server" if _side == "server" else "site", _address, *map(Path, _authority))
