"""Samples: fresh from what is stored, aligned, turned in the plane only, shifted without a transposition."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from seguro.core.seeds import generator
from seguro.core.types import IGNORE, Grid
from seguro.data.store import Stored
from seguro.methods.pfseg.config import PfsegConfig
from seguro.methods.pfseg.sample import shifted, whole_volume

SHAPE = (16, 40, 48)
STILL = {"augment": {"p_spatial": 0.0, "mirror": False, "p_noise": 0.0, "p_blur": 0.0, "p_intensity": 0.0}}


def stored(shape=SHAPE) -> Stored:
    """A bright ball off the middle; the label is where it is bright."""
    at = np.meshgrid(*(np.arange(n) - n / 2 for n in shape), indexing="ij")
    distance = np.sqrt((at[0] * 1.5) ** 2 + (at[1] - 3) ** 2 + (at[2] - 6) ** 2)
    image = (1 / (1 + np.exp(distance - 7)))[None].astype(np.float32)
    return Stored(
        "a", image, None, (image[0] > 0.5).astype(np.uint8), np.ones(1, np.float32),
        np.zeros((0, 4), np.int32), Grid(shape, np.eye(4)),
    )  # fmt: skip


def digest(case: Stored) -> str:
    return hashlib.sha256(case.image.tobytes() + case.label.tobytes()).hexdigest()


def test_what_is_stored_is_the_same_after_many_samples_and_they_stay_aligned(plan_of):
    case, plan, config = stored(), plan_of(mirror=(1, 2)), PfsegConfig()
    before, overlaps = digest(case), []
    case.image.setflags(write=False)
    case.label.setflags(write=False)
    for i in range(24):
        sample = whole_volume(case, SHAPE, plan, config, generator(i, "draw"))
        assert sample.image.shape == (1, *SHAPE) and sample.label.shape == SHAPE
        valid = sample.label != IGNORE
        bright, found = (sample.image[0] > 0.5) & valid, sample.label == 1
        overlaps.append((bright & found).sum() / (bright | found).sum())
    assert digest(case) == before
    assert np.mean(overlaps) >= 0.9 and min(overlaps) >= 0.8


def test_the_lesion_does_not_wear_off_over_epochs(plan_of):
    """As the published code's does: every transform there starts from the one before it."""
    case, plan, config = stored(), plan_of(), PfsegConfig(p_shift=0.0)
    sizes = [
        (whole_volume(case, SHAPE, plan, config, generator(i, "draw")).label == 1).sum() for i in range(24)
    ]
    assert np.mean(sizes[12:]) == pytest.approx(case.label.sum(), rel=0.03)


def test_a_still_volume_is_the_stored_one(plan_of):
    case = stored()
    sample = whole_volume(case, SHAPE, plan_of(), PfsegConfig(p_shift=0.0, **STILL), generator(0, "draw"))
    np.testing.assert_array_equal(sample.image, case.image)
    np.testing.assert_array_equal(sample.label, case.label)


def test_a_shift_moves_within_the_slices_and_transposes_nothing(plan_of):
    case, config = stored(), PfsegConfig(p_shift=1.0, **STILL)
    seen = set()
    for i in range(8):
        sample = whole_volume(case, SHAPE, plan_of(), config, generator(i, "draw"))
        before, after = (np.argwhere(k == 1).mean(0) for k in (case.label, sample.label))
        move = before - after
        seen.add(tuple(move.round(6)))
        assert move[0] == 0 and abs(move[1]) <= 5 and abs(move[2]) <= 6  # an eighth of 40 and of 48
        back = np.roll(sample.label, move.round().astype(int), (0, 1, 2))
        assert ((back == 1) == (case.label == 1)).all()
    assert len(seen) > 4


def test_a_shift_is_whole_voxels_below_the_largest():
    config, rng = PfsegConfig(p_shift=1.0), generator(0, "shift")
    moves = np.array([shifted((0.0, 0.0, 0.0), (64, 64, 64), 2, config, rng) for _ in range(400)])
    assert (moves[:, 2] == 0).all() and (moves == moves.round()).all()
    assert moves[:, :2].min() == -8 and moves[:, :2].max() == 7


@pytest.mark.parametrize(("rotate", "tilts"), [("plane", False), ("all", True)])
def test_rotations_stay_in_the_plane_unless_asked(plan_of, rotate, tilts):
    """A pole along z keeps its slices alike only while nothing turns out of the plane."""
    case = stored((24, 24, 24))
    pole = np.zeros((24, 24, 24), np.float32)
    pole[:, 4:9, 4:9] = 1
    case = Stored(**(vars(case) | {"image": pole[None], "label": pole.astype(np.uint8)}))
    augment = {"p_spatial": 1.0, "rotate_deg": 60.0, "scale": (1.0, 1.0), "elastic_vox": 0.0}
    config = PfsegConfig(rotate=rotate, p_shift=0.0, augment=STILL["augment"] | augment)
    sample = whole_volume(case, (24, 24, 24), plan_of(), config, generator(3, "draw"))
    alike = np.allclose(sample.image[0], sample.image[0, :1], atol=1e-5)
    assert alike is not tilts
    assert not np.array_equal(sample.image[0], pole)


@pytest.mark.parametrize("size", [(16, 48, 64), (8, 32, 32)], ids=["larger", "smaller"])
def test_a_case_of_another_size_is_padded_with_its_edge_or_cut(plan_of, size):
    case, config = stored(), PfsegConfig(p_shift=0.0, **STILL)
    sample = whole_volume(case, size, plan_of(), config, generator(0, "draw"))
    valid = sample.label != IGNORE
    assert sample.image.shape == (1, *size)
    assert valid.sum() == np.prod(np.minimum(size, SHAPE))
    if size[1] > SHAPE[1]:
        np.testing.assert_array_equal(sample.image[0][valid], case.image[0].ravel())
        np.testing.assert_array_equal(sample.image[:, :, 0], sample.image[:, :, 4])


def test_low_resolution_is_made_from_the_augmented_image(plan_of, made):
    """What the encoder is given is the mean of eight voxels of the same sample, so both show the same."""
    plan = plan_of(shape=(32, 64, 64), patch=(512, 512, 512))
    method, _ = made(plan)
    sample = whole_volume(stored((32, 64, 64)), method.size, plan, PfsegConfig(), generator(1, "draw"))
    given = []
    hook = method.network.encoder.register_forward_pre_hook(lambda module, x: given.append(x[0]))
    with torch.no_grad(), hook:
        method.predictor(method.modules)(torch.from_numpy(sample.image)[None])
    low, image = given[0][0, 0].numpy(), sample.image[0]
    high = (image - image.min()) / (image.max() - image.min())
    z, y, x = low.shape
    assert (2 * z, 2 * y, 2 * x) == high.shape
    blocks = high.reshape(z, 2, y, 2, x, 2).mean((1, 3, 5))
    np.testing.assert_allclose(low, blocks, atol=1e-5)
    assert np.corrcoef(low.ravel(), high[::2, ::2, ::2].ravel())[0, 1] >= 0.95
