"""Flower's waits, shortened: a message lies for seconds at each of its stops, and no setting changes that.

Flower 1.41 looks every 3 s for a message at a site, every 0.5 s for its answer there, and where the arrays of
a message come after its head it waits 1 s before it looks again. These are constants of two of its modules,
which are replaced in the process that calls `of_node` or `of_server`.
"""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace

PULL_S = 0.5
"""From one look for a message at the server to the next; a call through two proxies, between tasks only."""
LOOK_S = 0.05
"""From one look to the next on the same machine, and before the first repetition where arrays are late."""


def of_node() -> None:
    """Shorten the waits of a SuperNode in this process."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.supernode import start_client_internal as node

    node.time = SimpleNamespace(sleep=shortened)  # type: ignore[attr-defined,assignment]
    node.pull_objects = partial(pull_objects, initial_backoff=LOOK_S)  # type: ignore[attr-defined]


def of_server() -> None:
    """Shorten the waits of a ServerApp's grid in this process."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.superlink.grid import http_grid as grid

    grid.pull_objects = partial(pull_objects, initial_backoff=LOOK_S)  # type: ignore[attr-defined]


def shortened(seconds: float) -> None:
    """Sleep in place of Flower's `seconds`: long ones are between looks at the server, short ones within."""
    time.sleep(min(seconds, PULL_S if seconds > 1 else LOOK_S))
