"""Whole volumes: exact padding, and a tail by planes that equals the tail at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seguro.core.errors import ConfigError, DataError
from seguro.core.memory import GIB, Memory
from seguro.core.types import Classes
from seguro.inference import whole
from seguro.inference.refine import Refined
from seguro.inference.tiling import planned_slabs, slab_axis
from seguro.inference.whole import refuse_low_resolution, slabs
from seguro.methods.contract import Predictor, Support, Whole, Windows
from seguro.methods.pfseg.config import PfsegConfig
from seguro.methods.pfseg.predictor import WholePredictor
from seguro.networks.superres import SuperRes, Tail
from seguro.networks.tail import DEPTH, by_planes

CLASSES = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
ROUNDING = 1e-5


class Small(Predictor):
    """PFSeg's network as predictor, with its tail in the open."""

    def __init__(self, scale: tuple[int, int, int] = (2, 2, 2)) -> None:
        super().__init__()
        torch.manual_seed(0)
        pools = ((1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1))
        self.network = SuperRes(in_channels=1, classes=3, width=4, scale=scale, pools=pools)
        self.classes = CLASSES
        self.tiling = Whole(self.network.multiple)

    @property
    def tail(self) -> Tail:
        return self.network.segment.tail

    def trunk(self, x: Tensor) -> Tensor:
        return self.network.trunk(x)

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        return self.network(x)


def volume(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(8, 32, 32), (7, 19, 33), (37, 16, 5)], ids=str)
@pytest.mark.parametrize("scale", [(2, 2, 2), (1, 2, 2)], ids=str)
@torch.inference_mode()
def test_by_planes_equals_at_once(assemble, shape, scale):
    predictor, x = Small(scale).eval(), volume(shape)
    once = assemble(slabs(predictor, x, predictor.tiling), 0, shape[0])
    parts = list(slabs(predictor, x, predictor.tiling, tail_limit=0))
    assert max(stop - start for start, stop, _ in parts) <= DEPTH
    assert len(parts) == -(-shape[0] // DEPTH)
    assert torch.allclose(assemble(parts, 0, shape[0]), once, rtol=0, atol=ROUNDING)
    across = assemble(slabs(predictor, x, predictor.tiling, axis=2, tail_limit=0), 2, shape[2])
    assert torch.allclose(across, once, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("axis", [0, 2])
@torch.inference_mode()
def test_flips_are_run_by_planes_too(assemble, monkeypatch, axis):
    predictor, x = Small().eval(), volume((37, 19, 16))
    once = assemble(slabs(predictor, x, predictor.tiling, axis=axis, flips=(0, 2)), axis, x.shape[1 + axis])
    depths = []
    monkeypatch.setattr(
        whole, "by_planes", lambda tail, f: (depths.append(b.shape[2]) or b for b in by_planes(tail, f))
    )
    parts = slabs(predictor, x, predictor.tiling, axis=axis, flips=(0, 2), tail_limit=0)
    planes = assemble(parts, axis, x.shape[1 + axis])
    assert depths == [16, 16, 8] * 4  # 37 planes padded to 40, as they are and with three flips
    assert torch.allclose(planes.softmax(0), once.softmax(0), rtol=0, atol=ROUNDING)


def test_with_gradients_the_volume_is_one_differentiable_pass(assemble):
    predictor, x = Small().eval(), volume((8, 32, 32)).requires_grad_()
    out = assemble(slabs(predictor, x, predictor.tiling, tail_limit=0), 0, 8)
    out[1, 0, 0, 0].backward()
    assert float(x.grad[0, -1, -1, -1].abs()) > 0  # the whole volume is in view
    with torch.inference_mode():
        planes = assemble(slabs(predictor, x.detach(), predictor.tiling, tail_limit=0), 0, 8)
    assert torch.allclose(out.detach(), planes, rtol=0, atol=ROUNDING)


@torch.inference_mode()
def test_autocast_is_on_for_the_network_and_off_for_the_caller(assemble):
    predictor, x = Small().eval(), volume((8, 32, 32))

    def half():
        return torch.autocast("cpu", torch.bfloat16)

    once = assemble(planned_slabs(predictor, x, autocast=half), 0, 8)
    parts = []
    for part in slabs(predictor, x, predictor.tiling, autocast=half, tail_limit=0):
        assert not torch.is_autocast_enabled("cpu")
        parts.append(part)
    plain = assemble(slabs(predictor, x, predictor.tiling), 0, 8)
    planes = assemble(parts, 0, 8)
    assert not torch.allclose(planes, plain, atol=ROUNDING)
    assert torch.allclose(planes, once, atol=0.25)  # eight bits of mantissa through two norms


@pytest.mark.parametrize("by_planes", [False, True])
@torch.inference_mode()
def test_a_network_that_changes_the_size_is_refused(by_planes):
    predictor = Small().eval()
    predictor.network.segment.tail.head = torch.nn.Conv3d(2, 5, 1)
    with pytest.raises(ConfigError, match="must keep"):
        list(slabs(predictor, volume((8, 32, 32)), predictor.tiling, tail_limit=0 if by_planes else 1 << 40))


def test_whole_volumes_are_cut_along_the_axis_of_the_planes():
    assert slab_axis([Whole((4, 4, 4))], (10, 20, 30)) == 0
    assert slab_axis([Whole((4, 4, 4)), Windows((5, 5, 5))], (10, 20, 30)) == 2


@pytest.mark.parametrize(
    ("spacing", "refused"),
    [
        ((2.0, 1.0, 1.0), ""),
        ((2.0, 1.9, 1.0), ""),
        ((2.0, 1.0, 2.0), ""),
        ((4.0, 2.0, 2.0), "2 x 2 mm along y, x"),
        ((2.0, 2.0, 3.0), "2 x 3 mm along y, x"),
        ((9.0, 1.0, 1.0), ""),
    ],
    ids=str,
)
def test_an_image_of_low_resolution_is_refused(spacing, refused, fake):
    one = SimpleNamespace(high=1.0)
    seen = SimpleNamespace(spacing=(SimpleNamespace(high=2.0), one, one))
    predictor = Small((1, 2, 2))
    plan = SimpleNamespace(spacing=(2.0, 1.0, 1.0), unit="mm", fingerprint=seen)
    if not refused:
        refuse_low_resolution(predictor, spacing, plan)
        return
    second = fake(Windows((4, 4, 4)), lambda x: x)
    for model in (predictor, Refined(predictor, second, blocks=1)):
        with pytest.raises(DataError, match=f"{refused}.*full-resolution image is required"):
            refuse_low_resolution(model, spacing, plan)
    refuse_low_resolution(second, spacing, plan)


def test_thick_slices_are_no_low_resolution():
    """What lies in them is as fine as ever."""
    seen = SimpleNamespace(spacing=(SimpleNamespace(high=1.0),) * 3)
    plan = SimpleNamespace(spacing=(1.0, 1.0, 1.0), unit="mm", fingerprint=seen)
    refuse_low_resolution(Small(), (5.0, 0.8, 0.8), plan)
    with pytest.raises(DataError, match="5 x 2 x 2 mm along z, y, x"):
        refuse_low_resolution(Small(), (5.0, 2.0, 2.0), plan)


@torch.inference_mode()
def test_a_large_tail_is_run_by_planes_below_a_second_model_too(fake, monkeypatch):
    second = fake(Windows((4, 4, 4)), lambda x: x.expand(-1, 3, -1, -1, -1))
    model, x = Refined(Small().eval(), second, blocks=2), volume((19, 31, 32))[None]
    once = model(x)
    depths = []
    monkeypatch.setattr(whole, "tail_bytes", lambda tail, features: whole.TAIL_BYTES + 1)
    monkeypatch.setattr(
        whole, "by_planes", lambda tail, f: (depths.append(b.shape[2]) or b for b in by_planes(tail, f))
    )
    assert torch.allclose(model(x), once, rtol=0, atol=ROUNDING)
    assert len(depths) > 1


@torch.inference_mode()
def test_a_volume_that_the_free_memory_does_not_hold_is_refused_before_it_is_tried(monkeypatch):
    network = SuperRes(in_channels=1, classes=3, width=4)
    predictor, x = WholePredictor(network, CLASSES, PfsegConfig()).eval(), volume((32, 32, 64))
    need = predictor.forward_bytes(x.shape)
    monkeypatch.setattr(whole, "main_memory", lambda: Memory(2 * need, need))
    assert list(slabs(predictor, x, predictor.tiling))
    monkeypatch.setattr(whole, "main_memory", lambda: Memory(2 * need, need - 1))
    with pytest.raises(DataError, match=r"32 x 32 x 64 voxels .* are free"):
        list(slabs(predictor, x, predictor.tiling))
    monkeypatch.setattr(whole, "main_memory", lambda: None)  # a system that does not say
    assert list(slabs(predictor, x, predictor.tiling))


def test_what_a_large_volume_takes_is_what_was_measured():
    """benchmarks/large_volume.json: 13.6 GiB at width 32, image and label included."""
    with torch.device("meta"):
        predictor = WholePredictor(SuperRes(in_channels=1, classes=3, width=32), CLASSES, PfsegConfig())
    assert predictor.forward_bytes((1, 400, 512, 512)) / GIB == pytest.approx(13.6, rel=0.1)
