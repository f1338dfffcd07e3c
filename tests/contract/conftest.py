"""What contract tests share: a prepared workspace per dimension, and a method made from its tiny preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from seguro import api
from seguro.core.seeds import derive, generator
from seguro.core.types import Manifest
from seguro.data.plan import Plan
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases, prepare
from seguro.data.superpixels import compute
from seguro.engine.limits import Limits
from seguro.engine.loop import Loop
from seguro.engine.runtime import Runtime
from seguro.inference.validate import dice_validation
from seguro.methods import TABLE, get
from seguro.methods.contract import Bound, Predictor, Support
from seguro.networks import build

SLOW = {("rog", 3), ("cps", 3), ("unimatch", 3), ("mean-teacher", 3), ("bcp", 3)}
"""(method, dimensions) of the slow tests: the lattice in 3-D takes seconds a test, and ROAM's peers do there
what they do in 2-D."""


@dataclass(frozen=True)
class Setting:
    """A prepared data set, ready for any method."""

    workspace: Path
    manifest: Manifest
    plan: Plan
    store: Path

    def cases(self, needs: Any) -> Cases:
        """What a method with `needs` is given to train on; where it mixes both kinds, both are there."""
        train, _ = api.cases_of_fold(self.manifest, self.plan, "0", needs.labels)
        hidden = [c.id for c in train[::2]] if all(c.label for c in train) and needs.labels == "some" else []
        cases = Cases(
            self.store,
            train,
            self.plan.classes,
            hide_labels=needs.labels == "none",
            hidden=hidden,
            regions=needs.regions,
        )
        if needs.regions:
            compute(cases, needs.regions, axis=self.plan.slice_axis)
        return cases

    def method(self, name: str, seed: int = 0) -> Any:
        """The method `name` from its tiny preset, initialized under `seed`."""
        kind = get(name)
        torch.manual_seed(derive(seed, "init"))
        return kind(kind.Config.model_validate(kind.presets["tiny"]), self.plan, build)

    def loop(
        self, name: str, folder: Path, *, updates: int, seed: int = 0, batch: int = 1, **more: Any
    ) -> Loop:
        """A loop over the tiny method in `folder`, of `batch` times its smallest batch of two or more."""
        method = self.method(name, seed)
        batch *= -(-2 // method.needs.group) * method.needs.group
        limits = Limits(updates=updates, validations=2)
        runtime = Runtime("cpu", more.pop("precision", "32"))
        return Loop(method, self.cases(method.needs), folder, runtime, limits, batch, seed, **more)


def setting(data: Path, out: Path) -> Setting:
    """Check, plan and prepare `data` into `out`."""
    workspace, manifest, plan = api.plan(data, out=out, options=PlanOptions(memory_gib=0.01, batch=2))
    return Setting(workspace, manifest, plan, prepare(workspace, manifest, plan))


@pytest.fixture(scope="session")
def three_d(phantom_folder, tmp_path_factory) -> Setting:
    return setting(phantom_folder, tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="session")
def two_d(flat_folder, tmp_path_factory) -> Setting:
    return setting(flat_folder, tmp_path_factory.mktemp("two"))


def monitored(setting: Setting, name: str) -> Any:
    """A validation for methods that segment and are selected by a score, else None."""
    needs = get(name).needs
    if not (needs.segments and needs.monitor):
        return None
    _, validation = api.cases_of_fold(setting.manifest, setting.plan, "0", needs.labels)
    return dice_validation(Cases(setting.store, validation, setting.plan.classes), Runtime("cpu"))


def supported(predictor: Predictor, name: str, plan: Plan) -> Predictor:
    """The predictor of method `name`, with a support of all classes of the plan where it needs one."""
    if not get(name).needs.support:
        return predictor
    label = torch.arange(24 * 20).reshape(1, 24, 20) // 20 * plan.classes.n // 24  # a stripe per class
    noise = generator(0, "support").normal(size=(len(plan.channels), 1, 24, 20))
    image = torch.from_numpy(noise).float() + label
    return Bound(predictor, Support((image,), (label.to(torch.uint8),), plan.classes))


def rows() -> list[Any]:
    """Every method in every dimension it works in; SLOW ones among the slow tests."""
    return [
        pytest.param((name, d), id=f"{name}-{d}d", marks=[pytest.mark.slow] * ((name, d) in SLOW))
        for name in TABLE
        for d in get(name).needs.dims
    ]


@pytest.fixture
def validation():
    """`monitored`, for tests."""
    return monitored


@pytest.fixture
def with_support():
    """`supported`, for tests."""
    return supported


@pytest.fixture(params=rows())
def row(request, three_d, two_d) -> tuple[str, Setting]:
    """(method name, setting), over every method and dimension."""
    name, dims = request.param
    return name, three_d if dims == 3 else two_d
