"""Shared by all tests: one thread, a phantom data set, and where the real data lie if they are here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real data sets are not on this machine")
    return REAL_DATA


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory) -> Path:
    """An MSD folder: six labelled, two unlabelled, two test volumes, each about 12 x 20 x 24; two classes."""
    from seguro.data import phantom

    return phantom.write_msd(
        tmp_path_factory.mktemp("data") / "phantom", n_labelled=6, n_unlabelled=2, n_test=2, seed=3
    )


@pytest.fixture(scope="session")
def flat_folder(tmp_path_factory) -> Path:
    """Six labelled pictures."""
    from seguro.data import phantom

    return phantom.write_png(tmp_path_factory.mktemp("data") / "flat", n_labelled=6, seed=3)


@pytest.fixture(scope="session")
def few_shot_run(phantom_folder, tmp_path_factory) -> Path:
    """A run of the few-shot method on the phantom set, untrained: enough for everything but scores."""
    folder = tmp_path_factory.mktemp("few") / "phantom.seguro"
    return untrained_run(phantom_folder, folder, "alpnet", memory_gib=0.01, batch=2, dims=2)


@pytest.fixture(scope="session")
def untrained() -> Callable[..., Path]:
    """`untrained_run`, for tests."""
    return untrained_run


def untrained_run(data: Path, folder: Path, name: str = "supervised", **planned: Any) -> Path:
    """Plan `data` in the workspace `folder` and return a run of the tiny method `name` there, untrained."""
    import torch

    from seguro import api
    from seguro.data.planner import PlanOptions
    from seguro.engine.model import save_model
    from seguro.methods import get
    from seguro.networks import build

    _, _, plan = api.plan(data, out=folder, options=PlanOptions(**planned))
    kind = get(name)
    config = kind.Config.model_validate(kind.presets["tiny"])
    torch.manual_seed(0)
    method = kind(config, plan, build)
    run = folder / "runs" / "untrained"
    save_model(
        run / "model",
        method=name,
        config=config.model_dump(mode="json"),
        plan=plan,
        predictor=method.predictor(method.modules),
    )
    (run / "config.yaml").write_text("fold: '0'\n")
    return run


@pytest.fixture(scope="session")
def clip_weights() -> dict[str, Any]:
    """Made weights of the image half of CLIP: width 128, two blocks, 3 x 3 patches, 10 numbers."""
    import torch

    width, depth = 128, 2
    rng = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Any:
        return torch.randn(*shape, generator=rng) / shape[-1] ** 0.5

    out: dict[str, Any] = {
        "conv1.weight": some(width, 3, 4, 4),
        "class_embedding": some(width),
        "positional_embedding": some(9 + 1, width),
        "proj": some(width, 10),
    }
    for name in (
        "ln_pre",
        "ln_post",
        *(f"transformer.resblocks.{i}.ln_{k}" for i in range(depth) for k in (1, 2)),
    ):
        out |= {f"{name}.weight": 1 + some(width), f"{name}.bias": some(width)}
    for i in range(depth):
        at = f"transformer.resblocks.{i}"
        out |= {
            f"{at}.attn.in_proj_weight": some(3 * width, width),
            f"{at}.attn.in_proj_bias": some(3 * width),
        }
        for name, (cout, cin) in {
            "attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)
        }.items():  # fmt: skip
            out |= {f"{at}.{name}.weight": some(cout, cin), f"{at}.{name}.bias": some(cout)}
    return out
