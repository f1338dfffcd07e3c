"""Two sites on slices of a phantom: A has labels, B has none, C one labelled case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from seguro import api
from seguro.data import phantom
from seguro.data.plan import Plan
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases, prepare
from seguro.methods.adapt.config import PRESETS, AdaptConfig
from seguro.methods.adapt.method import Adapt
from seguro.networks import build


@dataclass(frozen=True)
class Sites:
    """A prepared data set of three sites."""

    workspace: Path
    plan: Plan
    cases: Cases

    def config(self, **fields: Any) -> AdaptConfig:
        """The tiny preset for these sites, with other fields."""
        base = {"domains": ("site1", "site2", "site3"), "source": "site1", "target": "site2"}
        return AdaptConfig.model_validate({**PRESETS["tiny"], **base, **fields})

    def method(self, seed: int = 0, **fields: Any) -> Adapt:
        """The tiny method."""
        torch.manual_seed(seed)
        return Adapt(self.config(**fields), self.plan, build)


@pytest.fixture(scope="session")
def sites(tmp_path_factory) -> Sites:
    folder = tmp_path_factory.mktemp("sites")
    data = phantom.write_msd(folder / "data", n_labelled=6, n_test=0, shape=(6, 20, 24), sites=3, seed=5)
    out, manifest, plan = api.plan(
        data, out=folder / "w", options=PlanOptions(memory_gib=0.01, batch=2, dims=2)
    )
    store = prepare(out, manifest, plan)
    cases = manifest.of("train")
    bare = [c.id for c in cases if c.site == "site2"]
    bare += [c.id for c in cases if c.site == "site3"][1:]
    return Sites(out, plan, Cases(store, cases, plan.classes, hidden=bare))


@pytest.fixture
def drawn(sites) -> Callable[..., Any]:
    """Draws slot k of a method."""
    from seguro.core.seeds import generator

    def draw(method: Adapt, slot: int, seed: int = 0) -> Any:
        return method.draw(sites.cases, slot, generator(seed, "draw", slot))

    return draw
