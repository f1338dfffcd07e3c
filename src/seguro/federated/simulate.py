"""A federation on one machine: the same server and site apps as in a deployment, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from flwr.app import Context

from seguro.core.errors import ConfigError
from seguro.federated.client_app import made
from seguro.federated.grid import GridFleet, InProcess
from seguro.federated.message import Answering, Open
from seguro.federated.rounds import Server
from seguro.federated.site import Site
from seguro.federated.strategies import Federation
from seguro.federated.worker import Worker


def simulate(
    federation: Federation,
    sites: Mapping[str, Site],
    folder: Path,
    *,
    processes: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run `federation` over `sites` and return its folder; deterministic, one site after the other.

    A site's state is written while the next one trains, and is on disk before the server goes on.

    Args:
        federation: every choice; its `sites` are the keys of `sites`.
        sites: by name.
        folder: of the run.
        processes: each site in a process of its own, all at the same time; the weights are the same.
        say: takes lines for people.

    Raises:
        ConfigError: a site with a gate that would not go along into its process.
    """
    if processes and (guarded := sorted(n for n, s in sites.items() if not isinstance(s.gate, Open))):
        raise ConfigError(
            f"sites {', '.join(guarded)} have a policy, which would not hold in a process of their own: "
            "simulate them in this one"
        )
    with ExitStack() as stack:
        answering: dict[str, Answering] = dict(sites)
        for site in sites.values():
            site.lazy = not processes
        if processes:
            answering = {name: stack.enter_context(Worker(site)) for name, site in sites.items()}

        def site_of(context: Context) -> Answering:
            return answering[str(context.node_config["site"])]

        client = made(site_of)
        nodes = {i + 1: (client, {"site": name}) for i, name in enumerate(sorted(sites))}

        def settle() -> None:
            for site in sites.values():
                site.settle()

        grid = InProcess(nodes, parallel=processes, after=settle)
        return Server(federation, folder, GridFleet(grid), say).run()
