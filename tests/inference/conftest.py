"""Predictors whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seguro.core.types import Classes
from seguro.methods.contract import Predictor, Support, Tiling

TWO = Classes(names=("background", "left", "right"), values=((0,), (1,), (2,)))
PAIRED = TWO.model_copy(update={"pairs": (("left", "right"),)})


class Fake(Predictor):
    """Answers with `answer(x)`, (N, C, Z, Y, X) -> (N, n, Z, Y, X), and remembers the sizes it saw."""

    def __init__(self, tiling: Tiling, answer: Callable[[Tensor], Tensor], classes: Classes = TWO) -> None:
        super().__init__()
        self.tiling = tiling
        self.classes = classes
        self.answer = answer
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        self.seen.append(tuple(x.shape))
        return self.answer(x)


def assemble(slabs, axis: int, size: int) -> Tensor:
    """Join slabs along `axis` after checking that they touch and cover `size`."""
    parts, at = [], 0
    for start, stop, values in slabs:
        assert (start, values.shape[axis + 1]) == (at, stop - start)
        parts.append(values)
        at = stop
    assert at == size
    return torch.cat(parts, dim=axis + 1)


@pytest.fixture
def convolution() -> nn.Module:
    """A random 3-D convolution of three classes that keeps the size: depends on where a window ends."""
    torch.manual_seed(0)
    return nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)


@pytest.fixture(name="fake")
def _fake() -> type[Fake]:
    return Fake


@pytest.fixture(name="assemble")
def _assemble():
    return assemble


@pytest.fixture
def paired() -> Classes:
    """Three exclusive classes of which two are left and right."""
    return PAIRED


def make_model(folder: Path, data: Path, out: Path, *, seed: int = 0, **options: Any) -> Path:
    """Plan `data` and save an untrained tiny model in `folder`: enough for everything but scores."""
    from seguro import api
    from seguro.data.planner import PlanOptions
    from seguro.engine.model import save_model
    from seguro.methods import get
    from seguro.networks import build

    _, _, plan = api.plan(data, out=out, options=PlanOptions(memory_gib=0.01, batch=2, **options))
    kind = get("supervised")
    config = kind.Config.model_validate(kind.presets["tiny"])
    torch.manual_seed(seed)
    method = kind(config, plan, build)
    save_model(
        folder,
        method="supervised",
        config=config.model_dump(mode="json"),
        plan=plan,
        predictor=method.predictor(method.modules),
    )
    return folder


@pytest.fixture(scope="session")
def workspace(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned workspace of the phantom set with two models."""
    folder = tmp_path_factory.mktemp("workspace") / "phantom.seguro"
    for seed in (0, 1):
        run = folder / "runs" / f"run{seed}"
        make_model(run / "model", phantom_folder, folder, seed=seed)
        (run / "config.yaml").write_text(f"fold: '{seed}'\n")
    return folder


@pytest.fixture(scope="session")
def model(workspace: Path) -> Path:
    return workspace / "runs" / "run0"


@pytest.fixture(scope="session")
def second(workspace: Path) -> Path:
    return workspace / "runs" / "run1"


@pytest.fixture(name="make_model", scope="session")
def _make_model():
    return make_model
