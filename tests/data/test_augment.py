"""Augmentation: what is drawn is applied, identity is identity, labels move with the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seguro.core.seeds import generator
from seguro.core.types import IGNORE, Classes, Grid
from seguro.data import augment
from seguro.data.augment import Augment, Drawn, Spatial
from seguro.data.sampling import centre, crop, patch_size
from seguro.data.store import Stored

LINEAR_ERROR = 1e-4
"""Rounding of float32 sampling positions in a volume of about 30 voxels."""


def case(shape=(12, 16, 20), spacing=(1, 1, 1), labelled=True) -> Stored:
    rng = generator(0, "case")
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    label = (np.arange(np.prod(shape)).reshape(shape) % 3).astype(np.uint8)
    z, y, x = np.nonzero(label)
    where = np.column_stack([label[z, y, x] - 1, z, y, x]).astype(np.int32)
    affine = np.diag([*spacing[::-1], 1.0])
    return Stored(
        "c", image, None, label if labelled else None, np.ones(2, np.float32), where, Grid(shape, affine)
    )


PATCH = (6, 8, 10)
MIDDLE = (5.5, 7.5, 9.5)


def test_the_identity_transform_is_a_crop():
    c = case()
    still = Spatial(np.eye(3), None)
    image, label = augment.patch_of(c, MIDDLE, PATCH, Drawn(spatial=still))
    plain, plain_label = crop(c, MIDDLE, PATCH)
    assert np.abs(image - plain).max() < LINEAR_ERROR
    np.testing.assert_array_equal(label, plain_label)
    np.testing.assert_array_equal(augment.patch_of(c, MIDDLE, PATCH, Drawn())[0], plain)


def test_a_quarter_turn_is_a_quarter_turn():
    c = case(shape=(3, 9, 9))
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float)
    image, label = augment.patch_of(c, (1, 4, 4), (3, 9, 9), Drawn(spatial=Spatial(turn, None)))
    assert np.abs(image - np.rot90(c.image, k=1, axes=(2, 3))).max() < LINEAR_ERROR or (
        np.abs(image - np.rot90(c.image, k=-1, axes=(2, 3))).max() < LINEAR_ERROR
    )
    same = [np.array_equal(label, np.rot90(c.label, k=k, axes=(1, 2))) for k in (1, -1)]
    assert any(same)


def test_outside_the_volume_the_image_repeats_and_the_label_is_ignored():
    c = case()
    far = Spatial(np.eye(3) * 4, None)
    image, label = augment.patch_of(c, MIDDLE, (12, 16, 20), Drawn(spatial=far))
    assert np.isfinite(image).all() and (label == IGNORE).sum() > label.size / 2
    assert set(np.unique(label)) <= {0, 1, 2, IGNORE}


def test_mirroring_twice_is_nothing_and_lateral_labels_are_exchanged():
    c = case()
    image, label = augment.patch_of(c, MIDDLE, PATCH, Drawn(mirror=(2,), lateral=((1, 2),)))
    plain, plain_label = crop(c, MIDDLE, PATCH)
    np.testing.assert_array_equal(image[..., ::-1], plain)
    swapped = np.array([0, 2, 1], np.uint8)[plain_label]
    np.testing.assert_array_equal(label[..., ::-1], swapped)
    pair = Classes(names=("bg", "l", "r"), values=((0,), (1,), (2,)), pairs=(("l", "r"),))
    assert augment.lateral_values(pair) == ((1, 2),)
    many = Augment(p_spatial=0)
    drawn = [
        augment.draw(generator(i), many, spacing=(1, 1, 1), patch=PATCH, mirror=(2,), classes=pair)
        for i in range(20)
    ]
    assert {bool(d.mirror) for d in drawn} == {True, False}
    assert all(bool(d.lateral) == (2 in d.mirror) for d in drawn)


@pytest.mark.parametrize(
    ("spacing", "patch"), [((1, 1, 1), PATCH), ((8, 1, 1), PATCH), ((5, 1, 1), (1, 8, 10))]
)
def test_rotations_are_rigid_in_millimetres_and_leave_thick_slices_alone(spacing, patch):
    how = Augment(p_spatial=1, scale=(1, 1), elastic_vox=1)
    to_mm = np.diag(spacing)
    for i in range(20):
        spatial = augment.draw(generator(i), how, spacing=spacing, patch=patch).spatial
        rotation = to_mm @ spatial.matrix @ np.linalg.inv(to_mm)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        if spacing[0] > 3 or patch[0] == 1:
            np.testing.assert_allclose(spatial.matrix[0], (1, 0, 0), atol=1e-12)
            assert np.abs(spatial.control[0]).max() == 0


def test_intensity_changes_in_closed_form():
    image = np.linspace(0, 1, 24, dtype=np.float32).reshape(1, 2, 3, 4)
    shift = augment.intensities(image, Drawn(brightness=0.25))
    np.testing.assert_allclose(shift, image + 0.25, atol=1e-6)
    wide = augment.intensities(image, Drawn(contrast=2.0))
    np.testing.assert_allclose(wide, (image - 0.5) * 2 + 0.5, atol=1e-6)
    np.testing.assert_allclose(augment.intensities(image, Drawn(gamma=2.0)), image**2, atol=1e-6)
    noisy = augment.intensities(np.zeros((1, 20, 20, 20), np.float32), Drawn(noise=(0.5, 3)))
    assert noisy.std() == pytest.approx(0.5, rel=0.05)  # 8000 samples: 0.8 % standard error
    assert augment.intensities(image, Drawn(blur_vox=1.0)).std() < image.std()


def test_the_same_generator_gives_the_same_parameters():
    how = Augment(p_spatial=1, p_noise=1, p_blur=1, p_intensity=1)
    a, b = (
        augment.draw(generator(4), how, spacing=(1, 1, 1), patch=PATCH, mirror=(0, 1, 2)) for _ in range(2)
    )
    np.testing.assert_array_equal(a.spatial.matrix, b.spatial.matrix)
    assert replace(a, spatial=None) == replace(b, spatial=None)
    assert None not in (a.noise, a.blur_vox, a.brightness, a.contrast, a.gamma)


@pytest.mark.parametrize(("falling", "sign"), [(0.0, 1), (1.0, -1)])
def test_a_curve_keeps_or_reverses_the_order_and_keeps_mean_and_deviation(falling, sign):
    image = generator(1).normal(3, 2, (2, 1, 8, 9)).astype(np.float32)
    for i in range(5):
        how = Augment(p_noise=0, p_blur=0, p_intensity=0, p_curve=1, falling=falling)
        bent = augment.intensities(image, augment.draw(generator(i), how, spacing=(1, 1, 1), patch=PATCH))
        assert not np.allclose(bent, image)
        for own, other in zip(image, bent, strict=True):
            assert (sign * np.diff(other.ravel()[np.argsort(own.ravel())]) >= -1e-5).all()
            assert (other.mean(), other.std()) == pytest.approx((own.mean(), own.std()), abs=1e-4)


def test_curves_change_no_other_draw_and_go_with_the_shade():
    plain, curved = (
        augment.draw(generator(4), Augment(p_curve=p), spacing=(1, 1, 1), patch=PATCH) for p in (0.0, 1.0)
    )
    assert plain.curve is None and curved.curve is not None
    assert replace(plain, spatial=None) == replace(curved, spatial=None, curve=None)
    bare = Drawn(noise=(1.0, 0), blur_vox=1.0, brightness=1.0, contrast=2.0, gamma=2.0, curve=(0.0, 1.0))
    assert augment.unshaded(bare) == Drawn()


def test_foreground_centres_are_on_the_foreground():
    c = case(shape=(30, 30, 30))
    small = (3, 3, 3)
    for i in range(30):
        z, y, x = centre(c, small, generator(i), p_foreground=1.0)
        if all(1 <= v <= 28 for v in (z, y, x)):
            assert c.label[round(z), round(y), round(x)] > 0
    inside = [centre(c, small, generator(i), p_foreground=0.0) for i in range(50)]
    assert np.min(inside) >= 1 and np.max(inside) <= 28


def test_a_patch_larger_than_the_volume_is_padded():
    c = case(shape=(2, 5, 5))
    image, label = crop(c, (0.5, 2, 2), (4, 8, 5))
    assert image.shape == (2, 4, 8, 5) and label.shape == (4, 8, 5)
    np.testing.assert_array_equal(image[:, 1:3, 2:7, :], c.image)  # centre 2 is voxel 4 of 8
    assert (label == IGNORE).sum() == label.size - c.label.size
    assert patch_size((8, 5), 1) == (8, 1, 5)
