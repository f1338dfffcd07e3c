"""Rounds of a federation on one machine with the local training left out, for `benchmarks/speed.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROUNDS = 10_000
"""More than are ever timed."""


def rounds(
    n_sites: int = 4, *, width: int = 45, save_every_s: float | None = None
) -> tuple[Callable[[], Any], int]:
    """Return a function that does one more round, and the number of parameters of the network.

    Everything else of a round is done: messages through Flower's classes, checks, the weighted mean, the
    hash of the new weights and, as often as `save_every_s` says (a simulation's default where None), the
    state of every site and the server's checkpoint on disk. The first round trains, so that the optimizers
    have their moments.
    """
    import torch

    from seguro.data import phantom
    from seguro.engine.loop import Loop
    from seguro.federated.client_app import made
    from seguro.federated.grid import GridFleet, InProcess
    from seguro.federated.keeper import EVERY_S, Keeper
    from seguro.federated.rounds import Server
    from seguro.federated.site import Site
    from seguro.federated.strategies import Federation
    from seguro.methods import get

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="federated-"))
    sites = {}
    for i in range(n_sites):
        data = phantom.write_msd(folder / f"site{i}", n_labelled=2, n_test=0, seed=i)
        sites[f"site{i}"] = Site(f"site{i}", data, folder / f"work{i}", lazy=True)
    kind = get("supervised")
    settings = {**kind.presets["small"], "network_options": {"width": width}}
    federation = Federation(
        run="speed",
        method="supervised",
        preset="small",
        config=kind.Config.model_validate(settings).model_dump(mode="json"),
        rounds=ROUNDS,
        updates=1,
        batch=1,
        sites=tuple(sites),
        strategy={"evaluate_every": ROUNDS},
    )
    client = made(lambda context: sites[str(context.node_config["site"])])
    nodes = {i + 1: (client, {"site": name}) for i, name in enumerate(sorted(sites))}

    keeper = Keeper(EVERY_S if save_every_s is None else save_every_s, sites.values())
    server = Server(federation, folder / "run", GridFleet(InProcess(nodes)), keeper=keeper)
    server.admission.gather(first=True)
    plan = server.plan()
    server.agree(plan)
    server.begin(plan)
    server.one_round()

    def one_round() -> None:
        with _untrained(Loop):
            record = server.one_round()
        if len(record.trained) != n_sites:
            raise RuntimeError(f"a round without all sites: {record.why()}")

    return one_round, sum(p.numel() for p in server.method.modules.parameters())


@contextmanager
def _untrained(loop: Any) -> Any:
    """Have the loop count its updates and do none."""

    def counted(self: Any, start: int, n: int, **more: Any) -> None:
        self.run.update = start + n

    honest = loop.run_updates
    loop.run_updates = counted
    try:
        yield
    finally:
        loop.run_updates = honest
