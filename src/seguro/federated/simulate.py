"""A federation on one machine: the same server and site apps as in a deployment, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Context

from seguro.federated.client_app import cached, made
from seguro.federated.grid import GridFleet, InProcess
from seguro.federated.rounds import Server
from seguro.federated.site import Site
from seguro.federated.strategies import Federation


def simulate(
    federation: Federation,
    sites: Mapping[str, Site],
    folder: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run `federation` over `sites` and return its folder; deterministic, one site after the other.

    Args:
        federation: every choice; its `sites` are the keys of `sites`.
        sites: by name.
        folder: of the run.
        say: takes lines for people.
    """

    def site_of(context: Context) -> Site:
        return sites[str(context.node_config["site"])]

    client = made(cached(site_of))
    nodes = {i + 1: (client, {"site": name}) for i, name in enumerate(sorted(sites))}
    return Server(federation, folder, GridFleet(InProcess(nodes)), say).run()
