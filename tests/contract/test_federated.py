"""Every method takes part in a federation: one round at two sites, and a model that is still its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seguro.core.types import Manifest
from seguro.data import manifest as manifests
from seguro.engine.model import load_model, load_weights
from seguro.federated import exchange, record
from seguro.federated.simulate import simulate
from seguro.federated.site import Site
from seguro.federated.strategies import Federation
from seguro.methods import TABLE, get
from seguro.methods.contract import to_deploy

pytest.importorskip("flwr")


BARE = {"label": None, "masks": (), "annotated": (), "split": "unlabelled"}


def site(name: str, setting, folder, part: int, *, mixes: bool) -> Site:
    """A site with half of the setting's cases, one of them without its label where a method mixes."""
    cases = [*setting.manifest.of("train")[part::2], *setting.manifest.of("unlabelled")[part::2]]
    if mixes:
        cases[0] = cases[0].model_copy(update=BARE)
    update = {"cases": tuple(cases), "splits_sha256": None}
    own: Manifest = setting.manifest.model_copy(update=update)
    manifests.save(own, folder / name / "check" / manifests.FILE)
    return Site(name, folder / name, folder / name)


def rows() -> list[Any]:
    """Every method in the fewest dimensions it works in; in the others too when slow tests are asked for."""
    return [
        pytest.param((name, dims), id=f"{name}-{dims}d", marks=[pytest.mark.slow] if i else [])
        for name in TABLE
        for i, dims in enumerate(sorted(get(name).needs.dims))
    ]


@pytest.mark.parametrize("row", rows(), indirect=True)
def test_one_federated_round_moves_what_is_shared(row, tmp_path):
    name, setting = row
    kind = get(name)
    config = kind.Config.model_validate(kind.presets["tiny"]).model_dump(mode="json")
    group = kind.needs.group
    run = Federation(
        run="round",
        method=name,
        preset="tiny",
        config=config,
        rounds=1,
        updates=1,
        batch=max(2, group),
        sites=("one", "two"),
        plan={"memory_gib": 0.01, "batch": 2, "dims": setting.plan.dims},
    )
    sites = {
        place: site(place, setting, tmp_path, part, mixes=kind.needs.labels == "some")
        for part, place in enumerate(("one", "two"))
    }
    simulate(run, sites, tmp_path / "run")
    line = record.lines(tmp_path / "run")[0]
    assert line["took_part"] == ["one", "two"], line
    assert all(n > 0 for n in line["norms"].values())
    method = setting.method(name)
    loop = sites["one"]._training._loop
    shared = exchange.outgoing(loop.method, loop.run.averaged)
    assert {k.removeprefix("averaged.") for k in shared} == set(method.shared())
    assert all(np.isfinite(v).all() for v in shared.values())
    if kind.needs.segments:
        assert load_model(tmp_path / "run").method == name
    else:
        assert load_weights(to_deploy(method, method.modules), tmp_path / "run")[1] == []
