"""Any network of MONAI by name: built from the plan, trained a step, and wrong names and options named."""

from __future__ import annotations

import pytest
import torch

from seguro import api
from seguro.core.errors import ConfigError
from seguro.data.planner import PlanOptions
from seguro.networks import build

pytest.importorskip("monai")

NETWORKS = {
    "BasicUNet": {"features": (4, 4, 8, 8, 8, 4)},
    "SegResNet": {"init_filters": 8},
    "DynUNet": {"filters": (4, 8, 16)},
    "UNet": {"channels": (4, 8, 16)},
    "AttentionUnet": {"channels": (4, 8, 16)},
    "VNet": {},
    "UNETR": {"img_size": (16, 32, 32), "hidden_size": 24, "mlp_dim": 48, "num_heads": 4, "feature_size": 4},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    from seguro.data import phantom

    data = phantom.write_msd(
        tmp_path_factory.mktemp("data") / "d", n_labelled=2, n_test=0, shape=(16, 32, 32), jitter=0
    )
    _, _, made = api.plan(data, out=tmp_path_factory.mktemp("w"), options=PlanOptions(memory_gib=0.2))
    strides = made.strides[:2]
    return made.model_copy(update={"strides": strides, "kernels": made.kernels[:3], "patch": (16, 32, 32)})


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "VNet")) for n in NETWORKS]
)
def test_it_is_built_from_the_plan_and_has_gradients(plan, name):
    options = dict(NETWORKS[name])
    network = build(f"monai:{name}", in_channels=1, classes=3, plan=plan, **options)
    x = torch.randn(2, 1, 16, 32, 32, requires_grad=True)
    logits = network(x)
    assert logits.shape == (2, 3, 16, 32, 32)
    logits.square().mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    moved = [p.grad is not None for p in network.parameters() if p.requires_grad]
    assert sum(moved) > 0.7 * len(moved)  # UNETR carries some that it does not use


def test_a_run_trains_and_predicts_with_a_monai_network(phantom_folder, tmp_path):
    import seguro

    options = api.TrainOptions(
        preset="tiny", network="monai:SegResNet", settings={"network_options": {"init_filters": 8}},
        updates=2, batch=2, validations=1, threads=1,
    )  # fmt: skip
    run = api.train(phantom_folder, options, out=tmp_path, plan_options=PlanOptions(memory_gib=0.02))
    assert run.name == "supervised-monai-SegResNet-fold0"
    image = sorted((phantom_folder / "imagesTs").iterdir())[0]
    label = seguro.load(run).predict(image)
    assert label.array.shape == label.grid.shape


def test_a_network_of_larger_stride_than_the_plan_is_padded_and_cut_back(plan):
    small = plan.model_copy(update={"patch": (12, 20, 28)})
    network = build("monai:SegResNet", in_channels=1, classes=3, plan=small, init_filters=8).eval()
    x = torch.randn(1, 1, 12, 20, 28)
    with torch.no_grad():
        assert network(x).shape == (1, 3, 12, 20, 28)
        exact = torch.randn(1, 1, 16, 24, 32)  # multiples of its stride of 8 are left alone
        assert torch.equal(network(exact), network.network(exact))


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("Nothing", {}, "SegResNet"),
        ("SegResNet", {"nonsense": 1}, "init_filters"),
        ("UNETR", {"hidden_size": 25, "num_heads": 4}, "network_options"),
    ],
)
def test_wrong_names_and_options_are_named(plan, name, options, word):
    with pytest.raises(ConfigError, match=word):
        build(f"monai:{name}", in_channels=1, classes=3, plan=plan, **options)
