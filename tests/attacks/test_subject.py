"""What is attacked of a case: the centred patch, and the volume through its windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from seguro.attacks.pgd import PGD
from seguro.attacks.subject import Subject, patch_subject, volume_subject
from seguro.attacks.threat import Epsilon, Threat, range_box
from seguro.attacks.victim import Victim
from seguro.core.types import IGNORE, Classes
from seguro.inference.tiling import planned_slabs
from seguro.methods.contract import Predictor, Slices, Windows

pytestmark = pytest.mark.xdist_group("toy nets")  # trained once, by one worker

CLASSES = Classes(names=("b", "x"), values=((0,), (1,)))


class Blur(Predictor):
    """A fixed small network with a receptive field beyond its voxel."""

    def __init__(self, tiling):
        super().__init__()
        self.classes, self.tiling = CLASSES, tiling
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv3d(4, 2, 3, padding=1))

    def forward(self, x, support=None):
        return self.net(x)


def made(shape, seed=0):
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(n // 3, 2 * n // 3) for n in shape)] = 1
    return (rng.normal(size=(1, *shape)) + label).astype(np.float32), label, np.ones(1, np.float32)


def own(subject: Subject, fraction: float) -> Threat:
    low, high = range_box(subject.x)
    return Threat((high - low) * fraction, low, high)


class Trained(Predictor):
    """The trained toy network in windows of its own size."""

    def __init__(self, nets, overlap=0.5):
        super().__init__()
        self.classes, self.tiling = nets.classes, Windows((12, 12, 12), overlap)
        self.net = nets.net

    def forward(self, x, support=None):
        return self.net(x)


def volume(nets, *index):
    """Some of the toy's images side by side, as one volume."""
    parts = [(nets.x[i].numpy(), nets.label[i].numpy()) for i in index]
    image, label = (np.concatenate([p[k] for p in parts], -1) for k in (0, 1))
    return image, label, np.ones(1, np.float32)


def attacked(attack, subject: Subject):
    """Return (clean score, what the attack found) at 8/255."""
    victim = Victim(subject.logits, subject.truth)
    clean = float(victim.score(victim.logits(subject.x))[0])
    return clean, attack(victim, subject.x, own(subject, 8 / 255), [0])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_volume_of_one_patch_is_attacked_as_the_patch(solid2, index):
    """E4."""
    predictor, data = Trained(solid2), volume(solid2, index)
    one, two = patch_subject(predictor, *data), volume_subject(predictor, *data)
    assert torch.equal(one.x, two.x) and torch.allclose(one.logits(one.x), two.logits(two.x), atol=1e-5)
    (clean, patch), (_, whole) = (attacked(PGD("dice", steps=4), s) for s in (one, two))
    assert clean - float(patch.score[0]) > 0.1  # there is something to agree on
    assert torch.allclose(patch.score, whole.score, atol=0.01)


def test_a_volume_is_seen_as_prediction_sees_it_and_its_gradient_is_exact():
    predictor = Blur(Windows((8, 8, 8))).double()
    image, label, annotated = made((8, 14, 10))
    subject = volume_subject(predictor, image, label, annotated)
    with torch.no_grad():
        slabs = [v for _, _, v in planned_slabs(predictor.float(), image)]
    assert torch.allclose(subject.logits(subject.x)[0], torch.cat(slabs, 1), atol=1e-5)
    x = subject.x.clone().requires_grad_(True)
    weight = torch.randn(1, 2, 8, 14, 10, generator=torch.Generator().manual_seed(1))
    (g,) = torch.autograd.grad((subject.logits(x) * weight).sum(), x)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    near = [(subject.logits(subject.x + s * 1e-2 * step) * weight).sum().item() for s in (1, -1)]
    assert (near[0] - near[1]) / 2e-2 == pytest.approx(float((g * step).sum()), rel=1e-2)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_sharing_one_perturbation_over_windows_is_as_strong_as_stitched_patches(solid2, overlap):
    """E4."""
    predictor = Trained(solid2, overlap)
    image, label, annotated = volume(solid2, 0, 1)
    whole = volume_subject(predictor, image, label, annotated)
    attack, threat = PGD("dice", steps=10), own(whole, 8 / 255)
    clean, shared = attacked(attack, whole)
    parts = []
    for start in (0, 12):
        piece = patch_subject(
            predictor, image[..., start : start + 12], label[..., start : start + 12], annotated
        )
        inner = Threat(threat.eps, *range_box(piece.x))
        parts.append(attack(Victim(piece.logits, piece.truth), piece.x, inner, [0]).x)
    victim = Victim(whole.logits, whole.truth)
    stitched = victim.score(victim.logits(threat.project(torch.cat(parts, -1), whole.x)))
    assert clean - float(stitched[0]) > 0.1
    assert float(shared.score[0]) <= float(stitched[0]) + 0.02


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_wise_model_is_attacked_on_the_slice_through_the_foreground(axis):
    predictor = Blur(Slices(axis, (8, 8)))
    image, label, annotated = made((12, 12, 12))
    subject = patch_subject(predictor, image, label, annotated)
    expected = [8, 8, 8]
    expected[axis] = 1
    assert list(subject.x.shape[2:]) == expected and subject.truth.label.any()
    assert subject.logits(subject.x).shape == (1, 2, *expected)
    whole = volume_subject(predictor, image, label, annotated)
    assert whole.logits(whole.x).shape == (1, 2, 12, 12, 12)


def test_the_patch_follows_the_foreground_only_when_asked():
    predictor = Blur(Windows((4, 4, 4)))
    image, label, annotated = made((12, 12, 12))
    label[:] = 0
    label[9:12, 0:3, 9:12] = 1
    patch = patch_subject(predictor, image, label, annotated)
    middle = patch_subject(predictor, image, label, annotated, center="middle")
    assert int(patch.truth.label.sum()) == 27 and int(middle.truth.label.sum()) == 0


def test_a_volume_smaller_than_the_patch_is_padded_with_voxels_that_do_not_count():
    predictor = Blur(Windows((8, 8, 8)))
    subject = patch_subject(predictor, *made((5, 8, 6)))
    assert subject.x.shape[2:] == (8, 8, 8)
    label = subject.truth.label[0]
    assert (
        (label[5:] == IGNORE).all()
        and (label[:, :, 6:] == IGNORE).all()
        and (label[:5, :, :6] != IGNORE).all()
    )
    assert Epsilon(0.1, "range").number == 25.5
