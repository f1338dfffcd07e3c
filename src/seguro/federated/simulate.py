"""A federation on one machine: the same server and site apps as in a deployment, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from flwr.app import Context

from seguro.core.errors import ConfigError
from seguro.federated.client_app import made
from seguro.federated.grid import GridFleet, InProcess
from seguro.federated.keeper import EVERY_S, Keeper
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
    save_every_s: float = EVERY_S,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run `federation` over `sites` and return its folder; deterministic, one site after the other.

    A run that is killed goes on, with the same call and to the same weights, from the last state on disk.

    Args:
        federation: every choice; its `sites` are the keys of `sites`.
        sites: by name.
        folder: of the run.
        processes: each site in a process of its own, all at the same time; the weights are the same.
        save_every_s: seconds from one state on disk to the next, at most one a round. With `processes` every
            round is saved: one of them may be killed alone, and must not lose what the others have.
        say: takes lines for people.

    Raises:
        ConfigError: a site with a gate that would not go along into its process.
        Stopped: SIGTERM or Ctrl-C; everything is saved.
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

        keeper = Keeper() if processes else Keeper(save_every_s, sites.values())
        stack.enter_context(keeper.stoppable(say))
        fleet = GridFleet(InProcess(nodes, parallel=processes))
        return Server(federation, folder, fleet, say, keeper).run()
