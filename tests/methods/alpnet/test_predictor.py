"""The few-shot predictor: supports of every form, order and number, sizes, priors, errors."""

from __future__ import annotations

import pytest
import torch

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import IGNORE, Classes
from seguro.methods.alpnet.config import PRESETS, AlpnetConfig
from seguro.methods.alpnet.predictor import FewShot, nearest, pooling
from seguro.methods.alpnet.raster import raster
from seguro.methods.contract import Bound, Support
from seguro.networks.encoders import Encoder, build_encoder

CLOSE = 1e-3
"""Of logits up to 20: features of equal slices in batches of other sizes round otherwise."""
TWO = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
SWAPPED = Classes(names=("background", "b", "a"), values=((0,), (1,), (2,)))


@pytest.fixture
def predictor(stacks, config):
    def made(**changes) -> FewShot:
        chosen = AlpnetConfig.model_validate({**PRESETS["tiny"], **changes})
        torch.manual_seed(0)
        encoder = build_encoder("residual", in_channels=1, width=chosen.width, features=chosen.features)
        return FewShot(encoder, stacks[2], chosen).eval().requires_grad_(False)

    return made


def scan(n: int = 9, seed: int = 0, size: tuple[int, int] = (40, 48)) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (1, n, *size) whose slices differ, and a label of two classes on some of them."""
    g = torch.Generator().manual_seed(seed)
    label = torch.zeros(n, *size, dtype=torch.uint8)
    label[n // 3 : 2 * n // 3, 8:24, 8:24] = 1
    label[n // 2 : n // 2 + 2, 28:36, 30:40] = 2
    return torch.randn(1, n, *size, generator=g) * 0.3 + label + torch.linspace(0, 1, n)[:, None, None], label


QUERY = scan(7, seed=5)[0][None]


@pytest.mark.parametrize("prior", ["aligned", "fraction", "none"])
def test_copies_of_a_shot_equal_one_and_order_does_not_matter(predictor, prior):
    model = predictor(prior=prior)
    shots = [scan(seed=s) for s in range(3)]

    def by(*chosen: int) -> torch.Tensor:
        images, labels = zip(*(shots[i] for i in chosen), strict=True)
        return model(QUERY, Support(images, labels, TWO))

    torch.testing.assert_close(by(0), by(0, 0, 0), rtol=0, atol=CLOSE)
    torch.testing.assert_close(by(0, 1, 2), by(2, 0, 1), rtol=0, atol=CLOSE)
    assert not torch.allclose(by(0), by(1), atol=0.1)


class Patches(Encoder):
    """A stand-in for a transformer's patch embedding: one feature cell per square of `stride` pixels."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.features = stride, 8
        self.embed = torch.nn.Conv2d(1, 8, stride, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x)


@pytest.mark.parametrize("stride", [4, 8, 14, 16])
@pytest.mark.parametrize("size", [(40, 48), (37, 53)], ids=str)
def test_encoders_of_any_stride_see_whole_cells(stacks, stride, size):
    torch.manual_seed(0)
    config = AlpnetConfig.model_validate({**PRESETS["tiny"], "size": 64})
    model = FewShot(Patches(stride), stacks[2], config).eval().requires_grad_(False)
    image, label = scan(size=size)
    cells = model.features(image.movedim(1, 0))
    a, b = model.raster.size(size)
    assert (a % stride, b % stride) == (0, 0) and cells.shape[2:] == (a // stride, b // stride)
    other = scan(7, seed=5, size=(29, 61))[0]
    logits = model(other[None], Support((image,), (label,), TWO))
    assert logits.shape == (1, 3, 7, 29, 61) and torch.isfinite(logits).all()


def test_single_slices_may_come_in_any_order(predictor):
    image, label = scan()
    model = predictor(prior="none", nearest=2)
    slices = [3, 4, 5]

    def by(order: list[int]) -> torch.Tensor:
        images = tuple(image[:, z : z + 1] for z in order)
        return model(QUERY, Support(images, tuple(label[z : z + 1] for z in order), TWO))

    torch.testing.assert_close(by(slices), by(slices[::-1]), rtol=0, atol=CLOSE)


def test_classes_in_another_order_permute_the_logits(predictor):
    image, label = scan()
    other = torch.tensor([0, 2, 1], dtype=torch.uint8)[label.long()]
    model = predictor()
    one = model(QUERY, Support((image,), (label,), TWO))
    two = model(QUERY, Support((image,), (other,), SWAPPED))
    torch.testing.assert_close(one[:, [0, 2, 1]], two, rtol=0, atol=CLOSE)


def test_a_class_alone_has_the_logits_it_has_among_others(predictor):
    """All classes in one pass: only the background, which is what nobody claims, knows of the others."""
    image, label = scan()
    model = predictor()
    both = model(QUERY, Support((image,), (label,), TWO))
    alone = Classes(names=("background", "a"), values=((0,), (1,)))
    one = model(QUERY, Support((image,), (torch.where(label == 2, 0, label),), alone))
    torch.testing.assert_close(both[:, 1], one[:, 1], rtol=0, atol=CLOSE)


def test_slices_that_nobody_annotated_are_no_background(predictor):
    image, label = scan()
    model = predictor(prior="none", nearest=0)
    part = torch.full_like(label, IGNORE)
    part[4] = label[4]
    few = model(QUERY, Support((image,), (part,), TWO))
    single = model(QUERY, Support((image[:, 4:5],), (label[4:5],), TWO))
    torch.testing.assert_close(few, single, rtol=0, atol=CLOSE)
    assert not torch.allclose(few, model(QUERY, Support((image,), (label,), TWO)), atol=0.1)


@pytest.mark.parametrize("shape", [(1, 40, 48), (5, 31, 17), (3, 64, 9), (2, 1, 1)])
def test_any_size_of_query_and_support(predictor, shape):
    x = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image, label = scan(5, size=(37, 51))
    logits = predictor(position_weight=0.5)(x, Support((image,), (label,), TWO))
    assert logits.shape == (1, 3, *shape) and logits.isfinite().all()
    logits.sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("label", ["full", "one voxel", "all but one voxel"])
def test_degenerate_supports_give_finite_logits(predictor, label):
    image, mask = scan(3)
    if label == "full":
        mask.fill_(1)
    elif label == "one voxel":
        mask.zero_()[1, 20, 20] = 1
    else:
        mask.fill_(1)[1, 20, 20] = 0
    one = Classes(names=("background", "a"), values=((0,), (1,)))
    for prior in ("aligned", "none"):
        assert predictor(prior=prior)(QUERY, Support((image,), (mask,), one)).isfinite().all()


def test_the_prior_keeps_classes_to_the_heights_that_show_them(predictor):
    image, label = scan(9)
    support = Support((image,), (label,), TWO)
    inside = predictor(prior="fraction", margin=0.0)
    found = inside.presence(image[None], support)[0]
    shown = torch.stack([(label == c).flatten(1).any(1) for c in range(3)]).float()
    torch.testing.assert_close(found[1:], shown[1:])
    assert (found[0] == 1).all()
    plain, kept = predictor(prior="none")(image[None], support), inside(image[None], support)
    absent = shown[1] == 0
    assert (kept[0, 1, absent] < plain[0, 1, absent]).all()
    assert (kept.argmax(1)[0, absent] != 1).float().mean() > (plain.argmax(1)[0, absent] != 1).float().mean()
    wide = predictor(prior="fraction", margin=1.0).presence(image[None], support)[0]
    torch.testing.assert_close(wide, torch.ones_like(wide))


def corrected(z: int, n: int = 20) -> tuple[Support, Support]:
    """A scan of n slices annotated throughout; the same beside another that is annotated in slice z alone."""
    image, label = scan(n)
    other, truth = scan(n, seed=5)
    truth[z, 8:24, 8:24] = 1
    part = torch.full_like(truth, IGNORE)
    part[z] = truth[z]
    return Support((image,), (label,), TWO), Support((image, other), (label, part), TWO)


FAR, NEAR = slice(8, None), slice(2, 5)
"""Of slice 3, by a reach of a twentieth of 20 slices."""


def test_a_corrected_slice_says_nothing_of_slices_far_from_it(predictor):
    """Presence and logits there are as without it; near it the class that it shows is looked for."""
    before, after = corrected(3)
    query = scan(20, seed=5)[0][None]
    model = predictor(prior="fraction", reach=0.05)
    old, new = model.presence(query, before)[0], model.presence(query, after)[0]
    torch.testing.assert_close(new[:, FAR], old[:, FAR], rtol=0, atol=1e-4)
    assert (old[1, NEAR] == 0).all() and new[1, 3] > 0.4
    without, beside = model(query, before)[0], model(query, after)[0]
    torch.testing.assert_close(beside[:, FAR], without[:, FAR], rtol=0, atol=CLOSE)
    assert (beside[:, NEAR] - without[:, NEAR]).abs().amax() > 0.1


@pytest.mark.parametrize("changes", [{"reach": 1.0}, {"nearest": 0}], ids=["reach", "all"])
def test_a_corrected_slice_speaks_as_far_as_it_is_asked_to(predictor, changes):
    before, after = corrected(3)
    query = scan(20, seed=5)[0][None]
    model = predictor(prior="none", **changes)
    assert (model(query, after) - model(query, before))[0, :, FAR].abs().amax() > 0.1


def test_a_scan_of_one_slice_says_nothing_of_heights_beside_another(predictor):
    (support, _), (image, label) = corrected(3), scan(9, seed=2)
    both = Support((*support.images, image[:, 4:5]), (*support.labels, label[4:5]), TWO)
    model = predictor(prior="fraction")
    query = scan(20, seed=5)[0][None]
    torch.testing.assert_close(model.presence(query, both), model.presence(query, support))
    assert not torch.allclose(model(query, both), model(query, support), atol=0.1)  # but how classes look
    alone = Support((image[:, 4:5],), (label[4:5],), TWO)
    assert (model.presence(query, alone) == 1).all()


def test_a_support_is_encoded_once(predictor):
    model, (image, label) = predictor(), scan()
    seen = []
    model.encoder.register_forward_hook(lambda module, x, y: seen.append(len(y)))
    bound = Bound(model, Support((image,), (label,), TWO)).eval()
    first = bound(QUERY)
    assert sum(seen) == len(label) + 7
    seen.clear()
    assert torch.equal(bound(QUERY), first)
    assert sum(seen) == 7
    with torch.inference_mode():
        assert torch.equal(bound(QUERY), first)  # kept apart: what it makes takes no gradients
        bound(QUERY)
    x = QUERY.clone().requires_grad_(True)
    bound(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("what", ["weights", "label", "image"])
def test_a_support_is_encoded_anew_when_anything_changed(predictor, what):
    model, (image, label) = predictor(), scan()
    support = Support((image, image.clone()), (label, label.clone()), TWO)
    before = model(QUERY, support)
    if what == "weights":
        with torch.no_grad():
            next(model.encoder.parameters()).mul_(1.5)
    elif what == "label":
        label[4, :8] = 2
    else:
        image.copy_(image.flip(3))
    after = model(QUERY, support)
    assert not torch.allclose(after, before, atol=1e-3)
    fresh = predictor()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(after, fresh(QUERY, support), rtol=0, atol=CLOSE)


def test_gradients_reach_the_weights_at_every_call(predictor):
    model, (image, label) = predictor().requires_grad_(True), scan()
    support = Support((image,), (label,), TWO)
    for _ in range(2):  # a kept graph would be gone at the second
        model(QUERY, support).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_errors_say_what_to_do(predictor):
    model, (image, label) = predictor(), scan()
    with pytest.raises(ConfigError, match="--support IMAGE --support-label MASK"):
        model(QUERY)
    with pytest.raises(DataError, match="no voxel of 'b'"):
        model(QUERY, Support((image,), (torch.where(label == 2, 0, label),), TWO))
    regions = Classes(names=("a",), values=((1,),), regions=True, paint=(1,))
    with pytest.raises(ConfigError, match="overlapping"):
        model(QUERY, Support((image,), (label,), regions))
    for images, labels in (((), ()), ((image,), (label, label)), ((image,), (label[1:],))):
        with pytest.raises(DataError, match="on the same grid"):
            Support(images, labels, TWO)


def test_a_bound_predictor_is_one_like_any_other(predictor):
    model, (image, label) = predictor(), scan()
    support = Support((image,), (label,), TWO)
    bound = Bound(model, support)
    assert bound.classes == TWO and bound.tiling == model.tiling
    assert torch.equal(bound(QUERY), model(QUERY, support))
    assert set(bound.state_dict()) == {f"predictor.{k}" for k in model.state_dict()}
    other = Support(scan(seed=4)[:1], scan(seed=4)[1:], TWO)
    assert torch.equal(bound(QUERY, other), model(QUERY, other))
    assert bound.to(torch.float64).support.images[0].dtype == torch.float64  # moves with the weights


def test_nearest_keeps_ties_and_all_where_there_are_few():
    distance, index = torch.tensor([[0.0, 1.0, 1.0, 5.0], [3.0, 2.0, 1.0, 0.0]]), torch.tensor([7, 8, 9, 4])
    found = nearest(distance, index, 2)
    assert sorted(found[0].tolist()) == [7, 8, 9] and sorted(found[1].tolist()) == [-1, 4, 9]
    assert nearest(distance, index, 0).tolist() == [[7, 8, 9, 4]] * 2
    assert nearest(distance, index, 4).tolist() == [[7, 8, 9, 4]] * 2


def test_windows_in_millimeters_are_rounded_to_cells(stacks):
    plan = stacks[2]
    seen = raster(plan, 32, 4)
    for window, cells in ((2 * seen.cell, 2), (0.1 * seen.cell, 1), (3.4 * seen.cell, 3)):
        config = AlpnetConfig(window_unit="mm", gate=4 * seen.cell)
        assert (pooling(config, seen, window).window, pooling(config, seen, window).gate) == (cells, 4)


def test_pixels_have_one_size_whatever_the_field_of_view(stacks):
    seen = raster(stacks[2], 32, 4)
    whole, half = seen.size((40, 48)), seen.size((20, 24))
    assert max(whole) == 32 and half == (whole[0] // 2 // 4 * 4, 16)
