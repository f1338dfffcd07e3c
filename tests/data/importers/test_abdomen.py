"""SSL-ALPNet's preparation: tail, spacing, crop and padding of MR; window and grid of CT."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.core.types import Grid
from seguro.data.formats import read_image, read_label
from seguro.data.importers import abdomen

MR_SPACING = (5.5, 1.6, 1.4)


def grid(shape, spacing, origin=(-150.0, 80.0, -40.0)) -> Grid:
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)


def volume(shape, seed=0, low=0.0, high=1200.0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(low, high, shape).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    z, y, x = (n // 4 for n in shape)
    label[z : 2 * z + 1, y : 3 * y, x : 2 * x] = 1
    label[z : 2 * z + 1, y : 3 * y, 2 * x : 3 * x] = 4
    return image, label


def coordinates(g: Grid) -> np.ndarray:
    """World coordinates (3, Z, Y, X)."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in g.shape), indexing="ij")
    return (
        np.einsum("ij,jzyx->izyx", g.affine[:3, :3], np.stack([x, y, z])) + g.affine[:3, 3, None, None, None]
    )


def test_mr_has_the_published_grid_and_its_tail_cut():
    image, label = volume((9, 200, 260))
    new, classes, g = abdomen.mr(image, label, grid(image.shape, MR_SPACING))
    assert g.spacing == pytest.approx((7.7, 1.25, 1.25))
    assert new.shape == classes.shape == g.shape == (int(9 * 5.5 / 7.7 + 1), 256, 256)
    assert new.max() <= np.float32(np.percentile(image, 99.5)) < image.max()
    assert set(np.unique(classes)) == {0, 1, 4}
    assert new.dtype == np.float32 and classes.dtype == np.uint8


@pytest.mark.parametrize("shape", [(6, 100, 120), (6, 260, 290)], ids=["padded", "cropped"])
def test_what_is_cropped_or_padded_lies_around_the_center(shape):
    """An image of its own coordinates must still be that, so affine and voxels moved together."""
    g = grid(shape, MR_SPACING)
    for axis in range(3):
        ramp = (coordinates(g)[axis] + 1000.0).astype(np.float32)  # padding is 0 or the minimum
        tail = np.percentile(ramp, 99.5)
        new, _, after = abdomen.mr(ramp, np.zeros(shape, np.uint8), g)
        expected = coordinates(after)[axis] + 1000.0
        box = [
            (c >= w.min()) & (c <= w.max()) for c, w in zip(coordinates(after), coordinates(g), strict=True)
        ]
        seen = np.logical_and.reduce(box) & (expected <= tail)
        assert seen.sum() > 50000
        assert np.abs(new - expected)[seen].max() < 2e-3  # float32 at 1000


def test_padding_is_the_minimum_of_the_image_and_0_of_the_label():
    image, label = volume((5, 90, 90), low=40.0)
    new, classes, _ = abdomen.mr(image, label + 1, grid(image.shape, (7.7, 1.25, 1.25)))
    assert (
        new.min() == image.min() and (new[:, 0] == image.min()).all() and (new[..., -1] == image.min()).all()
    )
    assert not classes[:, :80].any() and classes[:, 85:170, 85:170].all()


def test_an_mr_volume_on_the_grid_keeps_every_voxel():
    image, label = volume((6, 256, 256))
    image = np.minimum(image, np.float32(1100.0))  # so many at the top that the percentile is the top
    new, classes, g = abdomen.mr(image, label, grid(image.shape, (7.7, 1.25, 1.25)))
    assert np.array_equal(new, image) and np.array_equal(classes, label)
    assert np.array_equal(g.affine, grid(image.shape, (7.7, 1.25, 1.25)).affine)


def test_ct_is_windowed_to_0_255_and_exactly_256():
    image, label = volume((3, 512, 512), low=-1000.0, high=900.0)
    new, classes, g = abdomen.ct(image, label, grid(image.shape, (3.0, 0.7, 0.7)), "case")
    assert new.shape == classes.shape == g.shape == (3, 256, 256)  # not 257, and no slice more
    assert (new.min(), new.max()) == (0.0, pytest.approx(255.0))
    assert g.spacing == pytest.approx((3.0, 0.7 * 1.75, 0.7 * 1.75))
    assert set(np.unique(classes)) == {0, 1, 4}
    inside = np.clip(image, -125, 275)[:, 32, 32]
    assert np.abs(new[:, 0, 0] - (inside + 125) * 255 / 400).max() < 1e-3


def test_ct_voxels_lie_where_the_affine_says():
    g = grid((2, 512, 512), (3.0, 0.7, 0.7), origin=(-180.0, -180.0, 0.0))
    for axis in (0, 1):
        ramp = (coordinates(g)[axis] / 2).astype(np.float32)  # -90 ... 89, within the window
        new, _, after = abdomen.ct(ramp, np.zeros(g.shape, np.uint8), g, "case")
        low, high = ramp.min(), ramp.max()
        expected = (coordinates(after)[axis] / 2 - low) * 255 / (high - low)
        assert np.abs(new - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [((2, 256, 256), 0.0, "512 x 512"), ((2, 512, 512), -1000.0, "nothing between -125 and 275")],
    ids=["other size", "air"],
)
def test_ct_that_the_preparation_is_not_for(shape, value, message):
    image = np.full(shape, value, np.float32)
    with pytest.raises(DataError, match=message):
        abdomen.ct(image, np.zeros(shape, np.uint8), grid(shape, (3, 1, 1)), "case")


@pytest.mark.parametrize("old", [(5.5, 1.6, 1.4), (9.0, 1.25, 1.9), (7.0, 0.9, 1.2)])
def test_resampling_is_simpleitks_under_the_published_rule(old):
    sitk = pytest.importorskip("SimpleITK")
    image, label = volume((8, 30, 33))
    new = abdomen.MR_SPACING
    size = [int(n * a / b + 1) for n, a, b in zip(image.shape, old, new, strict=True)]
    if old[1] == new[1]:
        size[1] = image.shape[1]  # here the published rule appends a row of padding

    def theirs(array):
        moving = sitk.GetImageFromArray(array)
        moving.SetSpacing(old[::-1])
        f = sitk.ResampleImageFilter()
        f.SetSize(size[::-1])
        f.SetOutputSpacing(new[::-1])
        f.SetInterpolator(sitk.sitkLinear)
        return sitk.GetArrayFromImage(f.Execute(moving))

    shape = abdomen.published_shape(grid(image.shape, old), new)
    assert shape == tuple(size)
    assert np.abs(abdomen.resampled(image, old, new, shape) - theirs(image)).max() < 2e-3  # of 1200, float32
    painted = np.zeros(shape, np.uint8)
    for value in (1, 4):
        painted[np.rint(theirs((label == value).astype(np.float32))) == 1] = value
    assert np.array_equal(abdomen.resampled_label(label, old, new, shape), painted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chaos_01", "chaos_32"])
def test_a_published_volume_is_already_prepared(real_data, name):
    folder = real_data / "chaos_t2"
    if not folder.is_dir():
        pytest.skip("the CHAOS scans are not on this machine")
    image = read_image([folder / "imagesTr" / f"{name}.nii.gz"])
    label = read_label(folder / "labelsTr" / f"{name}.nii.gz").array.astype(np.uint8)
    new, classes, g = abdomen.mr(image.array[0], label, image.grid)
    assert np.array_equal(classes, label) and np.abs(g.affine - image.grid.affine).max() < 1e-5
    assert (new != image.array[0]).mean() <= 0.005  # the tail of what padding has left is cut once more
