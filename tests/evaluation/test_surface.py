import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from seguro.evaluation.surface import border, diagonal, joint_box, surface_distances

MASKS = arrays(bool, st.tuples(*[st.integers(1, 5)] * 3)).filter(lambda m: m.any())
FLOAT64 = 1e-9  # a handful of float64 operations on numbers below 1000
FLOAT32 = 1e-4  # MONAI returns float32; distances below 100


def ball(shape, center, radius, spacing=(1.0, 1.0, 1.0)):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((x - c) * s) ** 2 for x, c, s in zip(axes, center, spacing, strict=True)) <= radius**2


def reference(truth, prediction, spacing):
    """Both directed distances by scipy's distance transform of the whole array."""
    a, b = (m & ~ndimage.binary_erosion(m) for m in (truth, prediction))
    return (
        ndimage.distance_transform_edt(~b, sampling=spacing)[a],
        ndimage.distance_transform_edt(~a, sampling=spacing)[b],
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.8, 0.7)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_voxels_are_their_distance_apart(spacing, axis):
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[4, 4, 4] = True
    b[tuple(np.array([4, 4, 4]) + 3 * np.eye(3, dtype=int)[axis])] = True
    distances = surface_distances(a, b, spacing)
    assert [distances.hd, distances.hd95, distances.assd] == pytest.approx(
        [3 * spacing[axis]] * 3, abs=FLOAT64
    )


def test_parallel_plates_are_their_gap_apart():
    a, b = np.zeros((2, 12, 8, 8), bool)
    a[2], b[9] = True, True
    distances = surface_distances(a, b, (3.0, 1.0, 1.0))
    assert (distances.hd, distances.assd) == (21.0, 21.0)
    assert distances.nsd(20.9) == 0 and distances.nsd(21.0) == 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_concentric_spheres_are_the_difference_of_their_radii_apart(spacing):
    shape = tuple(int(40 / s) for s in spacing)
    center = [n / 2 for n in shape]
    distances = surface_distances(ball(shape, center, 12, spacing), ball(shape, center, 8, spacing), spacing)
    voxel = float(np.linalg.norm(spacing))  # a border voxel lies within one voxel diagonal of its sphere
    assert distances.assd == pytest.approx(4.0, abs=voxel / 2)
    assert distances.hd == pytest.approx(4.0, abs=voxel)


def test_shifted_cube_has_the_hausdorff_distance_of_its_shift():
    a = np.zeros((12, 12, 12), bool)
    a[3:8, 3:8, 3:8] = True
    distances = surface_distances(a, np.roll(a, 2, axis=1), (1.0, 1.5, 1.0))
    assert distances.hd == 3.0
    assert 0 < distances.assd < 3.0


def test_a_cube_shifted_by_three_voxels_of_two_mm_is_6_mm_away():
    a = np.zeros((16, 8, 8), bool)
    a[3:8, 2:6, 2:6] = True
    distances = surface_distances(a, np.roll(a, 3, axis=0), (2.0, 1.0, 1.0))
    assert distances.hd == distances.hd95 == 6.0
    assert surface_distances(a, a, (2.0, 1.0, 1.0)).hd95 == 0


def test_border_of_a_flat_image_is_its_contour_and_touches_the_frame():
    square = np.zeros((1, 6, 6), bool)
    square[0, 1:6, 1:5] = True  # 5 x 4, one side on the frame
    assert np.count_nonzero(border(square)) == 5 * 4 - 3 * 2


def test_one_slice_thick_object_in_a_volume_is_all_border():
    plate = np.zeros((5, 6, 6), bool)
    plate[4, 1:5, 1:5] = True  # cropping to it must not turn the volume into an image
    assert surface_distances(plate, plate, (1, 1, 1)).from_truth.size == 16


@settings(deadline=None)
@given(st.data())
def test_agrees_with_a_distance_transform(data):
    shape = data.draw(st.tuples(*[st.integers(2, 6)] * 3))
    a, b = (data.draw(arrays(bool, shape)) for _ in range(2))
    assume(a.any() and b.any())
    spacing = data.draw(st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 3.3])] * 3))
    distances = surface_distances(a, b, spacing)
    expected = reference(a, b, spacing)
    for got, want in zip((distances.from_truth, distances.from_prediction), expected, strict=True):
        np.testing.assert_allclose(np.sort(got), np.sort(want), atol=FLOAT64)


@settings(deadline=None)
@given(MASKS, st.data())
def test_laws(a, data):
    b = data.draw(arrays(bool, a.shape).filter(lambda m: m.any()))
    spacing = data.draw(st.tuples(*[st.sampled_from([0.6, 1.0, 2.5])] * 3))
    d, turned = surface_distances(a, b, spacing), surface_distances(b, a, spacing)
    assert (d.hd, d.hd95, d.nsd(1.0)) == (turned.hd, turned.hd95, turned.nsd(1.0))
    assert d.assd == pytest.approx(turned.assd, abs=FLOAT64)
    assert 0 <= d.assd <= d.hd and d.hd95 <= d.hd <= diagonal(a.shape, spacing) + FLOAT64
    shares = [d.nsd(t) for t in (0, 0.6, 1, 2.5, 5, 20)]
    assert shares == sorted(shares) and shares[-1] == 1
    assert surface_distances(a, a, spacing).hd == 0
    moved = [np.pad(m, [(2, 3) if n > 1 else (0, 0) for n in m.shape]) for m in (a, b)]
    shifted = surface_distances(*moved, spacing)
    assert (shifted.hd, shifted.hd95) == pytest.approx((d.hd, d.hd95), abs=FLOAT64)
    assert shifted.assd == pytest.approx(d.assd, abs=FLOAT64)


def random_pair(seed, shape=(14, 20, 22)):
    rng = np.random.default_rng(seed)
    a = ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.04
    b = ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.06
    return a, a ^ (b & ball(shape, rng.uniform(5, 12, 3), 6))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore")
def test_parity_with_monai(seed):
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    spacing = (2.5, 0.8, 1.1)
    a, b = random_pair(seed)
    truth, prediction = (torch.from_numpy(m[None, None]) for m in (a, b))
    options = {"include_background": True, "spacing": spacing}
    ours = surface_distances(a, b, spacing)
    hd = monai.compute_hausdorff_distance(prediction, truth, **options)
    hd95 = monai.compute_hausdorff_distance(prediction, truth, percentile=95, **options)
    assd = monai.compute_average_surface_distance(prediction, truth, symmetric=True, **options)
    nsd = monai.compute_surface_dice(prediction, truth, [1.5], **options)
    assert [ours.hd, ours.hd95, ours.assd] == pytest.approx(
        [hd.item(), hd95.item(), assd.item()], abs=FLOAT32
    )
    assert ours.nsd(1.5) == pytest.approx(nsd.item(), abs=1e-6)  # a ratio of the same counts, in float32


@pytest.mark.filterwarnings("ignore")
def test_parity_with_monai_in_two_dimensions():
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    a, b = (m[7] for m in random_pair(1))
    theirs = monai.compute_hausdorff_distance(
        torch.from_numpy(b[None, None]),
        torch.from_numpy(a[None, None]),
        include_background=True,
        spacing=(0.8, 1.1),
    )
    assert surface_distances(a[None], b[None], (9.0, 0.8, 1.1)).hd == pytest.approx(
        theirs.item(), abs=FLOAT32
    )


@pytest.mark.parametrize("seed", range(3))
def test_near_surface_distance(seed):
    """Surfels sit on voxel corners and are weighted by area: distances differ by at most a voxel diagonal."""
    peer = pytest.importorskip("surface_distance")
    spacing = (1.5, 1.0, 1.0)
    a, b = random_pair(seed)
    ours = surface_distances(a, b, spacing)
    theirs = peer.compute_surface_distances(a, b, spacing)
    voxel = float(np.linalg.norm(spacing))
    assert ours.hd == pytest.approx(peer.compute_robust_hausdorff(theirs, 100), abs=voxel)
    assert ours.hd95 == pytest.approx(peer.compute_robust_hausdorff(theirs, 95), abs=voxel)
    mean = np.mean(peer.compute_average_surface_distance(theirs))
    assert ours.assd == pytest.approx(mean, abs=voxel / 2)
    # A surface half a voxel further in or out counts other shares: shifted tolerances bracket the NSD.
    nsd = peer.compute_surface_dice_at_tolerance(theirs, 3.0)
    assert ours.nsd(3.0 - voxel) - 0.05 <= nsd <= ours.nsd(3.0 + voxel) + 0.05


@pytest.mark.parametrize(
    ("truth", "prediction", "spacing"),
    [
        (np.ones((2, 2), bool), np.ones((2, 3), bool), (1, 1)),
        (np.ones((2, 2), bool), np.zeros((2, 2), bool), (1, 1)),
        (np.ones((2, 2), bool), np.ones((2, 2), bool), (1, 1, 1)),
    ],
    ids=["other shapes", "empty", "spacing of other length"],
)
def test_malformed_is_refused(truth, prediction, spacing):
    with pytest.raises(ValueError, match=r"fit|not empty"):
        surface_distances(truth, prediction, spacing)


def test_joint_box_holds_both_and_nothing_more():
    a, b = np.zeros((2, 7, 8, 9), bool)
    a[1, 2, 3] = b[4, 6, 3] = True
    assert joint_box(a, b) == (slice(1, 5), slice(2, 7), slice(2, 4))  # an axis keeps at least two entries
