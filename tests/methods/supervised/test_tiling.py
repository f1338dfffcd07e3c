"""How the supervised baseline predicts: in windows of the plan's patch, or in one pass."""

from __future__ import annotations

import pytest
import torch

from seguro.core.errors import ConfigError
from seguro.core.types import Classes
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.inference.tiling import planned_slabs
from seguro.methods.contract import Whole, Windows
from seguro.methods.supervised.config import SupervisedConfig
from seguro.methods.supervised.method import Supervised
from seguro.networks import build


def plan_of(dims: int = 3) -> Plan:
    spread = Spread(low=1, median=1, high=1)
    return Plan(
        name="toy", dims=dims, spacing=(1, 1, 1), unit="mm", channels=(Intensity(name="c", scheme="zscore"),),
        classes=Classes(names=("background", "a"), values=((0,), (1,))), patch=(8,) * dims,
        strides=((2,) * dims,) * 2, kernels=((3,) * dims,) * 3, batch=1, folds=(),
        fingerprint=Fingerprint(
            n_cases=1, n_labelled=1, shape=(8, 8, 8), spacing=(spread,) * 3, extent=(spread,) * 3,
            intensity=({},), volume_ml={}, present={},
        ),
    )  # fmt: skip


def predictor_of(**config):
    torch.manual_seed(0)
    method = Supervised(SupervisedConfig(network_options={"width": 4}, **config), plan_of(), build)
    return method.predictor(method.modules).eval()


@pytest.mark.parametrize("network", ["unet", "resunet"])
def test_whole_is_one_pass_over_everything(network):
    """A voxel that no window holds together with another one depends on it all the same."""
    windows, whole = predictor_of(network=network), predictor_of(network=network, tiling="whole")
    assert isinstance(windows.tiling, Windows) and whole.tiling == Whole((4, 4, 4))
    x = torch.randn(1, 12, 16, 20, generator=torch.Generator().manual_seed(1))
    y = x.clone()
    y[..., 0] += 5
    calls = []
    whole.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        same, other = (torch.cat([s for *_, s in planned_slabs(p, x)], dim=1) for p in (whole, windows))
        far = [torch.cat([s for *_, s in planned_slabs(p, y)], dim=1)[..., -1] for p in (whole, windows)]
        assert len(calls) == 2
        torch.testing.assert_close(same, whole.network(x[None])[0])
    assert not torch.equal(far[0], same[..., -1]) and torch.equal(far[1], other[..., -1])


def test_any_size_is_padded_and_cut_again():
    x = torch.randn(1, 7, 9, 10, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        [(start, stop, logits)] = planned_slabs(predictor_of(tiling="whole"), x)
    assert (start, stop) == (0, 7) and logits.shape == (2, 7, 9, 10)


def test_slices_have_no_whole_volume():
    with pytest.raises(ConfigError, match="needs a 3-D plan"):
        Supervised(SupervisedConfig(tiling="whole"), plan_of(2), build)
