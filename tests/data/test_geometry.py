from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seguro.core.errors import GeometryError
from seguro.core.types import Grid, Source
from seguro.data import geometry

FLOAT = 1e-9  # double arithmetic on numbers of the order of 100
SINGLE = 1e-5  # single precision interpolation of numbers of the order of 1
ORIENTATIONS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]


def affine_of(axes, signs, spacing=(1.0, 2.0, 3.0), angles=(0.0, 0.0, 0.0)) -> np.ndarray:
    """File axis axes[k] runs along world axis k with the given sign, turned by small angles."""
    matrix = np.zeros((3, 3))
    for world, axis in enumerate(axes):
        matrix[world, axis] = signs[world] * spacing[axis]
    for (a, b), angle in zip(((0, 1), (0, 2), (1, 2)), angles, strict=True):
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    out = np.eye(4)
    out[:3, :3] = matrix
    out[:3, 3] = (11.0, -7.0, 5.0)
    return out


@settings(max_examples=100, deadline=None)
@given(
    which=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    angles=st.tuples(*[st.floats(-0.3, 0.3)] * 3),
)
def test_any_orientation_comes_back_bit_equal_and_voxels_keep_their_place(which, shape, angles):
    affine = affine_of(*which, angles=angles)
    stored = np.arange(np.prod(shape)).reshape(shape)
    array, grid, axes, flips = geometry.to_canonical(stored, affine)
    source = Source("nifti", ".nii", shape, axes, flips)
    assert np.array_equal(geometry.to_file(array, source), stored)
    for index in np.ndindex(*shape):
        z, y, x = np.argwhere(array == stored[index])[0]
        there = grid.affine @ [x, y, z, 1]
        assert np.allclose(there, affine @ [*index, 1], atol=FLOAT)


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_canonical_agrees_with_nibabel_and_points_to_ras(axes, signs):
    affine = affine_of(axes, signs, angles=(0.2, -0.1, 0.15))
    image = nib.as_closest_canonical(nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(np.int16), affine))
    array, grid, _, _ = geometry.to_canonical(np.arange(60).reshape(3, 4, 5), affine)
    assert np.array_equal(np.asarray(image.dataobj).T, array)
    assert np.allclose(image.affine, grid.affine, atol=SINGLE)
    assert (np.diag(grid.affine)[:3] > 0).all()


def test_ties_go_to_the_lower_axis_number():
    half = np.sqrt(0.5)
    affine = np.eye(4)
    affine[:2, :2] = [[half, -half], [half, half]]  # 45 degrees: both orders fit equally
    assert geometry.canonical(affine)[0] == (0, 1, 2)


def test_channels_lead_and_come_back():
    stored = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    affine = affine_of((2, 0, 1), (-1.0, 1.0, -1.0))
    array, grid, axes, flips = geometry.to_canonical(stored, affine)
    assert array.shape == (5, *grid.shape)
    back = geometry.to_file(array, Source("nifti", ".nii", (2, 3, 4), axes, flips))
    assert np.array_equal(back, stored)


def test_to_file_refuses_another_shape():
    with pytest.raises(GeometryError, match="own grid"):
        geometry.to_file(np.zeros((2, 3, 4)), Source("nifti", ".nii", (4, 3, 3)))


def test_planned_grid_closed_form():
    affine = affine_of((0, 1, 2), (1.0, 1.0, 1.0), spacing=(0.5, 0.7, 3.0))
    grid = Grid((10, 20, 30), affine)
    planned = geometry.planned_grid(grid, (3.0, 1.0, 1.0))
    assert planned.shape == (10, 14, 15)
    # effective spacing is extent / size, not the spacing that was asked for
    assert np.allclose(planned.spacing, (3.0, 14.0 / 14, 15.0 / 15), atol=FLOAT)
    odd = geometry.planned_grid(grid, (4.0, 0.9, 0.8))
    assert odd.shape == (8, 16, 19)
    assert np.allclose(odd.spacing, (30 / 8, 14 / 16, 15 / 19), atol=FLOAT)
    for corner in product((0, 1), repeat=3):  # outer edges coincide
        old = np.array([c * n - 0.5 for c, n in zip(corner, grid.shape[::-1], strict=True)] + [1])
        new = np.array([c * n - 0.5 for c, n in zip(corner, odd.shape[::-1], strict=True)] + [1])
        assert np.allclose(grid.affine @ old, odd.affine @ new, atol=FLOAT)


def test_planned_grid_keeps_fixed_axes_and_never_vanishes():
    grid = Grid((10, 20, 30), np.diag([1.0, 1.0, 5.0, 1.0]))
    assert geometry.planned_grid(grid, (1.0, 2.0, 2.0), fixed_axes=(0,)).shape == (10, 10, 15)
    assert geometry.planned_grid(grid, (1e4, 1e4, 1e4)).shape == (1, 1, 1)
    same = geometry.planned_grid(grid, grid.spacing)
    assert same.shape == grid.shape and np.array_equal(same.affine, grid.affine)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 12), size=st.integers(1, 30), slope=st.floats(-3, 3))
def test_linear_resampling_of_a_ramp_is_the_ramp_clamped_at_the_border(n, size, slope):
    ramp = slope * np.arange(n, dtype=np.float64).reshape(1, 1, n)
    got = geometry.resample(ramp, (1, 1, size), order=1)[0, 0]
    where = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    assert np.allclose(got, slope * where, atol=FLOAT)


def test_cubic_is_exact_for_parabolas_inside():
    x = np.arange(20, dtype=np.float64)
    parabola = (0.3 * x**2 - 2 * x + 1).reshape(1, 20, 1)
    got = geometry.resample(parabola, (1, 35, 1), order=3)[0, :, 0]
    where = (np.arange(35) + 0.5) * 20 / 35 - 0.5
    inside = (where > 1) & (where < 18)
    assert np.allclose(got[inside], (0.3 * where**2 - 2 * where + 1)[inside], atol=FLOAT)


def test_nearest_repeats_voxels_when_doubling_and_keeps_the_type():
    label = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    got = geometry.resample(label, (4, 6, 8), order=0)
    assert got.dtype == np.uint8
    assert np.array_equal(got, label.repeat(2, 0).repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_constant_stays_constant(order):
    got = geometry.resample(np.full((2, 3, 5, 7), 4.0, np.float32), (9, 4, 6), order=order)
    assert got.shape == (2, 9, 4, 6)
    assert np.allclose(got, 4.0, atol=SINGLE)


def test_resample_label_equals_the_full_argmax():
    rng = np.random.default_rng(0)
    label = rng.choice([0, 2, 5, 255], size=(5, 6, 7)).astype(np.uint8)
    values = np.unique(label)
    scores = np.stack(
        [geometry.resample((label == v).astype(np.float32), (8, 9, 5), order=1) for v in values]
    )
    assert np.array_equal(geometry.resample_label(label, (8, 9, 5)), values[scores.argmax(0)])


def test_resample_label_same_shape_is_a_copy():
    label = np.ones((2, 2, 2), np.int16)
    same = geometry.resample_label(label, (2, 2, 2))
    same[0] = 7
    assert label.max() == 1


def test_small_shear_is_straightened_and_large_shear_is_printed():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 1] = np.tan(np.radians(0.1))  # half of it falls on each axis: 0.05 degrees
    straight, note = geometry.rigid(affine, "a.nii")
    assert note is not None and "0.05" in note
    gram = straight[:3, :3].T @ straight[:3, :3]
    assert np.allclose(gram, np.diag(np.diag(gram)), atol=FLOAT)
    affine[0, 1] = 0.1
    with pytest.raises(GeometryError, match=r"a\.nii: sheared affine(.|\n)*0\.1000"):
        geometry.rigid(affine, "a.nii")


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_unusable_affines_are_refused(bad):
    with pytest.raises(GeometryError, match="not usable"):
        geometry.rigid(bad, "a.nii")


def test_same_grid_is_the_largest_corner_distance():
    a = Grid((3, 4, 5), np.eye(4))
    scaled = np.diag([1.0, 1.0, 1.1, 1.0])
    assert geometry.same_grid(a, Grid((3, 4, 5), scaled)) == pytest.approx(0.2)
    assert geometry.same_grid(a, Grid((3, 4, 6), np.eye(4))) == float("inf")
